"""A user's own script: align a model through the service with nothing but the `openai` package, and look at it.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-… python recipes/demo/client.py [MODEL]

The data trains one behaviour: read a short note and answer a question about it in one plain sentence. The base
model rambles and calculates instead. Everything printed at the end is computed from the served models, on notes that
training never saw. The base model answers while the job trains, so its engine is running when the job needs it.
"""

import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

HERE = Path(__file__).parent
BASE_MODEL = "smollm2-135m-instruct"
HYPERPARAMETERS: dict[str, Any] = {
    "beta": 0.3,
    "divergence": "js_divergence",
    "sft_weight": 1.0,
    "learning_rate_multiplier": 3.0,
    "batch_size": 4,
    "max_steps": 66,
    "eval_interval": 66,
    "max_length": 256,
}
SEED = 7
JUDGED = 36
SHOWN = 8
ANSWER = {"max_tokens": 60, "temperature": 0.0}
AT_ONCE = 8
SHORT = 15
"""Maximum number of words of a short answer; the data's preferred answers have at most 10."""
SMALLEST_GAIN = 0.3
"""Minimum rise of the share of right and short answers."""
LARGEST_LOSS = 0.06
"""Maximum fall of the share of answers that state the fact: two of 36. The base model often states it only by
repeating the whole note."""

console = Console()


class DemoError(Exception):
    """The demo failed; the message says what went wrong and what to do."""


@dataclass(frozen=True)
class Question:
    """A held-out question about a note, and the facts that a right answer states.

    `facts`: each is a list of words or beginnings of words, one of which must be in the answer.
    """

    messages: list[dict[str, str]]
    facts: list[list[str]]

    @property
    def text(self) -> str:
        """The note and the question."""
        return self.messages[-1]["content"]


@dataclass
class Answers:
    """The answers of one model, question by question, as they come."""

    texts: list[str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def add(self, question: Question, text: str) -> None:
        """Keep one answer, and whether it states the facts."""
        self.texts.append(text)
        self.right.append(states(text, question.facts))

    @property
    def share_right(self) -> float:
        """Share of answers that state every fact asked for, wherever it stands."""
        return statistics.mean(self.right)

    @property
    def share_to_the_point(self) -> float:
        """Share of answers that state every fact asked for in at most `SHORT` words."""
        pairs = zip(self.texts, self.right, strict=True)
        return statistics.mean(right and len(text.split()) <= SHORT for text, right in pairs)

    @property
    def words(self) -> float:
        """Mean number of words of an answer."""
        return statistics.mean(len(text.split()) for text in self.texts)

    @property
    def repetition(self) -> float:
        """Mean share of repeated three-word sequences."""
        return statistics.mean(repeated(text) for text in self.texts)


def main(client: OpenAI, model: str = BASE_MODEL, on_job: Callable[[str], None] = lambda _: None) -> None:
    """Train, then compare; raises DemoError if the job fails, or its model answers no better than the base model."""
    questions = read_questions()[:JUDGED]
    with answering(client, model, questions) as before:
        job_id = create_job(client, model)
        on_job(job_id)
        console.print(f"Job {job_id} aligns {model} with f-DPO under the Jensen-Shannon divergence.")
        tuned_model = follow(client, job_id)
        console.print(
            f"\nAsking {model} and {tuned_model} {len(questions)} questions that training never saw …",
            soft_wrap=True,
        )
        base, tuned = compare(client, tuned_model, questions, before)
    show_figures(base, tuned)
    require_better(base, tuned)


def create_job(client: OpenAI, model: str) -> str:
    """Upload the pairs and create the job; returns its id."""
    training = client.files.create(file=HERE / "pairs.jsonl", purpose="fine-tune")
    validation = client.files.create(file=("validation.jsonl", held_out_rows(JUDGED)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=training.id,
        validation_file=validation.id,
        method={"type": "f_dpo", "f_dpo": {"hyperparameters": HYPERPARAMETERS}},  # type: ignore[typeddict-item]
        suffix="demo",
        seed=SEED,
    )
    return job.id


def follow(client: OpenAI, job_id: str) -> str:
    """Show the job's progress until it ends; returns the model's name."""
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
    )
    latest: dict[str, Any] = {}
    seen: str | None = None
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=HYPERPARAMETERS["max_steps"], figures="waiting to start")
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            for event in new_events(client, job_id, seen):
                seen = event.id
                if event.type == "metrics" and isinstance(event.data, dict):
                    latest.update({name: value for name, value in event.data.items() if value is not None})
                    progress.update(
                        task, completed=latest["step"], total=latest["total_steps"], figures=figures(latest)
                    )
                    if not console.is_terminal:
                        console.print(event.message)
                else:
                    console.print(event.message, style="dim", markup=False)
            if job.status in {"succeeded", "failed", "cancelled"}:
                break
            time.sleep(2.0)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        raise DemoError(f"The job {job.status}: {job.error.message if job.error else 'see its events'}")
    return job.fine_tuned_model


def figures(latest: dict[str, Any]) -> str:
    """Loss, reward margin, held-out accuracy and time left, as far as they are known."""
    parts = [f"loss {latest['train_loss']:.3f}"] if "train_loss" in latest else []
    if "train_rewards_margins" in latest:
        parts.append(f"margin {latest['train_rewards_margins']:.2f}")
    if "valid_rewards_accuracies" in latest:
        parts.append(f"held-out accuracy {latest['valid_rewards_accuracies']:.0%}")
    if "seconds_remaining" in latest:
        parts.append("{}:{:02d} left".format(*divmod(latest["seconds_remaining"], 60)))
    return "  ".join(parts)


def new_events(client: OpenAI, job_id: str, seen: str | None) -> list[Any]:
    """The events after `seen`, oldest first."""
    events = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=100):
        if event.id == seen:
            break
        events.append(event)
    return events[::-1]


def read_questions() -> list[Question]:
    """The held-out questions, with the rules of facts.json, a line a question."""
    rows = [json.loads(line) for line in (HERE / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    facts = json.loads((HERE / "facts.json").read_text(encoding="utf-8"))
    return [Question(row["input"]["messages"], rule) for row, rule in zip(rows, facts, strict=True)]


def held_out_rows(count: int) -> bytes:
    """The first `count` lines of the held-out file."""
    return b"".join((HERE / "validation.jsonl").read_bytes().splitlines(keepends=True)[:count])


@contextmanager
def answering(client: OpenAI, model: str, questions: Sequence[Question]) -> Iterator[list[Future[str]]]:
    """Ask the model every question in the background; what is not asked by the end of the context never is."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield [pool.submit(ask, client, model, question) for question in questions]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def compare(
    client: OpenAI, tuned_model: str, questions: Sequence[Question], before: Sequence[Future[str]]
) -> tuple[Answers, Answers]:
    """Ask the tuned model every question, and show the first answers of both side by side as they come.

    `before` are the base model's answers. A request that fails ends the comparison: raises DemoError, which says how
    many questions were answered.
    """
    base, tuned = Answers(), Answers()
    with answering(client, tuned_model, questions) as after:
        try:
            for question, old, new in zip(questions, before, after, strict=True):
                base_text, tuned_text = old.result(), new.result()
                base.add(question, base_text)
                tuned.add(question, tuned_text)
                if len(base.texts) <= SHOWN:
                    show(question, base, tuned)
        except OpenAIError as error:
            if base.texts:
                show_figures(base, tuned)
            raise DemoError(
                f"Training, publishing and vLLM's start are done, but after {len(base.texts)} of {len(questions)} "
                f"questions a request failed: {error}. The model {tuned_model} is kept."
            ) from error
    return base, tuned


def ask(client: OpenAI, model: str, question: Question) -> str:
    """The model's greedy answer."""
    completion = client.chat.completions.create(model=model, messages=question.messages, **ANSWER)  # type: ignore[call-overload]
    return (completion.choices[0].message.content or "").strip()


def states(answer: str, facts: list[list[str]]) -> bool:
    """Whether the answer holds every fact: one of its words, at the beginning of a word; numbers only whole."""

    def holds(word: str) -> bool:
        end = r"(?!\d)" if word[-1].isdigit() else ""
        return re.search(rf"(?<!\w){re.escape(word)}{end}", answer, re.IGNORECASE) is not None

    return all(any(map(holds, words)) for words in facts)


def repeated(text: str) -> float:
    """Share of three-word sequences that occurred before in the same text."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def show(question: Question, base: Answers, tuned: Answers) -> None:
    """The latest answers of both models side by side."""
    table = Table("before", "after", title=escape(question.text), title_justify="left", expand=True)
    table.add_row(escape(base.texts[-1]), escape(tuned.texts[-1]))
    console.print(table)


def show_figures(base: Answers, tuned: Answers) -> None:
    """The figures of both models."""
    table = Table(f"on {len(base.texts)} held-out questions", "before", "after")
    stated, to_the_point = "answers that state the fact asked for", f"the same in at most {SHORT} words"
    table.add_row(stated, f"{base.share_right:.0%}", f"{tuned.share_right:.0%}")
    table.add_row(to_the_point, f"{base.share_to_the_point:.0%}", f"{tuned.share_to_the_point:.0%}")
    table.add_row("words in an answer", f"{base.words:.0f}", f"{tuned.words:.0f}")
    table.add_row("repeated word triples", f"{base.repetition:.0%}", f"{tuned.repetition:.0%}")
    console.print(table)


def require_better(base: Answers, tuned: Answers) -> None:
    """Raise DemoError for a model that answers as before, or whose answers lost their facts."""
    if tuned.share_right < base.share_right - LARGEST_LOSS:
        raise DemoError(
            f"The tuned model states fewer facts ({tuned.share_right:.0%}, before {base.share_right:.0%}): lower "
            "learning_rate_multiplier."
        )
    if tuned.share_to_the_point < base.share_to_the_point + SMALLEST_GAIN:
        raise DemoError(
            f"The tuned model answers to the point as rarely as before ({tuned.share_to_the_point:.0%}, before "
            f"{base.share_to_the_point:.0%}): raise max_steps."
        )


if __name__ == "__main__":
    if "OPENAI_API_KEY" not in os.environ or "OPENAI_BASE_URL" not in os.environ:
        sys.exit("set OPENAI_BASE_URL (http://127.0.0.1:8000/v1) and OPENAI_API_KEY")
    try:
        main(OpenAI(), *sys.argv[1:2])
    except (DemoError, OpenAIError) as error:
        sys.exit(f"error: {error}")
