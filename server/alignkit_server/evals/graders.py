"""Graders: each judges one row, given what the row holds and the sampled answer.

A grader is one class: its options, which are its form in OpenAI's API, and `grade`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from alignkit_server.errors import shorten
from alignkit_server.evals.prompts import Messages, Template, render_all
from alignkit_server.evals.references import fill
from alignkit_server.evals.similarity import METRICS, REFUSED
from alignkit_server.fields import Name
from alignkit_server.jobs.schemas import MAX_SEED

MAX_LABELS = 64
Finite = Annotated[float, Field(allow_inf_nan=False)]
JUDGE_TOKENS = 256
"""Maximum length of a judge's answer, which is a small JSON object."""
Scope = Mapping[str, Any]
"""The values that references name: `item`, and `sample` if there is one."""


class GradeError(Exception):
    """A row cannot be graded; the message is a sentence without its end."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A model's answer to a prompt, with what OpenAI's API reports about it."""

    text: str
    record: dict[str, Any]


Ask = Callable[[dict[str, Any]], Sampled]
"""Sends a chat request to a model of the service."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's result; `sample` is the judge's answer, if a model judged."""

    score: float
    passed: bool
    sample: dict[str, Any] | None = None


class Grader(BaseModel):
    """The options that all graders share."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[Name, Field(min_length=1, max_length=255)]

    def texts(self) -> Iterator[tuple[str, str]]:
        """(option, text) of every text that may hold references."""
        raise NotImplementedError

    def grade(self, scope: Scope, ask: Ask) -> Grade:
        """The grade of one row. Raises TemplateError or GradeError if it cannot be graded."""
        raise NotImplementedError


class _Compared(Grader):
    """A grader that compares two texts."""

    input: Template
    reference: Template

    def texts(self) -> Iterator[tuple[str, str]]:
        yield from (("input", self.input), ("reference", self.reference))


class StringCheck(_Compared):
    """Compares two texts: equal, unequal, or the input contains the reference (`ilike`: whatever the case)."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]

    def grade(self, scope: Scope, ask: Ask) -> Grade:  # noqa: ARG002 - no model is needed
        """1 if the comparison holds, else 0."""
        text, reference = fill(self.input, scope), fill(self.reference, scope)
        holds = {
            "eq": text == reference,
            "ne": text != reference,
            "like": reference in text,
            "ilike": reference.lower() in text.lower(),
        }[self.operation]
        return Grade(float(holds), holds)


def _metric(value: object) -> object:
    if isinstance(value, str) and value in REFUSED:
        supported = ", ".join(METRICS)
        raise ValueError(f"{value} is not supported, since {REFUSED[value]}: expected one of {supported}.")
    if not isinstance(value, str) or value not in METRICS:
        raise ValueError(f"expected one of {', '.join(METRICS)}, found {shorten(value)}.")
    return value


class TextSimilarity(_Compared):
    """Scores how similar two texts are; passes from `pass_threshold` on."""

    type: Literal["text_similarity"]
    evaluation_metric: Annotated[str, BeforeValidator(_metric), Field(json_schema_extra={"enum": [*METRICS]})]
    pass_threshold: float = Field(ge=0, le=1)

    def grade(self, scope: Scope, ask: Ask) -> Grade:  # noqa: ARG002 - no model is needed
        """The metric's value."""
        score = METRICS[self.evaluation_metric](fill(self.input, scope), fill(self.reference, scope))
        return Grade(score, score >= self.pass_threshold)


class JudgeSampling(BaseModel):
    """How a judge's answer is sampled."""

    model_config = ConfigDict(strict=True, extra="forbid")

    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None


class _Judged(Grader):
    """A grader whose prompt a model of the service answers, as JSON that the engine enforces."""

    model: Annotated[Name, Field(min_length=1, max_length=255)]
    input: Messages

    def texts(self) -> Iterator[tuple[str, str]]:
        for number, message in enumerate(self.input):
            yield from ((f"input.{number}.content", text) for text in message.texts())

    def _ask(
        self, scope: Scope, ask: Ask, key: str, value: dict[str, Any], wanted: str
    ) -> tuple[Any, Sampled]:
        """The value under `key` of the judge's JSON answer, of the schema `value`, and the answer itself.

        The last message ends with a sentence that names the JSON, since the engine does not show a model its schema.
        """
        messages = render_all(self.input, scope)
        messages[-1]["content"] += f'\n\nAnswer with JSON: {{"{key}": {wanted}}}'
        schema = {
            "type": "object",
            "properties": {key: value},
            "required": [key],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": key, "schema": schema, "strict": True}}
        answer = ask({"model": self.model, "messages": messages, "response_format": form, **self._sampling()})
        try:
            return json.loads(answer.text)[key], answer
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            expected = f'expected JSON such as {{"{key}": {wanted}}}'
            raise GradeError(f"the judge {self.model}: {expected}, found {shorten(answer.text)}") from error

    def _sampling(self) -> dict[str, Any]:
        return {"temperature": 0.0, "max_completion_tokens": JUDGE_TOKENS}


class LabelModel(_Judged):
    """A model of the service chooses one of `labels`; passes if it is among `passing_labels`."""

    type: Literal["label_model"]
    labels: Annotated[
        list[Annotated[Name, Field(min_length=1, max_length=255)]], Field(min_length=1, max_length=MAX_LABELS)
    ]
    passing_labels: Annotated[list[Name], Field(min_length=1, max_length=MAX_LABELS)]

    @model_validator(mode="after")
    def _passing_are_labels(self) -> "LabelModel":
        unknown = [label for label in self.passing_labels if label not in self.labels]
        if unknown:
            raise ValueError(f"passing_labels: expected some of {self.labels}, found {shorten(unknown[0])}.")
        return self

    def grade(self, scope: Scope, ask: Ask) -> Grade:
        """1 for a passing label, else 0."""
        wanted = " or ".join(json.dumps(label, ensure_ascii=False) for label in self.labels)
        label, answer = self._ask(scope, ask, "label", {"type": "string", "enum": self.labels}, wanted)
        if label not in self.labels:
            raise GradeError(f"the judge {self.model}: expected a label, found {shorten(label)}")
        passed = label in self.passing_labels
        return Grade(float(passed), passed, answer.record)


class ScoreModel(_Judged):
    """A model of the service gives a number; passes from `pass_threshold` on, by default half of the range."""

    type: Literal["score_model"]
    range: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None = None
    sampling_params: JudgeSampling | None = None
    pass_threshold: Finite | None = None

    @field_validator("range")
    @classmethod
    def _ascends(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"expected two ascending numbers, found {value}.")
        return value

    def grade(self, scope: Scope, ask: Ask) -> Grade:
        """The judge's number, refused outside of the range."""
        least, most = self.range or [0.0, 1.0]
        score, answer = self._ask(
            scope, ask, "score", {"type": "number"}, f"a number from {least:g} to {most:g}"
        )
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not least <= score <= most:
            wanted = f"a number from {least:g} to {most:g}"
            raise GradeError(f"the judge {self.model}: expected {wanted}, found {shorten(score)}")
        threshold = (least + most) / 2 if self.pass_threshold is None else self.pass_threshold
        return Grade(float(score), score >= threshold, answer.record)

    def _sampling(self) -> dict[str, Any]:
        given = self.sampling_params.model_dump(exclude_none=True) if self.sampling_params else {}
        tokens = given.pop("max_completions_tokens", JUDGE_TOKENS)
        return super()._sampling() | given | {"max_completion_tokens": tokens}


AnyGrader = StringCheck | TextSimilarity | LabelModel | ScoreModel
KINDS = ("string_check", "text_similarity", "label_model", "score_model")


def _known(value: object) -> object:
    """Refuse OpenAI's other graders in words of their own."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict) and kind not in KINDS:
        why = ", since the service runs no code of clients" if kind == "python" else ""
        raise ValueError(
            f"a grader of the type {shorten(kind)} is not supported{why}: expected one of {', '.join(KINDS)}."
        )
    return value


Criterion = Annotated[AnyGrader, Field(discriminator="type"), BeforeValidator(_known)]
