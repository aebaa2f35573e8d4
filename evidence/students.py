"""Students of the language model, every third of its layers, by many methods at the best of the same rates.

A method's rate is chosen with the first seed, by the NLL of questions that measure nothing else. All questions that
choose or measure are of sums and of the larger of two numbers, and no run was asked them. The letters that runs train
on beside them repeat, and would tell what was learned by heart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from alignkit.models.loading import load_tokenizer, load_weights
from evidence.harness import MODEL, Settings
from evidence.questions import STYLES, Question, ask, completions, write
from evidence.small_runs import Asked, Read, calibration, joined, named, recipe, run

EVERY = 3
ROWS, HELD_OUT, STEPS = 480, 96, 60
TOPICS = ("sums", "larger")
RATES = (3e-4, 1e-3)
ONE_RATE = (3e-4,)
"""The rate of methods that are compared at one, and on another language model, where a sweep takes hours."""
_F_KD = {"type": "f_kd", "ce_weight": 1.0}
_FROZEN = {"type": "bd_kd", "teacher_trains": False}
_TRAINS = {"type": "bd_kd", "teacher_lora": {"r": 8, "alpha": 16}}
_SUM = {"nu": 1.0, "kd_weight": 1.5}
"""Both KLs at the same weight, which sum to the three that BD-KD's defaults sum to."""
METHODS: dict[str, dict[str, Any]] = {
    "labels alone": {"type": "supervised"},
    "KL": _F_KD | {"divergence": "forward_kl"},
    "KL, three times the weight": _F_KD | {"divergence": "forward_kl", "kd_weight": 3.0},
    "reverse KL": _F_KD | {"divergence": "reverse_kl"},
    "JS": _F_KD | {"divergence": "js_divergence"},
    "SinKD": {"type": "sinkd"},
    "SinKD without transport": {"type": "sinkd", "sinkhorn_weight": 0.0},
    "SinKD at 3e-4": {"type": "sinkd"},
    "SinKD without transport, at 3e-4": {"type": "sinkd", "sinkhorn_weight": 0.0},
    "SinKD, exact plans, at 3e-4": {"type": "sinkd", "solver": "newton_sparse"},
    "SinKD, sparse plans, at 3e-4": {"type": "sinkd", "solver": "k_sparse"},
    "SinKD, pairing, at 3e-4": {"type": "sinkd", "pairing_weight": 1.0},
    "both KLs": _FROZEN | _SUM,
    "BD-KD": _FROZEN,
    "both KLs, new teacher trains": _TRAINS | _SUM,
    "BD-KD, new teacher trains": _TRAINS,
}
"""What makes a student. A new teacher is the untrained language model; all others have learned the answers."""
UNTAUGHT, AT_ONE_RATE = "new teacher", "at 3e-4"


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
        validation=_validation(settings),
        method={"type": "supervised"},
        steps=STEPS,
        seed=100,
    )
    path, _ = run(settings, "students/teacher", given)
    return {"path": settings.model, "adapter": str(path / "adapter")}


def asked_of(settings: Settings, path: Path) -> Asked:
    """The model in a folder."""
    return Asked(Settings(smoke=settings.smoke, model=str(path), work=settings.work))


@dataclass(frozen=True, slots=True)
class Student:
    """A trained student."""

    model: Asked
    folder: Path
    """The folder of its run."""
    metrics: Mapping[str, float]
    """What its run reports of the questions that measure."""
    rate: float


def distilled(settings: Settings, method: str, seed: int) -> Student:
    """Train a student with one of `METHODS` at its best rate, unless that is done."""
    return _distil(settings, method, seed, _rate(settings, method))


@cache
def _rate(settings: Settings, method: str) -> float:
    """The rate whose student of the first seed has the lowest NLL on the questions that choose."""
    sweep = Path(settings.model).name == Path(MODEL).name and not method.endswith(AT_ONE_RATE)
    rates = RATES if sweep else ONE_RATE
    return min(rates, key=lambda rate: nll(_distil(settings, method, 0, rate).model, choosing(settings)))


def _distil(settings: Settings, method: str, seed: int, rate: float) -> Student:
    """Train all weights of the student on plain answers to questions."""
    options = dict(METHODS[method])
    if options["type"] != "supervised":
        options["teacher"] = {"path": settings.model} if UNTAUGHT in method else teacher(settings)
    given = recipe(
        settings,
        train=write(completions(ask(ROWS, seed), ["plain"]), settings.work / f"students/train-{seed}.jsonl"),
        validation=_validation(settings),
        method=options,
        steps=STEPS,
        seed=seed,
    )
    given["model"]["path"], given["lora"] = student(settings), None
    given["training"]["learning_rate"] = rate
    path, result = run(settings, f"students/{named(method.removesuffix(AT_ONE_RATE))}/{rate:g}-{seed}", given)
    return Student(asked_of(settings, path / "model"), path, result["metrics"], rate)


def choosing(settings: Settings) -> list[Question]:
    """Questions to choose a rate by, which no run trains on and which measure nothing."""
    return _held_out(settings)[0::2]


def measuring(settings: Settings) -> list[Question]:
    """Questions to measure a student by, which no run trains on and which choose nothing."""
    return _held_out(settings)[1::2]


def _held_out(settings: Settings) -> list[Question]:
    """Different questions, in turn two of each topic, so that every other one is of both."""
    one, other = (
        list({question.text: question for question in ask(1000, 0, held_out=True, topics=[topic])}.values())
        for topic in TOPICS
    )
    count = settings.steps(HELD_OUT, 4)
    groups = zip(one[0::2], one[1::2], other[0::2], other[1::2], strict=False)
    return [question for group in groups for question in group][: 2 * count]


def _validation(settings: Settings) -> str:
    return write(completions(measuring(settings), ["plain"]), settings.work / "students/validation.jsonl")


@cache
def taught(settings: Settings) -> tuple[dict[str, float], list[str], list[int]]:
    """The teacher that has learned the answers: its measures, its answers, and its first choices of tokens."""
    model, asked = Asked(settings, Path(teacher(settings)["adapter"])), measuring(settings)
    tokens, answers = joined(model.read(_answered(asked))), model.answer([one.text for one in asked])
    return measured(model, asked, tokens, answers), answers, tokens.log_probs.argmax(dim=1).tolist()


def nll(model: Asked, asked: Sequence[Question]) -> float:
    """The NLL of the answers' tokens, in nats."""
    tokens = joined(model.read(_answered(asked)))
    return -float(tokens.log_probs.gather(1, tokens.ids[:, None]).mean())


def _answered(asked: Sequence[Question], style: str = "plain") -> list[tuple[str, str]]:
    return [(one.text, STYLES[style](one)) for one in asked]


def of_student(settings: Settings, model: Asked) -> dict[str, float]:
    """What `measured` tells of a student, and how often and how closely the student answers as its teacher does."""
    asked = measuring(settings)
    tokens, answers = joined(model.read(_answered(asked))), model.answer([one.text for one in asked])
    _, teachers, choices = taught(settings)
    same = (tokens.log_probs.argmax(dim=1) == torch.tensor(choices)).double().mean()
    return measured(model, asked, tokens, answers) | {
        "agreement": float(same),
        "ROUGE-L, teacher": rouge_l(answers, teachers),
    }


def measured(
    model: Asked, asked: Sequence[Question], tokens: Read, answers: Sequence[str]
) -> dict[str, float]:
    """Of the answers' tokens: NLL, accuracy, ECE and Brier score; of whole answers: right ones among two, ROUGE-L."""
    q, at = tokens.log_probs.exp(), tokens.ids[:, None]
    right, wrong = (model.logps(_answered(asked, style)) for style in ("plain", "wrong"))
    return {
        "NLL": -float(tokens.log_probs.gather(1, at).mean()),
        "accuracy": float((q.argmax(dim=1) == tokens.ids).double().mean()),
        "ECE": calibration(tokens),
        "Brier": float(((q**2).sum(dim=1) - 2 * q.gather(1, at)[:, 0] + 1).mean()),
        "right of two": sum(map(float.__gt__, right, wrong)) / len(asked),
        "ROUGE-L, data": rouge_l(answers, [STYLES["plain"](one) for one in asked]),
    }


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
