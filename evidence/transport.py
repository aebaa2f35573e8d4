"""SinKD against KL, reverse KL and JS on SmolLM2 and every third of its layers, each at the better of two rates.

All arms have the cross-entropy of the labels beside their distillation loss, at their default weights. The rate is
chosen by the NLL of validation questions; what is reported is of questions that chose nothing.
"""

from functools import cache
from typing import Any

from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.small_runs import Asked
from evidence.students import asked_of, distil, held_out, measured

RATES = (1e-4, 3e-4)
METHODS: dict[str, dict[str, Any]] = {
    "labels alone": {"type": "supervised"},
    "KL": {"type": "f_kd", "divergence": "forward_kl", "ce_weight": 1.0},
    "reverse KL": {"type": "f_kd", "divergence": "reverse_kl", "ce_weight": 1.0},
    "JS": {"type": "f_kd", "divergence": "js_divergence", "ce_weight": 1.0},
    "SinKD": {"type": "sinkd"},
    "SinKD, exact plans": {"type": "sinkd", "solver": "newton_sparse"},
    "SinKD, sparse plans": {"type": "sinkd", "solver": "k_sparse"},
    "SinKD, pairing": {"type": "sinkd", "pairing_weight": 1e-3},
}


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Distil at each rate, choose one by the validation questions, and measure it on the others."""
    method = dict(METHODS[arm])
    if arm != "labels alone":
        method["teacher"] = {"path": settings.model}
    choosing, asked = held_out(settings)[::2], held_out(settings)[1::2]
    tried = []
    for rate in RATES:
        name = f"transport/{list(METHODS).index(arm)}-{rate:g}-{seed}"
        path, _ = distil(settings, name, method, seed=seed, rate=rate)
        model = asked_of(settings, path / "model")
        tried.append((measured(model, choosing)["NLL"], rate, model))
    _, rate, model = min(tried, key=lambda one: one[0])
    return measured(model, asked, _teachers(settings)) | {"rate": rate}


@cache
def _teachers(settings: Settings) -> list[str]:
    """The teacher's answers to the questions that are measured."""
    return Asked(settings).answer([one.text for one in held_out(settings)[1::2]])


EVIDENCE = Evidence(
    "transport",
    "At the same number of steps and the better of the same rates, SinKD's student has a lower held-out NLL than "
    "those of KL, reverse KL and JS.",
    tuple(METHODS),
    measure,
    bars("NLL", "held-out NLL of the answers, nats a token"),
    needs_model=True,
)

if __name__ == "__main__":
    main(EVIDENCE)
