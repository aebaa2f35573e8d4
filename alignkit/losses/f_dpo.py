"""f-DPO: preference optimisation with any f-divergence (arXiv 2309.16240)."""

import torch.nn.functional as F
from torch import Tensor

from alignkit.divergences import FDivergence, get, widen
from alignkit.losses.types import PreferenceLoss


def f_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float | Tensor,
    divergence: str | FDivergence,
    label_smoothing: float | Tensor = 0.0,
    robust: bool = False,
) -> PreferenceLoss:
    """L = -log sigma(beta (s(z_w) - s(z_l))), s(z) = f'(e^z), z = log pi(y|x) - log pi_ref(y|x).

    All four inputs are [B]: completion log-probs in nats, summed over tokens, or averaged for length normalisation.
    Any float dtype; computed in float32 (float64 stays float64). `beta` > 0 multiplies f' and nothing else.
    `beta` and `label_smoothing` may be [B], one a row.
    `label_smoothing` e in [0, 0.5) is the share of labels assumed to be flipped. With the margin
    m = beta (s(z_w) - s(z_l)), the smoothed loss is (1 - e) L(m) + e L(-m) (cDPO), or with `robust` the unbiased
    ((1 - e) L(m) - e L(-m)) / (1 - 2e) (robust DPO, arXiv 2403.00409). Rewards are beta s(z), where TRL logs beta z.
    Without smoothing the loss at z_w = z_l is ln 2 for every f. Raises DivergenceError for an unknown divergence.
    """
    family = get(divergence) if isinstance(divergence, str) else divergence
    chosen_scores = family.score(widen(policy_chosen_logps) - widen(ref_chosen_logps))
    rejected_scores = family.score(widen(policy_rejected_logps) - widen(ref_rejected_logps))
    margins = beta * (chosen_scores - rejected_scores)
    losses = -F.logsigmoid(margins)
    flipped = label_smoothing / (1 - 2 * label_smoothing) if robust else label_smoothing
    # L(-m) = L(m) + m, so both mixtures are L(m) plus a multiple of m
    if isinstance(flipped, Tensor) or flipped:
        losses = losses - flipped * margins if robust else losses + flipped * margins
    return PreferenceLoss.of(losses, beta * chosen_scores, beta * rejected_scores)
