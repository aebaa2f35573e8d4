"""Supervised fine-tuning, OpenAI's default method, which maximises the likelihood of the data's answers."""

from typing import ClassVar, Literal

from alignkit.losses import CompletionLoss, TokenLogps
from alignkit.methods.completion import CompletionMethod


class Supervised(CompletionMethod):
    """Supervised fine-tuning on the answers of the data, as in OpenAI's API. It has no options of its own."""

    learning_rate: ClassVar[float] = 2e-4

    type: Literal["supervised"] = "supervised"

    def loss(self, answers: TokenLogps) -> CompletionLoss:
        """L = -sum_t log pi(y_t | y_<t), over the answer's loss tokens."""
        return CompletionLoss(-answers.logps.sum(dim=1))
