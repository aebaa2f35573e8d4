"""Available models: base models are folders, fine-tuned models are rows of the project that made them."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from alignkit.methods import ModelSource
from alignkit.models.chat_templates import FILE as CHAT_TEMPLATE
from alignkit.models.importing import NAME_PATTERN, available
from alignkit.models.trainable import ends_in
from alignkit_server.catalog.repository import FoundModel, ModelRepository, UsableModels
from alignkit_server.database import Database
from alignkit_server.engines.ranks import adapter_rank
from alignkit_server.errors import ApiError
from alignkit_server.settings import Settings
from alignkit_server.tables import FineTunedModel

BASE = "base"
ADAPTER = "adapter"
MERGED = "merged"
"""An adapter that is served as weights of its own; the files of its row are the adapter's."""
FULL = "full"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that can be served: `kind` is base, adapter, merged or full, `owner` the project that made it."""

    name: str
    base_model: str
    kind: str
    created_at: int
    owner: str = "alignkit"
    chat_template: str | None = None
    """The chat template that an adapter was trained with; None if it is that of its base model."""
    stop_token_ids: tuple[int, ...] = ()
    """The tokens that end its answers, beside those of its base model."""
    lora_rank: int = 0
    """The rank of an adapter that is about to answer."""

    @property
    def engine(self) -> str:
        """The model whose engine serves it: the model itself if it has weights of its own, else its base model."""
        return self.name if self.kind in {MERGED, FULL} else self.base_model


@dataclass(frozen=True, slots=True)
class TrainableModel:
    """A model that a job may start from or use as teacher: the name of its base model, and its weights."""

    base_model: str
    source: ModelSource


class ModelCatalog:
    """Finds models by name. Thread-safe."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._folder = settings.models_dir
        self._database = database

    def bases(self) -> list[str]:
        """Names of the base models, sorted."""
        return [name for name in available(self._folder) if NAME_PATTERN.fullmatch(name)]

    def base(self, name: str) -> ResolvedModel | None:
        """The base model with that name, or None."""
        if not NAME_PATTERN.fullmatch(name) or not (self.path(name) / "config.json").is_file():
            return None
        created = int((self.path(name) / "config.json").stat().st_mtime)
        return ResolvedModel(name, base_model=name, kind=BASE, created_at=created)

    def path(self, base: str) -> Path:
        """The folder of a base model."""
        return self._folder / base

    def resolve(self, name: str, project_id: str) -> ResolvedModel:
        """The model with that name, if the project may use it. Otherwise raises ApiError (404) with the reason."""
        base = self.base(name)
        if base is not None:
            return base
        with self._database.reading() as session:
            return fine_tuned(session, name, project_id)

    def trainable(self, name: str, project_id: str) -> TrainableModel:
        """A base model, or the project's fine-tuned model. Raises ApiError (404) with the reason if unavailable."""
        if self.base(name) is not None:
            return TrainableModel(name, ModelSource(str(self.path(name))))
        with self._database.reading() as session:
            model = own_model(session, name, project_id)
        if model.kind == FULL:
            return TrainableModel(model.base_model, ModelSource(model.path, fully_trained=True))
        own = Path(model.path) / CHAT_TEMPLATE
        source = ModelSource(
            str(self.path(model.base_model)), model.path, chat_template=str(own) if own.is_file() else None
        )
        return TrainableModel(model.base_model, source)


def fine_tuned(session: Session, name: str, project_id: str) -> ResolvedModel:
    """The fine-tuned model with that name that the project may use. Raises 404 if missing or not ready."""
    found = _ready(UsableModels(session, project_id).by_name(name), name)
    model = found.model
    resolved = ResolvedModel(name, model.base_model, model.kind, model.created_at, found.owner)
    if model.kind != ADAPTER:
        return resolved
    return replace(
        resolved,
        chat_template=template_of(model.path),
        stop_token_ids=stops_of(model.path),
        lora_rank=adapter_rank(model.path),
    )


@lru_cache(maxsize=256)
def stops_of(folder: str) -> tuple[int, ...]:
    """The end tokens that are kept with an adapter, beside those of its base model."""
    return tuple(ends_in(Path(folder)))


@lru_cache(maxsize=256)
def template_of(folder: str) -> str | None:
    """The chat template saved with an adapter, or None. Cached: published files never change, names are unique."""
    try:
        return (Path(folder) / CHAT_TEMPLATE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def own_model(session: Session, name: str, project_id: str) -> FineTunedModel:
    """The project's own fine-tuned model with that name. Raises 404 if missing or not ready."""
    return _ready(ModelRepository(session, project_id).by_name(name), name).model


def _ready(found: FoundModel | None, name: str) -> FoundModel:
    if found is None:
        raise ApiError(
            404,
            f"The model {name!r} does not exist, or you do not have access to it. "
            "GET /v1/models lists the models that you can use.",
            param="model",
            code="model_not_found",
        )
    if found.status != "succeeded":
        raise ApiError(
            404,
            f"The model {name!r} is not ready: its job {found.model.job_id} is {found.status}.",
            param="model",
            code="model_not_ready",
        )
    return found
