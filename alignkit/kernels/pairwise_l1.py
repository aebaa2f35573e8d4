"""L1 distances between the softmax rows of two heads, over blocks of the vocabulary.

With q_i and p_j the student's and the teacher's rows, softmax(logits / temperature), and s_ijv = sign(q_iv - p_jv):

    D_ij = sum_v |q_iv - p_jv|          R_ij = sum_v q_iv s_ijv

and for an upstream gradient U = dL/dD, at each side's own logits x over the temperature,

    student   dL/dx_iv =  q_iv (sum_j U_ij s_ijv - sum_j U_ij R_ij)
    teacher   dL/dx_jv = -p_jv (sum_i U_ij s_ijv - sum_i U_ij (R_ij - D_ij))

since sum_v p_jv s_ijv = R_ij - D_ij. R is what a softmax's gradient needs summed over the whole vocabulary; made in
the forward beside D, it leaves the backward a single pass. The forward takes two: log-sum-exps, then distances. A
block of each side's probabilities is all that exists of them at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit import checks
from alignkit.kernels.backend import Implementation, choose
from alignkit.kernels.heads import Head, autocast, gathered
from alignkit.kernels.sides import Side, accumulate, compute_dtype

TORCH_BLOCK_BYTES = 2**20
"""Size of one block of probabilities of the larger side, read once for every row: it must stay in a cache."""
NARROWEST_BLOCK = 256
"""Columns; with fewer, products become slow."""


class Tiles(NamedTuple):
    """The two operations on a block's probabilities q [n, b] and p [m, b] that cost n m b; all else is products."""

    distances: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
    """(q, p, whether R is wanted) -> the block's share of D [n, m], and of R [n, m] or None."""
    sign_sums: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(upstream [n, m], q, p) -> sum_j upstream_ij sign(q_iv - p_jv) [n, b]; the sign is 0 between equals."""
    block_bytes: int
    """Size of one block of probabilities of the larger side."""


def pairwise_l1(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    temperature: float = 2.0,
    implementation: Implementation | None = None,
) -> Tensor:
    """D [n, m], the L1 distance (0 to 2) of each student row's softmax(logits / temperature) to each teacher row's.

    Student hidden [n, Hs] and weight [Vs, Hs], teacher hidden [m, Ht] and weight [Vt, Ht], biases [Vs] and [Vt]; any
    float dtype (operands are rounded to it, or to autocast's; sums in float32, or float64 for float64 input).
    Vocabularies that differ by padding share their first min(Vs, Vt) columns; the others count for nothing. A bias
    of -inf removes a column. The soft cap is applied after the scale and before the temperature.

    Exact gradients to whatever requires them, of either side: give a frozen teacher without gradient. Where two
    probabilities are equal the subgradient is 0. Distances of a set to itself: pass the student's tensors on both
    sides, which does the work once. Raises ValueError for shapes that do not fit and temperature <= 0.
    """
    checks.positive("temperature", temperature)
    vocabulary = _check_shapes(student_hidden, student_weight, teacher_hidden, teacher_weight)
    given = (
        Side(student_hidden, student_weight, student_bias, Head(student_logit_scale, student_softcap)),
        Side(teacher_hidden, teacher_weight, teacher_bias, Head(teacher_logit_scale, teacher_softcap)),
    )
    for side, name in zip(given, ("student", "teacher"), strict=True):
        if side.bias is not None:
            checks.shaped(f"{name}_bias", side.bias, (side.weight.size(0),))
    student = _shared(given[0], vocabulary)
    teacher = student if _same(*given) else _shared(given[1], vocabulary)
    run = _IMPLEMENTATIONS[choose(student_hidden, implementation)]
    with torch.autocast(student_hidden.device.type, enabled=False):
        return run(student, teacher, temperature)


def _check_shapes(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> int:
    """The number of shared columns."""
    for name, hidden, weight in (
        ("student", student_hidden, student_weight),
        ("teacher", teacher_hidden, teacher_weight),
    ):
        if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1):
            raise ValueError(
                f"expected {name}_hidden [rows, H] and {name}_weight [V, H], "
                f"found {list(hidden.shape)} and {list(weight.shape)}"
            )
        if not weight.size(0):
            raise ValueError(f"expected {name}_weight [V, H] with V >= 1, found {list(weight.shape)}")
    return min(student_weight.size(0), teacher_weight.size(0))


def _same(one: Side, other: Side) -> bool:
    tensors = zip(one[:3], other[:3], strict=True)
    return all(left is right for left, right in tensors) and one.head == other.head


def _shared(side: Side, vocabulary: int) -> Side:
    """The operands in the products' dtype, without columns that are not shared."""
    hidden, weight, bias, head = side
    if weight.size(0) > vocabulary:  # else a slice would only cost a copy of the gradient
        weight, bias = weight[:vocabulary], None if bias is None else bias[:vocabulary]
    return Side(*autocast(hidden, weight), bias, head)


def _reference(student: Side, teacher: Side, temperature: float) -> Tensor:
    """All probabilities at once, autograd's gradients: for tests and for reading."""
    q, p = (torch.softmax(_logits(side) / temperature, dim=1) for side in (student, teacher))
    return torch.cdist(q, p, p=1)


def _logits(side: Side) -> Tensor:
    dtype = compute_dtype(side.weight)
    x = side.hidden.to(dtype) @ side.weight.to(dtype).T
    x = (x if side.bias is None else x + side.bias.to(dtype)) * side.head.scale
    return x if side.head.softcap is None else side.head.softcap * torch.tanh(x / side.head.softcap)


def _torch_distances(q: Tensor, p: Tensor, want_mass: bool) -> tuple[Tensor, Tensor | None]:  # noqa: FBT001
    """One student row at a time against the block of the teacher's, which stays in the cache: `torch.cdist` makes the
    same distances slower and nothing of R."""
    distances = q.new_empty(q.size(0), p.size(0))
    mass = torch.empty_like(distances) if want_mass else None
    difference, scratch = torch.empty_like(p), torch.empty_like(p)
    for i, row in enumerate(q):
        torch.sub(row, p, out=difference)
        if mass is not None:
            torch.sign(difference, out=scratch)
            torch.mv(scratch, row, out=mass[i])
        torch.sum(difference.abs_(), dim=1, out=distances[i])
    return distances, mass


def _torch_sign_sums(upstream: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """What autograd runs for `torch.cdist(q, p, p=1)`, which does not look at the distances (its last argument)."""
    if not p.size(0):
        return torch.zeros_like(q)
    return torch.ops.aten._cdist_backward(upstream, q, p, 1.0, upstream)  # noqa: SLF001


def _with_torch(student: Side, teacher: Side, temperature: float) -> Tensor:
    return _streamed(
        student, teacher, temperature, Tiles(_torch_distances, _torch_sign_sums, TORCH_BLOCK_BYTES)
    )


def _with_triton(student: Side, teacher: Side, temperature: float) -> Tensor:
    from alignkit.kernels.triton.pairwise_l1 import TILES

    return _streamed(student, teacher, temperature, TILES)


_IMPLEMENTATIONS: dict[Implementation, Callable[[Side, Side, float], Tensor]] = {
    "torch": _with_torch,
    "triton": _with_triton,
    "reference": _reference,
}


def _streamed(student: Side, teacher: Side, temperature: float, tiles: Tiles) -> Tensor:
    """`teacher` may be `student` itself: then all gradient goes through the student's arguments."""
    return _PairwiseL1.apply(*student, *teacher, temperature, tiles, teacher is student)


class _Rows:
    """One side's softmax rows, a block of columns at a time, and the way back from their gradient."""

    def __init__(self, side: Side, temperature: float) -> None:
        self.side, self.temperature = side, temperature
        self.dtype = compute_dtype(side.weight)
        self.lse = torch.full_like(side.hidden[:, 0], -torch.inf, dtype=self.dtype)

    def logits(self, columns: slice) -> tuple[Tensor, Tensor | None]:
        """x / temperature [rows, b], and d (soft-capped) / d (uncapped) where there is a cap. -inf becomes a very
        small number, so that 0 * -inf never arises."""
        hidden, weight, bias, head = self.side
        block = weight[columns]
        x = block.new_zeros(hidden.size(0), block.size(0), dtype=self.dtype)
        accumulate(x, hidden, block.T)  # unrounded sums: a rounded logit can flip a sign
        if bias is not None:
            x += bias[columns].to(self.dtype)
        if head.scale != 1.0:
            x *= head.scale
        slope = None
        if head.softcap is not None:
            x = torch.tanh_(x.div_(head.softcap))
            slope = 1 - x.square()
            x *= head.softcap
        return x.clamp_(min=torch.finfo(self.dtype).min / 4).div_(self.temperature), slope

    def measure(self, columns: slice) -> None:
        """Add a block to the log-sum-exps; after the last, `probabilities` may be asked for."""
        torch.logaddexp(self.lse, self.logits(columns)[0].logsumexp(dim=1), out=self.lse)

    def probabilities(self, columns: slice) -> tuple[Tensor, Tensor | None]:
        """Softmax rows [rows, b], and the soft cap's slope."""
        x, slope = self.logits(columns)
        return x.sub_(self.lse[:, None]).exp_(), slope


class _Gradients:
    """What one side's hidden states, weight and bias get; each only if it is needed."""

    def __init__(self, rows: _Rows, needs: tuple[bool, ...], row_terms: Tensor) -> None:
        hidden, weight, bias, _ = rows.side
        self.rows, self.row_terms = rows, row_terms[:, None]
        self.hidden = torch.zeros_like(hidden, dtype=rows.dtype) if needs[0] else None
        self.weight = torch.empty_like(weight) if needs[1] else None
        self.bias = torch.empty_like(bias) if needs[2] and bias is not None else None

    def add(self, columns: slice, signs: Tensor, q: Tensor, slope: Tensor | None) -> None:
        """A block's gradient to the products h W^T: q (signs - row term) * slope * scale / temperature; overwrites
        `signs`. No other block touches the weight's and the bias's part."""
        hidden, weight, _, head = self.rows.side
        gradient = signs.sub_(self.row_terms).mul_(q)
        if slope is not None:
            gradient *= slope
        gradient *= head.scale / self.rows.temperature
        low = gradient.to(weight.dtype)
        if self.hidden is not None:
            accumulate(self.hidden, low, weight[columns])
        if self.weight is not None:
            torch.mm(low.T, hidden, out=self.weight[columns])
        if self.bias is not None:
            self.bias[columns] = gradient.sum(dim=0).to(self.bias.dtype)

    def result(self) -> tuple[Tensor | None, ...]:
        """In the order of the arguments."""
        hidden = None if self.hidden is None else self.hidden.to(self.rows.side.hidden.dtype)
        return hidden, self.weight, self.bias


def _blocks(student: Side, teacher: Side, block_bytes: int) -> Iterator[slice]:
    """Columns of one block after the other."""
    rows = max(student.hidden.size(0), teacher.hidden.size(0), 1)
    size = max(NARROWEST_BLOCK, block_bytes // (compute_dtype(student.weight).itemsize * rows))
    return (slice(start, start + size) for start in range(0, student.weight.size(0), size))


class _PairwiseL1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Arguments: the student's Side, the teacher's Side, temperature, tiles, whether the sides are the same."""
        student, teacher = Side(*arguments[:4]), Side(*arguments[4:8])
        temperature, tiles, same = arguments[8:]
        q_rows = _Rows(student, temperature)
        p_rows = q_rows if same else _Rows(teacher, temperature)
        for columns in _blocks(student, teacher, tiles.block_bytes):
            for rows in (q_rows,) if same else (q_rows, p_rows):
                rows.measure(columns)
        trains = any(ctx.needs_input_grad)
        distances = q_rows.lse.new_zeros(student.hidden.size(0), teacher.hidden.size(0))
        mass = torch.zeros_like(distances) if trains else None
        for columns in _blocks(student, teacher, tiles.block_bytes):
            q, _ = q_rows.probabilities(columns)
            p = q if same else p_rows.probabilities(columns)[0]
            share, mass_share = tiles.distances(q, p, trains)
            distances += share
            if mass is not None:
                mass += mass_share
        ctx.heads, ctx.options = (student.head, teacher.head), (temperature, tiles, same)
        ctx.save_for_backward(*student[:3], *teacher[:3], q_rows.lse, p_rows.lse, distances, mass)
        return distances

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, other_hidden, other_weight, other_bias, *found = ctx.saved_tensors
        student = Side(hidden, weight, bias, ctx.heads[0])
        teacher = Side(other_hidden, other_weight, other_bias, ctx.heads[1])
        with gathered(weight, bias, other_weight, other_bias):
            q_result, p_result = _pull_back(ctx, student, teacher, found, upstream)
        return *q_result, None, *p_result, None, None, None, None


def _pull_back(
    ctx: Any, student: Side, teacher: Side, found: list[Tensor], upstream: Tensor
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The gradients of both sides' hidden states, weights and biases."""
    temperature, tiles, same = ctx.options
    q_lse, p_lse, distances, mass = found
    upstream = upstream.to(distances.dtype)
    if same:  # each row stands on both sides
        upstream = upstream + upstream.T
    forth, back = upstream.contiguous(), upstream.T.contiguous()
    q_rows, p_rows = _Rows(student, temperature), _Rows(teacher, temperature)
    q_rows.lse, p_rows.lse = q_lse, p_lse
    q_needs, p_needs = ctx.needs_input_grad[:3], ctx.needs_input_grad[4:7]
    q_gradients = _Gradients(q_rows, q_needs, (forth * mass).sum(dim=1))
    p_gradients = _Gradients(p_rows, p_needs, (forth * (distances - mass)).sum(dim=0))
    for columns in _blocks(student, teacher, tiles.block_bytes):
        q, q_slope = q_rows.probabilities(columns)
        p, p_slope = (q, q_slope) if same else p_rows.probabilities(columns)
        if any(q_needs):
            q_gradients.add(columns, tiles.sign_sums(forth, q, p), q, q_slope)
        if any(p_needs) and not same:
            p_gradients.add(columns, tiles.sign_sums(back, p, q), p, p_slope)
    return q_gradients.result(), (None, None, None) if same else p_gradients.result()
