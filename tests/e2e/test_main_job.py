"""The main job for real: OpenAI's client, HTTP, the trainer as a subprocess, vLLM with the adapter."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from alignkit_server.engines.process import Identity
from tests.e2e.service import Service, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
QUESTION = [{"role": "user", "content": "What is 3 plus 3?"}]


@pytest.fixture(scope="module")
def tuned(service: Service) -> str:
    job = service.finish(service.submit(max_steps=4, checkpoint_interval=2).id)
    assert job.status == "succeeded", job.error
    return str(job.fine_tuned_model)


def ask(service: Service, model: str) -> str:
    completion = service.client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=12,
        temperature=0,  # type: ignore[arg-type]
    )
    return completion.choices[0].message.content or ""


def test_the_tuned_model_answers_differently_and_the_base_as_before(service: Service, tuned: str) -> None:
    assert tuned.startswith("ft:tiny:default:e2e:")
    before = ask(service, "tiny")
    assert ask(service, tuned) != before
    assert ask(service, "tiny") == before


def test_a_stream_brings_the_same_text(service: Service, tuned: str) -> None:
    stream = service.client.chat.completions.create(
        model=tuned,
        messages=QUESTION,
        max_tokens=12,
        temperature=0,
        stream=True,  # type: ignore[arg-type]
    )
    chunks = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(chunks) > 2
    assert "".join(chunks) == ask(service, tuned)


def test_plain_completions_pass_through(service: Service, tuned: str) -> None:
    completion = service.client.completions.create(model=tuned, prompt="What is", max_tokens=3)
    assert completion.model == tuned
    assert completion.choices[0].text


def test_the_served_preference_is_the_trained_one(service: Service, tuned: str) -> None:
    """The chosen answer's log-prob rose and the rejected one's fell, by the server's own numbers."""
    row = json.loads((service.home / "validation.jsonl").read_text().splitlines()[0])

    def logprob(model: str, side: str) -> float:
        whole = service.client.chat.completions.create(
            model=model,
            messages=[*row["input"]["messages"], *row[side]],
            max_tokens=1,
            extra_body={"prompt_logprobs": 0, "add_generation_prompt": False},
        )
        tokens = (whole.model_extra or {})["prompt_logprobs"][1:]
        return float(sum(next(iter(token.values()))["logprob"] for token in tokens))

    chosen, rejected = ("preferred_output", "non_preferred_output")
    margin = (
        logprob(tuned, chosen)
        - logprob("tiny", chosen)
        - logprob(tuned, rejected)
        + logprob("tiny", rejected)
    )
    assert margin > 1


def test_scoring_many_texts_at_once_leaves_the_engine_alive(service: Service, tuned: str) -> None:
    """vLLM's LoRA head for CPUs dies when a batch with prompt log-probs has more than one request."""

    def score(number: int) -> int:
        scored = service.client.completions.create(
            model=[tuned, "tiny"][number % 2],
            prompt=f"text {number} " * 5,
            max_tokens=1,
            extra_body={"prompt_logprobs": 0},
        )
        return len((scored.choices[0].model_extra or {})["prompt_logprobs"])

    with ThreadPoolExecutor(12) as pool:
        assert min(pool.map(score, range(24))) > 5


def test_every_checkpoint_is_listed_and_answers(service: Service, tuned: str) -> None:
    job_id = service.client.fine_tuning.jobs.list(limit=20).data[-1].id
    checkpoints = service.client.fine_tuning.jobs.checkpoints.list(job_id).data
    assert [checkpoint.step_number for checkpoint in checkpoints] == [4, 2]
    assert [checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints] == [
        f"{tuned}:ckpt-step-4",
        f"{tuned}:ckpt-step-2",
    ]
    assert checkpoints[0].metrics.train_loss is not None
    assert ask(service, checkpoints[0].fine_tuned_model_checkpoint) == ask(service, tuned)


def test_events_tell_the_way(service: Service, tuned: str) -> None:
    job_id = service.client.fine_tuning.jobs.list(limit=20).data[-1].id
    messages = service.messages(job_id)
    order = [
        "Created fine-tuning job",
        "Fine-tuning job started",
        "Training started",
        "Step 4/4",
        "New fine-tuned model",
    ]
    positions = [
        next(i for i, message in enumerate(messages) if message.startswith(start)) for start in order
    ]
    assert positions == sorted(positions)
    assert messages[-1] == "The job has successfully completed"


def test_a_deleted_model_is_gone(service: Service, tuned: str) -> None:
    name = f"{tuned}:ckpt-step-2"
    ask(service, name)
    assert service.client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        ask(service, name)


def test_the_recipe_in_the_folder_repeats_the_run(service: Service, tuned: str) -> None:
    job_id = service.client.fine_tuning.jobs.list(limit=20).data[-1].id
    folder = service.home / "jobs" / job_id
    assert {"recipe.yaml", "train.log", "events.jsonl", "adapter", "result.json"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.slow
def test_cancelling_ends_the_process(service: Service, tuned: str) -> None:
    job = service.submit(max_steps=100_000)
    folder = service.home / "jobs" / job.id
    wait_for(lambda: any(m.startswith("Step 2/") for m in service.messages(job.id)), "the job trains")
    with pytest.raises(openai.ConflictError, match="not finished"):
        service.client.files.delete(job.training_file)
    process = _training(folder)
    assert service.client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    wait_for(lambda: not process.is_running(), "the process is gone", 30)
    with pytest.raises(openai.BadRequestError, match="already finished"):
        service.client.fine_tuning.jobs.cancel(job.id)
    assert service.client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    assert service.client.files.delete(job.training_file).deleted


@pytest.mark.slow  # tests/server/runner/test_workflow.py does the same with a stand-in for the trainer
def test_a_killed_trainer_goes_on_and_killed_again_fails_with_its_last_words(
    service: Service, tuned: str
) -> None:
    job = service.submit(max_steps=100_000, checkpoint_interval=100_000)
    folder = service.home / "jobs" / job.id

    def trains(times: int) -> bool:
        steps = [m for m in service.messages(job.id) if m.startswith("Step 2/") and "training loss" in m]
        return len(steps) == times

    for times in (1, 2):
        wait_for(lambda n=times: trains(n), f"the job trains, start {times}")
        for process in [_training(folder), *_training(folder).children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
    failed = service.finish(job.id)
    assert "The training process died; it resumes from the beginning" in service.messages(job.id)
    assert failed.status == "failed"
    assert failed.error.code == "training_died"
    assert failed.error.message == "The training process died 2 times without progress by SIGKILL."
    (last,) = service.client.fine_tuning.jobs.list_events(job.id, limit=1).data
    words: list[str] = last.data["log"]  # type: ignore[index]
    assert any("Step 2/100000" in line for line in words)
    assert not any(str(service.home) in line for line in words)


@pytest.mark.slow  # tests/server/runner/test_kills.py does the same with a stand-in for the trainer
def test_a_killed_server_is_followed_by_one_that_finds_the_job(service: Service, tuned: str) -> None:
    job = service.submit(max_steps=100, checkpoint_interval=50)
    folder = service.home / "jobs" / job.id
    wait_for(lambda: any(m.startswith("Step 2/") for m in service.messages(job.id)), "the job trains")
    process = _training(folder)
    assert service.process is not None
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    assert process.is_running()
    service.start()
    done = service.finish(job.id)
    assert done.status == "succeeded", done.error
    steps = [m for m in _all_messages(service, job.id) if m.startswith("Step ") and "training loss" in m]
    assert len(steps) == len({m.split(":")[0] for m in steps}) == 100
    ask(service, done.fine_tuned_model)


def test_a_taken_port_is_told(service: Service) -> None:
    port = service.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", "serve", "--port", port, "--home", str(service.home / "other")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr
    assert not (service.home / "other").exists()


def test_without_a_key_there_is_nothing(service: Service) -> None:
    response = httpx.post(f"{service.url}/v1/chat/completions", json={"model": "tiny", "messages": QUESTION})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


def _training(folder: Path) -> psutil.Process:
    identity = wait_for(lambda: Identity.load(folder / "process.json"), "the process is recorded")
    return psutil.Process(identity.pid)


def _all_messages(service: Service, job_id: str) -> list[str]:
    return [event.message for event in service.client.fine_tuning.jobs.list_events(job_id, limit=100)]
