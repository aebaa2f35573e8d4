"""Tokenizers of models on this server, cached until their folders change."""

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from alignkit.data.tokens import chat_tokenizer

_LOADING = Lock()


def tokenizer_at(folder: Path, chat_template: str | None = None) -> Any:
    """The tokenizer of the model in `folder`. Raises ModelError if it is missing or has no chat template.

    `chat_template` is a file, or the name of one of TRL's templates, in place of the model's own.
    """
    files = (folder / "config.json", Path(chat_template or ""))
    changed = tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)
    with _LOADING:  # two threads cannot import transformers at once; and load nothing twice
        return _load(folder, chat_template, changed)


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` contains a tokenizer, judged by the names of its files."""
    return any(folder.glob("tokenizer*"))


@lru_cache(maxsize=8)
def _load(folder: Path, chat_template: str | None, _changed: tuple[int, ...]) -> Any:
    return chat_tokenizer(folder, chat_template, field="model")
