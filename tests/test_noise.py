"""Warnings of other libraries that nobody can act on are dropped; all others are kept."""

import logging

import pytest

from alignkit.noise import NOISE, drop_noise


@pytest.mark.parametrize("name", NOISE)
def test_only_the_known_message_is_dropped(name: str) -> None:
    drop_noise()
    logger, heard = logging.getLogger(name), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        logger.warning(f"{NOISE[name]}: %s", "why")
        logger.warning("something else")
    finally:
        logger.removeHandler(handler)
    assert "something else" in heard
    assert not [message for message in heard if message == f"{NOISE[name]}: why"]


def test_filters_are_added_once() -> None:
    drop_noise()
    drop_noise()
    assert all(len(logging.getLogger(name).filters) == 1 for name in NOISE)
