"""Hyperparameters of jobs: those that every method takes, and a method's own, derived from its options."""

from collections.abc import Callable
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from alignkit import terms
from alignkit.adapter_sections import Elastic, LoraSection, Tune
from alignkit.after import Step
from alignkit.methods.base import Method
from alignkit.methods.preference import PairMethod
from alignkit.options import CONTENT_MATTERS, RECIPES_ONLY, GivenAs, InJobs, mark_of
from alignkit.schema import Section
from alignkit.sections import Auto, DataSection, ModelSection, TrainingSection

NAMED = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
"""A name that cannot be a path, so a client cannot reach other files of the server."""
SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "data": DataSection,
    "lora": LoraSection,
    "training": TrainingSection,
}
"""Sections of a recipe whose options marked `InJobs` every job takes."""
TERMS, MOST_TERMS = "terms", 8
"""The hyperparameter that lists what is added to a method's loss, and how many entries it may have."""
TUNE = "tune"
"""The hyperparameter of pair methods that lists the options a run tunes by itself."""
_BOUNDS = {"ge": Ge, "gt": Gt, "le": Le, "lt": Lt}
_LOWER, _UPPER = (Ge, Gt), (Le, Lt)


def shared_options() -> dict[str, tuple[str, str]]:
    """A job's name -> (section, option) of the recipe, for every shared option that a job may give."""
    return {
        mark.name or name: (section, name)
        for section, kind in SECTIONS.items()
        for name, field in kind.model_fields.items()
        if (mark := mark_of(field, InJobs)) is not None
    }


def _shared_base() -> Any:
    """A base class whose fields are the shared options, as jobs give them."""
    fields: dict[str, Any] = {}
    for given, (section, name) in shared_options().items():
        _, annotation, info = _as_given(name, SECTIONS[section].model_fields[name])
        fields[given] = (annotation, info)
    return create_model("SharedHyperparameters", __base__=Section, **fields)


def in_jobs(field: FieldInfo) -> bool:
    """Return whether a job may set the option."""
    if mark_of(field, GivenAs) is not None:
        return True
    return RECIPES_ONLY not in field.metadata and CONTENT_MATTERS not in field.metadata


def job_name(name: str, field: FieldInfo) -> str:
    """Return the name by which a job sets the option."""
    mark = mark_of(field, GivenAs)
    return name if mark is None else mark.name


def names_of_models(method: type[Method]) -> tuple[str, ...]:
    """Return the hyperparameters of the method's jobs whose value names one of the service's models.

    Terms name models too: see `models_of_terms`.
    """
    marks = (mark_of(field, GivenAs) for field in method.own_options().values())
    return tuple(mark.name for mark in marks if mark is not None and mark.names_a_model)


def _as_given(name: str, field: FieldInfo) -> tuple[str, Any, Any]:
    """(name, annotation, field) of the hyperparameter that stands for a recipe's option."""
    given = mark_of(field, GivenAs)
    if given is not None:
        description = given.description or field.description
        return given.name, given.annotation, Field(given.default, description=description)
    mark = mark_of(field, InJobs) or InJobs()
    constraints = _constraints(field, mark)
    annotation: Any = Annotated[field.annotation, *constraints] if constraints else field.annotation
    name = mark.name or name
    schema: Any = mark.schema
    if mark.auto:
        return name, Auto | annotation, Field("auto", description=field.description)
    if field.default_factory is not None:
        factory: Any = field.default_factory
        return name, annotation, Field(default_factory=factory, description=field.description)
    default = ... if field.is_required() else field.default
    default = default if mark.default is None else mark.default
    return name, annotation, Field(default, description=field.description, json_schema_extra=schema)


def _constraints(field: FieldInfo, mark: InJobs) -> list[Any]:
    """The option's constraints, with the mark's narrower bounds in place of its own."""
    narrower = [_BOUNDS[name](bound) for name, bound in mark.bounds.items()]
    replaced = tuple(
        kind
        for side in (_LOWER, _UPPER)
        if any(isinstance(bound, side) for bound in narrower)
        for kind in side
    )
    kept = [
        item
        for item in field.metadata
        if not isinstance(item, (InJobs, *replaced)) and type(item).__module__ != "alignkit.options"
    ]
    return [*kept, *narrower, *([AfterValidator(mark.check)] if mark.check else [])]


class Hyperparameters(_shared_base()):  # type: ignore[misc]  # a base made from the recipe's sections
    """Hyperparameters of a job that every method takes: OpenAI's three, the run's, and the recipe's shared options.

    Values have JSON's types and are not converted.
    """

    model_config = ConfigDict(strict=True)

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = Field(
        "auto", description="passes over the training file"
    )
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = Field(
        "auto", description="rows per optimizer step"
    )
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] = Field(
        "auto", description="factor on the method's learning rate"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="the learning rate itself, in place of learning_rate_multiplier"
    )
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="number of optimizer steps; overrides n_epochs"
    )
    max_length: Auto | Annotated[int, Field(ge=16, le=131_072)] = Field(
        "auto", description="maximum tokens of prompt and answer together; longer rows are cut"
    )
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="steps over which the learning rate rises from 0"
    )
    eval_interval: Auto | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        "auto", description="steps between evaluations of the validation file"
    )
    checkpoint_interval: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="steps between checkpoints; default: one per epoch"
    )
    save_total_limit: Annotated[int, Field(ge=1, le=100)] = Field(
        10, description="checkpoints that are kept: the newest ones and the best"
    )
    on_collapse: Literal["warn", "stop", "rollback"] = Field(
        "warn", description="what the collapse guard does when the answers collapse"
    )
    trained_weights: Literal["lora", "all"] = Field("lora", description="train LoRA adapters, or all weights")
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = Field(16, description="rank of the LoRA adapters")
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | None = Field(
        None, description="the adapters are scaled by lora_alpha / lora_rank; default: 2 x lora_rank"
    )

    elastic: Elastic = Field(
        None, description="formats that the adapter will be served in, such as [nf4, int8, fp8]"
    )
    after: Annotated[list[Step], Field(max_length=4)] | None = Field(
        None, description="steps after training, in order, such as [{type: interpolate, amount: 0.5}]"
    )
    chat_template: Annotated[str, Field(pattern=NAMED)] | None = Field(
        None,
        description="name of a chat template that ships with TRL, or of the server's own, in place of the model's",
    )
    columns: Annotated[dict[str, str], Field(max_length=32)] | None = Field(
        None, description="the files' own keys and what the forms call them, such as {question: prompt}"
    )
    skip_bad: bool | Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="bad rows that may be left out: a number of rows, below 1 a share of them, true for a tenth",
    )
    validation_split: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="share of the training file's prompts that is held out, in place of a validation file",
    )

    @model_validator(mode="after")
    def _no_adapter_options_without_lora(self) -> Self:
        of_adapters = {name for name in type(self).model_fields if name.startswith("lora_")} | {
            "quantization"
        }
        given = of_adapters & self.model_fields_set
        if self.trained_weights == "all" and given:
            names = ", ".join(sorted(given))
            raise ValueError(
                f"{names}: only allowed with trained_weights 'lora', found trained_weights 'all'"
            )
        return self

    @model_validator(mode="after")
    def _one_learning_rate(self) -> Self:
        if self.learning_rate is not None and self.learning_rate_multiplier != "auto":
            raise ValueError("learning_rate: expected without learning_rate_multiplier, found both")
        return self


def models_of_terms(given: Any) -> list[str]:
    """Return the names of the service's models in a job's list of terms."""
    return _named_in_terms(given, lambda mark: mark.names_a_model)


def files_of_terms(given: Any) -> list[str]:
    """Return the ids of files in a job's list of terms."""
    return _named_in_terms(given, lambda mark: mark.names_a_file)


def _named_in_terms(given: Any, wanted: Callable[[GivenAs], bool]) -> list[str]:
    found: list[str] = []
    for one in given or ():
        for field in terms.get(one["type"]).own_options().values():
            mark = mark_of(field, GivenAs)
            value = one[mark.name] if mark is not None and wanted(mark) else None
            found += value if isinstance(value, list) else [value] if value is not None else []
    return found


class _AsGiven(Section):
    """Base of a term's options in a job: JSON's types, not converted."""

    model_config = ConfigDict(strict=True)


@cache
def term_hyperparameters(term: type[terms.Term]) -> type[Section]:
    """The options of a term that a job may set, as a pydantic model."""
    fields: dict[str, Any] = {"type": (term.model_fields["type"].annotation, ...)}
    for name, field in term.own_options().items():
        if in_jobs(field):
            given, annotation, info = _as_given(name, field)
            fields[given] = (annotation, info)
    return create_model(f"{term.__name__}Term", __base__=_AsGiven, __doc__=term.summary(), **fields)


def _terms_field(kinds: tuple[type[terms.Term], ...]) -> tuple[Any, Any]:
    """(annotation, field) of the list of terms that a job may add to its loss."""
    arms = tuple(term_hyperparameters(kind) for kind in kinds)
    one: Any = Annotated[reduce(or_, arms), Field(discriminator="type")] if len(arms) > 1 else arms[0]
    listed = Annotated[list[one], Field(max_length=MOST_TERMS)] | None
    return listed, Field(None, description="what is added to the method's loss, such as {type: robust}")


@cache
def hyperparameters_of(method: type[Method]) -> type[Hyperparameters]:
    """The hyperparameters that a job of the method takes, as a pydantic model."""
    fields: dict[str, Any] = {}
    for name, field in method.own_options().items():
        if in_jobs(field):
            given, annotation, info = _as_given(name, field)
            fields[given] = (annotation, info)
    if fitting := terms.fitting(method):
        fields[TERMS] = _terms_field(tuple(fitting.values()))
    if issubclass(method, PairMethod):
        fields[TUNE] = (Tune, Field(None, description="options that the run tunes by itself, such as [beta]"))
    made: type[Hyperparameters] = create_model(
        f"{method.__name__}Hyperparameters",
        __base__=Hyperparameters,
        __doc__=f"Hyperparameters of a {method.model_fields['type'].default} job.",
        **fields,
    )
    return made
