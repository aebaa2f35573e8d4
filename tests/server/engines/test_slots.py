"""Which engine makes room for which."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from alignkit_server.engines import slots
from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.slots import Slots
from tests.server.engines.support import wait_until


def test_the_engines_of_projects_models_leave_a_place_for_a_base_model() -> None:
    ended: list[str] = []
    places = Slots(2, ended.append, threading.Event(), is_shared=lambda name: name.startswith("base"))
    for name in ("mine", "mine too", "base"):
        places.hold(name)
    places.take("mine", 0)
    with pytest.raises(EngineError, match="in use"):
        places.take("mine too", 0)
    places.take("base", 0)
    assert ended == []
    places.release("mine")
    places.take("base too", 0)
    assert ended == ["mine"]


def test_an_idle_engine_of_a_project_s_model_makes_room_for_another_of_its_kind() -> None:
    ended: list[str] = []
    places = Slots(3, ended.append, threading.Event(), is_shared=lambda name: name.startswith("base"))
    places.take("base", 0)  # idle, and left alone: there is room, but not for this kind
    places.take("mine", 0)
    places.hold("mine too")
    places.take("mine too", 0)
    assert ended == []
    places.take("mine three", 0)
    assert ended == ["mine"]


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds of a turn in these tests."""
    monkeypatch.setattr(slots, "TURN_SECONDS", 0.3)
    monkeypatch.setattr(slots, "WAKE_SECONDS", 0.01)
    return 0.3


def occupied(*users: tuple[str, str]) -> tuple[Slots, list[str]]:
    """Slots that are all taken, by engines that are ready and in use by these projects; and what they end."""
    ended: list[str] = []
    names = list(dict.fromkeys(name for name, _ in users))
    places = Slots(
        len(names), ended.append, threading.Event(), is_shared=lambda name: name.startswith("base")
    )
    for name, project in users:
        places.hold(name, project)
    for name in names:
        places.take(name, 0)
        places.begin_turn(name)
    return places, ended


@pytest.mark.parametrize("users", [[("base", "a"), ("base too", "a")], [("mine", "a")]])
def test_what_one_project_uses_gives_way_after_its_turn_to_another_project(
    users: list[tuple[str, str]], turn: float
) -> None:
    places, ended = occupied(*users)
    places.hold("base of others", "b")
    began = time.monotonic()
    places.take("base of others", 60)
    assert turn <= time.monotonic() - began < 30
    assert ended == [users[0][0]]  # the one that is ready for longest


@pytest.mark.parametrize(
    ("users", "waits"),
    [
        ([("base", "a"), ("base", "b")], "c"),  # several projects use it
        ([("base", "a")], "a"),  # its own project waits
        ([("base", "a")], ""),  # no project waits
        ([("base", "")], "a"),  # no project's use
    ],
)
def test_no_other_engine_in_use_gives_way_and_the_refusal_names_the_setting(
    users: list[tuple[str, str]], waits: str, turn: float
) -> None:
    places, ended = occupied(*users)
    places.hold("base too", waits)
    with pytest.raises(EngineError, match="ALIGNKIT_ENGINE__MAX_ENGINES") as caught:
        places.take("base too", 3 * turn)
    assert (caught.value.code, ended) == ("engine_busy", [])


def test_a_turn_begins_when_the_engine_is_ready(turn: float) -> None:
    ended: list[str] = []
    places = Slots(1, ended.append, threading.Event())
    places.hold("base", "a")
    places.take("base", 0)
    places.hold("base too", "b")
    with pytest.raises(EngineError):
        places.take("base too", 2 * turn)
    places.begin_turn("base")
    places.take("base too", 60)
    assert ended == ["base"]


def test_the_slot_that_was_waited_for_is_not_taken_by_those_who_gave_it_up(turn: float) -> None:
    order: list[str] = []
    stopping = threading.Event()

    def stop(name: str) -> None:
        order.append(name)
        again.start()  # a request of the first project, which comes while its engine ends

    def ask_again() -> None:
        with contextlib.suppress(EngineError):
            places.take("base", 60)

    places = Slots(1, stop, stopping)
    again = threading.Thread(target=ask_again)
    places.hold("base", "a")
    places.take("base", 0)
    places.begin_turn("base")
    places.hold("base too", "b")
    places.take("base too", 60)
    assert list(places._taken) == ["base too"]
    assert order == ["base"]
    stopping.set()
    again.join(10)
    assert not again.is_alive()


def test_a_free_slot_is_the_one_of_those_who_wait_for_longest(turn: float) -> None:
    places, ended = occupied(("base", "a"))
    places.hold("mine", "a")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(places.take, "mine", 60)
        wait_until(lambda: "mine" in places._waiting)
        with places._changed:  # nobody else moves meanwhile
            places.release("base", "a")
            with pytest.raises(EngineError):
                places.take("base of others", -1)
        first.result(10)
    assert (list(places._taken), ended) == (["mine"], ["base"])
    assert not places._waiting


def test_a_projects_models_that_may_not_have_the_last_slot_let_a_base_model_pass(turn: float) -> None:
    places, _ = occupied(("base", "a"), ("mine", "a"))
    places.hold("mine too", "a")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(places.take, "mine too", 60)
        wait_until(lambda: "mine too" in places._waiting)
        places.release("base", "a")
        places.take("base of others", 0)
        places.release("mine", "a")
        first.result(10)
    assert set(places._taken) == {"base of others", "mine too"}
