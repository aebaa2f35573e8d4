"""BD-KD's objective and trainer: against whole float64 logits, and calibration where the truth is known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignkit.kernels.model_head import HeadWeights
from alignkit.losses import bd_kd_loss
from alignkit.losses.distillation import Rows, Tokens
from alignkit.methods import BDKD, DistillMethod, SinKD
from alignkit.sections import TeacherSection
from alignkit.trainers import BDKDConfig, BDKDTrainer
from alignkit.trainers.metrics import calibration_bins, calibration_error
from tests.distillation import (
    assert_gradients_agree,
    assert_the_trainers,
    batch_of,
    made,
    settings,
    whole_logits,
)
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
TEACHER = TeacherSection(path="given as a model")
TEACHER_LORA = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return build_tiny_model(folder / "student"), build_tiny_model(folder / "teacher", seed=1)


@pytest.mark.parametrize("peft", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"gate": "soft", "kappa": 3.0, "temperature": 2.0, "ce_weight": 0.5, "kd_weight": 2.0},
        {"temperature": 4.0, "tempered_entropy": False, "nu": 5.0},
        {"teacher_trains": False},
    ],
    ids=["default", "soft", "entropy_at_one", "frozen"],
)
def test_loss_and_gradients_are_those_of_whole_logits(
    tmp_path: Path, models: tuple[Path, Path], peft: bool, own: dict[str, Any]
) -> None:
    config = BDKDConfig(**settings(tmp_path), **own)
    adapters = {"peft_config": LORA} if peft else {}
    if peft and config.teacher_trains:
        adapters["teacher_peft_config"] = TEACHER_LORA
    trainer = made(BDKDTrainer, config, *models, **adapters)
    batch = batch_of(trainer)
    trainer.model.train()
    exact, student, teacher, labels = whole_logits(trainer.model, batch)
    balanced = bd_kd_loss(
        student,
        teacher,
        temperature=config.temperature,
        gate=config.gate,  # type: ignore[arg-type]
        nu=config.nu,
        kappa=config.kappa,
        tempered_entropy=config.tempered_entropy,
    )
    expected = config.ce_weight * cross_entropy(student, labels) + config.kd_weight * balanced.student.mean()
    if config.teacher_trains:
        expected = expected + config.ce_weight * cross_entropy(teacher, labels)
        expected = expected + config.kd_weight * balanced.teacher.mean()
    expected.backward()
    assert_the_trainers(trainer, batch, expected)
    assert_gradients_agree(trainer.model.student, exact.student)
    if config.teacher_trains:
        assert_gradients_agree(trainer.model.teacher, exact.teacher)
    metrics = trainer._items["train"].take()  # of both passes, which are of the same tokens
    gap = balanced.teacher_entropy > balanced.student_entropy
    assert metrics["gate/share"] == pytest.approx(gap.double().mean().item(), abs=1e-6)
    assert metrics["forward_kl"] == pytest.approx(balanced.forward_kl.mean().item(), rel=1e-5)


class World:
    """Contexts with known next-token probabilities, samples of them, and a teacher that is too sure."""

    contexts, classes = 40, 8

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.truth = 1.5 * torch.randn(self.contexts, self.classes)
        self.train, self.held_out = self.sample(4000), self.sample(8000)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        context = torch.randint(self.contexts, (count,))
        return context, torch.multinomial(self.truth.softmax(-1)[context], 1).squeeze(1)

    def distilled(self, method: DistillMethod) -> tuple[float, float]:
        """Calibration error and accuracy of a free student on held-out samples, after training by `method`."""
        teacher_trains = method.teacher_training is not None
        context, label = self.train
        student = torch.zeros_like(self.truth).requires_grad_()
        teacher = (3 * self.truth).requires_grad_(teacher_trains)
        tokens = Tokens(label, torch.zeros_like(label), 1)
        states = torch.eye(self.contexts)[context]
        optimizer = torch.optim.Adam([student, teacher] if teacher_trains else [student], lr=0.1)
        for _ in range(120):
            ours, theirs = (Rows(states, HeadWeights(x.T, None, 1.0, None)) for x in (student, teacher))
            optimizer.zero_grad()
            (method.objective(ours, theirs, tokens).loss / len(label)).backward()
            optimizer.step()
        return self.judged(student.detach())

    def judged(self, logits: Tensor) -> tuple[float, float]:
        context, label = self.held_out
        confidence, choice = logits.softmax(-1)[context].max(-1)
        right = choice == label
        bins = calibration_bins(confidence, right, torch.zeros_like(label), groups=1)[0]
        return calibration_error(bins), float(right.float().mean())


PLAIN_KD = SinKD(teacher=TEACHER, ce_weight=1, kl_weight=1, sinkhorn_weight=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_beside_a_teacher_that_trains_the_student_is_better_calibrated_than_by_plain_distillation(
    seed: int,
) -> None:
    world = World(seed)
    plain_error, plain_accuracy = world.distilled(PLAIN_KD)
    error, accuracy = world.distilled(BDKD(teacher=TEACHER))
    assert world.judged(3 * world.truth)[0] > 0.25  # the teacher was too sure indeed
    assert plain_error > 0.1
    assert error < plain_error / 2
    assert accuracy == pytest.approx(plain_accuracy, abs=0.02)


def test_a_frozen_teacher_that_is_too_sure_makes_the_student_so() -> None:
    """The limit that docs/bd_kd.md states: the gate then favours the reverse KL, which gathers the student."""
    world = World(0)
    plain_error, _ = world.distilled(PLAIN_KD)
    error, _ = world.distilled(BDKD(teacher=TEACHER, teacher_trains=False))
    assert error > plain_error
