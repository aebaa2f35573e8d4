"""`linear_logprob` on GPUs: for a chunk of rows at a time, products by cuBLAS, then one kernel over each row.

`gpu_plan` chooses the chunk, and into how many parts the product with the long vocabulary is split. The logits are
float32 unless ALIGNKIT_LOGITS says otherwise; the kernel reads a row, and turns it in place into its gradient, which
multiplies the head again. A head that trains takes the logits once more in the backward, a block of columns of all
tokens at a time, so that each part of its gradient is one product, written once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from alignkit.kernels.backend import logits_dtype, processors
from alignkit.kernels.gpu_plan import Chunks, Device, Work, padded, plan
from alignkit.kernels.head import Operands
from alignkit.kernels.linear_logprob import cost
from alignkit.kernels.linear_logprob.records import OPTIONAL, Engine, Found, Request, Swept
from alignkit.kernels.linear_logprob.row_kernels import block_kernel, row_kernel
from alignkit.kernels.products import add_product, project, states

LANES, WARPS = 512, 16
"""Of the row kernel; a lane reads 16 bytes at a time."""
BLOCK, BLOCK_WARPS = 2048, 8
"""Columns that a program of the block kernel holds at once."""
LONG_ROW = 100_000
"""Columns from which one row a processor, and not two, is all that the cache holds."""
MOST_TOKENS = 2**16
"""Rows of one product of a trained head's gradient; of more, products are added up in float32."""
NARROWEST_BLOCK = 512
"""Columns of a block of a trained head's gradient at least."""


def chunks(weight: Tensor, *, gradient: bool) -> Chunks:
    """The plan of `sweep`, with or without the hidden states' gradient."""
    wide, narrow = logits_dtype(weight).itemsize, weight.element_size()
    width = weight.size(1)
    work = Work(
        weight.size(0), (width,), (width,) * gradient, buffer_bytes=wide, moved_bytes=wide + narrow * gradient
    )
    return plan(work, cost.BUFFER_BYTES, Device(processors(weight)))


def sweep(operands: Operands, labels: Tensor, request: Request) -> Swept:
    """One pass over the vocabulary; see `Engine.sweep`."""
    hidden, weight, bias, _ = operands
    values = request.empty_values(labels)
    picked, lse = (torch.empty_like(values["logps"]) for _ in range(2))
    to_hidden = (
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if request.hidden_gradient else None
    )
    plan_ = chunks(weight, gradient=request.hidden_gradient)
    buffer = _buffer(weight, min(plan_.rows, hidden.size(0)), weight.size(0))
    bias = _padded(bias, buffer.size(1))
    for part in plan_.spans(hidden.size(0)):
        logits = buffer[: part.stop - part.start]
        gradient = logits.view(weight.dtype)
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
            GRADIENT=to_hidden is not None,
            LANES=LANES,
            VECTOR=16 // logits.element_size(),
            num_warps=WARPS,
        )
        if to_hidden is not None:
            states(gradient[:, : weight.size(0)], weight, to_hidden[part], plan_.splits)
    return Swept(values, Found(picked, lse), to_hidden)


def head_gradient(
    operands: Operands, labels: Tensor, found: Found, upstream: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The logits again, as gradients, times the hidden states; see `Engine.head_gradient`."""
    hidden, weight, bias, _ = operands
    count, vocabulary = hidden.size(0), weight.size(0)
    tokens = [slice(start, min(start + MOST_TOKENS, count)) for start in range(0, count, MOST_TOKENS)]
    # one product a block is written in the weight's own dtype, several are added up
    dtype = weight.dtype if len(tokens) == 1 else torch.promote_types(weight.dtype, torch.float32)
    grad_weight = (torch.empty_like if tokens else torch.zeros_like)(weight, dtype=dtype)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    rows = min(count, MOST_TOKENS)
    width = max(NARROWEST_BLOCK, cost.BUFFER_BYTES // max(1, rows * logits_dtype(weight).itemsize))
    width = min(padded(vocabulary), width // padded(1) * padded(1))
    buffer = _buffer(weight, rows, width)
    for start in range(0, vocabulary, width):
        columns = slice(start, min(start + width, vocabulary))
        for part in tokens:
            gradient = _block_gradient(operands, labels, found.lse, upstream, part, columns, buffer)
            if len(tokens) == 1:
                torch.mm(gradient.T, hidden, out=grad_weight[columns])
            else:
                add_product(grad_weight[columns], gradient.T, hidden[part], fresh=part.start == 0)
            if grad_bias is not None:
                grad_bias[columns] += gradient.sum(dim=0, dtype=torch.float32)
    return grad_weight, grad_bias


def _block_gradient(
    operands: Operands,
    labels: Tensor,
    lse: Tensor,
    upstream: Tensor,
    part: slice,
    columns: slice,
    buffer: Tensor,
) -> Tensor:
    """The loss's gradient to the products of some tokens with some columns of the head, in the weight's dtype."""
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
    """Room for logits, each row as long as `padded` makes it."""
    return weight.new_empty(rows, padded(columns), dtype=logits_dtype(weight))


def _padded(bias: Tensor | None, width: int) -> Tensor | None:
    """As long as a buffer's rows, since the kernels read it beside them."""
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
    """Contiguous, since kernels step by one; None stands for a pointer that a kernel does not follow."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _output(value: Tensor) -> Tensor:
    """The tensor as a kernel can write it: bool as bytes."""
    return value.view(torch.int8) if value.dtype == torch.bool else value


ENGINE = Engine(sweep, head_gradient)
