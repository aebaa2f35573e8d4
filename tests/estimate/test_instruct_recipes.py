"""The recipes for instruct models, estimated from tables and trained at tiny widths."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignkit import train
from alignkit.estimate import fit
from alignkit.estimate.lengths import assumed
from alignkit.estimate.shapes import configuration
from alignkit.methods.work import ModelUse
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.completion import write_completions
from tests.preference import write_pairs
from tests.tiny import build_tiny_tokenizer

FILES = sorted(Path("recipes/instruct").glob("*.yaml"))
SLOW = [pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in FILES]
ONE = Path("recipes/instruct/mistral-7b-f_dpo.yaml")
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("path", SLOW)
def test_it_fits_on_a_24_gb_gpu_an_80_gb_one_and_eight(path: Path) -> None:
    recipe, lengths = Recipe.load(path), assumed(1024, 10_000, 2)
    for device, count in (("rtx4090", 1), ("a100-80gb", 1), ("a100-80gb", 8)):
        found = fit(recipe, lengths, device=device, count=count)
        assert found.estimate is None or found.estimate.fits


def write_dispreferred(path: Path) -> None:
    rows = [
        {"prompt": f"What is {at}?", "rejected": f"Not {at}.", "samples": [f"It is {at}.", f"{at}."]}
        for at in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS: dict[str, Any] = {
    "f_dpo": write_pairs,
    "supervised": write_completions,
    "d2o": write_dispreferred,
    "sinkd": write_completions,
    "bd_kd": write_completions,
}


def build_tiny(path: str, folder: Path) -> Path:
    """A tiny model with the configuration class of the known model named by `path`."""
    config, _ = configuration(ModelUse(path, "float32", "model.path"))
    tokenizer = build_tiny_tokenizer(folder)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    small = AutoConfig.for_model(config.model_type, **TINY, **ends, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(small, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", [ONE, *SLOW])
def test_it_trains_two_steps_of_the_same_kind_of_model(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path)
    model = build_tiny(recipe.model.path, tmp_path / "model")
    ROWS[recipe.method.type](tmp_path / "rows.jsonl")
    arguments = [
        f"model.path={model}",
        f"data.train={tmp_path / 'rows.jsonl'}",
        "data.validation=0.2",
        "data.max_length=256",
        f"output_dir={tmp_path / 'run'}",
        "training.max_steps=2",
        "training.eval_steps=1",
        "training.batch_size=4",
        "collapse_guard=null",
    ]
    if (teacher := getattr(recipe.method, "teacher", None)) is not None:
        arguments.append(f"method.teacher.path={build_tiny(teacher.path, tmp_path / 'teacher')}")
    assert train.main([str(path), *arguments]) == 0
    result = RunFolder(tmp_path / "run").read_result()
    assert result is not None
    assert result["steps"] == 2
