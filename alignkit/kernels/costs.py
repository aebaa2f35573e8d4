"""Memory and operations of the fused heads, from the buffer sizes in each op's `cost` and docs/kernels.md."""

from dataclasses import dataclass
from typing import NamedTuple

from alignkit.kernels.gpu_plan import PARTS_SHARE
from alignkit.kernels.linear_divergence import cost as divergence_cost
from alignkit.kernels.linear_logprob import cost as logprob_cost
from alignkit.kernels.pairwise_l1 import cost as distance_cost

FLOAT = 4


@dataclass(frozen=True, slots=True)
class HeadSize:
    """The sizes and flags of one model's head that determine its cost."""

    hidden: int
    vocabulary: int
    itemsize: int
    """Bytes per weight in matmuls."""
    has_gradient: bool
    """Whether the hidden states get a gradient, because the model trains."""
    trains: bool
    """Whether the head's own weight trains."""


class HeadCost(NamedTuple):
    """Bytes and operations of fused heads over the tokens of one forward."""

    kept: int = 0
    """Bytes kept from the forward to the backward."""
    forward: int = 0
    """Bytes of buffers in the forward, without `kept`."""
    backward: int = 0
    """Bytes in the backward, including gradients of the head's weight, without `kept`."""
    flops: float = 0.0

    def __add__(self, other: object) -> "HeadCost":
        """Combine two heads that run in sequence: kept bytes and gradients add up, forward buffers are reused."""
        if not isinstance(other, HeadCost):
            return NotImplemented
        return HeadCost(
            self.kept + other.kept,
            max(self.forward, other.forward),
            self.backward + other.backward,
            self.flops + other.flops,
        )


NO_HEAD = HeadCost()


def log_probs(tokens: int, head: HeadSize, *, gpu: bool) -> HeadCost:
    """Return the cost of `linear_logprob` with entropy and top-1, as the trainers call it."""
    states = tokens * head.hidden * head.itemsize
    logits = tokens * head.vocabulary
    buffer = (
        min(int(logprob_cost.BUFFER_BYTES * (1 + PARTS_SHARE)), logits * FLOAT)
        if gpu
        else 2 * min(logprob_cost.TILE_BYTES, logits * FLOAT)
    )
    unit = 2.0 * tokens * head.hidden * head.vocabulary
    if not head.has_gradient:
        return HeadCost(0, states + buffer, 0, unit)
    direction = states if gpu else states + min(tokens, logprob_cost.TOKENS) * head.hidden * FLOAT
    if not head.trains:
        return HeadCost(states, direction + buffer, states, 2 * unit)
    whole = logits * (head.itemsize if gpu else FLOAT)
    shelf = min(logprob_cost.GPU_KEPT_BYTES if gpu else logprob_cost.KEPT_BYTES, whole)
    # on a GPU each part of the gradient is one matmul, written in the weight's dtype
    gradient = head.hidden * head.vocabulary * head.itemsize if gpu else _weight_gradient(head)
    again = unit * (1 - shelf / max(1, whole))
    # on a CPU kept tiles are freed as the gradient's rows are written, so the two do not add up
    backward = states + buffer + (gradient if gpu else max(0, gradient - shelf))
    return HeadCost(2 * states + shelf, direction + buffer, backward, 3 * unit + again)


def divergence(tokens: int, student: HeadSize, teacher: HeadSize, *, gpu: bool) -> HeadCost:
    """Return the cost of `linear_divergence` with an objective over the models that train."""
    sides = (student, teacher)
    trained = [side for side in sides if side.has_gradient]
    vocabulary = min(side.vocabulary for side in sides)
    if gpu:  # the last gradient overwrites its model's logits
        size = 2 * FLOAT + sum(side.itemsize for side in trained[1:])
        room = int(divergence_cost.GPU_BUFFER_BYTES * (1 + PARTS_SHARE))
        products, rooms = min(tokens * vocabulary * size, room), 0
    else:
        elements = min(tokens * vocabulary, divergence_cost.CPU_CHUNK_BYTES // FLOAT)
        products = sum(elements * side.itemsize for side in sides)
        rooms = sum(elements * side.itemsize for side in trained)
    states = sum(tokens * side.hidden * side.itemsize for side in sides)
    pulled = sum(tokens * side.hidden * side.itemsize for side in trained)
    unit = 2.0 * tokens * vocabulary
    logits = unit * sum(side.hidden for side in sides)
    to_states = unit * sum(side.hidden for side in trained)
    if not any(side.trains for side in sides):
        return HeadCost(states + pulled, products + rooms, pulled, logits + to_states)
    # with an objective the forward makes the heads' gradients as well
    weights = sum(_weight_gradient(side) for side in trained if side.trains)
    flops = logits + to_states + unit * sum(side.hidden for side in trained if side.trains)
    return HeadCost(states + pulled + weights, products + rooms, 0, flops)


def transport(
    rows: int, sets: int, student: HeadSize, teacher: HeadSize, *, vectors: int, matrices: int = 2
) -> HeadCost:
    """Return the cost of `pairwise_l1` and a solver of `plans` for `sets` sets of `rows` tokens each.

    The solver keeps `vectors` vectors of each set and needs buffers of `matrices` matrices. Its own operations are
    few beside those of the costs, and are not counted.
    """
    vocabulary = min(student.vocabulary, teacher.vocabulary)
    matrix = rows * rows * FLOAT
    states = rows * (student.hidden * student.itemsize + teacher.hidden * teacher.itemsize)
    kept = sets * (3 * matrix + states + vectors * rows * FLOAT)
    gradient = student.vocabulary * student.hidden * student.itemsize if student.trains else 0
    logits = 2 * rows * vocabulary * FLOAT if distance_cost.keeps_logits(2 * rows, vocabulary, FLOAT) else 0
    unit = 2.0 * sets * rows * vocabulary
    products = unit * (3 * (student.hidden + teacher.hidden) + student.hidden * (2 if student.trains else 1))
    pairs = 9.0 * sets * rows * rows * vocabulary
    return HeadCost(kept, max(matrices * matrix, logits), matrices * matrix + gradient, products + pairs)


def _weight_gradient(head: HeadSize) -> int:
    """Bytes of the float32 sums, plus a copy in the weight's dtype if that differs."""
    elements = head.hidden * head.vocabulary
    return elements * (FLOAT if head.itemsize == FLOAT else FLOAT + head.itemsize)
