"""SinKD's objective and trainer: against whole float64 logits, and on sets of tokens with a known answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from alignkit.kernels.model_head import HeadWeights
from alignkit.losses import sinkd_loss
from alignkit.losses.distillation import Rows, Tokens
from alignkit.methods import SinKD
from alignkit.methods.sinkd import SOLVERS
from alignkit.sections import TeacherSection
from alignkit.trainers import SinKDConfig, SinKDTrainer
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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return build_tiny_model(folder / "student"), build_tiny_model(folder / "teacher", seed=1)


def expected_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, sequence: Tensor, method: SinKD
) -> Tensor:
    """The mean over tokens of the method's three terms, from whole logits."""
    ours, theirs = ((x / method.kl_temperature).log_softmax(-1) for x in (student, teacher))
    kl = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    ce = torch.nn.functional.cross_entropy(student, labels)
    one_set = method.mode == "token_set"
    sets = (
        [torch.ones_like(sequence, dtype=torch.bool)]
        if one_set
        else [sequence == i for i in sequence.unique()]
    )
    transport = sum(
        (
            members.sum()
            * sinkd_loss(
                student[members],
                teacher[members],
                temperature=method.temperature,
                debiased=method.debiased,
                reduction=method.reduction,
                solver=SOLVERS[method.solver](method),
                pairing_weight=method.pairing_weight,
            ).loss
            for members in sets
        ),
        start=torch.zeros((), dtype=student.dtype),
    )
    weighted = method.ce_weight * ce + method.kl_weight * kl
    return weighted + method.sinkhorn_weight * transport / len(labels)


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"mode": "per_sequence", "reduction": "mean", "sinkhorn_weight": 0.5},
        {"debiased": True, "gradient": "envelope", "sinkhorn_weight": 0.1, "kl_temperature": 3.0},
        {"sinkhorn_weight": 0.0, "kl_weight": 0.0},
        {"solver": "newton_sparse", "epsilon": 0.05, "pairing_weight": 0.5, "sinkhorn_weight": 0.1},
        {"solver": "k_sparse", "mode": "per_sequence", "sinkhorn_weight": 0.1},
    ],
    ids=["paper", "per_sequence", "debiased", "cross_entropy", "newton_sparse", "k_sparse"],
)
def test_loss_and_gradients_are_those_of_whole_logits(
    tmp_path: Path, models: tuple[Path, Path], peft: LoraConfig | None, own: dict[str, Any]
) -> None:
    trainer = made(SinKDTrainer, SinKDConfig(**settings(tmp_path), **own), *models, peft_config=peft)
    batch = batch_of(trainer)
    trainer.model.train()
    exact, student, teacher, labels = whole_logits(trainer.model, batch)
    sequence = (batch["labels"][:, 1:] != -100).nonzero()[:, 0]
    expected = expected_loss(student, teacher.detach(), labels, sequence, trainer.method)
    expected.backward()
    assert_the_trainers(trainer, batch, expected)
    assert_gradients_agree(trainer.model.student, exact.student)
    assert not any(weight.requires_grad for weight in trainer.model.teacher.parameters())


def rows_of(logits: Tensor) -> Rows:
    """A head whose rows are these free logits: one-hot states over the transposed logits."""
    identity = torch.eye(len(logits), dtype=logits.dtype)
    return Rows(identity, HeadWeights(logits.T, None, 1.0, None))


def tokens_of(count: int, seed: int = 0, sequences: int = 1) -> Tokens:
    return Tokens(torch.zeros(count, dtype=torch.long), torch.arange(count) % sequences, sequences, seed)


def test_of_a_large_set_a_sample_is_matched_that_the_seed_repeats() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(40, 12), torch.randn(40, 12)
    method = SinKD(teacher=TEACHER, ce_weight=0, kl_weight=0, sinkhorn_weight=1, max_rows=10)

    def loss(seed: int, method: SinKD = method) -> float:
        return method.objective(rows_of(student), rows_of(teacher), tokens_of(40, seed)).loss.item()

    assert loss(7) == loss(7)
    assert loss(7) != loss(8)
    whole = loss(0, method.model_copy(update={"max_rows": 40}))
    per_token = {seed: loss(seed) / 40 for seed in range(3)}  # the sample's loss, once for each token
    for seed, sampled in per_token.items():
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(40, generator=generator)[:10]
        assert sampled == pytest.approx(float(sinkd_loss(student[chosen], teacher[chosen]).loss), rel=1e-5)
    assert whole / 40 == pytest.approx(float(sinkd_loss(student, teacher).loss), rel=1e-5)


def test_the_solver_logs_its_steps_its_entries_and_the_gap() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(12, 12), torch.randn(12, 12)
    method = SinKD(teacher=TEACHER, solver="k_sparse", k=3, pairing_weight=0.5)
    sums = method.objective(rows_of(student), rows_of(teacher), tokens_of(12)).sums
    assert {f"transport/{name}" for name in ("cost", "residual", "steps", "nonzeros", "gap")} <= sums.keys()
    assert 1 <= float(sums["transport/nonzeros"]) / 12 <= 3
    plain = SinKD(teacher=TEACHER).objective(rows_of(student), rows_of(teacher), tokens_of(12)).sums
    assert {name for name in plain if name.startswith("transport/")} == {
        "transport/cost",
        "transport/residual",
    }


def test_each_solver_has_its_own_gradients() -> None:
    defaults = {name: SinKD(teacher=TEACHER, solver=name).plan_gradient for name in SOLVERS}
    assert defaults == {"sinkhorn": "unrolled", "newton_sparse": "implicit", "k_sparse": "envelope"}
    for solver, gradient in (("newton_sparse", "unrolled"), ("k_sparse", "implicit")):
        with pytest.raises(ValueError, match=f"gradient: expected .* with solver {solver}, found {gradient}"):
            SinKD(teacher=TEACHER, solver=solver, gradient=gradient)


@pytest.mark.slow
def test_the_pairing_term_draws_each_row_to_its_own_teacher() -> None:
    """The transport alone leaves rows with another row's teacher; with the pairing term each ends at its own."""
    start, teacher = far_apart(6.0)

    def loss(weight: float) -> Callable[[Tensor], Tensor]:
        method = SinKD(
            teacher=TEACHER,
            solver="newton_sparse",
            pairing_weight=weight,
            sinkhorn_weight=1,
            ce_weight=0,
            kl_weight=0,
        )
        return lambda student: method.objective(rows_of(student), rows_of(teacher), tokens_of(6)).loss

    def own_is_nearest(student: Tensor) -> float:
        distances = torch.cdist(student.softmax(-1), teacher.softmax(-1), p=1)
        return float((distances.argmin(1) == torch.arange(6)).float().mean())

    assert own_is_nearest(descend(start, loss(1.0), steps=150)) == 1
    assert own_is_nearest(descend(start, loss(0.0), steps=150)) < 1


def by_divergence(name: str, teacher: Tensor) -> Callable[[Tensor], Tensor]:
    """A divergence of student logits from the teacher's, a sum over rows."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a.exp() * (a - b)).sum()

    def js(q: Tensor, p: Tensor) -> Tensor:
        middle = torch.logaddexp(q, p) - torch.log(torch.tensor(2.0))
        return (kl(q, middle) + kl(p, middle)) / 2

    divergence = {"forward": lambda q, p: kl(p, q), "reverse": kl, "js": js}[name]
    return lambda student: divergence(student.log_softmax(-1), teacher.log_softmax(-1))


def far_apart(gap: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher [6, 24], each sure of tokens that the other does not know."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(6, 24), torch.randn(6, 24)
    row = torch.arange(6)
    teacher[row, row] += gap
    student[row, 12 + row] += gap
    return student, teacher


def descend(student: Tensor, loss: Callable[[Tensor], Tensor], steps: int = 300) -> Tensor:
    """The student after gradient descent with rate 1."""
    student = student.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(student), student)
        student = (student.detach() - gradient).requires_grad_()
    return student.detach()


def by_sinkd(teacher: Tensor, *, kl_weight: float) -> Callable[[Tensor], Tensor]:
    """The transport, and beside it `kl_weight` times the KL of each row, sums over rows."""
    method = SinKD(teacher=TEACHER, sinkhorn_weight=1, reduction="mean", ce_weight=0, kl_weight=kl_weight)
    tokens = tokens_of(len(teacher))
    return lambda student: method.objective(rows_of(student), rows_of(teacher), tokens).loss


def apart(student: Tensor, teacher: Tensor) -> float:
    """Mean total variation of each row from its own teacher."""
    return float((student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1).mean() / 2)


def sets_apart(student: Tensor, teacher: Tensor) -> float:
    """Mean total variation of each teacher row from the nearest student row."""
    return float(torch.cdist(student.softmax(-1), teacher.softmax(-1), p=1).min(0).values.mean() / 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_training_moves_a_student_that_barely_overlaps_onto_its_teacher(seed: int) -> None:
    start, teacher = far_apart(8.0, seed)
    assert apart(start, teacher) > 0.99
    others = {
        name: apart(descend(start, by_divergence(name, teacher)), teacher)
        for name in ("forward", "reverse", "js")
    }
    # The transport alone brings the set of rows onto the teacher's, not each row onto its own.
    alone = descend(start, by_sinkd(teacher, kl_weight=0.0))
    assert sets_apart(alone, teacher) < 0.01
    assert apart(alone, teacher) > 0.4
    # A KL says which row is whose; together they end nearer than any divergence by itself.
    assert apart(descend(start, by_sinkd(teacher, kl_weight=0.3)), teacher) < min(others.values())
    assert others["js"] > 0.4  # it hardly moves from there


@pytest.mark.slow
def test_without_overlap_the_transport_has_almost_no_gradient() -> None:
    start, teacher = far_apart(14.0)
    others = {
        name: apart(descend(start, by_divergence(name, teacher)), teacher) for name in ("forward", "reverse")
    }
    assert sets_apart(descend(start, by_sinkd(teacher, kl_weight=0.0)), teacher) > 0.9
    assert others["reverse"] > 0.9
    assert apart(descend(start, by_sinkd(teacher, kl_weight=0.3)), teacher) < others["forward"]
