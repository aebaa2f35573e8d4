"""MaPO: preference optimisation without a reference, by a bounded function of each answer's mean likelihood."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods.preference import PairMethod
from alignkit.options import InJobs

_SERIES_BELOW = 0.02
"""Below it the series is used: its error is x^6 / 30240, and x / expm1(x) loses digits of its slope."""


class MaPO(PairMethod):
    """Preference pairs without a reference model: NLL of the chosen answer plus a margin of bounded likelihoods."""

    uses_reference: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 2e-4

    type: Literal["mapo"] = "mapo"
    paper: ClassVar[str] = "2406.06424"
    beta: Annotated[float, InJobs(le=10, auto=True)] = Field(
        0.1, ge=0, le=100, description="weight of the margin loss; the chosen answer's NLL has 1"
    )
    gain: float = Field(
        10.0, gt=0, le=1e4, description="factor on the difference of likelihoods in the logit"
    )
    scale: float = Field(
        0.5, gt=0, le=100, description="s in phi(l) = s l / (e^(s l) - 1), per nat of mean NLL"
    )

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """L = l_w - beta log sigma(gain (phi(l_w) - phi(l_l))), l = -log pi(y|x) / |y|, phi(l) = s l / (e^(s l) - 1).

        After MaPO (arXiv 2406.06424), whose l is a diffusion model's squared error. The rewards are gain phi(l).
        """
        averaged = pairs.averaged()
        chosen = self.gain * bounded_likelihood(-self.scale * averaged.chosen)
        rejected = self.gain * bounded_likelihood(-self.scale * averaged.rejected)
        losses = -averaged.chosen - self.beta * F.logsigmoid(chosen - rejected)
        return PreferenceLoss.of(losses, chosen, rejected)


def bounded_likelihood(x: Tensor) -> Tensor:
    """Compute x / (e^x - 1) for x >= 0, elementwise: 1 at 0, decreasing to 0.

    Written as x e^-x / (1 - e^-x), which neither overflows nor loses its gradient for large x.
    """
    small = x < _SERIES_BELOW
    apart = torch.where(small, torch.ones_like(x), x)
    series = 1 - x / 2 + x.square() / 12 - x.pow(4) / 720
    return torch.where(small, series, apart * torch.exp(-apart) / -torch.expm1(-apart))
