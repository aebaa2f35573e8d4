"""Aligned groups against a spurious cue: it agrees with the label in 95 and 65 % of two groups, in 10 % held out."""

import torch

from alignkit.terms.align_groups import AlignGroups
from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.toy_pairs import fit

SIZE, ROWS, HELD_OUT, NOISE = 5, 1000, 4000, 0.7
AGREES = (0.95, 0.65)
HELD_OUT_AGREES = 0.1
ARMS: dict[str, AlignGroups | None] = {
    "no term": None,
    "gradients": AlignGroups(hessian_weight=0, gradient_weight=10),
    "curvatures": AlignGroups(hessian_weight=10, gradient_weight=0, curvature="hessian"),
    "both": AlignGroups(hessian_weight=10, gradient_weight=10, curvature="hessian"),
    "both, x 10": AlignGroups(hessian_weight=100, gradient_weight=100, curvature="hessian"),
    "both, H g": AlignGroups(hessian_weight=10, gradient_weight=10),
}


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Fit a linear reward and measure its accuracy where the cue is reversed."""
    generator = torch.Generator().manual_seed(seed)

    def pairs(agrees: torch.Tensor) -> torch.Tensor:
        """Differences [n, SIZE + 1] of chosen and rejected; the last one is the cue."""
        count = len(agrees)
        difference = torch.randn(count, SIZE, generator=generator)
        reward = difference.sum(dim=1) / SIZE**0.5 + NOISE * torch.randn(count, generator=generator)
        cue = torch.where(torch.rand(count, generator=generator) < agrees, 1.0, -1.0)
        return torch.cat([difference * reward.sign()[:, None], cue[:, None]], dim=1)

    groups = torch.arange(ROWS) % 2
    difference = pairs(torch.tensor(AGREES)[groups])
    apart = pairs(torch.full((HELD_OUT,), HELD_OUT_AGREES))
    weight = torch.zeros(SIZE + 1, requires_grad=True)
    fit(
        lambda ids: difference[ids] @ weight,
        [weight],
        groups,
        ARMS[arm],
        epochs=settings.steps(60, 1),
        batch=100,
        learning_rate=0.03,
        seed=seed,
        names=("A", "B"),
    )
    found = weight.detach()
    share = float(found[-1] / found[:-1].norm())
    return {"accuracy": float((apart @ found > 0).double().mean()), "weight of the cue": share}


EVIDENCE = Evidence(
    "align_groups",
    "Gradients and curvatures that agree between groups make a reward lean less on a cue that misleads held out.",
    tuple(ARMS),
    measure,
    bars("accuracy", "accuracy where the cue is reversed"),
    seeds=5,
    outcome="As claimed. Under a reversed cue the accuracy is 0.58 without the term, 0.68 with it and 0.76 with ten "
    "times the weights; the curvatures add little to the gradients.",
)

if __name__ == "__main__":
    main(EVIDENCE)
