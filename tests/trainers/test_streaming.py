"""Streaming datasets, which TRL's trainers take, are trained or refused in one sentence before the first step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig

from alignkit import methods, trainers
from alignkit.errors import DataError
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

PAIRS = [{"prompt": f"What is {n}?", "chosen": f" {n}", "rejected": " unknown"} for n in range(6)]
COMPLETIONS = [{"prompt": f"What is {n}?", "completion": f" {n}"} for n in range(6)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def streamed(rows: list[dict[str, Any]]) -> IterableDataset:
    def generate() -> Iterator[dict[str, Any]]:
        yield from rows

    return IterableDataset.from_generator(generate)


def losses(trainer: Any, config: Any, folder: Path, model_dir: Path, data: Any) -> list[float]:
    """The loss of each step on a dataset, in its own order."""
    options = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 3, "learning_rate": 1e-3}
    run = trainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=config(output_dir=str(folder), **options, train_sampling_strategy="sequential", **QUIET),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=data,
        **(
            {"teacher_model": AutoModelForCausalLM.from_pretrained(model_dir)}
            if "KD" in trainer.__name__
            else {}
        ),
    )
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("trainer", "config", "rows"),
    [
        (trainers.FDPOTrainer, trainers.FDPOConfig, PAIRS),
        (trainers.SinKDTrainer, trainers.SinKDConfig, COMPLETIONS),
    ],
    ids=["f_dpo", "sinkd"],
)
def test_a_stream_trains_as_the_same_rows_do(
    tmp_path: Path, model_dir: Path, trainer: Any, config: Any, rows: list[dict[str, Any]]
) -> None:
    given = losses(trainer, config, tmp_path, model_dir, Dataset.from_list(rows))
    assert len(given) == 2
    assert losses(trainer, config, tmp_path, model_dir, streamed(rows)) == pytest.approx(given)


KTO = {"method": methods.KTO(), "args": KTOConfig}
D2O = {"args": trainers.D2OConfig}


@pytest.mark.parametrize(
    ("trainer", "options", "why"),
    [
        (trainers.LabelledTrainer, KTO, "mismatched answers need all rows"),
        (trainers.D2OTrainer, D2O, "samples are drawn and scored for all rows before the first step"),
    ],
    ids=["kto", "d2o"],
)
def test_a_stream_is_refused_before_the_model_is_loaded_where_all_rows_are_needed(
    tmp_path: Path, trainer: Any, options: dict[str, Any], why: str
) -> None:
    options = options | {"args": options["args"](str(tmp_path), **QUIET)}
    for name in ("train_dataset", "eval_dataset"):
        with pytest.raises(DataError, match=f"^{name}: expected a Dataset, found a stream; {why}$"):
            trainer("no/such/model", **options, **{name: streamed(PAIRS)})
