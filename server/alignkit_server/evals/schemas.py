"""Evals in the form of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from alignkit_server.errors import shorten
from alignkit_server.evals.graders import Criterion
from alignkit_server.evals.prompts import Messages
from alignkit_server.fields import Name
from alignkit_server.jobs.schemas import MAX_SEED, Label, LabelValue

MAX_CRITERIA = 32
DEFAULT_SEED = 42
DEFAULT_TOKENS = 512
"""Maximum length of a sampled answer, if the request gives none."""

Metadata = Annotated[dict[Label, LabelValue], Field(max_length=16)]
EvalName = Annotated[Name, Field(max_length=255)]
RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]
ItemStatus = Literal["pass", "fail"]


class Request(BaseModel):
    """A request's part; unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _of_kinds(what: str, *kinds: str) -> BeforeValidator:
    """Refuses what OpenAI has beside `kinds`, in a sentence."""

    def check(value: object) -> object:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(value, dict) and kind not in kinds:
            supported = " or ".join(map(repr, kinds))
            raise ValueError(
                f"{what} of the type {shorten(kind)} is not supported: expected the type {supported}."
            )
        return value

    return BeforeValidator(check)


class CustomConfig(Request):
    """The schema of an eval's rows."""

    type: Literal["custom"]
    item_schema: dict[str, Any] = Field(description="JSON schema of each row's `item`")
    include_sample_schema: bool = Field(
        False, description="graders refer to `sample`: a model's answers, or answers that the rows bring"
    )


class EvalRequest(Request):
    """A request to create an eval."""

    data_source_config: Annotated[CustomConfig, _of_kinds("a data source", "custom")]
    testing_criteria: Annotated[list[Criterion], Field(min_length=1, max_length=MAX_CRITERIA)]
    name: EvalName | None = None
    metadata: Metadata | None = None


class EvalUpdate(Request):
    """Changes to an eval; omitted fields stay."""

    name: EvalName | None = None
    metadata: Metadata | None = None


class RowGiven(Request):
    """A row: the `item`, and its own `sample` if no model is sampled."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContent(Request):
    """Rows in the request."""

    type: Literal["file_content"]
    content: list[RowGiven]


class FileId(Request):
    """Rows of an uploaded JSONL file."""

    type: Literal["file_id"]
    id: Annotated[Name, Field(max_length=64)]


Source = Annotated[
    FileContent | FileId, Field(discriminator="type"), _of_kinds("a source", "file_content", "file_id")
]


class TemplateInput(Request):
    """A prompt of messages with references to `item`."""

    type: Literal["template"]
    template: Messages


class ItemInput(Request):
    """A prompt that each row holds, such as `item.messages`."""

    type: Literal["item_reference"]
    item_reference: Annotated[Name, Field(max_length=1024)]


class SamplingParams(Request):
    """How answers are sampled."""

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    response_format: dict[str, Any] | None = None


class Jsonl(Request):
    """Rows that bring what is graded."""

    type: Literal["jsonl"]
    source: Source


class Completions(Request):
    """Rows for each of which a model is sampled."""

    type: Literal["completions"]
    source: Source
    model: Annotated[Name, Field(min_length=1, max_length=255)]
    input_messages: Annotated[TemplateInput | ItemInput, Field(discriminator="type")]
    sampling_params: SamplingParams = Field(default_factory=SamplingParams)


DataSource = Annotated[
    Jsonl | Completions,
    Field(discriminator="type"),
    _of_kinds("a data source", "jsonl", "completions"),
]


class RunRequest(Request):
    """A request to run an eval."""

    data_source: DataSource
    name: EvalName | None = None
    metadata: Metadata | None = None


class EvalObject(BaseModel):
    """An eval."""

    id: str
    object: Literal["eval"] = "eval"
    created_at: int
    name: str
    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]
    metadata: dict[str, str] | None


class EvalDeleted(BaseModel):
    """The confirmation that an eval was deleted."""

    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: bool = True
    eval_id: str


class EvalError(BaseModel):
    """Why a run or a sample failed."""

    code: str
    message: str


class ResultCounts(BaseModel):
    """Numbers of rows: graded ones, and all of the run in `total`."""

    total: int
    passed: int
    failed: int
    errored: int


class CriterionResult(BaseModel):
    """Numbers of rows that passed and failed a grader."""

    testing_criteria: str
    passed: int
    failed: int


class ModelUsage(BaseModel):
    """Requests to a model and their tokens."""

    model_name: str
    invocation_count: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int


class RunObject(BaseModel):
    """A run of an eval."""

    id: str
    object: Literal["eval.run"] = "eval.run"
    created_at: int
    eval_id: str
    name: str
    status: RunStatus
    model: str
    data_source: dict[str, Any]
    metadata: dict[str, str] | None
    error: EvalError | None
    result_counts: ResultCounts
    per_testing_criteria_results: list[CriterionResult]
    per_model_usage: list[ModelUsage]
    report_url: str = Field(description="where the run's graded rows are listed")


class RunDeleted(BaseModel):
    """The confirmation that a run was deleted."""

    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: bool = True
    run_id: str


class OutputItem(BaseModel):
    """A graded row of a run."""

    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    created_at: int
    eval_id: str
    run_id: str
    status: Literal["pass", "fail", "error"]
    datasource_item_id: int
    datasource_item: dict[str, Any]
    results: list[dict[str, Any]]
    sample: dict[str, Any]
