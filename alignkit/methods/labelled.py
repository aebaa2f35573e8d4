"""Base class of methods on labelled rows: a loss over the log-probs of single answers and the step's baseline."""

from dataclasses import replace
from typing import ClassVar

import torch

from alignkit.kernels import costs
from alignkit.losses import LabelledLogps, LabelledLoss
from alignkit.methods.base import Method
from alignkit.methods.work import Batch, Pass, Plan, Work, policy_use
from alignkit.sections import RunSections


class LabelledMethod(Method):
    """A method on labelled rows. A subclass declares its options as fields and defines `loss`."""

    rows: ClassVar[str] = "labelled"
    held_out_metrics: ClassVar[frozenset[str]] = frozenset(
        {"valid_rewards_accuracies", "valid_rewards_margins", "valid_mean_token_accuracy"}
    )
    term_effects: ClassVar[frozenset[str]] = frozenset({"parameters"})
    uses_reference: ClassVar[bool] = True
    """Always true, since the baseline is a log-ratio to the reference."""

    def loss(self, rows: LabelledLogps) -> LabelledLoss:
        """Return losses and rewards of B answers. The trainer averages over the answers of the optimizer step."""
        raise NotImplementedError

    def plan(self, recipe: RunSections) -> Plan:
        """Plan passes of policy and reference over the answers and as many mismatched ones, which do not train.

        If the reference's log-probs are stored, the policy scores each row once, before its first step.
        """
        policy = policy_use(recipe)
        models = {"policy": policy}
        stored = recipe.training.reference_store == "on"
        if policy.lora is None and not stored:
            models["reference"] = replace(policy, trains=False)
        reference = "reference" if "reference" in models else "policy"

        def work(batch: Batch) -> Work:
            tokens, size = batch.tokens(batch.rows), batch.heads["policy"]
            head = costs.log_probs(tokens, size, gpu=batch.gpu)
            frozen = costs.log_probs(tokens, replace(size, has_gradient=False), gpu=batch.gpu)
            train = Pass("policy", batch.rows, batch.length, trains=True, head=head)
            mismatched = Pass("policy", batch.rows, batch.length, head=frozen, purpose="scoring")
            score = Pass(reference, batch.rows, batch.length, times=2, head=frozen, purpose="reference")
            if stored:
                return Work((mismatched, train), scoring=(replace(score, times=2 / batch.rows),))
            return Work((mismatched, train, score))

        return Plan(models, work)

    def try_out(self) -> None:
        """Run the loss on four answers. Raises ValueError unless each gets a finite, differentiable loss."""
        name = type(self).__name__
        if not self.uses_reference:
            raise ValueError(
                f"{name}: expected uses_reference = True: the baseline of labelled rows needs the reference"
            )
        logps = torch.tensor([-9.0, -8.0, -7.0, -6.0], requires_grad=True)
        desirable = torch.tensor([True, False, True, False])
        tokens, baseline = torch.tensor([4, 3, 2, 1]), torch.tensor(0.5)
        rows = LabelledLogps(logps, logps.detach() - 0.5, desirable, tokens, baseline)
        try:
            found = self.loss(rows)
        except Exception as error:  # the method is the user's, and may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name}.loss fails on four answers: {reason}") from error
        if problem := _problem(found):
            raise ValueError(f"{name}.loss: {problem}")


def _problem(found: object) -> str | None:
    """Why the result of a loss over four answers is wrong; None if it is sound."""
    if not isinstance(found, LabelledLoss):
        return f"expected a LabelledLoss, found {type(found).__name__}"
    for name in ("losses", "rewards"):
        shape = list(getattr(found, name).shape)
        if shape != [4]:
            return f"expected {name} of shape [4] for four answers, found {shape}"
    if not found.losses.requires_grad:
        return "expected losses with a gradient to the policy's log-probs, found none"
    if not bool(torch.isfinite(found.losses).all()):
        return f"expected finite losses, found {found.losses.tolist()}"
    return None
