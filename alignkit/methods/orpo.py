"""ORPO: supervised fine-tuning on the chosen answer plus an odds-ratio loss against the rejected one."""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field

from alignkit.losses import PairLogps, PreferenceLoss, log_odds
from alignkit.methods.preference import PairMethod
from alignkit.options import InJobs


class ORPO(PairMethod):
    """Preference pairs in one stage from a base model: NLL of the chosen answer plus an odds-ratio loss."""

    uses_reference: ClassVar[bool] = False
    # weights only: the difference of its rewards is not the logit of its loss
    term_effects: ClassVar[frozenset[str]] = frozenset({"weights", "parameters"})

    type: Literal["orpo"] = "orpo"
    paper: ClassVar[str] = "2403.07691"
    beta: Annotated[float, InJobs(le=2, auto=True)] = Field(
        0.1, ge=0, le=100, description="lambda: weight of the odds-ratio loss; the chosen answer's NLL has 1"
    )

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """L = -p_w - beta log sigma(o(p_w) - o(p_l)), p = log pi(y|x) / |y|, o(p) = p - log(1 - e^p).

        ORPO (arXiv 2403.07691). The NLL covers the answer's tokens only, as in the paper and in Liger.
        """
        averaged = pairs.averaged()
        ratio = log_odds(averaged.chosen) - log_odds(averaged.rejected)
        losses = -averaged.chosen - self.beta * F.logsigmoid(ratio)
        return PreferenceLoss(
            losses, self.beta * averaged.chosen.detach(), self.beta * averaged.rejected.detach()
        )
