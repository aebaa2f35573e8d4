"""The ops under `torch.compile`: one graph, and the values and gradients of a call without it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from alignkit.kernels import Divergences, linear_divergence, linear_logprob, pairwise_l1, sinkhorn
from alignkit.kernels.backend import interpreted
from alignkit.kernels.linear_divergence.compiled import linear_divergence_op
from alignkit.kernels.linear_logprob.compiled import linear_logprob_op
from alignkit.kernels.model_head import fuse_head
from alignkit.kernels.pairwise_l1.compiled import pairwise_l1_op
from alignkit.kernels.sinkhorn.compiled import sinkhorn_op

pytestmark = pytest.mark.skipif(interpreted(), reason="the graphs are the same for every implementation")

ROWS, WORDS = 9, 31
LABELS = torch.tensor([3, 30, -100, 0, 3, 17, -100, 8, 29])
STEPS = torch.arange(float(ROWS)) - 3
"""An upstream gradient that differs from row to row."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graphs of an earlier test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tensors(words: int = WORDS) -> dict[str, Tensor]:
    """A student's hidden states, head and bias, and a teacher's; the teacher's head has two columns more."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"h": (ROWS, 7), "w": (words, 7), "b": (words,), "t": (ROWS, 5), "u": (words + 2, 5)}
    return {
        name: torch.randn(shape, generator=generator).requires_grad_(name != "u")
        for name, shape in shapes.items()
    }


def log_probs(h: Tensor, w: Tensor, b: Tensor, **_: Tensor) -> dict[str, Tensor]:
    found = linear_logprob(
        torch.tanh(h),
        w,
        LABELS,
        bias=b,
        softcap=5.0,
        temperature=1.3,
        entropy=True,
        top1=True,
        confidence=True,
    )
    assert found.entropy is not None
    assert found.top1 is not None
    assert found.confidence is not None
    return {
        "loss": (found.logps * STEPS).sum(),
        "logps": found.logps,
        "entropy": found.entropy,
        "top1": found.top1,
        "confidence": found.confidence,
    }


def frozen_log_probs(h: Tensor, w: Tensor, **_: Tensor) -> dict[str, Tensor]:
    return {"loss": (linear_logprob(h, w.detach(), LABELS).logps * STEPS).sum()}


def with_objective(h: Tensor, w: Tensor, b: Tensor, t: Tensor, u: Tensor) -> dict[str, Tensor]:
    def objective(found: Divergences) -> Tensor:
        assert found.student_ce is not None
        assert found.teacher_ce is not None
        return (
            2 * found.forward_kl
            + found.reverse_kl * found.student_entropy
            + found.student_ce
            + found.teacher_ce
        )

    found = linear_divergence(
        h,
        w,
        t,
        u,
        LABELS,
        student_bias=b,
        student_softcap=5.0,
        temperature=1.5,
        top1=True,
        objective=objective,
    )
    assert found.loss is not None
    assert found.teacher_top1 is not None
    return {
        "loss": (found.loss * STEPS).sum(),
        "losses": found.loss,
        "forward_kl": found.forward_kl,
        "teacher_top1": found.teacher_top1,
    }


def without_labels(h: Tensor, w: Tensor, t: Tensor, u: Tensor, **_: Tensor) -> dict[str, Tensor]:
    found = linear_divergence(h, w.detach(), t, u, temperature=1.5)
    assert found.teacher_reverse_kl is not None
    return {"loss": (found.forward_kl * STEPS + found.teacher_reverse_kl).sum(), "reverse": found.reverse_kl}


def distances(h: Tensor, w: Tensor, b: Tensor, t: Tensor, u: Tensor) -> dict[str, Tensor]:
    found = pairwise_l1(h, w, t, u, student_bias=b, student_softcap=5.0)
    own = pairwise_l1(h, w, h, w, student_bias=b, teacher_bias=b)
    return {"loss": (found * STEPS).sum() + (own**2).sum(), "distances": found}


def plans(t: Tensor, **_: Tensor) -> dict[str, Tensor]:
    found = sinkhorn((t[None] - t[:, None]).square().sum(dim=2), epsilon=0.5, iterations=3)
    return {"loss": found.cost, "plan": found.plan}


@pytest.mark.parametrize(
    "call", [log_probs, frozen_log_probs, with_objective, without_labels, distances, plans]
)
@pytest.mark.parametrize("words", [WORDS, pytest.param(128_257, marks=pytest.mark.slow)])
def test_a_compiled_call_is_one_graph_with_the_same_gradients(
    call: Callable[..., dict[str, Tensor]], words: int
) -> None:
    given = tensors(words)
    trained = {name: x for name, x in given.items() if x.requires_grad}
    expected, found = call(**given), torch.compile(call, backend="aot_eager", fullgraph=True)(**given)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
        assert found[name].requires_grad == value.requires_grad, name
    gradients = [
        torch.autograd.grad(x["loss"], list(trained.values()), allow_unused=True) for x in (expected, found)
    ]
    for name, one, other in zip(trained, *gradients, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(other, one, msg=lambda text, name=name: f"{name}: {text}")


def test_a_compiled_call_refuses_a_label_outside_the_vocabulary() -> None:
    given = tensors()
    call = torch.compile(lambda labels: linear_logprob(given["h"], given["w"], labels).logps, backend="eager")
    with pytest.raises(ValueError, match=r"labels must be in \[0, 31\) or ignored, found 31"):
        call(LABELS + 1)


def arguments_of() -> dict[Any, tuple[Any, ...]]:
    """Each op with the arguments of a call."""
    given = tensors()
    h, w, b, t = (given[name] for name in "hwbt")
    u = given["u"][:WORDS]
    heads = h, w, b, t, u, None
    names = "forward_kl,student_ce,teacher_ce"
    square = torch.rand(2, 5, 5, requires_grad=True)
    return {
        linear_logprob_op: (h, w, b, LABELS, 1.0, 5.0, 1.0, "entropy,top1", True, -100, "torch"),
        linear_divergence_op: (
            *(*heads, LABELS, [1.0, 5.0, 1.5, 1.0, 0.0, 1.5], True),
            *(f"{names},student_top1,teacher_top1", names, -100, "torch"),
        ),
        pairwise_l1_op: (*heads, [1.0, 5.0, 2.0, 1.0, 0.0, 2.0], [True] * 4 + [False] * 2, False, "torch"),
        sinkhorn_op: (square, 0.1, 3, "torch"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "op", [linear_logprob_op, linear_divergence_op, pairwise_l1_op, sinkhorn_op], ids=lambda op: op._name
)
def test_an_op_keeps_pytorchs_rules(op: Any) -> None:
    """Schema, fake tensors and autograd agree with what the op does, with dynamic shapes too."""
    found = torch.library.opcheck(op, arguments_of()[op])
    assert set(found.values()) == {"SUCCESS"}


def test_a_model_with_a_fused_head_is_one_graph() -> None:
    """The head has been measured before, by the check that each run begins with."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    model = LlamaForCausalLM(config)
    fuse_head(model, entropy=True, top1=True)
    words = torch.arange(14).view(2, 7)
    labels = words.masked_fill(words < 3, -100)

    def run(forward: Any) -> tuple[Tensor, ...]:
        found = forward(input_ids=words, labels=labels, fused_lm_head=True)
        gradients = torch.autograd.grad(found.log_probs.square().sum(), list(model.parameters()))
        return found.log_probs, found.entropy, found.is_top1, *gradients

    expected = run(model)
    for one, other in zip(expected, run(torch.compile(model, backend="eager", fullgraph=True)), strict=True):
        torch.testing.assert_close(other, one)
