"""linear_logprob against materialised float64 logits: values, every gradient, odd shapes, extreme logits."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignkit.kernels import linear_logprob
from alignkit.kernels.backend import interpreted
from alignkit.kernels.linear_logprob import cost
from alignkit.kernels.linear_logprob.confidence import linear_confidence
from tests.kernels.interpreted import few, grid, thorough
from tests.kernels.no_logits import forbid_logits


@pytest.fixture(autouse=True, params=["triton"] if interpreted() else ["torch", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every implementation in turn, Triton's where tests/kernels/test_interpreted.py runs this file again.

    Several tiles each way even for small inputs, the last ones short.
    """
    monkeypatch.setenv("ALIGNKIT_KERNELS", request.param)
    monkeypatch.setattr(cost, "TOKENS", 15)
    monkeypatch.setattr(cost, "TILE_BYTES", 4 * 13 * 31)
    monkeypatch.setattr(cost, "KEPT_BYTES", 4 * 37 * 101 // 2)
    monkeypatch.setattr(cost, "BUFFER_BYTES", 4 * 13 * 101)
    monkeypatch.setattr(cost, "GPU_KEPT_BYTES", 4 * 7 * 128)
    if request.param == "triton":
        from alignkit.kernels.linear_logprob import triton as engine

        monkeypatch.setattr(engine, "LANES", 64)
        monkeypatch.setattr(engine, "BLOCK", 128)
        monkeypatch.setattr(engine, "NARROWEST_BLOCK", 64)
        monkeypatch.setattr(engine, "MOST_TOKENS", 9)
    return request.param


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


@pytest.mark.parametrize(
    ("shape", "options", "head_trains", "with_bias"),
    grid(
        [(37, 16, 101), (5, 8, 3), (1, 4, 1000), (0, 8, 11)],
        [{}, {"scale": 0.3, "softcap": 5.0, "temperature": 1.7}],
        [False, True],
        [False, True],
        representative=("0111", "0010", "0101", "1011", "2100", "2011", "3010"),
    ),
)
def test_values_and_gradients(
    shape: tuple[int, int, int], options: dict[str, Any], head_trains: bool, with_bias: bool
) -> None:
    count, width, vocabulary = shape
    count = few(count, 13)
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
    count = few(33)
    hidden, weight = torch.randn(count, 64).bfloat16(), (torch.randn(500, 64) * 0.1).bfloat16()
    labels = torch.randint(0, 500, (count,))
    expected, _, _ = oracle(hidden.double(), weight.double(), labels)
    found = linear_logprob(hidden, weight, labels)
    assert found.logps.dtype == torch.float32
    assert relative(found.logps, expected) < 1e-2


@pytest.mark.parametrize(
    ("dtype", "logits", "head_trains"),
    grid(
        [torch.bfloat16, torch.float16],
        ["float32", "bf16"],
        [False, True],
        representative=("001", "100", "010", "111"),
    ),
)
def test_sixteen_bits_have_gradients(
    dtype: torch.dtype, logits: str, head_trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Triton a gradient then lies in the first half of its row's float32 logits."""
    monkeypatch.setenv("ALIGNKIT_LOGITS", logits)
    generator = torch.Generator().manual_seed(3)
    count = few(11, 6)
    hidden, weight = (torch.randn(*size, generator=generator).to(dtype) for size in ((count, 32), (301, 32)))
    weight, labels = weight * 0.2, torch.randint(0, 301, (count,), generator=generator)
    low = [hidden.requires_grad_(), weight.requires_grad_(head_trains)]
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in low]
    found = linear_logprob(*low, labels, softcap=20.0).logps
    expected = oracle(*exact, labels, softcap=20.0)[0]
    found.sum().backward()
    expected.sum().backward()
    assert relative(found, expected) < 1e-2
    for mine, theirs in list(zip(low, exact, strict=True))[: 1 + head_trains]:
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == dtype
        assert relative(mine.grad, theirs.grad) < 2e-2


@pytest.mark.parametrize("head_trains", [thorough(False), True])
def test_a_vocabulary_of_128257(head_trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One added token makes it odd; the kernels' own tiles and blocks."""
    monkeypatch.undo()
    if interpreted():
        monkeypatch.setenv("ALIGNKIT_KERNELS", "triton")
    generator = torch.Generator().manual_seed(4)
    hidden, weight, bias = (
        torch.randn(*size, generator=generator) for size in ((2, 4), (128_257, 4), (128_257,))
    )
    labels = torch.tensor([128_256, 17])
    low = [hidden.requires_grad_(), weight.requires_grad_(head_trains), bias.requires_grad_(head_trains)]
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in low]
    found = linear_logprob(*low[:2], labels, bias=low[2], entropy=True, top1=True, confidence=True)
    expected = oracle(*exact[:2], labels, exact[2])
    found.logps.sum().backward()
    expected[0].sum().backward()
    assert found.entropy is not None
    assert found.top1 is not None
    assert relative(found.logps, expected[0]) < 1e-5
    assert relative(found.entropy, expected[1]) < 1e-5
    assert torch.equal(found.top1, expected[2])
    for mine, theirs in list(zip(low, exact, strict=True))[: 1 + 2 * head_trains]:
        # some processors' BLAS adds the 128,257 products of so narrow a matrix one after another
        assert relative(mine.grad, theirs.grad) < 5e-4


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
        (torch.zeros(3, 4), torch.tensor([0, 7, 1]), 1.0, r"labels must be in \[0, 7\) or ignored, found 7"),
        (torch.zeros(3, 4), torch.tensor([0, -1, 1]), 1.0, "found -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    hidden: Tensor, labels: Tensor, temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        linear_logprob(hidden, torch.zeros(7, 4), labels, temperature=temperature)


def test_no_tensor_of_tokens_by_vocabulary_is_made(implementation: str) -> None:
    count, vocabulary = (20, 500) if interpreted() else (60, 500)
    hidden = torch.randn(count, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    labels = torch.zeros(count, dtype=torch.long)
    expected = (
        pytest.raises(AssertionError, match="made logits") if implementation == "reference" else nullcontext()
    )
    with expected, forbid_logits(count // 2, vocabulary):
        linear_logprob(hidden, weight, labels, entropy=True, top1=True).logps.sum().backward()


def test_a_tie_goes_to_the_first() -> None:
    weight = torch.ones(40, 4)
    found = linear_logprob(torch.ones(3, 4), weight, torch.tensor([0, 1, 39]), top1=True)
    assert found.top1 is not None
    assert found.top1.tolist() == [True, False, False]


def test_nan_is_not_hidden() -> None:
    hidden = torch.zeros(few(40, 9), 4)
    hidden[7] = torch.nan
    labels = torch.zeros(len(hidden), dtype=torch.long)
    found = linear_logprob(hidden, torch.randn(101, 4), labels, entropy=True)
    assert found.entropy is not None
    assert torch.isnan(found.logps).nonzero().flatten().tolist() == [7]
    assert torch.isnan(found.entropy).nonzero().flatten().tolist() == [7]


def test_a_tied_head_under_gradient_checkpointing() -> None:
    """The head's gradient joins the embedding's; a recomputed forward gives the same."""
    weight = torch.randn(101, 8, requires_grad=True)
    tokens, labels = torch.randint(0, 101, (2, few(37, 13))).unbind()

    def logps(table: Tensor) -> Tensor:
        return linear_logprob(torch.tanh(table[tokens]), table, labels).logps

    checkpoint(logps, weight, use_reentrant=False).sum().backward()
    exact = weight.detach().double().requires_grad_()
    oracle(torch.tanh(exact[tokens]), exact, labels)[0].sum().backward()
    assert weight.grad is not None
    assert exact.grad is not None
    assert relative(weight.grad, exact.grad) < 2e-5


def test_backward_twice_gives_twice() -> None:
    count = few(37, 13)
    hidden, weight = torch.randn(count, 8, requires_grad=True), torch.randn(101, 8, requires_grad=True)
    loss = linear_logprob(hidden, weight, torch.randint(0, 101, (count,))).logps.sum()
    loss.backward(retain_graph=True)
    assert weight.grad is not None
    once = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_nothing_is_made_for_a_gradient_that_nobody_asks_for(implementation: str) -> None:
    if implementation == "reference":
        pytest.skip("its gradients are autograd's")
    weight = torch.randn(101, 8, requires_grad=True)
    labels = torch.randint(0, 101, (few(37, 13),))
    hidden = torch.randn(len(labels), 8)
    with torch.no_grad():
        found = linear_logprob(hidden, weight, labels)
    assert not found.logps.requires_grad
    found = linear_logprob(hidden, weight, labels)
    found.logps.sum().backward()
    assert weight.grad is not None


@given(
    count=st.integers(1, few(40, 9)),
    vocabulary=st.integers(1, 120),
    spread=st.sampled_from([0.1, 3.0, 100.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
    seed=st.integers(0, 2**16),
)
@settings(
    max_examples=few(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_shape_and_spread(
    count: int, vocabulary: int, spread: float, softcap: float | None, temperature: float, seed: int
) -> None:
    """Logits of any spread rise above the running reference in any order."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 4, generator=generator) * spread
    weight = torch.randn(vocabulary, 4, generator=generator)
    labels = torch.randint(0, vocabulary, (count,), generator=generator)
    low = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    found = linear_logprob(low[0], low[1], labels, softcap=softcap, temperature=temperature, entropy=True)
    expected = oracle(exact[0], exact[1], labels, softcap=softcap, temperature=temperature)
    found.logps.sum().backward()
    expected[0].sum().backward()
    assert found.entropy is not None
    torch.testing.assert_close(found.logps.double(), expected[0], rtol=2e-5, atol=2e-5 * (1 + spread))
    torch.testing.assert_close(found.entropy.double(), expected[1], rtol=2e-5, atol=2e-4)
    for mine, theirs in zip(low, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3 * (1 + spread))


@pytest.mark.parametrize(("softcap", "biased"), grid([None, 3.0], [False, True], representative=("00", "11")))
def test_a_confidence_is_the_largest_probability(softcap: float | None, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    count = few(20, 5)
    hidden, weight, bias = (torch.randn(*size, generator=generator) for size in ((count, 5), (17, 5), (17,)))
    labels = torch.randint(17, (count,), generator=generator)
    logits = 0.7 * (hidden.double() @ weight.double().T + (bias.double() if biased else 0))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    labels[::2] = logits.argmax(dim=1)[::2]
    found = linear_confidence(
        hidden.requires_grad_(),
        weight.requires_grad_(),
        labels,
        bias=bias if biased else None,
        logit_scale=0.7,
        softcap=softcap,
    )
    torch.testing.assert_close(found.probability, logits.softmax(-1).amax(-1).float())
    assert torch.equal(found.right, logits.argmax(-1) == labels)
    assert not found.probability.requires_grad


def test_no_rows_have_no_confidence() -> None:
    found = linear_confidence(torch.empty(0, 5), torch.randn(17, 5), torch.empty(0, dtype=torch.long))
    assert found.probability.shape == found.right.shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("head_trains", [False, True])
def test_on_a_gpu_in_bfloat16(head_trains: bool) -> None:
    """Against float64 logits of the same bfloat16 inputs."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    generator = torch.Generator("cuda").manual_seed(1)
    hidden = torch.randn(300, 256, generator=generator, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(5003, 256, generator=generator, device="cuda") * 0.05).bfloat16()
    weight.requires_grad_(head_trains)
    labels = torch.randint(0, 5003, (300,), generator=generator, device="cuda")
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    found = linear_logprob(hidden, weight, labels, implementation="triton")
    expected = oracle(exact[0], exact[1], labels)
    found.logps.sum().backward()
    expected[0].sum().backward()
    assert relative(found.logps, expected[0]) < 1e-2
    for mine, theirs in zip([hidden, weight][: 1 + head_trains], exact, strict=False):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative(mine.grad, theirs.grad) < 2e-2
