"""linear_logprob against materialised float64 logits: values, every gradient, odd shapes, extreme logits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.kernels import linear_logprob
from alignkit.kernels.torch import linear_logprob as engine
from tests.kernels.no_logits import forbid_logits


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles each way even for small inputs, the last ones short; half of them kept."""
    monkeypatch.setattr(engine, "TOKENS", 15)
    monkeypatch.setattr(engine, "TILE_BYTES", 4 * 13 * 31)
    monkeypatch.setattr(engine, "KEPT_BYTES", 4 * 37 * 101 // 2)


def oracle(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    logits = hidden @ weight.T
    logits = (logits if bias is None else logits + bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    logp = logits.log_softmax(dim=-1)
    entropy = -torch.special.xlogy(logp.exp(), logp.exp()).sum(dim=-1)
    return logp.gather(1, labels[:, None]).squeeze(1), entropy, logits.argmax(dim=-1) == labels


def relative(found: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    return float(
        (found.double() - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-9)
    )


@pytest.mark.parametrize("shape", [(37, 16, 101), (5, 8, 3), (1, 4, 1000), (0, 8, 11)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3, "softcap": 5.0, "temperature": 1.7}])
@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients(
    shape: tuple[int, int, int], options: dict[str, Any], head_trains: bool, with_bias: bool
) -> None:
    count, width, vocabulary = shape
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, width, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).requires_grad_(
        head_trains
    )
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64).requires_grad_(head_trains)
    labels = torch.randint(0, vocabulary, (count,), generator=generator)
    upstream = torch.randn(count, generator=generator, dtype=torch.float64)
    expected = oracle(hidden, weight, labels, bias if with_bias else None, **options)
    (expected[0] * upstream).sum().backward()
    low = [value.detach().float().requires_grad_(value.requires_grad) for value in (hidden, weight, bias)]
    found = linear_logprob(
        low[0],
        low[1],
        labels,
        bias=low[2] if with_bias else None,
        logit_scale=options.get("scale", 1.0),
        softcap=options.get("softcap"),
        temperature=options.get("temperature", 1.0),
        entropy=True,
        top1=True,
    )
    (found.logps * upstream.float()).sum().backward()
    assert found.entropy is not None
    assert found.top1 is not None
    assert relative(found.logps, expected[0]) < 1e-5
    assert relative(found.entropy, expected[1]) < 1e-5
    assert torch.equal(found.top1, expected[2])
    pairs = [(low[0], hidden)] + ([(low[1], weight)] if head_trains else [])
    pairs += [(low[2], bias)] if head_trains and with_bias else []
    for mine, theirs in pairs:
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative(mine.grad, theirs.grad) < 2e-5


def test_ignored_rows_are_zero_and_get_no_gradient() -> None:
    hidden = torch.randn(6, 8, requires_grad=True)
    labels = torch.tensor([1, -100, 3, -100, -100, 2])
    found = linear_logprob(hidden, torch.randn(11, 8), labels, entropy=True, top1=True)
    found.logps.sum().backward()
    ignored = labels == -100
    assert found.entropy is not None
    assert hidden.grad is not None
    assert not found.logps[ignored].any()
    assert not found.entropy[ignored].any()
    assert not hidden.grad[ignored].any()
    assert hidden.grad[~ignored].any(dim=1).all()


def test_a_batch_without_a_valid_token_is_a_differentiable_zero() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = linear_logprob(hidden, torch.randn(11, 8), torch.full((4,), -100)).logps.sum()
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_stay_finite(scale: float) -> None:
    hidden = (torch.eye(5) * scale).requires_grad_()
    labels = torch.arange(5)
    found = linear_logprob(hidden, torch.eye(5), labels, entropy=True)
    expected, entropy, _ = oracle(hidden.detach().double(), torch.eye(5).double(), labels)
    found.logps.sum().backward()
    assert relative(found.logps, expected) < 1e-5 or float(expected.abs().max()) < 1e-6
    assert found.entropy is not None
    assert hidden.grad is not None
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-6, rtol=1e-5)
    assert torch.isfinite(hidden.grad).all()


def test_padding_columns_of_minus_infinity_count_for_nothing() -> None:
    hidden, weight = torch.randn(7, 8, requires_grad=True), torch.randn(20, 8)
    bias = torch.zeros(20)
    bias[12:] = -torch.inf
    labels = torch.randint(0, 12, (7,))
    found = linear_logprob(hidden, weight, labels, bias=bias, entropy=True)
    found.logps.sum().backward()
    expected, entropy, _ = oracle(hidden.detach().double(), weight[:12].double(), labels)
    assert found.entropy is not None
    assert hidden.grad is not None
    assert relative(found.logps, expected) < 1e-5
    assert relative(found.entropy, entropy) < 1e-5
    assert torch.isfinite(hidden.grad).all()


def test_bfloat16_is_within_a_hundredth() -> None:
    hidden, weight = torch.randn(33, 64).bfloat16(), (torch.randn(500, 64) * 0.1).bfloat16()
    labels = torch.randint(0, 500, (33,))
    expected, _, _ = oracle(hidden.double(), weight.double(), labels)
    found = linear_logprob(hidden, weight, labels)
    assert found.logps.dtype == torch.float32
    assert relative(found.logps, expected) < 1e-2


def test_non_contiguous_input_and_autocast() -> None:
    hidden, weight = torch.randn(8, 12).T, torch.randn(8, 30).T
    labels = torch.randint(0, 30, (12,))
    expected, _, _ = oracle(hidden.double(), weight.double(), labels)
    assert relative(linear_logprob(hidden, weight, labels).logps, expected) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(linear_logprob(hidden, weight, labels).logps, expected) < 3e-2


@pytest.mark.parametrize(
    ("hidden", "labels", "temperature", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), 1.0, "expected hidden"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.long), 1.0, "expected labels"),
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), 0.0, "temperature"),
    ],
)
def test_what_does_not_fit_is_refused(
    hidden: Tensor, labels: Tensor, temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        linear_logprob(hidden, torch.zeros(7, 4), labels, temperature=temperature)


def test_no_tensor_of_tokens_by_vocabulary_is_made() -> None:
    count, vocabulary = 60, 500
    hidden = torch.randn(count, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    labels = torch.zeros(count, dtype=torch.long)
    with forbid_logits(count // 2, vocabulary):
        linear_logprob(hidden, weight, labels, entropy=True, top1=True).logps.sum().backward()
    with pytest.raises(AssertionError, match="logits"), forbid_logits(count // 2, vocabulary):
        linear_logprob(hidden, weight, labels, implementation="reference")
