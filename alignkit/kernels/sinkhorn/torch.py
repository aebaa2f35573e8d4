"""The PyTorch engine of `sinkhorn`: matrix-vector products with a kernel that is made again when potentials move far.

With potentials a, b and the kernel K = exp(S + a + b), u = exp(f - a) and v = exp(g - b) scale K to exp(S + f + g). A
step of the rows is u = 1 / (K v), one of the columns v = 1 / (K' u): products instead of exponentials. Where rows sum
to one a column's sum is at most n, and its next factor moves by at most log n; so does a row's where columns do. The
kernel is made again before u or v leave [e^-REACH, e^REACH], so an entry of K that underflows is below e^-40 of its
row's sum. The first step of each side is a logsumexp, since nothing bounds it.

The gradient of T iterations is a sum of 2 T matrices, each K scaled by a row and a column vector. With one kernel it
is K times the product of [n, 2 T] and [2 T, n].
"""

import torch
from torch import Tensor

from alignkit.kernels.products import float32_products
from alignkit.kernels.sinkhorn.records import Engine

REACH = 20.0
"""How far a potential may be from that of the kernel."""


class _Kernel:
    """The matrices K = exp(S + a + b) [p, n, n] of p problems, and the terms of a gradient that they share."""

    def __init__(self, scores: Tensor, a: Tensor, b: Tensor) -> None:
        """Make K from scores [p, n, n] and potentials [p, n]."""
        self.a, self.b = a, b
        self.values = (scores + a[:, :, None]).add_(b[:, None]).exp_()
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []

    def first_within(self, f: Tensor, g: Tensor) -> int:
        """Return the first of t steps from which on the potentials [t, p, n] are within reach of those of K.

        Those of the last step must be. NaN counts as within, so that it goes on into the result.
        """
        away = torch.maximum((f - self.a).abs(), (g - self.b).abs()).amax(dim=(1, 2))
        far = (away > REACH).nonzero()
        return int(far[-1]) + 1 if len(far) else 0

    def by_columns(self, v: Tensor) -> Tensor:
        """Return K v [p, n]."""
        return torch.bmm(self.values, v[:, :, None])[:, :, 0]

    def by_rows(self, u: Tensor) -> Tensor:
        """Return K' u [p, n]."""
        return torch.bmm(u[:, None], self.values)[:, 0]

    def add_term(self, u: Tensor, v: Tensor) -> None:
        """Add u K v, with K between the diagonal matrices of u and v [p, n]."""
        self.left.append(u)
        self.right.append(v)

    def terms(self) -> Tensor:
        """Return the sum of the terms [p, n, n]. Overwrites K."""
        return self.values.mul_(torch.stack(self.left, dim=2).bmm(torch.stack(self.right, dim=1)))


def potentials(scores: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """See `Engine.potentials`."""
    f = scores.new_empty(iterations, *scores.shape[:2])
    g = scores.new_zeros(iterations + 1, *scores.shape[:2])
    f[0] = -scores.logsumexp(dim=2)
    g[1] = -(scores + f[0, :, :, None]).logsumexp(dim=1)
    kernel = None
    with float32_products():
        for step in range(1, iterations):
            if kernel is None or kernel.first_within(f[step - 1 : step], g[step : step + 1]):
                kernel = _Kernel(scores, f[step - 1], g[step])
            f[step] = kernel.a - kernel.by_columns((g[step] - kernel.b).exp_()).log_()
            g[step + 1] = kernel.b - kernel.by_rows((f[step] - kernel.a).exp_()).log_()
    return f, g


def pull_back(scores: Tensor, f: Tensor, g: Tensor, weighted: Tensor) -> Tensor:
    """See `Engine.pull_back`."""
    total, row, column = weighted.clone(), weighted.sum(dim=2), weighted.sum(dim=1)
    step = len(f)
    with float32_products():
        while step:
            kernel = _Kernel(scores, f[step - 1], g[step])
            first = kernel.first_within(f[:step], g[1 : step + 1])
            u, v = (f[first:step] - kernel.a).exp_(), (g[first : step + 1] - kernel.b).exp_()
            for at in reversed(range(step - first)):
                right = v[at + 1] * column
                kernel.add_term(u[at], right)
                row = row - kernel.by_columns(right).mul_(u[at])
                if first + at:
                    left = u[at] * row
                    kernel.add_term(left, v[at])
                    row, column = torch.zeros_like(row), kernel.by_rows(left).mul_(v[at]).neg_()
            total -= kernel.terms()
            step = first
    # the first step of the rows, whose g_0 = 0 may be out of reach
    return total.sub_((scores + f[0, :, :, None]).exp_().mul_(row[:, :, None]))


ENGINE = Engine(potentials, pull_back)
