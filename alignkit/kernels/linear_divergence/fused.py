"""The autograd function of `linear_divergence`, which goes through both heads chunk by chunk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.head import LogitTransform, Operands, compute_dtype, gathered
from alignkit.kernels.linear_divergence.records import DIFFERENTIABLE, HeadProduct, Name, Request, RowBlock
from alignkit.kernels.products import add_product, project, states


class Chunk(NamedTuple):
    """A chunk of c tokens and the gradients to their matmuls with both heads."""

    part: slice
    logit_gradients: list[Tensor]
    """[c, V] in the weight's dtype, one for each head product."""
    splits: int
    """Number of parts of a state matmul; see `Layout.splits`."""


Visit = Callable[[dict[str, Tensor], slice], Mapping[str, Tensor]]


def fused(
    student: Operands, teacher: Operands, labels: Tensor, request: Request, engine: type[RowBlock]
) -> dict[str, Tensor]:
    """Compute the values in `request.returned`, [N] each. Those in `request.with_gradient` carry gradient."""
    transforms = student.transform, teacher.transform
    values = _LinearDivergence.apply(*student[:3], *teacher[:3], labels, transforms, request, engine)
    return dict(zip(request.returned, values, strict=True))


def values_of(
    sides: dict[Name, Operands], labels: Tensor, request: Request, engine: type[RowBlock]
) -> dict[str, Tensor]:
    """Compute the values in `request.returned`, [N] each, without gradient."""
    outputs, _, visit = _recorder(request, labels, compute_dtype(sides["student"].weight))
    for _ in _sweep(sides, labels, request, engine, [], visit):
        pass
    return outputs


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
        transforms: tuple[LogitTransform, LogitTransform],
        request: Request,
        engine: type[RowBlock],
    ) -> tuple[Tensor, ...]:
        student = student_hidden, student_weight, student_bias
        teacher = teacher_hidden, teacher_weight, teacher_bias
        sides: dict[Name, Operands] = {
            "student": Operands(*student, transforms[0]),
            "teacher": Operands(*teacher, transforms[1]),
        }
        needs = ctx.needs_input_grad
        heads_frozen = not (needs[1] or needs[2] or needs[4] or needs[5])
        products = _forward_products(request, heads_frozen=heads_frozen)
        outputs, slopes, visit = _recorder(request, labels, compute_dtype(student_weight))
        needed: dict[Name, tuple[bool, ...]] = {"student": needs[:3], "teacher": needs[3:6]}
        gradients = [_empty_gradients(sides[p.side], needed[p.side]) for p in products]
        for chunk in _sweep(sides, labels, request, engine, products, visit):
            for product, logits, found in zip(products, chunk.logit_gradients, gradients, strict=True):
                _add_chunk(found, logits, sides[product.side], chunk)
        ctx.set_materialize_grads(False)
        ctx.products, ctx.request, ctx.engine, ctx.transforms = products, request, engine, transforms
        ctx.adds_up, ctx.made = bool(products) and heads_frozen, None
        if ctx.adds_up:
            ctx.save_for_backward(*(found[0] for found in gradients))
        else:
            ctx.made = _cast(products, gradients, sides)
            ctx.save_for_backward(*student, *teacher, labels, *slopes.values())
        ctx.mark_non_differentiable(*(outputs[n] for n in request.returned if n not in request.with_gradient))
        return tuple(outputs[name] for name in request.returned)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        given = {n: g for n, g in zip(ctx.request.returned, upstream, strict=True) if g is not None}
        found = _add_up(ctx, given) if ctx.adds_up else _scale_made(ctx, given) or _recompute(ctx, given)
        return (*found, None, None, None, None)


def _head_products(request: Request) -> list[HeadProduct]:
    """One product for each side with gradients, for all outputs of that side."""
    products = [
        HeadProduct(side, tuple(name for name in request.differentiable if name in names))
        for side, names in DIFFERENTIABLE.items()
    ]
    return [product for product in products if product.outputs]


def _forward_products(request: Request, *, heads_frozen: bool) -> list[HeadProduct]:
    """The products to compute in the forward. None if the backward computes them at less cost.

    With an objective, each row's gradient is known but for a factor. Otherwise a head that trains needs the upstream
    gradients first. In units of 2 N H V, a product in the forward costs 1. Recomputing costs 2 for both heads' logits
    and 1 per side.
    """
    together = _head_products(request)
    if request.objective is not None:
        return together
    if not heads_frozen:
        return []
    apart = [HeadProduct(product.side, (name,)) for product in together for name in product.outputs]
    return apart if len(apart) <= 2 + len(together) else []


def _recorder(
    request: Request, labels: Tensor, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor], Visit]:
    """(outputs, slopes of the objective, `visit` of the forward, which fills both). No objective has no slopes."""
    outputs = {
        name: labels.new_empty(labels.shape, dtype=torch.bool if name.endswith("top1") else dtype)
        for name in request.returned
    }
    slopes = (
        {}
        if request.objective is None
        else {name: labels.new_empty(labels.shape, dtype=dtype) for name in request.differentiable}
    )

    def visit(values: dict[str, Tensor], part: slice) -> Mapping[str, Tensor]:
        if request.objective is None:
            factors = dict.fromkeys(request.differentiable, torch.ones_like(values["forward_kl"]))
        else:
            seen = {name: values[name] for name in request.outputs}
            values["loss"], factors = _differentiate(request.objective, seen, request.differentiable)
        for name, slope in slopes.items():
            slope[part] = factors[name]
        for name, output in outputs.items():
            output[part] = values[name]
        return factors

    return outputs, slopes, visit


def _differentiate(
    objective: Callable[[Mapping[str, Tensor]], Tensor],
    values: Mapping[str, Tensor],
    differentiable: tuple[str, ...],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective's losses [c], and their derivatives by each differentiable output."""
    with torch.enable_grad():
        leaves = {name: values[name].detach().requires_grad_() for name in differentiable}
        loss = objective({**values, **leaves})
        if loss.shape != values["forward_kl"].shape:
            raise ValueError(
                f"the objective must return one loss per row, shape [{values['forward_kl'].numel()}], "
                f"found {list(loss.shape)}"
            )
        if not loss.requires_grad:
            return loss, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        slopes = torch.autograd.grad(
            loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    return loss.detach(), dict(zip(differentiable, slopes, strict=True))


def _sweep(
    sides: dict[Name, Operands],
    labels: Tensor,
    request: Request,
    engine: type[RowBlock],
    head_products: list[HeadProduct],
    visit: Visit,
) -> Iterator[Chunk]:
    """Yield every chunk with the gradients of the head products.

    `visit` gets the values of a few rows and returns factors [rows] for the gradients of their outputs.
    """
    count = labels.numel()
    layout = engine.layout(sides, count, head_products)
    for start in range(0, count, layout.rows or 1):
        stop = min(start + layout.rows, count)
        for name, side in sides.items():
            project(side.hidden[start:stop], side.weight, layout.products[name][: stop - start])
        for low in range(start, stop, layout.block):
            outer = slice(low, min(low + layout.block, stop))
            inner = slice(low - start, outer.stop - start)
            few = engine(
                {name: z[inner] for name, z in layout.products.items()}, labels[outer], sides, request
            )
            factors = visit(few.values, outer)
            for product, gradient in zip(head_products, layout.gradients, strict=True):
                weights = {name: factors[name] for name in product.outputs if name in factors}
                few.gradient(product.side, weights, gradient[inner])
        yield Chunk(
            slice(start, stop), [gradient[: stop - start] for gradient in layout.gradients], layout.splits
        )


def _add_up(ctx: Any, given: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Add up the gradients that the forward computed, weighted by the upstream gradients."""
    found: dict[Name, Tensor] = {}
    for product, gradient in zip(ctx.products, ctx.saved_tensors, strict=True):
        factor = given.get("loss" if ctx.request.objective is not None else product.outputs[0])
        if factor is None:
            continue
        weighted = gradient * factor[:, None]
        side = product.side
        found[side] = weighted if side not in found else found[side].add_(weighted)
    dtypes = {p.side: gradient.dtype for p, gradient in zip(ctx.products, ctx.saved_tensors, strict=True)}
    hidden = {side: gradient.to(dtypes[side]) for side, gradient in found.items()}
    return [hidden.get("student"), None, None, hidden.get("teacher"), None, None]


def _scale_made(ctx: Any, given: Mapping[str, Tensor]) -> list[Tensor | None] | None:
    """The gradients that the forward made for heads that train, times the upstream gradient of the losses.

    A head's gradient has added up all rows, so their losses must have one upstream gradient, as those of a sum or a
    mean have. None if it differs between rows, or if an earlier backward took the gradients.
    """
    upstream, made = given.get("loss"), ctx.made
    if upstream is None or made is None:
        return None
    # the gradient of a sum is one number expanded, which is seen without a look at the device
    if upstream.numel() and upstream.stride() != (0,) and not bool(upstream.amax() == upstream.amin()):
        return None
    ctx.made = None  # they are scaled in place, without a copy of the head
    factor = upstream[:1].sum()
    found: dict[Name, list[Tensor | None]] = {"student": [None] * 3, "teacher": [None] * 3}
    for product, gradients in zip(ctx.products, made, strict=True):
        found[product.side] = [None if x is None else x.mul_(factor) for x in gradients]
    return [*found["student"], *found["teacher"]]


def _recompute(ctx: Any, given: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Recompute every chunk's logits, and from them all gradients that are needed."""
    _, student_weight, student_bias, _, teacher_weight, teacher_bias = ctx.saved_tensors[:6]
    with gathered(student_weight, student_bias, teacher_weight, teacher_bias):
        return _recompute_whole(ctx, given)


def _recompute_whole(ctx: Any, given: Mapping[str, Tensor]) -> list[Tensor | None]:
    operands, labels, slopes = ctx.saved_tensors[:6], ctx.saved_tensors[6], ctx.saved_tensors[7:]
    request: Request = ctx.request
    if request.objective is not None:
        named = zip(request.differentiable, slopes, strict=True)
        given = {name: slope * given["loss"] for name, slope in named if "loss" in given}
    sides: dict[Name, Operands] = {
        "student": Operands(operands[0], operands[1], operands[2], ctx.transforms[0]),
        "teacher": Operands(operands[3], operands[4], operands[5], ctx.transforms[1]),
    }
    return gradients_of(sides, labels, request, ctx.engine, ctx.needs_input_grad[:6], given)


def gradients_of(
    sides: dict[Name, Operands],
    labels: Tensor,
    request: Request,
    engine: type[RowBlock],
    needed: Sequence[bool],
    given: Mapping[str, Tensor],
) -> list[Tensor | None]:
    """Compute the gradients to hidden, weight and bias of student and teacher, as far as `needed`.

    `given` maps differentiable outputs to their upstream gradients [N]. Every chunk's logits are computed anew.
    """
    products = [p for p in _head_products(request) if any(name in given for name in p.outputs)]
    found: dict[Name, list[Tensor | None]] = {"student": [None] * 3, "teacher": [None] * 3}
    for product in products:
        part = slice(0, 3) if product.side == "student" else slice(3, 6)
        found[product.side] = _empty_gradients(sides[product.side], tuple(needed[part]))

    def visit(_: dict[str, Tensor], part: slice) -> Mapping[str, Tensor]:
        return {name: gradient[part] for name, gradient in given.items()}

    for chunk in _sweep(sides, labels, request, engine, products, visit) if products else ():
        for product, logits in zip(products, chunk.logit_gradients, strict=True):
            _add_chunk(found[product.side], logits, sides[product.side], chunk)
    operands = (*sides["student"][:3], *sides["teacher"][:3])
    return [
        None if gradient is None or operand is None else gradient.to(operand.dtype)
        for gradient, operand in zip((*found["student"], *found["teacher"]), operands, strict=True)
    ]


def _add_chunk(gradients: list[Tensor | None], logits: Tensor, side: Operands, chunk: Chunk) -> None:
    """Add a chunk to the gradients of one side's hidden states, weight and bias, from those of its products."""
    hidden, weight, bias = gradients
    if hidden is not None:
        states(logits, side.weight, hidden[chunk.part], chunk.splits)
    if weight is not None:
        add_product(weight, logits.T, side.hidden[chunk.part])
    if bias is not None:
        bias += logits.sum(dim=0, dtype=bias.dtype)


def _cast(
    products: list[HeadProduct], gradients: list[list[Tensor | None]], sides: Mapping[Name, Operands]
) -> list[list[Tensor | None]] | None:
    """The gradients in the dtypes of their operands; None if there are none."""
    return [
        [
            None if x is None or operand is None else x.to(operand.dtype)
            for x, operand in zip(found, sides[product.side][:3], strict=True)
        ]
        for product, found in zip(products, gradients, strict=True)
    ] or None


def _empty_gradients(side: Operands, needed: tuple[bool, ...]) -> list[Tensor | None]:
    """Buffers for the gradients to hidden, weight and bias. The last two are zeros, at least in float32."""
    dtype = compute_dtype(side.weight)
    return [
        torch.empty_like(side.hidden) if needed[0] else None,
        torch.zeros_like(side.weight, dtype=dtype) if needed[1] else None,
        torch.zeros_like(side.bias, dtype=dtype) if needed[2] and side.bias is not None else None,
    ]
