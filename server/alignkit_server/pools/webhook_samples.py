"""Limits for sending sample events: few at once per project, so that slow endpoints delay only their project."""

from collections import defaultdict
from dataclasses import dataclass, field

from anyio import CapacityLimiter

AT_ONCE = 4
LOOKUPS = 2


@dataclass(frozen=True, slots=True)
class Places:
    """Limits of one project. Looking up a name uses a thread; sending does not."""

    sending: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(AT_ONCE))
    lookups: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LOOKUPS))


class Samples:
    """Limits of all projects."""

    def __init__(self) -> None:
        self._places: dict[str, Places] = defaultdict(Places)

    def of(self, project_id: str) -> Places:
        """The limits of one project."""
        return self._places[project_id]
