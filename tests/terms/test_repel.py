"""The push away from other adapters, against matrices written out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from alignkit.errors import ModelError
from alignkit.terms.repel import Repel, adapter_of, distance

GENERATOR = torch.Generator().manual_seed(0)
MODULES = {"base.q": (7, 5), "base.v": (4, 5)}


def matrices(rank: int) -> dict[str, Tensor]:
    found = {}
    for module, (out, inputs) in MODULES.items():
        found[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=GENERATOR)
        found[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=GENERATOR)
    return found


def saved(folder: Path, values: dict[str, Tensor], rank: int, **options: Any) -> Path:
    folder.mkdir()
    save_file(values, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 8, **options}))
    return folder


class Trained:
    """A model with one adapter of rank 3 and alpha / r 2, whose parameters peft names with the adapter's name."""

    rank, processes = 0, 1

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.weights = {
            name.replace(".weight", ".default.weight"): value.clone().requires_grad_()
            for name, value in values.items()
        }
        self.scalings = dict.fromkeys(MODULES, 2.0)


def change(values: dict[str, Tensor], module: str, scale: float) -> Tensor:
    return scale * values[f"{module}.lora_B.weight"] @ values[f"{module}.lora_A.weight"]


@pytest.fixture
def own() -> dict[str, Tensor]:
    return matrices(3)


def test_the_distance_is_the_mean_squared_difference_of_the_changes(
    tmp_path: Path, own: dict[str, Tensor]
) -> None:
    others = [matrices(2), matrices(4)]
    folders = [saved(tmp_path / str(rank), other, rank) for other, rank in zip(others, (2, 4), strict=True)]
    model = Trained(own)
    state = Repel(adapters=list(map(str, folders))).prepare(model)
    expected = sum(
        (change(own, module, 2.0) - change(other, module, 8 / rank)).square().sum()
        for module in MODULES
        for other, rank in zip(others, (2, 4), strict=True)
    )
    torch.testing.assert_close(state["scale"], expected / 2, rtol=1e-5, atol=1e-5)


def test_the_distance_does_not_depend_on_how_a_change_is_factored(
    tmp_path: Path, own: dict[str, Tensor]
) -> None:
    folder = saved(tmp_path / "n", matrices(2), 2)
    state = Repel(adapters=[str(folder)]).prepare(Trained(own))
    turn = torch.randn(3, 3, generator=GENERATOR) + 3 * torch.eye(3)
    turned = {
        name: value @ turn if "lora_B" in name else torch.linalg.inv(turn) @ value
        for name, value in own.items()
    }
    found = distance(Trained(turned).weights, Trained(turned).scalings, state, 1)
    torch.testing.assert_close(found, state["scale"], rtol=1e-4, atol=1e-4)


def test_the_gradient_to_b_is_twice_the_difference_times_a(tmp_path: Path, own: dict[str, Tensor]) -> None:
    other = matrices(2)
    model = Trained(own)
    state = Repel(adapters=[str(saved(tmp_path / "n", other, 2))]).prepare(model)
    name = "base.q.lora_B.default.weight"
    (slope,) = torch.autograd.grad(distance(model.weights, model.scalings, state, 1), model.weights[name])
    apart = change(own, "base.q", 2.0) - change(other, "base.q", 4.0)
    torch.testing.assert_close(slope, 2 * 2.0 * apart @ own["base.q.lora_A.weight"].T, rtol=1e-4, atol=1e-3)


def test_the_push_at_the_start_and_its_slope(tmp_path: Path, own: dict[str, Tensor]) -> None:
    model, adapters = Trained(own), [str(saved(tmp_path / "n", matrices(2), 2))]
    for form, value, slope in (
        ("exp", 1 / math.e, -1 / math.e),
        ("reciprocal", 1.0, -1.0),
        ("l2", -1.0, -1.0),
    ):
        term = Repel(adapters=adapters, weight=3.0, form=form)
        state = term.prepare(model)
        assert float(term.penalty(model.weights, model.scalings, state)) == pytest.approx(3 * value, rel=1e-5)
        further = state | {"scale": state["scale"] / 1.001}  # as far as a delta2 that is 0.1% larger
        moved = float(term.penalty(model.weights, model.scalings, further))
        assert (moved - 3 * value) / 0.001 == pytest.approx(3 * slope, rel=5e-3)


def test_a_start_at_the_model_to_leave_is_refused(tmp_path: Path, own: dict[str, Tensor]) -> None:
    with pytest.raises(ModelError, match="starts at the model that it is to leave"):
        Repel(adapters=[str(saved(tmp_path / "n", own, 4, r=4))]).prepare(Trained(own))


def test_an_adapter_of_other_modules_and_dora_are_refused(tmp_path: Path, own: dict[str, Tensor]) -> None:
    other = {"base.o.lora_A.weight": torch.ones(2, 5), "base.o.lora_B.weight": torch.ones(3, 2)}
    with pytest.raises(ModelError, match=r"adapters\.0: base\.o\.lora_A\.weight is in no module"):
        Repel(adapters=[str(saved(tmp_path / "o", other, 2))]).prepare(Trained(own))
    with pytest.raises(ModelError, match="expected plain LoRA in d, found DoRA"):
        adapter_of(saved(tmp_path / "d", own, 3, use_dora=True))
    with pytest.raises(ModelError, match="cannot read nowhere: FileNotFoundError"):
        adapter_of(tmp_path / "nowhere")
