"""A thread that does one thing again and again until the server stops."""

import threading
from collections.abc import Callable

import structlog

from alignkit_server.outages import described, is_outage

log = structlog.get_logger()


class Repeating:
    """Calls `work` every `seconds`, from its first wait on.

    A call that fails is logged and the next one follows: an outage as a warning, anything else with its traceback.
    """

    def __init__(
        self, name: str, work: Callable[[], object], seconds: float, *, join_seconds: float | None = None
    ) -> None:
        """`join_seconds`: how long `stop` waits for the call at hand; None waits for its end."""
        self._work = work
        self._seconds = seconds
        self._join_seconds = join_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the call at hand. Does nothing if it was never started."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(self._join_seconds)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called, for work of several parts."""
        return self._stopping.is_set()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self._work()
            except Exception as error:
                if is_outage(error):
                    log.warning("task failed; trying again", task=self._thread.name, what=described(error))
                else:
                    log.exception("failed; trying again", task=self._thread.name)
