"""The description is true at every bound, and for many more requests than tests/server/test_openapi.py makes.

Collecting this file takes more than a minute, since it makes requests of every route's bounds.
tests/server/conftest.py leaves it out where slow tests are not wanted.
"""

from typing import Any

import pytest
from hypothesis import settings

from tests.server.test_openapi import BASE, check, load, start

description = load("examples", "coverage", "fuzzing")


@pytest.fixture(scope="module")
def one_of_everything(tmp_path_factory: pytest.TempPathFactory) -> None:
    start(tmp_path_factory.mktemp("home"))


@pytest.mark.slow
@description.parametrize()
@settings(BASE, max_examples=200)
def test_the_description_is_true(case: Any, one_of_everything: None) -> None:
    check(case)
