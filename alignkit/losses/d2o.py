"""D2O: distributional dispreference optimisation, from dispreferred answers alone (arXiv 2403.03419).

The equation is taken from secondary sources that quote the paper, not from the paper itself.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit import arguments
from alignkit.divergences import widen
from alignkit.losses.types import PreferenceLoss


@dataclass(frozen=True, slots=True)
class D2OCoefficients:
    """Detached factors: in the second pass each sequence's log-prob is multiplied by its own."""

    samples: Tensor
    """[B, K], factors of the samples; zero for a masked sample."""
    rejected: Tensor
    """[B], factors of the dispreferred answers; zero below the floor."""


@dataclass(frozen=True, slots=True)
class _Terms:
    shares: Tensor  # [B, K], 1 / (number of valid samples of the row), zero for a masked sample
    anchors: Tensor  # [B], mean log-ratio of the valid samples
    rejected: Tensor  # [B], log-ratio of the dispreferred answer, without the floor
    margins: Tensor  # [B]


def d2o_loss(
    policy_sample_logps: Tensor,
    ref_sample_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    alpha: float,
    sample_mask: Tensor | None = None,
    rejected_floor: float | None = None,
) -> PreferenceLoss:
    """L = -log sigma(m), m = (beta/K) sum_i [log pi(y_i) - log r-(y_i)] - alpha [log pi(y_l) - log r+(y_l)].

    Each prompt has K self-generated samples y_i, scored by the reference r-, [B, K] each, and one dispreferred answer
    y_l, scored by the reference r+, [B] each. Log-probs are of completions, in nats, summed or averaged over tokens
    by the caller, of any float dtype; they are computed in float32 (float64 stays float64). `beta` >= 0 and
    `alpha` >= 0; `beta` = 0 trains on the negatives only. `sample_mask` [B, K] bool marks the valid samples. The mean
    is over those; masked values are ignored, even NaN. `rejected_floor` < 0, in nats, keeps y_l's log-ratio from
    falling without end: below the floor it counts as the floor and gets no gradient. Rewards are (beta/K) times the
    sum of the samples' log-ratios, and alpha times y_l's log-ratio without the floor. Raises ValueError for K = 0,
    unequal shapes, a row without a valid sample, or an option out of range.
    """
    terms = _terms(
        policy_sample_logps,
        ref_sample_logps,
        policy_rejected_logps,
        ref_rejected_logps,
        beta=beta,
        alpha=alpha,
        sample_mask=sample_mask,
        rejected_floor=rejected_floor,
    )
    return PreferenceLoss(
        losses=-F.logsigmoid(terms.margins),
        chosen_rewards=beta * terms.anchors.detach(),
        rejected_rewards=alpha * terms.rejected.detach(),
    )


def d2o_coefficients(
    policy_sample_logps: Tensor,
    ref_sample_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    alpha: float,
    sample_mask: Tensor | None = None,
    rejected_floor: float | None = None,
) -> D2OCoefficients:
    """Compute the exact gradient of the mean of `d2o_loss` over B, in memory that does not grow with K.

    With w = sigma(-m) / B, dL = sum_bi samples_bi d log pi(y_bi) + sum_b rejected_b d log pi(y_b,l), where
    samples = -w beta / K and rejected = +w alpha. To use it, score every sequence without gradient and call this with
    the arguments of `d2o_loss`. Then run the sequences again in micro-batches of any size and call
    `(coefficients * logps).sum().backward()` on each. Sequences with a zero coefficient may be left out. The gradient
    is exact if both passes see the same policy, so dropout must be off.
    """
    with torch.no_grad():
        terms = _terms(
            policy_sample_logps,
            ref_sample_logps,
            policy_rejected_logps,
            ref_rejected_logps,
            beta=beta,
            alpha=alpha,
            sample_mask=sample_mask,
            rejected_floor=rejected_floor,
        )
    weights = torch.sigmoid(-terms.margins) / max(terms.margins.numel(), 1)
    rejected = alpha * weights
    if rejected_floor is not None:
        rejected = rejected * (terms.rejected >= rejected_floor)
    return D2OCoefficients(samples=-beta * weights[:, None] * terms.shares, rejected=rejected)


def _terms(
    policy_samples: Tensor,
    ref_samples: Tensor,
    policy_rejected: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    alpha: float,
    sample_mask: Tensor | None,
    rejected_floor: float | None,
) -> _Terms:
    _check(policy_samples, ref_samples, policy_rejected, ref_rejected)
    arguments.at_least("beta", beta, 0)
    arguments.at_least("alpha", alpha, 0)
    valid = _valid(policy_samples, sample_mask)
    ratios = (widen(policy_samples) - widen(ref_samples)).masked_fill(~valid, 0.0)
    shares = valid.to(ratios.dtype) / valid.sum(dim=1, keepdim=True)
    anchors = (shares * ratios).sum(dim=1)
    rejected = widen(policy_rejected) - widen(ref_rejected)
    counted = rejected if rejected_floor is None else _floored(rejected, rejected_floor)
    return _Terms(shares, anchors, rejected, beta * anchors - alpha * counted)


def _check(
    policy_samples: Tensor, ref_samples: Tensor, policy_rejected: Tensor, ref_rejected: Tensor
) -> None:
    if policy_samples.dim() != 2 or policy_samples.shape[1] == 0:
        raise ValueError(
            "policy_sample_logps must be [B, K] with K >= 1 samples per prompt, "
            f"found shape {list(policy_samples.shape)}"
        )
    prompts, samples = policy_samples.shape
    arguments.shaped("ref_sample_logps", ref_samples, (prompts, samples))
    arguments.shaped("policy_rejected_logps", policy_rejected, (prompts,))
    arguments.shaped("ref_rejected_logps", ref_rejected, (prompts,))


def _valid(policy_samples: Tensor, sample_mask: Tensor | None) -> Tensor:
    if sample_mask is None:
        return torch.ones_like(policy_samples, dtype=torch.bool)
    arguments.shaped("sample_mask", sample_mask, tuple(policy_samples.shape))
    if sample_mask.dtype != torch.bool:
        raise ValueError(f"sample_mask must be bool, found {sample_mask.dtype}")
    empty = (~sample_mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"sample_mask must leave every row a valid sample, found none in rows {empty}")
    return sample_mask


def _floored(rejected: Tensor, floor: float) -> Tensor:
    if not floor < 0:
        raise ValueError(f"rejected_floor must be a log-ratio < 0, found {floor}")
    return rejected.clamp(min=floor)
