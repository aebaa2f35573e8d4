"""Quantisation noise in a run: what it adds, its neutral value, its draw, resume, and the gap that is measured."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from alignkit import train
from alignkit.adapter_sections import ElasticSection
from alignkit.after import adapter as adapters
from alignkit.errors import RecipeError
from alignkit.models.quantisers import half_steps, served_layers
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers.elastic import PLAIN, QuantisationNoise, noise_of
from tests.jobs import job_of
from tests.preference import write_pairs
from tests.tiny import build_tiny_model

ANY: Any = SimpleNamespace()


class Small(nn.Module):
    """A linear layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5, bias=False), nn.Linear(5, 7, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        """The head's outputs."""
        found: Tensor = self.head(self.body(x))
        return found


def small() -> Any:
    torch.manual_seed(0)
    return get_peft_model(Small(), LoraConfig(r=2, target_modules=["body"]))


def begun(model: Any, name: str, **options: Any) -> QuantisationNoise:
    """Noise of one format in step 7 of a training."""
    callback = QuantisationNoise(ElasticSection(formats=["nf4", "int8", "fp8"], **options), seed=3)
    callback.on_train_begin(ANY, ANY, ANY, model=model)
    callback.on_step_begin(ANY, SimpleNamespace(global_step=7), ANY)
    callback.format = name
    return callback


def test_a_layer_computes_with_its_weight_and_the_noise_forwards_and_backwards() -> None:
    model = small()
    x = torch.randn(2, 3, 6, requires_grad=True)
    begun(model, "int8", strength=0.5)
    ((name, layer),) = served_layers(model)
    noise = noise_of(layer.weight, "int8", 0.5, f"3/7/{name}")
    assert 0 < noise.abs().max() <= 0.5 * half_steps(layer.weight, "int8").max()
    expected = x @ (layer.weight + noise).T @ model.head.weight.T
    torch.testing.assert_close(model(x), expected)
    found = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), x))


def test_no_strength_and_a_plain_step_are_the_plain_model_bit_for_bit() -> None:
    model, x = small(), torch.randn(2, 3, 6)
    plain = model(x)
    for name, strength in (("nf4", 0.0), (PLAIN, 1.0)):
        callback = begun(model, name, strength=strength)
        assert torch.equal(model(x), plain)
        callback.on_train_end(ANY, ANY, ANY)


def test_what_is_measured_in_and_after_training_has_no_noise() -> None:
    model, x = small(), torch.randn(2, 3, 6)
    plain, callback = model(x), begun(model, "nf4")
    assert not torch.equal(model(x), plain)
    assert torch.equal(model.eval()(x), plain)
    model.train()
    callback.on_step_end(ANY, ANY, ANY)
    assert torch.equal(model(x), plain)


def test_the_draw_depends_on_seed_and_step_alone_and_takes_every_format() -> None:
    options = ElasticSection(formats=["nf4", "fp8"])
    drawn = [QuantisationNoise(options, seed=1).draw(step) for step in range(90)]
    assert drawn == [QuantisationNoise(options, seed=1).draw(step) for step in range(90)]
    assert drawn != [QuantisationNoise(options, seed=2).draw(step) for step in range(90)]
    assert {name: drawn.count(name) > 15 for name in set(drawn)} == {PLAIN: True, "nf4": True, "fp8": True}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elastic")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=4, start=100)
    return path


def values(workplace: Path, **sections: Any) -> dict[str, Any]:
    """A recipe of three steps of four pairs, with a checkpoint after each two."""
    options = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "save_steps": 2}
    return {
        "model": {"path": str(workplace / "model")},
        "data": {
            "train": str(workplace / "train.jsonl"),
            "validation": str(workplace / "validation.jsonl"),
            "max_length": 96,
        },
        "method": {"type": "simpo"},
        "training": options | sections.pop("training", {}),
        "lora": {"r": 2, "alpha": 4},
        "collapse_guard": None,
        "seed": 5,
        **sections,
    }


def run(workplace: Path, name: str, **sections: Any) -> RunFolder:
    path = workplace / f"{name}.yaml"
    path.write_text(Recipe.parse(values(workplace, **sections, output_dir=str(workplace / name))).to_yaml())
    assert train.main([str(path)]) == 0
    return RunFolder(workplace / name)


@pytest.fixture(scope="module")
def elastic(workplace: Path) -> RunFolder:
    return run(workplace, "elastic", elastic=["nf4", "int8", "fp8"])


def weights(folder: RunFolder) -> dict[str, Tensor]:
    return adapters.read(folder.adapter).weights


def test_a_run_without_noise_is_bitwise_the_plain_one_and_noise_changes_it(
    workplace: Path, elastic: RunFolder
) -> None:
    plain, still = (
        run(workplace, "plain"),
        run(workplace, "still", elastic={"formats": ["fp8"], "strength": 0}),
    )
    own, noisy = weights(plain), weights(elastic)
    assert all(torch.equal(own[name], weight) for name, weight in weights(still).items())
    assert any(not torch.equal(noisy[name], weight) for name, weight in own.items())


def test_the_gap_is_the_held_out_loss_over_weights_of_the_serving_quantiser(
    workplace: Path, elastic: RunFolder
) -> None:
    result = json.loads(elastic.result.read_text())
    gap = result["elastic"]
    assert list(gap) == ["plain", "nf4", "int8", "fp8"]
    assert gap["plain"] == pytest.approx(result["metrics"]["valid_loss"])
    assert gap["plain"] != gap["nf4"]
    assert abs(gap["int8"] - gap["plain"]) < abs(gap["nf4"] - gap["plain"]) + 1e-3
    lines = [json.loads(line)["message"] for line in elastic.events.read_text().splitlines()]
    assert any(line.startswith("Held-out loss plain ") for line in lines)


def test_a_step_does_not_depend_on_its_split(workplace: Path, elastic: RunFolder) -> None:
    split = run(workplace, "split", elastic=["nf4", "int8", "fp8"], training={"micro_batch_size": 2})
    whole = weights(elastic)
    for name, weight in weights(split).items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=1e-4)


def test_a_run_resumes_bit_for_bit(workplace: Path, elastic: RunFolder) -> None:
    whole = weights(elastic)
    for gone in (elastic.adapter, elastic.checkpoints / "checkpoint-3"):
        shutil.rmtree(gone)
    elastic.result.unlink()
    assert train.main([str(workplace / "elastic.yaml"), "--resume"]) == 0
    assert all(torch.equal(weights(elastic)[name], weight) for name, weight in whole.items())


def test_the_base_and_no_head_is_quantised(workplace: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(workplace / "model").requires_grad_(requires_grad=False)
    names = [name for name, _ in served_layers(model)]
    assert len(names) == 2 * 7
    assert "lm_head" not in names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elastic": ["int4"]}, r"elastic\.formats\.0: expected 'nf4', 'int8' or 'fp8', found 'int4'"),
        ({"elastic": ["fp8", "fp8"]}, "expected each format once, found fp8, fp8"),
        (
            {"elastic": {"formats": ["fp8"], "strength": 5}},
            r"elastic\.strength: expected less than or equal to 4",
        ),
        ({"elastic": ["fp8"], "lora": None}, "elastic: expected lora over frozen weights"),
        (
            {"elastic": ["fp8"], "model": {"path": "m", "quantization": "nf4"}},
            "expected without model.quantization",
        ),
        ({"elastic": ["fp8"], "data": {"train": "t"}}, r"elastic: expected data\.validation"),
    ],
)
def test_what_cannot_be_elastic_is_refused(workplace: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(values(workplace, **changes, output_dir="o"))


def test_a_job_names_formats_too() -> None:
    recipe = job_of("supervised", elastic=["nf4"]).recipe
    assert recipe.elastic is not None
    assert recipe.elastic.formats == ["nf4"]
    with pytest.raises(RecipeError, match=r"^method\.supervised\.hyperparameters\.elastic\.formats\.0: "):
        job_of("supervised", elastic=["int4"])
