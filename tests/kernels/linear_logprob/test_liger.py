"""Liger's op as an implementation of linear_logprob: the values and gradients of the reference, or a refusal."""

import importlib.util
from typing import Any

import pytest
import torch

from alignkit.errors import AlignkitError
from alignkit.kernels import linear_logprob, sinkhorn
from alignkit.kernels.backend import interpreted

pytestmark = pytest.mark.skipif(
    interpreted() or importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel"
)

LABELS = torch.tensor([3, 16, -100, 0, 3])


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 7), (17, 7)
    hidden, weight = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return hidden, weight


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_liger_equals_the_reference(dtype: torch.dtype, head_trains: bool) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    results = []
    for name in ("reference", "liger"):
        hidden, weight = operands(dtype)
        weight.requires_grad_(head_trains)
        found = linear_logprob(
            hidden, weight, LABELS, logit_scale=0.5, temperature=1.3, entropy=True, implementation=name
        )
        assert found.entropy is not None
        assert not found.entropy.requires_grad
        (found.logps * torch.arange(5.0)).sum().backward()
        results.append([found.logps, found.entropy, hidden.grad, *[weight.grad] * head_trains])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_rows_that_are_all_ignored_have_a_gradient_of_zero() -> None:
    hidden, weight = operands()
    linear_logprob(
        hidden, weight, LABELS.clamp(max=-100), entropy=True, implementation="liger"
    ).logps.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"bias": torch.zeros(17)}, "a bias"),
        ({"softcap": 5.0}, "a soft cap"),
        ({"top1": True, "confidence": True}, "top1, confidence"),
    ],
)
def test_what_liger_does_not_have_is_refused(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"it cannot compute {word}. Leave the choice to the device"):
        linear_logprob(*operands(), LABELS, implementation="liger", **asked)


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        AlignkitError, match="implementation liger needs the package liger_kernel, which is not"
    ):
        linear_logprob(*operands(), LABELS, implementation="liger")


def test_the_other_ops_have_no_such_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_KERNELS", "liger")
    with pytest.raises(
        ValueError, match="ALIGNKIT_KERNELS must be one of triton, torch, reference, found 'liger'"
    ):
        sinkhorn(torch.zeros(2, 2), epsilon=1.0, iterations=1)
