"""Base class of methods on completion rows: a loss over the log-probs of the answers' tokens."""

from typing import ClassVar

import torch

from alignkit.kernels import costs
from alignkit.losses import CompletionLoss, TokenLogps
from alignkit.methods.base import Method
from alignkit.methods.work import Batch, Pass, Plan, Work, policy_use
from alignkit.sections import RunSections


class CompletionMethod(Method):
    """A method on prompt-answer rows. A subclass declares its options as fields and defines `loss`."""

    rows: ClassVar[str] = "completion"
    held_out_metrics: ClassVar[frozenset[str]] = frozenset({"valid_mean_token_accuracy"})
    term_effects: ClassVar[frozenset[str]] = frozenset({"parameters"})

    def loss(self, answers: TokenLogps) -> CompletionLoss:
        """Return the losses of B answers. The trainer divides their sum by the loss tokens of the optimizer step."""
        raise NotImplementedError

    def try_out(self) -> None:
        """Run the loss on two answers. Raises ValueError unless each gets a finite, differentiable loss."""
        logps = torch.tensor([[-0.5, -1.0, -2.0], [-3.0, -0.1, 0.0]], requires_grad=True)
        answers = TokenLogps(logps, torch.tensor([[True, True, True], [True, True, False]]))
        try:
            found = self.loss(answers)
        except Exception as error:  # the method is the user's, and may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{type(self).__name__}.loss fails on two answers: {reason}") from error
        if problem := _problem(found):
            raise ValueError(f"{type(self).__name__}.loss: {problem}")

    def plan(self, recipe: RunSections) -> Plan:
        """Plan one forward and backward of every row."""

        def work(batch: Batch) -> Work:
            head = costs.log_probs(batch.tokens(batch.rows), batch.heads["policy"], gpu=batch.gpu)
            return Work((Pass("policy", batch.rows, batch.length, trains=True, head=head),))

        return Plan({"policy": policy_use(recipe)}, work)


def _problem(found: object) -> str | None:
    """Why the result of a loss over two answers is wrong; None if it is sound."""
    if not isinstance(found, CompletionLoss):
        return f"expected a CompletionLoss, found {type(found).__name__}"
    if list(found.losses.shape) != [2]:
        return f"expected losses of shape [2] for two answers, found {list(found.losses.shape)}"
    if not found.losses.requires_grad:
        return "expected losses with a gradient to the log-probs, found none"
    if not bool(torch.isfinite(found.losses).all()):
        return f"expected finite losses, found {found.losses.tolist()}"
    return None
