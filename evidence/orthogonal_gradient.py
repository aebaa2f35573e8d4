"""Orthogonal gradients on a separable toy: norms and margins stop growing at the same held-out accuracy.

A two-layer network scores both answers of 64 separable pairs, and descends the logistic loss of their difference.
"""

import torch
import torch.nn.functional as F
from torch import nn

from alignkit.trainers.orthogonal_gradient import orthogonal
from evidence.harness import Evidence, Found, Settings, Values, lines, main

INPUTS, HIDDEN, PAIRS, HELD_OUT = 20, 32, 64, 2000


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train by plain gradient descent; `arm` is the value of `training.gradient`."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(INPUTS, generator=generator)

    def pairs(count: int) -> torch.Tensor:
        x = torch.randn(count, 2, INPUTS, generator=generator)
        order = (x @ direction).argsort(dim=1, descending=True)
        return x.gather(1, order[..., None].expand_as(x))

    train, held_out = pairs(PAIRS), pairs(HELD_OUT)
    network = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN, bias=False), nn.Tanh(), nn.Linear(HIDDEN, 1, bias=False)
    )
    weights = list(network.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.1)
    norms, steps = [], settings.steps(4000, 20)
    for step in range(steps):
        scores = network(train).squeeze(-1)
        optimizer.zero_grad()
        F.softplus(scores[:, 1] - scores[:, 0]).mean().backward()
        for weight in weights:
            if arm == "orthogonal" and weight.grad is not None:
                weight.grad.copy_(orthogonal(weight.detach(), weight.grad))
        optimizer.step()
        if step % (steps // 20) == 0:
            norms.append(float(torch.cat([weight.detach().flatten() for weight in weights]).norm()))
    with torch.no_grad():
        margins, own = (
            (found := network(rows).squeeze(-1))[:, 0] - found[:, 1] for rows in (held_out, train)
        )
    return {
        "norm": norms[-1],
        "train margin": float(own.mean()),
        "held-out accuracy": float((margins > 0).float().mean()),
        "norms": norms,
    }


def draw(found: Found, axis: object) -> None:
    """Norms over training."""
    lines(found, axis, "norms", label="norm of the weights", x_label="twentieths of the training")


EVIDENCE = Evidence(
    "orthogonal_gradient",
    "Orthogonal gradients keep weights and margins from growing, at the same held-out accuracy.",
    ("plain", "orthogonal"),
    measure,
    draw,
    outcome="As claimed.",
)

if __name__ == "__main__":
    main(EVIDENCE)
