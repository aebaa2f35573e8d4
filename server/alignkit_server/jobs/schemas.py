"""Fine-tuning jobs in the form of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from alignkit.tracking import MAX_TRACKERS, MLflowRun, TrackedRun, WandbRun, each_once
from alignkit_server.engines.serving import Serving
from alignkit_server.fields import Matching, Name

MAX_SEED = 2**31 - 1
Label = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64),
    Matching(r'^[^"\\\x00-\x1f]*$', "a key without quotes, backslashes and control characters"),
]
LabelValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]
Suffix = Annotated[
    str,
    Matching(
        r"^[A-Za-z0-9._-][A-Za-z0-9 ._-]{0,63}$",
        "1 to 64 of the letters A to Z and a to z, digits, '.', '_', '-' and spaces, of which none comes first",
    ),
]


class MethodRequest(BaseModel):
    """The training method's name, and under that name its `hyperparameters`."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str = Field(description="name of the method, such as f_dpo")


class IntegrationBase(BaseModel):
    """A tracker that a job reports to, with the server's account."""

    model_config = ConfigDict(extra="forbid")


class WandbIntegration(IntegrationBase):
    """Weights & Biases, as in OpenAI's API."""

    type: Literal["wandb"]
    wandb: WandbRun


class TrackioIntegration(IntegrationBase):
    """Trackio."""

    type: Literal["trackio"]
    trackio: TrackedRun


class MLflowIntegration(IntegrationBase):
    """MLflow; the project becomes the MLflow experiment."""

    type: Literal["mlflow"]
    mlflow: MLflowRun


class TensorBoardIntegration(IntegrationBase):
    """Event files in the job's folder on the server."""

    type: Literal["tensorboard"]


Integration = Annotated[
    WandbIntegration | TrackioIntegration | MLflowIntegration | TensorBoardIntegration,
    Field(discriminator="type"),
]


class JobRequest(BaseModel):
    """A request to create a job."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Name = Field(
        description="name of a base model, or of a model or checkpoint made by a job of the project"
    )
    training_file: Name = Field(description="id of a file with the purpose fine-tune")
    validation_file: Name | None = None
    method: MethodRequest | None = Field(None, description="supervised if omitted, as in OpenAI's API")
    suffix: Suffix | None = Field(None, description="part of the new model's name")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    serving: Serving | None = Field(
        None,
        description="how the result is served: as an adapter of its base model's engine (the default), or merged "
        "into the base's weights by an engine of its own, also with these in FP8",
    )
    metadata: Annotated[dict[Label, LabelValue], Field(max_length=16)] | None = None
    integrations: Annotated[list[Integration], Field(max_length=MAX_TRACKERS)] | None = Field(
        None, description="trackers that the job reports to, each at most once"
    )
    hyperparameters: dict[str, Any] | None = Field(
        None,
        description="OpenAI's deprecated form of method.supervised.hyperparameters; refused if `method` is given",
    )

    @field_validator("integrations")
    @classmethod
    def _each_once(cls, value: list[Integration] | None) -> list[Integration] | None:
        return each_once(value) if value else value


class MethodObject(BaseModel):
    """The method and, under its name, the resolved hyperparameters."""

    model_config = ConfigDict(extra="allow")

    type: str


class JobError(BaseModel):
    """The reason why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobUsage(BaseModel):
    """What a job has taken so far."""

    run_seconds: int = Field(description="seconds of running, without waiting and pauses")
    gpus: int = Field(description="GPUs that it trains on; 1 if it trains on the CPU")
    peak_memory_bytes: int | None = Field(
        description="peak memory of one training process, which an estimate's memory.peak_bytes predicts; on a CPU "
        "above that at its start; null until training has ended, or if the run keeps no report"
    )


class JobObject(BaseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any] = Field(description="n_epochs, batch_size and learning_rate_multiplier")
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    queue_position: int | None = Field(description="position among all waiting jobs; 1 starts next")
    integrations: list[Integration] | None = None
    metadata: dict[str, str] | None
    serving: Serving = Field(description="how its result was asked to be served")
    method: MethodObject
    usage: JobUsage


class EventObject(BaseModel):
    """An event of a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """A published checkpoint of a job."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int


class JobPruned(BaseModel):
    """Says that a finished job's checkpoints, samples and logs are gone; its models and events stay."""

    id: str
    object: Literal["fine_tuning.job.pruned"] = "fine_tuning.job.pruned"
    pruned: bool = True


class MetricSeries(BaseModel):
    """One metric over the steps; `values` has null where the metric was not finite."""

    steps: list[int]
    values: list[float | None]
    total_points: int = Field(description="number of points before downsampling")


class JobMetrics(BaseModel):
    """A job's metrics, one series per metric."""

    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    job_id: str
    series: dict[str, MetricSeries]


class JobLog(BaseModel):
    """The end of a job's training log."""

    object: Literal["fine_tuning.job.log"] = "fine_tuning.job.log"
    job_id: str
    lines: list[str] = Field(
        description="the last lines, oldest first, without the server's paths and secrets; none before the job "
        "starts and after it is pruned"
    )
    has_more: bool = Field(description="whether there are earlier lines")
