"""The places in which sample events are sent: few for each project, so that its endpoints hold up only itself."""

from collections import defaultdict
from dataclasses import dataclass, field

from anyio import CapacityLimiter

AT_ONCE = 4
LOOKUPS = 2


@dataclass(frozen=True, slots=True)
class Places:
    """One project's. A look-up of a name takes a thread, sending takes none."""

    sending: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(AT_ONCE))
    lookups: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LOOKUPS))


class Samples:
    """Every project's."""

    def __init__(self) -> None:
        self._places: dict[str, Places] = defaultdict(Places)

    def of(self, project_id: str) -> Places:
        """The project's places."""
        return self._places[project_id]
