"""Removes what vLLM compiled for models that are gone, and for those not started for longest beyond a limit."""

import shutil
from pathlib import Path

import structlog

from alignkit_server.engines.engine import OWNER_MARK
from alignkit_server.settings import Settings
from alignkit_server.storage.runs import bytes_on_disk

log = structlog.get_logger()


def sweep_caches(settings: Settings) -> None:
    """Remove folders until the rest has `engine.cache_bytes`; never that of an engine that runs."""
    folders = [path for path in settings.engine_caches_dir.glob("*") if not _runs(settings, path.name)]
    known = [path for path in folders if _exists(settings, path.name)]
    for path in set(folders) - set(known):
        _remove(path)
    left = bytes_on_disk([settings.engine_caches_dir])
    for path in sorted(known, key=lambda one: one.stat().st_mtime):
        if left <= settings.engine.cache_bytes:
            return
        left -= bytes_on_disk([path])
        _remove(path)


def _exists(settings: Settings, name: str) -> bool:
    """Whether there is a base model, or a project's own weights, with this file name."""
    return (settings.models_dir / name).is_dir() or (settings.weights_dir / name).is_dir()


def _runs(settings: Settings, name: str) -> bool:
    """Whether an engine of any server has recorded itself as running."""
    return any(path.stem.partition(OWNER_MARK)[0] == name for path in settings.engines_dir.glob("*.json"))


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    log.info("removed what vLLM compiled", model=path.name)
