"""Records that the loss functions take and return."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class PairLogps(NamedTuple):
    """Log-probs of B preference pairs: of each answer given its prompt, summed over the answer's tokens, in nats."""

    chosen: Tensor
    """[B], of the chosen answer under the policy, float32, differentiable."""
    rejected: Tensor
    """[B], of the rejected answer under the policy, float32, differentiable."""
    ref_chosen: Tensor
    """[B], of the chosen answer under the reference. None for a method whose `uses_reference` is False."""
    ref_rejected: Tensor
    """[B], of the rejected answer under the reference. None for a method whose `uses_reference` is False."""
    chosen_tokens: Tensor
    """[B], tokens of the chosen answer, at least 1."""
    rejected_tokens: Tensor
    """[B], tokens of the rejected answer, at least 1."""

    def averaged(self) -> "PairLogps":
        """The same pairs with each log-prob divided by its answer's number of tokens."""
        chosen, rejected = self.chosen_tokens, self.rejected_tokens
        return self._replace(
            chosen=self.chosen / chosen,
            rejected=self.rejected / rejected,
            ref_chosen=self.ref_chosen if self.ref_chosen is None else self.ref_chosen / chosen,
            ref_rejected=self.ref_rejected if self.ref_rejected is None else self.ref_rejected / rejected,
        )


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """A preference loss over B items, float32 (float64 for float64 input)."""

    losses: Tensor
    """[B], differentiable; the caller reduces."""
    chosen_rewards: Tensor
    """[B], implicit rewards of the preferred side, detached."""
    rejected_rewards: Tensor
    """[B], implicit rewards of the dispreferred side, detached."""

    def plus(self, further: Tensor) -> "PreferenceLoss":
        """The same rewards, with `further` [B] added to the losses."""
        return replace(self, losses=self.losses + further)


class LabelledLogps(NamedTuple):
    """Log-probs of B labelled answers, each given its prompt and summed over its tokens, in nats."""

    logps: Tensor
    """[B], under the policy, float32, differentiable."""
    ref_logps: Tensor
    """[B], under the reference, float32."""
    desirable: Tensor
    """[B] bool, whether the answer is a desirable one."""
    tokens: Tensor
    """[B], tokens of the answer, at least 1."""
    baseline: Tensor
    """Scalar >= 0 without gradient: the mean log-ratio of mismatched answers, an estimate of KL(policy || reference).

    It is of all rows of the optimizer step, or of all held-out rows in an evaluation, not of these B rows alone.
    """


@dataclass(frozen=True, slots=True)
class LabelledLoss:
    """A loss over B labelled answers, float32 (float64 for float64 input)."""

    losses: Tensor
    """[B], differentiable; the caller reduces."""
    rewards: Tensor
    """[B], implicit rewards, detached."""


@dataclass(frozen=True, slots=True)
class SinkhornLoss:
    """A transport loss over n student and n teacher rows, float32 (float64 for float64 input)."""

    loss: Tensor
    """Scalar, differentiable."""
    plan: Tensor
    """[n, n], student rows by teacher rows, columns summing to one, detached."""
    residual: Tensor
    """Scalar, the largest error of a marginal, detached: how far the iterations are from the optimum."""


@dataclass(frozen=True, slots=True)
class BalancedLoss:
    """Two mutual distillation losses over N rows, float32 (float64 for float64 input)."""

    student: Tensor
    """[N], temperature^2 (w_F forward KL + w_R reverse KL), with gradient to the student only."""
    teacher: Tensor
    """[N], temperature^2 reverse KL, with gradient to the teacher only; none where the teacher is frozen."""
    forward_kl: Tensor
    """[N], KL(teacher || student) in nats, detached, without the square of the temperature."""
    reverse_kl: Tensor
    """[N], KL(student || teacher) in nats, detached, without the square of the temperature."""
    student_entropy: Tensor
    """[N], nats, detached."""
    teacher_entropy: Tensor
    """[N], nats, detached."""
    forward_weight: Tensor
    """[N], w_F, detached: what the gate chose."""


class SampleLogps(NamedTuple):
    """Log-probs of B prompts' answers in nats: K samples of the model's own and one dispreferred answer a prompt."""

    samples: Tensor
    """[B, K], under the policy, float32, differentiable."""
    ref_samples: Tensor
    """[B, K], under the samples' reference."""
    rejected: Tensor
    """[B], of the dispreferred answer under the policy, float32, differentiable."""
    ref_rejected: Tensor
    """[B], of the dispreferred answer under its reference."""
    mask: Tensor
    """[B, K] bool, which samples there are; at least one a prompt."""


class TokenLogps(NamedTuple):
    """Log-probs in nats of the tokens of B answers, each given what precedes it."""

    logps: Tensor
    """[B, L], float32, differentiable; zero where no loss falls."""
    mask: Tensor
    """[B, L] bool, the tokens that carry loss."""


@dataclass(frozen=True, slots=True)
class CompletionLoss:
    """A loss over the tokens of B answers, float32 (float64 for float64 input)."""

    losses: Tensor
    """[B], sums over each answer's tokens, differentiable; the caller divides by the tokens of a whole step."""
