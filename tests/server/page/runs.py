"""Jobs as training leaves them in the ledger, with curves, answers and checkpoints, and words that try to be code."""

import math
from typing import Any

from openai import OpenAI

from alignkit_server.clock import now
from tests.server.support import Running, create_job, method, pairs, upload

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
STEPS = 60
PROMPTS = ("How do I keep bread fresh?", "Is the sky blue?", "Name three primes.")
GOOD = ("In a cloth bag, away from the fridge.", "Yes, by day and in clear weather.", "2, 3 and 5.")
FIRST = ("Bread is a food that is made of", "The sky is the sky is the sky", "Primes are numbers that")


def run(
    service: Running,
    client: OpenAI,
    *,
    steps: int = STEPS,
    collapses: bool = False,
    text: str = "",
    beta: float = 0.1,
    **request: Any,
) -> str:
    """A job that trains: it has made `steps` of STEPS. `text` is in everything that a stranger could have written."""
    request.setdefault("training_file", upload(client, pairs(40), f"pairs{text}.jsonl"))
    metadata = request.pop("metadata", {}) | ({"label": text} if text else {})
    job = create_job(client, metadata=metadata or None, method=method(beta=beta), **request)
    service.ledger.transition(job.id, "running", only_from=("queued",))
    tell(service, job.id, f"Training started: {STEPS} steps {text}")
    for step in range(steps + 1):
        if step:
            measured(service, job.id, step, beta)
        if step % 15 == 0:
            evaluated(service, job.id, step, beta, text=text, sound=not collapses or step < 45)
    return job.id


def tell(service: Running, job_id: str, message: str, *, level: str = "info", **data: Any) -> None:
    service.ledger.add_event(job_id, level=level, message=message, type="message", data=data)


def measured(service: Running, job_id: str, step: int, beta: float = 0.1) -> None:
    """A step's metrics: smooth, but for a wave, so that curves look as they do."""
    gone, wave = step / STEPS, 0.04 * math.sin(step * 1.7)
    margin = 3 * gone * (1 + beta) + wave
    data = {
        "train_loss": 0.69 * math.exp(-2 * gone) + wave / 2,
        "train_rewards_margins": margin,
        "train_rewards_accuracies": min(1.0, 0.5 + gone / 1.8 + wave),
        "train_logps_chosen": -30 + 4 * gone,
        "train_logps_rejected": -31 - 14 * gone,
        "train_entropy": 2.1 - gone / 2 + wave,
        "train_kl": gone * gone * (1.1 - beta),
        "seconds_remaining": 2 * (STEPS - step),
    }
    report(service, job_id, step, data)


def evaluated(
    service: Running, job_id: str, step: int, beta: float = 0.1, *, text: str = "", sound: bool = True
) -> None:
    """An evaluation, and the answers that the guard drew at it."""
    gone = step / STEPS
    data = {
        "valid_loss": 0.7 * math.exp(-1.5 * gone),
        "valid_rewards_margins": 2.6 * gone * (1 + beta),
        "valid_rewards_accuracies": 0.5 + gone / 2.2,
        "valid_answers_kl": gone * (1.1 - beta),
        "valid_answers_repetition": 0.02 if sound else 0.8,
        "valid_answers_distinct_2": 0.9 if sound else 0.2,
    }
    report(service, job_id, step, data)
    answers = [
        {
            "prompt": f"{prompt} {text}".strip(),
            "answer": f"{'!!!! ' * 9 if not sound else first if not step else good} {text}".strip(),
            "known": f"{good} {text}".strip(),
        }
        for prompt, good, first in zip(PROMPTS, GOOD, FIRST, strict=True)
    ]
    collapse = [] if sound else ["the share of repeated 4-grams rose from 0.02 to 0.8"]
    tell(
        service,
        job_id,
        f"Answers drawn at step {step}",
        step=step,
        sound=sound,
        collapse=collapse,
        answers=answers,
    )


def report(service: Running, job_id: str, step: int, data: dict[str, float]) -> None:
    values = {"step": step, "total_steps": STEPS, **data}
    service.ledger.add_event(
        job_id, level="info", message=f"Step {step}/{STEPS}", type="metrics", data=values
    )


def finish(service: Running, job_id: str, *, name: str | None = None, path: str = "p") -> str:
    """Let the job succeed, with a checkpoint and a model in `path`; the model's name."""
    name = name or f"ft:tiny-llama:project::{job_id}"
    for step in (STEPS // 2, STEPS):
        metrics = {"train_loss": 0.1, "valid_loss": 0.2}
        service.ledger.add_checkpoint(
            job_id, step=step, model_name=f"{name}:ckpt-step-{step}", metrics=metrics, path="p"
        )
    service.ledger.add_model(job_id, name=name, base_model="tiny-llama", kind="adapter", path=path)
    service.ledger.transition(
        job_id,
        "succeeded",
        only_from=("running",),
        fine_tuned_model=name,
        peak_bytes=3 * 2**29,
        trained_tokens=12_345,
        finished_at=now(),
    )
    tell(service, job_id, "The job has succeeded")
    return name
