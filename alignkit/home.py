"""The folder in which the service keeps its models, jobs and keys on this machine."""

import os
from pathlib import Path

DEFAULT_HOME = Path("~/.alignkit")


def models_dir(home: Path | None = None) -> Path:
    """The folder of imported models under `home` (default: the service's home)."""
    return service_home(home) / "models"


def references_dir(home: Path | None = None) -> Path:
    """The folder of the references' log-probs of recipes' runs under `home` (default: the service's home)."""
    return service_home(home) / "references" / "recipes"


def find_model(name: str) -> str:
    """The folder of the imported model with this name; any other name, folder or hub id is returned unchanged."""
    imported = models_dir() / name
    return str(imported) if "/" not in name and not Path(name).is_dir() and imported.is_dir() else name


def service_home(given: Path | None = None) -> Path:
    """The absolute path of `given`, else of ALIGNKIT_HOME, else of ~/.alignkit."""
    home = given or Path(os.environ.get("ALIGNKIT_HOME", DEFAULT_HOME))
    return home.expanduser().resolve()
