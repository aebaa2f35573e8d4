"""The PyTorch engine of `linear_divergence`: divergences of a few rows of logits, and their gradients.

With x, y the tempered logits, log q = log_softmax(x) for the student, log p = log_softmax(y) for the teacher:

    forward = sum p (log p - log q)        d/dx = q - p
    reverse = sum q (log q - log p)        d/dx = q (log q - log p - reverse)         d/dy = p - q
    ce      = -log q1[label]               d/dx = q1 - [v = label],  q1 at temperature 1

So every weighted sum of them has a gradient of the same form, `records.LogitGradient`. A `records.TokenDivergence`
brings its own value and gradient, which are added.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.kernels.head import Operands, compute_dtype
from alignkit.kernels.linear_divergence import cost
from alignkit.kernels.linear_divergence.records import (
    DIFFERENTIABLE,
    HeadProduct,
    Layout,
    Name,
    Request,
    logit_gradient,
)


class TorchRows:
    """`records.RowBlock` in PyTorch."""

    def __init__(
        self,
        products: Mapping[Name, Tensor],
        labels: Tensor,
        sides: Mapping[Name, Operands],
        request: Request,
    ) -> None:
        self.labels, self.request = labels[:, None], request
        self.student, self.teacher = (
            _Distribution(products[name], sides[name], self.labels, request) for name in DIFFERENTIABLE
        )
        self.values = self._values()

    @staticmethod
    def layout(sides: Mapping[Name, Operands], count: int, products: Sequence[HeadProduct]) -> Layout:
        """See `RowBlock.layout`. A GPU keeps the matmuls' float32 sums; a CPU rounds them to the operands' dtype.

        A block's values are all that its gradients need, so the first gradient of a side overwrites its logits. The
        bytes of these buffers go to more rows: with 64 rows a matmul reaches about two thirds of its rate.
        """
        weights = {name: side.weight for name, side in sides.items()}
        vocabulary, gpu = weights["student"].size(0), weights["student"].is_cuda
        dtypes = {name: compute_dtype(weight) if gpu else weight.dtype for name, weight in weights.items()}
        over = {
            p.side: i for i, p in reversed([*enumerate(products)]) if dtypes[p.side] == weights[p.side].dtype
        }
        share = (len(sides) + len(products)) / (len(sides) + len(products) - len(over))
        budget = cost.GPU_BUFFER_BYTES // 2 if gpu else cost.CPU_CHUNK_BYTES
        rows = min(count, max(1, int(budget * share) // (4 * vocabulary)))
        block = rows if gpu else _even(max(1, cost.CPU_BLOCK_BYTES // (4 * vocabulary)))
        logits = {
            name: weight.new_empty(rows, vocabulary, dtype=dtypes[name]) for name, weight in weights.items()
        }
        gradients = [
            logits[p.side] if over.get(p.side) == i else weights[p.side].new_empty(rows, vocabulary)
            for i, p in enumerate(products)
        ]
        return Layout(rows, block, 1, logits, gradients)

    def _values(self) -> dict[str, Tensor]:
        q, p, request = self.student, self.teacher, self.request
        self.gap = p.log - q.log
        values = {
            "forward_kl": self._expect(p.prob, self.gap),
            "reverse_kl": -self._expect(q.prob, self.gap),
        }
        values["teacher_reverse_kl"] = values["reverse_kl"]
        if request.divergence is not None:
            values["divergence"] = request.divergence.value(p.prob, q.prob, p.log, q.log)
        for name, side in (("student", q), ("teacher", p)):
            log, prob = (side.log_one, side.prob_one()) if request.separate_entropy else (side.log, side.prob)
            values[f"{name}_entropy"] = -self._expect(prob, log)
            if request.labelled:
                values[f"{name}_ce"] = -side.log_one.gather(1, self.labels).squeeze(1)
            if side.hits is not None:
                values[f"{name}_top1"] = side.hits
        return values

    def _expect(self, prob: Tensor, value: Tensor) -> Tensor:
        """Sum prob * value over each row. Where prob is 0 the term is 0."""
        if self.request.has_masked_columns:
            value = value.masked_fill(prob == 0, 0.0)
        return torch.linalg.vecdot(prob, value)

    def gradient(self, side: Name, weights: Mapping[str, Tensor], out: Tensor) -> None:
        """See `RowBlock.gradient`."""
        own, other = (self.student, self.teacher) if side == "student" else (self.teacher, self.student)
        weighted = logit_gradient(side, weights, self.values)
        constant = weighted.constant[:, None]
        toward, away, label = (None if weight is None else weight[:, None] for weight in weighted[1:])
        # in place where `out` can hold it: each pass over a block costs time beside the products
        total = out if out.dtype == own.prob.dtype else torch.empty_like(own.prob)
        if away is None:
            torch.mul(own.prob, constant, out=total)
        else:
            torch.addcmul(constant, self.gap, away, value=-1, out=total).mul_(own.prob)
        if self.request.has_masked_columns:
            total.masked_fill_(own.prob == 0, 0.0)
        if toward is not None:
            total.addcmul_(other.prob, toward, value=-1)
        if self.request.divergence is not None and "divergence" in weights:
            pull = self.request.divergence.pull(other.prob, own.prob, other.log, own.log)
            total.addcmul_(pull, weights["divergence"][:, None])
        if not self.request.plain:
            total /= self.request.temperature
        if label is not None:
            total.addcmul_(own.prob_one(), label).scatter_add_(1, self.labels, -label)
        if own.slope is not None:
            total *= own.slope
        if own.scale != 1.0:
            total *= own.scale
        if total is not out:
            out.copy_(total)


def _even(rows: int) -> int:
    """Round rows to a multiple of the threads that share them, so that none waits for another's last row."""
    threads = min(torch.get_num_threads(), cost.CPU_BLOCK_THREADS)
    return max(rows, threads) // threads * threads


class _Distribution:
    """One model's rows: log-probs and probabilities at the temperature, and log-probs at temperature 1."""

    def __init__(self, products: Tensor, side: Operands, labels: Tensor, request: Request) -> None:
        x = products.to(torch.promote_types(products.dtype, torch.float32))
        self.slope = side.transform.apply_(x, side.bias, slope=bool(request.differentiable))
        self.scale = side.transform.scale
        self.hits = x.argmax(dim=1) == labels.squeeze(1) if request.top1 else None
        self.log = torch.log_softmax(x if request.plain else x.div_(request.temperature), dim=1)
        self.prob = self.log.exp()
        self.plain = request.plain
        self.log_one = self.log
        if not request.plain and (request.labelled or request.separate_entropy):
            # log_softmax ignores a shift of its input, so the tempered log-probs can serve as logits
            self.log_one = torch.log_softmax(self.log * request.temperature, dim=1)

    def prob_one(self) -> Tensor:
        """Return the probabilities at temperature 1."""
        return self.prob if self.plain else self.log_one.exp()


ENGINE = TorchRows
