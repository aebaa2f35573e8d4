"""D2O on pairs about harm: harm and helpfulness after training on dispreferred answers alone, beside DPO and SFT.

Rows are split in three by their place in the file. The first part trains a scorer of harm: a logistic regression on
the untrained model's mean hidden state of an answer, whose AUC on rows it has not seen is in the result. The second
trains the arms. The third asks: answers are drawn and scored, and the log-prob of its preferred answers is what
helpfulness means here. `negatives only` is D2O without its samples, NPO's gradient.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.evaluate.win_rate import of_scores, win_rate
from evidence.drawn import AT_ONCE, Answer, distance, draw
from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.questions import write
from evidence.small_runs import Asked, padded, recipe, run

PROMPT_WORDS, ANSWER_WORDS = 60, 45
TOKENS, DRAWN, HELD_OUT, ROWS, STEPS, SAMPLES = 32, 2, 32, 160, 40, 4
D2O: dict[str, Any] = {"type": "d2o", "samples_per_prompt": SAMPLES, "max_tokens": TOKENS}
METHODS: dict[str, dict[str, Any]] = {
    "SFT on preferred": {"type": "supervised"},
    "DPO": {"type": "f_dpo", "beta": 0.1},
    "D2O": D2O,
    "D2O, samples drawn anew": D2O | {"resample_every": 10},
    "negatives only": D2O | {"beta": 0.0},
}
ARMS = ("untrained", *METHODS)
Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    """Short rows {prompt: messages, chosen: [message], rejected: [message]} of a file of JSON Lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [row for row in rows if _words(row["prompt"]) <= PROMPT_WORDS and _answers_are_short(row)]


def _words(messages: Sequence[Row]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def _answers_are_short(row: Row) -> bool:
    return all(0 < _words(row[side]) <= ANSWER_WORDS for side in ("chosen", "rejected"))


class HarmScorer:
    """The log-odds that an answer is the dispreferred one of its pair, from the untrained model's hidden states."""

    def __init__(self, model: Asked, rows: Sequence[Row]) -> None:
        """Fit on `rows`."""
        self._model = model
        states = self._states(rows)
        self._mean, self._spread = states.mean(dim=0), states.std(dim=0) + 1e-6
        x, y = self._scaled(states), torch.tensor([1.0, 0.0] * len(rows), dtype=torch.float64)
        self._weights = torch.zeros(x.size(1), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([self._weights], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            fit = torch.nn.functional.binary_cross_entropy_with_logits(x @ self._weights, y)
            loss = fit + 0.1 * (self._weights**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    def score(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        """Score answers; higher is more harmful."""
        states = self._read(list(zip(prompts, answers, strict=True)))
        return [float(value) for value in self._scaled(states) @ self._weights.detach()]

    def auc(self, rows: Sequence[Row]) -> float:
        """The share of (dispreferred, preferred) answers of all `rows` that are ranked right."""
        scores = self._scaled(self._states(rows)) @ self._weights.detach()
        bad, good = scores[0::2], scores[1::2]
        return float((bad[:, None] > good[None, :]).double().mean())

    def _states(self, rows: Sequence[Row]) -> Tensor:
        """The states [2 n, H]: of each row's dispreferred answer, then of its preferred one."""
        sides = ("rejected", "chosen")
        return self._read([(row["prompt"], row[side][0]["content"]) for row in rows for side in sides])

    @torch.no_grad()
    def _read(self, pairs: Sequence[tuple[Any, str]]) -> Tensor:
        """The mean states [n, H] of answers; those of like length are read together."""
        ids = [(self._model.prompt_ids(prompt), self._model.answer_ids(answer)) for prompt, answer in pairs]
        order = sorted(range(len(ids)), key=lambda index: sum(map(len, ids[index])))
        found: dict[int, Tensor] = {}
        for first in range(0, len(order), AT_ONCE):
            some = order[first : first + AT_ONCE]
            whole = [start + answer for start, answer in (ids[index] for index in some)]
            states = self._model.model.base_model(padded(whole)).last_hidden_state
            for index, one, answered in zip(some, whole, states, strict=True):
                found[index] = answered[len(ids[index][0]) : len(one)].double().mean(dim=0)
        return torch.stack([found[index] for index in range(len(ids))])

    def _scaled(self, states: Tensor) -> Tensor:
        return (states - self._mean) / self._spread


def _training_rows(arm: str, rows: Sequence[Row]) -> list[Row]:
    if arm == "SFT on preferred":
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if arm == "DPO":
        return list(rows)
    return [{"prompt": row["prompt"], "rejected": row["rejected"]} for row in rows]


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train, draw answers to held-out prompts, and score them."""
    parts, start = _parts(settings), _start(settings)
    adapter = None if arm == "untrained" else _trained(arm, seed, settings, parts)
    model = start.model if adapter is None else Asked(settings, adapter)
    prompts = [row["prompt"] for row in parts.asked]
    drawn = draw(model, prompts, DRAWN, tokens=TOKENS, seed=seed + 100)
    harm = start.harm(prompts, drawn)
    written = [(prompts[one.prompt], one.text) for one in drawn if one.text.strip()]
    fluency = start.model.logps(written)
    helpful = model.logps([(row["prompt"], row["chosen"][0]["content"]) for row in parts.asked])
    harm_before = start.harm(prompts, draw(start.model, prompts, DRAWN, tokens=TOKENS, seed=seed + 200))
    outcomes = of_scores([-value for value in harm], [-value for value in harm_before])
    return {
        "harm": sum(harm) / len(harm),
        "wins against untrained": win_rate(outcomes).rate or 0.0,
        "log-prob of preferred": sum(helpful) / len(helpful),
        "fluency under untrained": sum(fluency) / max(len(fluency), 1),
        "KL": 0.0 if adapter is None else distance(model, prompts, drawn).kl,
        "scorer's AUC": start.auc,
    }


@dataclass(frozen=True, slots=True)
class Parts:
    """The rows that fit the scorer, train, ask, and tell how well the scorer ranks."""

    fitting: list[Row]
    training: list[Row]
    asked: list[Row]
    ranked: list[Row]


def _parts(settings: Settings) -> Parts:
    if settings.data is None:
        raise ValueError("expected --data FILE")
    rows, few = rows_of(settings.data), settings.steps(1000, 20)
    third = len(rows) // 3
    asking = rows[2 * third :]
    asked = asking[: settings.steps(HELD_OUT, 4)]
    return Parts(rows[:third][:few], rows[third : 2 * third], asked, asking[-few:])


@dataclass(frozen=True, slots=True)
class Start:
    """The untrained model and the scorer made of it, which every arm shares."""

    model: Asked
    scorer: HarmScorer
    auc: float

    def harm(self, prompts: Sequence[Any], answers: Sequence[Answer]) -> list[float]:
        """Score drawn answers."""
        return self.scorer.score([prompts[one.prompt] for one in answers], [one.text for one in answers])


@cache
def _start(settings: Settings) -> Start:
    parts, model = _parts(settings), Asked(settings)
    scorer = HarmScorer(model, parts.fitting)
    return Start(model, scorer, scorer.auc(parts.ranked))


def _trained(arm: str, seed: int, settings: Settings, parts: Parts) -> Path:
    order = torch.randperm(len(parts.training), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [parts.training[index] for index in order[: settings.steps(ROWS, 8)]]
    folder, index = settings.work / "dispreferred", ARMS.index(arm)
    given = recipe(
        settings,
        train=write(_training_rows(arm, chosen), folder / f"train-{index}-{seed}.jsonl"),
        validation=write(_training_rows(arm, parts.asked), folder / f"held-out-{index}.jsonl"),
        method=METHODS[arm],
        steps=STEPS,
        seed=seed,
        batch=4,
        max_length=192,
    )
    given["training"]["learning_rate"] = 2e-4
    path, _ = run(settings, f"dispreferred/{index}-{seed}", given)
    return path / "adapter"


EVIDENCE = Evidence(
    "dispreferred",
    "D2O lowers harm as much as DPO on pairs, from dispreferred answers alone, at no loss of helpfulness; negatives "
    "without samples lose the language.",
    ARMS,
    measure,
    bars("harm", "harm of drawn answers, log-odds"),
    needs_model=True,
    needs_data="JSON Lines of rows {prompt: [messages], chosen: [message], rejected: [message]}, such as HH-RLHF's "
    "harmless part",
)

if __name__ == "__main__":
    main(EVIDENCE)
