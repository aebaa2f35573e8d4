"""A student of the language model, every third of its layers, its teacher, and what is measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignkit.models.loading import load_tokenizer, load_weights
from evidence.harness import Settings
from evidence.questions import STYLES, Question, ask, completions, write
from evidence.small_runs import Asked, calibration, joined, recipe, run

EVERY = 3
ROWS, HELD_OUT, STEPS = 480, 48, 60


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


def teacher(settings: Settings) -> dict[str, str]:
    """The language model with an adapter that has learned this kind of answer, made once, on questions of its own."""
    data = settings.work / "students"
    given = recipe(
        settings,
        train=write(completions(ask(ROWS, 100), ["plain"]), data / "teacher.jsonl"),
        validation=write(completions(held_out(settings)[::2], ["plain"]), data / "validation.jsonl"),
        method={"type": "supervised"},
        steps=STEPS,
        seed=100,
    )
    path, _ = run(settings, "students/teacher", given)
    return {"path": settings.model, "adapter": str(path / "adapter")}


def asked_of(settings: Settings, path: Path) -> Asked:
    """The model in a folder."""
    return Asked(Settings(smoke=settings.smoke, model=str(path), work=settings.work))


def distil(
    settings: Settings, name: str, method: Mapping[str, Any], *, seed: int, rate: float
) -> tuple[Path, dict[str, Any]]:
    """Train all weights of the student on plain answers to questions; return (the run's folder, its result)."""
    data = settings.work / "students"
    given = recipe(
        settings,
        train=write(completions(ask(ROWS, seed), ["plain"]), data / f"train-{seed}.jsonl"),
        validation=write(completions(held_out(settings)[::2], ["plain"]), data / "validation.jsonl"),
        method=method,
        steps=STEPS,
        seed=seed,
    )
    given["model"]["path"], given["lora"] = student(settings), None
    given["training"]["learning_rate"] = rate
    return run(settings, name, given)


def held_out(settings: Settings) -> list[Question]:
    """Questions that no run trains on: even ones to choose a setting by, odd ones to measure the chosen one."""
    return ask(2 * settings.steps(HELD_OUT, 4), 0, held_out=True)


def nll(model: Asked, asked: Sequence[Question]) -> float:
    """The NLL of the answers' tokens, in nats."""
    tokens = joined(model.read(_answered(asked)))
    return -float(tokens.log_probs.gather(1, tokens.ids[:, None]).mean())


def _answered(asked: Sequence[Question]) -> list[tuple[str, str]]:
    return [(one.text, STYLES["plain"](one)) for one in asked]


def measured(
    model: Asked, asked: Sequence[Question], teachers: Sequence[str] | None = None
) -> dict[str, float]:
    """Of the answers' tokens: NLL, accuracy, ECE and Brier score; of whole answers: right ones among two, ROUGE-L."""
    rows = _answered(asked)
    reads = model.read(rows)
    tokens = joined(reads)
    q, at = tokens.log_probs.exp(), tokens.ids[:, None]
    wrong = model.logps([(one.text, STYLES["wrong"](one)) for one in asked])
    prefers = [one.logp > other for one, other in zip(reads, wrong, strict=True)]
    found = {
        "NLL": -float(tokens.log_probs.gather(1, at).mean()),
        "accuracy": float((q.argmax(dim=1) == tokens.ids).double().mean()),
        "ECE": calibration(tokens),
        "Brier": float(((q**2).sum(dim=1) - 2 * q.gather(1, at)[:, 0] + 1).mean()),
        "right of two": sum(prefers) / len(prefers),
    }
    answers = model.answer([one.text for one in asked])
    found["ROUGE-L, data"] = rouge_l(answers, [answer for _, answer in rows])
    if teachers is not None:
        found["ROUGE-L, teacher"] = rouge_l(answers, teachers)
    return found


def rouge_l(answers: Sequence[str], others: Sequence[str]) -> float:
    """Mean F1 of the longest common subsequence of words, case ignored."""
    return sum(map(_overlap, answers, others)) / len(answers)


def _overlap(answer: str, other: str) -> float:
    one, two = answer.lower().split(), other.lower().split()
    lengths = [0] * (len(two) + 1)
    for word in one:
        before = 0  # lengths[j - 1] of the row above
        for j, against in enumerate(two, start=1):
            above = lengths[j]
            lengths[j] = before + 1 if word == against else max(above, lengths[j - 1])
            before = above
    return 2 * lengths[-1] / max(len(one) + len(two), 1)
