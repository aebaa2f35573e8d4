"""Terms in D2O's two passes: weights multiply the coefficients, a penalty is added to the last part."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.terms import Term
from alignkit.terms.anchor import Anchor
from alignkit.terms.robust import Robust
from alignkit.terms.thresholds import Thresholds
from alignkit.trainers import D2OConfig, D2OTrainer
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def built(folder: Path, model_dir: Path, use: list[Term], **options: Any) -> D2OTrainer:
    rows = Dataset.from_list(
        [
            {
                "prompt": f"Question {at}?",
                "rejected": "no " * (at + 1),
                "samples": ["yes", "well " * (at + 1)],
            }
            for at in range(4)
        ]
    )
    config = D2OConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **options,
    )
    return D2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=config,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=rows,
        terms=use,
    )


def weights(trainer: D2OTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_weights_multiply_the_coefficients(tmp_path: Path, model_dir: Path) -> None:
    plain = built(tmp_path / "plain", model_dir, [])
    plain.train()
    neutral = built(tmp_path / "neutral", model_dir, [Robust(strength=math.inf)])
    neutral.train()
    assert torch.equal(weights(neutral), weights(plain))
    strong = built(tmp_path / "strong", model_dir, [Robust(strength=0.01)])
    strong.train()
    assert not torch.equal(weights(strong), weights(plain))
    # the gradient in parts is that of the weighted losses in one graph
    batch = strong._prepare_inputs(next(iter(strong.get_train_dataloader())))
    strong.model.zero_grad()
    strong.training_step(strong.model, dict(batch))
    parts = torch.cat([p.grad.flatten() for p in strong.model.parameters() if p.grad is not None])
    strong.model.zero_grad()
    strong.compute_loss(strong.model, dict(batch)).backward()
    whole = torch.cat([p.grad.flatten() for p in strong.model.parameters() if p.grad is not None])
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


def test_extra_losses_are_refused(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(ValueError, match="terms: thresholds adds an extra loss of the rows, but d2o takes"):
        built(tmp_path, model_dir, [Thresholds()])


def test_a_penalty_of_the_weights_joins_the_last_part(tmp_path: Path, model_dir: Path) -> None:
    plain = built(tmp_path / "plain", model_dir, [])
    plain.train()
    neutral = built(tmp_path / "neutral", model_dir, [Anchor(weight=0.0, diagonal="one")])
    neutral.train()
    assert torch.equal(weights(neutral), weights(plain))
    start = torch.cat([v.flatten() for v in AutoModelForCausalLM.from_pretrained(model_dir).parameters()])
    held = built(tmp_path / "held", model_dir, [Anchor(weight=5.0, diagonal="one")])
    held.train()
    assert (weights(held) - start).norm() < (weights(plain) - start).norm()
