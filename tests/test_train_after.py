"""Runs with steps after training, nested ranks and orthogonal gradients: what is saved, measured and resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from alignkit import train
from alignkit.cli import app
from alignkit.errors import DataError, RecipeError
from alignkit.interpolate_run import interpolate_run
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.preference import write_pairs
from tests.tiny import build_tiny_adapter, build_tiny_model

INTERPOLATE = {"type": "interpolate", "amount": 0.5}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("after")
    build_tiny_model(path / "model")
    build_tiny_adapter(path / "model", path / "start", rank=4)
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=4, start=100)
    return path


def run(workplace: Path, name: str, *, arguments: tuple[str, ...] = (), **sections: Any) -> RunFolder:
    """Train two steps of four pairs, without a guard, and return the run's folder."""
    output = workplace / name
    values = {
        "model": {"path": str(workplace / "model"), **sections.pop("model", {})},
        "data": {
            "train": str(workplace / "train.jsonl"),
            "validation": str(workplace / "validation.jsonl"),
            "max_length": 96,
        },
        "method": {"type": "f_dpo", "beta": 0.5},
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2} | sections.pop("training", {}),
        "lora": {"r": 4, "alpha": 8},
        "collapse_guard": None,
        "seed": 5,
        "output_dir": str(output),
        **sections,
    }
    path = output.with_suffix(".yaml")
    path.write_text(Recipe.parse(values).to_yaml())
    assert train.main([str(path), *arguments]) == 0
    return RunFolder(output)


@pytest.fixture(scope="module")
def plain(workplace: Path) -> RunFolder:
    return run(workplace, "plain")


@pytest.fixture(scope="module")
def nested(workplace: Path) -> RunFolder:
    """Nested ranks under orthogonal gradients, with a checkpoint after each step."""
    options = {"max_steps": 3, "save_steps": 1, "gradient": "orthogonal"}
    return run(workplace, "nested", training=options, lora={"r": 4, "alpha": 8, "nested": {"spread": 2.0}})


def adapter_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def logps(model: Any, canary: dict[str, Any]) -> list[float]:
    prompt, answer = canary["prompt_token_ids"], canary["completion_token_ids"]
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        scores = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    found: list[float] = scores.gather(1, ids[0, len(prompt) :, None]).squeeze(1).tolist()
    return found


def served(workplace: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workplace / "model"), adapter)


def test_an_interpolated_run_saves_and_measures_the_interpolated_adapter(
    workplace: Path, plain: RunFolder
) -> None:
    folder = run(workplace, "half", after=[INTERPOLATE | {"publish": [0.25]}])
    whole, half = adapter_of(plain.adapter), adapter_of(folder.adapter)
    for name, weight in whole.items():
        assert torch.equal(half[name], weight * 0.5 if "lora_B" in name else weight)
    (beside,) = folder.interpolated.iterdir()
    quarter = adapter_of(beside)
    assert all(
        torch.equal(quarter[name], half[name] / 2 if "lora_B" in name else half[name]) for name in whole
    )
    assert {path.name for path in beside.iterdir()} == {path.name for path in folder.adapter.iterdir()}
    assert "0.25 of the trained weights" in (beside / "README.md").read_text()
    canary = json.loads(folder.canary.read_text())
    assert canary["adapter_logprobs"] == pytest.approx(
        logps(served(workplace, folder.adapter), canary), abs=1e-4
    )
    result, before = folder.read_result(), plain.read_result()
    assert result is not None
    assert before is not None
    assert "after" in result["phases"]
    assert result["metrics"]["valid_loss"] != before["metrics"]["valid_loss"]
    messages = [json.loads(line)["message"] for line in folder.events.read_text().splitlines()]
    assert "Interpolated with the start: 0.5 of the trained weights" in messages


def test_the_command_writes_several_strengths_of_one_run(plain: RunFolder) -> None:
    shown = CliRunner().invoke(app, ["interpolate", str(plain.path), "--amount", "0.25", "--amount", "1"])
    assert shown.exit_code == 0, shown.output
    folders = [Path(line) for line in shown.output.split()]
    assert [folder.name for folder in folders] == ["amount-0.25", "amount-1"]
    whole = adapter_of(plain.adapter)
    for folder, amount in zip(folders, (0.25, 1.0), strict=True):
        for name, weight in adapter_of(folder).items():
            assert torch.equal(weight, whole[name] * amount if "lora_B" in name else whole[name])
    card = (folders[0] / "README.md").read_text()
    assert card.rstrip().endswith("Interpolated with the model before training: 0.25 of the trained weights.")


def test_an_interpolated_adapter_has_the_logits_of_interpolated_weights(
    workplace: Path, plain: RunFolder
) -> None:
    (folder,) = interpolate_run(plain.path, [0.5])
    base = AutoModelForCausalLM.from_pretrained(workplace / "model")
    merged = served(workplace, plain.adapter).merge_and_unload()
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            weight.copy_((weight + base.get_parameter(name)) / 2)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(served(workplace, folder)(ids).logits, merged(ids).logits)


def test_of_an_adapter_that_trained_on_both_ends_are_one_adapter(workplace: Path) -> None:
    start = {"adapter": str(workplace / "start")}
    folder = run(workplace, "onward", model=start, lora={}, after=[INTERPOLATE])
    trained = run(workplace, "onward-plain", model=start, lora={})
    (written,) = interpolate_run(trained.path, [0.5])
    assert json.loads((folder.adapter / "adapter_config.json").read_text())["r"] == 8
    ids = torch.arange(20)[None]
    ends = [served(workplace, path).merge_and_unload() for path in (Path(start["adapter"]), trained.adapter)]
    with torch.no_grad():
        for name, weight in ends[0].named_parameters():
            weight.copy_((weight + ends[1].get_parameter(name)) / 2)
    for path in (folder.adapter, written):
        torch.testing.assert_close(
            served(workplace, path)(ids).logits, ends[0](ids).logits, rtol=1e-4, atol=1e-4
        )


def test_full_weights_are_interpolated_with_the_base_model(workplace: Path) -> None:
    options = {"learning_rate": 1e-3}
    trained = run(workplace, "full", lora=None, training=options)
    folder = run(workplace, "full-half", lora=None, training=options, after=[INTERPOLATE])
    (written,) = interpolate_run(trained.path, [0.5])
    base, whole, half, file = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (workplace / "model", trained.model, folder.model, written)
    )
    for name, weight in whole.items():
        torch.testing.assert_close(half[name], (weight + base[name]) / 2)
        assert torch.equal(half[name], file[name])
    assert (written / "tokenizer.json").is_file()


def test_auto_steps_choose_by_the_held_out_loss(workplace: Path) -> None:
    steps = [{"type": "interpolate", "amount": "auto"}, {"type": "truncate_rank", "rank": "auto"}]
    folder = run(workplace, "auto", after=steps, collapse_guard={"prompts": 1, "max_new_tokens": 8})
    config = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert config["r"] in {1, 2, 4}
    assert config["lora_alpha"] == 2 * config["r"]
    canary = json.loads(folder.canary.read_text())
    assert canary["adapter_logprobs"] == pytest.approx(
        logps(served(workplace, folder.adapter), canary), abs=1e-4
    )


def test_a_nested_run_resumes_bit_for_bit(nested: RunFolder, workplace: Path) -> None:
    whole = adapter_of(nested.adapter)
    for gone in (nested.adapter, nested.checkpoints / "checkpoint-2", nested.checkpoints / "checkpoint-3"):
        shutil.rmtree(gone)
    nested.result.unlink()
    assert train.main([str(workplace / "nested.yaml"), "--resume"]) == 0
    again = adapter_of(nested.adapter)
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


def test_a_nested_step_does_not_depend_on_its_split(nested: RunFolder, workplace: Path) -> None:
    options = {"max_steps": 3, "micro_batch_size": 2, "gradient": "orthogonal"}
    split = run(workplace, "split", training=options, lora={"r": 4, "alpha": 8, "nested": {"spread": 2.0}})
    whole = adapter_of(nested.adapter)
    for name, weight in adapter_of(split.adapter).items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=1e-4)


def test_a_cut_adapter_is_the_masked_one(nested: RunFolder, workplace: Path) -> None:
    options = {"max_steps": 3, "gradient": "orthogonal"}
    cut = run(
        workplace,
        "cut",
        training=options,
        lora={"r": 4, "alpha": 8, "nested": {"spread": 2.0}},
        after=[{"type": "truncate_rank", "rank": 2}],
    )
    masked = served(workplace, nested.adapter)
    with torch.no_grad():
        for name, weight in masked.named_parameters():
            if "lora_A" in name:
                weight[2:] = 0
    ids = torch.arange(20)[None]
    found = served(workplace, cut.adapter)
    torch.testing.assert_close(found(ids).logits, masked(ids).logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.merge_and_unload()(ids).logits, masked(ids).logits, rtol=1e-4, atol=1e-5)


def test_both_options_change_what_is_trained(nested: RunFolder, workplace: Path) -> None:
    only = run(
        workplace,
        "only-nested",
        training={"max_steps": 3},
        lora={"r": 4, "alpha": 8, "nested": {"spread": 2.0}},
    )
    whole = adapter_of(nested.adapter)
    assert any(not torch.equal(weight, whole[name]) for name, weight in adapter_of(only.adapter).items())


def test_what_cannot_be_interpolated_is_refused(workplace: Path, plain: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"amount: expected above 0 and at most 1\.5, found 2"):
        interpolate_run(plain.path, [2])
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        interpolate_run(tmp_path, [0.5])
    shutil.copy(plain.recipe, tmp_path / "recipe.yaml")
    with pytest.raises(DataError, match="has no adapter: expected a finished run"):
        interpolate_run(tmp_path, [0.5])
