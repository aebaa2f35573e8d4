"""The one typed schema of a run: from YAML, from `key=value` overrides, and from a job's hyperparameters.

`accelerate launch -m alignkit.train RECIPE.yaml [key=value …]` runs one; the service writes the resolved recipe
into every job's folder, so that the same line repeats the job.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from alignkit.adapters import lora_of
from alignkit.errors import FieldIssue, ModelError, RecipeError
from alignkit.methods import METHODS
from alignkit.methods.bd_kd import BDKDSection
from alignkit.methods.d2o import D2OSection
from alignkit.methods.f_dpo import FDPOSection
from alignkit.methods.sections import Dtype, LoraSection
from alignkit.methods.sinkd import SinKDSection
from alignkit.methods.supervised import SupervisedSection
from alignkit.schema import Section, field_issues
from alignkit.tracking import MAX_TRACKERS, Tracker, each_once


class ModelSection(Section):
    """Which model is trained."""

    path: str = Field(min_length=1, description="folder in Hugging Face format, or a hub id")
    adapter: str | None = Field(
        None, min_length=1, description="folder of a peft LoRA adapter over it, which trains on"
    )
    dtype: Dtype = Field("float32", description="dtype the weights are loaded in")
    attn_implementation: str | None = Field(None, description="transformers' attn_implementation")
    quantization: Literal["nf4", "int8"] | None = Field(
        None, description="QLoRA: how frozen weights are stored; needs lora, and bitsandbytes"
    )


class DataSection(Section):
    """Rows of the kind that the method takes (alignkit.data.schemas), JSON Lines."""

    train: str = Field(min_length=1, description="training file")
    validation: str | None = Field(
        None, description="held-out file, evaluated every eval_steps and at the end"
    )
    max_length: int = Field(1024, ge=16, le=1_048_576, description="tokens of prompt and answer together")


class TrainingSection(Section):
    """Optimisation, and when to log, evaluate and save. Steps are optimizer steps."""

    epochs: float = Field(1.0, gt=0, le=1000)
    max_steps: int | None = Field(None, ge=1, description="overrides epochs")
    batch_size: int = Field(8, ge=1, le=65536, description="rows an optimizer step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows a forward and process; default: batch_size"
    )
    learning_rate: float = Field(2e-4, gt=0, le=1)
    lr_scheduler: str = Field("linear", description="transformers' lr_scheduler_type")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: str = Field("adamw_torch", description="transformers' optim")
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    logging_steps: int = Field(1, ge=1)
    eval_steps: int | None = Field(None, ge=1, description="default: at the end only")
    eval_on_start: bool = Field(False, description="evaluate the untrained model too")
    eval_batch_size: int = Field(8, ge=1)
    save_steps: int | None = Field(None, ge=1, description="default: at the end of each epoch")
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


MethodSection = Annotated[
    FDPOSection | SupervisedSection | D2OSection | SinKDSection | BDKDSection, Field(discriminator="type")
]
SECTION_TYPES = tuple(str(m.section.model_fields["type"].default) for m in METHODS.values())


class Recipe(Section):
    """A whole run."""

    model: ModelSection
    data: DataSection
    method: MethodSection
    lora: LoraSection | None = Field(default_factory=LoraSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    collapse_guard: CollapseGuardSection | None = Field(default_factory=CollapseGuardSection)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    output_dir: str = Field(min_length=1, description="folder for everything the run writes")

    @field_validator("method", mode="before")
    @classmethod
    def _typed(cls, value: object) -> object:
        """Without this, the error about a missing type would not name those there are."""
        return {"type": None, **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _an_adapter_trains_on_as_it_is(self) -> Self:
        """`lora` is the adapter's own; what is given beside it must agree."""
        if self.model.adapter is None:
            return self
        try:
            own = lora_of(Path(self.model.adapter))
        except ModelError as error:
            raise ValueError(f"model.adapter: {error}") from error
        if self.lora is None:
            raise ValueError("lora: null trains all weights, but model.adapter trains on; leave one out")
        given = self.lora.model_fields_set if "lora" in self.model_fields_set else ()
        for name in sorted(given):
            expected, found = getattr(own, name), getattr(self.lora, name)
            if not _agree(expected, found):
                raise ValueError(f"lora.{name}: expected {expected}, as model.adapter has it, found {found}")
        self.lora = own
        return self

    @model_validator(mode="after")
    def _quantised_weights_are_frozen(self) -> Self:
        if self.model.quantization is not None and self.lora is None:
            raise ValueError(
                f"model.quantization: {self.model.quantization} stores weights that do not train; expected lora"
            )
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """A recipe from nested values; raises RecipeError naming every refused field."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(_without_tag(field_issues(error))) from error

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """A recipe from a YAML file with `dotted.key=value` overrides (values are YAML)."""
        values = _read_yaml(path)
        for override in overrides:
            _override(values, override)
        return cls.parse(values)

    def to_yaml(self) -> str:
        """The whole recipe, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _agree(own: Any, given: Any) -> bool:
    """Whether a LoRA option is an adapter's own: peft writes modules one by one, in any order."""
    if isinstance(own, list):
        return given == "all-linear" or (isinstance(given, list) and set(given) == set(own))
    return bool(own == given)


def _without_tag(issues: list[FieldIssue]) -> list[FieldIssue]:
    """pydantic puts the chosen method into the path, `method.f_dpo.beta`, where a recipe has none."""
    tag = re.compile(rf"^method\.(?:{'|'.join(SECTION_TYPES)})(?=\.|$)")
    return [FieldIssue(tag.sub("method", issue.path), issue.message) for issue in issues]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError([FieldIssue("", f"cannot read the recipe {path}: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError([FieldIssue("", f"{path} is not valid YAML: {error}")]) from error
    if not isinstance(values, dict):
        raise RecipeError(
            [FieldIssue("", f"{path}: expected a mapping of keys, found {type(values).__name__}")]
        )
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError([FieldIssue(override, "expected key=value, such as training.epochs=2")])
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError([FieldIssue(key, f"{parent} is a value, not a section")])
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError([FieldIssue(key, f"not a YAML value: {text!r}")]) from error
