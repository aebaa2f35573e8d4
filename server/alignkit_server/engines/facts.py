"""A description of an engine for those who watch the service."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EngineStatus = Literal["stopped", "starting", "ready", "sleeping", "failed"]
EngineState = Literal["stopped", "starting", "ready", "sleeping", "failed", "external"]


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """An engine's model, state, number of users, and the reason of a failed start."""

    model: str
    status: EngineState
    in_use: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The URL of an engine that does not restart to grow, nor soon make room, until `end` was called, once."""

    url: str
    end: Callable[[], None]


ListEngines = Callable[[], list[EngineFacts]]
