"""Where each token of a padded batch is computed: trees of a shared prompt and its branches, put into few rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
PADDING = -1
"""Tree of the tokens that fill a row; they see only each other."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Sequences that start alike: the shared tokens once, then what is left of each sequence, in turn."""

    sequences: tuple[int, ...]
    """Rows of the padded batch."""
    shared: int
    """Number of leading tokens that all of them share."""
    ends: tuple[int, ...]
    """Number of tokens computed of each sequence: those before its last label."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the tree takes."""
        return self.shared + sum(self.answers)

    @property
    def answers(self) -> tuple[int, ...]:
        """Number of tokens of each sequence after the shared ones."""
        return tuple(end - self.shared for end in self.ends)

    @property
    def pairs(self) -> int:
        """Number of pairs of tokens in the blocks of the prompt, and of each answer with the prompt and itself."""
        return self.shared**2 + sum((end - self.shared) * end for end in self.ends)


class Rows(NamedTuple):
    """The packed rows [R, W], and where the padded batch's tokens are in them."""

    ids: Ints
    positions: Ints
    """Position of each token in its own sequence."""
    trees: Ints
    """Tree of each token; PADDING for what fills a row."""
    branches: Ints
    """Branch of each token within its tree, from 1; 0 for shared tokens."""
    places: Ints
    """[B, L], index into the flattened rows of each token of the batch; 0 for tokens that are not computed."""


class Cost(NamedTuple):
    """The cost of a forward, in tokens: their number, and `attention` for each pair that attention computes."""

    attention: float
    """Cost of a token's attention to one other, relative to all its other products."""
    split: bool = False
    """Whether attention computes each tree's own pairs, instead of all pairs of a row."""

    def of(self, rows: Sequence[Sequence[Tree]]) -> float:
        """The cost of packed rows."""
        count, wide = len(rows), width(rows)
        pairs = sum(tree.pairs for row in rows for tree in row) if self.split else count * wide**2
        return count * wide + self.attention * pairs

    def padded(self, count: int, wide: int, *, masked: bool) -> float:
        """The cost of `count` sequences padded to `wide` tokens; half of the pairs are left out without a mask."""
        return count * wide * (1 + self.attention * wide / (1 if masked else 2))


def trees_of(ids: Ints, first_label: Ints, last_label: Ints) -> Iterator[Tree]:
    """Group the sequences of a batch [B, L] by their prompts, the tokens before the first label.

    `first_label` and `last_label` [B] are positions; a sequence without labels has 0 for both, and gets no tree.
    """
    groups: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(last_label > 0).tolist():
        groups.setdefault(ids[row, : first_label[row]].tobytes(), []).append(row)
    for group in groups.values():
        ends = last_label[group]
        block = ids[group, : ends.min()]
        differs = (block != block[0]).any(axis=0)
        shared = int(differs.argmax()) if differs.any() else len(differs)
        yield Tree(tuple(group), shared, tuple(ends.tolist()))


def arrange(trees: Sequence[Tree], cost: Cost) -> list[list[Tree]]:
    """Put the trees into rows, first-fit-decreasing, with the capacity of a row that costs least."""
    order = sorted(trees, key=lambda tree: -tree.tokens)
    largest, total = order[0].tokens, sum(tree.tokens for tree in order)
    capacities = {min(total, -(-largest * eighths // 8)) for eighths in (8, 9, 10, 12, 16, 24, 32, 64)}
    found = [_first_fit(order, capacity) for capacity in sorted(capacities)]
    return min(found, key=cost.of)


def width(rows: Sequence[Sequence[Tree]]) -> int:
    """The tokens of the fullest row."""
    return max(sum(tree.tokens for tree in row) for row in rows)


def _first_fit(order: Sequence[Tree], capacity: int) -> list[list[Tree]]:
    rows: list[list[Tree]] = []
    free: list[int] = []
    for tree in order:
        at = next((at for at, left in enumerate(free) if left >= tree.tokens), None)
        if at is None:
            at = len(rows)
            rows.append([])
            free.append(capacity)
        rows[at].append(tree)
        free[at] -= tree.tokens
    return rows


def lay_out(ids: Ints, rows: Sequence[Sequence[Tree]]) -> Rows:
    """Write the trees' tokens, from the padded batch `ids` [B, L], into packed rows."""
    count, wide = len(rows), width(rows)
    packed, trees = np.zeros((count, wide), np.int64), np.full((count, wide), PADDING, np.int64)
    positions = np.tile(np.arange(wide), (count, 1))
    branches, places = np.zeros((count, wide), np.int64), np.zeros(ids.shape, np.int64)
    number = 0
    for at, row in enumerate(rows):
        start = 0
        for tree in row:
            first, shared = tree.sequences[0], tree.shared
            parts = [(first, 0, shared, 0)]
            parts += [
                (sequence, shared, end, branch)
                for branch, (sequence, end) in enumerate(zip(tree.sequences, tree.ends, strict=True), 1)
            ]
            places[list(tree.sequences), :shared] = at * wide + start + np.arange(shared)
            for sequence, begin, end, branch in parts:
                to = slice(start, start + end - begin)
                packed[at, to] = ids[sequence, begin:end]
                positions[at, to] = np.arange(begin, end)
                trees[at, to], branches[at, to] = number, branch
                places[sequence, begin:end] = at * wide + np.arange(to.start, to.stop)
                start = to.stop
            number += 1
    return Rows(packed, positions, trees, branches, places)
