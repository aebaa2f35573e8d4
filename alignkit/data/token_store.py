"""Token sequences of data files, stored by content, so that runs on the same file render its rows once.

A file's entries are in a folder of its name. An entry is named after everything that its sequences depend on: the
file's content, the kind of its rows, the tokenizer, its chat template, and the code that renders. A damaged entry
counts as missing.
"""

import contextlib
import hashlib
import json
import sys
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alignkit import disk, sealed
from alignkit.data.tokens import TokenSequence
from alignkit.sharding import is_main_process

DATED = "strftime_now"
"""Function of chat templates that write today's date. Their sequences are not the same tomorrow, so none are kept."""
_MAGIC = b"alignkit-tokens-1"

Rendered = dict[int, list[TokenSequence]]
"""Number of a row in its file -> its sequences."""


class TokenStore:
    """Entries in `folder`. A store that cannot be read or written is only a slower one.

    `report` gets a sentence about each file whose rows are all stored.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self._report = report

    def of(
        self, file: Path, kind: type, columns: Mapping[str, str] | None, tokenizer: Any
    ) -> "RenderedRows | None":
        """Return the rendered rows of a file, as far as they are stored.

        `kind` is the class of its rows. Returns None if they cannot be stored: the tokenizer cannot be compared, or
        its chat template writes the date.
        """
        known = identity(tokenizer)
        if known is None:
            return None
        facts = [
            disk.digest(file),
            f"{kind.__module__}.{kind.__qualname__}",
            dict(columns or {}),
            known,
            _code(),
            sys.byteorder,
        ]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return RenderedRows(self.folder / file.name / f"{key}.tokens", self._report)


class RenderedRows:
    """The sequences of one file's rows, which `render` completes and `keep` stores."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self._path = path
        self._report = report
        self._found: Rendered = _read(path)
        self.count = 0
        """Number of rows that were rendered because they were not stored."""

    def render(self, number: int, row: Any, tokenizer: Any) -> list[TokenSequence]:
        """Return the sequences of the row with this number. Raises what `row.render` does."""
        if number not in self._found:
            self._found[number] = row.render(tokenizer)
            self.count += 1
        return self._found[number]

    def keep(self) -> None:
        """Store the rows, if any was missing, and else report so. Only rank 0 writes."""
        if not self.count:
            name = self._path.parent.name
            self._report(f"{name}: the token ids of its rows are those that an earlier run stored")
        elif is_main_process():
            with contextlib.suppress(OSError):
                sealed.write(self._path, _MAGIC, self._path.name, _packed(self._found))


def identity(tokenizer: Any) -> list[Any] | None:
    """Return what a tokenizer's token ids depend on; None if that cannot be compared, or changes with the date."""
    template = json.dumps(tokenizer.chat_template)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or DATED in template:
        return None
    return [type(tokenizer).__name__, backend.to_str(), template, str(tokenizer.special_tokens_map)]


def _packed(rows: Rendered) -> bytes:
    """The content of an entry: length of the header, header as JSON, token ids as int32."""
    ids = array("i")
    header = []
    for number, sequences in rows.items():
        for one in sequences:
            ids.extend(one.ids)
        header.append(
            [number, [[one.name, len(one.ids), one.loss_spans, one.cut, one.notes] for one in sequences]]
        )
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + ids.tobytes()


def _read(path: Path) -> Rendered:
    """The rows of an entry; none if it is missing, damaged, or belongs to another name."""
    body = sealed.read(path, _MAGIC, path.name)
    if body is None:
        return {}
    end = 8 + int.from_bytes(body[:8], "little")
    ids = array("i")
    ids.frombytes(body[end:])
    found: Rendered = {}
    at = 0
    for number, sequences in json.loads(body[8:end]):
        found[number] = []
        for name, length, spans, cut, notes in sequences:
            own = ids[at : at + length].tolist()
            at += length
            ends = tuple((first, last) for first, last in spans)
            found[number].append(TokenSequence(name, own, ends, cut=cut, notes=tuple(notes)))
    return found


@cache
def _code() -> str:
    """A digest of the modules that render rows, since another version of alignkit may render them otherwise."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
