"""Runs of preference methods on packed rows, against the same runs on padded ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from alignkit.errors import ModelError, RecipeError
from alignkit.methods import METHODS
from alignkit.recipe import Recipe
from alignkit.run.reference_store import ReferenceStore
from alignkit.train import main
from alignkit.trainers.preference import PreferenceTrainer
from tests.preference import write_pairs
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
METRICS = ("loss", "rewards/chosen", "rewards/margins", "logps/rejected", "entropy", "num_tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def pairs(count: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": f"What is the answer to question {index}, then?" * (index % 3 + 1),
                "chosen": " yes" * (index % 5 + 1),
                "rejected": " no, never" * (index % 4 + 1),
            }
            for index in range(count)
        ]
    )


def run(folder: Path, output: Path, name: str, *, packing: bool, peft: Any = LORA, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.02,
        "optim": "sgd",
        "max_steps": 3,
        "logging_steps": 1,
        **QUIET,
    }
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = PreferenceTrainer(
        model=model,
        args=DPOConfig(**settings | options),
        method=METHODS[name](type=name),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=pairs(20),
        eval_dataset=pairs(5),
        peft_config=peft,
    )
    reason = trainer.use_packing(wanted=packing)
    assert (reason is None) == packing
    computed: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: computed.append(args[0].numel()))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    held_out = trainer.evaluate()
    return logs, held_out, sum(computed)


@pytest.mark.parametrize(
    ("name", "peft"),
    [
        ("f_dpo", LORA),
        ("f_dpo", None),
        ("dpo", LORA),
        ("simpo", LORA),
        ("orpo", LORA),
        ("ipo", LORA),
        ("mapo", LORA),
    ],
)
def test_a_packed_run_logs_what_the_padded_run_logs(
    folder: Path, tmp_path: Path, name: str, peft: Any
) -> None:
    logs, held_out, tokens = run(folder, tmp_path / "packed", name, packing=True, peft=peft)
    expected, theirs, padded = run(folder, tmp_path / "padded", name, packing=False, peft=peft)
    assert tokens < 0.75 * padded
    for found, other in zip(logs, expected, strict=True):
        for metric in METRICS:
            assert found[metric] == pytest.approx(other[metric], rel=1e-5, abs=1e-5), metric
    assert held_out["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)


def test_a_stored_reference_is_scored_on_packed_rows_too(folder: Path, tmp_path: Path) -> None:
    columns = ["ref_chosen_logps", "ref_rejected_logps"]

    def scored(*, packing: bool) -> tuple[list[list[float]], int]:
        model = AutoModelForCausalLM.from_pretrained(folder)
        computed: list[int] = []
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args: computed.append(args[0].numel())
        )
        trainer = PreferenceTrainer(
            model=model,
            args=DPOConfig(str(tmp_path / "run"), report_to="none", use_cpu=True, bf16=False),
            method=METHODS["f_dpo"](type="f_dpo"),
            processing_class=AutoTokenizer.from_pretrained(folder),
            train_dataset=pairs(20),
            peft_config=LORA,
            references=ReferenceStore(tmp_path / str(packing)),
            packing=packing,
        )
        return [list(trainer.train_dataset[name]) for name in columns], sum(computed)

    (packed, tokens), (padded, theirs) = scored(packing=True), scored(packing=False)
    assert tokens < 0.75 * theirs
    for found, expected in zip(packed, padded, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_model_that_cannot_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"),
        args=DPOConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False),
        method=METHODS["f_dpo"](type="f_dpo"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=pairs(4),
    )
    assert trainer.use_packing() == "its attention is eager, expected sdpa or flex_attention"
    with pytest.raises(
        ModelError, match="LlamaForCausalLM cannot train on packed rows: its attention is eager"
    ):
        trainer.use_packing(wanted=True)


def recipe(folder: Path, output: Path, method: str = "f_dpo", **training: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(folder)},
        "data": {"train": str(write_pairs(output.parent / "pairs.jsonl", 8))},
        "method": {"type": method},
        "training": {"max_steps": 1, "batch_size": 4, **training},
        "output_dir": str(output),
    }


def test_a_recipe_that_asks_for_packing_is_refused_before_it_trains(folder: Path, tmp_path: Path) -> None:
    values = recipe(folder, tmp_path / "run", packing=True)
    values["model"]["attn_implementation"] = "eager"
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe.parse(values).to_yaml())
    assert main([str(file)]) == 1
    error = json.loads((tmp_path / "run" / "result.json").read_text())["error"]
    assert error["message"].startswith("training.packing: LlamaForCausalLM cannot train on packed rows")


def test_only_methods_of_pairs_are_packed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.packing: expected false with kto, found true"):
        Recipe.parse(recipe(folder, tmp_path / "run", "kto", packing=True))
    assert Recipe.parse(recipe(folder, tmp_path / "run", "kto")).training.packing is None
