"""SupervisedTrainer against TRL's SFTTrainer and against plain logits, and what it logs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from alignkit import canary
from alignkit.data.dataset import tokenise
from alignkit.data.rows import parse_completion
from alignkit.data.tokens import IGNORED
from alignkit.trainers import SupervisedTrainer
from tests.completion import row
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def rows(indices: range, tokenizer: Any) -> Any:
    return tokenise([parse_completion(row(index)) for index in indices], tokenizer, "supervised", 128)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        **QUIET,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        **options,
    }


def made(
    kind: type[SFTTrainer], config: SFTConfig, model_dir: Path, peft: LoraConfig | None = LORA
) -> SFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=config,
        processing_class=tokenizer,
        train_dataset=rows(range(8), tokenizer),
        eval_dataset=rows(range(20, 25), tokenizer),
        peft_config=peft,
    )


def losses(trainer: SFTTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_losses_and_metrics_equal_trls(tmp_path: Path, model_dir: Path, peft: LoraConfig | None) -> None:
    mine = made(SupervisedTrainer, SFTConfig(**settings(tmp_path / "a")), model_dir, peft)
    theirs = made(SFTTrainer, SFTConfig(**settings(tmp_path / "b")), model_dir, peft)
    mine.train()
    theirs.train()
    assert losses(mine) == pytest.approx(losses(theirs), rel=1e-5)
    for name in ("entropy", "mean_token_accuracy", "num_tokens"):
        logged = [
            [entry[name] for entry in trainer.state.log_history if "loss" in entry]
            for trainer in (mine, theirs)
        ]
        assert logged[0] == pytest.approx(logged[1], rel=1e-5), name


def test_a_step_does_not_depend_on_how_it_is_split(tmp_path: Path, model_dir: Path) -> None:
    whole = made(SupervisedTrainer, SFTConfig(**settings(tmp_path / "a")), model_dir)
    split = made(
        SupervisedTrainer,
        SFTConfig(**settings(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4)),
        model_dir,
    )
    whole.train()
    split.train()
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)
    norms = [
        [entry["grad_norm"] for entry in t.state.log_history if "grad_norm" in entry] for t in (whole, split)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_evaluation_is_over_tokens_in_float64(tmp_path: Path, model_dir: Path) -> None:
    trainer = made(SupervisedTrainer, SFTConfig(**settings(tmp_path)), model_dir, None)
    metrics = trainer.evaluate()  # batches of 4 and 1 rows, of different lengths
    model = AutoModelForCausalLM.from_pretrained(model_dir).double()
    total, right, entropy, tokens = 0.0, 0, 0.0, 0
    for item in trainer.eval_dataset:
        with torch.no_grad():
            logps = model(torch.tensor([item["input_ids"]])).logits[0, :-1].log_softmax(-1)
        target = torch.tensor(item["labels"][1:])
        logps, target = logps[target != IGNORED], target[target != IGNORED]
        total -= float(logps.gather(1, target[:, None]).sum())
        right += int((logps.argmax(-1) == target).sum())
        entropy -= float((logps.exp() * logps).sum())
        tokens += len(target)
    assert metrics["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["eval_mean_token_accuracy"] == pytest.approx(right / tokens)
    assert metrics["eval_entropy"] == pytest.approx(entropy / tokens, rel=1e-5)


def test_no_logits_over_the_vocabulary_are_made(tmp_path: Path, model_dir: Path) -> None:
    trainer = made(SupervisedTrainer, SFTConfig(**settings(tmp_path, max_steps=1)), model_dir)
    vocabulary = trainer.model.config.vocab_size

    def refuse(_module: Any, _given: Any, out: Any) -> None:
        tensors = [out] if isinstance(out, torch.Tensor) else [x for x in out if x is not None]
        assert tensors
        assert all(tensor.shape[-1] != vocabulary for tensor in tensors)

    handle = trainer.model.get_output_embeddings().register_forward_hook(refuse)
    trainer.train()
    trainer.evaluate()
    handle.remove()


@pytest.mark.parametrize("option", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_options_without_meaning_are_refused(tmp_path: Path, model_dir: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"does not support {next(iter(option))}"):
        made(SupervisedTrainer, SFTConfig(**settings(tmp_path, **option)), model_dir)


def test_a_loss_that_is_not_finite_stops_with_the_rows(tmp_path: Path, model_dir: Path) -> None:
    trainer = made(SupervisedTrainer, SFTConfig(**settings(tmp_path)), model_dir, None)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"not finite at step 0, rows \[0, 1, 2, 3\]"):
        trainer.evaluate()


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_the_canary_is_the_first_answer(tmp_path: Path, model_dir: Path, peft: LoraConfig | None) -> None:
    trainer = made(SupervisedTrainer, SFTConfig(**settings(tmp_path)), model_dir, peft)
    trainer.train()
    measured = canary.measure(trainer)
    assert measured is not None
    answer = trainer.processing_class.decode(measured["completion_token_ids"])
    assert answer.startswith("It is 4")
    assert answer.endswith("<|im_end|>")
    ids = measured["prompt_token_ids"] + measured["completion_token_ids"]
    trainer.model.eval()
    with torch.no_grad():
        logps = trainer.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = logps.gather(1, torch.tensor(ids[1:])[:, None])[len(measured["prompt_token_ids"]) - 1 :, 0]
    assert measured["adapter_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert (measured["base_logprobs"] is None) == (peft is None)
