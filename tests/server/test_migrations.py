"""The schema: migrations make exactly what the tables say, once, also when servers start together."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select

from alignkit.data.validation import check_file
from alignkit.jobspec import recipe_for_job
from server.app import open_services
from server.database import open_engine
from server.migrate import migrate, migration_config
from server.settings import Settings
from server.tables import ApiKey, Base


def test_an_empty_database_becomes_what_the_tables_say(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    migrate(url)
    migrate(url)
    with open_engine(url).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []
        tables = set(inspect(connection).get_table_names())
    assert tables == set(Base.metadata.tables) | {"alembic_version"}


def test_it_can_be_taken_back(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'test.sqlite'}", foreign_keys=False)
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), "head")
        command.downgrade(migration_config(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_servers_that_start_together_make_one_key(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)

    def start(_: int) -> int:
        parts = open_services(settings, None, lambda *_: None, check_file, recipe_for_job)
        with parts as services, services.database.reading() as session:
            return session.scalars(select(func.count(ApiKey.id))).one()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == [1] * 4
