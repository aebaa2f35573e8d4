"""For all tests: processes they start import this tree; a property is not at fault where the machine is busy."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.tree import PYTHONPATH

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other, and threads would wait in turn
os.environ["HF_HUB_OFFLINE"] = "1"  # a hub that is not there is asked again and again
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PYTHONPATH, os.environ.get("PYTHONPATH")]))
os.environ.setdefault("ALIGNKIT_REPORT", "off")  # tests of reports turn them on; the others need none
os.environ.setdefault("ALIGNKIT_STANDBY_SECONDS", "0")  # most servers of tests train one job
if "ALIGNKIT_HOME" not in os.environ:  # where recipes' runs keep the reference's log-probs
    os.environ["ALIGNKIT_HOME"] = tempfile.mkdtemp(prefix="alignkit-home-")
    atexit.register(shutil.rmtree, os.environ["ALIGNKIT_HOME"], ignore_errors=True)
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

TESTS = Path(__file__).parent
LONGEST = ("e2e", "distributed", "kernels/test_interpreted.py", "test_train.py", "server/runner", "trainers")
"""Files and folders that begin a run, so that none of them is left for one process at its end."""


gc.disable()
"""Until the tests are collected: a fifth of that time would go into looking through what is only imported."""


@pytest.fixture(scope="module")
def without_amx() -> Iterator[None]:
    """A processor on which the choice of precision needs no measurement, whatever the tests run on."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("alignkit.jobspec", "alignkit.estimate.fitting"):
            patch.setattr(f"{module}.has_amx", lambda: False)
        yield


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and only what tests make: looking through all modules costs a sixth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    gc.enable()


def pytest_unconfigure() -> None:
    """Let go of everything, as libraries look for leaks at the end."""
    gc.unfreeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/e2e/test_stranger.py."""
    group = parser.getgroup("the page, by clicks")
    group.addoption(
        "--stranger-model", metavar="FOLDER", help="a model's folder to train instead of a tiny one"
    )
    group.addoption("--stranger-steps", metavar="N", type=int, help="steps of each job on it; default 40")
    group.addoption("--stranger-pictures", metavar="FOLDER", help="where to keep a picture of each step")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first; everything else stays in its order."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(TESTS)
        return next((turn for turn, name in enumerate(LONGEST) if path.is_relative_to(name)), len(LONGEST))

    items.sort(key=place)
