"""Records that loss functions take and return."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class PairLogps(NamedTuple):
    """Log-probs of the answers of B preference pairs, each given its prompt and summed over its tokens, in nats."""

    chosen: Tensor
    """[B], log-prob of the chosen answer under the policy, float32, differentiable."""
    rejected: Tensor
    """[B], log-prob of the rejected answer under the policy, float32, differentiable."""
    ref_chosen: Tensor
    """[B], log-prob of the chosen answer under the reference. None if the method's `uses_reference` is False."""
    ref_rejected: Tensor
    """[B], log-prob of the rejected answer under the reference. None if the method's `uses_reference` is False."""
    chosen_tokens: Tensor
    """[B], number of tokens of the chosen answer, at least 1."""
    rejected_tokens: Tensor
    """[B], number of tokens of the rejected answer, at least 1."""

    def averaged(self) -> "PairLogps":
        """Return the pairs with each log-prob divided by its answer's number of tokens."""
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
    """[B], implicit rewards of the preferred answers, detached."""
    rejected_rewards: Tensor
    """[B], implicit rewards of the dispreferred answers, detached."""
    rewards: tuple[Tensor, Tensor] | None = None
    """The rewards ([B] chosen, [B] rejected) with their gradient, for terms; None if the loss gives none."""

    @classmethod
    def of(cls, losses: Tensor, chosen: Tensor, rejected: Tensor) -> "PreferenceLoss":
        """Return a loss whose rewards keep their gradient in `rewards`, so that every term can use them."""
        return cls(losses, chosen.detach(), rejected.detach(), (chosen, rejected))

    def plus(self, further: Tensor) -> "PreferenceLoss":
        """Return a copy with `further` [B] added to the losses. The rewards stay the same."""
        return replace(self, losses=self.losses + further)


class LabelledLogps(NamedTuple):
    """Log-probs of B labelled answers, each given its prompt and summed over its tokens, in nats."""

    logps: Tensor
    """[B], log-probs under the policy, float32, differentiable."""
    ref_logps: Tensor
    """[B], log-probs under the reference, float32."""
    desirable: Tensor
    """[B] bool, whether the answer is labelled desirable."""
    tokens: Tensor
    """[B], number of tokens of the answer, at least 1."""
    baseline: Tensor
    """Scalar >= 0 without gradient: the mean log-ratio of mismatched answers, an estimate of KL(policy || reference).

    The mean is over all rows of the optimizer step, or in an evaluation over all held-out rows, not only these B.
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
    """Scalar, detached: the largest error of a marginal, a measure of the distance to convergence."""
    cost: Tensor
    """Scalar, detached: the loss without the pairing term."""
    gap: Tensor
    """Scalar, detached: the pairing term, not multiplied by its weight; 0 if its weight is 0."""
    steps: int
    """Steps of the solver; 0 for Sinkhorn's fixed number of iterations."""


@dataclass(frozen=True, slots=True)
class BalancedLoss:
    """Two mutual distillation losses over N rows, float32 (float64 for float64 input)."""

    student: Tensor
    """[N], temperature^2 (w_F forward KL + w_R reverse KL), with gradient to the student only."""
    teacher: Tensor
    """[N], temperature^2 reverse KL, with gradient to the teacher only; without gradient if the teacher is frozen."""
    forward_kl: Tensor
    """[N], KL(teacher || student) in nats, detached, not multiplied by temperature^2."""
    reverse_kl: Tensor
    """[N], KL(student || teacher) in nats, detached, not multiplied by temperature^2."""
    student_entropy: Tensor
    """[N], entropy of the student's distribution in nats, detached."""
    teacher_entropy: Tensor
    """[N], entropy of the teacher's distribution in nats, detached."""
    forward_weight: Tensor
    """[N], the gate's weight w_F of the forward KL, detached."""


class SampleLogps(NamedTuple):
    """Log-probs in nats of the answers to B prompts: K samples of the model and one dispreferred answer each."""

    samples: Tensor
    """[B, K], log-probs of the samples under the policy, float32, differentiable."""
    ref_samples: Tensor
    """[B, K], log-probs of the samples under their reference."""
    rejected: Tensor
    """[B], log-probs of the dispreferred answers under the policy, float32, differentiable."""
    ref_rejected: Tensor
    """[B], log-probs of the dispreferred answers under their reference."""
    mask: Tensor
    """[B, K] bool, True for the samples that exist; at least one per prompt."""


class TokenLogps(NamedTuple):
    """Log-probs in nats of the tokens of B answers, each given the tokens before it."""

    logps: Tensor
    """[B, L], float32, differentiable; zero outside the loss mask."""
    mask: Tensor
    """[B, L] bool, the loss mask."""


@dataclass(frozen=True, slots=True)
class CompletionLoss:
    """A loss over the tokens of B answers, float32 (float64 for float64 input)."""

    losses: Tensor
    """[B], sums over each answer's loss tokens, differentiable. The caller divides by the optimizer step's tokens."""
