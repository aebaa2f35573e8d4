"""Results computed once and kept with the run, in JSON Lines files named after what they depend on."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignkit.disk import put


def digest(*parts: Any) -> str:
    """A name for `parts` (JSON values), equal for equal content; 24 hex digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class SampleStore:
    """Files `{name}-{key}.jsonl` in `folder`, each written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, key: str) -> Path:
        """The path of the lines stored under `key`."""
        return self.folder / f"{name}-{key}.jsonl"

    def read(self, name: str, key: str) -> list[Any] | None:
        """The lines stored under `key`, or None."""
        try:
            with self.path(name, key).open(encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except FileNotFoundError:
            return None

    def write(self, name: str, key: str, lines: Iterable[Any]) -> None:
        """Store `lines`, all or none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        put(self.path(name, key), text.encode())
