"""What was computed once and is kept beside the run: JSON Lines files named by what they depend on."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(*parts: Any) -> str:
    """A name for everything in `parts` (JSON values): equal for equal content, 24 hex digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class SampleStore:
    """Files `{name}-{key}.jsonl` in `folder`, each there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, key: str) -> Path:
        """Where the lines of `key` are."""
        return self.folder / f"{name}-{key}.jsonl"

    def read(self, name: str, key: str) -> list[Any] | None:
        """The lines of `key`, or None if they are not there."""
        try:
            with self.path(name, key).open(encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except FileNotFoundError:
            return None

    def write(self, name: str, key: str, lines: Iterable[Any]) -> None:
        """Keep `lines`: temporary file, fsync, rename."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(name, key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
