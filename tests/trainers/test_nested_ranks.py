"""Nested ranks: the distribution, the mask, its gradient, and the optimum of a linear target."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit.trainers.metrics import ItemMetrics
from alignkit.trainers.nested_ranks import NestedRanks, probabilities

ANY: Any = SimpleNamespace()


def begun(callback: NestedRanks, model: nn.Module, step: int = 0) -> None:
    callback.on_train_begin(ANY, ANY, ANY, model=model)
    callback.on_step_begin(ANY, SimpleNamespace(global_step=step), ANY)


def small(rank: int = 4) -> Any:
    """A linear layer with an adapter whose both matrices are random."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"])
    )
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    return model


def test_the_distribution_is_a_half_normal_one_over_the_ranks() -> None:
    weights = [torch.e ** -((k / 2.5) ** 2) for k in range(1, 6)]
    expected = torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)
    torch.testing.assert_close(probabilities(5, 2.5), expected)


def test_draws_follow_the_distribution_and_only_seed_and_step() -> None:
    callback = NestedRanks(8, 4.0, seed=3)
    drawn = [callback.draw(step) for step in range(2000)]
    assert drawn == [NestedRanks(8, 4.0, seed=3).draw(step) for step in range(2000)]
    assert drawn[:50] != [NestedRanks(8, 4.0, seed=4).draw(step) for step in range(50)]
    found = torch.tensor(drawn).bincount(minlength=9)[1:] / 2000
    torch.testing.assert_close(found.double(), callback.probabilities, rtol=0, atol=0.04)


def test_the_ranks_that_steps_trained_are_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    model, callback = small(), NestedRanks(4, None, seed=0)
    callback.items = ItemMetrics()
    monkeypatch.setattr(callback, "draw", lambda step: 1 + step)
    for step in (0, 3):
        begun(callback, model, step)
    assert callback.items.take() == {"nested/ranks": 2.5}


def test_a_step_trains_the_first_ranks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, callback = small(), NestedRanks(4, None, seed=0)
    monkeypatch.setattr(callback, "draw", lambda _: 2)
    begun(callback, model)
    layer = model.base_model.model[0]
    x = torch.randn(3, 6)
    found = model(x)
    b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    torch.testing.assert_close(found, layer.base_layer(x) + 2 * x @ a[:2].T @ b[:, :2].T)
    found.square().sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert not a.grad[2:].any()
    assert not b.grad[:, 2:].any()
    assert a.grad[:2].all()


def test_all_ranks_are_the_plain_adapter_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, callback = small(), NestedRanks(4, None, seed=0)
    x = torch.randn(3, 6)
    plain = model(x)
    monkeypatch.setattr(callback, "draw", lambda _: 4)
    begun(callback, model)
    assert torch.equal(model(x), plain)


def test_evaluation_and_what_follows_training_use_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, callback = small(), NestedRanks(4, None, seed=0)
    x = torch.randn(3, 6)
    plain = model(x)
    monkeypatch.setattr(callback, "draw", lambda _: 1)
    begun(callback, model)
    assert not torch.equal(model(x), plain)
    model.eval()
    assert torch.equal(model(x), plain)
    model.train()
    callback.on_train_end(ANY, ANY, ANY)
    assert torch.equal(model(x), plain)


def test_the_frozen_copy_of_a_start_is_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, callback = small(), NestedRanks(4, None, seed=0)
    model.add_adapter("ref", model.peft_config["default"])
    monkeypatch.setattr(callback, "draw", lambda _: 1)
    begun(callback, model)
    hooked = {name for name, inner in model.base_model.model[0].lora_A.items() if inner._forward_hooks}
    assert hooked == {"default"}


def test_of_a_pair_only_the_student_is_masked() -> None:
    pair = nn.Module()
    pair.student, pair.teacher = small(), small()
    begun(NestedRanks(4, None, seed=0), pair)
    assert pair.student.base_model.model[0].lora_A["default"]._forward_hooks
    assert not pair.teacher.base_model.model[0].lora_A["default"]._forward_hooks


def test_the_optimum_of_a_linear_target_is_its_truncated_svd_at_every_rank() -> None:
    """Eckart and Young: the error at rank k is the sum of the squares of the singular values left out."""
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    values = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    target = left[:, :4] * values @ right.T
    b, a = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (3, 4)))
    weights = probabilities(3, 2.0)
    optimizer = torch.optim.LBFGS([b, a], max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=0)

    def errors() -> list[torch.Tensor]:
        return [(target - b[:, :k] @ a[:k]).square().sum() for k in (1, 2, 3)]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((weight * error for weight, error in zip(weights, errors(), strict=True)), torch.zeros(()))
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = [float(values[k:].square().sum()) for k in (1, 2, 3)]
    assert [error.item() for error in errors()] == pytest.approx(expected, abs=1e-6)
