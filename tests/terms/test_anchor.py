"""The anchor against the true Fisher information, and as it acts in a run."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.terms.anchor import FISHER, START, Anchor
from alignkit.terms.base import Scored


class Regression:
    """Logistic regression with one weight a feature: two "tokens", one label to predict in each sequence."""

    rank, processes = 0, 1

    def __init__(self, inputs: Tensor, weights: Tensor, shares: int = 1) -> None:
        self.inputs, self.theta, self.processes = inputs, weights.clone().requires_grad_(), shares

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return {"theta": self.theta}

    @property
    def scalings(self) -> Mapping[str, float]:
        return {}

    def sequences(self, file: str | None, count: int) -> list[Scored]:
        return [Scored([at, 0], [-100, at % 2]) for at in range(min(count, len(self.inputs)))]

    def _logits(self, one: Scored) -> Tensor:
        logit = self.inputs[one.ids[0]] @ self.theta
        return torch.stack([torch.zeros_like(logit), logit])[None]

    def logits(self, one: Scored) -> Tensor:
        return self._logits(one).detach()

    def log_prob(self, one: Scored) -> Tensor:
        label = next(label for label in one.labels if label != -100)
        return self._logits(one).log_softmax(1)[0, label]

    def summed(self, values: Tensor) -> Tensor:
        return values


INPUTS = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))


def fisher(**options: Any) -> Tensor:
    count = options.pop("count", 4000)
    term = Anchor(sequences=count, normalise=options.pop("normalise", False), **options)
    return term.prepare(Regression(INPUTS, torch.tensor([0.7, -0.2])))[FISHER + "theta"]


def test_sampled_labels_give_the_true_fisher_information() -> None:
    q = torch.sigmoid(INPUTS @ torch.tensor([0.7, -0.2]))
    expected = (INPUTS.square() * (q * (1 - q))[:, None]).mean(0)  # E [x^2 q (1 - q)]
    torch.testing.assert_close(fisher(labels="sampled"), expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("labels", ["pseudo", "data"])
def test_fixed_labels_give_the_mean_square_of_each_rows_gradient(labels: str) -> None:
    q = torch.sigmoid(INPUTS[:50] @ torch.tensor([0.7, -0.2]))
    label = (q > 0.5).float() if labels == "pseudo" else torch.arange(50) % 2
    expected = (INPUTS[:50] * (label - q)[:, None]).square().mean(0)
    torch.testing.assert_close(fisher(labels=labels, count=50), expected)


def test_labels_agree_where_the_model_is_certain() -> None:
    sure = Regression(INPUTS.sign() * 50, torch.tensor([1.0, 1e-3]))
    found = [
        Anchor(sequences=50, labels=labels, normalise=False).prepare(sure) for labels in ("pseudo", "sampled")
    ]
    certain = [one[FISHER + "theta"] for one in found]
    torch.testing.assert_close(certain[0], certain[1], rtol=1e-3, atol=1e-6)


def test_processes_measure_parts_that_sum_to_the_whole() -> None:
    whole = fisher(count=50)
    parts = []
    for rank in range(3):
        model = Regression(INPUTS, torch.tensor([0.7, -0.2]), shares=3)
        model.rank = rank
        parts.append(Anchor(sequences=50, normalise=False).prepare(model)[FISHER + "theta"])
    torch.testing.assert_close(sum(parts), whole)


def test_normalised_information_has_mean_one() -> None:
    torch.testing.assert_close(fisher(normalise=True, count=50).mean(), torch.tensor(1.0))


def test_the_penalty_is_the_weighted_square_of_the_change() -> None:
    state = {START + "w": torch.tensor([1.0, 2.0]), FISHER + "w": torch.tensor([3.0, 0.5])}
    weights = torch.tensor([1.5, 0.0], requires_grad=True)
    penalty = Anchor(weight=2.0).penalty({"w": weights}, {}, state)
    assert float(penalty) == pytest.approx(2 * (3 * 0.25 + 0.5 * 4))
    (slope,) = torch.autograd.grad(penalty, weights)
    torch.testing.assert_close(slope, torch.tensor([2 * 2 * 3 * 0.5, -2 * 2 * 0.5 * 2]))


def test_descent_ends_at_the_closed_form_of_a_quadratic_task() -> None:
    curvature, target = torch.tensor([2.0, 0.5]), torch.tensor([1.0, -1.0])
    fisher_, weight = torch.tensor([0.2, 3.0]), 0.7
    state = {START + "w": torch.tensor([0.5, 0.5]), FISHER + "w": fisher_}
    weights = torch.zeros(2, requires_grad=True)
    term = Anchor(weight=weight)
    for _ in range(2000):
        loss = (curvature * (weights - target).square()).sum() / 2 + term.penalty({"w": weights}, {}, state)
        (slope,) = torch.autograd.grad(loss, weights)
        weights = (weights - 0.05 * slope).detach().requires_grad_()
    expected = (curvature * target + 2 * weight * fisher_ * 0.5) / (curvature + 2 * weight * fisher_)
    torch.testing.assert_close(weights.detach(), expected, rtol=1e-4, atol=1e-5)
