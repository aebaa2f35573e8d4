"""Early learning on flipped labels: a reward network with more weights than rows, 30 % of whose pairs are swapped."""

import torch
from torch import nn

from alignkit.terms.early_learning import EarlyLearning
from evidence.harness import Evidence, Found, Settings, Values, lines, main
from evidence.toy_pairs import fit

SIZE, WIDTH, ROWS, HELD_OUT, FLIPPED = 20, 256, 300, 4000, 0.3
ARMS: dict[str, EarlyLearning | None] = {
    "no term": None,
    "early learning": EarlyLearning(),
    "early learning, weight 7, memory .9": EarlyLearning(weight=7, memory=0.9),
}


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train a network, and measure after each epoch its accuracy on clean pairs and the flips that it fits."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    truth = drawn(SIZE)

    def pairs(count: int) -> torch.Tensor:
        """Answers [n, 2, SIZE], the better one first."""
        answers = drawn(count, 2, SIZE)
        swap = (answers @ truth).argmax(dim=1) == 1
        answers[swap] = answers[swap].flip(1)
        return answers

    answers, asked = pairs(ROWS), pairs(HELD_OUT)
    flipped = torch.rand(ROWS, generator=generator) < FLIPPED
    given = torch.where(flipped[:, None, None], answers.flip(1), answers)
    reward = nn.Sequential(nn.Linear(SIZE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    accuracy: list[float] = []
    memorised: list[float] = []

    def margins(of: torch.Tensor) -> torch.Tensor:
        found = reward(of)[..., 0]
        return found[:, 0] - found[:, 1]

    @torch.no_grad()
    def look() -> None:
        accuracy.append(float((margins(asked) > 0).double().mean()))
        memorised.append(float((margins(given[flipped]) > 0).double().mean()))

    fit(
        lambda ids: margins(given[ids]),
        reward.parameters(),
        torch.zeros(ROWS, dtype=torch.int64),
        ARMS[arm],
        epochs=settings.steps(60, 2),
        batch=8,
        learning_rate=1e-3,
        seed=seed,
        after_epoch=look,
    )
    return {
        "accuracy": accuracy[-1],
        "best epoch's accuracy": max(accuracy),
        "memorised flips": memorised[-1],
        "accuracy by epoch": accuracy,
    }


def draw(found: Found, axis: object) -> None:
    """Accuracy by epoch."""
    lines(found, axis, "accuracy by epoch", label="accuracy on clean held-out pairs", x_label="epoch")


EVIDENCE = Evidence(
    "early_learning",
    "With flipped labels, the term keeps the accuracy of early epochs, and fewer flips are memorised.",
    tuple(ARMS),
    measure,
    draw,
    seeds=5,
    outcome="As claimed: 0.75 in place of 0.64, and 41 % of the flips memorised in place of all. Stopping early "
    "would have gained more.",
)

if __name__ == "__main__":
    main(EVIDENCE)
