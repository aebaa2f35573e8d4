"""Copies a run's events.jsonl into the ledger: complete lines only, each once, also across restarts."""

import json
import time
from pathlib import Path
from typing import Any

import structlog

from alignkit.run.folder import RunFolder
from alignkit_server.runner.ledger import JobLedger

log = structlog.get_logger()


class EventFollower:
    """Follows one job's events, starting with the first line that the ledger does not have."""

    def __init__(self, ledger: JobLedger, job_id: str, folder: RunFolder) -> None:
        self._ledger = ledger
        self._job_id = job_id
        self._path: Path = folder.events
        self._line = 0
        self._offset = 0
        self._stored = ledger.source_lines(job_id)

    def read(self) -> None:
        """Store every complete line that is not stored yet."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return
        whole = chunk[: chunk.rfind(b"\n") + 1]
        for raw in whole.splitlines():
            if self._line >= self._stored:
                self._store(raw)
            self._line += 1
        self._offset += len(whole)

    def _store(self, raw: bytes) -> None:
        try:
            event = json.loads(raw)
        except ValueError:
            log.warning("unreadable event", job_id=self._job_id, line=self._line)
            return
        data: dict[str, Any] = event.get("data") or {}
        if event["level"] == "error" and "code" in data:
            return  # why the run failed: the job's own last event says it
        if event["type"] == "checkpoint":
            self._ledger.add_checkpoint(
                self._job_id,
                step=data["step"],
                model_name=None,
                metrics=data.get("metrics") or {},
                path=data["path"],
            )
        left = data.get("seconds_remaining")
        if left is not None:
            self._ledger.set_fields(self._job_id, estimated_finish=int(time.time()) + int(left))
        self._ledger.add_event(
            self._job_id,
            level=event["level"],
            message=event["message"],
            type="metrics" if event["type"] == "metrics" else "message",
            data=data,
            created_at=event["created_at"],
            source_line=self._line,
        )
