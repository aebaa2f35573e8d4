"""Worst-case weights over rows or groups (term `robust`)."""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from alignkit.errors import FieldIssue
from alignkit.options import InJobs
from alignkit.sections import RunSections
from alignkit.terms.base import Effect, Metrics, RowEffect, RowTerm, RowView, Seen, Setup, State, Term

MOST = 80.0
"""Bound on loss / strength, so that its exponential is finite in float32."""
STRENGTHS = {"rows": 2.0, "groups": 0.2}
"""`over` -> default strength."""
SAFE_WITH_EARLY_LEARNING = 2.0


class Robust(RowTerm):
    """Worst-case weights: rows or groups with a high loss count more, by a distance-penalised adversary.

    R(l) = max over w >= 0 with mean 1 of mean(w l) - strength mean phi(w). phi = w ln w for `kl`, whose solution is
    w = e^(l/c) / mean e^(l/c), and (w - 1)^2 for `chi2`, w = [(l - eta) / (2c)]_+ with mean 1. The gradient is
    mean(w grad l) with w held fixed.
    """

    type: Literal["robust"] = "robust"

    effect: ClassVar[Effect] = "weights"
    records: ClassVar[tuple[str, ...]] = ("weight",)
    paper: ClassVar[str] = "2411.18612"

    over: Literal["rows", "groups"] = Field(
        "rows", description="what is weighted: single rows, or whole groups by their mean loss"
    )
    structured: bool = Field(
        False, description="with rows: weight may move inside a group only, not from group to group"
    )
    divergence: Literal["kl", "chi2"] = Field(
        "kl", description="penalty on the weights: w ln w (exponential weights) or (w - 1)^2 (linear ones)"
    )
    strength: Annotated[float | None, InJobs(le=1e6)] = Field(
        None,
        gt=0,
        allow_inf_nan=True,
        description="weight c of the penalty: large means almost equal weights, .inf none; default: 2 for rows, "
        "0.2 for groups",
    )
    direction: Literal["worst", "trust"] = Field(
        "worst", description="worst raises the weight of high losses; trust lowers it, for noisy labels"
    )
    rate: float = Field(0.1, gt=0, le=1, description="share of a step's rows in the moving averages")
    max_weight: float = Field(10.0, ge=1, le=1e4, description="bound on the weight of a row")

    @model_validator(mode="after")
    def _structured_rows(self) -> Self:
        if self.structured and self.over == "groups":
            raise ValueError(
                "structured: moves weight between rows of a group; expected over: rows, found groups"
            )
        return self

    @property
    def needs_groups(self) -> bool:
        """Whether weights are those of groups, or inside them."""
        return self.structured or self.over == "groups"

    @property
    def scale(self) -> float:
        """c, or its default."""
        return STRENGTHS[self.over] if self.strength is None else self.strength

    @property
    def sign(self) -> float:
        """1 for high losses, -1 for low ones."""
        return 1.0 if self.direction == "worst" else -1.0

    def refusals(self, _recipe: RunSections, others: list[Term]) -> Iterator[FieldIssue]:
        """Yield an issue if weights on rows would undo what early learning does for mislabelled rows."""
        noisy = any(other.type == "early_learning" for other in others)
        strong = self.over == "rows" and self.direction == "worst" and self.scale < SAFE_WITH_EARLY_LEARNING
        if noisy and strong:
            yield FieldIssue(
                "strength",
                "weights on rows favour the mislabelled rows that early_learning leaves aside: expected at least "
                f"{SAFE_WITH_EARLY_LEARNING:g} beside it, found {self.scale:g}",
            )

    def begin(self, setup: Setup) -> State:
        """Start the averages at the loss that every row has at the reference, if there is one, else unset (NaN)."""
        factors = len(setup.groups) if self.needs_groups else 1
        start = math.nan if setup.start_loss is None else setup.start_loss
        state = {
            "mean": torch.full((factors,), start, dtype=torch.float64),
            "log_mean": torch.full((factors,), self._tilt(start), dtype=torch.float64),
            "variance": torch.zeros(factors, dtype=torch.float64),
        }
        if self.over == "groups":
            state["shares"] = torch.tensor(setup.group_rows, dtype=torch.float64) / max(setup.rows, 1)
        return state

    def _tilt(self, loss: float) -> float:
        return min(self.sign * loss / self.scale, MOST)

    def apply(self, view: RowView, state: State) -> RowEffect:
        """Weights from the averages of the steps before, at most `max_weight`; 1 where there are none yet."""
        if math.isinf(self.scale):
            ones = torch.ones_like(view.losses.detach())
            return RowEffect(weights=ones, record={"weight": ones})
        losses = self.sign * view.losses.detach().double()
        factor = view.groups if self.needs_groups else torch.zeros_like(view.rows)
        found = (
            self._of_groups(state)[factor] if self.over == "groups" else self._of_rows(losses, factor, state)
        )
        weights = found.nan_to_num(nan=1.0).clamp(max=self.max_weight)
        return RowEffect(weights=weights.to(view.losses.dtype), record={"weight": weights})

    def _of_groups(self, state: State) -> Tensor:
        """[D], weights of the groups from their mean losses."""
        return worst_weights(self.sign * state["mean"], state["shares"], self.scale, self.divergence)

    def _of_rows(self, losses: Tensor, factor: Tensor, state: State) -> Tensor:
        if self.divergence == "kl":
            return torch.exp((losses / self.scale).clamp(max=MOST) - state["log_mean"][factor])
        threshold = normal_threshold(self.sign * state["mean"], state["variance"], self.scale)
        return ((losses - threshold[factor]) / (2 * self.scale)).clamp(min=0)

    def fold(self, state: State, seen: Seen) -> tuple[State, Metrics]:
        """Move the averages of every factor that had rows in the step, by `rate`."""
        after = {name: value.clone() for name, value in state.items()}
        factor = seen.groups if self.needs_groups else torch.zeros_like(seen.rows)
        for one in factor.unique().tolist():
            self._move(after, one, seen.losses[factor == one])
        weights = seen.record["weight"]
        squares = float(weights.square().mean())
        return after, {
            "robust/ess": (1 / max(squares, 1e-12), 1.0),
            "robust/max_weight": (float(weights.max()), 1.0),
        }

    def _move(self, state: State, factor: int, losses: Tensor) -> None:
        """Fold the losses of one factor's rows into its averages; the first losses set them."""
        tilted = (self.sign * losses / self.scale).clamp(max=MOST)
        log_mean = torch.logsumexp(tilted, 0) - math.log(len(losses))
        mean = losses.mean()
        if bool(torch.isnan(state["mean"][factor])):
            state["mean"][factor], state["log_mean"][factor] = mean, log_mean
            state["variance"][factor] = (losses - mean).square().mean()
            return
        old, rate = state["mean"][factor].clone(), self.rate
        state["mean"][factor] = old + rate * (mean - old)
        spread = (losses - state["mean"][factor]).square().mean()
        state["variance"][factor] = (1 - rate) * state["variance"][factor] + rate * spread
        kept = state["log_mean"][factor] + math.log1p(-rate) if rate < 1 else -math.inf
        state["log_mean"][factor] = torch.logaddexp(
            torch.as_tensor(kept).to(log_mean), log_mean + math.log(rate)
        )


def worst_weights(values: Tensor, shares: Tensor, strength: float, divergence: str) -> Tensor:
    """Maximise sum shares w (values) - strength sum shares phi(w) over w >= 0 with sum shares w = 1. Returns w [D].

    values, shares: [D] float64, shares sum to 1. phi is w ln w for "kl" and (w - 1)^2 for "chi2". NaN in `values`
    gives NaN.
    """
    if divergence == "kl":
        tilted = values / strength
        return torch.exp(tilted - torch.logsumexp(tilted + torch.log(shares), 0))
    order = values.argsort(descending=True)
    sorted_values, mass = values[order], shares[order].cumsum(0)
    totals = (shares[order] * sorted_values).cumsum(0)
    # with the k largest positive: sum shares (v - eta) / 2c = 1
    thresholds = (totals - 2 * strength) / mass
    active = int((sorted_values > thresholds).sum())
    return ((values - thresholds[max(active, 1) - 1]) / (2 * strength)).clamp(min=0)


def normal_threshold(mean: Tensor, variance: Tensor, strength: float) -> Tensor:
    """Solve E [x - eta]_+ = 2 strength for eta, if x is normal with this mean and variance. All [D] float64.

    For a small deviation it is mean - 2 strength, so that no weight is zero.
    """
    deviation = variance.clamp(min=0).sqrt()
    narrow = deviation * 40 <= 2 * strength
    target = 2 * strength / torch.where(narrow, torch.ones_like(deviation), deviation)
    below = target.clone()  # in deviations below the mean: the excess is at least this, and convex in it
    for _ in range(60):
        density = torch.exp(-below.square() / 2) / math.sqrt(2 * math.pi)
        mass = torch.special.ndtr(below)
        below = below - (density + below * mass - target) / mass.clamp(min=1e-300)
    return mean - torch.where(narrow, torch.full_like(mean, 2 * strength), below * deviation)
