"""What the ops make a GPU wait for: nothing but the number of rows whose label is not ignored.

The tensors are a CPU's that say they are a GPU's, and no kernel is launched, so the values are noise.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignkit.kernels import Divergences, linear_divergence, linear_logprob, pairwise_l1, sinkhorn
from alignkit.kernels.backend import interpreted

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreted(), reason="no kernel runs here")

ROWS, WIDTH, WORDS = 9, 8, 40
WAITS = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
}


class Kernel:
    """A kernel that is never launched."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **options: None


class forbid_waits(TorchDispatchMode):  # noqa: N801 - used as a function: `with forbid_waits():`
    """Within it, an operation whose result the host would have to wait for is an AssertionError."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = "index" in func.name() and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2])
        )
        assert func.name().partition(".")[0] not in WAITS, f"{func} waits"
        assert not by_mask, f"{func} waits for the number of rows in a mask"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU without kernels."""
    from alignkit.kernels.linear_divergence import triton as divergence
    from alignkit.kernels.linear_logprob import triton as logprob
    from alignkit.kernels.pairwise_l1 import triton as distances
    from alignkit.kernels.sinkhorn import triton as plans

    for module in (divergence, logprob, distances, plans):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Kernel())
        for name, value in (("processors", 132), ("memory", 2**36)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda _, value=value: value)
    monkeypatch.setenv("ALIGNKIT_KERNELS", "triton")
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "is_cuda", property(lambda _: True), raising=False)
        yield


def random(*shape: int, trains: bool = True) -> Tensor:
    return torch.randn(shape, requires_grad=trains)


LABELS = torch.arange(ROWS)


@pytest.mark.parametrize(
    "step", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).any())]
)
def test_a_wait_is_seen(step: Any) -> None:
    with pytest.raises(AssertionError, match="waits"), forbid_waits():
        step(random(3, trains=False))


@pytest.mark.parametrize("head_trains", [False, True])
def test_log_probs_wait_for_nothing_without_ignored_labels(head_trains: bool) -> None:
    weight, bias = random(WORDS, WIDTH, trains=head_trains), random(WORDS, trains=head_trains)
    with forbid_waits():
        found = linear_logprob(
            random(ROWS, WIDTH), weight, LABELS, bias=bias, entropy=True, top1=True, ignore_index=None
        )
        found.logps.sum().backward()
    assert (weight.grad is not None) == head_trains


def test_log_probs_wait_for_the_number_of_rows() -> None:
    with pytest.raises(AssertionError, match=r"nonzero.* waits"), forbid_waits():
        linear_logprob(random(ROWS, WIDTH), random(WORDS, WIDTH), LABELS)


@pytest.mark.parametrize("head_trains", [False, True])
def test_divergences_with_an_objective_wait_for_nothing(head_trains: bool) -> None:
    def objective(found: Divergences) -> Tensor:
        assert found.student_ce is not None
        return found.student_ce + found.forward_kl

    weight, bias = random(WORDS, WIDTH, trains=head_trains), random(WORDS, trains=head_trains)
    teacher = random(ROWS, WIDTH, trains=False), random(WORDS, WIDTH, trains=False)
    with forbid_waits():
        found = linear_divergence(
            random(ROWS, WIDTH),
            weight,
            *teacher,
            LABELS,
            student_bias=bias,
            objective=objective,
            top1=True,
            ignore_index=None,
        )
        assert found.loss is not None
        found.loss.sum().backward()
    assert (weight.grad is not None) == head_trains


@pytest.mark.parametrize("head_trains", [False, True])
def test_distances_and_their_plan_wait_for_nothing(head_trains: bool) -> None:
    hidden, weight = random(ROWS, WIDTH), random(WORDS, WIDTH, trains=head_trains)
    teacher = random(ROWS, WIDTH, trains=False), random(WORDS, WIDTH, trains=False)
    with forbid_waits():
        sinkhorn(pairwise_l1(hidden, weight, *teacher), epsilon=0.1, iterations=2).cost.backward()
    assert hidden.grad is not None
