"""`linear_logprob` as a custom op, which `torch.compile` passes through without a graph break.

The rows are selected inside the op, whose outputs have the shapes of the inputs. A graph holds tensors only, so the
forward keeps no tiles for the backward: the gradient of a head that trains costs 8 N H V flops in all, where the
autograd function of `fused` needs 6 for the tiles that it keeps.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.kernels import rows
from alignkit.kernels.backend import engine
from alignkit.kernels.head import LogitTransform, Operands
from alignkit.kernels.linear_logprob.records import OPTIONAL, Engine, Found, Request, labelled_rows

PACKAGE = __package__


class Call(NamedTuple):
    """The arguments of one call in the types of an op's schema."""

    labels: Tensor
    """[N] int64."""
    transform: LogitTransform
    request: Request
    ignore_index: int | None
    implementation: str
    """"torch" or "triton"."""


def compiled(hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> dict[str, Tensor]:
    """Compute the values that the request returns, [N] each, zero or False where the label is ignored."""
    found = linear_logprob_op(
        hidden,
        weight,
        bias,
        call.labels,
        *call.transform,
        ",".join(call.request.outputs),
        call.request.hidden_gradient,
        call.ignore_index,
        call.implementation,
    )
    values = dict(zip(("logps", *OPTIONAL), found, strict=False))
    return {name: values[name] for name in call.request.returned}


@torch.library.custom_op("alignkit::linear_logprob", mutates_args=())
def linear_logprob_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    scale: float,
    softcap: float | None,
    temperature: float,
    outputs: str,
    hidden_gradient: bool,
    ignore_index: int | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return log-probs, entropy, top-1, confidence, d logp / d hidden, label logits and log-sum-exps.

    `outputs` has the names of the optional ones, separated by commas. An output that is not computed is empty.
    """
    kept, targets = _rows(labels, weight, ignore_index)
    operands = Operands(kept.take(hidden), weight, bias, LogitTransform(scale, softcap, temperature))
    request = Request(tuple(filter(None, outputs.split(","))), hidden_gradient, head_gradient=False)
    swept = _engine(implementation).sweep(operands, targets, request)
    nothing = labels.new_empty(0)

    def value(name: str) -> Tensor:
        found = swept.values.get(name)
        return nothing.new_empty(0, dtype=OPTIONAL[name]) if found is None else kept.spread(found)

    direction = hidden.new_empty(0)
    if swept.hidden_gradient is not None:
        direction = kept.spread(swept.hidden_gradient)
    return (
        kept.spread(swept.values["logps"]),
        *(value(name) for name in OPTIONAL),
        direction,
        kept.spread(swept.found.picked),
        kept.spread(swept.found.lse),
    )


@linear_logprob_op.register_fake
def _(hidden: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    labels, outputs, hidden_gradient = arguments[2], arguments[6].split(","), arguments[7]
    floats = [labels.new_empty(labels.shape, dtype=torch.float32) for _ in range(3)]
    optional = (
        labels.new_empty(labels.shape if name in outputs else (0,), dtype=dtype)
        for name, dtype in OPTIONAL.items()
    )
    direction = hidden.new_empty(hidden.shape if hidden_gradient else (0,))
    return floats[0], *optional, direction, floats[1], floats[2]


@torch.library.custom_op("alignkit::linear_logprob_head_gradient", mutates_args=())
def head_gradient_op(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    picked: Tensor,
    lse: Tensor,
    scale: float,
    softcap: float | None,
    temperature: float,
    ignore_index: int | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to weight and bias (empty if there is none), from `upstream` [N] = d loss / d logps."""
    kept, targets = _rows(labels, weight, ignore_index)
    operands = Operands(kept.take(hidden), weight, bias, LogitTransform(scale, softcap, temperature))
    chosen = _engine(implementation)
    found = Found(kept.take(picked), kept.take(lse), chosen.nothing_kept(weight))
    to_weight, to_bias = chosen.head_gradient(operands, targets, found, kept.take(upstream).contiguous())
    return (
        to_weight.to(weight.dtype),
        weight.new_empty(0) if to_bias is None or bias is None else to_bias.to(bias.dtype),
    )


@head_gradient_op.register_fake
def _(
    upstream: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    to_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return to_weight, weight.new_empty(0) if bias is None else torch.empty_like(bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, labels, *ctx.head = inputs
    direction, picked, lse = output[-3:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    for_head = (hidden, weight, bias, labels, picked, lse) if ctx.trains_head else (None,) * 6
    ctx.save_for_backward(direction, *for_head)


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
    direction, hidden, weight, bias, labels, picked, lse = ctx.saved_tensors
    to_hidden = to_weight = to_bias = None
    if ctx.needs_input_grad[0]:
        to_hidden = (direction * upstream[:, None]).to(direction.dtype)
    if ctx.trains_head:
        *transform, _, _, ignore_index, implementation = ctx.head
        to_weight, to_bias = head_gradient_op(
            upstream, hidden, weight, bias, labels, picked, lse, *transform, ignore_index, implementation
        )
    return to_hidden, to_weight, to_bias if bias is not None else None, *(None,) * 8


linear_logprob_op.register_autograd(_backward, setup_context=_setup)


def _rows(labels: Tensor, weight: Tensor, ignore_index: int | None) -> tuple[rows.Rows, Tensor]:
    """The rows whose label is not ignored, and their labels."""
    kept = labelled_rows(labels, weight, ignore_index)
    return kept, kept.take(labels)


def _engine(implementation: str) -> Engine:
    found: Engine = engine(str(PACKAGE), implementation)
    return found
