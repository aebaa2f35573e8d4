"""Publishes fully trained weights to where their own engine serves them: {home}/weights/{model}/.

Publishing is atomic. Files are hard-linked instead of copied where possible, because a full checkpoint is as large
as its model.
"""

import os
import shutil
from pathlib import Path

from alignkit.disk import open_to_readers
from alignkit.errors import ModelError
from alignkit.models.trainable import config_of
from alignkit_server.engines.errors import AdapterError
from alignkit_server.engines.serving import mark
from alignkit_server.settings import Settings

SERVED = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "README.md",
)
"""Files that an engine reads; a checkpoint also holds the optimizer state."""


def weights_folder(settings: Settings, model_name: str) -> Path:
    """The folder that the model is served from."""
    return settings.weights_dir / file_name(model_name)


def stored_dtype(folder: Path) -> str:
    """The dtype of the weights in `folder`, by its config.json; float32 if that does not say."""
    try:
        config = config_of(folder)
    except ModelError:
        return "float32"
    text = config.get("text_config")
    found = config.get("dtype") or config.get("torch_dtype") or (text or {}).get("dtype")
    return str(found or "float32").removeprefix("torch.")


def file_name(model_name: str) -> str:
    """A model's name as a file name, without colons, which many programs interpret. Unique through the job's id."""
    return model_name.replace(":", "_")


def publish_weights(settings: Settings, source: Path, *, model_name: str, serving: str | None = None) -> Path:
    """Copy or link the model in `source` to the folder it is served from, and return that folder. Idempotent.

    `serving` says how merged weights are served. Raises AdapterError if there are no weights to serve.
    """
    target = weights_folder(settings, model_name)
    if target.exists():
        return target
    if not (source / "config.json").is_file() or not any(source.glob("*.safetensors")):
        raise AdapterError("the model cannot be served: expected config.json and *.safetensors")
    staging = target.with_name(
        f".publishing-{target.name}"
    )  # a fixed name: the next attempt replaces an interrupted one
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for path in {path for pattern in SERVED for path in source.glob(pattern)}:
        _link(path, staging / path.name)
    if serving is not None:
        mark(staging, serving)
    open_to_readers(staging)
    staging.rename(target)
    return target


def unpublish_weights(settings: Settings, *, model_name: str) -> None:
    """Remove the model. Idempotent."""
    shutil.rmtree(weights_folder(settings, model_name), ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # different file systems, or no support for links
        shutil.copyfile(source, target)
