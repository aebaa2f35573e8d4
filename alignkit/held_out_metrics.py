"""The held-out metrics that can tell a better step of a run from a worse one."""

from dataclasses import dataclass

LOSS = "valid_loss"


@dataclass(frozen=True, slots=True)
class HeldOutMetric:
    """A metric of an evaluation, by the name that a run's events and result give it."""

    name: str
    higher_is_better: bool

    def gain(self, value: float, over: float) -> float:
        """How much better `value` is than `over`, in the metric's unit; negative if it is worse."""
        return value - over if self.higher_is_better else over - value


METRICS = {
    metric.name: metric
    for metric in (
        HeldOutMetric(LOSS, higher_is_better=False),
        HeldOutMetric("valid_mean_token_accuracy", higher_is_better=True),
        HeldOutMetric("valid_rewards_accuracies", higher_is_better=True),
        HeldOutMetric("valid_rewards_margins", higher_is_better=True),
        HeldOutMetric("valid_rewards_ece", higher_is_better=False),
    )
}
"""Name -> metric. Every method logs the loss; `Method.held_out_metrics` names the others that a method logs."""
