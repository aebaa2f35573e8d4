"""`linear_logprob` in PyTorch, by tiles [TOKENS, TILE_BYTES / TOKENS] with an online softmax.

As flash attention does, with the hidden states for queries and the head's rows for keys and values: exponentials are
taken against a running reference, and sums, also that of e W, which becomes the hidden states' gradient, are rescaled
when it rises. So the head is read once for TOKENS tokens, and logits never leave the cache.
"""

import torch
from torch import Tensor

from alignkit.kernels.heads import Head, Scratch, Shelf, add_product, project, spans
from alignkit.kernels.linear_logprob import Found, Swept, Wanted

TOKENS = 2048
"""Rows of a tile: enough that reading the head costs little beside multiplying by it."""
TILE_BYTES = 8 * 2**20
"""Of one tile's float32 logits: about a core's share of the last cache."""
KEPT_BYTES = 320 * 2**20
"""Exponentials that the forward keeps for the gradient of a head that trains; the backward recomputes the others."""
SLACK = 8.0
"""How far logits may rise above the reference, in nats, before sums are rescaled; e^8 is far from overflow."""


class _Running:
    """Sums over the vocabulary so far, of one chunk of tokens."""

    def __init__(self, labels: Tensor, width: int, wanted: Wanted) -> None:
        def filled(value: float) -> Tensor:
            return torch.full(labels.shape, value, device=labels.device)

        self.labels, self.wanted = labels, wanted
        self.largest, self.before_label = filled(-torch.inf), filled(-torch.inf)
        self.reference, self.total, self.weighted = filled(-torch.inf), filled(0.0), filled(0.0)
        self.picked = filled(0.0)
        self.pulled = torch.zeros(len(labels), width, device=labels.device) if wanted.direction else None

    def see(self, x: Tensor, columns: slice) -> None:
        """Take from logits `x` [c, v] what concerns labels and maxima, and raise the reference where need be."""
        rows = ((self.labels >= columns.start) & (self.labels < columns.stop)).nonzero().squeeze(1)
        local = self.labels[rows] - columns.start
        self.picked[rows] = x[rows, local]
        if self.wanted.top1:
            earlier = torch.arange(x.size(1), device=x.device) < local[:, None]
            inside = x[rows].masked_fill_(~earlier, -torch.inf).amax(dim=1)
            self.before_label[rows] = torch.maximum(self.largest[rows], inside)
        self.largest = torch.maximum(self.largest, x.amax(dim=1))
        if bool((self.largest - self.reference > SLACK).any()):
            self._raise_reference()

    def _raise_reference(self) -> None:
        shrink = torch.exp(self.reference - self.largest)
        # sum e d, d the distance to the reference: every d falls by the rise, which is infinite at the first tile
        rise = torch.where(self.total > 0, self.largest - self.reference, 0.0)
        self.weighted = shrink * (self.weighted - rise * self.total)
        self.total *= shrink
        if self.pulled is not None:
            self.pulled *= shrink[:, None]
        self.reference = self.largest

    def add(self, e: Tensor, distance: Tensor) -> None:
        """Add up exponentials `e` of `distance`, which is lost."""
        self.total += e.sum(dim=1)
        if self.wanted.entropy:
            self.weighted += distance.mul_(e).sum(dim=1)


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
        direction=torch.empty_like(hidden) if wanted.direction else None,
        kept=Shelf(min(KEPT_BYTES, 4 * count * weight.size(0)), hidden.device)
        if wanted.head_trains
        else None,
    )
    scratch = Scratch(hidden.device)
    for rows in spans(count, TOKENS):
        run = _Running(labels[rows], hidden.size(1), wanted)
        for columns in _tiles(rows, weight):
            _fold(run, hidden[rows], weight, bias, head, rows, columns, scratch, found.kept)
        found.picked[rows] = run.picked
        found.lse[rows] = run.reference + run.total.log()
        found.logps[rows] = (run.picked - run.reference) - run.total.log()
        if found.entropy is not None:
            found.entropy[rows] = run.total.log() - run.weighted / run.total
        if found.top1 is not None:
            found.top1[rows] = (run.picked >= run.largest) & (run.picked > run.before_label)
        if found.direction is not None and run.pulled is not None:
            run.pulled *= (-head.factor / run.total)[:, None]
            found.direction[rows] = run.pulled.addcmul_(
                weight[labels[rows]].float(), (head.slope(run.picked) * head.factor)[:, None]
            )
    return found


def _fold(
    run: _Running,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    head: Head,
    rows: slice,
    columns: slice,
    scratch: Scratch,
    shelf: Shelf | None,
) -> None:
    """Add one tile to the running sums, and keep its exponentials while there is room."""
    shape = (hidden.size(0), columns.stop - columns.start)
    x = scratch.take("logits", *shape)
    slope = project(hidden, weight[columns], None if bias is None else bias[columns], head, out=x)
    run.see(x, columns)
    x -= run.reference[:, None]
    e = shelf.room(*shape) if shelf is not None else None
    keep = e is not None
    if e is None:
        e = scratch.take("exponentials", *shape) if run.wanted.entropy else x
    torch.exp(x, out=e)
    run.add(e, x)
    if slope is not None:
        e *= slope
    if run.pulled is not None:
        add_product(run.pulled, e, weight[columns], dtype=weight.dtype)
    if keep and shelf is not None:
        shelf.put(rows.start, columns.start, e, run.reference)


def _tiles(rows: slice, weight: Tensor) -> list[slice]:
    return spans(weight.size(0), TILE_BYTES // (4 * (rows.stop - rows.start)))


def head_gradient(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    head: Head,
    found: Found,
    upstream: Tensor,
    kept: Shelf,
) -> tuple[Tensor, Tensor | None]:
    """The second pass; see `Engine.head_gradient`.

    A row of the logits' gradient is factor upstream ([v = label] - e^(reference - lse) e) slope. What is one number a
    row goes to the hidden states, so that the exponentials enter the product as they are.
    """
    new = torch.empty_like if hidden.size(0) else torch.zeros_like
    grad_weight = new(weight, dtype=torch.float32)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    pull = head.factor * upstream
    scratch = Scratch(hidden.device)
    for rows in spans(hidden.size(0), TOKENS):
        states = hidden[rows].float()
        for columns in _tiles(rows, weight):
            # taken out, so that its memory is free before the next rows of the gradient are written
            e, reference = kept.take(rows.start, columns.start) or _recompute(
                hidden[rows], weight, bias, head, found.lse[rows], columns, scratch
            )
            factor = -pull[rows] * torch.exp(reference - found.lse[rows])
            scaled = torch.mul(states, factor[:, None], out=scratch.take("states", *states.shape))
            add_product(grad_weight[columns], e.T, scaled, dtype=weight.dtype, fresh=rows.start == 0)
            if grad_bias is not None:
                grad_bias[columns] += e.T @ factor
    at_label = pull * head.slope(found.picked)
    grad_weight.index_add_(0, labels, hidden * at_label[:, None])
    if grad_bias is not None:
        grad_bias.index_add_(0, labels, at_label)
    return grad_weight, grad_bias


def _recompute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    head: Head,
    lse: Tensor,
    columns: slice,
    scratch: Scratch,
) -> tuple[Tensor, Tensor]:
    """Exponentials of one tile, and what they were taken against: the sum, known by now."""
    x = scratch.take("logits", hidden.size(0), columns.stop - columns.start)
    slope = project(hidden, weight[columns], None if bias is None else bias[columns], head, out=x)
    x.sub_(lse[:, None]).exp_()
    return (x if slope is None else x.mul_(slope)), lse
