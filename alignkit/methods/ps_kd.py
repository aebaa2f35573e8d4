"""PS-KD: supervised fine-tuning whose targets move from the data's tokens to the model's own past predictions."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from alignkit.errors import FieldIssue
from alignkit.kernels import costs
from alignkit.losses import CompletionLoss, TokenLogps
from alignkit.methods.completion import CompletionMethod
from alignkit.methods.work import Batch, Pass, Plan, Work, policy_use
from alignkit.sections import RunSections
from alignkit.sharding import SHARES_WEIGHTS

_REFRESHES = 4
"""Refreshes of a run that sets no `refresh_steps`."""


class PSKD(CompletionMethod):
    """Supervised fine-tuning on the data's answers and on the model's own past predictions, without a teacher."""

    learning_rate: ClassVar[float] = 2e-4
    paper: ClassVar[str] = "2006.12000"

    type: Literal["ps_kd"] = "ps_kd"
    final_weight: float = Field(
        0.8,
        ge=0,
        le=1,
        description="weight of the past predictions after the last refresh; it grows linearly",
    )
    refresh_steps: int | None = Field(
        None, ge=1, description="steps between refreshes of the past model; default: 4 refreshes in a run"
    )

    def loss(self, answers: TokenLogps) -> CompletionLoss:
        """L = -sum_t log pi(y_t | y_<t): the loss before the first refresh, and of every evaluation."""
        return CompletionLoss(-answers.logps.sum(dim=1))

    def refreshes(self, max_steps: int) -> tuple[int, ...]:
        """Return the steps of a run of `max_steps` after which the past model is refreshed, in order."""
        if self.final_weight == 0:
            return ()
        if self.refresh_steps is None:
            parts = _REFRESHES + 1
            points = {step * max_steps // parts for step in range(1, parts)}
        else:
            points = set(range(self.refresh_steps, max_steps, self.refresh_steps))
        return tuple(sorted(points - {0}))

    def weight(self, step: int, max_steps: int) -> float:
        """Return a, the weight of the past predictions, for the optimizer step after `step` finished ones."""
        points = self.refreshes(max_steps)
        done = sum(point <= step for point in points)
        return self.final_weight * done / len(points) if done else 0.0

    def refusals(self, _recipe: RunSections, _sharded: str | None) -> Iterator[FieldIssue]:
        """Refuse shardings under which no process holds the weights whole, as the past model's are exchanged."""
        if _sharded in SHARES_WEIGHTS:
            message = (
                f"ps_kd exchanges whole weights, which no process has under {_sharded}; use DDP or ZeRO-2"
            )
            yield FieldIssue("method.type", message)

    def plan(self, recipe: RunSections) -> Plan:
        """Plan a forward and backward of every row, a forward of the past model, and the head over both."""
        policy = policy_use(recipe)
        models = {"policy": policy}
        if policy.lora is None:
            models["teacher"] = replace(policy, trains=False)

        def work(batch: Batch) -> Work:
            size = batch.heads["policy"]
            past = replace(size, has_gradient=False, trains=False)
            head = costs.divergence(batch.tokens(batch.rows), size, past, gpu=batch.gpu)
            passes = (
                Pass(
                    "teacher" if "teacher" in models else "policy",
                    batch.rows,
                    batch.length,
                    purpose="teacher",
                ),
                Pass("policy", batch.rows, batch.length, trains=True),
            )
            return Work(passes, heads=head)

        return Plan(models, work)
