"""Fixtures of tests whose servers, trainers and databases are killed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.postgres import Postgres, postgres_server
from tests.server.runner.killing import Rig


@pytest.fixture
def new_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes the test's rig; whatever is left of it at the end is ended."""
    made: list[Rig] = []

    def make(home: Path = tmp_path / "home", **options: Any) -> Rig:
        made.append(Rig(home, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.clean_up()


@pytest.fixture
def database() -> Iterator[Postgres]:
    """A server of its own, since it will be killed."""
    with postgres_server() as server:
        yield server
