"""Fully trained weights where an engine of their own serves them: {home}/weights/{model}/.

They are put there whole or not at all; files are linked, not copied, where the file system can, since a checkpoint of
all weights is as large as its model.
"""

import os
import shutil
from pathlib import Path

from alignkit_server.engines.errors import AdapterError
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
)
"""What a server of the model reads; a checkpoint holds the optimizer's state besides."""


def weights_folder(settings: Settings, model_name: str) -> Path:
    """Where the model of that name is served from."""
    return settings.weights_dir / file_name(model_name)


def file_name(model_name: str) -> str:
    """A model's name as a file's: colons mean something to too many programs. Still unique, for the job's id is."""
    return model_name.replace(":", "_")


def publish_weights(settings: Settings, source: Path, *, model_name: str) -> Path:
    """Put the model in `source` where its engine finds it and return that; doing it twice is harmless.

    Raises AdapterError where there are no weights to serve.
    """
    target = weights_folder(settings, model_name)
    if target.exists():
        return target
    if not (source / "config.json").is_file() or not any(source.glob("*.safetensors")):
        raise AdapterError("the model cannot be served: expected config.json and *.safetensors")
    staging = target.with_name(
        f".publishing-{target.name}"
    )  # always the same: one cut short is not left behind
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for path in {path for pattern in SERVED for path in source.glob(pattern)}:
        _link(path, staging / path.name)
    staging.rename(target)
    return target


def unpublish_weights(settings: Settings, *, model_name: str) -> None:
    """Remove the model; harmless where it is not there."""
    shutil.rmtree(weights_folder(settings, model_name), ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
