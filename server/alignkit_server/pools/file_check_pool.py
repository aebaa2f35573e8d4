"""Slots for requests that read data files: few, so that they never hold up other requests.

All but small files are read in children (`alignkit_server.children`), which end if the client disconnects. Reports of
checks are kept, because a file never changes under its id.
"""

import asyncio
import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from alignkit.data.validation import FileReport
from alignkit_server.children import work
from alignkit_server.children.runner import ChildRunner
from alignkit_server.limits.turns import end_turn

AT_ONCE = 4
OF_A_PROJECT = 2
"""Fewer than there are, so that one project's files do not keep another's waiting."""
INLINE_BYTES = 256 * 2**10
COMPRESSED = (b"\x1f\x8b", b"PAR1")
"""First bytes of gzip and Parquet files."""
KEPT_CHECKS = 64
KEPT_DIGESTS = 100_000
"""A report with more digests of rendered rows takes too much memory to be kept; the rest of a report is small."""

T = TypeVar("T")


class Bounds(NamedTuple):
    """Limits under which a request reads files."""

    children: ChildRunner
    gone: threading.Event
    """Set once the client has hung up."""
    known: "KnownChecks"


_bounds: ContextVar[Bounds] = ContextVar("bounds")


class KnownChecks:
    """The newest reports, by file and options of the check. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: OrderedDict[object, FileReport] = OrderedDict()

    def get(self, key: object) -> FileReport | None:
        """The report, which is now the newest."""
        with self._lock:
            if key in self._reports:
                self._reports.move_to_end(key)
            return self._reports.get(key)

    def keep(self, key: object, report: FileReport) -> None:
        """Keep the report unless it is large, and drop the oldest."""
        if len(report.digests) + len(report.prompts) > KEPT_DIGESTS:
            return
        with self._lock:
            self._reports[key] = report
            while len(self._reports) > KEPT_CHECKS:
                self._reports.popitem(last=False)


class FileCheckPool:
    """Runs what reads data files, or models, for long, in threads beside those that all routes share."""

    def __init__(
        self, children: ChildRunner, *, at_once: int = AT_ONCE, of_a_project: int = OF_A_PROJECT
    ) -> None:
        self._children = children
        self._known = KnownChecks()
        self._all = CapacityLimiter(at_once)
        self._by_project: dict[str, CapacityLimiter] = defaultdict(lambda: CapacityLimiter(of_a_project))

    async def run(self, project_id: str, work: Callable[[], T], request: Request | None = None) -> T:
        """The result of `work`, run once the project has a slot; waiting for one takes no thread.

        With `request`, the children of `work` end when its client hangs up.
        """
        end_turn()
        gone = threading.Event()
        async with self._by_project[project_id]:
            watching = asyncio.create_task(_hung_up(request)) if request is not None else None
            if watching is not None:
                watching.add_done_callback(lambda _: gone.set())
            token = _bounds.set(Bounds(self._children, gone, self._known))
            try:
                return await to_thread.run_sync(work, limiter=self._all)
            finally:
                _bounds.reset(token)
                if watching is not None:
                    watching.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def on_file(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function` on the file: computed in a child, or in this process for a small file.

    A file is small if it is plain text of at most INLINE_BYTES, which can become neither large nor slow.
    """
    return function(path, *arguments) if _is_small(path) else in_child(function, path, *arguments)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, in a child of the request at hand."""
    bounds = _bounds.get()
    return bounds.children.call(function, *arguments, gone=bounds.gone)


def _is_small(path: Path) -> bool:
    if path.stat().st_size > INLINE_BYTES:
        return False
    with path.open("rb") as file:
        return not file.read(4).startswith(COMPRESSED)


def check_file(
    path: Path,
    method: str,
    *,
    columns: dict[str, str],
    skip_bad: float,
    max_line_bytes: int,
    model: tuple[Path, str | None] | None = None,
    max_length: int | None = None,
    max_rendered: int | None = None,
    max_bytes: int | None = None,
) -> FileReport:
    """The library's check of a file, or its earlier report; with a model's folder and template, of rendered rows."""
    given = {
        "columns": columns,
        "skip_bad": skip_bad,
        "max_line_bytes": max_line_bytes,
        "max_length": max_length,
        "max_rendered": max_rendered,
        "max_bytes": max_bytes,
    }
    options = {name: value for name, value in given.items() if value is not None}
    asked = json.dumps([method, options, model and model[1]], sort_keys=True)
    known, key = _bounds.get().known, (_stamp(path), asked, model and _stamps(model[0]))
    report = known.get(key)
    if report is None:
        report = on_file(path, work.check_file, method, model, options)
        known.keep(key, report)
    return report


def _stamp(path: Path) -> tuple[str, int, int, int]:
    """A stamp that differs between files, and after a change of a file."""
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def _stamps(folder: Path) -> tuple[object, ...]:
    """Stamps of the files of a tokenizer and its chat template."""
    return tuple(
        _stamp(path) for path in sorted(folder.iterdir()) if path.suffix in {".json", ".jinja", ".model"}
    )
