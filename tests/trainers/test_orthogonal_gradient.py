"""Gradients orthogonal to their weights: the identities of perpGrad, and where it leaves a gradient alone."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.trainers.metrics import ItemMetrics
from alignkit.trainers.orthogonal_gradient import OrthogonalGradient, orthogonal


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(-8, 8), st.floats(-8, 8))
def test_the_gradient_is_orthogonal_and_keeps_its_norm(seed: int, wide: float, steep: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    w, g = (
        torch.randn(4, 5, generator=generator, dtype=torch.float64) * 10**exponent
        for exponent in (wide, steep)
    )
    found = orthogonal(w, g)
    assert abs(float((w * found).sum())) <= 1e-9 * float(w.norm() * g.norm())
    assert float(found.norm()) == pytest.approx(float(g.norm()))


def test_it_is_the_released_codes_formula() -> None:
    torch.manual_seed(0)
    w, g = torch.randn(3, 4), torch.randn(3, 4)
    flat, gradient = w.view(-1), g.view(-1)
    left = gradient - torch.dot(flat, gradient) / (torch.dot(flat, flat) + 1e-30) * flat
    torch.testing.assert_close(orthogonal(w, g), (left * gradient.norm() / (left.norm() + 1e-30)).view(3, 4))


def test_a_gradient_that_is_orthogonal_stays() -> None:
    w, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert torch.equal(orthogonal(w, g), g)


def test_a_gradient_along_the_weight_becomes_zero() -> None:
    w = torch.randn(3, 3)
    assert torch.equal(orthogonal(w, -2.5 * w), torch.zeros(3, 3))
    assert torch.equal(orthogonal(torch.tensor([[2.0]]), torch.tensor([[1.0]])), torch.zeros(1, 1))


def test_vectors_and_zero_matrices_keep_their_gradient() -> None:
    g = torch.randn(3, 3)
    assert torch.equal(orthogonal(torch.zeros(3, 3), g), g)
    assert torch.equal(orthogonal(torch.ones(3), g[0]), g[0])


def test_each_expert_is_a_matrix_of_its_own() -> None:
    w, g = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    found = orthogonal(w, g)
    for expert in range(2):
        torch.testing.assert_close(found[expert], orthogonal(w[expert], g[expert]))


def test_gradient_descent_grows_the_square_of_the_norm_by_the_steps_alone() -> None:
    torch.manual_seed(0)
    weight, rate = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.float64)), 0.05
    optimizer = torch.optim.SGD([weight], lr=rate)
    callback, target = OrthogonalGradient(), torch.randn(4, 4, dtype=torch.float64)
    for _ in range(10):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        assert weight.grad is not None
        square, step = float(weight.detach().square().sum()), float(weight.grad.square().sum())
        callback.on_pre_optimizer_step(
            SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), optimizer=optimizer
        )
        optimizer.step()
        assert float(weight.detach().square().sum()) == pytest.approx(square + rate**2 * step)


def test_what_was_removed_is_measured_over_all_matrices() -> None:
    matrices = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(2, 2))]
    vector = torch.nn.Parameter(torch.randn(5))
    callback = OrthogonalGradient()
    callback.items = ItemMetrics()
    gradients = [torch.randn_like(weight) for weight in (*matrices, vector)]
    for weight, gradient in zip((*matrices, vector), gradients, strict=True):
        weight.grad = gradient.clone()
    along = [
        torch.sum(g * w.detach() / w.norm()).detach() ** 2 for w, g in zip(matrices, gradients, strict=False)
    ]
    optimizer = torch.optim.SGD([*matrices, vector], lr=1.0)
    callback.on_pre_optimizer_step(
        SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), optimizer=optimizer
    )
    expected = float(sum(along)) / float(sum(g.square().sum() for g in gradients[:2]))
    assert callback.items.take() == {"orthogonal/removed": pytest.approx(expected)}


def test_a_16_bit_gradient_is_computed_wider() -> None:
    w, g = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    found = orthogonal(w, g)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, orthogonal(w.float(), g.float()).bfloat16())


def test_a_weight_without_a_gradient_is_left_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    OrthogonalGradient().on_pre_optimizer_step(
        SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), optimizer=optimizer
    )
    assert weight.grad is None
