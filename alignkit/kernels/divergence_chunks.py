"""Chunk by chunk through two heads: the values of `linear_divergence`, and their gradients to both sides."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.divergence_rows import SIDES, Name, Plan, Rows
from alignkit.kernels.heads import Head, gathered
from alignkit.kernels.sides import Side, accumulate, compute_dtype, logits_buffer, project

CPU_CHUNK_BYTES = 24 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20
"""Size of one chunk's float32 logits. There are two at a time, and as much again for each gradient made at a time."""

CPU_BLOCK_BYTES = 2**20
"""Size of one temporary of a block of rows on a CPU: the eight or so of a block stay in its cache."""

Visit = Callable[[dict[str, Tensor], slice], Mapping[str, Tensor]]


class _Job(NamedTuple):
    """One product with a side's weight: of the weighted sum of these outputs' gradients."""

    side: Name
    names: tuple[str, ...]


def fused(student: Side, teacher: Side, labels: Tensor, plan: Plan, rows: type[Rows]) -> dict[str, Tensor]:
    """The values named in `plan.outputs`, [N] each; those in `plan.carriers`, or the `loss`, with gradient."""
    heads = student.head, teacher.head
    values = _LinearDivergence.apply(*student[:3], *teacher[:3], labels, heads, plan, rows)
    return dict(zip(plan.returned, values, strict=True))


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_weight: Tensor,
        student_bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        labels: Tensor,
        heads: tuple[Head, Head],
        plan: Plan,
        rows: type[Rows],
    ) -> tuple[Tensor, ...]:
        sides: dict[Name, Side] = {
            "student": Side(student_hidden, student_weight, student_bias, heads[0]),
            "teacher": Side(teacher_hidden, teacher_weight, teacher_bias, heads[1]),
        }
        needs = ctx.needs_input_grad
        jobs = _forward_jobs(plan, heads_frozen=not (needs[1] or needs[2] or needs[4] or needs[5]))
        outputs, slopes, visit = _recorder(plan, labels, compute_dtype(student_weight))
        gradients = [torch.empty_like(sides[job.side].hidden) for job in jobs]
        for part, pulls in _sweep(sides, labels, plan, rows, jobs, visit):
            for job, pulled, gradient in zip(jobs, pulls, gradients, strict=True):
                torch.mm(pulled, sides[job.side].weight, out=gradient[part])
        ctx.set_materialize_grads(False)
        ctx.jobs, ctx.plan, ctx.rows, ctx.heads = jobs, plan, rows, heads
        operands = (*sides["student"][:3], *sides["teacher"][:3], labels)
        ctx.save_for_backward(*(gradients or (*operands, *slopes.values())))
        ctx.mark_non_differentiable(*(outputs[n] for n in plan.returned if n not in plan.differentiable))
        return tuple(outputs[name] for name in plan.returned)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        given = {n: g for n, g in zip(ctx.plan.returned, upstream, strict=True) if g is not None}
        found = _add_up(ctx, given) if ctx.jobs else _recompute(ctx, given)
        return (*found, None, None, None, None)


def _jobs(plan: Plan) -> list[_Job]:
    """One for each side that has gradients, of all its outputs."""
    named = [_Job(side, tuple(n for n in plan.carriers if n in names)) for side, names in SIDES.items()]
    return [job for job in named if job.names]


def _forward_jobs(plan: Plan, *, heads_frozen: bool) -> list[_Job]:
    """The gradients to make in the forward: none where a head trains, or where the backward makes them for less.

    In units of 2 N H V, one made in the forward costs 1; recomputed, both heads' logits cost 2 and each side 1.
    """
    together = _jobs(plan)
    if not heads_frozen:
        return []
    if plan.objective is not None:
        return together
    apart = [_Job(job.side, (name,)) for job in together for name in job.names]
    return apart if len(apart) <= 2 + len(together) else []


def _recorder(
    plan: Plan, labels: Tensor, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor], Visit]:
    """The outputs, the objective's slopes if there is one, and the forward's `visit`, which fills both."""
    outputs = {
        name: labels.new_empty(labels.shape, dtype=torch.bool if name.endswith("top1") else dtype)
        for name in plan.returned
    }
    slopes = (
        {}
        if plan.objective is None
        else {name: labels.new_empty(labels.shape, dtype=dtype) for name in plan.carriers}
    )

    def visit(values: dict[str, Tensor], part: slice) -> Mapping[str, Tensor]:
        if plan.objective is None:
            factors = dict.fromkeys(plan.carriers, torch.ones_like(values["forward_kl"]))
        else:
            seen = {name: values[name] for name in plan.outputs}
            values["loss"], factors = _differentiate(plan.objective, seen, plan.carriers)
        for name, slope in slopes.items():
            slope[part] = factors[name]
        for name, output in outputs.items():
            output[part] = values[name]
        return factors

    return outputs, slopes, visit


def _differentiate(
    objective: Callable[[Mapping[str, Tensor]], Tensor],
    values: Mapping[str, Tensor],
    carriers: tuple[str, ...],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective's losses [c] and their slopes in each carrier."""
    with torch.enable_grad():
        leaves = {name: values[name].detach().requires_grad_() for name in carriers}
        loss = objective({**values, **leaves})
        if loss.shape != values["forward_kl"].shape:
            raise ValueError(
                f"the objective must make one loss a row, [{values['forward_kl'].numel()}], found {list(loss.shape)}"
            )
        if not loss.requires_grad:
            return loss, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        slopes = torch.autograd.grad(
            loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    return loss.detach(), dict(zip(carriers, slopes, strict=True))


def _sweep(
    sides: dict[Name, Side], labels: Tensor, plan: Plan, rows: type[Rows], jobs: list[_Job], visit: Visit
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Each chunk's tokens and, for each job, gradients to the products [c, V] in the weight's dtype.

    `visit` sees a few rows' values and says what to multiply their outputs' gradients with, [rows] each.
    """
    count, vocabulary = labels.numel(), sides["student"].weight.size(0)
    budget = GPU_CHUNK_BYTES if labels.is_cuda else CPU_CHUNK_BYTES
    size = min(count, max(1, budget // (4 * vocabulary)))
    in_cache = rows.small_blocks and not labels.is_cuda
    block = max(1, CPU_BLOCK_BYTES // (4 * vocabulary)) if in_cache else max(1, size)
    products = {name: logits_buffer(side.weight, size) for name, side in sides.items()}
    rooms = [sides[job.side].weight.new_empty(size, vocabulary) for job in jobs]
    for start in range(0, count, size or 1):
        stop = min(start + size, count)
        for name, side in sides.items():
            project(side.hidden[start:stop], side.weight, out=products[name][: stop - start])
        for low in range(start, stop, block):
            outer = slice(low, min(low + block, stop))
            inner = slice(low - start, outer.stop - start)
            few = rows({name: z[inner] for name, z in products.items()}, labels[outer], sides, plan)
            factors = visit(few.values, outer)
            for job, room in zip(jobs, rooms, strict=True):
                weights = {name: factors[name] for name in job.names if name in factors}
                few.gradient(job.side, weights, room[inner])
        yield slice(start, stop), [room[: stop - start] for room in rooms]


def _add_up(ctx: Any, given: Mapping[str, Tensor]) -> list[Tensor | None]:
    """The gradients made in the forward, weighted by what comes from above."""
    found: dict[Name, Tensor] = {}
    for job, gradient in zip(ctx.jobs, ctx.saved_tensors, strict=True):
        factor = given.get("loss" if ctx.plan.objective is not None else job.names[0])
        if factor is None:
            continue
        weighted = gradient * factor[:, None]
        found[job.side] = weighted if job.side not in found else found[job.side].add_(weighted)
    dtypes = {job.side: gradient.dtype for job, gradient in zip(ctx.jobs, ctx.saved_tensors, strict=True)}
    hidden = {side: gradient.to(dtypes[side]) for side, gradient in found.items()}
    return [hidden.get("student"), None, None, hidden.get("teacher"), None, None]


def _recompute(ctx: Any, given: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Every chunk's logits once more, and from them all gradients that are needed."""
    _, student_weight, student_bias, _, teacher_weight, teacher_bias = ctx.saved_tensors[:6]
    with gathered(student_weight, student_bias, teacher_weight, teacher_bias):
        return _recompute_whole(ctx, given)


def _recompute_whole(ctx: Any, given: Mapping[str, Tensor]) -> list[Tensor | None]:
    operands, labels, slopes = ctx.saved_tensors[:6], ctx.saved_tensors[6], ctx.saved_tensors[7:]
    plan = ctx.plan
    sides: dict[Name, Side] = {
        "student": Side(operands[0], operands[1], operands[2], ctx.heads[0]),
        "teacher": Side(operands[3], operands[4], operands[5], ctx.heads[1]),
    }
    if plan.objective is not None:
        given = {
            n: slope * given["loss"]
            for n, slope in zip(plan.carriers, slopes, strict=True)
            if "loss" in given
        }
    jobs = [job for job in _jobs(plan) if any(name in given for name in job.names)]
    found: dict[Name, list[Tensor | None]] = {"student": [None] * 3, "teacher": [None] * 3}
    for job in jobs:
        needed = ctx.needs_input_grad[:3] if job.side == "student" else ctx.needs_input_grad[3:6]
        found[job.side] = _empty_gradients(sides[job.side], needed)

    def visit(_: dict[str, Tensor], part: slice) -> Mapping[str, Tensor]:
        return {name: gradient[part] for name, gradient in given.items()}

    for part, pulls in _sweep(sides, labels, plan, ctx.rows, jobs, visit) if jobs else ():
        for job, pulled in zip(jobs, pulls, strict=True):
            hidden, weight, bias = found[job.side]
            if hidden is not None:
                torch.mm(pulled, sides[job.side].weight, out=hidden[part])
            if weight is not None:
                accumulate(weight, pulled.T, sides[job.side].hidden[part])
            if bias is not None:
                bias += pulled.sum(dim=0, dtype=bias.dtype)
    return [
        None if gradient is None else gradient.to(operand.dtype)
        for gradient, operand in zip((*found["student"], *found["teacher"]), operands, strict=True)
    ]


def _empty_gradients(side: Side, needed: tuple[bool, ...]) -> list[Tensor | None]:
    """Room for the gradients to hidden, weight and bias; the last two are sums, at least in float32."""
    dtype = compute_dtype(side.weight)
    return [
        torch.empty_like(side.hidden) if needed[0] else None,
        torch.zeros_like(side.weight, dtype=dtype) if needed[1] else None,
        torch.zeros_like(side.bias, dtype=dtype) if needed[2] and side.bias is not None else None,
    ]
