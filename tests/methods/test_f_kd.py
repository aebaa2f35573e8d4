"""f-KD: its fused head against whole logits, its objective, and its options in recipes and jobs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignkit import token_divergences
from alignkit.errors import RecipeError
from alignkit.jobspec import JobSpec
from alignkit.kernels.linear_divergence import cost, linear_divergence
from alignkit.kernels.model_head import HeadWeights
from alignkit.losses.distillation import PairOutput, Rows, Tokens
from alignkit.methods import FKD, ModelSource, hyperparameters_of
from alignkit.sections import TeacherSection
from tests.jobs import job_of, recipe_of

COUNT, VOCABULARY, STUDENT, TEACHER = 7, 19, 4, 6
OPERANDS = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three rows and blocks of two, so that a few tokens make several."""
    monkeypatch.setattr(cost, "CPU_CHUNK_BYTES", 4 * VOCABULARY * 3)
    monkeypatch.setattr(cost, "CPU_BLOCK_BYTES", 4 * VOCABULARY * 2)


def operands(*training: str) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(5)
    shapes = ((COUNT, STUDENT), (VOCABULARY, STUDENT), (COUNT, TEACHER), (VOCABULARY, TEACHER))
    return {
        name: torch.randn(*shape, generator=make, dtype=torch.float64).requires_grad_(name in training)
        for name, shape in zip(OPERANDS, shapes, strict=True)
    }


LABELS = torch.randint(VOCABULARY, (COUNT,), generator=torch.Generator().manual_seed(6))


def fkd(divergence: str = "js_divergence", **options: Any) -> FKD:
    return FKD(teacher=TeacherSection(path="teacher"), divergence=divergence, **options)


def objective(method: FKD, x: dict[str, Tensor]) -> PairOutput:
    heads = (HeadWeights(x[f"{side}_weight"], None, 1.0, None) for side in ("student", "teacher"))
    student, teacher = (
        Rows(x[f"{side}_hidden"], head) for side, head in zip(("student", "teacher"), heads, strict=True)
    )
    return method.objective(student, teacher, Tokens(LABELS, torch.tensor([0, 0, 0, 1, 1, 1, 1]), 2))


def whole(method: FKD, x: dict[str, Tensor]) -> Tensor:
    """The loss from whole float64 logits and autograd."""
    of_student = x["student_hidden"] @ x["student_weight"].T
    of_teacher = (x["teacher_hidden"] @ x["teacher_weight"].T).detach()
    log_q, log_p = ((logits / method.temperature).log_softmax(dim=1) for logits in (of_student, of_teacher))
    apart = method.family.value(log_p.exp(), log_q.exp(), log_p, log_q).sum()
    labelled = cross_entropy(of_student, LABELS, reduction="sum")
    return method.ce_weight * labelled + method.kd_weight * method.temperature**2 * apart


@pytest.mark.parametrize("training", [("student_hidden",), ("student_hidden", "student_weight")], ids=len)
@pytest.mark.parametrize("divergence", token_divergences.available())
def test_loss_and_gradients_are_those_of_whole_logits(divergence: str, training: tuple[str, ...]) -> None:
    method = fkd(divergence, temperature=1.7, ce_weight=0.6, kd_weight=1.3)
    mine, theirs = operands(*training), operands(*training)
    found, expected = objective(method, mine).loss, whole(method, theirs)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for name in training:
        torch.testing.assert_close(mine[name].grad, theirs[name].grad)


@pytest.mark.parametrize("implementation", ["torch", "reference"])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_the_kls_equal_the_heads_own(name: str, implementation: Any) -> None:
    x = operands("student_hidden")
    found = linear_divergence(
        *x.values(),
        temperature=0.8,
        divergence=token_divergences.get(name),
        implementation=implementation,
    )
    own = getattr(found, name)
    assert found.divergence is not None
    torch.testing.assert_close(found.divergence, own)
    mine, theirs = (
        torch.autograd.grad(values.square().sum(), x["student_hidden"], retain_graph=True)[0]
        for values in (found.divergence, own)
    )
    torch.testing.assert_close(mine, theirs)


def test_the_teacher_gets_no_gradient_from_a_divergence() -> None:
    x = operands("student_hidden", "teacher_hidden")
    found = linear_divergence(*x.values(), divergence=token_divergences.get("jeffreys"))
    assert found.divergence is not None
    found.divergence.sum().backward()
    assert x["student_hidden"].grad is not None
    assert x["teacher_hidden"].grad is None or not x["teacher_hidden"].grad.any()


def test_a_divergence_has_no_triton_kernel_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.kernels.backend.interpreted", lambda: True)
    with pytest.raises(ValueError, match="no Triton kernel for a `divergence`: expected torch or reference"):
        linear_divergence(
            *operands().values(), divergence=token_divergences.get("jeffreys"), implementation="triton"
        )


def test_the_divergence_is_logged_beside_what_every_distillation_logs() -> None:
    x = operands("student_hidden")
    sums = objective(fkd("cauchy_schwarz"), x).sums
    log_q, log_p = (
        (x[f"{side}_hidden"] @ x[f"{side}_weight"].T).log_softmax(dim=1) for side in ("student", "teacher")
    )
    apart = token_divergences.get("cauchy_schwarz").value(log_p.exp(), log_q.exp(), log_p, log_q)
    torch.testing.assert_close(sums["divergence"], torch.stack([apart[:3].sum(), apart[3:].sum()]).detach())
    assert {"forward_kl", "reverse_kl", "student/entropy", "loss"} <= set(sums)


def test_planted_wrong_rows_do_not_dominate_under_cauchy_schwarz() -> None:
    """5% of the teacher's rows have their largest and smallest logit swapped: the student is sure and wrong there."""
    teacher = (
        torch.randn(200, VOCABULARY, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 8
    )
    student = teacher.clone()
    for row in range(0, 200, 20):
        high, low = int(teacher[row].argmax()), int(teacher[row].argmin())
        teacher[row, [high, low]] = teacher[row, [low, high]]
    log_p, log_q = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
    arguments = (log_p.exp(), log_q.exp(), log_p, log_q)
    largest = {
        name: float(token_divergences.get(name).pull(*arguments).abs().max())
        for name in ("cauchy_schwarz", "reverse_kl", "jeffreys")
    }
    assert largest["cauchy_schwarz"] <= 2 < min(largest["reverse_kl"], largest["jeffreys"])


def job(**hyperparameters: Any) -> JobSpec:
    return job_of(
        "f_kd", resolve=lambda name: ModelSource(f"models/{name}"), teacher="big", **hyperparameters
    )


def test_a_job_becomes_a_recipe() -> None:
    method = job(divergence="alpha_divergence", alpha=0.3, temperature=2, kd_weight=4).recipe.method
    assert method.teacher == TeacherSection(path="models/big")
    assert method.family == token_divergences.AlphaDivergence(0.3)
    assert (method.temperature, method.kd_weight, method.ce_weight) == (2.0, 4.0, 1.0)
    assert job().recipe.method.family == token_divergences.JSDivergence()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"divergence": "cauchy_schwartz"}, "unknown divergence 'cauchy_schwartz'.*cauchy_schwarz"),
        ({"divergence": "os:getcwd"}, "expected one of reverse_kl"),
        ({"alpha": 0.3}, "js_divergence has no option alpha"),
        ({"divergence": "alpha_divergence", "alpha": 1}, "less than 1"),
        ({"kd_weight": -1}, "greater than or equal to 0"),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_refusals_of_a_job(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=rf"method\.f_kd\.hyperparameters\.\w+: .*{words}"):
        job(**given)


def test_a_jobs_schema_names_the_divergences() -> None:
    described = hyperparameters_of(FKD).model_json_schema()["properties"]["divergence"]
    assert described["enum"] == list(token_divergences.available())


def test_a_recipe_takes_an_f_divergence_by_its_path() -> None:
    own = "alignkit.divergences:SquaredHellinger"
    family = recipe_of("f_kd", teacher={"path": "t"}, divergence=own).method.family
    assert isinstance(family, token_divergences.OfFDivergence)
