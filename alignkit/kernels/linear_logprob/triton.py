"""`linear_logprob` on GPUs: for some rows at a time, the products by cuBLAS, then one kernel over each row.

Products [c, V] are in the weight's dtype, as the model's own logits would be; the statistics kernel reads them once,
the gradient kernel turns them in place into what multiplies the head again. Products are what takes the time, so the
buffer is as large as a full wave of them needs and no larger than BUFFER_BYTES.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alignkit.kernels.head import Operands
from alignkit.kernels.head_triton import SMALLEST, load_logits, temper
from alignkit.kernels.linear_logprob import cost
from alignkit.kernels.linear_logprob.records import OPTIONAL, Engine, Found, Request, Swept
from alignkit.kernels.products import Scratch, add_product, spans

MULTIPLE = 128
"""Rows of a buffer divide by a product's tile, so that no wave is partly empty."""
BLOCK = 4096
"""Columns that a program holds at once."""
WARPS = 8


@triton.jit
def statistics(
    products_ptr,
    products_stride,
    bias_ptr,
    labels_ptr,
    picked_ptr,
    lse_ptr,
    logps_ptr,
    entropy_ptr,
    top1_ptr,
    confidence_ptr,
    vocabulary,
    scale,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    TOP1: tl.constexpr,
    CONFIDENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program, one sweep: the label's logit, logsumexp, log-prob, and the requested outputs.

    Sums are of e = exp(x - largest so far) and, for the entropy, of e (x - largest so far).
    """
    row = tl.program_id(0).to(tl.int64)
    products_ptr += row * products_stride
    label = tl.load(labels_ptr + row)
    largest = tl.full((), SMALLEST, tl.float32)
    before_label = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)
    picked = tl.full((), 0.0, tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x, _ = load_logits(products_ptr, bias_ptr, columns, inside, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        x = temper(x, temperature)
        picked += tl.sum(tl.where(columns == label, x, 0.0))
        if TOP1:
            before_label = tl.maximum(before_label, tl.max(tl.where(columns < label, x, float("-inf"))))
        rising = tl.maximum(largest, tl.max(x))
        shrink = tl.exp(largest - rising)
        distance = x - rising
        e = tl.where(inside, tl.exp(distance), 0.0)
        if ENTROPY:
            weighted = shrink * (weighted + (largest - rising) * total) + tl.sum(e * distance)
        total = shrink * total + tl.sum(e)
        largest = rising
    tl.store(picked_ptr + row, picked)
    tl.store(lse_ptr + row, largest + tl.log(total))
    tl.store(logps_ptr + row, (picked - largest) - tl.log(total))
    if ENTROPY:
        tl.store(entropy_ptr + row, tl.log(total) - weighted / total)
    if TOP1:
        tl.store(top1_ptr + row, (picked >= largest) & (picked > before_label))
    if CONFIDENCE:
        tl.store(confidence_ptr + row, 1 / total)


@triton.jit
def to_gradient(
    products_ptr,
    products_stride,
    bias_ptr,
    labels_ptr,
    lse_ptr,
    upstream_ptr,
    vocabulary,
    scale,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row a program, in place: products to upstream ([v = label] - p) slope scale / temperature."""
    row = tl.program_id(0).to(tl.int64)
    products_ptr += row * products_stride
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    x, slope = load_logits(products_ptr, bias_ptr, columns, inside, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    p = tl.exp(temper(x, temperature) - tl.load(lse_ptr + row))
    gradient = tl.where(columns == tl.load(labels_ptr + row), 1.0, 0.0) - p
    gradient *= slope * (scale / temperature)
    if HAS_UPSTREAM:
        gradient *= tl.load(upstream_ptr + row)
    tl.store(products_ptr + columns, gradient.to(products_ptr.dtype.element_ty), mask=inside)


def sweep(operands: Operands, labels: Tensor, request: Request) -> Swept:
    """One pass over the vocabulary; see `Engine.sweep`."""
    hidden, weight, bias, _ = operands
    values = request.empty_values(labels)
    picked, lse = (torch.empty_like(values["logps"]) for _ in range(2))
    gradient = (
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if request.hidden_gradient else None
    )
    scratch = Scratch(hidden.device, weight.dtype)
    for part in _parts(hidden.size(0), weight):
        products = _products(hidden[part], weight, scratch)
        statistics[(products.size(0),)](
            products,
            products.stride(0),
            *_pointers(bias, labels[part], picked[part], lse[part], values["logps"][part]),
            *(_output(values[name][part]) if name in values else None for name in OPTIONAL),
            **{name.upper(): name in values for name in OPTIONAL},
            **_of_head(operands),
        )
        if gradient is not None:
            _to_gradient(products, labels[part], lse[part], None, operands)
            torch.mm(products, weight, out=gradient[part])
    return Swept(values, Found(picked, lse), gradient)


def head_gradient(
    operands: Operands, labels: Tensor, found: Found, upstream: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The second pass: products again, as gradients, times the hidden states; see `Engine.head_gradient`."""
    hidden, weight, bias, _ = operands
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    scratch = Scratch(hidden.device, weight.dtype)
    for part in _parts(hidden.size(0), weight):
        gradient = _products(hidden[part], weight, scratch)
        _to_gradient(gradient, labels[part], found.lse[part], upstream[part], operands)
        add_product(grad_weight, gradient.T, hidden[part])
        if grad_bias is not None:
            grad_bias += gradient.sum(dim=0, dtype=torch.float32)
    return grad_weight, grad_bias


def _parts(count: int, weight: Tensor) -> list[slice]:
    fitting = cost.BUFFER_BYTES // (weight.element_size() * weight.size(0))
    return spans(count, max(1, fitting // MULTIPLE * MULTIPLE or fitting))


def _products(hidden: Tensor, weight: Tensor, scratch: Scratch) -> Tensor:
    """Each row begins at a multiple of 16, whatever the vocabulary, for wide loads."""
    rows, vocabulary = hidden.size(0), weight.size(0)
    buffer = scratch.take("products", rows, -(-vocabulary // 16) * 16)
    return torch.mm(hidden, weight.T, out=buffer[:, :vocabulary])


def _to_gradient(
    products: Tensor, labels: Tensor, lse: Tensor, upstream: Tensor | None, operands: Operands
) -> None:
    to_gradient[(products.size(0), triton.cdiv(products.size(1), BLOCK))](
        products,
        products.stride(0),
        *_pointers(operands.bias, labels, lse, upstream),
        HAS_UPSTREAM=upstream is not None,
        **_of_head(operands),
    )


def _of_head(operands: Operands) -> dict[str, Any]:
    transform = operands.transform
    return {
        "vocabulary": operands.weight.size(0),
        "scale": float(transform.scale),
        "softcap": float(transform.softcap or 1.0),
        "temperature": float(transform.temperature),
        "HAS_BIAS": operands.bias is not None,
        "HAS_SOFTCAP": transform.softcap is not None,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }


def _pointers(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Contiguous, since kernels step by one; None stands for a pointer that a kernel does not follow."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _output(value: Tensor) -> Tensor:
    """The tensor as a kernel can write it: bool as bytes."""
    return value.view(torch.int8) if value.dtype == torch.bool else value


ENGINE = Engine(sweep, head_gradient)
