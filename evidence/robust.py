"""Worst-case weights on two groups, 90 : 10, that want the opposite of one feature: a linear reward."""

import torch

from alignkit.terms.robust import Robust
from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.toy_pairs import fit

SIZE, ROWS, HELD_OUT, NOISE, MINORITY = 8, 1000, 4000, 0.5, 0.1
ARMS: dict[str, Robust | None] = {
    "no term": None,
    "rows": Robust(over="rows", strength=1.0),
    "rows, structured": Robust(over="rows", structured=True, strength=1.0),
    "groups": Robust(over="groups"),
}


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Fit a linear reward and measure the held-out accuracy of each group."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(SIZE, generator=generator)
    common = common / common.norm()
    wanted = torch.stack([common, common])
    wanted[0, 0], wanted[1, 0] = 1.0, -1.0

    def pairs(count: int, minority: float) -> tuple[torch.Tensor, torch.Tensor]:
        groups = (torch.rand(count, generator=generator) < minority).long()
        difference = torch.randn(count, SIZE, generator=generator)
        reward = (difference * wanted[groups]).sum(dim=1) + NOISE * torch.randn(count, generator=generator)
        return difference * reward.sign()[:, None], groups

    difference, groups = pairs(ROWS, MINORITY)
    apart, of = pairs(HELD_OUT, 0.5)
    weight = torch.zeros(SIZE, requires_grad=True)
    fit(
        lambda ids: difference[ids] @ weight,
        [weight],
        groups,
        ARMS[arm],
        epochs=settings.steps(40, 1),
        batch=8,
        learning_rate=0.01,
        seed=seed,
        names=("majority", "minority"),
    )
    right = (apart @ weight.detach() > 0).double()
    return {"majority": float(right[of == 0].mean()), "minority": float(right[of == 1].mean())}


EVIDENCE = Evidence(
    "robust",
    "Weights over groups lift the accuracy of a minority at the majority's cost; structured weights over rows do "
    "not.",
    tuple(ARMS),
    measure,
    bars("minority", "held-out accuracy of the minority"),
    seeds=5,
    outcome="As claimed. Weights over groups lift the minority from 0.51 to 0.63, at a cost of 0.09 to the majority; "
    "weights over rows change little.",
)

if __name__ == "__main__":
    main(EVIDENCE)
