"""Trainers that wait with a loaded model, so that the next job on the same base model starts to train sooner."""

import logging
import secrets
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.launch import standby_command
from alignkit_server.engines.process import Identity, ManagedProcess
from alignkit_server.executors.environment import NICE, common_environment
from alignkit_server.executors.oom import memory_left

ROOM = 4
"""Free memory that a standby must find, as a multiple of its weights' files, which it may hold as float32."""

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What a standby has loaded: a base model, in a dtype and with an attention implementation."""

    model: str
    dtype: str
    attention: str | None


class Standbys:
    """At most one waiting trainer for each set of leased GPUs; without GPUs, one. Thread-safe.

    A standby holds the weights of a base model and nothing of a job. It ends by itself when its time is over and when
    this server is gone.
    """

    def __init__(self, folder: Path, *, seconds: float, python: str = sys.executable) -> None:
        """Keep identities and logs in `folder`; `seconds` is how long a standby waits for a job."""
        self._folder = folder
        self._seconds = seconds
        self._python = python
        self._lock = threading.Lock()
        self._waiting: dict[frozenset[tuple[str, str]], tuple[Loaded, ManagedProcess]] = {}  # by leased GPUs
        folder.mkdir(parents=True, exist_ok=True)
        for record in folder.glob("*.json"):
            if not (identity := Identity.load(record)) or not identity.owned_by_another():
                _end(ManagedProcess.attach(record, log_path=record.with_suffix(".log")))

    def take(self, recipe: Mapping[str, Any], leased: Mapping[str, str]) -> ManagedProcess | None:
        """A standby for this recipe's model on these GPUs, from now on the caller's; None if there is none."""
        with self._lock:
            wanted = _needed(recipe)
            loaded, process = self._waiting.get(frozenset(leased.items()), (None, None))
            if wanted is None or loaded != wanted or process is None or not process.alive():
                return None
            del self._waiting[frozenset(leased.items())]
            return process

    def prepare(self, recipe: Mapping[str, Any], leased: Mapping[str, str]) -> None:
        """Start a standby for a next job like this one, in place of one for another model."""
        wanted = _needed(recipe)
        if wanted is None or not _has_room(Path(wanted.model)):
            return
        with self._lock:
            loaded, process = self._waiting.pop(frozenset(leased.items()), (None, None))
            if loaded != wanted or process is None or not process.alive():
                _end(process)
                process = self._start(wanted, leased)
            self._waiting[frozenset(leased.items())] = wanted, process

    def _start(self, wanted: Loaded, leased: Mapping[str, str]) -> ManagedProcess:
        record = self._folder / f"{secrets.token_hex(8)}.json"
        return ManagedProcess.start(
            standby_command(*wanted, seconds=self._seconds, python=self._python),
            log_path=record.with_suffix(".log"),
            identity_path=record,
            environment={**common_environment(), **leased},
            cwd=self._folder,
            waits=True,
            nice=NICE,
        )


def _end(process: ManagedProcess | None) -> None:
    if process is not None:
        process.terminate(0)
        process.log_path.unlink(missing_ok=True)


def _needed(recipe: Mapping[str, Any]) -> Loaded | None:
    """What a run of this recipe loads first; None if no standby can have it: on several GPUs, or quantised."""
    model, training = recipe.get("model") or {}, recipe.get("training") or {}
    path, dtype = model.get("path"), model.get("dtype")
    if training.get("devices", 1) > 1 or model.get("quantization") or not (path and dtype):
        return None
    if "auto" in (dtype, model.get("attn_implementation")) or not Path(path).is_dir():
        return None
    return Loaded(path, dtype, model.get("attn_implementation"))


def _has_room(model: Path) -> bool:
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return memory_left() > ROOM * weights
