"""Recipe sections: model, data, training, teacher and collapse guard. Each option is declared once.

Each method declares its own options in `alignkit.methods`.
"""

from typing import Annotated, Literal, Protocol, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from alignkit.adapter_sections import LoraSection, Tune
from alignkit.held_out_metrics import LOSS, METRICS
from alignkit.options import A_MODEL, CONTENT_MATTERS, MAY_CHANGE, InJobs, one_of
from alignkit.schema import Section
from alignkit.tracking import MAX_TRACKERS, Tracker, each_once

Auto = Literal["auto"]
"""Settled for the device when the run starts, or when a job is created: it fits, and is fast there."""
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
"""Schedules that need no further argument; a job may use only these."""
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd")
"""Optimizers that a job may name; a recipe may name any of transformers'."""


def loaded_dtype(*, gpu: bool, frozen: bool) -> Dtype:
    """The dtype of weights under `auto`: bfloat16 for `frozen` weights on a GPU, else float32.

    Weights that train stay in float32: in 16 bits, a step at a usual learning rate would be lost to rounding.
    """
    return "bfloat16" if gpu and frozen else "float32"


class ModelSection(Section):
    """The model to train."""

    path: Annotated[str, CONTENT_MATTERS, A_MODEL] = Field(
        min_length=1, description="an imported model, a folder in Hugging Face format, or a hub id"
    )
    adapter: Annotated[str | None, CONTENT_MATTERS] = Field(
        None, min_length=1, description="folder of a peft LoRA adapter of this model, to continue training"
    )
    dtype: Annotated[Auto | Dtype, InJobs(default="auto")] = Field(
        "float32",
        description="dtype to load the weights in; auto: bfloat16 for frozen weights on a GPU, else float32",
    )
    attn_implementation: Annotated[Auto | Attention | None, MAY_CHANGE, InJobs(default="auto")] = Field(
        None, description="transformers' attn_implementation; auto or null: the model's default"
    )
    chat_template: Annotated[str | None, CONTENT_MATTERS] = Field(
        None,
        min_length=1,
        description="Jinja file, or name of a template that ships with TRL; default: the model's own template",
    )
    quantization: Annotated[Literal["nf4", "int8"] | None, InJobs()] = Field(
        None, description="QLoRA: storage of the frozen weights; needs lora, and bitsandbytes"
    )
    layer_kernels: Annotated[Literal["liger"] | None, MAY_CHANGE, InJobs()] = Field(
        None,
        description="liger: Liger's Triton kernels for norms, gates and rotary positions; needs a GPU and "
        "liger-kernel; null: transformers' own layers",
    )


class FlipSection(Section):
    """A probe of memorisation: training pairs whose answers are swapped. It spoils the model."""

    share: float = Field(0.2, gt=0, lt=1, description="share of the training pairs whose answers are swapped")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed that draws them")


class DataSection(Section):
    """Files of rows of the method's kind (alignkit.data.rows), as JSON Lines, a JSON array, CSV or Parquet."""

    train: Annotated[str, CONTENT_MATTERS] = Field(min_length=1, description="training file")
    validation: Annotated[str | float | None, CONTENT_MATTERS, MAY_CHANGE] = Field(
        None,
        description="held-out file, or a share of the training file's prompts, such as 0.05; evaluated every "
        "eval_steps and at the end",
    )
    max_length: int = Field(
        1024, ge=16, le=1_048_576, description="maximum tokens of prompt and answer together"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="renames the files' keys or columns to the names of a row's form, such as {question: prompt}",
    )
    skip_bad: bool | int | float = Field(
        False,
        ge=0,
        description="how many bad rows may be skipped: a number, or below 1 a share; true is a tenth",
    )
    balance_groups: Annotated[bool, InJobs()] = Field(
        False,
        description="draw rows from all groups in turn, so that steps hold as many of each; every row needs a group",
    )
    token_folder: Annotated[str | None, MAY_CHANGE] = Field(
        None,
        min_length=1,
        description="folder in which the rows' token ids are kept for other runs, as a sweep's are; default: none",
    )
    flip: Annotated[FlipSection | None, InJobs()] = Field(
        None, description="swap the answers of a known share of the training pairs, to watch memorisation"
    )

    @field_validator("validation")
    @classmethod
    def _share_of_the_prompts(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share must lie between 0 and 1")
        return value


def _no_is_a_word(value: object) -> object:
    """Turn False into "no", since YAML reads a plain `no` as false."""
    return "no" if value is False else value


class EarlyStoppingSection(Section):
    """The end of a run before its last step, once the held-out metric `best_metric` stops getting better."""

    patience: int = Field(
        3, ge=1, le=1000, description="evaluations in a row without a gain after which training stops"
    )
    min_gain: float = Field(
        0.0, ge=0, description="smallest gain that counts, in the unit of training.best_metric"
    )


class TrainingSection(Section):
    """Optimisation, logging, evaluation and checkpoints. Steps are optimizer steps."""

    epochs: Annotated[float, MAY_CHANGE] = Field(
        1.0, gt=0, le=1000, description="passes over the training file"
    )
    max_steps: Annotated[int | None, MAY_CHANGE] = Field(
        None, ge=1, description="number of steps; overrides epochs"
    )
    batch_size: int = Field(8, ge=1, le=65536, description="rows per optimizer step, over all processes")
    micro_batch_size: Annotated[
        Auto | Annotated[int, Field(ge=1, le=65536)] | None, MAY_CHANGE, InJobs(default="auto")
    ] = Field(
        None,
        description="rows per forward pass and process; default: batch_size over the processes; auto: as many as fit "
        "and keep the device busy",
    )
    group_by_length: Annotated[bool, MAY_CHANGE, InJobs()] = Field(
        True,
        description="sort the rows of each step by length, so that micro-batches hold little padding; a step keeps "
        "its rows",
    )
    packing: Annotated[bool | None, MAY_CHANGE, InJobs()] = Field(
        None,
        description="compute a row's prompt once for all of its answers and pad little, for the same result; "
        "default: where the model can; true refuses a model that cannot",
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="peak learning rate")
    lr_scheduler: Annotated[str, InJobs(check=one_of(*SCHEDULES))] = Field(
        "linear", description="transformers' lr_scheduler_type"
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    warmup_ratio: Annotated[float, InJobs()] = Field(
        0.0, ge=0, lt=1, description="share of the steps that warm up, in place of warmup_steps"
    )
    weight_decay: Annotated[float, InJobs(le=1)] = Field(
        0.0, ge=0, description="weight decay of the optimizer"
    )
    max_grad_norm: Annotated[float, InJobs()] = Field(
        1.0, gt=0, description="norm to which gradients are clipped"
    )
    gradient: Annotated[Literal["plain", "orthogonal"], InJobs(name="gradient_direction")] = Field(
        "plain",
        description="orthogonal: each matrix's gradient without the component that only scales the matrix",
    )
    optimizer: Annotated[str, InJobs(check=one_of(*OPTIMIZERS))] = Field(
        "adamw_torch", description="transformers' optim"
    )
    gradient_checkpointing: Annotated[Auto | bool, MAY_CHANGE, InJobs(default="auto")] = Field(
        False, description="recompute activations in the backward, which saves memory and costs time"
    )
    torch_compile: Annotated[bool, MAY_CHANGE, InJobs()] = Field(
        False,
        description="compile each decoder layer by torch.compile; the first steps wait for the compiler",
    )
    mixed_precision: Annotated[
        Literal["auto", "no", "tf32", "bf16", "fp16"], BeforeValidator(_no_is_a_word), InJobs(default="auto")
    ] = Field(
        "no",
        description="precision of matrix products; auto: the fastest whose measured error is within precision_budget",
    )
    precision_budget: Annotated[float, MAY_CHANGE, InJobs()] = Field(
        0.1, gt=0, le=10, description="error of a log-ratio that auto allows, in nats per hundred tokens"
    )
    devices: Annotated[int, MAY_CHANGE, InJobs(name="gpus", le=64)] = Field(
        1,
        ge=1,
        description="GPUs of this machine to train on, one process each; they share the rows of a step",
    )
    sharding: Annotated[Literal["ddp", "zero2", "zero3"] | None, MAY_CHANGE] = Field(
        None, description="how several devices share training; default in a job: the first that fits"
    )
    logging_steps: Annotated[int, MAY_CHANGE] = Field(1, ge=1, description="steps between logged metrics")
    eval_steps: Annotated[Auto | Annotated[int, Field(ge=1)] | None, MAY_CHANGE] = Field(
        None,
        description="steps between evaluations; auto: so many that they and the collapse guard take at most a "
        "tenth of the run; default: at the end only",
    )
    eval_on_start: Annotated[bool, MAY_CHANGE] = Field(False, description="evaluate the untrained model too")
    eval_batch_size: Annotated[
        Auto | Annotated[int, Field(ge=1, le=4096)], MAY_CHANGE, InJobs(default="auto")
    ] = Field(8, description="rows per forward pass and process in evaluations")
    save_steps: Annotated[int | None, MAY_CHANGE] = Field(
        None, ge=1, description="steps between checkpoints; default: at the end of each epoch"
    )
    pause_at: Annotated[int | None, MAY_CHANGE] = Field(
        None,
        ge=1,
        description="step after which the run evaluates, saves and pauses, so that it can be resumed",
    )
    save_total_limit: Annotated[int | None, MAY_CHANGE] = Field(
        None, ge=1, description="checkpoints that are kept: the newest ones and the best; default: all"
    )
    keep_best: Annotated[Auto | bool, MAY_CHANGE, InJobs(default="auto")] = Field(
        "auto",
        description="publish the step with the best best_metric in place of the last one; auto: if there is held-out "
        "data and eval_steps, and no tune",
    )
    best_metric: Annotated[str, AfterValidator(one_of(*METRICS)), MAY_CHANGE, InJobs()] = Field(
        LOSS, description=f"held-out metric of keep_best and early_stopping: {', '.join(METRICS)}"
    )
    early_stopping: Annotated[EarlyStoppingSection | None, MAY_CHANGE, InJobs()] = Field(
        None, description="stop once best_metric stops getting better; null: train all steps"
    )
    reference_store: Annotated[Auto | Literal["on", "off"], MAY_CHANGE, InJobs(default="auto")] = Field(
        "auto",
        description="keep the reference's log-probs for later epochs and runs; auto: where a run reads each row at "
        "least once; off: score them at every step",
    )
    reference_folder: Annotated[str | None, MAY_CHANGE] = Field(
        None,
        min_length=1,
        description="folder of the stored log-probs; default: references in alignkit's home",
    )
    report_to: list[Tracker] = Field(
        default_factory=list,
        max_length=MAX_TRACKERS,
        description="trackers: sections, or a name for one without options, such as tensorboard",
    )

    @model_validator(mode="after")
    def _one_warm_up(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_ratio: expected without warmup_steps, found both")
        return self

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
    """A check that compares a few sampled answers with the untrained model's at each evaluation.

    `collapse_guard: null` turns it off. The limits are our own choice; docs/collapse_guard.md lists the runs that
    they were tried on.
    """

    on_collapse: Literal["warn", "stop", "rollback"] = Field(
        "warn",
        description="warn only logs; stop ends the run as failed; rollback restores the last sound checkpoint",
    )
    prompts: int = Field(4, ge=1, le=64, description="number of held-out prompts to answer")
    max_new_tokens: Auto | Annotated[int, Field(ge=8, le=1024)] = Field(
        "auto",
        description="maximum length of an answer, in tokens; auto: 48, or in short runs as few as 16, so that "
        "evaluations and guard stay within a tenth of the run",
    )
    reference_logp_drop: float = Field(
        2.5, gt=0, description="allowed fall of the answers' log-prob under the reference, in nats per token"
    )
    repetition_rise: float = Field(
        0.5, gt=0, le=1, description="allowed rise of the share of repeated 4-grams"
    )
    good_logp_drop: float = Field(
        1.0, gt=0, description="allowed fall of the log-prob of known good answers, in nats per token"
    )


class TeacherSection(Section):
    """The model to distil."""

    path: Annotated[str, CONTENT_MATTERS, A_MODEL] = Field(
        min_length=1, description="an imported model, a folder in Hugging Face format, or a hub id"
    )
    adapter: Annotated[str | None, CONTENT_MATTERS] = Field(
        None, min_length=1, description="folder of a peft adapter to merge into the weights at the start"
    )
    dtype: Dtype | None = Field(None, description="dtype to load the weights in; default: model.dtype")


class RunSections(Protocol):
    """The sections of a recipe that a method may read. `alignkit.recipe.Recipe` implements it."""

    model: ModelSection
    data: DataSection
    lora: LoraSection | None
    training: TrainingSection
    tune: Tune
