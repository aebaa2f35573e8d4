"""What vLLM compiles for an engine, kept on disk so that its next start need not compile again.

Each engine has a folder of its own. It holds graphs and kernels of the model's shape, no prompt and no weight; but it
is code, which the next start runs, so no engine of a project's own model shares one with another model.
"""

import os
import shutil
from pathlib import Path

from alignkit_server.engines.weights import file_name
from alignkit_server.settings import Settings


def cache_folder(settings: Settings, model: str) -> Path:
    """The folder of the model's engine."""
    return settings.engine_caches_dir / file_name(model)


def use_cache(settings: Settings, model: str) -> Path:
    """The folder of the model's engine, made if needed, and marked as used now."""
    folder = cache_folder(settings, model)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.utime(folder)
    return folder


def drop_cache(settings: Settings, model: str) -> None:
    """Remove what was kept for a deleted model. Idempotent."""
    shutil.rmtree(cache_folder(settings, model), ignore_errors=True)
