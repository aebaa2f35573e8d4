"""Tokenizers of models on this server, kept while their folders stay as they are."""

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from alignkit.data.tokens import load_tokenizer

_LOADING = Lock()


def tokenizer_at(folder: Path) -> Any:
    """The tokenizer of the model in `folder`; raises ModelError where there is none, or it has no chat template."""
    config = folder / "config.json"
    changed = config.stat().st_mtime_ns if config.exists() else 0
    with _LOADING:  # transformers cannot be imported by two threads at once, and nothing is loaded twice
        return _load(folder, changed)


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer to load, by the names of its files."""
    return any(folder.glob("tokenizer*"))


@lru_cache(maxsize=8)
def _load(folder: Path, _changed: int) -> Any:
    return load_tokenizer(folder)
