"""KTO: preference optimisation from single answers that are labelled desirable or undesirable."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from alignkit.losses import LabelledLogps, LabelledLoss
from alignkit.methods.labelled import LabelledMethod
from alignkit.options import InJobs

Weight = Annotated[float, Field(gt=0, le=1000)]


class KTO(LabelledMethod):
    """Single answers, each labelled desirable or undesirable. A preference pair counts as one of each."""

    type: Literal["kto"] = "kto"
    paper: ClassVar[str] = "2402.01306"
    beta: Annotated[float, InJobs(le=2, auto=True)] = Field(
        0.1, gt=0, le=100, description="strength of the KL divergence from the reference"
    )
    desirable_weight: Weight = Field(1.0, description="lambda_D: weight of a desirable answer's loss")
    undesirable_weight: Weight = Field(1.0, description="lambda_U: weight of an undesirable answer's loss")

    def loss(self, rows: LabelledLogps) -> LabelledLoss:
        """L = lambda_D (1 - sigma(beta (z - z0))) if desirable, else lambda_U (1 - sigma(beta (z0 - z))).

        z = log pi(y|x) - log pi_ref(y|x), z0 = `rows.baseline` (arXiv 2402.01306).
        """
        ratios = rows.logps - rows.ref_logps
        lead = self.beta * (ratios - rows.baseline)
        losses = torch.where(
            rows.desirable,
            self.desirable_weight * torch.sigmoid(-lead),
            self.undesirable_weight * torch.sigmoid(lead),
        )
        return LabelledLoss(losses, self.beta * ratios.detach())
