"""How often a run evaluates under "auto", so that watching it takes at most a tenth of what training it takes.

Costs are counted in training rows, from what is known before the run: nothing is measured, so that a job, its recipe
and a resumed run have the same values.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

SHARE = 0.1
"""Cost of evaluations and collapse guard over that of training. A run is evaluated at its end in any case."""
EVALUATION_ROW = 1 / 3
"""Cost of a held-out row, which has no backward pass, in training rows."""
TOKENS_PER_ROW = 8
"""Tokens that the guard draws one after another in the time of a training row.

Four answers of 48 tokens took a 135M model on two CPU cores as long as seven rows; they are counted as eight.
"""
SCORED_PROMPT = 0.5
"""Cost of scoring a prompt's answers under policy and reference, in training rows."""
FEWEST_TOKENS, MOST_TOKENS = 16, 48
"""Bounds of an "auto" number of tokens of the guard's answers; in fewer one sees no repetition."""
EVALUATIONS = 8
"""Most evaluations under "auto": more would show the curve no better, and each may store a checkpoint."""


@dataclass(frozen=True, slots=True)
class Watching:
    """What a run trains, and what each evaluation costs: all that decides how often it evaluates."""

    steps: int
    batch_size: int
    held_out_rows: int
    prompts: int
    """Prompts that the collapse guard answers; 0 without a guard."""
    tokens: int | None = None
    """Tokens of the guard's answers; None for "auto"."""

    def guard_tokens(self, evaluations: int = 1) -> int:
        """The most tokens of the guard's answers within the share; at least FEWEST_TOKENS."""
        if self.tokens is not None:
            return self.tokens
        left = self._budget - self._cost(evaluations, 0)
        drawn = left / (evaluations + 1) - self.prompts * SCORED_PROMPT
        return min(max(FEWEST_TOKENS, math.floor(drawn * TOKENS_PER_ROW)), MOST_TOKENS)

    def interval(self, epoch_steps: int, patience: int | None = None) -> int:
        """Steps between as many evaluations as the share and EVALUATIONS allow; at least the last step is evaluated.

        Where an epoch's end can be evaluated each time, it is, because a checkpoint is written there. With early
        stopping, `patience` evaluations without a gain must be possible.
        """
        guard = self._guard(self.guard_tokens())
        each = self._cost(1, guard) - guard
        most = EVALUATIONS if patience is None else max(EVALUATIONS, 2 * (patience + 1))
        allowed = most if each == 0 else min(most, math.floor((self._budget - guard) / each))
        allowed = min(max(1, allowed), self.steps)
        epochs = math.ceil(self.steps / epoch_steps)
        if 1 < epochs <= allowed:
            return next(_divisors(epoch_steps, at_least=math.ceil(epoch_steps / (allowed // epochs))))
        return math.ceil(self.steps / allowed)

    def share(self, evaluations: int) -> float:
        """The share of the run's cost that so many evaluations and the guard have, from 0 to 1."""
        watched = self._cost(evaluations, self._guard(self.guard_tokens(evaluations)))
        return watched / (watched + self.steps * self.batch_size)

    @property
    def _budget(self) -> float:
        return SHARE * self.steps * self.batch_size

    def _guard(self, tokens: int) -> float:
        """The cost of one measurement of the guard, in training rows."""
        return (tokens / TOKENS_PER_ROW + self.prompts * SCORED_PROMPT) if self.prompts else 0.0

    def _cost(self, evaluations: int, guard: float) -> float:
        """The cost of all evaluations, and of the guard at each and before the first step, in training rows."""
        return evaluations * self.held_out_rows * EVALUATION_ROW + (evaluations + 1) * guard


def _divisors(number: int, *, at_least: int) -> Iterator[int]:
    return (size for size in range(at_least, number + 1) if number % size == 0)


def steps_of(rows: int, batch_size: int, epochs: float, max_steps: int | None) -> tuple[int, int]:
    """(steps of a run, steps of an epoch) on `rows` training rows."""
    an_epoch = max(1, math.ceil(rows / batch_size))
    return max_steps or max(1, math.ceil(epochs * an_epoch)), an_epoch
