"""A trained model that is taken away: where its base, its adapter, its tokenizer and its card are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import ModelError
from alignkit.home import find_model
from alignkit.models.adapters import CONFIG_FILE
from alignkit.models.chat_templates import FILE as CHAT_TEMPLATE
from alignkit.models.origin import origin_in
from alignkit.models.trainable import ends_in
from alignkit.run.folder import RunFolder, newest

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Source:
    """A trained model in folders on this machine."""

    name: str
    """Under which it is written, such as `smollm2-f_dpo`."""
    folder: Path
    """The adapter, or all weights, and what lies beside them."""
    base: str
    """The folder or hub id of the base model; of a model with all weights trained, its own folder."""
    base_id: str | None = None
    """The hub id of the base model; None if it is not known."""
    base_name: str = ""
    field: str = "model.path"
    """Names the base model in errors."""

    @property
    def is_adapter(self) -> bool:
        """Whether the trained weights are an adapter."""
        return (self.folder / CONFIG_FILE).is_file()

    @property
    def named_base(self) -> str:
        """The hub id of the base model, else its name: never a path, which tells about a machine."""
        return self.base_id or self.base_name or Path(self.base).name

    def tokenizer(self) -> Any:
        """The tokenizer of training, with its chat template. Raises ModelError."""
        from alignkit.models.loading import load_tokenizer  # saves transformers at start-up

        own = any(self.folder.glob("tokenizer*"))
        tokenizer = load_tokenizer(self.folder if own else self.base, field=self.field)
        template = self.folder / CHAT_TEMPLATE
        if template.is_file():
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        return tokenizer

    def ends(self) -> list[int]:
        """The tokens that end an answer, as kept with the base and the trained weights."""
        known = ends_in(Path(self.base))
        return [*known, *(end for end in ends_in(self.folder) if end not in known)]

    def card(self) -> str:
        """The card that training wrote; empty if there is none."""
        path = self.folder / CARD
        return path.read_text(encoding="utf-8") if path.is_file() else ""


def source_at(path: Path, *, step: int | None = None) -> Source:
    """The trained model of a run, or of an unpacked archive. Raises ModelError, which says what is missing.

    `step` selects a checkpoint instead of the result.
    """
    if not path.is_dir():
        raise ModelError(f"there is no folder {path}: expected a run's folder, or an unpacked archive")
    run = newest(path)
    if (run / "recipe.yaml").is_file():
        return _of_run(RunFolder(run), step)
    if step is not None:
        raise ModelError(f"{path} has no recipe.yaml: only a run has checkpoints to choose with --step")
    if (path / CONFIG_FILE).is_file():
        return _of_adapter(path)
    if (path / "config.json").is_file():
        origin = origin_in(path)
        return Source(path.resolve().name, path, str(path), base_id=origin, base_name=path.resolve().name)
    raise ModelError(
        f"{path} has no recipe.yaml, {CONFIG_FILE} or config.json: expected a run's folder, or an unpacked archive"
    )


def adapter_source(name: str, adapter: Path, base: Path) -> Source:
    """The model of an adapter over the base model in the folder `base`."""
    return Source(name, adapter, str(base), base_id=origin_in(base), base_name=base.name, field="base model")


def _of_run(run: RunFolder, step: int | None) -> Source:
    try:
        recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
        base, trains_all = find_model(str(recipe["model"]["path"])), recipe.get("lora", True) is None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{run.recipe} is not the recipe of a run") from error
    result = run.model if trains_all else run.adapter
    folder = result if step is None else run.checkpoints / f"checkpoint-{step}"
    if not folder.is_dir():
        raise ModelError(
            f"{run.path} has no {folder.relative_to(run.path)}: expected a finished run, {_state(run)}"
        )
    name = run.path.resolve().name if step is None else f"{run.path.resolve().name}-step-{step}"
    if trains_all:
        return Source(name, folder, str(folder), base_id=_id_of(base), base_name=Path(base).name)
    return Source(name, folder, base, base_id=_id_of(base), base_name=Path(base).name)


def _state(run: RunFolder) -> str:
    """The state of a run without the wanted weights, as the end of a sentence."""
    result = run.read_result()
    if result is None:
        return "and this one has no result yet"
    error = result.get("error")
    why = f": {error['message']}" if isinstance(error, dict) and "message" in error else ""
    return f"and this one {result.get('status')}{why}"


def _of_adapter(folder: Path) -> Source:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        named = str(config["base_model_name_or_path"] or "")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: {CONFIG_FILE} names no base model") from error
    base = find_model(named)
    if not named or (not Path(base).is_dir() and "/" not in base):
        raise ModelError(
            f"{folder}: its base model {named!r} is not on this machine: import it with `alignkit models import`"
        )
    return Source(folder.resolve().name, folder, base, base_id=_id_of(base), base_name=Path(base).name)


def _id_of(base: str) -> str | None:
    folder = Path(base)
    if folder.is_dir():
        return origin_in(folder)
    return base if "/" in base and not base.startswith((".", "/", "~")) else None
