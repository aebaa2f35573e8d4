"""The schema: migrations make exactly what the tables say, once, also when servers start together."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, func, insert, inspect, select, text

from alignkit.errors import AlignkitError
from alignkit_server.app import open_services
from alignkit_server.database import Database, open_engine
from alignkit_server.main import serve
from alignkit_server.migrate import check_queue, migrate, migration_config
from alignkit_server.settings import Settings
from alignkit_server.tables import ApiKey, Base, Job, Project

OWNED = {"project_id": "proj_a", "created_at": 1}
JOB = OWNED | {
    "base_model": "tiny",
    "training_file": "file-a",
    "seed": 1,
    "method_type": "f_dpo",
    "hyperparameters": {},
    "recipe": {},
    "result_files": [],
}


def test_an_empty_database_becomes_what_the_tables_say(database_url: str) -> None:
    migrate(database_url)
    migrate(database_url)
    engine = open_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []
        tables = set(inspect(connection).get_table_names())
    engine.dispose()
    assert tables == set(Base.metadata.tables) | {"alembic_version"}


def test_it_can_be_taken_back(database_url: str) -> None:
    engine = open_engine(database_url, foreign_keys=False)
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), "head")
        command.downgrade(migration_config(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_a_database_of_the_first_schema_keeps_its_keys_and_jobs(database_url: str) -> None:
    engine = open_engine(database_url, foreign_keys=False)
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), "0001")
        old = MetaData()
        old.reflect(connection)
        keys = [{"id": f"key_{n}", "hash": f"hash {n}"} | OWNED for n in range(3)]
        jobs = [{"id": f"ftjob-{n}", "status": "queued"} | JOB for n in range(3)]
        connection.execute(insert(old.tables["projects"]), {"id": "proj_a", "name": "mine", "created_at": 1})
        connection.execute(insert(old.tables["api_keys"]), keys)
        connection.execute(insert(old.tables["jobs"]), jobs)
    engine.dispose()
    migrate(database_url)
    database = Database(database_url)
    with database.reading() as session:
        scopes = [key.scopes for key in session.scalars(select(ApiKey).order_by(ApiKey.seq))]
        turns = [job.turn for job in session.scalars(select(Job).order_by(Job.seq))]
        assert session.scalars(select(Project)).one().limits is None
    database.close()
    assert scopes == [["read", "train", "inference", "admin"], *[["read", "train", "inference"]] * 2]
    assert turns == sorted(turns)
    assert None not in turns


def test_what_jobs_ran_before_is_kept(database_url: str) -> None:
    engine = open_engine(database_url, foreign_keys=False)
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), "0004")
        old = MetaData()
        old.reflect(connection)
        times = [("queued", None, None), ("running", 50, None), ("failed", 50, 80), ("cancelled", None, 80)]
        jobs = [
            {"id": f"ftjob-{n}", "status": status, "started_at": start, "finished_at": end} | JOB
            for n, (status, start, end) in enumerate(times)
        ]
        connection.execute(insert(old.tables["projects"]), {"id": "proj_a", "name": "mine", "created_at": 1})
        connection.execute(insert(old.tables["jobs"]), jobs)
    engine.dispose()
    migrate(database_url)
    database = Database(database_url)
    with database.reading() as session:
        query = select(Job.running_since, Job.run_seconds).order_by(Job.seq)
        assert session.execute(query).all() == [(None, 0), (50, 0), (None, 30), (None, 0)]
    database.close()


def test_earlier_jobs_count_the_gpus_of_their_recipe(database_url: str) -> None:
    engine = open_engine(database_url, foreign_keys=False)
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), "0009")
        old = MetaData()
        old.reflect(connection)
        recipes: list[dict[str, object]] = [{}, {"training": {"devices": 1}}, {"training": {"devices": 4}}]
        jobs = [
            {"id": f"ftjob-{n}", "status": "queued"} | JOB | {"recipe": recipe}
            for n, recipe in enumerate(recipes)
        ]
        connection.execute(insert(old.tables["projects"]), {"id": "proj_a", "name": "mine", "created_at": 1})
        connection.execute(insert(old.tables["jobs"]), jobs)
    engine.dispose()
    migrate(database_url)
    database = Database(database_url)
    with database.reading() as session:
        assert session.scalars(select(Job.gpus).order_by(Job.seq)).all() == [1, 1, 4]
    database.close()


def test_servers_that_start_together_make_one_key(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)

    def start(_: int) -> int:
        parts = open_services(settings, None, lambda *_: None)
        with parts as services, services.database.reading() as session:
            return session.scalars(select(func.count(ApiKey.id))).one()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == [1] * 4


def test_a_newer_database_is_refused_with_a_sentence(database_url: str) -> None:
    migrate(database_url)
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    engine.dispose()
    with pytest.raises(AlignkitError, match="last used by a newer alignkit: its schema is '9999_future'"):
        migrate(database_url)


def test_a_damaged_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "test.sqlite"
    file.write_bytes(b"no database at all" * 500)
    with pytest.raises(AlignkitError, match=r"is damaged .*: restore a backup"):
        migrate(f"sqlite:///{file}")


@pytest.mark.parametrize("damaged", ["jobs", "events", "alembic_version", "ix_events_job_id"])
def test_a_database_with_a_damaged_table_or_index_is_refused_with_a_sentence(
    tmp_path: Path, damaged: str
) -> None:
    file = tmp_path / "test.sqlite"
    migrate(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (damaged,)).fetchone()[
            0
        ]
    migrate(f"sqlite:///{file}")
    pages = file.read_bytes()
    file.write_bytes(pages[: size * (root - 1)] + b"\xff" * size + pages[size * root :])
    with pytest.raises(AlignkitError, match=r"test.sqlite is damaged \(.+\): restore a backup"):
        migrate(f"sqlite:///{file}")


@pytest.mark.parametrize("whole", [False, True])
def test_a_damaged_queue_is_refused_with_a_sentence(tmp_path: Path, whole: bool) -> None:
    file = tmp_path / "dbos.sqlite"
    check_queue(file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE workflows (name TEXT)")
        connection.executemany("INSERT INTO workflows VALUES (?)", [("x" * 900,)] * 100)
        connection.commit()
    check_queue(file)
    pages = file.read_bytes()
    file.write_bytes(b"no database at all" * 500 if whole else pages[:8192] + b"\xff" * 4096 + pages[12288:])
    with pytest.raises(AlignkitError, match=r"dbos.sqlite is damaged \(.+\): restore a backup"):
        check_queue(file)


def test_a_start_over_a_damaged_queue_ends_with_the_sentence(tmp_path: Path) -> None:
    (tmp_path / "dbos.sqlite").write_bytes(b"no database at all" * 500)
    with pytest.raises(AlignkitError, match=r"dbos.sqlite is damaged"):
        serve(Settings(home=tmp_path, port=0))


def test_a_database_that_is_away_is_refused_with_a_sentence_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(AlignkitError, match="cannot be used: ") as caught:
        migrate(f"postgresql+psycopg://me:secret@/alignkit?host={tmp_path}")
    assert "secret" not in str(caught.value)
