"""A repeated task outlives its failures, and ends when it is stopped."""

import queue

import pytest

from alignkit_server.repeating import Repeating


def test_a_failure_does_not_end_the_repetition() -> None:
    calls: queue.Queue[int] = queue.Queue()
    outcomes = iter([ValueError("wrong"), OSError(28, "No space left on device"), None])

    def work() -> None:
        calls.put(1)
        outcome = next(outcomes, None)
        if outcome is not None:
            raise outcome

    task = Repeating("test", work, 0.001)
    task.start()
    for _ in range(4):
        calls.get(timeout=30)
    assert not task.is_stopping
    task.stop()
    assert task.is_stopping
    while not calls.empty():
        calls.get()
    with pytest.raises(queue.Empty):
        calls.get(timeout=0.05)


def test_what_was_never_started_stops_at_once() -> None:
    Repeating("test", lambda: None, 1000).stop()
