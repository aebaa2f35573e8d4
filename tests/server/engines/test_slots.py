"""Which engine makes room for which."""

import threading

import pytest

from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.slots import Slots


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
