"""`linear_divergence` on GPUs: one kernel reads a row of both models' logits once and has every value, another makes
the gradient to the products of one side.

Sums are kept relative to the running largest logits a and b, before the temperature. With u = (x - a) / temperature
and v = (y - b) / temperature, q's sums are over e^u and p's over e^v, of 1, of u or v (entropy) and of v - u (KL), so
that no two large numbers cancel. When a grows by d, u falls by d / temperature and the sums follow; see `moved`.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from alignkit.kernels.head import Operands
from alignkit.kernels.head_triton import load_logits
from alignkit.kernels.linear_divergence.records import Name, Request, logit_gradient

VALUES_BLOCK, VALUES_WARPS = 2048, 8
GRADIENT_BLOCK, GRADIENT_WARPS = 1024, 4

STATISTICS = (
    *(
        "student_max",
        "student_log_sum",
        "student_log_sum_one",
        "student_entropy",
        "student_ce",
        "student_top1",
    ),
    *(
        "teacher_max",
        "teacher_log_sum",
        "teacher_log_sum_one",
        "teacher_entropy",
        "teacher_ce",
        "teacher_top1",
    ),
    *("forward_kl", "reverse_kl"),
)
"""What `values_kernel` writes, [14, c], in this order. The sums of e^u, and of e^(x - a) at temperature 1."""


@triton.jit
def expect(weights, values):
    """sum weights * values; where a weight is 0 the term is 0, also for infinite values."""
    return tl.sum(tl.where(weights == 0, 0.0, weights * values), axis=0)


@triton.jit
def moved(factor, total, weight, shift):
    """A sum of weight * value after its values moved by `shift` and its weights shrank by `factor`."""
    return tl.where(factor > 0, factor * (total + weight * shift), 0.0)


@triton.jit
def store_side(
    out_ptr,
    stride,
    largest,
    total,
    total_one,
    own,
    own_one,
    label_logit,
    hit,
    AT_ONE: tl.constexpr,
    ENTROPY_AT_ONE: tl.constexpr,
):
    """Write one side's six statistics."""
    log_total = tl.log(total)
    log_one = tl.log(total_one) if AT_ONE else log_total
    entropy = log_one - own_one / total_one if ENTROPY_AT_ONE else log_total - own / total
    tl.store(out_ptr, largest)
    tl.store(out_ptr + stride, log_total)
    tl.store(out_ptr + 2 * stride, log_one)
    tl.store(out_ptr + 3 * stride, entropy)
    tl.store(out_ptr + 4 * stride, log_one - (label_logit - largest))
    tl.store(out_ptr + 5 * stride, hit)


@triton.jit
def values_kernel(
    student_ptr,
    teacher_ptr,
    student_bias_ptr,
    teacher_bias_ptr,
    labels_ptr,
    out_ptr,
    stride,
    rows,
    vocabulary,
    student_scale,
    teacher_scale,
    student_softcap,
    teacher_softcap,
    cool,
    STUDENT_BIAS: tl.constexpr,
    TEACHER_BIAS: tl.constexpr,
    STUDENT_SOFTCAP: tl.constexpr,
    TEACHER_SOFTCAP: tl.constexpr,
    AT_ONE: tl.constexpr,
    ENTROPY_AT_ONE: tl.constexpr,
    TOP1: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row's STATISTICS. `cool` = 1 / temperature; AT_ONE: temperature 1 is another one and is needed."""
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * stride
    teacher_ptr += row * stride
    label = tl.load(labels_ptr + row)
    # below any logit and finite: the first move is one of empty sums by a finite shift
    a, b = -1e38, -1e38
    sum_q, sum_p, own_q, own_p, gap_q, gap_p = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    one_q, one_p, own_one_q, own_one_p = 0.0, 0.0, 0.0, 0.0
    label_q, label_p, hit_q, hit_p = 0.0, 0.0, 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < vocabulary
        x, _ = load_logits(
            student_ptr,
            student_bias_ptr,
            at,
            inside,
            student_scale,
            student_softcap,
            STUDENT_BIAS,
            STUDENT_SOFTCAP,
        )
        y, _ = load_logits(
            teacher_ptr,
            teacher_bias_ptr,
            at,
            inside,
            teacher_scale,
            teacher_softcap,
            TEACHER_BIAS,
            TEACHER_SOFTCAP,
        )
        label_q += tl.sum(tl.where(at == label, x, 0.0), axis=0)
        label_p += tl.sum(tl.where(at == label, y, 0.0), axis=0)
        new_a, new_b = tl.maximum(a, tl.max(x, axis=0)), tl.maximum(b, tl.max(y, axis=0))
        if TOP1:
            hit_q = tl.where(new_a > a, (start + tl.argmax(x, axis=0) == label).to(tl.float32), hit_q)
            hit_p = tl.where(new_b > b, (start + tl.argmax(y, axis=0) == label).to(tl.float32), hit_p)
        rise_a, rise_b = new_a - a, new_b - b
        a, b = new_a, new_b
        u, v = (x - a) * cool, (y - b) * cool
        e, f = tl.exp(u), tl.exp(v)
        shrink_a, shrink_b = tl.exp(-rise_a * cool), tl.exp(-rise_b * cool)
        apart = (rise_a - rise_b) * cool
        own_q = moved(shrink_a, own_q, sum_q, -rise_a * cool) + expect(e, u)
        own_p = moved(shrink_b, own_p, sum_p, -rise_b * cool) + expect(f, v)
        gap_q = moved(shrink_a, gap_q, sum_q, apart) + expect(e, v - u)
        gap_p = moved(shrink_b, gap_p, sum_p, apart) + expect(f, v - u)
        sum_q = sum_q * shrink_a + tl.sum(e, axis=0)
        sum_p = sum_p * shrink_b + tl.sum(f, axis=0)
        if AT_ONE:
            e, f = tl.exp(x - a), tl.exp(y - b)
            shrink_a, shrink_b = tl.exp(-rise_a), tl.exp(-rise_b)
            own_one_q = moved(shrink_a, own_one_q, one_q, -rise_a) + expect(e, x - a)
            own_one_p = moved(shrink_b, own_one_p, one_p, -rise_b) + expect(f, y - b)
            one_q = one_q * shrink_a + tl.sum(e, axis=0)
            one_p = one_p * shrink_b + tl.sum(f, axis=0)
    out_ptr += row
    store_side(out_ptr, rows, a, sum_q, one_q, own_q, own_one_q, label_q, hit_q, AT_ONE, ENTROPY_AT_ONE)
    out_ptr += 6 * rows
    store_side(out_ptr, rows, b, sum_p, one_p, own_p, own_one_p, label_p, hit_p, AT_ONE, ENTROPY_AT_ONE)
    out_ptr += 6 * rows
    log_q, log_p = tl.log(sum_q), tl.log(sum_p)
    tl.store(out_ptr, gap_p / sum_p - (log_p - log_q))
    tl.store(out_ptr + rows, (log_p - log_q) - gap_q / sum_q)


@triton.jit
def gradient_kernel(
    own_ptr,
    other_ptr,
    own_bias_ptr,
    other_bias_ptr,
    labels_ptr,
    own_statistics_ptr,
    other_statistics_ptr,
    coefficients_ptr,
    out_ptr,
    stride,
    out_stride,
    rows,
    vocabulary,
    own_scale,
    other_scale,
    own_softcap,
    other_softcap,
    cool,
    OWN_BIAS: tl.constexpr,
    OTHER_BIAS: tl.constexpr,
    OWN_SOFTCAP: tl.constexpr,
    OTHER_SOFTCAP: tl.constexpr,
    TOWARD: tl.constexpr,
    AWAY: tl.constexpr,
    AT_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of a row: `LogitGradient` as the gradient to its side's products. Statistics start at `*_max`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocabulary
    own_statistics_ptr += row
    other_statistics_ptr += row
    coefficients_ptr += row
    x, slope = load_logits(
        own_ptr + row * stride, own_bias_ptr, at, inside, own_scale, own_softcap, OWN_BIAS, OWN_SOFTCAP
    )
    y, _ = load_logits(
        other_ptr + row * stride,
        other_bias_ptr,
        at,
        inside,
        other_scale,
        other_softcap,
        OTHER_BIAS,
        OTHER_SOFTCAP,
    )
    x -= tl.load(own_statistics_ptr)
    own = x * cool - tl.load(own_statistics_ptr + rows)
    other = (y - tl.load(other_statistics_ptr)) * cool - tl.load(other_statistics_ptr + rows)
    prob = tl.exp(own)
    inner = tl.full(x.shape, 0.0, tl.float32) + tl.load(coefficients_ptr)
    if AWAY:
        inner += tl.load(coefficients_ptr + 2 * rows) * (own - other)
    total = tl.where(prob == 0, 0.0, prob * inner)
    if TOWARD:
        total -= tl.load(coefficients_ptr + rows) * tl.exp(other)
    total *= cool
    if AT_ONE:
        label_weight = tl.load(coefficients_ptr + 3 * rows)
        total += label_weight * tl.exp(x - tl.load(own_statistics_ptr + 2 * rows))
        total -= tl.where(at == tl.load(labels_ptr + row), label_weight, 0.0)
    total *= slope * own_scale
    tl.store(out_ptr + row * out_stride + at, total.to(out_ptr.dtype.element_ty), mask=inside)


class TritonRows:
    """`records.RowBlock` in Triton."""

    small_blocks: ClassVar[bool] = False

    def __init__(
        self,
        products: Mapping[Name, Tensor],
        labels: Tensor,
        sides: Mapping[Name, Operands],
        request: Request,
    ) -> None:
        self.products, self.labels, self.sides = products, labels.contiguous(), sides
        self.request = request
        student, teacher = sides["student"], sides["teacher"]
        count, self.vocabulary = products["student"].shape
        self.statistics = torch.empty(len(STATISTICS), count, dtype=torch.float32, device=labels.device)
        values_kernel[(count,)](
            products["student"],
            products["teacher"],
            _bias(student, self.statistics),
            _bias(teacher, self.statistics),
            self.labels,
            self.statistics,
            products["student"].stride(0),
            count,
            self.vocabulary,
            float(student.transform.scale),
            float(teacher.transform.scale),
            float(student.transform.softcap or 1.0),
            float(teacher.transform.softcap or 1.0),
            1 / request.temperature,
            STUDENT_BIAS=student.bias is not None,
            TEACHER_BIAS=teacher.bias is not None,
            STUDENT_SOFTCAP=student.transform.softcap is not None,
            TEACHER_SOFTCAP=teacher.transform.softcap is not None,
            AT_ONE=not request.plain and (request.labelled or request.separate_entropy),
            ENTROPY_AT_ONE=request.separate_entropy,
            TOP1=request.top1,
            BLOCK=VALUES_BLOCK,
            num_warps=VALUES_WARPS,
        )
        self.values = dict(zip(STATISTICS, self.statistics, strict=True))
        self.values["teacher_reverse_kl"] = self.values["reverse_kl"]

    def gradient(self, side: Name, weights: Mapping[str, Tensor], out: Tensor) -> None:
        """See `RowBlock.gradient`."""
        other: Name = "teacher" if side == "student" else "student"
        own_head, other_head = self.sides[side].transform, self.sides[other].transform
        found = logit_gradient(side, weights, self.values)
        nothing = torch.zeros_like(self.statistics[0])
        gradient_kernel[(out.size(0), triton.cdiv(self.vocabulary, GRADIENT_BLOCK))](
            self.products[side],
            self.products[other],
            _bias(self.sides[side], self.statistics),
            _bias(self.sides[other], self.statistics),
            self.labels,
            self._of(side),
            self._of(other),
            torch.stack([nothing if x is None else x.float() for x in found]),
            out,
            self.products[side].stride(0),
            out.stride(0),
            out.size(0),
            self.vocabulary,
            float(own_head.scale),
            float(other_head.scale),
            float(own_head.softcap or 1.0),
            float(other_head.softcap or 1.0),
            1 / self.request.temperature,
            OWN_BIAS=self.sides[side].bias is not None,
            OTHER_BIAS=self.sides[other].bias is not None,
            OWN_SOFTCAP=own_head.softcap is not None,
            OTHER_SOFTCAP=other_head.softcap is not None,
            TOWARD=found.toward is not None,
            AWAY=found.away is not None,
            AT_ONE=found.label is not None,
            BLOCK=GRADIENT_BLOCK,
            num_warps=GRADIENT_WARPS,
        )

    def _of(self, side: Name) -> Tensor:
        return self.statistics[STATISTICS.index(f"{side}_max") :]


def _bias(side: Operands, nothing: Tensor) -> Tensor:
    """The bias, or any tensor where there is none: the kernel does not read it then."""
    return nothing if side.bias is None else side.bias.contiguous()


ENGINE = TritonRows
