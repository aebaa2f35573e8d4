"""Tuned options on a toy whose best value is known: a penalised weight, and held-out rows that want one penalty.

Training minimises (w - 1)^2 + beta w^2, whose best weight is 1 / (1 + beta). Held-out rows want w = 1 / (1 + 0.3), so
the best beta is 0.3. Runs start from values a factor of ten below and above it.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit.adapter_sections import TuneSection
from alignkit.methods import DPO
from alignkit.trainers.tuning import Tuner
from evidence.harness import Evidence, Found, Settings, Values, lines, main

BEST, ROWS = 0.3, 32
STARTS = {"from 0.03": 0.03, "from 0.3": 0.3, "from 3": 3.0}


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train a weight with noisy targets, and tune its penalty by the held-out rows."""
    model = get_peft_model(nn.Sequential(nn.Linear(1, 1, bias=False)), LoraConfig(r=1, target_modules=["0"]))
    layer = model.base_model.model[0]
    nn.init.zeros_(layer.base_layer.weight)
    nn.init.ones_(layer.lora_A["default"].weight)
    options = TuneSection(options=["beta"], rank=1, learning_rate=0.05, spread=0.3)
    tuner = Tuner(model, DPO(beta=STARTS[arm]), options, seed=seed)
    nn.init.ones_(next(iter(tuner.responses.values())).down)
    optimizer = torch.optim.Adam((weight for weight in model.parameters() if weight.requires_grad), lr=0.05)
    generator, x = torch.Generator().manual_seed(seed), torch.ones(ROWS, 1, 1)
    betas, steps = [], settings.steps(600, 20)
    for step in range(steps):
        noise, held_out_noise = torch.randn(2, ROWS, generator=generator) / 10
        tuner.rows = tuner.deviations(step, range(ROWS)).detach()
        penalty, weight = tuner.scales[0].value(tuner.rows[:, 0]), model.train()(x).flatten()
        optimizer.zero_grad()
        ((weight - 1 - noise).square() + penalty * weight.square()).mean().backward()
        optimizer.step()
        tuner.rows, tuner.perturbs = tuner.deviations(step, range(ROWS), "held out"), True
        loss = (model.eval()(x).flatten() - 1 / (1 + BEST) - held_out_noise).square().mean()
        if step > options.warmup_steps:
            tuner.move(torch.autograd.grad(loss, [tuner.shift, tuner.raw_spread]))
        tuner.perturbs = False
        if step % (steps // 20) == 0:
            betas.append(tuner.values()["beta"])
    return {"beta": tuner.values()["beta"], "betas": betas}


def draw(found: Found, axis: object) -> None:
    """The way of beta."""
    lines(found, axis, "betas", label=f"beta (best: {BEST})", x_label="twentieths of the training")


EVIDENCE = Evidence(
    "tuned_beta",
    "A run that tunes its option ends near the best value, from starts a factor of ten away.",
    tuple(STARTS),
    measure,
    draw,
    outcome="As claimed from two of three starts.",
)

if __name__ == "__main__":
    main(EVIDENCE)
