"""Tokens, statistics and preview: what they say is what TRL trains on."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from alignkit.data.dataset import load_rows, to_trl
from alignkit.data.formats import PreferenceRow
from alignkit.data.preview import preview_row
from alignkit.data.rendering import render_preview, render_statistics
from alignkit.data.statistics import describe_rows
from alignkit.data.tokens import load_tokenizer, render_pair
from alignkit.errors import ModelError
from alignkit.trainers import FDPOConfig, FDPOTrainer
from tests.preference import write_pairs
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return load_tokenizer(model_dir)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[PreferenceRow]:
    return load_rows(write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 6), "f_dpo")


def test_tokens_are_those_of_trls_trainer(
    tmp_path: Path, model_dir: Path, tokenizer: Any, rows: list[PreferenceRow]
) -> None:
    config = FDPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=512)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    trainer = FDPOTrainer(model=model, args=config, processing_class=tokenizer, train_dataset=to_trl(rows))
    for row, prepared in zip(rows, trainer.train_dataset, strict=True):
        pair = render_pair(row, tokenizer)
        assert (pair.prompt, pair.chosen, pair.rejected) == (
            prepared["prompt_ids"],
            prepared["chosen_ids"],
            prepared["rejected_ids"],
        )


def test_statistics_count_what_is_there(tokenizer: Any, rows: list[PreferenceRow]) -> None:
    equal = PreferenceRow(rows[0].prompt, rows[0].chosen, rows[0].chosen)
    data = [*rows, rows[1], equal]
    longest = max(render_pair(row, tokenizer).longest for row in data)
    found = describe_rows(data, tokenizer, max_length=longest - 1, held_out=[rows[2], equal])
    assert (found.rows, found.identical, found.duplicates, found.duplicate_prompts) == (8, 1, 1, 2)
    assert (found.overlap, found.prompt_overlap) == (2, 3)
    assert found.total.maximum == longest
    assert found.truncated == sum(render_pair(row, tokenizer).longest == longest for row in data)
    assert found.prompt.p50 <= found.prompt.p90 <= found.prompt.p99 <= found.prompt.maximum
    render_statistics(found)


def test_preview_shows_loss_and_cut(tokenizer: Any, rows: list[PreferenceRow]) -> None:
    pair = render_pair(rows[0], tokenizer)
    limit = len(pair.prompt) + 2
    preview = preview_row(rows[0], tokenizer, max_length=limit)
    assert [(segment.carries_loss, segment.cut) for segment in preview.chosen] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert sum(segment.tokens for segment in preview.rejected) == len(pair.prompt) + len(pair.rejected)
    assert rows[0].chosen[0]["content"] in "".join(segment.text for segment in preview.chosen)
    render_preview("row", preview)


def test_a_model_without_template_or_tokenizer(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    bare = load_tokenizer(model_dir)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(tmp_path)
