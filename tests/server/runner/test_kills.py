"""kill -9 of whatever runs, at moments drawn by chance: no job is lost, none is run twice, none is stuck.

ALIGNKIT_TEST_SEED repeats what was drawn, and ALIGNKIT_TEST_KILLS sets how many kills the long test has.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.test_methods import CASES
from tests.server.disk import full, mounted
from tests.server.postgres import postgres_server
from tests.server.runner.faults import killed, locked
from tests.server.runner.killing import Rig
from tests.server.support import add_base_model

KINDS = ("server", "trainer", "engine")
SEED = int(os.environ.get("ALIGNKIT_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
KILLS = int(os.environ.get("ALIGNKIT_TEST_KILLS", "200"))
"""Of both databases together."""
NewRig = Callable[..., Rig]


@pytest.fixture(autouse=True)
def told_seed() -> None:
    """Shown where a test fails."""
    print("seed", SEED)


class Storm:
    """Kills, with outages among them, while there is always something to do: jobs of every method in turn."""

    def __init__(
        self, rig: Rig, choose: random.Random, outages: dict[str, Callable[[], AbstractContextManager[None]]]
    ) -> None:
        """`outages`: by name, what makes one; one of `database` kills too."""
        self.rig = rig
        add_base_model(rig.home, "tiny-teacher")
        self.jobs: list[str] = []
        self.kills = dict.fromkeys((*KINDS, *outages), 0)
        self._choose = choose
        self._outages = outages
        self._methods: list[str] = []

    def blow(self, kills: int) -> None:
        """Go on until so many processes were killed."""
        while sum(self.kills[kind] for kind in (*KINDS, "database") if kind in self.kills) < kills:
            self._occupy()
            time.sleep(self._choose.uniform(0, 3))
            if self._choose.random() < 0.2:
                self._outage(self._choose.choice(list(self._outages)))
            else:
                self._kill(self._choose.choice((1, 1, 2, 3)))
        self.rig.revive()

    def _outage(self, name: str) -> None:
        """Have one for seconds, and half of the time kill something in it."""
        with self._outages[name]():
            self.kills[name] += 1
            time.sleep(self._choose.uniform(0, 4))
            if self._choose.random() < 0.5:
                self._kill(1)
                time.sleep(self._choose.uniform(0, 4))

    def _kill(self, count: int) -> None:
        for kind in self._choose.sample(KINDS, count):
            self.kills[kind] += self.rig.kill(kind, self._choose)

    def _occupy(self) -> None:
        """See that at least two jobs train or wait."""
        self.rig.revive()
        trained = sum((self.rig.home / "jobs" / job / "result.json").exists() for job in self.jobs)
        while len(self.jobs) - trained < 2:
            if not self._methods:
                self._methods = self._choose.sample(list(CASES), len(CASES))
            self.jobs += self.rig.wait(self._submitted, "a job is taken")
            self._methods.pop()

    def _submitted(self) -> list[str]:
        """A job of the next method; none while nobody answers, as just after a kill or an outage."""
        method = self._methods[-1]
        try:
            return self.rig.submit(1, name=method, **CASES[method].hyperparameters)
        except (openai.APIConnectionError, openai.InternalServerError, httpx.HTTPError):
            return []


@pytest.fixture(params=["sqlite", "postgres"])
def storm(request: pytest.FixtureRequest, new_rig: NewRig, tmp_path: Path) -> Iterator[Storm]:
    """One server on SQLite, or two on Postgres, on a disk of their own."""
    choose = random.Random(SEED)
    options = {"training_slots": "3", "training_restarts": "1000"}
    with mounted(tmp_path / "disk", 300) as disk:
        outages: dict[str, Callable[[], AbstractContextManager[None]]] = {"disk": lambda: full(disk)}
        if request.param == "sqlite":
            rig = new_rig(disk / "home", **options)
            files = [rig.home / name for name in ("alignkit.sqlite", "dbos.sqlite")]
            yield Storm(rig, choose, outages | {"lock": lambda: locked(*files)})
            return
        with postgres_server() as database:
            rig = new_rig(disk / "home", servers=2, database_url=database.url, **options)
            yield Storm(rig, choose, outages | {"database": lambda: killed(database)})


def test_a_few_kills(new_rig: NewRig) -> None:
    choose = random.Random(SEED)
    rig = new_rig(training_slots="2", training_restarts="20")
    jobs = rig.submit(2)
    for kinds in (("trainer",), ("server", "engine")):
        time.sleep(choose.uniform(0, 1.5))
        for kind in kinds:
            rig.kill(kind, choose)
    rig.finish(jobs)
    rig.check(jobs)
    rig.stop()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills_over_jobs_of_every_method(storm: Storm) -> None:
    storm.blow(KILLS // 2)
    print("kills and outages", storm.kills, "jobs", len(storm.jobs))
    storm.rig.finish(storm.jobs, 600)
    storm.rig.check(storm.jobs)
    storm.rig.stop()


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
