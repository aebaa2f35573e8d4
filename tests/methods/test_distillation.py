"""SinKD and BD-KD from recipes and jobs: sections, hyperparameters, the teacher, and a whole run."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignkit import train
from alignkit.errors import ModelError, RecipeError
from alignkit.jobspec import JobSpec
from alignkit.launch import launch_command
from alignkit.methods import METHODS, DistillMethod, ModelSource
from alignkit.models.importing import prune_model
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.sections import TeacherSection
from alignkit.trainers.building import load_teacher
from tests.completion import write_completions
from tests.jobs import job_of
from tests.tiny import build_tiny_model

RECIPES = Path(__file__).parents[2] / "recipes"
DISTILLATIONS = [name for name, method in METHODS.items() if issubclass(method, DistillMethod)]
MODELS = {"big": ModelSource("models/big"), "ft:big:p:s:1": ModelSource("models/big", "adapters/1")}


def resolve(name: str) -> ModelSource:
    if name not in MODELS:
        raise ModelError(f"The model {name!r} does not exist.")
    return MODELS[name]


def spec(method: str, **hyperparameters: Any) -> JobSpec:
    return job_of(method, resolve=resolve, **hyperparameters)


@pytest.mark.parametrize(
    "path", sorted(RECIPES.glob("*kd/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_the_recipes_that_come_with_it_are_valid(path: Path) -> None:
    assert Recipe.load(path).method.type == path.parent.name


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_a_jobs_teacher_is_a_model_of_the_service(method: str) -> None:
    by_base = spec(method, teacher="big")
    assert by_base.recipe.method.teacher == TeacherSection(path="models/big")
    assert by_base.hyperparameters["teacher"] == "big"
    assert json.dumps(by_base.hyperparameters)
    by_job = spec(method, teacher="ft:big:p:s:1")
    assert by_job.recipe.method.teacher == TeacherSection(path="models/big", adapter="adapters/1")


@pytest.mark.parametrize("method", DISTILLATIONS)
@pytest.mark.parametrize(
    ("given", "path", "words"),
    [
        ({}, "teacher", "is required"),
        ({"teacher": "small"}, "teacher", "'small' does not exist"),
        ({"teacher": ""}, "teacher", "at least 1 character"),
        ({"teacher": "big", "temperature": 0}, "temperature", "greater than 0"),
        ({"teacher": "big", "save_teacher": True}, "save_teacher", "unknown key"),
    ],
)
def test_refusals_of_a_job(method: str, given: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        spec(method, **given)
    assert [issue.path for issue in caught.value.issues] == [f"method.{method}.hyperparameters.{path}"]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("method", "field", "value", "words"),
    [
        ("sinkd", "epsilon", 0, "greater than 0"),
        ("sinkd", "iterations", 0, "greater than or equal to 1"),
        ("sinkd", "sinkhorn_weight", -1, "greater than or equal to 0"),
        ("sinkd", "mode", "batch", "'token_set' or 'per_sequence'"),
        ("sinkd", "max_rows", 0, "greater than or equal to 1"),
        ("bd_kd", "gate", "firm", "'hard' or 'soft'"),
        ("bd_kd", "nu", 0.9, "greater than or equal to 1"),
        ("bd_kd", "kappa", -1, "greater than or equal to 0"),
        ("bd_kd", "temperature", -1, "greater than 0"),
    ],
)
def test_recipe_and_job_refuse_the_same(method: str, field: str, value: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=field) as from_job:
        spec(method, teacher="big", **{field: value})
    assert words in str(from_job.value)
    values = {
        "model": {"path": "m"},
        "data": {"train": "t"},
        "method": {"type": method, "teacher": {"path": "t"}, field: value},
        "output_dir": "o",
    }
    with pytest.raises(RecipeError) as from_recipe:
        Recipe.parse(values)
    assert [issue.path for issue in from_recipe.value.issues] == [f"method.{field}"]
    assert words in str(from_recipe.value)


def test_a_trained_teacher_of_a_job_has_adapters_and_a_rate() -> None:
    plain = spec("bd_kd", teacher="big", lora_rank=8).recipe.method
    assert plain.teacher_trains
    assert (plain.teacher_lora.r, plain.teacher_lora.alpha) == (8, 16)
    assert plain.teacher_learning_rate is None
    own = spec(
        "bd_kd", teacher="big", teacher_lora_rank=4, teacher_learning_rate_multiplier=0.5
    ).recipe.method
    assert (own.teacher_lora.r, own.teacher_learning_rate) == (4, pytest.approx(5e-5))
    frozen = spec("bd_kd", teacher="big", teacher_trains=False).recipe.method
    assert frozen.teacher_lora is None
    with pytest.raises(RecipeError, match="teacher_lora_rank: only allowed with teacher_trains: true"):
        spec("bd_kd", teacher="big", teacher_trains=False, teacher_lora_rank=4)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    build_tiny_model(path / "teacher")
    prune_model(path / "teacher", path, "student", 2, report=lambda _: None)
    write_completions(path / "train.jsonl")
    write_completions(path / "validation.jsonl", count=5, start=100)
    return path


def recipe(workplace: Path, output: Path, method: dict[str, Any], **changes: Any) -> Path:
    values = {
        "model": {"path": str(workplace / "student")},
        "data": {
            "train": str(workplace / "train.jsonl"),
            "validation": str(workplace / "validation.jsonl"),
            "max_length": 256,
        },
        "method": {"teacher": {"path": str(workplace / "teacher")}, **method},
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "save_steps": 2},
        "output_dir": str(output),
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(Recipe.parse(values).to_yaml())
    return path


def test_a_run_of_sinkd_gives_an_adapter_and_a_canary(workplace: Path) -> None:
    output = workplace / "sinkd"
    assert train.main([str(recipe(workplace, output, {"type": "sinkd"}))]) == 0
    folder = RunFolder(output)
    result = folder.read_result()
    assert result is not None
    assert {"valid_loss", "valid_student_ece", "valid_forward_kl", "train_transport_residual"} <= set(
        result["metrics"]
    )
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    canary = json.loads(folder.canary.read_text())
    assert canary["adapter_logprobs"] != pytest.approx(canary["base_logprobs"], abs=1e-4)


def test_a_run_of_bd_kd_saves_both_where_that_is_asked_for(workplace: Path) -> None:
    output = workplace / "bd_kd"
    method = {"type": "bd_kd", "save_teacher": True, "teacher_lora": {"r": 4}}
    assert train.main([str(recipe(workplace, output, method, lora=None))]) == 0
    folder = RunFolder(output)
    assert (folder.model / "model.safetensors").is_file()
    assert (folder.teacher / "adapter_model.safetensors").is_file()
    assert not (folder.model / "teacher").exists()
    for path in output.rglob("training_args.bin"):
        assert "checkpoints" in path.parts


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [{"type": "sinkd", "mode": "per_sequence"}, {"type": "bd_kd"}], ids=["sinkd", "bd_kd"]
)
def test_two_processes_do_what_one_does(workplace: Path, method: dict[str, Any]) -> None:
    losses = []
    for processes in (1, 2):
        output = workplace / f"{method['type']}-{processes}"
        command = launch_command(recipe(workplace, output, method, lora=None), num_processes=processes)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
        data = [event["data"] for event in events if event["type"] == "metrics"]
        losses.append(
            [value for row in data for name, value in row.items() if name in {"train_loss", "valid_loss"}]
        )
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [{"type": "sinkd", "mode": "per_sequence"}, {"type": "bd_kd", "save_teacher": True}]
)
def test_zero_3_does_what_one_process_does(workplace: Path, method: dict[str, Any]) -> None:
    output = workplace / f"{method['type']}-zero3"
    path = recipe(workplace, output, method, lora=None)
    one = workplace / f"{method['type']}-whole"
    assert train.main([str(recipe(workplace, one, method, lora=None))]) == 0
    plain = launch_command(path, num_processes=2)
    options = ["--use_deepspeed", "--zero_stage=3", "--zero3_save_16bit_model=true"]
    at = plain.index("--multi_gpu")
    command = [*plain[:at], *options, *plain[at + 1 :]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    for part in ("model", "teacher") if "save_teacher" in method else ("model",):
        found, expected = (load_file(folder / part / "model.safetensors") for folder in (output, one))
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_cannot_be_loaded_says_which_field(workplace: Path) -> None:
    output = workplace / "no-teacher"
    method = {"type": "sinkd", "teacher": {"path": "no/such/model"}}
    assert train.main([str(recipe(workplace, output, method))]) == 1
    result = RunFolder(output).read_result()
    assert result is not None
    assert "method.teacher.path: cannot load no/such/model" in result["error"]["message"]


def test_a_teachers_adapter_is_merged_into_it(workplace: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(workplace / "teacher")
    ids = torch.arange(10)[None]
    plain = base(ids).logits
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted(ids).logits
    source = TeacherSection(path=str(workplace / "teacher"), adapter=str(tmp_path / "adapter"))
    values = {
        "model": {"path": "m"},
        "data": {"train": "t"},
        "method": {"type": "sinkd", "teacher": {"path": "t"}},
        "output_dir": "o",
    }
    teacher, _ = load_teacher(Recipe.parse(values), source)
    torch.testing.assert_close(teacher(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-2)
    missing = source.model_copy(update={"adapter": str(tmp_path / "none")})
    with pytest.raises(ModelError, match=r"method\.teacher\.adapter: cannot load"):
        load_teacher(Recipe.parse(values), missing)
