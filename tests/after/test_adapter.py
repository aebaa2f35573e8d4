"""Arithmetic on adapters, against delta W = s B A written out."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.after.adapter import Adapter, read, write
from alignkit.after.interpolate import interpolated, interpolated_weights
from alignkit.errors import ModelError
from tests.tiny import build_tiny_adapter, build_tiny_model


def adapter(rank: int, alpha: float, seed: int, *, rslora: bool = False) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"layers.{layer}.{part}.weight": torch.randn(*shape, generator=generator, dtype=torch.float64)
        for layer in range(2)
        for part, shape in (("lora_A", (rank, 5)), ("lora_B", (4, rank)))
    }
    return Adapter(weights, rank, alpha, rslora)


def deltas(of: Adapter) -> list[Tensor]:
    scale = of.alpha / (of.rank**0.5 if of.use_rslora else of.rank)
    return [
        scale * of.weights[f"layers.{layer}.lora_B.weight"] @ of.weights[f"layers.{layer}.lora_A.weight"]
        for layer in range(2)
    ]


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1.5), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_interpolation_is_that_of_the_weights(amount: float, rank: int, other: int, rslora: bool) -> None:
    trained, start = adapter(rank, 8.0, 0, rslora=rslora), adapter(other, 3.0, 1, rslora=rslora)
    for found, new, old in zip(
        deltas(interpolated(trained, start, amount)), deltas(trained), deltas(start), strict=True
    ):
        torch.testing.assert_close(found, amount * new + (1 - amount) * old)
    for found, new in zip(deltas(interpolated(trained, None, amount)), deltas(trained), strict=True):
        torch.testing.assert_close(found, amount * new)


def test_amount_one_is_the_trained_adapter_bit_for_bit() -> None:
    trained = adapter(3, 6.0, 0)
    for start in (None, adapter(3, 6.0, 1)):
        found = interpolated(trained, start, 1.0)
        assert (found.rank, found.alpha) == (3, 6.0)
        assert all(torch.equal(found.weights[name], weight) for name, weight in trained.weights.items())


def test_amount_zero_is_the_start() -> None:
    trained, start = adapter(2, 4.0, 0), adapter(3, 6.0, 1)
    for found, old in zip(deltas(interpolated(trained, start, 0.0)), deltas(start), strict=True):
        torch.testing.assert_close(found, old)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_cut_adapter_keeps_the_first_ranks_at_the_same_scale(rank: int, rslora: bool) -> None:
    whole = adapter(4, 10.0, 0, rslora=rslora)
    for layer, found in enumerate(deltas(whole.cut(rank))):
        b, a = (whole.weights[f"layers.{layer}.lora_{part}.weight"] for part in "BA")
        masked = b @ torch.diag((torch.arange(4) < rank).double()) @ a
        torch.testing.assert_close(found, whole.scale * masked)


def test_a_cut_plain_adapter_has_a_share_of_alpha() -> None:
    cut = adapter(4, 8.0, 0).cut(3)
    assert (cut.rank, cut.alpha) == (3, 6)


def test_adapters_of_other_modules_cannot_be_added() -> None:
    one = adapter(2, 4.0, 0)
    other = Adapter({name.replace("layers.1", "layers.7"): w for name, w in one.weights.items()}, 2, 4.0)
    with pytest.raises(ModelError, match=r"change the same modules; only one has layers\.1"):
        one.plus(other)


def test_the_interpolation_of_policies_is_log_linear() -> None:
    """Of linear logits, the interpolated weights' policy is pi_0^(1-a) pi_1^a, normalised."""
    generator = torch.Generator().manual_seed(0)
    start, trained = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x, amount = torch.randn(4, generator=generator, dtype=torch.float64), 0.3
    mixed = interpolated_weights({"w": start}, {"w": trained}, amount)["w"]
    expected = (1 - amount) * (start @ x).log_softmax(0) + amount * (trained @ x).log_softmax(0)
    torch.testing.assert_close((mixed @ x).log_softmax(0), expected.log_softmax(0))


def test_weights_interpolate_exactly_at_both_ends_in_any_dtype() -> None:
    start, trained = torch.randn(9).bfloat16(), torch.randn(9).bfloat16()
    for amount, end in ((0.0, start), (1.0, trained)):
        assert torch.equal(interpolated_weights({"w": start}, {"w": trained}, amount)["w"], end)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter")
    return build_tiny_adapter(build_tiny_model(path / "model"), path / "adapter", rank=4)


def test_what_is_written_reads_back_equal(written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "adapter"))
    whole = read(folder)
    write(whole.cut(2), folder)
    again = read(folder)
    assert (again.rank, again.alpha) == (2, 4)
    assert all(torch.equal(again.weights[name], w) for name, w in whole.cut(2).weights.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('"rank_pattern": {"q_proj": 2}', "rank_pattern"),
        ('"peft_type": "IA3"', "peft_type IA3"),
    ],
)
def test_what_is_no_plain_lora_is_refused(written: Path, tmp_path: Path, change: str, words: str) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "adapter"))
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().rstrip().removesuffix("}") + f", {change}}}")
    with pytest.raises(ModelError, match=f"expected plain LoRA of one rank, found {words}"):
        read(folder)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected the folder of a LoRA adapter"):
        read(tmp_path)
