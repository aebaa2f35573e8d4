"""Distillation of SmolLM2 into every third of its layers by several divergences: what the student covers.

All weights of the student train, on plain answers to questions, for the same number of steps and at the same rate.
"""

from pathlib import Path
from typing import Any

import torch

from alignkit.models.loading import load_tokenizer, load_weights
from evidence.bounded_gradient import nucleus
from evidence.harness import Evidence, Found, Settings, Values, bars, main
from evidence.questions import STYLES, ask, completions, write
from evidence.small_runs import Asked, recipe, run

ARMS = ("reverse_kl", "js_divergence", "forward_kl", "cauchy_schwarz")
EVERY = 3


def student(settings: Settings) -> str:
    """The folder of the model with every third layer, made once."""
    folder = settings.work / "student"
    if not (folder / "config.json").is_file():
        model: Any = load_weights(settings.model, "float32", field="model")
        model.model.layers = torch.nn.ModuleList(list(model.model.layers)[::EVERY])
        model.config.num_hidden_layers = len(model.model.layers)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[::EVERY]
        load_tokenizer(settings.model, field="model").save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Distil, and compare held-out distributions of the answers' tokens."""
    folder = settings.work / "distilled_coverage"
    asked = ask(24, 0, held_out=True)
    given = recipe(
        settings,
        train=write(completions(ask(480, seed), ["plain"]), folder / f"train-{seed}.jsonl"),
        validation=write(completions(asked, ["plain"]), folder / "held-out.jsonl"),
        method={"type": "f_kd", "divergence": arm, "teacher": {"path": settings.model}, "ce_weight": 0.0},
        steps=60,
        seed=seed,
    )
    given["model"]["path"], given["lora"] = student(settings), None
    given["training"]["learning_rate"] = 1e-4
    path, _ = run(settings, f"distilled_coverage/{arm}-{seed}", given)
    rows = [(one.text, STYLES["plain"](one)) for one in asked]
    log_p = Asked(settings).log_probs(rows)
    log_q = _student(settings, path / "model").log_probs(rows)
    covered = nucleus(log_p) & nucleus(log_q)
    return {
        "coverage": float(covered.sum() / nucleus(log_p).sum()),
        "entropy": float(-(log_q.exp() * log_q).sum(dim=1).mean()),
        "KL(student || teacher)": float((log_q.exp() * (log_q - log_p)).sum(dim=1).mean()),
        "KL(teacher || student)": float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean()),
    }


def _student(settings: Settings, path: Path) -> Asked:
    return Asked(Settings(smoke=settings.smoke, model=str(path), work=settings.work))


def draw(found: Found, axis: object) -> None:
    """Share of the teacher's nucleus that the student's contains."""
    bars(found, axis, "coverage", "share of the teacher's nucleus covered")


EVIDENCE = Evidence(
    "distilled_coverage",
    "A distilled student covers more of its teacher's nucleus under forward KL than under JS, and under JS than "
    "under reverse KL.",
    ARMS,
    measure,
    draw,
    needs_model=True,
)

if __name__ == "__main__":
    main(EVIDENCE)
