"""A user's own script: align a model through the service with nothing but the `openai` package, and look at it.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-… python recipes/demo/client.py

The behaviour that is taught: answer with one plain sentence ("In short: …") and one reason ("Why: …"). Everything
printed at the end is computed from the served models, on questions that training never saw.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

HERE = Path(__file__).parent
BASE_MODEL = "smollm2-135m-instruct"
HYPERPARAMETERS: dict[str, Any] = {
    "beta": 0.1,
    "divergence": "js_divergence",
    "sft_weight": 1.0,
    "learning_rate_multiplier": 2.0,
    "batch_size": 4,
    "max_steps": 42,
    "eval_interval": 21,
    "max_length": 256,
}
SEED = 7
JUDGED = 30
SHOWN = 6
ANSWER = {"max_tokens": 80, "temperature": 0.0}
TAUGHT = "In short:"

# A collapsed model repeats itself or writes what the base model finds impossible. Sound answers of this model
# score between -0.5 and -2.5 nats a token under the base; noise scores below -5.
LOWEST_FLUENCY = -3.5
HIGHEST_REPETITION = 0.4
SMALLEST_CHANGE = 0.5

console = Console()


class DemoError(Exception):
    """What went wrong, and what to do."""


@dataclass(frozen=True)
class Pair:
    """A held-out question with its preferred and its dispreferred answer."""

    messages: list[dict[str, str]]
    preferred: str
    dispreferred: str


@dataclass(frozen=True)
class Verdict:
    """What one model does on the held-out questions."""

    answers: list[str]
    accuracy: float
    fluency: float
    taught: float
    repetition: float


def main(client: OpenAI, on_job: Callable[[str], None] = lambda _: None) -> None:
    """The whole way; raises DemoError if the job fails, or its model has collapsed or has not changed."""
    training = client.files.create(file=HERE / "train.jsonl", purpose="fine-tune")
    validation = client.files.create(file=HERE / "validation.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=training.id,
        validation_file=validation.id,
        method={"type": "f_dpo", "f_dpo": {"hyperparameters": HYPERPARAMETERS}},  # type: ignore[typeddict-item]
        suffix="demo",
        seed=SEED,
    )
    on_job(job.id)
    console.print(f"Job {job.id} aligns {BASE_MODEL} with f-DPO under the Jensen-Shannon divergence.")
    tuned_model = follow(client, job.id)
    pairs = read_pairs(HERE / "validation.jsonl")[:JUDGED]
    console.print(f"Asking both models {len(pairs)} held-out questions, and scoring answers and pairs …")
    base = judge(client, BASE_MODEL, pairs)
    tuned = judge(client, tuned_model, pairs)
    show_answers(client, tuned_model, pairs, base, tuned)
    show_figures(base, tuned, len(pairs))
    require_sound(base, tuned)


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
            time.sleep(1.0)
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


def read_pairs(path: Path) -> list[Pair]:
    """The rows of a preference file in OpenAI's form."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Pair(
            row["input"]["messages"],
            row["preferred_output"][0]["content"],
            row["non_preferred_output"][0]["content"],
        )
        for row in rows
    ]


def judge(client: OpenAI, model: str, pairs: list[Pair]) -> Verdict:
    """Ask `model` every question, and score its answers and the pairs."""
    with ThreadPoolExecutor(16) as pool:
        asked = list(pool.map(lambda pair: ask(client, model, pair), pairs))
        answers, lengths = [answer for answer, _ in asked], [length for _, length in asked]

        def score(scorer: str, texts: list[str]) -> list[list[float]]:
            return list(pool.map(lambda *item: logprobs(client, scorer, *item), pairs, texts, lengths))

        preferred = score(model, [pair.preferred for pair in pairs])
        dispreferred = score(model, [pair.dispreferred for pair in pairs])
        own = score(BASE_MODEL, answers)
    right = [sum(good) > sum(bad) for good, bad in zip(preferred, dispreferred, strict=True)]
    return Verdict(
        answers=answers,
        accuracy=statistics.mean(right),
        fluency=statistics.mean(statistics.mean(scores) for scores in own),
        taught=statistics.mean(answer.startswith(TAUGHT) for answer in answers),
        repetition=statistics.mean(repeated(answer) for answer in answers),
    )


def ask(client: OpenAI, model: str, pair: Pair) -> tuple[str, int]:
    """The model's greedy answer, and how many tokens the question took."""
    completion = client.chat.completions.create(model=model, messages=pair.messages, **ANSWER)  # type: ignore[call-overload]
    return (completion.choices[0].message.content or "").strip(), completion.usage.prompt_tokens


def logprobs(client: OpenAI, model: str, pair: Pair, answer: str, start: int) -> list[float]:
    """Log-prob of every token of `answer` under `model`, by the server's own rendering of the conversation."""
    whole = client.chat.completions.create(
        model=model,
        messages=[*pair.messages, {"role": "assistant", "content": answer or " "}],  # type: ignore[list-item]
        max_tokens=1,
        extra_body={"prompt_logprobs": 0, "add_generation_prompt": False},
    )
    tokens: Iterable[dict[str, Any]] = (whole.model_extra or {})["prompt_logprobs"][start:]
    return [next(iter(token.values()))["logprob"] for token in tokens]


def repeated(text: str) -> float:
    """Share of three-word sequences that occurred before in the same text."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def show_answers(client: OpenAI, model: str, pairs: list[Pair], base: Verdict, tuned: Verdict) -> None:
    """One answer streamed, some side by side."""
    console.print(f"\n[bold]{pairs[0].messages[-1]['content']}[/bold]  (streamed from {model})")
    stream = client.chat.completions.create(model=model, messages=pairs[0].messages, stream=True, **ANSWER)  # type: ignore[call-overload]
    for chunk in stream:
        console.print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", markup=False)
    table = Table("question", "before", "after", title="\n\nHeld-out questions", show_lines=True)
    for pair, before, after in list(zip(pairs, base.answers, tuned.answers, strict=True))[:SHOWN]:
        table.add_row(pair.messages[-1]["content"], before, after)
    console.print(table)


def show_figures(base: Verdict, tuned: Verdict, count: int) -> None:
    """The figures of both models."""
    table = Table(f"on {count} held-out questions", "before", "after")
    table.add_row("preferred answer is the likelier one", f"{base.accuracy:.0%}", f"{tuned.accuracy:.0%}")
    table.add_row("answers in the taught form", f"{base.taught:.0%}", f"{tuned.taught:.0%}")
    table.add_row("fluency: log-prob a token under the base", f"{base.fluency:.2f}", f"{tuned.fluency:.2f}")
    table.add_row("repeated word triples", f"{base.repetition:.0%}", f"{tuned.repetition:.0%}")
    console.print(table)


def require_sound(base: Verdict, tuned: Verdict) -> None:
    """Raise DemoError for a model that collapsed or did not change."""
    if tuned.fluency < LOWEST_FLUENCY or tuned.repetition > HIGHEST_REPETITION:
        raise DemoError(
            f"The tuned model has collapsed (fluency {tuned.fluency:.2f}, repetition {tuned.repetition:.0%}): "
            "lower learning_rate_multiplier or raise sft_weight."
        )
    if tuned.taught - base.taught < SMALLEST_CHANGE:
        raise DemoError(
            f"The tuned model answers as before ({tuned.taught:.0%} in the taught form): raise max_steps."
        )


if __name__ == "__main__":
    if "OPENAI_API_KEY" not in os.environ or "OPENAI_BASE_URL" not in os.environ:
        sys.exit("set OPENAI_BASE_URL (http://127.0.0.1:8000/v1) and OPENAI_API_KEY")
    try:
        main(OpenAI())
    except (DemoError, OpenAIError) as error:
        sys.exit(f"error: {error}")
