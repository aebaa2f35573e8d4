"""The heads' costs: the operations of docs/kernels.md."""

import pytest

from alignkit.kernels import costs
from alignkit.kernels.costs import HeadSize
from alignkit.kernels.linear_logprob import cost as logprob_cost

N, H, V = 4096, 512, 32_000
UNIT = float(N * H * V)


def size(*, gradient: bool = True, trains: bool = False, itemsize: int = 4) -> HeadSize:
    return HeadSize(H, V, itemsize, gradient, trains)


@pytest.mark.parametrize("gpu", [False, True])
def test_log_probs_take_the_documented_operations(gpu: bool) -> None:
    assert costs.log_probs(N, size(gradient=False), gpu=gpu).flops == 2 * UNIT
    assert costs.log_probs(N, size(), gpu=gpu).flops == 4 * UNIT
    trained = costs.log_probs(N, size(trains=True), gpu=gpu).flops
    assert trained == 6 * UNIT if gpu else 6 * UNIT < trained < 8 * UNIT


@pytest.mark.parametrize(("gpu", "budget"), [(False, "KEPT_BYTES"), (True, "GPU_KEPT_BYTES")])
def test_a_trained_head_that_keeps_nothing_takes_its_logits_again(
    gpu: bool, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob_cost, budget, 0)
    assert costs.log_probs(N, size(trains=True), gpu=gpu).flops == 8 * UNIT


def test_divergences_take_the_documented_operations() -> None:
    frozen = size(gradient=False)
    found = [
        costs.divergence(N, student, teacher, gpu=True).flops / UNIT
        for student, teacher in (
            (frozen, frozen),
            (size(), frozen),
            (size(), size()),
            (size(trains=True), frozen),
            (size(trains=True), size(trains=True)),
        )
    ]
    assert found == [4, 6, 8, 8, 12]


def test_no_head_makes_all_logits() -> None:
    whole = N * V * 4
    for cost in (
        costs.log_probs(N, size(), gpu=False),
        costs.divergence(N, size(), size(gradient=False), gpu=False),
        costs.transport(256, 1, size(), size(gradient=False), vectors=40),
    ):
        assert cost.kept + cost.forward + cost.backward < whole / 4


def test_a_head_that_trains_has_its_gradient() -> None:
    extra = (
        costs.log_probs(N, size(trains=True), gpu=True).backward
        - costs.log_probs(N, size(), gpu=True).backward
    )
    assert extra >= H * V * 4
