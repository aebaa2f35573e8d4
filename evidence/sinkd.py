"""SinKD against KL, reverse KL and JS on a toy student, each at the best of the same nine settings.

A linear student of rank 4 is distilled from teacher rows that it cannot fit exactly, with cross-entropy on sampled
labels beside each distillation loss. Rate and weight of the loss are chosen by the NLL of validation contexts; what
is reported is of contexts that chose nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.losses.sinkd import sinkd_loss
from alignkit.token_divergences import get
from evidence.harness import Evidence, Settings, Values, bars, main

FEATURES, RANK, SIZE, ROWS, SET = 16, 4, 48, 512, 32
RATES, WEIGHTS = (0.003, 0.01, 0.03), (0.3, 1.0, 3.0)
ARMS = ("labels alone", "SinKD", "SinKD + KL", "forward_kl", "reverse_kl", "js_divergence")


def _loss(arm: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The distillation loss [] of a set of rows of logits."""
    if arm == "labels alone":
        return student.sum() * 0
    if arm.startswith("SinKD"):
        transport = sinkd_loss(student, teacher, temperature=1.0, reduction="mean").loss
        return transport if arm == "SinKD" else transport + _divergence("forward_kl", student, teacher)
    return _divergence(arm, student, teacher)


def _divergence(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
    return get(name).value(log_p.exp(), log_q.exp(), log_p, log_q).mean()


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train at each setting, choose one, and measure it on the contexts left."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randn(3 * ROWS, FEATURES, generator=generator)
    table = torch.randn(FEATURES, SIZE, generator=generator)
    noise = torch.randn(3 * ROWS, SIZE, generator=generator)
    teacher = 2 * (contexts @ table) / FEATURES**0.5 + noise
    labels = torch.multinomial(teacher.softmax(dim=1), 1, generator=generator)[:, 0]
    data = Data(contexts, teacher, labels)  # the first rows train
    validation, held_out = slice(ROWS, 2 * ROWS), slice(2 * ROWS, 3 * ROWS)
    tried = []
    for rate in RATES:
        for weight in WEIGHTS if arm != "labels alone" else (0.0,):
            logits = _train(arm, (rate, weight), data, seed, settings.steps(400))
            nll = torch.nn.functional.cross_entropy(logits[validation], labels[validation])
            tried.append((float(nll), rate, weight, logits))
    _, rate, weight, logits = min(tried, key=lambda one: one[0])
    log_p, log_q = teacher[held_out].log_softmax(dim=1), logits[held_out].log_softmax(dim=1)
    sure, chosen = log_q.exp().max(dim=1)
    return {
        "NLL": float(torch.nn.functional.cross_entropy(logits[held_out], labels[held_out])),
        "KL(teacher || student)": float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean()),
        "agreement": float((chosen == log_p.argmax(dim=1)).double().mean()),
        "confidence less accuracy": float(sure.mean() - (chosen == labels[held_out]).double().mean()),
        "rate": rate,
        "weight": weight,
    }


@dataclass(frozen=True, slots=True)
class Data:
    """Contexts [n, FEATURES], and teacher logits [n, SIZE] and sampled labels [n] of them."""

    contexts: Tensor
    teacher: Tensor
    labels: Tensor


def _train(arm: str, setting: tuple[float, float], data: Data, seed: int, steps: int) -> Tensor:
    """Train a student on the first `ROWS` contexts and return its logits for all."""
    (rate, weight), generator = setting, torch.Generator().manual_seed(seed + 1)
    down = (torch.randn(FEATURES, RANK, generator=generator) / FEATURES**0.5).requires_grad_()
    up = (torch.randn(RANK, SIZE, generator=generator) / 10).requires_grad_()
    optimizer = torch.optim.Adam([down, up], lr=rate)
    for _ in range(steps):
        rows = torch.randint(ROWS, (SET,), generator=generator)
        student = data.contexts[rows] @ down @ up
        loss = torch.nn.functional.cross_entropy(student, data.labels[rows])
        loss = loss + weight * _loss(arm, student, data.teacher[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return data.contexts @ down @ up


EVIDENCE = Evidence(
    "sinkd",
    "At the same number of steps and the best of the same settings, SinKD's student is nearer to its teacher than "
    "those of KL, reverse KL and JS.",
    ARMS,
    measure,
    bars("KL(teacher || student)", "held-out KL(teacher || student)"),
    seeds=5,
    outcome="Not as claimed. SinKD alone ends at a KL of 1.34 from its teacher, nearer than labels alone "
    "(1.39), but KL, reverse KL and JS are nearer still (1.15, 1.17 and 1.23). Beside KL it adds "
    "nothing that these seeds show (1.15).",
)

if __name__ == "__main__":
    main(EVIDENCE)
