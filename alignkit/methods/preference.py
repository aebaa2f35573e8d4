"""Base class of methods on preference pairs: a loss over the log-probs of both answers."""

from dataclasses import replace
from typing import Any, ClassVar

import torch

from alignkit.kernels import costs
from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods.base import Method
from alignkit.methods.work import Batch, Pass, Plan, Work, policy_use
from alignkit.sections import RunSections


class PairMethod(Method):
    """A method on preference pairs. A subclass declares its options as fields and defines `loss`."""

    rows: ClassVar[str] = "preference"
    packs: ClassVar[bool] = True
    held_out_metrics: ClassVar[frozenset[str]] = frozenset(
        {
            "valid_rewards_accuracies",
            "valid_rewards_margins",
            "valid_rewards_ece",
            "valid_mean_token_accuracy",
        }
    )
    term_effects: ClassVar[frozenset[str]] = frozenset({"weights", "extras", "parameters"})
    uses_reference: ClassVar[bool] = True
    """Whether the loss reads the reference's log-probs. If False, no reference is loaded or run."""

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """Return losses and rewards of B pairs. The trainer averages over the pairs of the optimizer step."""
        raise NotImplementedError

    def plan(self, recipe: RunSections) -> Plan:
        """Plan one forward of both answers, then one of the reference: the adapter disabled, or a second model.

        If the reference's log-probs are stored, the policy scores each row once, before its first step.
        """
        policy = policy_use(recipe)
        models = {"policy": policy}
        stored = recipe.training.reference_store == "on"
        if self.uses_reference and policy.lora is None and not stored:
            models["reference"] = replace(policy, trains=False)

        def work(batch: Batch) -> Work:
            sequences = 2 * batch.rows
            tokens, size = batch.tokens(sequences), batch.heads["policy"]
            head = costs.log_probs(tokens, size, gpu=batch.gpu)
            train = Pass("policy", sequences, batch.length, trains=True, head=head)
            if not self.uses_reference:
                return Work((train,))
            frozen = costs.log_probs(tokens, replace(size, has_gradient=False), gpu=batch.gpu)
            reference = "reference" if "reference" in models else "policy"
            score = Pass(reference, sequences, batch.length, head=frozen, purpose="reference")
            if stored:
                return Work((train,), scoring=(replace(score, times=1 / batch.rows),))
            return Work((train, score))

        return Plan(models, work)

    def gives_rewards(self) -> bool:
        """Return whether the loss returns rewards with a gradient, which some terms need."""
        return self.loss(self.four_pairs(0.5)).rewards is not None

    def start_loss(self) -> float | None:
        """Return the loss of every pair while the policy equals the reference; None if it differs between pairs."""
        if not self.uses_reference:
            return None
        with torch.no_grad():
            losses = self.loss(self.four_pairs(0.0)).losses
        first = float(losses[0])
        return first if torch.allclose(losses, losses[0], rtol=1e-6, atol=0) else None

    def four_pairs(self, above: float) -> PairLogps:
        """Four pairs whose log-probs under the policy are `above` those under the reference."""
        policy = torch.tensor([[-9.0, -8.0, -7.0, -6.0], [-5.0, -6.0, -7.0, -8.0]], requires_grad=True)
        reference: Any = (policy.detach() - above).unbind() if self.uses_reference else (None, None)
        lengths = torch.tensor([[4, 3, 2, 1], [1, 2, 3, 4]])
        return PairLogps(policy[0], policy[1], reference[0], reference[1], lengths[0], lengths[1])

    def try_out(self) -> None:
        """Run the loss on four pairs. Raises ValueError unless each gets a finite, differentiable loss."""
        try:
            found = self.loss(self.four_pairs(0.5))
        except Exception as error:  # the method is the user's, and may raise anything
            absent = "" if self.uses_reference else ", with ref_chosen and ref_rejected None (uses_reference)"
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{type(self).__name__}.loss fails on four pairs{absent}: {reason}") from error
        if problem := _problem(found):
            raise ValueError(f"{type(self).__name__}.loss: {problem}")


def _problem(found: object) -> str | None:
    """Why the result of a loss over four pairs is wrong; None if it is sound."""
    if not isinstance(found, PreferenceLoss):
        return f"expected a PreferenceLoss, found {type(found).__name__}"
    for name in ("losses", "chosen_rewards", "rejected_rewards"):
        shape = list(getattr(found, name).shape)
        if shape != [4]:
            return f"expected {name} of shape [4] for four pairs, found {shape}"
    if not found.losses.requires_grad:
        return "expected losses with a gradient to the policy's log-probs, found none"
    if not bool(torch.isfinite(found.losses).all()):
        return f"expected finite losses, found {found.losses.tolist()}"
    return None
