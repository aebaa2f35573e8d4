"""Facts of linear_logprob's Triton engine alone: split matmuls, and buffers with garbage in their padding."""

import pytest
import torch

from alignkit.kernels import linear_logprob
from alignkit.kernels.backend import interpreted
from alignkit.kernels.gpu_plan import Chunks

pytestmark = pytest.mark.skipif(
    not interpreted(), reason="run by tests/kernels/test_interpreted.py, in a process of its own"
)


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*size, generator=generator) for size in ((5, 8), (101, 8)))
    return hidden, weight, torch.randint(0, 101, (5,), generator=generator)


def gradients(operands: tuple[torch.Tensor, ...], implementation: str) -> list[torch.Tensor]:
    hidden, weight, labels = operands
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    logps = linear_logprob(*leaves, labels, implementation=implementation).logps
    (logps * torch.arange(1, 6)).sum().backward()
    return [logps.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_a_split_product_changes_nothing_for_triton(
    operands: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit.kernels.linear_logprob import triton as engine

    monkeypatch.setattr(engine, "chunks", lambda *_, **__: Chunks(2, 3, 0.0))
    for found, expected in zip(gradients(operands, "triton"), gradients(operands, "reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_garbage_in_the_padding_is_not_seen_by_triton(
    operands: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit.kernels.linear_logprob import triton as engine

    buffer = engine._buffer
    monkeypatch.setattr(engine, "_buffer", lambda *a: buffer(*a).fill_(torch.nan))
    for found, expected in zip(gradients(operands, "triton"), gradients(operands, "reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
