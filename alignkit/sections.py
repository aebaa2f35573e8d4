"""Sections of a recipe: model, data, optimisation, adapters, teacher, collapse guard. Each option is declared once.

The methods' own options are in `alignkit.methods`.
"""

from typing import Annotated, Literal, Protocol

from pydantic import BeforeValidator, Field, field_validator

from alignkit.options import A_MODEL, CONTENT_MATTERS, MAY_CHANGE
from alignkit.schema import Section
from alignkit.tracking import MAX_TRACKERS, Tracker, each_once

Dtype = Literal["float32", "bfloat16", "float16"]
HEAD_MODULES = frozenset({"lm_head", "embed_tokens"})
"""Modules that no adapter may change: the fused heads would not see it, and vLLM would not serve it."""


class ModelSection(Section):
    """Which model is trained."""

    path: Annotated[str, CONTENT_MATTERS, A_MODEL] = Field(
        min_length=1, description="an imported model, a folder in Hugging Face format, or a hub id"
    )
    adapter: Annotated[str | None, CONTENT_MATTERS] = Field(
        None, min_length=1, description="folder of a peft LoRA adapter over it, which trains on"
    )
    dtype: Dtype = Field("float32", description="dtype the weights are loaded in")
    attn_implementation: Annotated[str | None, MAY_CHANGE] = Field(
        None, description="transformers' attn_implementation"
    )
    chat_template: Annotated[str | None, CONTENT_MATTERS] = Field(
        None,
        min_length=1,
        description="Jinja file, or name of a template that ships with TRL, in place of the model's own",
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None, description="QLoRA: how frozen weights are stored; needs lora, and bitsandbytes"
    )


class DataSection(Section):
    """Rows of the kind that the method takes (alignkit.data.rows): JSON Lines, a JSON array, CSV or Parquet."""

    train: Annotated[str, CONTENT_MATTERS] = Field(min_length=1, description="training file")
    validation: Annotated[str | float | None, CONTENT_MATTERS, MAY_CHANGE] = Field(
        None,
        description="held-out file, or a share of the training file's prompts, such as 0.05; evaluated every "
        "eval_steps and at the end",
    )
    max_length: int = Field(1024, ge=16, le=1_048_576, description="tokens of prompt and answer together")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="the files' own keys or columns and what the forms call them, such as {question: prompt}",
    )
    skip_bad: bool | int | float = Field(
        False,
        ge=0,
        description="bad rows that may be left out: a number of rows, below 1 a share of them, true for a tenth",
    )

    @field_validator("validation")
    @classmethod
    def _share_of_the_prompts(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share must lie between 0 and 1")
        return value


def _no_is_a_word(value: object) -> object:
    """YAML reads a plain `no` as false."""
    return "no" if value is False else value


class TrainingSection(Section):
    """Optimisation, and when to log, evaluate and save. Steps are optimizer steps."""

    epochs: Annotated[float, MAY_CHANGE] = Field(1.0, gt=0, le=1000)
    max_steps: Annotated[int | None, MAY_CHANGE] = Field(None, ge=1, description="overrides epochs")
    batch_size: int = Field(8, ge=1, le=65536, description="rows an optimizer step, over all processes")
    micro_batch_size: Annotated[int | None, MAY_CHANGE] = Field(
        None, ge=1, description="rows a forward and process; default: batch_size"
    )
    learning_rate: float = Field(2e-4, gt=0, le=1)
    lr_scheduler: str = Field("linear", description="transformers' lr_scheduler_type")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: str = Field("adamw_torch", description="transformers' optim")
    gradient_checkpointing: Annotated[bool, MAY_CHANGE] = False
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_no_is_a_word)] = "no"
    logging_steps: Annotated[int, MAY_CHANGE] = Field(1, ge=1)
    eval_steps: Annotated[int | None, MAY_CHANGE] = Field(None, ge=1, description="default: at the end only")
    eval_on_start: Annotated[bool, MAY_CHANGE] = Field(False, description="evaluate the untrained model too")
    eval_batch_size: Annotated[int, MAY_CHANGE] = Field(8, ge=1)
    save_steps: Annotated[int | None, MAY_CHANGE] = Field(
        None, ge=1, description="default: at the end of each epoch"
    )
    report_to: list[Tracker] = Field(
        default_factory=list, max_length=MAX_TRACKERS, description="trackers; tensorboard by its name alone"
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [{"type": tracker} if isinstance(tracker, str) else tracker for tracker in value]

    @field_validator("report_to")
    @classmethod
    def _each_once(cls, trackers: list[Tracker]) -> list[Tracker]:
        return each_once(trackers)


class CollapseGuardSection(Section):
    """A few answers drawn at each evaluation and compared with the untrained model's; `collapse_guard: null` is off.

    The limits are ours; docs/collapse_guard.md says on what they were tried.
    """

    on_collapse: Literal["warn", "stop", "rollback"] = Field(
        "warn", description="stop ends the run as failed, rollback goes back to the last sound evaluation"
    )
    prompts: int = Field(4, ge=1, le=64, description="held-out prompts answered")
    max_new_tokens: int = Field(48, ge=8, le=1024)
    reference_logp_drop: float = Field(
        2.5, gt=0, description="nats a token that the answers' log-prob under the reference may fall by"
    )
    repetition_rise: float = Field(
        0.5, gt=0, le=1, description="by which the share of repeated 4-grams may rise"
    )
    good_logp_drop: float = Field(
        2.0, gt=0, description="nats a token that the log-prob of known good answers may fall by"
    )


class LoraSection(Section):
    """Low-rank adapters; `lora: null` trains all weights."""

    r: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = Field(
        "all-linear", description="peft's target_modules; the head cannot be one"
    )

    @field_validator("target_modules")
    @classmethod
    def _no_head(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if refused := HEAD_MODULES & set(names):
            raise ValueError(f"{', '.join(sorted(refused))} cannot be served as an adapter; leave it out")
        return value


class TeacherSection(Section):
    """The model that is distilled."""

    path: Annotated[str, CONTENT_MATTERS, A_MODEL] = Field(
        min_length=1, description="an imported model, a folder in Hugging Face format, or a hub id"
    )
    adapter: Annotated[str | None, CONTENT_MATTERS] = Field(
        None, min_length=1, description="folder of a peft adapter, merged into it at the start"
    )
    dtype: Dtype | None = Field(None, description="dtype the weights are loaded in; default: model.dtype")


class RunSections(Protocol):
    """The sections of a recipe that a method reads; `alignkit.recipe.Recipe` has them all."""

    model: ModelSection
    data: DataSection
    lora: LoraSection | None
    training: TrainingSection
