"""The autograd function of `pairwise_l1`, which computes both sides' softmax rows in blocks of columns."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.head import Operands, compute_dtype, gathered
from alignkit.kernels.pairwise_l1 import cost
from alignkit.kernels.pairwise_l1.records import Engine
from alignkit.kernels.products import add_product


def fused(student: Operands, teacher: Operands, engine: Engine) -> Tensor:
    """Compute D [n, m]. If `teacher` is `student` itself, all gradient goes through the student's arguments."""
    return _PairwiseL1.apply(*student, *teacher, engine, teacher is student)


class _SoftmaxRows:
    """One side's softmax rows, computed one block of columns at a time."""

    def __init__(self, operands: Operands, lse: Tensor | None = None, *, keeps: bool = False) -> None:
        """Take log-sum-exps that are known; with `keeps`, hold each block's logits from `measure` on."""
        self.operands, self.dtype = operands, compute_dtype(operands.weight)
        self.keeps, self.kept = keeps, dict[int, Tensor]()
        self.lse = (
            torch.full_like(operands.hidden[:, 0], -torch.inf, dtype=self.dtype) if lse is None else lse
        )

    def logits(self, columns: slice, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        """Return x / temperature [rows, b], and the soft cap's slope if requested and if there is a cap."""
        hidden, weight, bias, transform = self.operands
        block = weight[columns]
        x = block.new_empty(hidden.size(0), block.size(0), dtype=self.dtype)
        add_product(x, hidden, block.T, fresh=True)  # unrounded sums: a rounded logit can flip a sign
        steepness = transform.apply_(x, None if bias is None else bias[columns], slope=slope, clamp=True)
        return x, steepness

    def measure(self, columns: slice) -> None:
        """Add a block to the log-sum-exps. Call `probabilities` only after the last block."""
        x, _ = self.logits(columns, slope=False)
        torch.logaddexp(self.lse, x.logsumexp(dim=1), out=self.lse)
        if self.keeps:
            self.kept[columns.start] = x

    def probabilities(self, columns: slice, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        """Return softmax rows [rows, b], and the soft cap's slope as in `logits`."""
        kept = self.kept.pop(columns.start, None)
        x, steepness = self.logits(columns, slope=slope) if kept is None else (kept, None)
        return x.sub_(self.lse[:, None]).exp_(), steepness


class _Gradients:
    """The gradients to one side's hidden states, weight and bias, as far as they are needed."""

    def __init__(self, operands: Operands, needs: Sequence[bool], row_terms: Tensor | None) -> None:
        hidden, weight, bias, _ = operands
        self.operands, self.needed = operands, any(needs)
        self.row_terms = None if row_terms is None else row_terms[:, None]
        self.hidden = torch.zeros_like(hidden, dtype=compute_dtype(weight)) if needs[0] else None
        self.expected, self.found_terms = None, None
        if row_terms is None and self.hidden is not None:
            self.expected = torch.zeros_like(self.hidden)
            self.found_terms = self.hidden.new_zeros(hidden.size(0), 1)
        self.weight = torch.empty_like(weight) if needs[1] else None
        self.bias = torch.empty_like(bias) if needs[2] and bias is not None else None

    def add(self, columns: slice, signs: Tensor, q: Tensor, slope: Tensor | None) -> None:
        """Add a block: its gradient to h W^T is q (signs - row term) * slope * scale / temperature.

        Overwrites `signs`. Each block writes its own part of the weight's and the bias's gradient. A row term that is
        not known yet is the sum of q signs over all blocks; the products that it multiplies are added up apart.
        """
        hidden, weight, _, transform = self.operands
        if self.row_terms is None:
            gradient = signs.mul_(q)
            self._expect(columns, gradient, q, slope)
        else:
            gradient = signs.sub_(self.row_terms).mul_(q)
        if slope is not None:
            gradient *= slope
        gradient *= transform.factor
        low = gradient.to(weight.dtype)
        if self.hidden is not None:
            add_product(self.hidden, low, weight[columns])
        if self.weight is not None:
            torch.mm(low.T, hidden, out=self.weight[columns])
        if self.bias is not None:
            self.bias[columns] = gradient.sum(dim=0).to(self.bias.dtype)

    def _expect(self, columns: slice, signed: Tensor, q: Tensor, slope: Tensor | None) -> None:
        """Add a block to the row terms, and to what they multiply in the hidden states' gradient."""
        if self.expected is None or self.found_terms is None:
            return
        self.found_terms += signed.sum(dim=1, keepdim=True)
        steep = q if slope is None else q * slope
        torch.addmm(self.expected, steep, self.operands.weight[columns], out=self.expected)

    def result(self) -> tuple[Tensor | None, ...]:
        """Return the gradients to hidden states, weight and bias; None for those not needed."""
        if self.hidden is not None and self.expected is not None and self.found_terms is not None:
            self.hidden.addcmul_(self.found_terms, self.expected, value=-self.operands.transform.factor)
        hidden = None if self.hidden is None else self.hidden.to(self.operands.hidden.dtype)
        return hidden, self.weight, self.bias


def needs_mass(needs: Sequence[bool], weight: Tensor, engine: Engine) -> bool:
    """Return whether the backward takes the row terms from R.

    Without R they are known after its last block. Then the hidden states' gradient takes one more matmul, which is
    cheaper than R in PyTorch. A head's gradient cannot wait, and 16 bits would lose the difference of the two.
    """
    heads_train = any(needs[index] for index in (1, 2, 4, 5))
    exact = weight.dtype == compute_dtype(weight)
    return any(needs) and (engine.makes_mass or heads_train or not exact)


def _blocks(student: Operands, teacher: Operands) -> Iterator[slice]:
    """The columns of each block in turn."""
    rows = max(student.hidden.size(0), teacher.hidden.size(0))
    size = cost.block_columns(rows, compute_dtype(student.weight).itemsize, gpu=student.weight.is_cuda)
    return (slice(start, start + size) for start in range(0, student.weight.size(0), size))


class Measured(NamedTuple):
    """The results of the forward. `distance` and `mass` are D and R [n, m]."""

    distance: Tensor
    q_lse: Tensor
    """Log-sum-exps of the student's rows [n]."""
    p_lse: Tensor
    """Log-sum-exps of the teacher's rows [m]; those of the student for a set against itself."""
    mass: Tensor | None
    """None where no gradient needs it."""


def measure(
    student: Operands, teacher: Operands, engine: Engine, needs: Sequence[bool], *, same: bool
) -> Measured:
    """Compute the distances, and what the gradients that `needs` names will need; see `pull_back`."""
    dtype, shape = compute_dtype(student.weight), (student.hidden.size(0), teacher.hidden.size(0))
    rows = shape[0] if same else sum(shape)
    keeps = cost.keeps_logits(rows, student.weight.size(0), dtype.itemsize)
    q_rows = _SoftmaxRows(student, keeps=keeps)
    p_rows = q_rows if same else _SoftmaxRows(teacher, keeps=keeps)
    for columns in _blocks(student, teacher):
        for side in (q_rows,) if same else (q_rows, p_rows):
            side.measure(columns)
    names = ("distance", "mass") if needs_mass(needs, student.weight, engine) else ("distance",)
    sums = {name: q_rows.lse.new_zeros(shape) for name in names}
    for columns in _blocks(student, teacher):
        q, _ = q_rows.probabilities(columns, slope=False)
        p = q if same else p_rows.probabilities(columns, slope=False)[0]
        for name, share in engine.sums(q, p, names).items():
            sums[name] += share
    return Measured(sums["distance"], q_rows.lse, p_rows.lse, sums.get("mass"))


def pull_back(
    student: Operands,
    teacher: Operands,
    engine: Engine,
    found: Measured,
    upstream: Tensor,
    needs: Sequence[bool],
    *,
    same: bool,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients to hidden states, weights and biases of student and teacher, those that `needs` names."""
    upstream = upstream.to(found.distance.dtype)
    if same:  # each row is on both sides
        upstream = upstream + upstream.T
    forth, back = upstream.contiguous(), upstream.T.contiguous()
    q_rows, p_rows = _SoftmaxRows(student, found.q_lse), _SoftmaxRows(teacher, found.p_lse)
    terms = other_terms = None
    if found.mass is not None:
        terms = (forth * found.mass).sum(dim=1)
        other_terms = (forth * (found.distance - found.mass)).sum(dim=0)
    of_student = _Gradients(student, needs[:3], terms)
    of_teacher = _Gradients(teacher, needs[3:], other_terms)
    for columns in _blocks(student, teacher):
        q, q_slope = q_rows.probabilities(columns, slope=of_student.needed)
        p, p_slope = q, q_slope
        if not same:
            p, p_slope = p_rows.probabilities(columns, slope=of_teacher.needed)
        if of_student.needed:
            of_student.add(columns, engine.sign_sums(forth, q, p), q, q_slope)
        if of_teacher.needed and not same:
            of_teacher.add(columns, engine.sign_sums(back, p, q), p, p_slope)
    return *of_student.result(), *((None,) * 3 if same else of_teacher.result())


class _PairwiseL1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Compute D. Arguments: the student's Operands, the teacher's, the engine, whether both sides are one."""
        student, teacher = Operands(*arguments[:4]), Operands(*arguments[4:8])
        engine, same = arguments[8:]
        needs = (*ctx.needs_input_grad[:3], *ctx.needs_input_grad[4:7])
        found = measure(student, teacher, engine, needs, same=same)
        ctx.transforms, ctx.engine, ctx.same = (student.transform, teacher.transform), engine, same
        ctx.needs = needs
        ctx.save_for_backward(*student[:3], *teacher[:3], *found)
        return found.distance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, other_hidden, other_weight, other_bias, *sums = ctx.saved_tensors
        student = Operands(hidden, weight, bias, ctx.transforms[0])
        teacher = Operands(other_hidden, other_weight, other_bias, ctx.transforms[1])
        found = Measured(*sums)
        with gathered(student.weight, student.bias, teacher.weight, teacher.bias):
            gradients = pull_back(student, teacher, ctx.engine, found, upstream, ctx.needs, same=ctx.same)
        return *gradients[:3], None, *gradients[3:], None, None, None
