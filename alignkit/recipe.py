"""`Recipe`, the typed description of a run, read from YAML and `key=value` overrides or made from a job.

`accelerate launch -m alignkit.train RECIPE.yaml [key=value …]` runs a recipe. The service writes the resolved recipe
into every job's folder, so that the same command repeats the job.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator
from pydantic.fields import FieldInfo

from alignkit.adapter_sections import Elastic, LoraSection, Tune
from alignkit.after import Step
from alignkit.data.schemas import schema_for
from alignkit.errors import DataError, FieldIssue, MethodError, ModelError, RecipeError
from alignkit.held_out_metrics import LOSS
from alignkit.home import find_model
from alignkit.methods import METHODS, Method, PairMethod, get
from alignkit.methods.tuning import refusals as tuning_refusals
from alignkit.models.adapters import lora_of
from alignkit.models.chat_templates import available
from alignkit.options import A_MODEL, CONTENT_MATTERS, MAY_CHANGE
from alignkit.schema import Section, field_issues, one_a_field, refused, refused_all
from alignkit.sections import CollapseGuardSection, DataSection, ModelSection, TrainingSection
from alignkit.strict_yaml import read_yaml
from alignkit.terms import Term
from alignkit.terms import get as get_term


def _method(value: object) -> object:
    """Build the method that a mapping's `type` names. Pydantic refuses values that are no mapping."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("type")
    try:
        method = get(name)
        schema_for(method)
    except (MethodError, DataError) as error:
        raise refused("type", str(error), name) from error
    section = method.model_validate(value)
    if name not in METHODS:
        section.try_out()
    return section


def _term(value: object) -> object:
    """Build the term that a mapping's `type` names. Pydantic refuses values that are no mapping."""
    if not isinstance(value, Mapping):
        return value
    try:
        return get_term(value.get("type")).model_validate(value)
    except MethodError as error:
        raise refused("type", str(error), value.get("type")) from error


AnyTerm = Annotated[SerializeAsAny[Term], BeforeValidator(_term)]
OF_TRAINING = frozenset({"nested"})
"""Options of `lora` that say how an adapter trains. An adapter that trains on does not determine them."""


class Recipe(Section):
    """A complete run: model, data, method and training."""

    model: ModelSection
    data: DataSection
    method: Annotated[SerializeAsAny[Method], BeforeValidator(_method)]
    terms: list[AnyTerm] = Field(
        default_factory=list,
        max_length=8,
        description="what is added to the method's loss; see alignkit terms",
    )
    tune: Tune = Field(
        None, description="options of the method that the run tunes by itself, such as [beta]; null: none"
    )
    elastic: Elastic = Field(
        None,
        description="formats that the adapter will be served in, such as [nf4, int8, fp8]; null: as trained",
    )
    lora: LoraSection | None = Field(default_factory=LoraSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    collapse_guard: Annotated[CollapseGuardSection | None, MAY_CHANGE] = Field(
        default_factory=CollapseGuardSection
    )
    after: Annotated[list[Step], MAY_CHANGE] = Field(
        default_factory=list,
        max_length=4,
        description="steps after training, in order, before the weights are evaluated again and saved",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of all random draws of the run")
    output_dir: Annotated[str, MAY_CHANGE] = Field(
        min_length=1, description="folder for everything the run writes"
    )

    @model_validator(mode="after")
    def _lora_is_that_of_the_adapter(self) -> Self:
        """Take `lora` from the adapter that training continues; options given beside it must agree with it."""
        if self.model.adapter is None:
            return self
        try:
            own = lora_of(Path(self.model.adapter))
        except ModelError as error:
            raise ValueError(f"model.adapter: {error}") from error
        if self.lora is None:
            raise ValueError("lora: null trains all weights, but model.adapter is given; leave one out")
        given = self.lora.model_fields_set if "lora" in self.model_fields_set else ()
        for name in sorted(set(given) - OF_TRAINING):
            expected, found = getattr(own, name), getattr(self.lora, name)
            if not _agree(expected, found):
                raise ValueError(f"lora.{name}: expected {expected}, as in model.adapter, found {found}")
        self.lora = own.model_copy(update={name: getattr(self.lora, name) for name in OF_TRAINING})
        return self

    @model_validator(mode="after")
    def _steps_after_training_are_possible(self) -> Self:
        for place, step in enumerate(self.after):
            for reason in step.refusals(self.lora, self.data.validation is not None):
                raise ValueError(f"after.{place}.{reason}")
        return self

    @model_validator(mode="after")
    def _quantised_weights_are_frozen(self) -> Self:
        if self.model.quantization is not None and self.lora is None:
            raise ValueError(
                f"model.quantization: {self.model.quantization} weights are frozen, so lora is required; found null"
            )
        return self

    @model_validator(mode="after")
    def _compiled_layers_stay_the_same(self) -> Self:
        beside = {
            "model.layer_kernels": self.model.layer_kernels is not None,
            "lora.nested": self.lora is not None and self.lora.nested is not None,
            "elastic": self.elastic is not None,
            "tune": self.tune is not None,
        }
        found = [name for name, given in beside.items() if given]
        if self.training.torch_compile and found:
            message = f"expected false with {found[0]}, which changes the layers themselves, found true"
            raise refused_all([(("training", "torch_compile"), message)], self.training)
        return self

    @model_validator(mode="after")
    def _only_pairs_are_flipped(self) -> Self:
        if self.data.flip is not None and self.method.rows != "preference":
            raise ValueError(
                f"data.flip: expected a method of preference rows, found {self.method.type}, whose rows are "
                f"{self.method.rows}"
            )
        return self

    @model_validator(mode="after")
    def _only_shared_prompts_are_packed(self) -> Self:
        if self.training.packing is True and not self.method.packs:
            raise ValueError(
                f"training.packing: expected false with {self.method.type}, found true; only methods of preference "
                "pairs and D2O are packed"
            )
        return self

    @model_validator(mode="after")
    def _the_best_step_can_be_found(self) -> Self:
        issues = [(("training", name), message) for name, message in self._unjudged()]
        if issues:
            raise refused_all(issues, self.training)
        return self

    def _unjudged(self) -> Iterator[tuple[str, str]]:
        """Yield (option of training, reason) of each option that lacks the evaluations it needs."""
        training, metric = self.training, self.training.best_metric
        if metric != LOSS and metric not in self.method.held_out_metrics:
            logged = ", ".join(sorted({LOSS, *self.method.held_out_metrics}))
            yield "best_metric", f"expected a metric of {self.method.type}, {logged}, found {metric}"
        for name, given in (
            ("early_stopping", training.early_stopping is not None),
            ("keep_best", training.keep_best is True),
        ):
            if given and self.data.validation is None:
                yield name, "expected data.validation, a held-out file or share to judge steps by, found none"
            elif given and training.eval_steps is None:
                yield name, "expected training.eval_steps, the steps between evaluations, found none"

    @property
    def keeps_best(self) -> bool:
        """Whether the best evaluated step becomes the result, in place of the last one."""
        training = self.training
        if training.keep_best == "auto":
            # under `tune` the loss's own options change, so losses of different steps do not compare
            return self.tune is None and self.data.validation is not None and training.eval_steps is not None
        return training.keep_best

    @model_validator(mode="after")
    def _terms_fit(self) -> Self:
        issues = [(at, issue) for at, term in enumerate(self.terms) for issue in self._refused(at, term)]
        if issues:
            raise refused_all(
                [(("terms", at, *filter(None, [issue.path])), issue.message) for at, issue in issues],
                self.terms,
            )
        return self

    @model_validator(mode="after")
    def _elastic_is_possible(self) -> Self:
        if self.elastic is None:
            return self
        if self.lora is None:
            raise ValueError("elastic: expected lora over frozen weights, found null, which trains all")
        if self.model.quantization is not None:
            raise ValueError(
                f"elastic: expected without model.quantization, found {self.model.quantization}: its weights are "
                "quantised already"
            )
        if self.data.validation is None:
            raise ValueError("elastic: expected data.validation, on which the gap of each format is measured")
        return self

    @model_validator(mode="after")
    def _tuning_is_possible(self) -> Self:
        if self.tune is not None:
            has_validation = self.data.validation is not None
            beside = [("terms", bool(self.terms)), ("data.flip", self.data.flip is not None)]
            found = [
                *tuning_refusals(self.tune, self.method, self.lora, has_validation=has_validation),
                *(FieldIssue("", f"expected without {name}, found both") for name, given in beside if given),
            ]
            if found:
                raise refused_all(
                    [(("tune", *filter(None, issue.path.split("."))), issue.message) for issue in found],
                    self.tune,
                )
        return self

    def _refused(self, at: int, term: Term) -> Iterator[FieldIssue]:
        """The reasons why a term cannot be used in this run; their paths are relative to the term."""
        others = [*self.terms[:at], *self.terms[at + 1 :]]
        if term.type in (other.type for other in self.terms[:at]):
            yield FieldIssue("type", f"expected {term.type} once, found it twice")
        if (problem := term.misfit(self.method)) is not None:
            yield FieldIssue("type", problem)
        elif term.needs_rewards and isinstance(self.method, PairMethod) and not self.method.gives_rewards():
            yield FieldIssue(
                "type",
                f"{term.type} needs a loss that returns PreferenceLoss.of(losses, chosen, rejected), which "
                f"{self.method.type}'s does not",
            )
        yield from term.refusals(self, others)

    @property
    def saved_rank(self) -> int | None:
        """The rank of the adapter that training saves; None if all weights train."""
        tuned = 0 if self.tune is None else self.tune.rank
        return None if self.lora is None else self.lora.r + tuned

    @property
    def micro_batch_matters(self) -> bool:
        """Whether a step depends on the micro-batch size, because of the method or a term."""
        return self.method.micro_batch_matters or any(term.micro_batch_matters for term in self.terms)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Make a recipe from nested values. Raises RecipeError, which names every refused field."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            issues = field_issues(error, siblings=partial(_siblings, values))
            raise RecipeError(one_a_field(issues)) from error

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Load a recipe from a YAML file, with `dotted.key=value` overrides whose values are YAML.

        An imported model may be given by its name. Raises RecipeError.
        """
        values = read_values(path)
        for override in overrides:
            _override(values, override)
        recipe = cls.parse(values)
        for section, name, field in _fields(recipe):
            model = getattr(section, name)
            if A_MODEL in field.metadata and model is not None:
                setattr(section, name, find_model(model))
        return recipe

    def to_yaml(self) -> str:
        """Return the whole recipe as YAML, with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def paths_of(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, path) for every option of a recipe, given as nested values, that names a file or folder.

    Reads nothing from disk, so it works for a recipe whose files are gone.
    """
    yield from _paths(Recipe, values)


def _fields(section: Section) -> Iterator[tuple[Section, str, FieldInfo]]:
    """(section, name, field) of every option in `section` and its sub-sections."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _fields(value)
        else:
            yield section, name, field


def _paths(section: type[Section], values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, field in section.model_fields.items():
        value = values.get(name)
        if name == "terms" and section is Recipe:
            for at, term in enumerate(value or ()):
                yield from (
                    ((name, str(at), *keys), path) for keys, path in _paths(get_term(term["type"]), term)
                )
        elif isinstance(value, list) and CONTENT_MATTERS in field.metadata:
            yield from (((name, str(at)), path) for at, path in enumerate(value))
        elif isinstance(value, Mapping):
            below = get(value.get("type")) if name == "method" else _section_in(field.annotation)
            yield from (((name, *keys), path) for keys, path in _paths(below, value))
        elif isinstance(value, str) and CONTENT_MATTERS in field.metadata and value not in available():
            yield (name,), value  # a chat template's name is no path


def _siblings(values: Mapping[str, Any], keys: tuple[str, ...]) -> Iterable[str]:
    """The names of all options in the section that holds the last of `keys`."""
    section: type[Section] = Recipe
    value: Any = values
    if keys[0] == "terms" and len(keys) == 3:
        return get_term(values["terms"][int(keys[1])]["type"]).model_fields
    for key in keys[:-1]:
        field, value = section.model_fields.get(key), value.get(key) if isinstance(value, Mapping) else None
        if field is None:
            return ()
        is_method = key == "method" and section is Recipe and isinstance(value, Mapping)
        section = get(value.get("type")) if is_method else _section_in(field.annotation)
    return section.model_fields


def _section_in(annotation: Any) -> type[Section]:
    """The section class in an annotation such as `LoraSection | None`; `Section` itself if there is none."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), Section)


def _agree(own: Any, given: Any) -> bool:
    """Whether a LoRA option equals the adapter's. peft lists target modules one by one, in any order."""
    if isinstance(own, list):
        return given == "all-linear" or (isinstance(given, list) and set(given) == set(own))
    return bool(own == given)


def read_values(path: Path) -> dict[str, Any]:
    """The sections of a recipe file, unchecked. Raises RecipeError if it cannot be read or is no mapping."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
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
        if node.get(parent) is None:  # absent, or null: `lora.r=16` over `lora: null` is LoRA again
            node[parent] = {}
        child = node[parent]
        if not isinstance(child, dict):
            raise RecipeError([FieldIssue(key, f"{parent} is a value, not a section")])
        node = child
    try:
        node[last] = read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError([FieldIssue(key, f"not a YAML value: {text!r}")]) from error
