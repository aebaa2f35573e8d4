"""Nested ranks on flipped labels: a bilinear reward of true rank 2, a quarter of whose pairs are swapped.

The reward x' W y of a question x and an answer y has a W of rank 2; an adapter B A of rank 12 is trained on it, plain
or with nested ranks, and is cut to each rank afterwards.
"""

import torch
import torch.nn.functional as F

from alignkit.trainers.nested_ranks import probabilities
from evidence.harness import Evidence, Found, Settings, Values, lines, main

SIZE, TRUE_RANK, RANK, PAIRS, HELD_OUT, FLIPPED = 16, 2, 12, 400, 4000, 0.25


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train an adapter and measure its accuracy on clean held-out pairs when cut to each rank."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    truth = drawn(SIZE, TRUE_RANK) @ drawn(TRUE_RANK, SIZE)

    def pairs(count: int, flipped: float) -> tuple[torch.Tensor, torch.Tensor]:
        question, answers = drawn(count, SIZE), drawn(count, 2, SIZE)
        rewards = torch.einsum("ni,ij,nkj->nk", question, truth, answers)
        better = rewards.argmax(dim=1)
        swap = torch.rand(count, generator=generator) < flipped
        better = torch.where(swap, 1 - better, better)
        rows = torch.arange(count)
        return question, answers[rows, better] - answers[rows, 1 - better]

    (question, difference), (asked, apart) = pairs(PAIRS, FLIPPED), pairs(HELD_OUT, 0.0)
    up = torch.zeros(SIZE, RANK, requires_grad=True)
    down = (drawn(RANK, SIZE) / SIZE**0.5).requires_grad_()
    optimizer = torch.optim.Adam([up, down], lr=0.01)
    chances = probabilities(RANK, RANK / 4)
    for _ in range(settings.steps(1500, 20)):
        kept = int(torch.multinomial(chances, 1, generator=generator)) + 1 if arm == "nested" else RANK
        margins = torch.einsum("ni,ij,nj->n", question, up[:, :kept] @ down[:kept], difference)
        optimizer.zero_grad()
        F.softplus(-margins).mean().backward()
        optimizer.step()
    with torch.no_grad():
        cut = [
            float((torch.einsum("ni,ij,nj->n", asked, up[:, :k] @ down[:k], apart) > 0).float().mean())
            for k in range(1, RANK + 1)
        ]
    return {"cut to 2": cut[1], "uncut": cut[-1], "accuracy by rank": cut}


def draw(found: Found, axis: object) -> None:
    """Accuracy by rank."""
    lines(
        found, axis, "accuracy by rank", label="held-out accuracy", x_label="ranks kept", x=range(1, RANK + 1)
    )


EVIDENCE = Evidence(
    "nested_ranks",
    "With noisy labels, an adapter with nested ranks cut to the true rank is better than a plain one, cut or whole.",
    ("plain", "nested"),
    measure,
    draw,
    seeds=10,
    outcome="As claimed for the cut adapter; uncut, there is no difference.",
)

if __name__ == "__main__":
    main(EVIDENCE)
