"""The PyTorch engine of `linear_logprob`: tiles of TILE_BYTES over at most TOKENS tokens with an online softmax.

It works like flash attention, with hidden states as queries and the head's rows as keys and values. Exponentials are
relative to a running reference. When the reference rises, all sums are rescaled, including the sum of e W, which
becomes the hidden states' gradient. So the head is read once per TOKENS tokens, and logits never leave the cache.
"""

import torch
from torch import Tensor

from alignkit.kernels.head import Operands
from alignkit.kernels.linear_logprob import cost
from alignkit.kernels.linear_logprob.records import Engine, Found, Request, Swept
from alignkit.kernels.products import Scratch, add_product, project, spans

SLACK = 8.0
"""Nats by which logits may exceed the reference before sums are rescaled. e^8 is far from overflow."""


class _Running:
    """Running sums over the vocabulary for one chunk of c tokens."""

    def __init__(self, labels: Tensor, width: int, request: Request) -> None:
        def filled(value: float) -> Tensor:
            return torch.full(labels.shape, value, device=labels.device)

        self.labels, self.request = labels, request
        self.largest, self.before_label = filled(-torch.inf), filled(-torch.inf)
        self.reference, self.total, self.weighted = filled(-torch.inf), filled(0.0), filled(0.0)
        self.picked = filled(0.0)
        self.expected_weight = (
            torch.zeros(len(labels), width, device=labels.device) if request.hidden_gradient else None
        )
        """Running sum of e W, [c, H]."""

    def see(self, x: Tensor, columns: slice) -> None:
        """Update label logits and maxima from logits `x` [c, v], and raise the reference if needed."""
        rows = ((self.labels >= columns.start) & (self.labels < columns.stop)).nonzero().squeeze(1)
        local = self.labels[rows] - columns.start
        self.picked[rows] = x[rows, local]
        if "top1" in self.request.outputs:
            earlier = torch.arange(x.size(1), device=x.device) < local[:, None]
            inside = x[rows].masked_fill_(~earlier, -torch.inf).amax(dim=1)
            self.before_label[rows] = torch.maximum(self.largest[rows], inside)
        self.largest = torch.maximum(self.largest, x.amax(dim=1))
        if bool((self.largest - self.reference > SLACK).any()):
            self._raise_reference()

    def _raise_reference(self) -> None:
        shrink = torch.exp(self.reference - self.largest)
        # The sum of e d, with d the distance to the reference. Every d falls by the rise, infinite at the first tile.
        rise = torch.where(self.total > 0, self.largest - self.reference, 0.0)
        self.weighted = shrink * (self.weighted - rise * self.total)
        self.total *= shrink
        if self.expected_weight is not None:
            self.expected_weight *= shrink[:, None]
        self.reference = self.largest

    def add(self, e: Tensor, distance: Tensor) -> None:
        """Add the exponentials `e` of `distance` to the sums. Overwrites `distance`."""
        self.total += e.sum(dim=1)
        if "entropy" in self.request.outputs:
            self.weighted += distance.mul_(e).sum(dim=1)

    def value(self, name: str) -> Tensor:
        """Return an output after all columns have been added."""
        log_total = self.total.log()
        if name == "logps":
            return (self.picked - self.reference) - log_total
        if name == "entropy":
            return log_total - self.weighted / self.total
        if name == "confidence":
            return torch.exp(self.largest - self.reference - log_total)
        return (self.picked >= self.largest) & (self.picked > self.before_label)


def sweep(operands: Operands, labels: Tensor, request: Request) -> Swept:
    """Compute one pass over the vocabulary; see `Engine.sweep`."""
    hidden, weight, _, transform = operands
    count = hidden.size(0)
    values = request.empty_values(labels)
    picked, lse = (torch.empty_like(values["logps"]) for _ in range(2))
    gradient = torch.empty_like(hidden) if request.hidden_gradient else None
    budget = min(cost.KEPT_BYTES, 4 * count * weight.size(0))
    shelf = Shelf(budget, hidden.device) if request.head_gradient else None
    scratch = Scratch(hidden.device)
    for rows in spans(count, cost.TOKENS):
        run = _Running(labels[rows], hidden.size(1), request)
        for columns in _tiles(rows, weight):
            _fold(run, operands, rows, columns, scratch, shelf)
        picked[rows] = run.picked
        lse[rows] = run.reference + run.total.log()
        for name, value in values.items():
            value[rows] = run.value(name)
        if gradient is not None and run.expected_weight is not None:
            factor = transform.factor
            run.expected_weight *= (-factor / run.total)[:, None]
            at_label = (transform.slope_at(run.picked) * factor)[:, None]
            gradient[rows] = run.expected_weight.addcmul_(weight[labels[rows]].float(), at_label)
    return Swept(values, Found(picked, lse, shelf), gradient)


def _fold(
    run: _Running, operands: Operands, rows: slice, columns: slice, scratch: Scratch, shelf: "Shelf | None"
) -> None:
    """Add one tile to the running sums, and keep its exponentials if the shelf has room."""
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    x = scratch.take("logits", *shape)
    slope = _logits(operands, rows, columns, x, slope=run.expected_weight is not None or shelf is not None)
    run.see(x, columns)
    x -= run.reference[:, None]
    e = shelf.room(*shape) if shelf is not None else None
    keep = e is not None
    if e is None:
        e = scratch.take("exponentials", *shape) if "entropy" in run.request.outputs else x
    torch.exp(x, out=e)
    run.add(e, x)
    if slope is not None:
        e *= slope
    if run.expected_weight is not None:
        add_product(run.expected_weight, e, operands.weight[columns])
    if keep and shelf is not None:
        shelf.put(rows.start, columns.start, e, run.reference)


def _logits(operands: Operands, rows: slice, columns: slice, out: Tensor, *, slope: bool) -> Tensor | None:
    """Write one tile's logits into `out`. Returns the soft cap's slope if requested."""
    project(operands.hidden[rows], operands.weight[columns], out)
    bias = None if operands.bias is None else operands.bias[columns]
    return operands.transform.apply_(out, bias, slope=slope, clamp=True)


def _tiles(rows: slice, weight: Tensor) -> list[slice]:
    return spans(weight.size(0), cost.TILE_BYTES // (4 * (rows.stop - rows.start)))


def head_gradient(
    operands: Operands, labels: Tensor, found: Found, upstream: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Compute the second pass; see `Engine.head_gradient`.

    A row of the logit gradient is factor upstream ([v = label] - e^(reference - lse) e) slope. Factors that are one
    number per row are applied to the hidden states, so that the exponentials enter the matmul unchanged.
    """
    hidden, weight, bias, transform = operands
    new = torch.empty_like if hidden.size(0) else torch.zeros_like
    grad_weight = new(weight, dtype=torch.float32)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    row_factor = transform.factor * upstream
    scratch = Scratch(hidden.device)
    for rows in spans(hidden.size(0), cost.TOKENS):
        states = hidden[rows].float()
        for columns in _tiles(rows, weight):
            # take removes the tile, which frees its memory before the next rows of the gradient are written
            e, reference = found.kept.take(rows.start, columns.start) or _recompute(
                operands, rows, columns, found.lse[rows], scratch
            )
            factor = -row_factor[rows] * torch.exp(reference - found.lse[rows])
            scaled = torch.mul(states, factor[:, None], out=scratch.take("states", *states.shape))
            add_product(grad_weight[columns], e.T, scaled, dtype=weight.dtype, fresh=rows.start == 0)
            if grad_bias is not None:
                grad_bias[columns] += e.T @ factor
    at_label = row_factor * transform.slope_at(found.picked)
    grad_weight.index_add_(0, labels, hidden * at_label[:, None])
    if grad_bias is not None:
        grad_bias.index_add_(0, labels, at_label)
    return grad_weight, grad_bias


def _recompute(
    operands: Operands, rows: slice, columns: slice, lse: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """(exponentials of one tile, their reference): here the reference is the log-sum-exp, which is known."""
    x = scratch.take("logits", rows.stop - rows.start, columns.stop - columns.start)
    slope = _logits(operands, rows, columns, x, slope=True)
    x.sub_(lse[:, None]).exp_()
    return (x if slope is None else x.mul_(slope)), lse


class Shelf:
    """A store of tiles that one pass keeps for the next, within a budget in bytes. Taking a tile frees its memory.

    The tiles lie in slabs so large that the allocator returns them to the system. Smaller pieces would stay with the
    process, and the next pass could not reuse the memory for its results.
    """

    SLAB_BYTES = 64 * 2**20

    def __init__(self, budget: int, device: torch.device) -> None:
        self._left, self._device = budget // 4, device
        self._slab = torch.empty(0, device=device)
        self._tiles: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def room(self, rows: int, columns: int) -> Tensor | None:
        """Return an uninitialised float32 [rows, columns], or None if the budget is used up."""
        size = rows * columns
        if size > self._slab.numel():
            self._slab = torch.empty(min(self._left, max(size, self.SLAB_BYTES // 4)), device=self._device)
            self._left -= self._slab.numel()
            if size > self._slab.numel():
                return None
        tile, self._slab = self._slab[:size].view(rows, columns), self._slab[size:]
        return tile

    def put(self, row: int, column: int, tile: Tensor, reference: Tensor) -> None:
        """Store the tile that starts at (row, column) with its references [rows]."""
        self._tiles[row, column] = tile, reference

    def take(self, row: int, column: int) -> tuple[Tensor, Tensor] | None:
        """Remove and return (tile, references) stored at (row, column); None if there is none."""
        self._slab = self._slab[:0]
        return self._tiles.pop((row, column), None)


ENGINE = Engine(sweep, head_gradient, lambda weight: Shelf(0, weight.device))
