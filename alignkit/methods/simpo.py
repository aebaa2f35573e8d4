"""SimPO: preference optimisation without a reference model."""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field

from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods.preference import PairMethod
from alignkit.options import InJobs


class SimPO(PairMethod):
    """Preference pairs without a reference model: length-averaged log-probs that must differ by a margin."""

    uses_reference: ClassVar[bool] = False

    type: Literal["simpo"] = "simpo"
    paper: ClassVar[str] = "2405.14734"
    beta: Annotated[float, InJobs(le=20, auto=True)] = Field(
        2.0, gt=0, le=100, description="scale of the rewards: reward = beta x mean log-prob per token"
    )
    margin: float = Field(
        1.0, ge=0, le=100, description="gamma: the target difference of chosen and rejected reward"
    )

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """L = -log sigma(beta log pi(y_w|x) / |y_w| - beta log pi(y_l|x) / |y_l| - margin) (arXiv 2405.14734)."""
        averaged = pairs.averaged()
        chosen, rejected = self.beta * averaged.chosen, self.beta * averaged.rejected
        losses = -F.logsigmoid(chosen - rejected - self.margin)
        return PreferenceLoss.of(losses, chosen, rejected)
