"""The one typed schema of a run: from YAML, from `key=value` overrides, and from a job's hyperparameters.

`accelerate launch -m alignkit.train RECIPE.yaml [key=value …]` runs one; the service writes the resolved recipe
into every job's folder, so that the same line repeats the job.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from alignkit import divergences
from alignkit.errors import DivergenceError, FieldIssue, RecipeError

Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are refused, values are not coerced across kinds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """Which model is trained."""

    path: str = Field(min_length=1, description="folder in Hugging Face format, or a hub id")
    dtype: Dtype = Field("float32", description="dtype the weights are loaded in")
    attn_implementation: str | None = Field(None, description="transformers' attn_implementation")


class DataSection(Section):
    """Preference rows in OpenAI's, TRL's or ShareGPT's form, JSON Lines."""

    train: str = Field(min_length=1, description="training file")
    validation: str | None = Field(
        None, description="held-out file, evaluated every eval_steps and at the end"
    )
    max_length: int = Field(1024, ge=16, le=1_048_576, description="tokens of prompt and answer together")


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
        if refused := {"lm_head", "embed_tokens"} & set(names):
            raise ValueError(f"{', '.join(sorted(refused))} cannot be served as an adapter; leave it out")
        return value


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
    eval_batch_size: int = Field(8, ge=1)
    save_steps: int | None = Field(None, ge=1, description="default: at the end of each epoch")


class FDPOSection(Section):
    """f-DPO: the divergence between policy and reference, and its strength."""

    type: Literal["f_dpo"] = "f_dpo"
    beta: float = Field(0.1, gt=0, le=100)
    divergence: str = Field(
        "reverse_kl", description="a name of divergences.available(), or package.module:Name"
    )
    alpha: float | None = Field(None, gt=0, le=10, description="alpha_divergence only; the paper's alpha")
    f_alpha_divergence_coef: float | None = Field(
        None, lt=1, ge=-9, description="alpha_divergence only; TRL's coefficient, 1 - alpha"
    )
    match_curvature: bool = Field(
        False, description="divide beta by f''(1), to compare divergences like with like"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    sft_weight: float = Field(0.0, ge=0, le=100, description="weight of the chosen answer's mean token NLL")

    @field_validator("divergence")
    @classmethod
    def _divergence_exists(cls, name: str) -> str:
        try:
            divergences.get(name)
        except DivergenceError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("alpha", "f_alpha_divergence_coef")
    @classmethod
    def _takes_parameter(cls, value: float | None, info: ValidationInfo) -> float | None:
        params = {str(info.field_name): value} if value is not None else {}
        if info.field_name == "f_alpha_divergence_coef" and info.data.get("alpha") is not None:
            params["alpha"] = info.data["alpha"]
        try:
            if value is not None and "divergence" in info.data:
                divergences.get(info.data["divergence"], **params)
        except DivergenceError as error:
            raise ValueError(str(error)) from error
        return value

    def divergence_params(self) -> dict[str, float]:
        """Parameters for `divergences.get`, those given only."""
        given = {"alpha": self.alpha, "f_alpha_divergence_coef": self.f_alpha_divergence_coef}
        return {name: value for name, value in given.items() if value is not None}


MethodSection = FDPOSection


class Recipe(Section):
    """A whole run."""

    model: ModelSection
    data: DataSection
    method: MethodSection
    lora: LoraSection | None = Field(default_factory=LoraSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    output_dir: str = Field(min_length=1, description="folder for everything the run writes")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """A recipe from nested values; raises RecipeError naming every refused field."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(field_issues(error)) from error

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


def field_issues(error: ValidationError, prefix: str = "") -> list[FieldIssue]:
    """One issue a refused field: its path, what was expected and what was found."""
    issues = []
    for item in error.errors(include_url=False):
        path = ".".join([*([prefix] if prefix else []), *(str(part) for part in item["loc"])])
        issues.append(FieldIssue(path, _sentence(item)))
    return issues


def _sentence(item: Mapping[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "is required"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return message
    return f"expected {message}, found {_short(item.get('input'))}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


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
