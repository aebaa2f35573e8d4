"""Tokenizers of models on this server, cached until their folders change."""

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from alignkit.data.tokens import load_tokenizer

_LOADING = Lock()


def tokenizer_at(folder: Path) -> Any:
    """The tokenizer of the model in `folder`. Raises ModelError if it is missing or has no chat template."""
    config = folder / "config.json"
    changed = config.stat().st_mtime_ns if config.exists() else 0
    with _LOADING:  # two threads cannot import transformers at once; and load nothing twice
        return _load(folder, changed)


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` contains a tokenizer, judged by the names of its files."""
    return any(folder.glob("tokenizer*"))


@lru_cache(maxsize=8)
def _load(folder: Path, _changed: int) -> Any:
    return load_tokenizer(folder)
