"""The tree under test: its own code is imported, by the tests and by every process they start."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "server")])
"""`alignkit` lies in the root, `alignkit_server` in `server/`."""
