"""GPU row kernels of `linear_divergence`: all values of a row of both models' logits, and the gradient of one side.

Sums are kept relative to the largest logits so far, a and b, before the temperature. Let u = (x - a) / temperature
and v = (y - b) / temperature. The sums of q have weights e^u and those of p weights e^v. They are sums of 1, of u or
v (for the entropy) and of v - u (for the KL), so that no two large numbers cancel. When a grows by d, u falls by
d / temperature, and `moved` corrects the sums.

Rows are read up to a width that is a multiple of 16, so that loads and stores are 16 bytes wide for any vocabulary.
"""

import triton
import triton.language as tl

from alignkit.kernels.head_triton import load_logits

LOWEST: tl.constexpr = tl.constexpr(-1e38)
"""A finite number below any logit, so that the first call of `moved` shifts empty sums by a finite amount."""
NOWHERE: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def expect(weights, values):
    """Sum weights * values over each lane. Where a weight is 0 the term is 0, even for infinite values."""
    return tl.sum(tl.where(weights == 0, 0.0, weights * values), axis=1)


@triton.jit
def moved(factor, total, weight, shift):
    """Correct a sum of weight * value after all values moved by `shift` and all weights shrank by `factor`."""
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
def values_kernel(  # noqa: PLR0915 - one pass
    student_ptr,
    teacher_ptr,
    student_stride,
    teacher_stride,
    student_bias_ptr,
    teacher_bias_ptr,
    labels_ptr,
    out_ptr,
    rows,
    vocabulary,
    width,
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
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Compute the STATISTICS of this program's rows. `cool` = 1 / temperature.

    AT_ONE: sums at temperature 1 are needed too. Each of LANES lanes keeps its own sums; the lanes are combined once
    per row.
    """
    column = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    lane_start = tl.arange(0, LANES) * VECTOR
    for r in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.zeros((), tl.int64) + r
        student, teacher = student_ptr + row * student_stride, teacher_ptr + row * teacher_stride
        a, b = tl.full([LANES], LOWEST, tl.float32), tl.full([LANES], LOWEST, tl.float32)
        empty = tl.zeros([LANES], tl.float32)
        sum_q, sum_p, own_q, own_p, gap_q, gap_p = empty, empty, empty, empty, empty, empty
        one_q, one_p, own_one_q, own_one_p = empty, empty, empty, empty
        first_q, first_p = tl.full([LANES], NOWHERE, tl.int32), tl.full([LANES], NOWHERE, tl.int32)
        for start in range(0, width, LANES * VECTOR):
            at = start + column
            x, _ = load_logits(
                student,
                student_bias_ptr,
                at,
                at < width,
                student_scale,
                student_softcap,
                STUDENT_BIAS,
                STUDENT_SOFTCAP,
            )
            y, _ = load_logits(
                teacher,
                teacher_bias_ptr,
                at,
                at < width,
                teacher_scale,
                teacher_softcap,
                TEACHER_BIAS,
                TEACHER_SOFTCAP,
            )
            x = tl.where(at < vocabulary, x, -float("inf"))
            y = tl.where(at < vocabulary, y, -float("inf"))
            if TOP1:
                high, where = tl.max(x, axis=1, return_indices=True)
                first_q = tl.where(high > a, start + lane_start + where, first_q)
                new_a = tl.maximum(a, high)
                high, where = tl.max(y, axis=1, return_indices=True)
                first_p = tl.where(high > b, start + lane_start + where, first_p)
                new_b = tl.maximum(b, high)
            else:
                new_a, new_b = tl.maximum(a, tl.max(x, axis=1)), tl.maximum(b, tl.max(y, axis=1))
            rise_a, rise_b = new_a - a, new_b - b
            a, b = new_a, new_b
            x, y = x - a[:, None], y - b[:, None]
            u, v = x * cool, y * cool
            e, f = tl.exp(u), tl.exp(v)
            shrink_a, shrink_b = tl.exp(-rise_a * cool), tl.exp(-rise_b * cool)
            apart = (rise_a - rise_b) * cool
            own_q = moved(shrink_a, own_q, sum_q, -rise_a * cool) + expect(e, u)
            own_p = moved(shrink_b, own_p, sum_p, -rise_b * cool) + expect(f, v)
            gap_q = moved(shrink_a, gap_q, sum_q, apart) + expect(e, v - u)
            gap_p = moved(shrink_b, gap_p, sum_p, apart) + expect(f, v - u)
            sum_q = sum_q * shrink_a + tl.sum(e, axis=1)
            sum_p = sum_p * shrink_b + tl.sum(f, axis=1)
            if AT_ONE:
                e, f = tl.exp(x), tl.exp(y)
                shrink_a, shrink_b = tl.exp(-rise_a), tl.exp(-rise_b)
                if ENTROPY_AT_ONE:
                    own_one_q = moved(shrink_a, own_one_q, one_q, -rise_a) + expect(e, x)
                    own_one_p = moved(shrink_b, own_one_p, one_p, -rise_b) + expect(f, y)
                one_q = one_q * shrink_a + tl.sum(e, axis=1)
                one_p = one_p * shrink_b + tl.sum(f, axis=1)
        largest_q, largest_p = tl.max(a, axis=0), tl.max(b, axis=0)
        rise_a, rise_b = largest_q - a, largest_p - b
        shrink_a, shrink_b = tl.exp(-rise_a * cool), tl.exp(-rise_b * cool)
        apart = (rise_a - rise_b) * cool
        row_own_q = tl.sum(moved(shrink_a, own_q, sum_q, -rise_a * cool), axis=0)
        row_own_p = tl.sum(moved(shrink_b, own_p, sum_p, -rise_b * cool), axis=0)
        row_gap_q = tl.sum(moved(shrink_a, gap_q, sum_q, apart), axis=0)
        row_gap_p = tl.sum(moved(shrink_b, gap_p, sum_p, apart), axis=0)
        row_q, row_p = tl.sum(sum_q * shrink_a, axis=0), tl.sum(sum_p * shrink_b, axis=0)
        row_one_q, row_one_p, row_own_one_q, row_own_one_p = row_q, row_p, row_own_q, row_own_p
        if AT_ONE:
            shrink_a, shrink_b = tl.exp(-rise_a), tl.exp(-rise_b)
            row_own_one_q = tl.sum(moved(shrink_a, own_one_q, one_q, -rise_a), axis=0)
            row_own_one_p = tl.sum(moved(shrink_b, own_one_p, one_p, -rise_b), axis=0)
            row_one_q, row_one_p = tl.sum(one_q * shrink_a, axis=0), tl.sum(one_p * shrink_b, axis=0)
        label = tl.load(labels_ptr + row)
        inside = label < vocabulary
        label_q, _ = load_logits(
            student,
            student_bias_ptr,
            label,
            inside,
            student_scale,
            student_softcap,
            STUDENT_BIAS,
            STUDENT_SOFTCAP,
        )
        label_p, _ = load_logits(
            teacher,
            teacher_bias_ptr,
            label,
            inside,
            teacher_scale,
            teacher_softcap,
            TEACHER_BIAS,
            TEACHER_SOFTCAP,
        )
        hit_q, hit_p = 0.0, 0.0
        if TOP1:
            hit_q = (tl.min(tl.where(a == largest_q, first_q, NOWHERE), axis=0) == label).to(tl.float32)
            hit_p = (tl.min(tl.where(b == largest_p, first_p, NOWHERE), axis=0) == label).to(tl.float32)
        to = out_ptr + row
        store_side(
            to,
            rows,
            largest_q,
            row_q,
            row_one_q,
            row_own_q,
            row_own_one_q,
            label_q,
            hit_q,
            AT_ONE,
            ENTROPY_AT_ONE,
        )
        to += 6 * rows
        store_side(
            to,
            rows,
            largest_p,
            row_p,
            row_one_p,
            row_own_p,
            row_own_one_p,
            label_p,
            hit_p,
            AT_ONE,
            ENTROPY_AT_ONE,
        )
        to += 6 * rows
        log_q, log_p = tl.log(row_q), tl.log(row_p)
        tl.store(to, row_gap_p / row_p - (log_p - log_q))
        tl.store(to + rows, (log_p - log_q) - row_gap_q / row_q)


@triton.jit
def gradient_kernel(
    own_ptr,
    other_ptr,
    own_stride,
    other_stride,
    own_bias_ptr,
    other_bias_ptr,
    labels_ptr,
    own_statistics_ptr,
    other_statistics_ptr,
    coefficients_ptr,
    out_ptr,
    out_stride,
    rows,
    vocabulary,
    width,
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
    """Compute the gradient to one side's products from its `LogitGradient`, for this program's rows.

    The output may overwrite the products. Statistics start at `*_max`.
    """
    for r in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.zeros((), tl.int64) + r
        own_row, other_row = own_ptr + row * own_stride, other_ptr + row * other_stride
        to = out_ptr + row * out_stride
        largest, log_total = tl.load(own_statistics_ptr + row), tl.load(own_statistics_ptr + rows + row)
        log_one = tl.load(own_statistics_ptr + 2 * rows + row)
        other_largest = tl.load(other_statistics_ptr + row)
        other_log_total = tl.load(other_statistics_ptr + rows + row)
        constant = tl.load(coefficients_ptr + row)
        toward = tl.load(coefficients_ptr + rows + row)
        away = tl.load(coefficients_ptr + 2 * rows + row)
        label_weight = tl.load(coefficients_ptr + 3 * rows + row)
        label = tl.load(labels_ptr + row)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x, slope = load_logits(
                own_row, own_bias_ptr, at, at < width, own_scale, own_softcap, OWN_BIAS, OWN_SOFTCAP
            )
            y, _ = load_logits(
                other_row,
                other_bias_ptr,
                at,
                at < width,
                other_scale,
                other_softcap,
                OTHER_BIAS,
                OTHER_SOFTCAP,
            )
            x -= largest
            own = x * cool - log_total
            other = (y - other_largest) * cool - other_log_total
            prob = tl.exp(own)
            inner = tl.full(x.shape, 0.0, tl.float32) + constant
            if AWAY:
                inner += away * (own - other)
            total = tl.where(prob == 0, 0.0, prob * inner)
            if TOWARD:
                total -= toward * tl.exp(other)
            total *= cool
            if AT_ONE:
                total += label_weight * tl.exp(x - log_one)
                total -= tl.where(at == label, label_weight, 0.0)
            total = tl.where(at < vocabulary, total * slope * own_scale, 0.0)
            # 16-bit gradients may lie in the first half of their row's logits: see linear_logprob's row kernel
            tl.debug_barrier()
            tl.store(to + at, total.to(out_ptr.dtype.element_ty), mask=at < width)
