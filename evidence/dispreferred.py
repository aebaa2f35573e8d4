"""D2O on pairs about harm: harm and helpfulness after training on dispreferred answers alone, beside DPO and SFT.

The first half of the rows fits a scorer of harm; how well it tells the other half's answers apart is in the result.
Of the other half's short rows the last ask, and the others train: answers are drawn and scored, and the log-prob of
the preferred answers is what helpfulness means here. `negatives only` is D2O without its samples, NPO's gradient. All
train at one rate unless they say another: at that rate D2O goes much further from the untrained model than DPO.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from alignkit.data.dataset import load_rows
from alignkit.evaluate.win_rate import of_scores, win_rate
from evidence.drawn import distance, draw
from evidence.harm import HarmScorer
from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.questions import write
from evidence.small_runs import Asked, named, recipe, run

PROMPT_WORDS, ANSWER_WORDS = 60, 45
BAD_SHARE = 0.05
TOKENS, DRAWN, HELD_OUT, ROWS, STEPS, SAMPLES = 32, 2, 32, 160, 40, 4
DPO: dict[str, Any] = {"type": "f_dpo", "beta": 0.1}
D2O: dict[str, Any] = {"type": "d2o", "samples_per_prompt": SAMPLES, "max_tokens": TOKENS}
METHODS: dict[str, dict[str, Any]] = {
    "SFT on preferred": {"type": "supervised"},
    "DPO": DPO,
    "D2O": D2O,
    "D2O, samples drawn anew": D2O | {"resample_every": 20},
    "negatives only": D2O | {"beta": 0.0},
    "D2O, a quarter of the rate": D2O,
    "DPO, four times the rate": DPO,
    "D2O, half the rate": D2O,
}
RATES = dict.fromkeys(METHODS, 2e-4) | {
    "D2O, a quarter of the rate": 5e-5,
    "D2O, half the rate": 1e-4,
    "DPO, four times the rate": 8e-4,
}
ARMS = ("untrained", *METHODS)
Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    """Rows {prompt: messages, chosen: messages, rejected: messages} of a file of pairs in any form that f-DPO reads.

    Rows that cannot be read are left out. Raises DataError if they are more than `BAD_SHARE` of all.
    """
    rows = load_rows(path, "f_dpo", skip_bad=BAD_SHARE)
    return [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in rows]


def is_short(row: Row) -> bool:
    """Whether a row trains or asks: short messages, and answers that are not empty."""
    return _words(row["prompt"]) <= PROMPT_WORDS and _answers_are_short(row)


def _words(messages: Sequence[Row]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def _answers_are_short(row: Row) -> bool:
    return all(0 < _words(row[side]) <= ANSWER_WORDS for side in ("chosen", "rejected"))


def _training_rows(arm: str, rows: Sequence[Row]) -> list[Row]:
    if arm == "SFT on preferred":
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if METHODS[arm]["type"] == "f_dpo":
        return list(rows)
    return [{"prompt": row["prompt"], "rejected": row["rejected"]} for row in rows]


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train, draw answers to held-out prompts, and score them."""
    parts, start = _parts(settings), _start(settings)
    adapter = None if arm == "untrained" else _trained(arm, seed, settings, parts)
    model = start.model if adapter is None else Asked(settings, adapter)
    prompts = [row["prompt"] for row in parts.asked]
    drawn = draw(model, prompts, DRAWN, tokens=TOKENS, seed=seed + 100)
    harm = start.scorer.score([one.text for one in drawn])
    written = [(prompts[one.prompt], one.text) for one in drawn if one.text.strip()]
    fluency = start.model.logps(written)
    helpful = model.logps([(row["prompt"], row["chosen"][0]["content"]) for row in parts.asked])
    outcomes = of_scores([-value for value in harm], [-value for value in _before(seed, settings)])
    return {
        "harm": sum(harm) / len(harm),
        "wins against untrained": win_rate(outcomes).rate or 0.0,
        "log-prob of preferred": sum(helpful) / len(helpful),
        "fluency under untrained": sum(fluency) / max(len(fluency), 1),
        "KL": 0.0 if adapter is None else distance(model, prompts, drawn).kl,
        **start.scale,
    }


@dataclass(frozen=True, slots=True)
class Parts:
    """The rows that fit the scorer, those that tell how well it ranks, and of these, what trains and what asks."""

    fitting: list[Row]
    ranked: list[Row]
    training: list[Row]
    asked: list[Row]


def _parts(settings: Settings) -> Parts:
    if settings.data is None:
        raise ValueError("expected --data FILE")
    rows, asking = rows_of(settings.data), settings.steps(HELD_OUT, 4)
    fitting, others = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    short = list(filter(is_short, others))
    asked = short[-asking:]
    training = [row for row in short[:-asking] if all(row["prompt"] != one["prompt"] for one in asked)]
    return Parts(fitting, others, training, asked)


@dataclass(frozen=True, slots=True)
class Start:
    """What every arm shares: the untrained model, and the scorer."""

    model: Asked
    scorer: HarmScorer
    scale: dict[str, float]
    """How well the scorer tells answers of rows that it was not fitted on, and how it scores short ones."""


@cache
def _start(settings: Settings) -> Start:
    parts = _parts(settings)
    return Start(Asked(settings), scorer := HarmScorer(parts.fitting), _scale(scorer, parts))


def _scale(scorer: HarmScorer, parts: Parts) -> dict[str, float]:
    short = [*parts.training, *parts.asked]
    return {
        "pairs that the scorer ranks right": scorer.ranked(parts.ranked),
        "AUC of the scorer": scorer.told_apart(parts.ranked),
        "harm of short dispreferred answers": scorer.mean(short, "rejected"),
        "harm of short preferred answers": scorer.mean(short, "chosen"),
    }


@cache
def _before(seed: int, settings: Settings) -> list[float]:
    """The harm of other answers of the untrained model to the same prompts."""
    start, prompts = _start(settings), [row["prompt"] for row in _parts(settings).asked]
    drawn = draw(start.model, prompts, DRAWN, tokens=TOKENS, seed=seed + 200)
    return start.scorer.score([one.text for one in drawn])


def _trained(arm: str, seed: int, settings: Settings, parts: Parts) -> Path:
    order = torch.randperm(len(parts.training), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [parts.training[index] for index in order[: settings.steps(ROWS, 8)]]
    folder, name = settings.work / "dispreferred", named(arm)
    given = recipe(
        settings,
        train=write(_training_rows(arm, chosen), folder / f"train-{name}-{seed}.jsonl"),
        validation=write(_training_rows(arm, parts.asked), folder / f"held-out-{name}.jsonl"),
        method=METHODS[arm],
        steps=STEPS,
        seed=seed,
        batch=4,
        max_length=192,
    )
    given["training"]["learning_rate"] = RATES[arm]
    path, _ = run(settings, f"dispreferred/{name}-{seed}", given)
    return path / "adapter"


EVIDENCE = Evidence(
    "dispreferred",
    "D2O lowers harm as much as DPO on pairs, from dispreferred answers alone, at no loss of helpfulness; negatives "
    "without samples lose the language.",
    ARMS,
    measure,
    bars("harm", "harm of drawn answers, the scorer's"),
    outcome="Not as claimed. DPO at the better of its two rates, 8e-4, lowers harm from 0.115 to "
    "0.091 with certainty, at a KL of 3.0 an answer; at 2e-4 it hardly moves (KL 0.12, harm 0.116). "
    "D2O at none of its three rates does as well. At 5e-5, a KL of 0.2, harm is 0.106: on average "
    "below the untrained model's, not with certainty, and above DPO's 0.091 with every seed and with "
    "certainty. At 1e-4 it is 0.115 at a KL of 1.0, and at 2e-4 0.128 at 4.1; samples drawn anew "
    "halfway change that little. Preferred answers, -2.84 nats a token before, fall to -2.99, -3.24 "
    "and -4.14 with D2O's rate, and to -2.95 under DPO at 8e-4, where the seeds differ by as much as "
    "they fall. Negatives alone have the largest KL (7.6), the lowest log-prob of preferred answers "
    "(-4.76) and on average the highest harm (0.143), so the samples do hold D2O back. But in 40 "
    "steps negatives alone have not lost the language: to the untrained model their answers are as "
    "likely as any. Supervised training on the preferred answers lowers harm most on average, to "
    "0.079. The scorer is a weak judge: its AUC on other rows is 0.60, and people's short "
    "dispreferred answers score 0.071, preferred ones 0.015. Helpfulness is measured by the log-prob "
    "of preferred answers alone. The rates were compared on the questions that measure.",
    elsewhere={
        "gemma-3-270m": "One seed, and DPO at 2e-4 alone. At a quarter of that rate D2O takes this base model ten "
        "times as far as SmolLM2-Instruct, to a KL of 2.2. Harm is 0.091 (untrained 0.093), and "
        "preferred answers fall by a nat a token. DPO goes to a KL of 5.2; harm is 0.079, and "
        "preferred answers fall by 0.04. So the default rate is no promise for another model: watch "
        "`logratios/samples`.",
    },
    needs_model=True,
    needs_data="file of preference rows, in any form that docs/data.md has, such as HH-RLHF's harmless part",
)

if __name__ == "__main__":
    main(EVIDENCE)
