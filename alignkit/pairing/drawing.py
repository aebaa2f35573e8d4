"""Draws pairs for a list of prompts, a few prompts at a time, so that an interrupted drawing resumes.

`OUT.jsonl` holds the pairs. `OUT.draws.jsonl` beside it holds everything that was drawn, one line a finished prompt;
a repeated call reads it and draws only what is missing.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignkit.data.messages import Message
from alignkit.disk import put
from alignkit.errors import AlignkitError
from alignkit.pairing.answering import Answerer, SamplingSettings
from alignkit.pairing.prompts import Prompt
from alignkit.pairing.ranking import Ranker

AT_ONCE = 8
"""Prompts that are drawn together; at most so many are lost by an interruption."""
SEED_STRIDE = 7919
Outcome = Literal["pair", "one answer", "no difference", "no scores"]
Progress = Callable[[int, int], object]


@dataclass(slots=True)
class Drawing:
    """A drawing: where it is kept, and by what it is drawn. Its file is refused if it was made by something else."""

    out: Path
    model: str
    ranker: str
    settings: SamplingSettings
    margin: float = 0.0
    """The best answer of a pair scores more than this above the worst."""
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key of a prompt -> what was drawn for it."""

    @property
    def log(self) -> Path:
        """The file with everything that was drawn."""
        return self.out.with_name(f"{self.out.name.removesuffix('.jsonl')}.draws.jsonl")

    def load(self) -> "Drawing":
        """Read what an earlier call drew. Raises AlignkitError if it drew with other settings."""
        if not self.log.exists():
            if self.out.exists():
                raise AlignkitError(f"{self.out}: expected a new file, found one that no drawing made")
            return self
        lines = self.log.read_bytes().splitlines(keepends=True)
        whole = [
            line for line in lines if line.endswith(b"\n")
        ]  # a killed call left the last one half written
        try:
            entries = [json.loads(line) for line in whole]
        except ValueError as error:
            raise AlignkitError(f"{self.log}: expected JSON Lines of a drawing: {error}") from error
        if not entries or entries[0] != self._header():
            raise AlignkitError(
                f"{self.log}: expected a drawing with {json.dumps(self._header())}, found "
                f"{json.dumps(entries[0]) if entries else 'none'}; give another --output"
            )
        if len(whole) < len(lines):
            self.log.write_bytes(b"".join(whole))
        self.records = {one["key"]: one for one in entries[1:]}
        return self

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Append records to the log, safe on the disk when this returns."""
        is_new = not self.log.exists()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as file:
            for one in [*([self._header()] if is_new else []), *records]:
                file.write(json.dumps(one, ensure_ascii=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records |= {one["key"]: one for one in records}

    def write_pairs(self, prompts: Sequence[Prompt]) -> int:
        """Write the pairs of these prompts atomically, in their order. Returns their number."""
        pairs = [
            pair
            for prompt in prompts
            if (one := self.records.get(prompt.key)) and (pair := self._pair(prompt.messages, one))
        ]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        put(self.out, "".join(json.dumps(pair) + "\n" for pair in pairs).encode())
        return len(pairs)

    def outcomes(self) -> Counter[Outcome]:
        """The number of finished prompts by outcome."""
        return Counter(outcome_of(one["scores"], self.margin) for one in self.records.values())

    def _header(self) -> dict[str, Any]:
        return {"model": self.model, "ranker": self.ranker, **self.settings.values()}

    def _pair(self, messages: list[Message], record: dict[str, Any]) -> dict[str, Any] | None:
        scores = record["scores"]
        if outcome_of(scores, self.margin) != "pair":
            return None
        ranked = sorted(
            (at for at, score in enumerate(scores) if score is not None), key=lambda at: scores[at]
        )
        best, worst = max(ranked, key=lambda at: scores[at]), ranked[0]
        sides = {
            side: [{"role": "assistant", "content": record["answers"][at]}]
            for side, at in (("chosen", best), ("rejected", worst))
        }
        return {
            "prompt": messages,
            **sides,
            "score_chosen": scores[best],
            "score_rejected": scores[worst],
        }


def outcome_of(scores: Sequence[float | None], margin: float) -> Outcome:
    """What becomes of a prompt whose different answers have these scores."""
    if len(scores) < 2:
        return "one answer"
    known = [score for score in scores if score is not None]
    if len(known) < 2:
        return "no scores"
    return "pair" if max(known) - min(known) > margin else "no difference"


def draw_pairs(
    drawing: Drawing,
    prompts: Sequence[Prompt],
    answerer: Answerer,
    ranker: Ranker,
    progress: Progress = lambda _done, _all: None,
) -> int:
    """Draw and rank what `drawing` lacks of `prompts`, and write the pairs; returns their number.

    Empty answers and repeats of a prompt's answers are left out. After an error or an interruption the pairs that
    are complete are written too, and a repeated call continues. Raises the errors of the answerer and the ranker.
    """
    left = [(at, prompt) for at, prompt in enumerate(prompts) if prompt.key not in drawing.records]
    done = len(prompts) - len(left)
    try:
        for start in range(0, len(left), AT_ONCE):
            batch = left[start : start + AT_ONCE]
            seeds = [(drawing.settings.seed + SEED_STRIDE * at) % 2**31 for at, _ in batch]
            drawn = answerer.answer([prompt.messages for _, prompt in batch], drawing.settings, seeds)
            drawing.add(
                [_ranked(prompt, texts, ranker) for (_, prompt), texts in zip(batch, drawn, strict=True)]
            )
            done += len(batch)
            progress(done, len(prompts))
    finally:
        count = drawing.write_pairs(prompts) if drawing.records else 0
    return count


def _ranked(prompt: Prompt, texts: Sequence[str], ranker: Ranker) -> dict[str, Any]:
    answers = list(dict.fromkeys(filter(None, (text.strip() for text in texts))))
    scores = ranker.scores(prompt.messages, answers) if len(answers) > 1 else [None] * len(answers)
    return {"key": prompt.key, "answers": answers, "scores": scores}
