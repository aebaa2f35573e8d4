"""The GPU engine of `linear_logprob`: for each chunk of rows, a cuBLAS matmul and then one kernel over the rows.

`gpu_plan` chooses the chunk size and the splits of the matmul along the vocabulary. Logits are float32 unless
ALIGNKIT_LOGITS says otherwise. The kernel turns a row of logits in place into its gradient, which is multiplied with
the head again. For a head that trains, the gradients of the first rows are kept, as many as fit. For the other rows
the backward recomputes the logits, one block of columns for all tokens at a time. So each part of the head's gradient
takes few matmuls and is written once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from alignkit.kernels.backend import logits_dtype, memory, processors
from alignkit.kernels.gpu_plan import Chunks, Device, Work, padded, plan
from alignkit.kernels.head import Operands, compute_dtype
from alignkit.kernels.linear_logprob import cost
from alignkit.kernels.linear_logprob.records import OPTIONAL, Engine, Found, Request, Swept
from alignkit.kernels.linear_logprob.row_kernels import block_kernel, row_kernel
from alignkit.kernels.products import add_product, project, states

LANES, WARPS = 512, 16
"""Launch sizes of the row kernel. A lane reads 16 bytes at a time."""
BLOCK, BLOCK_WARPS = 2048, 8
"""Launch sizes of the block kernel: columns that a program holds at once, and warps."""
LONG_ROW = 100_000
"""Columns above which the cache holds one row per processor instead of two."""
MOST_TOKENS = 2**16
"""Maximum rows of one matmul of a trained head's gradient. The matmuls are summed in float32."""
NARROWEST_BLOCK = 512
"""Minimum columns of a block of a trained head's gradient."""


def chunks(weight: Tensor, *, gradient: bool) -> Chunks:
    """Return the chunk plan of `sweep`, with or without the hidden states' gradient."""
    wide, narrow = logits_dtype(weight).itemsize, weight.element_size()
    width = weight.size(1)
    work = Work(
        weight.size(0), (width,), (width,) * gradient, buffer_bytes=wide, moved_bytes=wide + narrow * gradient
    )
    return plan(work, cost.BUFFER_BYTES, Device(processors(weight)))


def sweep(operands: Operands, labels: Tensor, request: Request) -> Swept:
    """Compute one pass over the vocabulary; see `Engine.sweep`."""
    hidden, weight, bias, _ = operands
    values = request.empty_values(labels)
    picked, lse = (torch.empty_like(values["logps"]) for _ in range(2))
    to_hidden = (
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if request.hidden_gradient else None
    )
    plan_ = chunks(weight, gradient=request.hidden_gradient)
    kept = _room_to_keep(weight, hidden.size(0), plan_.rows) if request.head_gradient else None
    buffer = _buffer(weight, min(plan_.rows, hidden.size(0)), weight.size(0))
    bias = _padded(bias, buffer.size(1))
    for part in plan_.spans(hidden.size(0)):
        logits = buffer[: part.stop - part.start]
        keep = kept is not None and part.stop <= kept.size(0)
        gradient = kept[part] if kept is not None and keep else logits.view(weight.dtype)
        project(hidden[part], weight, logits[:, : weight.size(0)])
        rows = logits.size(0)
        row_kernel[(min(rows, processors(weight) * (1 if weight.size(0) > LONG_ROW else 2)),)](
            logits,
            logits.stride(0),
            gradient,
            gradient.stride(0),
            *_pointers(bias, labels[part], picked[part], lse[part], values["logps"][part]),
            *(_output(values[name][part]) if name in values else None for name in OPTIONAL),
            rows,
            weight.size(0),
            logits.size(1),
            **{name.upper(): name in values for name in OPTIONAL},
            **_of_head(operands),
            GRADIENT=keep or to_hidden is not None,
            LANES=LANES,
            VECTOR=16 // logits.element_size(),
            num_warps=WARPS,
        )
        if to_hidden is not None:
            states(gradient[:, : weight.size(0)], weight, to_hidden[part], plan_.splits)
    return Swept(values, Found(picked, lse, kept), to_hidden)


def head_gradient(
    operands: Operands, labels: Tensor, found: Found, upstream: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Compute the head's gradient from kept gradients and recomputed logits; see `Engine.head_gradient`."""
    hidden, weight, bias, _ = operands
    count, vocabulary = hidden.size(0), weight.size(0)
    kept = found.kept[:, :vocabulary]
    # a row's factor is applied to its hidden states, so that kept gradients enter the matmul unchanged
    scaled = (hidden[: len(kept)] * upstream[: len(kept), None]).to(weight.dtype)
    tokens = [slice(at, min(at + MOST_TOKENS, count)) for at in range(len(kept), count, MOST_TOKENS)]
    products = len(tokens) + bool(len(kept))
    most = max((part.stop - part.start for part in tokens), default=0)
    width = _block_width(weight, most if bias is None else max(most, len(kept)))
    buffer = _buffer(weight, min(count - len(kept), MOST_TOKENS), width)
    total = weight.new_empty(width if products > 1 else 0, hidden.size(1), dtype=compute_dtype(weight))
    grad_weight = (torch.empty_like if products else torch.zeros_like)(weight)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(columns: slice, gradient: Tensor, states: Tensor, *, first: bool) -> None:
        if products == 1:
            torch.mm(gradient.T, states, out=grad_weight[columns])
        else:
            add_product(total[: columns.stop - columns.start], gradient.T, states, fresh=first)

    for start in range(0, vocabulary, width):
        columns = slice(start, min(start + width, vocabulary))
        if len(kept):
            add(columns, kept[:, columns], scaled, first=True)
            if grad_bias is not None:
                grad_bias[columns] += kept[:, columns].float().T @ upstream[: len(kept)]
        for part in tokens:
            gradient = _block_gradient(operands, labels, found.lse, upstream, part, columns, buffer)
            add(columns, gradient, hidden[part], first=part.start == 0)
            if grad_bias is not None:
                grad_bias[columns] += gradient.sum(dim=0, dtype=torch.float32)
        if products > 1:
            grad_weight[columns] = total[: columns.stop - columns.start]
    return grad_weight, grad_bias


def _room_to_keep(weight: Tensor, count: int, chunk: int) -> Tensor:
    """A buffer for the logit gradients of as many whole chunks as fit; empty if not even one fits."""
    whole = memory(weight)
    budget = cost.GPU_KEPT_BYTES
    budget = budget if whole is None else min(budget, int(whole * cost.GPU_KEPT_SHARE))
    fitting = budget // (padded(weight.size(0)) * weight.element_size())
    rows = count if count <= fitting else fitting // chunk * chunk
    return weight.new_empty(rows, padded(weight.size(0)))


def _block_width(weight: Tensor, rows: int) -> int:
    """Columns of a block of a trained head's gradient, if `rows` rows are in float32 at a time."""
    fitting = cost.BUFFER_BYTES // max(1, rows * logits_dtype(weight).itemsize)
    return min(padded(weight.size(0)), max(NARROWEST_BLOCK, fitting) // padded(1) * padded(1))


def _block_gradient(
    operands: Operands,
    labels: Tensor,
    lse: Tensor,
    upstream: Tensor,
    part: slice,
    columns: slice,
    buffer: Tensor,
) -> Tensor:
    """The loss's gradient to h W^T for some tokens and some columns of the head, in the weight's dtype."""
    hidden, weight, bias, _ = operands
    size = columns.stop - columns.start
    logits = buffer[: part.stop - part.start, : padded(size)]
    gradient = buffer.view(weight.dtype)[: part.stop - part.start, :size]
    project(hidden[part], weight[columns], logits[:, :size])
    block_kernel[(logits.size(0),)](
        logits,
        logits.stride(0),
        gradient,
        gradient.stride(0),
        *_pointers(
            None if bias is None else _padded(bias[columns], logits.size(1)),
            *(x[part] for x in (labels, lse, upstream)),
        ),
        columns.start,
        size,
        logits.size(1),
        **_of_head(operands),
        BLOCK=BLOCK,
        num_warps=BLOCK_WARPS,
    )
    return gradient


def _buffer(weight: Tensor, rows: int, columns: int) -> Tensor:
    """An uninitialised buffer for logits, with rows padded by `padded`."""
    return weight.new_empty(rows, padded(columns), dtype=logits_dtype(weight))


def _padded(bias: Tensor | None, width: int) -> Tensor | None:
    """The bias padded to the length of a buffer row, since the kernels read both together."""
    return None if bias is None else pad(bias.detach(), (0, width - bias.size(0)))


def _of_head(operands: Operands) -> dict[str, Any]:
    transform = operands.transform
    return {
        "scale": float(transform.scale),
        "softcap": float(transform.softcap or 1.0),
        "temperature": float(transform.temperature),
        "HAS_BIAS": operands.bias is not None,
        "HAS_SOFTCAP": transform.softcap is not None,
    }


def _pointers(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors made contiguous, as kernels expect. None is a pointer that the kernel does not read."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _output(value: Tensor) -> Tensor:
    """A view of the tensor that a kernel can write: bool as bytes."""
    return value.view(torch.int8) if value.dtype == torch.bool else value


ENGINE = Engine(sweep, head_gradient, lambda weight: weight.new_empty(0, padded(weight.size(0))))
