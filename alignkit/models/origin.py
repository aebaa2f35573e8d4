"""The hub id that an imported base model came from, kept in its folder."""

import json
from pathlib import Path

FILE = "origin.json"


def keep_origin(folder: Path, hub_id: str) -> None:
    """Write the hub id of the model in `folder`."""
    (folder / FILE).write_text(json.dumps({"hub_id": hub_id}), encoding="utf-8")


def origin_in(folder: Path) -> str | None:
    """The hub id of the model in `folder`; None if it was not imported from the hub, or by an earlier version."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8")).get("hub_id")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
