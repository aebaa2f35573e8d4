"""Supervised fine-tuning, OpenAI's default method: the answers of the data, learned by their likelihood."""

from typing import TYPE_CHECKING, ClassVar, Literal

from alignkit.methods.base import Method
from alignkit.methods.work import Batch, Pass, Plan, Work, policy_use

if TYPE_CHECKING:
    from alignkit.recipe import Recipe


class Supervised(Method):
    """Supervised fine-tuning on the answers of the data, as at OpenAI; it has no options of its own."""

    rows: ClassVar[str] = "completion"
    learning_rate: ClassVar[float] = 2e-4

    type: Literal["supervised"] = "supervised"

    def plan(self, recipe: "Recipe") -> Plan:
        """One forward and backward of every row."""

        def work(batch: Batch) -> Work:
            from alignkit.estimate import heads  # the estimate imports the methods

            head = heads.log_probs(batch.tokens(batch.rows), batch.heads["policy"], gpu=batch.gpu)
            return Work((Pass("policy", batch.rows, batch.length, trains=True, head=head),))

        return Plan({"policy": policy_use(recipe)}, work)
