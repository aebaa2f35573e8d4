"""kill -9 of whatever runs, at moments drawn by chance: no job is lost, none is run twice, none is stuck."""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.runner.killing import Rig

KINDS = ("server", "trainer", "engine")
SEED = int(os.environ.get("ALIGNKIT_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
NewRig = Callable[..., Rig]


@pytest.fixture
def new_rig(tmp_path: Path) -> Iterator[NewRig]:
    """Makes the test's rig; whatever is left of it at the end is ended."""
    print("seed", SEED)
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(tmp_path / "home", **options))
        return made[-1]

    yield make
    for rig in made:
        rig.clean_up()


def storm(rig: Rig, kills: int, choose: random.Random, *, longest_pause: float) -> list[str]:
    """Kill `kills` times, one or several kinds at once, while there is always something to do."""
    jobs: list[str] = []
    for _ in range(kills):
        if len(jobs) < 90 and not any(rig.home.glob("jobs/*/process.json")):
            jobs += rig.submit(3)
        time.sleep(choose.uniform(0, longest_pause))
        for kind in choose.sample(KINDS, choose.choice((1, 1, 2, 3))):
            rig.kill(kind, choose)
    return jobs


def test_a_few_kills(new_rig: NewRig) -> None:
    choose = random.Random(SEED)
    rig = new_rig(training_slots="2", training_restarts="20")
    jobs = rig.submit(3)
    for kinds in (("trainer",), ("server", "trainer"), ("server", "engine"), ("server",)):
        time.sleep(choose.uniform(0, 1.5))
        for kind in kinds:
            rig.kill(kind, choose)
    rig.finish(jobs)
    rig.check(jobs)
    rig.stop()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fifty_kills(new_rig: NewRig) -> None:
    choose = random.Random(SEED)
    rig = new_rig(training_slots="3", training_restarts="100")
    jobs = storm(rig, 50, choose, longest_pause=6.0)
    rig.finish(jobs, 600)
    rig.check(jobs)
    rig.stop()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_servers_of_one_database_killed_in_turn(new_rig: NewRig, postgres_url: str) -> None:
    rig = new_rig(servers=2, database_url=postgres_url, training_slots="2")
    for server in rig.servers:
        rig.wait(server.ready, "both servers answer")
    jobs = []
    for server in rig.servers:
        more = rig.submit(2)
        rig.wait(lambda: any(rig.home.glob("jobs/*/process.json")), "something trains")
        server.kill()
        rig.finish(more)  # by the other one
        jobs += more
        server.start()
        rig.wait(server.ready, "the killed server is back")
    rig.check(jobs)
    rig.stop()
