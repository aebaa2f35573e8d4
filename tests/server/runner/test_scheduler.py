"""Projects take turns whatever they queue, on every database, across servers and restarts."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from sqlite3 import OperationalError, connect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, text, update

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.ids import JOB, new_id
from alignkit_server.jobs.queue import places, waiting
from alignkit_server.keys.service import issue_key
from alignkit_server.migrate import migrate
from alignkit_server.runner.dbos import DBOSRunner
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.scheduler import Dispatcher, FairQueue
from alignkit_server.runner.step_services import StepServices
from alignkit_server.settings import Limits, Settings
from alignkit_server.tables import Job, Project
from tests.server.runner.test_workflow import FakeEngines, FakeExecutor
from tests.server.support import wait_until


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    migrate(database_url)
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'alignkit.sqlite'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


def project_of(database: Database, name: str) -> str:
    """The id of the project with that name, created if missing."""
    query = select(Project.id).where(Project.name == name)
    with database.writing() as session:
        found = session.scalar(query)
        if found is None:
            issue_key(session, name)
            found = session.scalars(query).one()
        return found


def queue(database: Database, project: str, count: int = 1) -> list[str]:
    """Ids of new jobs that wait, in order."""
    project_id = project_of(database, project)
    rows = [
        {
            "id": new_id(JOB),
            "project_id": project_id,
            "created_at": now(),
            "status": "queued",
            "base_model": "tiny",
            "training_file": "file-a",
            "seed": 1,
            "method_type": "f_dpo",
            "hyperparameters": {},
            "recipe": {},
            "result_files": [],
        }
        for _ in range(count)
    ]
    with database.writing() as session:
        session.execute(insert(Job), rows)
    return [row["id"] for row in rows]  # type: ignore[misc]


def turns(database: Database, slots: int = 1, **limits: int) -> FairQueue:
    return FairQueue(database, Settings(training_slots=slots, limits=Limits(**limits)))


def start(database: Database, job_id: str) -> None:
    assert JobLedger(database).transition(job_id, "running", only_from=("queued",))


def end(database: Database, job_id: str, status: str = "succeeded") -> None:
    assert JobLedger(database).transition(job_id, status, only_from=("queued", "running"), finished_at=now())


def work_off(database: Database, given_out: FairQueue, count: int) -> list[str]:
    """Start and end `count` jobs, one at a time; in which order."""
    order = []
    for _ in range(count):
        (job_id,) = given_out.take()
        start(database, job_id)
        assert given_out.take() == []
        end(database, job_id)
        order.append(job_id)
    return order


def test_a_thousand_jobs_delay_another_project_s_first_by_one(database: Database) -> None:
    many = queue(database, "many", 1000)
    given_out = turns(database)
    assert work_off(database, given_out, 3) == many[:3]
    (running,) = given_out.take()
    start(database, running)
    (first,) = queue(database, "few")
    assert given_out.take() == []
    end(database, running)
    assert given_out.take() == [first]


def test_projects_take_turns_and_each_one_s_jobs_keep_their_order(database: Database) -> None:
    jobs = {name: queue(database, name, count) for name, count in {"a": 6, "b": 2, "c": 3}.items()}
    order = work_off(database, turns(database), 11)
    owner = {job_id: name for name, ids in jobs.items() for job_id in ids}
    assert "".join(owner[job_id] for job_id in order) == "abcabcacaaa"
    for name, ids in jobs.items():
        assert [job_id for job_id in order if owner[job_id] == name] == ids


def test_slots_are_shared_and_never_exceeded(database: Database) -> None:
    many, few = queue(database, "many", 10), queue(database, "few", 10)
    given_out = turns(database, slots=3)
    taken = given_out.take()
    assert taken == [many[0], few[0], many[1]]
    assert given_out.take() == taken  # until they have started
    for job_id in taken:
        start(database, job_id)
    assert given_out.take() == []
    assert given_out.begun() == taken
    end(database, few[0])
    end(database, many[0], "cancelled")
    assert given_out.take() == [few[1], many[2]]


def test_no_more_turns_are_given_than_what_runs_the_jobs_takes_now(database: Database) -> None:
    jobs, room = queue(database, "a", 4), 0
    given_out = FairQueue(database, Settings(training_slots=3), lambda: room)
    assert given_out.take() == []
    room = 2
    assert given_out.take() == jobs[:2]
    room = 1  # what has its turn keeps it
    assert given_out.take() == jobs[:2]
    room = 9
    assert given_out.take() == jobs[:3]


def test_a_cancelled_job_takes_no_turn(database: Database) -> None:
    first, second = queue(database, "a", 2)
    end(database, first, "cancelled")
    given_out = turns(database)
    assert given_out.take() == [second]
    end(database, second, "cancelled")
    assert given_out.take() == []
    assert queue(database, "a") == list(given_out.take())


def test_a_project_runs_no_more_than_it_may(database: Database) -> None:
    many, few = queue(database, "many", 5), queue(database, "few", 2)
    with database.writing() as session:
        session.execute(update(Project).where(Project.name == "few").values(limits={"jobs_running": 0}))
    given_out = turns(database, slots=4, jobs_running=2)
    assert given_out.take() == many[:2]
    with database.writing() as session:
        session.execute(update(Project).where(Project.name == "few").values(limits={"jobs_running": 5}))
    assert given_out.take() == [*many[:2], *few]


def test_servers_of_one_database_give_a_slot_away_once(database: Database) -> None:
    queue(database, "a", 40)
    queue(database, "b", 40)
    servers = [turns(database, slots=4) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for taken in pool.map(lambda server: server.take(), servers):
            assert len(taken) == 4
    with database.reading() as session:
        assert len(session.scalars(select(Job.turn).where(Job.turn.is_not(None))).all()) == 4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One database for every example of a property."""
    url = f"sqlite:///{tmp_path_factory.mktemp('turns') / 'test.sqlite'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


Arrivals = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=6)


@settings(max_examples=10, deadline=None)
@given(arrivals=Arrivals, slots=st.integers(1, 3))
def test_of_those_that_wait_the_one_whose_last_turn_is_longest_ago_is_next(
    shared: Database, arrivals: list[dict[str, int]], slots: int
) -> None:
    """Whatever arrives while jobs run; from this follows that nobody waits while another is served twice."""
    with shared.writing() as session:
        session.execute(delete(Job))
    given_out = turns(shared, slots)
    order: list[str] = []
    waiting: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    running: list[str] = []

    def last_turn(name: str) -> int:
        return max((turn for turn, served in enumerate(order) if served == name), default=-1)

    def serve() -> None:
        for job_id in given_out.take():
            longest = min(last_turn(name) for name, ids in waiting.items() if ids)
            name = next(name for name, ids in waiting.items() if job_id in ids)
            assert last_turn(name) == longest
            assert waiting[name].pop(0) == job_id
            order.append(name)
            start(shared, job_id)
            running.append(job_id)

    for arrival in arrivals:
        for name, count in arrival.items():
            waiting[name] += queue(shared, name, count)
        serve()
        assert len(running) == slots or not any(waiting.values())
        if running:
            end(shared, running.pop(0))
    while running or any(waiting.values()):
        serve()
        end(shared, running.pop(0))


def test_places_are_the_order_of_the_turns_to_come(database: Database) -> None:
    for name, count in {"a": 4, "b": 2, "c": 1, "d": 1}.items():
        queue(database, name, count)
    given_out = turns(database)
    for done in (0, 2, 1):
        work_off(database, given_out, done)
        told = all_places(database)
        assert list(told.values()) == list(range(1, len(told) + 1))
    (called,) = given_out.take()
    assert all_places(database) == told
    with database.reading() as session:
        last = session.scalars(select(Job).where(Job.id == list(told)[-1])).one()
        assert places(session, [last]) == {last.id: len(told)} == {last.id: waiting(session)}
    assert next(iter(told)) == called
    assert work_off(database, given_out, len(told)) == list(told)


@given(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), max_size=4), st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_places_come_true(shared: Database, arrivals: list[list[int]], done: int) -> None:
    with shared.writing() as session:
        session.execute(delete(Job))
    given_out = turns(shared)
    for counts in arrivals:
        for name, count in zip("abcd", counts, strict=True):
            if count:
                queue(shared, name, count)
        work_off(shared, given_out, min(done, len(all_places(shared))))
    told = all_places(shared)
    assert work_off(shared, given_out, len(told)) == list(told)


def all_places(database: Database) -> dict[str, int]:
    """Every job that waits and its place, in the order of the places."""
    with database.reading() as session:
        told = places(session, session.scalars(select(Job)).all())
    return dict(sorted(told.items(), key=lambda pair: pair[1]))


def test_a_job_is_handed_over_until_it_has_started(sqlite: Database) -> None:
    """The queue may be away when the turn comes, and a server may be killed right after."""
    (job_id,) = queue(sqlite, "a")
    handed: list[str] = []
    away = threading.Event()

    def start_job(job_id: str) -> None:
        handed.append(job_id)
        if not away.is_set():
            raise RuntimeError("the queue is away")
        start(sqlite, job_id)

    dispatcher = Dispatcher(turns(sqlite), start_job)
    dispatcher.start()
    wait_until(lambda: len(handed) >= 2)
    dispatcher.stop()
    before = len(handed)
    away.set()
    again = Dispatcher(turns(sqlite), start_job)
    again.start()
    again.stop()
    assert handed[before:] == [job_id]


class Recorder(FakeExecutor):
    """Runs that end at once; each is started once."""

    def start(self, folder: Path, *, resume: bool) -> None:
        if (folder, resume) not in self.started:
            self.started.append((folder, resume))


def runner_of(tmp_path: Path, database: Database, executor: Any, **options: Any) -> DBOSRunner:
    """The real runner, without training and engines."""
    services = StepServices(
        Settings(home=tmp_path, **options),
        JobLedger(database),
        executor,
        FakeEngines(),  # type: ignore[arg-type]
        threading.Event(),
    )
    return DBOSRunner(services)


def test_the_durable_queue_keeps_the_turns_across_servers(sqlite: Database, tmp_path: Path) -> None:
    many = queue(sqlite, "many", 6)
    executor = Recorder()
    executor.alive = True
    first = runner_of(tmp_path, sqlite, executor)
    first.start()
    try:
        wait_until(lambda: executor.started)
        few = queue(sqlite, "few", 2)
        first.enqueue(few[0])
    finally:
        first.stop()
    with sqlite.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM jobs WHERE turn IS NOT NULL")) == 1
    executor.alive = False
    second = runner_of(tmp_path, sqlite, executor)
    second.start()
    try:
        wait_until(lambda: JobLedger(sqlite).active_jobs() == [])
    finally:
        second.stop()
    started = [folder.name for folder, _ in executor.started]
    assert started == [many[0], few[0], many[1], few[1], *many[2:]]


def test_the_queue_s_own_database_is_probed(sqlite: Database, tmp_path: Path) -> None:
    runner = runner_of(tmp_path, sqlite, Recorder())
    with pytest.raises(OperationalError, match="unable to open"):
        runner.probe()
    with closing(connect(tmp_path / "dbos.sqlite", isolation_level=None)) as writer:
        writer.execute("CREATE TABLE workflow_status (x)")
        runner.probe()
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"):
            runner.probe()
    runner_of(tmp_path / "none", sqlite, Recorder(), database_url="postgresql+psycopg://a").probe()


def needing(database: Database, project: str, gpus: int) -> str:
    """The id of a new job that waits for so many GPUs."""
    (job_id,) = queue(database, project)
    recipe = {"training": {"devices": gpus}}
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(recipe=recipe))
    return job_id


def test_jobs_start_while_there_are_gpus_for_them(sqlite: Database) -> None:
    given_out = FairQueue(sqlite, Settings(training_slots=16), devices=lambda: 8)
    large = [needing(sqlite, "a", 4), needing(sqlite, "b", 4)]
    third = needing(sqlite, "c", 1)
    assert list(given_out.take()) == large
    for job_id in large:
        start(sqlite, job_id)
    assert given_out.take() == []
    end(sqlite, large[0])
    assert given_out.take() == [third]


def test_small_jobs_do_not_starve_one_that_needs_every_gpu(sqlite: Database) -> None:
    given_out = FairQueue(sqlite, Settings(training_slots=16), devices=lambda: 8)
    first = needing(sqlite, "small", 1)
    assert given_out.take() == [first]
    start(sqlite, first)
    large = needing(sqlite, "large", 8)
    later = [needing(sqlite, "small", 1) for _ in range(3)]
    assert given_out.take() == []
    end(sqlite, first)
    assert given_out.take() == [large]
    start(sqlite, large)
    end(sqlite, large)
    assert list(given_out.take()) == later


def test_a_job_that_needs_more_gpus_than_are_left_holds_nobody_up(sqlite: Database) -> None:
    there = [8]
    given_out = FairQueue(sqlite, Settings(training_slots=16), devices=lambda: there[0])
    large, small = needing(sqlite, "large", 8), needing(sqlite, "small", 1)
    there[0] = 7  # a device disappeared
    assert given_out.take() == [small]
    start(sqlite, small)
    end(sqlite, small)
    there[0] = 8
    assert given_out.take() == [large]
