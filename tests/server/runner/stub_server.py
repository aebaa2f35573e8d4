"""The real server as a process, but for what takes minutes: `stub_server.py HOME TRAINER`.

Other settings are in the environment, and STUB_BUSY_SECONDS, for which it waits for a locked SQLite. Its engines are
fake, and training runs the program TRAINER in place of Python.
"""

import os
import sys
from pathlib import Path

from alignkit_server import database
from alignkit_server.engines.manager import EngineManager
from alignkit_server.executors.local import LocalExecutor
from alignkit_server.executors.registry import executor_of
from alignkit_server.main import build_app, serve
from alignkit_server.settings import Settings
from tests.server.engines.support import FakeEngines


def main() -> None:
    home, trainer = Path(sys.argv[1]), sys.argv[2]
    database.BUSY_SECONDS = float(os.environ.get("STUB_BUSY_SECONDS", database.BUSY_SECONDS))
    settings = Settings(home=home, port=0, stop_grace_seconds=2)
    fakes = FakeEngines(home, "--canaries", str(settings.jobs_dir))
    engines = EngineManager(settings, build_command=fakes)
    local = LocalExecutor(grace_seconds=2, python=trainer)
    executor = executor_of(settings) if settings.executor == "ray" else local
    serve(settings, build_app(settings, engines, executor))


if __name__ == "__main__":
    main()
