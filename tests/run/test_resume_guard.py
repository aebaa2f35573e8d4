"""A run resumes only from checkpoints of its own origin."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit import train
from alignkit.errors import RecipeError
from alignkit.recipe import Recipe
from alignkit.run.checkpoints import ASIDE, FORMAT, seal
from alignkit.run.folder import RunFolder
from alignkit.run.resume_guard import origin_of, refusal

OURS: dict[str, Any] = {
    "format": FORMAT,
    "processes": 2,
    "sharding": "zero2",
    "recipe": {"lora.r": 4, "seed": 5},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "train.jsonl").write_text("{}\n")
    return Recipe.parse(
        {
            "model": {"path": str(tmp_path / "model")},
            "data": {"train": str(tmp_path / "train.jsonl")},
            "method": {"type": "f_dpo"},
            "output_dir": str(tmp_path / "run"),
        }
    )


def process(count: int = 1, **plugins: Any) -> Any:
    return SimpleNamespace(num_processes=count, state=SimpleNamespace(**plugins))


def test_what_is_held_by_whom() -> None:
    def sharding(**plugins: Any) -> Any:
        values = {"lora": None, "model": {"path": "m"}, "data": {"train": "t"}, "method": {"type": "f_dpo"}}
        return origin_of(Recipe.parse({**values, "output_dir": "o"}), process(2, **plugins))["sharding"]

    assert sharding() == "whole"
    assert sharding(deepspeed_plugin=SimpleNamespace(zero_stage=3)) == "zero3"
    assert sharding(fsdp_plugin=object()) == "fsdp2"


def test_another_version_s_is_refused() -> None:
    message = refusal("checkpoint-4", {**OURS, "format": FORMAT + 1}, OURS)
    assert message == (
        f"checkpoint-4 was written by another version of alignkit: expected format {FORMAT}, found {FORMAT + 1}; "
        "resume with that version"
    )
    assert "found None" in str(refusal("checkpoint-4", {"processes": 2}, OURS))


def test_shares_are_taken_up_by_as_many_processes() -> None:
    assert refusal("checkpoint-4", OURS, OURS) is None
    assert refusal("checkpoint-4", OURS, {**OURS, "processes": 4}) == (
        "checkpoint-4 resumes only with 2 processes, because under zero2 each wrote its own share; found 4"
    )
    assert refusal("checkpoint-4", OURS, {**OURS, "sharding": "fsdp2"}) == (
        "checkpoint-4 was written under zero2 and resumes only under it; this run uses fsdp2"
    )


@pytest.mark.parametrize("sharding", ["whole", "fsdp2"])
def test_whole_states_are_taken_up_by_any_number(sharding: str) -> None:
    ours = {**OURS, "sharding": sharding}
    assert refusal("checkpoint-4", {**ours, "processes": 1}, ours) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_dir", "elsewhere"),
        ("training.max_steps", 9),
        ("training.micro_batch_size", 2),
        ("training.eval_steps", 3),
        ("collapse_guard", None),
    ],
)
def test_what_may_change(recipe: Recipe, key: str, value: Any) -> None:
    changed = _with(recipe, key, value)
    assert refusal("checkpoint-4", origin_of(recipe, process()), origin_of(changed, process())) is None


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("lora", None, "lora"),
        ("lora.r", 4, "lora.r was 16, now 4"),
        ("method.beta", 0.5, "method.beta was 0.1, now 0.5"),
        ("training.learning_rate", 1e-3, "training.learning_rate was 0.0002, now 0.001"),
        ("training.batch_size", 4, "training.batch_size was 8, now 4"),
        ("seed", 1, "seed was 0, now 1"),
    ],
)
def test_what_may_not(recipe: Recipe, key: str, value: Any, shown: str) -> None:
    message = refusal(
        "checkpoint-4", origin_of(recipe, process()), origin_of(_with(recipe, key, value), process())
    )
    assert message is not None
    assert message.startswith("checkpoint-4 belongs to another recipe")
    assert shown in message


def test_models_and_data_are_the_same_by_their_contents(recipe: Recipe, tmp_path: Path) -> None:
    before = origin_of(recipe, process())
    (tmp_path / "model").rename(tmp_path / "moved")
    moved = _with(recipe, "model.path", str(tmp_path / "moved"))
    assert refusal("checkpoint-4", before, origin_of(moved, process())) is None
    (tmp_path / "moved" / "model.safetensors").write_bytes(b"others!")
    assert refusal("checkpoint-4", before, origin_of(moved, process())) == (
        "checkpoint-4 belongs to another recipe; a run resumes only from its own checkpoints. "
        "Differences: model.path has other contents now"
    )
    (tmp_path / "train.jsonl").write_text("{}\n{}\n")
    assert "data.train" in str(refusal("checkpoint-4", before, origin_of(moved, process())))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_the_same_size_are_not_the_same(recipe: Recipe, tmp_path: Path, name: str) -> None:
    file = tmp_path / "model" / name
    content = bytearray(2**20)
    file.write_bytes(content)
    before = origin_of(recipe, process())
    assert refusal("checkpoint-4", before, origin_of(recipe, process())) is None
    content[-1] = 1
    file.write_bytes(content)
    assert "model.path has other contents" in str(
        refusal("checkpoint-4", before, origin_of(recipe, process()))
    )


def test_micro_batches_are_part_of_a_method_that_sees_them(recipe: Recipe) -> None:
    sinkd = _with(recipe, "method", {"type": "sinkd", "teacher": {"path": recipe.model.path}})
    smaller = _with(sinkd, "training.micro_batch_size", 2)
    message = refusal("checkpoint-4", origin_of(sinkd, process()), origin_of(smaller, process()))
    assert "training.micro_batch_size was None, now 2" in str(message)


def _with(recipe: Recipe, key: str, value: Any) -> Recipe:
    values = recipe.model_dump(mode="json")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[last] = value
    return Recipe.parse(values)


def test_a_run_does_not_go_on_from_a_checkpoint_of_another(recipe: Recipe) -> None:
    folder = RunFolder(Path(recipe.output_dir))
    trainer = SimpleNamespace(origin=origin_of(recipe, process()))
    written = folder.checkpoints / ASIDE / "checkpoint-2"
    written.mkdir(parents=True)
    (written / "weights").write_text("w")
    seal(written, folder.checkpoints / "checkpoint-2", trainer.origin)
    assert train.checkpoint_to_resume(trainer, folder) == folder.checkpoints / "checkpoint-2"
    assert (
        json.loads((folder.checkpoints / "checkpoint-2" / "manifest.json").read_text())["sharding"] == "whole"
    )
    other = SimpleNamespace(origin=origin_of(_with(recipe, "seed", 7), process()))
    with pytest.raises(RecipeError, match=r"checkpoint-2 belongs to another recipe.*seed was 0, now 7"):
        train.checkpoint_to_resume(other, folder)
