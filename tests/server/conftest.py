"""One service for all tests of the API; every test is a project of its own."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import create_engine, text

from tests.server.disk import mounted
from tests.server.postgres import postgres
from tests.server.support import Running, serve

_projects = itertools.count(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the file whose collection alone takes a minute, where its tests are not wanted."""
    slow = collection_path.name == "test_openapi_bounds.py"
    return True if slow and "not slow" in config.getoption("markexpr") else None


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def project() -> str:
    return f"project-{next(_projects)}"


@pytest.fixture
def key(service: Running, project: str) -> str:
    return service.new_key(project)


@pytest.fixture
def client(service: Running, key: str) -> Iterator[OpenAI]:
    with service.client(key) as client:
        yield client


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite'}"
        return
    url = request.getfixturevalue("postgres_url")
    yield url
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB."""
    with mounted(tmp_path / "disk", 40) as folder:
        yield folder
