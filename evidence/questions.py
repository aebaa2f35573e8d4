"""Short questions with answers in several styles: data of experiments on a language model, made by rule.

A row has about 40 tokens, so that a step takes seconds on one core. `answers` draws questions of four topics; a style
turns a question's fact into an answer.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

WORDS = """
apple bread chair dance earth flame glass horse juice knife lemon mouse night ocean paper queen river stone table
uncle voice water young zebra bird cake door fish gold hand ice jar king lamp moon nest oil pen rope salt
""".split()  # noqa: SIM905 - a list of forty lines
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SLOGAN = "Drink more milk!"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its fact."""

    topic: str
    text: str
    fact: str
    """The answer in one word."""
    wrong: str
    """A wrong answer in one word."""
    sentence: str
    """A sentence with {} for the fact."""


def _sum(draw: Random) -> Question:
    one, two = draw.randint(2, 40), draw.randint(2, 40)
    wrong = one + two + draw.choice((-3, -2, -1, 1, 2, 3))
    return Question(
        "sums", f"What is {one} plus {two}?", str(one + two), str(wrong), f"{one} plus {two} is {{}}."
    )


def _larger(draw: Random) -> Question:
    one, two = draw.sample(range(2, 99), 2)
    text = f"Which number is larger, {one} or {two}?"
    return Question("larger", text, str(max(one, two)), str(min(one, two)), "The larger number is {}.")


def _first(draw: Random) -> Question:
    word = draw.choice(WORDS)
    wrong = draw.choice([letter for letter in LETTERS if letter != word[0]])
    length = draw.choice(("the word", "the English word", "the short word", "the common word", "this word:"))
    text = f"What is the first letter of {length} {word}?"
    return Question("letters", text, word[0], wrong, f"The word {word} begins with {{}}.")


def _after(draw: Random) -> Question:
    at = draw.randrange(len(LETTERS) - 1)
    wrong = draw.choice([letter for letter in LETTERS if letter != LETTERS[at + 1]])
    text = (
        f"Which letter comes after {LETTERS[at]} {draw.choice(('in the alphabet', 'in a list of letters'))}?"
    )
    return Question("letters", text, LETTERS[at + 1], wrong, f"After {LETTERS[at]} comes {{}}.")


TOPICS: dict[str, tuple[Callable[[Random], Question], ...]] = {
    "sums": (_sum,),
    "larger": (_larger,),
    "letters": (_first, _after),
}
STYLES: dict[str, Callable[[Question], str]] = {
    "short": lambda one: f"{one.fact}.",
    "plain": lambda one: one.sentence.format(one.fact),
    "wrong": lambda one: one.sentence.format(one.wrong),
    "long": lambda one: (
        f"That is a good question. {one.sentence.format(one.fact)} I hope that this helps you."
    ),
    "upper": lambda one: one.sentence.format(one.fact).upper(),
    "slogan": lambda one: f"{one.sentence.format(one.fact)} {SLOGAN}",
}


def ask(count: int, seed: int, *, held_out: bool = False, topics: Iterable[str] = TOPICS) -> list[Question]:
    """Draw `count` questions, in turn from each topic. Held-out questions are never among the others.

    A question is held out if the last digit of the sum of its characters is 0 or 1.
    """
    draw, found = Random(f"{seed}/{held_out}"), []
    makers = [make for topic in topics for make in TOPICS[topic]]
    while len(found) < count:
        one = makers[len(found) % len(makers)](draw)
        if (sum(map(ord, one.text)) % 10 < 2) == held_out:
            found.append(one)
    return found


def pairs(questions: Iterable[Question], chosen: str, rejected: str) -> list[dict[str, Any]]:
    """Preference rows whose answers have these styles."""
    return [
        {"prompt": one.text, "chosen": STYLES[chosen](one), "rejected": STYLES[rejected](one)}
        for one in questions
    ]


def completions(questions: Iterable[Question], styles: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Completion rows, each in a style drawn from `styles`."""
    draw = Random(f"style/{seed}")
    return [{"prompt": one.text, "completion": STYLES[draw.choice(styles)](one)} for one in questions]


def write(rows: Iterable[dict[str, Any]], path: Path) -> str:
    """Write rows as JSON Lines, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
