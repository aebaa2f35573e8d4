"""Requests and answers of preview and estimate."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from alignkit_server.jobs.schemas import JobRequest

MAX_ROWS = 50


class PreviewRequest(JobRequest):
    """A job's request, plus the rows of its training file to show."""

    rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 3
    offset: Annotated[int, Field(ge=0, le=2**31, description="number of rows to skip")] = 0


class SegmentObject(BaseModel):
    """A run of consecutive tokens that are treated alike."""

    text: str
    tokens: int
    carries_loss: bool
    cut: bool = Field(description="whether it exceeds max_length and is not trained on")


class PreviewRow(BaseModel):
    """A row as the trainer sees it."""

    index: int = Field(description="number of the row in the file, from 1")
    dropped: bool = Field(description="whether the row is dropped because its prompt alone fills max_length")
    notes: list[str] = Field(
        description="differences from the row's content, or from how the model is served"
    )
    sequences: dict[str, list[SegmentObject]] = Field(
        description="sequences by name, such as chosen and rejected"
    )


class PreviewObject(BaseModel):
    """Rows of the training file, rendered with the model's chat template."""

    object: Literal["fine_tuning.preview"] = "fine_tuning.preview"
    model: str
    method: str
    max_length: int
    rows: list[PreviewRow]


class MemoryObject(BaseModel):
    """Memory that training needs on the training device, at the longest row of the sample."""

    device: str = Field(description="the driver's name of the device, or cpu")
    available_bytes: int = Field(description="memory available to training")
    peak_bytes: int = Field(description="peak of the total memory; not the sum of bytes_by_kind")
    peak_during: str
    bytes_by_kind: dict[str, int] = Field(
        description="peak of each kind: weights, gradients, optimizer, activations, heads, reference, teacher"
    )
    trainable_parameters: int
    checkpoint_bytes: int = Field(description="size on disk of each checkpoint")


class CostObject(BaseModel):
    """What a job costs at the service's price for an hour of a GPU."""

    amount: float = Field(description="seconds / 3600 * gpus * per_gpu_hour")
    currency: str
    per_gpu_hour: float
    gpus: int = Field(description="GPUs of the job; 1 if it trains on the CPU")


class EstimateObject(BaseModel):
    """The amount of training, its memory on the training device, and its time judged by earlier jobs."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    rows: int
    sampled_rows: int = Field(description="rows whose tokens were counted, as a sample of all rows")
    dropped_rows: int = Field(
        description="rows dropped because their prompt alone fills max_length, scaled to all rows"
    )
    steps: int
    tokens: int = Field(description="tokens of the whole run, prompts included")
    seconds: float | None = Field(
        description="from the median speed of this project's earlier jobs with the same model and method, "
        "including loading and publishing; without such jobs, training alone by the device's data sheet, or null "
        "for an unsupported model"
    )
    based_on_jobs: int
    cost: CostObject | None = Field(
        description="null if seconds is null, or the service has no price (ALIGNKIT_PRICE_PER_GPU_HOUR)"
    )
    queue_position: int = Field(description="position in the queue if created now")
    memory: MemoryObject | None = Field(
        description="null if no row is trained on, or the model's architecture is not supported"
    )
    fits: bool | None = Field(description="whether peak_bytes fit in available_bytes; null if memory is null")
