"""Compares the answers of an untrained and a trained model: diversity, a judge, a reward model, each by group."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from alignkit.data.dataset import split
from alignkit.data.messages import Message
from alignkit.data.nodes import RowError
from alignkit.data.reading import iter_lines
from alignkit.data.rows.recognise import GROUP
from alignkit.data.schemas import schema_for
from alignkit.errors import DataError
from alignkit.evaluate.diversity import distinct_words, self_bleu
from alignkit.evaluate.judging import Comparison, Judge, Judgement
from alignkit.evaluate.reward_model import RewardModel
from alignkit.evaluate.win_rate import Outcome, of_scores, win_rate
from alignkit.recipe import Recipe

Against = Literal["untrained", "data"]
"""What the trained model's answers are compared with: the untrained model's answers, or those in the data."""
DRAWN_AT_ONCE = 8
"""Prompts of one batch."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out prompt, the data's own answer to it, and its group."""

    messages: list[Message]
    known: str
    group: str | None
    ids: list[int] = field(default_factory=list)
    """The prompt's token ids."""


@dataclass(frozen=True, slots=True)
class Options:
    """How many held-out prompts are answered, and by what the answers are judged."""

    prompts: int = 0
    max_tokens: int = 256
    judge: Judge | None = None
    reward_model: RewardModel | None = None
    against: Against = "untrained"


def questions_of(recipe: Recipe, tokenizer: Any, count: int) -> list[Question]:
    """The first `count` held-out prompts that fit beside an answer. Raises DataError if there is none."""
    data, kind = recipe.data, schema_for(type(recipe.method))
    path = Path(data.train if isinstance(data.validation, float) else str(data.validation))
    rows: list[Any] = []
    for line in iter_lines(path, columns=data.columns):
        with suppress(RowError):  # training has told about a row that is invalid
            rows += [kind.parse(line.value)] if line.error is None else []
    if isinstance(data.validation, float):
        rows = [rows[at] for at in split(rows, data.validation)[1]]
    rendered = (_question(row, tokenizer) for row in rows)
    questions = list(islice((one for one in rendered if 0 < len(one.ids) < data.max_length), count))
    if not questions:
        raise DataError(f"{path.name}: no row has a prompt to answer within max_length {data.max_length}")
    return questions


def _question(row: Any, tokenizer: Any) -> Question:
    first = row.render(tokenizer)[0]
    known = getattr(row, "chosen", None) or (() if hasattr(row, "rejected") else row.loss_turns)
    return Question(row.prompt, text_of(known), getattr(row, GROUP, None), first.ids[: first.prompt_length])


def text_of(messages: Sequence[Message], *, roles: bool = False) -> str:
    """Messages as text, with their `roles` or without; tool calls as JSON."""
    lines = []
    for message in messages:
        content = message.get("content") or ""
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        if message.get("tool_calls"):
            text = f"{text}\n{json.dumps(message['tool_calls'], ensure_ascii=False)}".strip()
        lines.append(f"{message.get('role', '')}: {text}" if roles else text)
    return "\n\n".join(lines)


def draw_answers(trainer: Any, questions: Sequence[Question], max_tokens: int, seed: int) -> list[str]:
    """The current model's answer to each question, sampled at temperature 1."""
    from alignkit.trainers.scoring import draw  # saves transformers at start-up

    texts: list[str] = []
    for start in range(0, len(questions), DRAWN_AT_ONCE):
        batch = [one.ids for one in questions[start : start + DRAWN_AT_ONCE]]
        drawn = draw(trainer, batch, max_new_tokens=max_tokens, seed=seed + start)
        tokenizer = trainer.processing_class
        texts += [tokenizer.decode(one.tokens, skip_special_tokens=True).strip() for one in drawn]
    return texts


def compare(
    questions: Sequence[Question], untrained: Sequence[str], trained: Sequence[str], options: Options
) -> dict[str, Any]:
    """Everything that is measured of both models' answers, as JSON values: see docs/evaluation.md."""
    baseline = list(untrained) if options.against == "untrained" else [one.known for one in questions]
    judged = _judge(options.judge, questions, trained, baseline)
    rewards = _rewards(options.reward_model, questions, trained, baseline)
    rows: list[dict[str, Any]] = [
        {
            "prompt": text_of(one.messages, roles=True),
            "group": one.group,
            "untrained": untrained[at],
            "trained": trained[at],
            "data": one.known,
            **(
                {"judge": {"outcome": judged[at].outcome, "verdicts": list(judged[at].verdicts)}}
                if judged
                else {}
            ),
            **({"reward_model": {"trained": rewards[0][at], "baseline": rewards[1][at]}} if rewards else {}),
        }
        for at, one in enumerate(questions)
    ]
    members: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["group"] is not None:
            members[row["group"]].append(row)
    return {
        "answers": rows,
        "against": options.against,
        **measures_of(rows),
        "groups": {
            name: {"rows": len(found), **measures_of(found)} for name, found in sorted(members.items())
        },
    }


def _judge(
    judge: Judge | None, questions: Sequence[Question], trained: Sequence[str], baseline: Sequence[str]
) -> list[Judgement]:
    if judge is None:
        return []
    asked = zip(questions, trained, baseline, strict=True)
    return judge.compare(
        [Comparison(text_of(one.messages, roles=True), mine, other) for one, mine, other in asked]
    )


def _rewards(
    model: RewardModel | None, questions: Sequence[Question], trained: Sequence[str], baseline: Sequence[str]
) -> list[list[float]]:
    """The rewards of the trained model's answers and of the baseline's; empty without a reward model."""
    if model is None:
        return []
    return [
        model.score(
            [
                [*one.messages, {"role": "assistant", "content": text}]
                for one, text in zip(questions, texts, strict=True)
            ]
        )
        for texts in (trained, baseline)
    ]


def measures_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Diversity of both models' answers, and the win rates of the rows' outcomes."""
    found: dict[str, Any] = {"diversity": _diversity(rows)}
    if rows and "judge" in rows[0]:
        outcomes: list[Outcome] = [row["judge"]["outcome"] for row in rows]
        verdicts = [
            tuple(row["judge"]["verdicts"]) for row in rows if "invalid" not in row["judge"]["verdicts"]
        ]
        agreeing = [pair in CONSISTENT for pair in verdicts]
        found["judge"] = {**asdict(win_rate(outcomes)), "consistent": fmean(agreeing) if agreeing else None}
    if rows and "reward_model" in rows[0]:
        trained, baseline = ([row["reward_model"][side] for row in rows] for side in ("trained", "baseline"))
        means = {"trained": fmean(trained), "baseline": fmean(baseline)}
        found["reward_model"] = {**asdict(win_rate(of_scores(trained, baseline))), **means}
    return found


CONSISTENT = {("first", "second"), ("second", "first"), ("tie", "tie")}
"""Verdicts of both orders that name the same answer."""


def _diversity(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Measure -> its value for the untrained and for the trained model's answers."""
    sides = {side: [row[side] for row in rows] for side in ("untrained", "trained")}
    measures: dict[str, Callable[[list[str]], float | None]] = {
        **{f"distinct_{n}": partial(distinct_words, n=n) for n in (1, 2, 3)},
        "self_bleu": self_bleu,
        "words": lambda texts: fmean(len(text.split()) for text in texts),
        "empty": lambda texts: fmean(not text for text in texts),
    }
    return {
        name: {side: measure(texts) for side, texts in sides.items()} for name, measure in measures.items()
    }
