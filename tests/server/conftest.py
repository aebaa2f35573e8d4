"""One service for all tests of the API; every test is a project of its own."""

import itertools
from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.server.support import Running, serve

_projects = itertools.count(1)


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
