"""A job's data files: found, read and checked, and the lengths of their rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit import estimate
from alignkit.data.dataset import skipped_share
from alignkit.data.validation import FileReport, overlap
from alignkit.errors import DataError, ModelError
from alignkit.jobspec import ResolveFile
from alignkit.methods import Hyperparameters
from alignkit.recipe import Recipe
from alignkit_server.children import work
from alignkit_server.errors import ApiError
from alignkit_server.files.repository import FileRepository
from alignkit_server.files.schemas import FINE_TUNE
from alignkit_server.jobs.schemas import JobRequest
from alignkit_server.keys.service import Principal
from alignkit_server.pools.file_check_pool import check_file, on_file
from alignkit_server.services import Services
from alignkit_server.tokenizers import has_tokenizer

SUPERVISED = "supervised"
"""The method if a request names none, as in OpenAI's API, and the method of a term's rows."""
RENDERED_ROWS = 5000
"""Rows of a file rendered before a job is created; the trainer renders all rows before it loads a model."""
SIZED_ROWS = 256
"""Rows of the training file whose lengths decide how many fit into a forward."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that a job can use, and the report on its rows."""

    path: Path
    filename: str
    report: FileReport

    @property
    def kept_rows(self) -> int:
        """Number of rows, without the bad ones that are skipped."""
        return self.report.rows - self.report.bad_rows


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The data files of a job."""

    training: DataFile
    validation: DataFile | None

    def notices(self) -> tuple[str, ...]:
        """Warnings about the files that do not make them invalid."""
        named = [("training", self.training.report)]
        named += [("validation", self.validation.report)] if self.validation else []
        shared = overlap(self.training.report, self.validation.report) if self.validation else []
        notices = [
            (name, notice)
            for name, report in named
            for notice in (
                *([report.headline, *report.findings()] if report.skips_bad else []),
                *report.notices,
            )
        ]
        notices += [("training", notice) for notice in shared]
        return tuple(f"In the {name} file: {notice}" for name, notice in notices)


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for reading a job's files."""

    method: str
    columns: dict[str, str]
    skip_bad: float
    held_out: float
    """The share of the training file that is not trained on."""
    max_line_bytes: int
    quotes: bool
    """Whether an error may quote rows."""

    @classmethod
    def of(cls, method: str, given: Hyperparameters, project: Principal, services: Services) -> "Reading":
        """The options that a job's hyperparameters give."""
        skip_bad, held_out = skipped_share(given.skip_bad or 0), given.validation_split or 0.0
        most = services.settings.max_line_bytes
        return cls(method, given.columns or {}, skip_bad, held_out, most, project.reads_rows)

    def check(self, path: Path, **options: Any) -> FileReport:
        """The report on a file."""
        return check_file(
            path,
            self.method,
            columns=self.columns,
            skip_bad=self.skip_bad,
            max_line_bytes=self.max_line_bytes,
            **options,
        )


class FileChecks:
    """Checks of the files of several jobs: what is read alike is read once."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def checked(
        self, request: JobRequest, reading: Reading, project: Principal, services: Services
    ) -> JobFiles:
        """The result of `checked_files`."""
        key = f"{reading} {request.training_file} {request.validation_file}"
        found: JobFiles = self._once(key, lambda: checked_files(request, reading, project, services))
        return found

    def rendered(self, files: JobFiles, reading: Reading, recipe: Recipe, model: str) -> JobFiles:
        """The result of `rendered_files`."""
        found: JobFiles = self._once(
            f"rendered {reading} {_rendering(recipe)}", lambda: rendered_files(files, reading, recipe, model)
        )
        return found

    def lengths(self, recipe: Recipe, rows: int, model: str) -> estimate.Lengths:
        """The result of `lengths_of`."""
        found: estimate.Lengths = self._once(
            f"lengths {recipe.method.type} {recipe.data.columns} {rows} {_rendering(recipe)}",
            lambda: lengths_of(recipe, rows, model),
        )
        return found

    def _once(self, key: str, find: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]


def _rendering(recipe: Recipe) -> str:
    """What decides how rows are rendered."""
    return f"{recipe.model.path} {recipe.model.chat_template} {recipe.data.max_length}"


def checked_files(request: JobRequest, reading: Reading, project: Principal, services: Services) -> JobFiles:
    """The files that the request names, checked for the method. Raises ApiError that names the parameter."""
    training = _checked("training_file", request.training_file, reading, project, services)
    if request.validation_file is None:
        return JobFiles(training, None)
    return JobFiles(
        training, _checked("validation_file", request.validation_file, reading, project, services)
    )


def _checked(param: str, file_id: str, reading: Reading, project: Principal, services: Services) -> DataFile:
    with services.database.reading() as session:
        file = FileRepository(session, project.project_id).get(file_id, param=param)
    if file.purpose != FINE_TUNE:
        raise ApiError(
            400,
            f"{param}: expected a file of purpose {FINE_TUNE!r}, found {file.purpose!r}.",
            param=param,
            code="invalid_file_purpose",
        )
    path = services.settings.files_dir / file.id
    report = reading.check(path)
    _require_ok(param, file.filename, report, reading)
    return DataFile(path, file.filename, report)


def files_in_terms(project: Principal, services: Services) -> ResolveFile:
    """A function that finds the file of completions that a term names, and checks it."""
    reading = Reading(SUPERVISED, {}, 0, 0, services.settings.max_line_bytes, project.reads_rows)

    def resolve(file_id: str) -> Path:
        try:
            return _checked("file", file_id, reading, project, services).path
        except ApiError as error:
            raise DataError(error.detail.message) from error

    return resolve


def rendered_files(files: JobFiles, reading: Reading, recipe: Recipe, model: str) -> JobFiles:
    """The same files, checked as rendered token ids; of a large file only the first RENDERED_ROWS rows."""
    training = _rendered("training_file", files.training, reading, recipe, model)
    if files.validation is None:
        return JobFiles(training, None)
    return JobFiles(training, _rendered("validation_file", files.validation, reading, recipe, model))


def _rendered(param: str, data: DataFile, reading: Reading, recipe: Recipe, model: str) -> DataFile:
    folder = Path(recipe.model.path)
    with naming_model(folder, model):
        report = reading.check(
            data.path,
            model=(folder, recipe.model.chat_template),
            max_length=recipe.data.max_length,
            max_rendered=RENDERED_ROWS,
        )
    _require_ok(param, data.filename, report, reading)
    return DataFile(data.path, data.filename, report)


def _require_ok(param: str, filename: str, report: FileReport, reading: Reading) -> None:
    if not report.ok:
        shown = report if reading.quotes else report.without_content()
        message = f"The {param.replace('_', ' ')} {filename!r} cannot be used.\n{shown.summary()}"
        raise ApiError(400, message, param=param, code=f"invalid_{param}")


@contextmanager
def naming_model(folder: Path, name: str) -> Iterator[None]:
    """Turn an error of the model in `folder`, which clients call `name`, into a 400."""
    try:
        yield
    except ModelError as error:
        message = f"The model {name!r} cannot render the rows: {error}"
        raise ApiError(400, message.replace(str(folder), name), param="model") from error


def lengths_of(recipe: Recipe, rows: int, model: str) -> estimate.Lengths:
    """Lengths of a sample of the training file's rows; of a larger file, the longest row may fill max_length."""
    data, folder = recipe.data, Path(recipe.model.path)
    if not has_tokenizer(folder):
        return estimate.assumed_lengths(data.max_length, rows)
    which = (max(1, rows // SIZED_ROWS), rows)
    asked = work.Rows(
        recipe.method.type, data.columns, folder, recipe.model.chat_template, data.max_length, which
    )
    with naming_model(folder, model):
        found, sampled = on_file(Path(data.train), work.sample, asked)
    if found is None:
        return estimate.assumed_lengths(data.max_length, rows)
    lengths: estimate.Lengths = found if sampled >= rows else found.bounded(data.max_length)
    return lengths
