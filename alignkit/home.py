"""The folder in which the service keeps its models, jobs and keys on this machine."""

import os
from pathlib import Path

DEFAULT_HOME = Path("~/.alignkit")


def service_home(given: Path | None = None) -> Path:
    """The folder, absolute: `given`, else ALIGNKIT_HOME, else ~/.alignkit."""
    home = given or Path(os.environ.get("ALIGNKIT_HOME", DEFAULT_HOME))
    return home.expanduser().resolve()
