"""One row of a run: sample the model, if there is one, and let every grader judge."""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import structlog

from alignkit_server.errors import ApiError
from alignkit_server.eval_status import ERROR, FAIL, PASS
from alignkit_server.evals.graders import Grade, GradeError, Grader, Sampled
from alignkit_server.evals.presenting import NO_USAGE
from alignkit_server.evals.prompts import messages_at, render_all
from alignkit_server.evals.references import TemplateError
from alignkit_server.evals.schemas import DEFAULT_SEED, DEFAULT_TOKENS, Completions, ItemInput
from alignkit_server.outages import Detached

TRIES = 3
"""How often an engine that answers with an error of its own is asked."""
PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 10.0
"""As long as a failed start of an engine is remembered."""
AWAY = frozenset({502, 503, 504})
"""Statuses of an engine that does not answer: it starts, restarts, or is busy with another model."""
LASTING = "engine_unavailable"
"""Code of an engine that no waiting brings back: there is no vLLM, or no such model."""

log = structlog.get_logger()


class RunFailedError(Exception):
    """A run cannot continue: it was cancelled, a model is gone, or its engine stays away."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Asks(Protocol):
    """Answers chat requests on behalf of a project."""

    def ask(self, project_id: str, body: dict[str, Any], stopping: threading.Event) -> dict[str, Any]:
        """The completion object. Raises ApiError, and Detached when `stopping` is set."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every row of a run is graded with; `sampling` is None if the rows bring their own answers."""

    project_id: str
    run_id: str
    graders: Sequence[Grader]
    sampling: Completions | None


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is stored."""

    id: str
    item: dict[str, Any]
    given: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A graded row."""

    row: Row
    status: str
    sample: dict[str, Any] | None
    results: list[dict[str, Any]]

    def usage(self) -> list[tuple[str, dict[str, int]]]:
        """(model, tokens) of each answer that was sampled for it."""
        judged = [result["sample"] for result in self.results if "sample" in result]
        answers = [one for one in (self.sample, *judged) if one and not one.get("error")]
        return [(one["model"], one["usage"]) for one in answers]


class RowGrader:
    """Grades the rows of one run. Thread-safe."""

    def __init__(
        self,
        plan: Plan,
        models: Asks,
        stopping: threading.Event,
        *,
        patience: float,
        is_open: Callable[[], bool],
    ) -> None:
        """`patience`: seconds for which an engine that is away is waited for, while the run `is_open`."""
        self._plan = plan
        self._models = models
        self._stopping = stopping
        self._patience = patience
        self._is_open = is_open

    def grade(self, row: Row) -> Outcome:
        """The graded row. Raises RunFailedError if no further row can be graded either."""
        scope: dict[str, Any] = {"item": row.item}
        sample = None
        if self._plan.sampling is not None:
            try:
                answer = self._sample(self._plan.sampling, scope)
            except (TemplateError, GradeError, ApiError) as error:
                return Outcome(row, ERROR, _no_sample(self._plan.sampling, error), [])
            sample = answer.record
            scope["sample"] = sample_scope(answer)
        elif row.given is not None:
            scope["sample"] = row.given
        results = [self._judge(grader, scope) for grader in self._plan.graders]
        if any("error" in (result.get("sample") or {}) and result["sample"]["error"] for result in results):
            return Outcome(row, ERROR, sample, results)
        return Outcome(row, PASS if all(one["passed"] for one in results) else FAIL, sample, results)

    def _sample(self, source: Completions, scope: dict[str, Any]) -> Sampled:
        given = source.input_messages
        if isinstance(given, ItemInput):
            messages = messages_at(given.item_reference, scope)
        else:
            messages = render_all(given.template, scope)
        return self._ask({"model": source.model, "messages": messages} | sampling_of(source))

    def _judge(self, grader: Grader, scope: dict[str, Any]) -> dict[str, Any]:
        """A grader's result in the API's form; one that cannot grade has an error in its sample."""
        try:
            grade = grader.grade(scope, self._ask)
        except (TemplateError, GradeError, ApiError) as error:
            failed = {"error": {"code": "grader_error", "message": f"{str(error).rstrip('.')}."}}
            grade = Grade(0.0, passed=False, sample=failed)
        shown = {"name": grader.name, "type": grader.type, "score": grade.score, "passed": grade.passed}  # type: ignore[attr-defined]  # every grader's own
        return shown if grade.sample is None else shown | {"sample": grade.sample}

    def _ask(self, body: dict[str, Any]) -> Sampled:
        """A model's answer. Raises ApiError if the engine refuses this request, else RunFailedError.

        An engine that is away is waited for, since no run is to blame for it.
        """
        pause, tries, away_since = PAUSE_SECONDS, 0, 0.0
        while True:
            try:
                return sampled(body, self._models.ask(self._plan.project_id, body, self._stopping))
            except ApiError as error:
                if self._stopping.is_set():
                    raise Detached from error
                if error.status < 500 and error.status != 404:
                    raise
                tries += 1
                if not _is_away(error) and (error.status == 404 or tries >= TRIES):
                    raise _failed(error) from error
                if not away_since:
                    away_since = monotonic()
                    log.warning(
                        "a run of an eval waits for an engine", model=body["model"], status=error.status
                    )
                if monotonic() - away_since >= self._patience or not self._is_open():
                    raise _failed(error) from error
            if self._stopping.wait(pause):
                raise Detached
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _is_away(error: ApiError) -> bool:
    return error.status in AWAY and error.detail.code != LASTING


def _failed(error: ApiError) -> RunFailedError:
    return RunFailedError(error.detail.code or "engine_failed", error.detail.message)


def sampling_of(source: Completions) -> dict[str, Any]:
    """The options with which a run samples: those given, else OpenAI's defaults, and at most DEFAULT_TOKENS."""
    given = source.sampling_params.model_dump(exclude_none=True)
    defaults = {
        "max_completion_tokens": DEFAULT_TOKENS,
        "seed": DEFAULT_SEED,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    return defaults | given


def sampled(body: dict[str, Any], completion: dict[str, Any]) -> Sampled:
    """A completion object as OpenAI's evals show it. Raises GradeError if it is none."""
    try:
        choice = completion["choices"][0]
        text = choice["message"]["content"] or ""
        used = completion.get("usage") or {}
        usage = {name: int(used.get(name) or 0) for name in NO_USAGE}
        usage["cached_tokens"] = int((used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except (LookupError, TypeError, ValueError) as error:
        raise GradeError(f"the answer of {body['model']} is not a completion") from error
    record = sample_record(body, error=None)
    record |= {
        "finish_reason": choice.get("finish_reason") or "",
        "output": [{"role": "assistant", "content": text}],
        "usage": usage,
    }
    return Sampled(text, record)


def sample_record(body: dict[str, Any], error: dict[str, str] | None) -> dict[str, Any]:
    """The record of an answer that is not there yet, or failed with `error`."""
    return {
        "error": error,
        "finish_reason": "",
        "input": body["messages"],
        "max_completion_tokens": body["max_completion_tokens"],
        "model": body["model"],
        "output": [],
        "seed": body.get("seed", 0),
        "temperature": float(body.get("temperature", 1.0)),
        "top_p": float(body.get("top_p", 1.0)),
        "usage": NO_USAGE,
    }


def sample_scope(answer: Sampled) -> dict[str, Any]:
    """The values that graders refer to as `sample`; `output_json` is there if the answer is JSON."""
    scope: dict[str, Any] = {"output_text": answer.text, "model": answer.record["model"]}
    with suppress(ValueError, RecursionError):
        scope["output_json"] = json.loads(answer.text)
    return scope


def _no_sample(source: Completions, error: Exception) -> dict[str, Any]:
    code = (error.detail.code if isinstance(error, ApiError) else None) or "invalid_prompt"
    body = {"model": source.model, "messages": []} | sampling_of(source)
    return sample_record(body, {"code": code, "message": f"{str(error).rstrip('.')}."})
