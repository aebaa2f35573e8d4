"""FDPOTrainer against TRL's DPOTrainer, and what it logs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from alignkit.data import parse_preference, tokenise
from alignkit.errors import DataError
from alignkit.kernels.linear_logprob import cost
from alignkit.trainers import FDPOConfig, FDPOTrainer
from alignkit.trainers.metrics import ItemMetrics, bradley_terry_ece
from tests.kernels.no_logits import forbid_logits
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def pairs(count: int = 10) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Question {index}?"}],
                "chosen": [{"role": "assistant", "content": "yes " * (index % 4 + 1)}],
                "rejected": [{"role": "assistant", "content": "no, never " * (index % 3 + 1)}],
            }
            for index in range(count)
        ]
    )


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "logging_steps": 1,
        **QUIET,
        "beta": 0.5,
        "max_length": 128,
        **options,
    }


def trained(
    kind: type[DPOTrainer], config: DPOConfig, model_dir: Path, peft: LoraConfig | None
) -> DPOTrainer:
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=config,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=pairs(),
        eval_dataset=pairs(5),
        peft_config=peft,
    )
    trainer.train()
    return trainer


def losses(trainer: DPOTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("divergence", "params", "coefficient"),
    [("reverse_kl", None, 0.5), ("js_divergence", None, 0.5), ("alpha_divergence", {"alpha": 0.3}, 0.7)],
)
def test_losses_equal_trls(
    tmp_path: Path, model_dir: Path, peft: LoraConfig | None, divergence: str, params: Any, coefficient: float
) -> None:
    # Plain descent: Adam's first steps make of a gradient's last bits as much as of all the others.
    descent = {"optim": "sgd", "learning_rate": 0.002}
    mine = trained(
        FDPOTrainer,
        FDPOConfig(**settings(tmp_path / "a", **descent), divergence=divergence, divergence_params=params),
        model_dir,
        peft,
    )
    theirs = trained(
        DPOTrainer,
        DPOConfig(
            **settings(tmp_path / "b", **descent),
            f_divergence_type=divergence,
            f_alpha_divergence_coef=coefficient,
        ),
        model_dir,
        peft,
    )
    assert losses(mine)[-1] < 0.99 * losses(mine)[0]
    assert losses(mine) == pytest.approx(losses(theirs), rel=1e-5)
    assert mine.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)


def test_training_learns_the_preference(tmp_path: Path, model_dir: Path) -> None:
    config = FDPOConfig(**settings(tmp_path, max_steps=12), divergence="forward_kl", sft_weight=0.5)
    trainer = trained(FDPOTrainer, config, model_dir, LORA)
    metrics = trainer.evaluate()
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert metrics["eval_rewards/accuracies"] == 1.0
    assert metrics["eval_rewards/margins"] > 0.1


def test_rewards_are_of_the_divergence_and_metrics_count_items(tmp_path: Path, model_dir: Path) -> None:
    config = FDPOConfig(**settings(tmp_path), divergence="js_divergence")
    trainer = trained(FDPOTrainer, config, model_dir, LORA)
    whole = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 5  # one batch instead of 4 + 1
    single = trainer.evaluate()
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "entropy", "mean_token_accuracy"):
        assert whole[f"eval_{name}"] == pytest.approx(single[f"eval_{name}"], rel=1e-4), name
    bound = 0.5 * torch.log(torch.tensor(2.0)).item() + 1e-3
    assert whole["eval_rewards/chosen"] < bound  # the score of JS is bounded by ln 2; beta z is not


def test_match_curvature_divides_beta(tmp_path: Path, model_dir: Path) -> None:
    config = FDPOConfig(**settings(tmp_path, max_steps=1), divergence="js_divergence", match_curvature=True)
    assert trained(FDPOTrainer, config, model_dir, LORA).method.effective_beta == pytest.approx(1.0)


@pytest.mark.parametrize(
    "option",
    [
        {"loss_type": ["ipo"]},
        {"f_divergence_type": "js_divergence"},
        {"ld_alpha": 0.5},
        {"use_weighting": True},
        {"label_smoothing": 0.5},
    ],
)
def test_options_without_meaning_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        FDPOConfig(**settings(tmp_path), **option)


def test_a_loss_that_is_not_finite_stops_with_the_rows(tmp_path: Path, model_dir: Path) -> None:
    trainer = trained(FDPOTrainer, FDPOConfig(**settings(tmp_path, max_steps=1)), model_dir, LORA)
    trainer._reference_logps = lambda inputs: (  # type: ignore[method-assign]
        torch.full((inputs["input_ids"].size(0) // 2,), torch.nan),
        torch.zeros(inputs["input_ids"].size(0) // 2),
    )
    with pytest.raises(FloatingPointError, match=r"not finite at step 1, rows \[0, 1, 2, 3\]"):
        trainer.evaluate()


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_no_logits_over_the_vocabulary_are_made(
    tmp_path: Path, model_dir: Path, peft: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training and an evaluation step, backward included; the batch has about 200 completion tokens.

    What the head may hold at a time is a constant, which this small batch would fit into: so it is made smaller.
    """
    monkeypatch.setattr(cost, "TILE_BYTES", 4 * 512 * 16)
    monkeypatch.setattr(cost, "KEPT_BYTES", 4 * 512 * 64)
    options = settings(tmp_path, per_device_train_batch_size=8, per_device_eval_batch_size=8, max_steps=1)
    trainer = trained(FDPOTrainer, FDPOConfig(**options), model_dir, peft)
    vocabulary = trainer.model.get_output_embeddings().weight.size(0)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    completion_tokens = int(batch["completion_mask"].sum())
    assert completion_tokens > 128  # wider than any weight, as the watch needs
    with forbid_logits(completion_tokens, vocabulary):
        trainer.training_step(trainer.model, batch)
        trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
    monkeypatch.setenv("ALIGNKIT_KERNELS", "reference")
    with (
        pytest.raises(AssertionError, match="made logits"),
        forbid_logits(completion_tokens, vocabulary),
    ):
        trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)


def test_calibration_error_of_known_margins() -> None:
    sure = torch.full((10,), 20.0)
    assert bradley_terry_ece(sure) == pytest.approx(0.0, abs=1e-6)
    assert bradley_terry_ece(-sure) == pytest.approx(1.0, abs=1e-6)
    assert bradley_terry_ece(torch.zeros(4)) == pytest.approx(0.5)


def test_item_metrics_weigh_items_and_tokens() -> None:
    store = ItemMetrics()
    store.add("a", torch.ones(8))
    store.add("a", torch.zeros(2))
    store.add_ratio("b", 3.0, 4.0)
    store.add_ratio("b", 0.0, 8.0)
    assert store.take() == {"a": pytest.approx(0.8), "b": pytest.approx(0.25)}
    assert store.take() == {}


def built(folder: Path, model_dir: Path, dataset: Dataset) -> FDPOTrainer:
    return FDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=FDPOConfig(**settings(folder)),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=dataset,
    )


def test_a_tokenised_dataset_is_used_unchanged_and_equals_a_conversational_one(
    tmp_path: Path, model_dir: Path
) -> None:
    conversations = pairs(4)
    rows = [parse_preference(dict(row)) for row in conversations]
    tokens = tokenise(rows, AutoTokenizer.from_pretrained(model_dir), "f_dpo", 128)
    ours = built(tmp_path, model_dir, tokens)
    assert ours.train_dataset is tokens
    theirs = built(tmp_path, model_dir, conversations).train_dataset
    for name in tokens.column_names:
        assert tokens[name][:] == theirs[name][:]


def test_a_dataset_without_the_columns_is_refused_in_one_sentence(tmp_path: Path, model_dir: Path) -> None:
    texts = Dataset.from_list([{"messages": [{"role": "user", "content": "Hi"}]}])
    expected = (
        "train dataset: expected the columns chosen and rejected, with or without prompt, or chosen_ids, "
        "prompt_ids, rejected_ids; found messages"
    )
    with pytest.raises(DataError, match=f"^{expected}$"):
        built(tmp_path, model_dir, texts)
