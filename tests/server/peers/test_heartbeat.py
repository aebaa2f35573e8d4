"""Who is taken for dead: nobody for an outage of the database, in which nobody can beat."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from alignkit_server.database import Database
from alignkit_server.migrate import migrate
from alignkit_server.peers import heartbeat
from alignkit_server.peers.heartbeat import GAP_SECONDS, TIMEOUT_SECONDS, Heartbeat
from alignkit_server.tables import Peer


class Clock:
    """The monotonic clock, set by hand."""

    time = 1000.0

    def monotonic(self) -> float:
        return self.time


class Watch:
    """A server that looks after another one of another machine."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.recovered: list[str] = []
        self.database, self.clock = database, clock
        self.other = Heartbeat(database, lambda _: None, anywhere=True)
        self.other.register()
        self.write(host="elsewhere")
        self.heartbeat = Heartbeat(database, self.recovered.extend, anywhere=True)
        self.heartbeat.register()

    def write(self, **values: object) -> None:
        with self.database.writing() as session:
            session.execute(update(Peer).where(Peer.id == self.other.id).values(values))

    def look(self, seconds: float, *, beats: bool = False) -> None:
        """Look every second for so long."""
        for _ in range(int(seconds)):
            self.clock.time += 1
            if beats:
                self.write(beat_at=int(self.clock.time))
            self.heartbeat.look()


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    migrate(url)
    database = Database(url)
    yield Watch(database, clock)
    database.close()


def test_a_silent_server_of_another_machine_is_dead_after_a_while(watch: Watch) -> None:
    watch.look(TIMEOUT_SECONDS, beats=True)
    watch.look(TIMEOUT_SECONDS)
    assert watch.recovered == []
    watch.look(2)
    assert watch.recovered == [watch.other.id]


def test_one_that_signed_off_is_dead_at_once(watch: Watch) -> None:
    watch.look(1)
    watch.other.sign_off()
    watch.look(1)
    assert watch.recovered == [watch.other.id]


def test_after_an_outage_everybody_has_the_whole_time_again(watch: Watch) -> None:
    watch.look(5, beats=True)
    watch.clock.time += 4 * TIMEOUT_SECONDS  # nobody reached the database
    watch.look(TIMEOUT_SECONDS)
    assert watch.recovered == []
    watch.look(5, beats=True)
    assert watch.recovered == []


def test_short_gaps_between_looks_begin_nothing_anew(watch: Watch) -> None:
    for _ in range(int(TIMEOUT_SECONDS / (GAP_SECONDS - 1)) + 2):
        watch.clock.time += GAP_SECONDS - 2
        watch.look(1)
    assert watch.recovered == [watch.other.id]
