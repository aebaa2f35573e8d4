"""Checks of an eval and of a run before they are stored: references, models, rows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter

from alignkit_server.chat.structured import check_schema
from alignkit_server.errors import ApiError
from alignkit_server.evals.graders import AnyGrader, Criterion, Grader, LabelModel, ScoreModel
from alignkit_server.evals.references import ITEM, SAMPLE, TemplateError, references
from alignkit_server.evals.rows import require_storable
from alignkit_server.evals.schemas import Completions, CustomConfig, EvalRequest, ItemInput

_GRADERS: TypeAdapter[list[AnyGrader]] = TypeAdapter(list[Criterion])


def graders_of(stored: Sequence[dict[str, Any]]) -> Sequence[Grader]:
    """The graders of a stored eval."""
    return _GRADERS.validate_python(stored)


def check_criteria(request: EvalRequest) -> None:
    """Refuse (400) graders of the same name, and references that no row can fill."""
    names = [one.name for one in request.testing_criteria]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise _refused(
                f"testing_criteria.{number}.name", f"expected a name of its own, found {name!r} twice"
            )
    for number, grader in enumerate(request.testing_criteria):
        for option, text in grader.texts():
            place = f"testing_criteria.{number}.{option}"
            _check_references(place, text, request.data_source_config)


def check_prompt(source: Completions, config: CustomConfig) -> None:
    """Refuse (400) a prompt that refers to anything but the rows' items."""
    without_sample = config.model_copy(update={"include_sample_schema": False})
    place = "data_source.input_messages"
    if isinstance(source.input_messages, ItemInput):
        text = f"{{{{{source.input_messages.item_reference}}}}}"
        _check_references(f"{place}.item_reference", text, without_sample, "a prompt can refer to item only")
        return
    for number, message in enumerate(source.input_messages.template):
        for text in message.texts():
            at = f"{place}.template.{number}.content"
            _check_references(at, text, without_sample, "a prompt can refer to item only")


def check_answer_form(given: dict[str, Any] | None) -> None:
    """Refuse (400) a `response_format` that the engine would refuse for every row."""
    if given is not None:
        param = "data_source.sampling_params.response_format"
        require_storable(param, given)
        check_schema(param, given)


def judges_of(graders: Iterable[Grader]) -> Iterator[tuple[str, str]]:
    """(parameter, model) of every grader that a model judges."""
    for number, grader in enumerate(graders):
        if isinstance(grader, LabelModel | ScoreModel):
            yield f"testing_criteria.{number}.model", grader.model


def needs_sample(graders: Iterable[Grader]) -> bool:
    """Whether a grader refers to `sample`."""
    texts = (text for grader in graders for _, text in grader.texts())
    return any(path[0] == SAMPLE for text in texts for path in references(text))


def _check_references(
    place: str, text: str, config: CustomConfig, why_no_sample: str = "include_sample_schema is not true"
) -> None:
    try:
        paths = list(references(text))
    except TemplateError as error:
        raise _refused(place, str(error)) from error
    for path in paths:
        if path[0] == SAMPLE and not config.include_sample_schema:
            raise _refused(place, f"sample cannot be referred to: {why_no_sample}")
        if path[0] not in {ITEM, SAMPLE}:
            raise _refused(place, f"expected a reference to item or sample, found {path[0]!r}")
        known = config.item_schema.get("properties")
        if path[0] == ITEM and len(path) > 1 and isinstance(known, dict) and path[1] not in known:
            raise _refused(
                place, f"expected a property of item_schema ({', '.join(known)}), found {path[1]!r}"
            )


def _refused(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}.", param=param, code="invalid_value")
