"""`linear_logprob` on GPUs: for some rows at a time, the products by cuBLAS, then one kernel over each row.

Products [c, V] are in the weight's dtype, as the model's own logits would be; the statistics kernel reads them once,
the gradient kernel turns them in place into what multiplies the head again. Products are what takes the time, so the
buffer is as large as a full wave of them needs and no larger than BUFFER_BYTES.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from alignkit.kernels.heads import Head, Scratch, add_product, spans
from alignkit.kernels.linear_logprob import Found, Swept, Wanted
from alignkit.kernels.triton import rows as kernels

BUFFER_BYTES = 640 * 2**20
"""Of the products: 2,176 rows at a vocabulary of 151,936 in bfloat16."""
MULTIPLE = 128
"""Rows of a buffer divide by a product's tile, so that no wave is partly empty."""
BLOCK = 4096
"""Columns that a program holds at once."""
WARPS = 8


def sweep(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, head: Head, wanted: Wanted
) -> Swept:
    """One pass over the vocabulary; see `Engine.sweep`."""
    count = hidden.size(0)

    def empty(dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=hidden.device)

    found = Swept(
        picked=empty(torch.float32),
        lse=empty(torch.float32),
        logps=empty(torch.float32),
        entropy=empty(torch.float32) if wanted.entropy else None,
        top1=empty(torch.bool) if wanted.top1 else None,
        direction=torch.empty_like(hidden, memory_format=torch.contiguous_format)
        if wanted.direction
        else None,
    )
    scratch = Scratch(hidden.device, weight.dtype)
    for part in _parts(count, weight):
        products = _products(hidden[part], weight, scratch)
        kernels.statistics[(products.size(0),)](
            products,
            products.stride(0),
            *_pointers(bias, labels[part], found.picked[part], found.lse[part], found.logps[part]),
            *_pointers(found.entropy if found.entropy is None else found.entropy[part]),
            *_pointers(found.top1 if found.top1 is None else found.top1[part].view(torch.int8)),
            ENTROPY=wanted.entropy,
            TOP1=wanted.top1,
            **_of_head(weight, bias, head),
        )
        if found.direction is not None:
            _to_gradient(products, bias, labels[part], found.lse[part], None, weight, head)
            torch.mm(products, weight, out=found.direction[part])
    return found


def head_gradient(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    head: Head,
    found: Found,
    upstream: Tensor,
    kept: Any,  # noqa: ARG001 - the engine's protocol; nothing is kept here
) -> tuple[Tensor, Tensor | None]:
    """The second pass: products again, as gradients, times the hidden states; see `Engine.head_gradient`."""
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    scratch = Scratch(hidden.device, weight.dtype)
    for part in _parts(hidden.size(0), weight):
        gradient = _products(hidden[part], weight, scratch)
        _to_gradient(gradient, bias, labels[part], found.lse[part], upstream[part], weight, head)
        add_product(grad_weight, gradient.T, hidden[part], dtype=weight.dtype)
        if grad_bias is not None:
            grad_bias += gradient.sum(dim=0, dtype=torch.float32)
    return grad_weight, grad_bias


def _parts(count: int, weight: Tensor) -> list[slice]:
    fitting = BUFFER_BYTES // (weight.element_size() * weight.size(0))
    return spans(count, max(1, fitting // MULTIPLE * MULTIPLE or fitting))


def _products(hidden: Tensor, weight: Tensor, scratch: Scratch) -> Tensor:
    """Each row begins at a multiple of 16, whatever the vocabulary, for wide loads."""
    rows, vocabulary = hidden.size(0), weight.size(0)
    buffer = scratch.take("products", rows, -(-vocabulary // 16) * 16)
    return torch.mm(hidden, weight.T, out=buffer[:, :vocabulary])


def _to_gradient(
    products: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    upstream: Tensor | None,
    weight: Tensor,
    head: Head,
) -> None:
    kernels.to_gradient[(products.size(0), triton.cdiv(weight.size(0), BLOCK))](
        products,
        products.stride(0),
        *_pointers(bias, labels, lse, upstream),
        HAS_UPSTREAM=upstream is not None,
        **_of_head(weight, bias, head),
    )


def _of_head(weight: Tensor, bias: Tensor | None, head: Head) -> dict[str, Any]:
    return {
        "vocabulary": weight.size(0),
        "scale": float(head.scale),
        "softcap": float(head.softcap or 1.0),
        "temperature": float(head.temperature),
        "HAS_BIAS": bias is not None,
        "HAS_SOFTCAP": head.softcap is not None,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }


def _pointers(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Contiguous, since kernels step by one; None stands for a pointer that a kernel does not follow."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
