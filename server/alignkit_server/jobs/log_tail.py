"""The end of a job's training log: a bounded part of it, without the server's paths and secrets."""

import os
import re
import stat
import sys
from pathlib import Path

from alignkit.redaction import scrub_paths
from alignkit.tracking import without_secrets
from alignkit_server.redaction import without_keys

MAX_LINES = 1000
MAX_BYTES = 512 * 2**10
"""How much of a log is read at most."""
LINE_CHARACTERS = 4000
"""A longer line is cut."""
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
"""A terminal's control sequence, such as a colour or a window title."""


def log_tail(log: Path, lines: int, root: Path) -> tuple[list[str], bool]:
    """The last `lines` lines of the log, oldest first, and whether there are earlier ones; none without a log.

    `root` is the service's home, which the lines do not show. A progress bar is one line, as it was drawn last.
    """
    data, whole = _end(log, MAX_BYTES)
    if (
        whole and len(data) < MAX_BYTES
    ):  # the sweeper keeps the end of a long log as `<log>.1` and empties the log
        cut, _ = _end(log.with_name(f"{log.name}.1"), MAX_BYTES - len(data))
        data, whole = cut + data, not cut
    if not whole:
        data = data.partition(b"\n")[2]  # half a line could hold half a secret, which nobody would recognise
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    shown = [_last_drawn(line) for line in _ESCAPE.sub("", text).removesuffix("\n").split("\n")]
    found = _redacted("\n".join(shown), root).split("\n") if text else []
    return [_short(line) for line in found[-lines:]], not whole or len(found) > lines


def _end(path: Path, most: int) -> tuple[bytes, bool]:
    """The last bytes of a file, at most `most`, and whether that is all of it; nothing of what is no plain file.

    The run's process writes in the folder, so a link there could lead anywhere.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b"", True
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return b"", True
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        start = max(0, status.st_size - most)
        file.seek(start)
        return file.read(most), start == 0


def _last_drawn(line: str) -> str:
    """What a terminal would show of a line that returns to its beginning, without control characters."""
    drawn = [part for part in line.split("\r") if part.strip()]
    return "".join(c for c in drawn[-1] if c.isprintable() or c == "\t") if drawn else ""


def _redacted(text: str, root: Path) -> str:
    # Known folders first: their names may have spaces, where scrub_paths ends.
    for place in (root, Path.home(), Path(sys.prefix)):
        if place != Path("/"):
            text = text.replace(f"{place}/", "/")
    return without_keys(scrub_paths(without_secrets(text)))


def _short(line: str) -> str:
    return line if len(line) <= LINE_CHARACTERS else f"{line[: LINE_CHARACTERS - 1]}…"
