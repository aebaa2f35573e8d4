"""The one typed schema of a run: from YAML, from `key=value` overrides, and from a job's hyperparameters.

`accelerate launch -m alignkit.train RECIPE.yaml [key=value …]` runs one; the service writes the resolved recipe
into every job's folder, so that the same line repeats the job.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from alignkit.adapters import lora_of
from alignkit.errors import FieldIssue, ModelError, RecipeError
from alignkit.methods import METHODS
from alignkit.methods.bd_kd import BDKDSection
from alignkit.methods.d2o import D2OSection
from alignkit.methods.f_dpo import FDPOSection
from alignkit.methods.sinkd import SinKDSection
from alignkit.methods.supervised import SupervisedSection
from alignkit.schema import Section, field_issues
from alignkit.sections import CollapseGuardSection, DataSection, LoraSection, ModelSection, TrainingSection

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
