"""Garbage while a process starts."""

import gc
from collections.abc import Iterator
from importlib import metadata

import pytest

from alignkit import startup


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    frozen = gc.get_freeze_count()
    yield
    gc.enable()
    if not frozen:
        gc.unfreeze()


def test_nothing_is_collected_until_the_process_has_started() -> None:
    startup.begin()
    assert not gc.isenabled()
    startup.end()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000


def test_installed_packages_are_listed_once_until_the_process_has_started() -> None:
    as_ever = metadata.packages_distributions
    startup.begin()
    listed = metadata.packages_distributions()
    assert metadata.packages_distributions() is listed
    startup.end()
    assert metadata.packages_distributions is as_ever
    assert listed == as_ever()


def test_a_program_that_paused_nothing_keeps_its_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze() -> None:
        raise AssertionError("frozen")

    monkeypatch.setattr(gc, "freeze", freeze)
    startup.end()
    assert gc.isenabled()
