"""IPO: preference optimisation that regresses the log-ratio margin to a target, so that it cannot grow for ever."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods.preference import PairMethod
from alignkit.options import InJobs


class IPO(PairMethod):
    """Preference pairs with a target margin of 1 / (2 beta), which limits overfitting to near-certain labels."""

    type: Literal["ipo"] = "ipo"
    paper: ClassVar[str] = "2310.12036"
    beta: Annotated[float, InJobs(le=2, auto=True)] = Field(
        0.1, gt=0, le=100, description="tau: the target margin of per-token log-ratios is 1 / (2 beta)"
    )

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """L = (z_w - z_l - 1 / (2 beta))^2, z = log (pi / pi_ref)(y|x) / |y| (arXiv 2310.12036).

        Log-ratios are averaged over the answer's tokens, as in TRL.
        """
        chosen, rejected, ref_chosen, ref_rejected, *_ = pairs.averaged()
        chosen, rejected = chosen - ref_chosen, rejected - ref_rejected
        losses = (chosen - rejected - 1 / (2 * self.beta)).square()
        return PreferenceLoss.of(losses, self.beta * chosen, self.beta * rejected)
