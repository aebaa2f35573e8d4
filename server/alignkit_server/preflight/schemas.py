"""What is asked and told before a job is created: its request, with a few questions beside it."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from alignkit_server.jobs.schemas import JobRequest

MAX_ROWS = 50


class PreviewRequest(JobRequest):
    """A job, and which rows of its training file to show."""

    rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 3
    offset: Annotated[int, Field(ge=0, le=2**31, description="rows to skip")] = 0


class SegmentObject(BaseModel):
    """A run of tokens that are treated alike."""

    text: str
    tokens: int
    carries_loss: bool
    cut: bool = Field(description="whether it lies beyond max_length and is not trained on")


class PreviewRow(BaseModel):
    """A row as the trainer sees it."""

    index: int = Field(description="the row's number in the file, counted from 1")
    dropped: bool = Field(description="whether it is left out, since its prompt alone fills max_length")
    notes: list[str] = Field(description="how it differs from what is in the row, or from what is served")
    sequences: dict[str, list[SegmentObject]] = Field(description="such as chosen and rejected")


class PreviewObject(BaseModel):
    """Rows of the training file, rendered by the model's own chat template."""

    object: Literal["fine_tuning.preview"] = "fine_tuning.preview"
    model: str
    method: str
    max_length: int
    rows: list[PreviewRow]


class MemoryObject(BaseModel):
    """What training takes of the device that jobs run on, at the longest row of the sample."""

    device: str = Field(description="as the driver names it, or cpu")
    available_bytes: int = Field(description="what training may take of it")
    peak_bytes: int = Field(description="the most at once; not the sum of bytes_by_kind")
    peak_during: str
    bytes_by_kind: dict[str, int] = Field(
        description="each kind at its own most: weights, gradients, optimizer, activations, heads, reference, teacher"
    )
    trainable_parameters: int
    checkpoint_bytes: int = Field(description="on disk, of each checkpoint")


class EstimateObject(BaseModel):
    """How much there is to train, what it takes of this machine, and how long it took with earlier jobs."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    rows: int
    sampled_rows: int = Field(description="rows whose tokens were counted; the rest is taken to be like them")
    dropped_rows: int = Field(
        description="left out since their prompt alone fills max_length, scaled to all rows"
    )
    steps: int
    tokens: int = Field(description="tokens that the whole run trains on, prompts included")
    seconds: float | None = Field(
        description="by the median rate of this project's earlier jobs with the same model and method, "
        "loading and publishing included; null where there are none"
    )
    based_on_jobs: int
    queue_position: int = Field(description="that the job would have now")
    memory: MemoryObject | None = Field(
        description="null where no row is trained on, or the model's architecture is not estimated"
    )
    fits: bool | None = Field(description="whether peak_bytes is available; null as memory is")
