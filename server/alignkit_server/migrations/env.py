"""Alembic's entry point: runs migrations on a given connection, or on the database of the settings."""

from alembic import context
from sqlalchemy import Connection

from alignkit_server.database import open_engine
from alignkit_server.settings import Settings
from alignkit_server.tables import Base


def run(connection: Connection) -> None:
    """Run the requested migrations."""
    sqlite = connection.dialect.name == "sqlite"
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=sqlite)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with open_engine(Settings().sqlalchemy_url, foreign_keys=False).begin() as opened:
        run(opened)
