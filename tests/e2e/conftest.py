"""A running service for each file of these tests."""

from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the base model `tiny`; when it has stopped, nothing that it started is left."""
    service = Service(tmp_path_factory.mktemp("home")).prepare().start()
    try:
        yield service
    finally:
        children = psutil.Process(service.process.pid).children(recursive=True) if service.process else []
        service.stop()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, f"left behind: {alive}"
