"""Turns at an engine: no project gets all of it, and the one with the fewest sequences goes first."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from alignkit_server.limits.turns import Load, Turns, share_of

ONE = Load(1, 100)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def begun(task: "asyncio.Task[None]") -> bool:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task.done()


def ask(turns: Turns, project: str, load: Load = ONE, most: int | None = None) -> "asyncio.Task[None]":
    return asyncio.create_task(turns.take(project, load, most))


@pytest.mark.parametrize(("capacity", "share"), [(1, 1), (2, 1), (4, 3), (16, 14), (20, 18), (256, 224)])
def test_an_eighth_is_left_for_the_others(capacity: int, share: int) -> None:
    assert share_of(capacity) == share


def test_a_project_leaves_a_place_for_another() -> None:
    async def work() -> None:
        turns = Turns(4)
        mine = [ask(turns, "a") for _ in range(10)]
        assert [await begun(task) for task in mine] == [True] * 3 + [False] * 7
        other = ask(turns, "b")
        assert await begun(other)
        turns.release("a", ONE)
        assert [await begun(task) for task in mine] == [True] * 4 + [False] * 6
        for task in mine:
            task.cancel()

    run(work())


def test_the_project_with_the_least_at_work_goes_first() -> None:
    async def work() -> None:
        turns = Turns(4)
        first = [ask(turns, "a") for _ in range(3)]
        ask(turns, "b")
        await asyncio.sleep(0)
        waiting = [ask(turns, "a") for _ in range(3)]
        await asyncio.sleep(0)
        late = ask(turns, "c")
        await asyncio.sleep(0)
        turns.release("a", ONE)
        assert await begun(late)
        assert not await begun(waiting[0])
        assert all(task.done() for task in first)
        for task in waiting:
            task.cancel()

    run(work())


def test_a_large_request_is_not_passed_by_small_ones_for_ever() -> None:
    async def work() -> None:
        turns = Turns(4)
        small = [ask(turns, "a"), ask(turns, "b")]
        await asyncio.gather(*small)
        large = ask(turns, "c", Load(3, 300))
        assert not await begun(large)
        late = ask(turns, "a")
        assert not await begun(late)
        turns.release("a", ONE)
        assert await begun(large)
        late.cancel()

    run(work())


def test_tokens_wait_beyond_the_project_s_limit() -> None:
    async def work() -> None:
        turns = Turns(8)
        await turns.take("a", ONE, 150)
        second = ask(turns, "a", ONE, 150)
        assert not await begun(second)
        assert await begun(ask(turns, "b", ONE, 150))
        turns.release("a", ONE)
        assert await begun(second)

    run(work())


def test_one_that_leaves_gives_its_place_back() -> None:
    async def work() -> None:
        turns = Turns(1)
        await turns.take("a", ONE)
        gone, next_ = ask(turns, "a"), ask(turns, "b")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        turns.release("a", ONE)
        assert await begun(next_)
        turns.release("b", ONE)
        for _ in range(3):
            await turns.take("c", ONE)
            turns.release("c", ONE)

    run(work())


def test_one_that_leaves_as_it_begins_gives_its_place_back() -> None:
    async def work() -> None:
        turns = Turns(1)
        await turns.take("a", ONE)
        next_ = ask(turns, "b")
        await asyncio.sleep(0)
        turns.release("a", ONE)  # b may begin from here on
        next_.cancel()
        await asyncio.gather(next_, return_exceptions=True)
        await turns.take("c", ONE)

    run(work())
