"""Multiple users: scopes and expiry of keys, limits of projects, and turns of the projects' jobs.

Revision 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON_OR_NULL = sa.JSON(none_as_null=True)
PROJECT_SCOPES = ["read", "train", "inference"]
ADMIN_SCOPES = [*PROJECT_SCOPES, "admin"]
KEYS = sa.table(
    "api_keys",
    sa.column("seq", INTEGER),
    sa.column("name", sa.String()),
    sa.column("hint", sa.String()),
    sa.column("scopes", sa.JSON()),
)


def upgrade() -> None:
    """Add the columns. The first key becomes an admin key; waiting jobs keep their place in the queue."""
    op.add_column("projects", sa.Column("limits", JSON_OR_NULL, nullable=True))
    added = (
        sa.Column("name", sa.String(64), nullable=True),
        sa.Column("hint", sa.String(8), nullable=True),
        sa.Column("scopes", sa.JSON(), nullable=True),
        sa.Column("expires_at", INTEGER, nullable=True),
    )
    for column in added:
        op.add_column("api_keys", column)
    op.execute(KEYS.update().values(name="", hint="", scopes=PROJECT_SCOPES))
    first = sa.select(sa.func.min(KEYS.c.seq)).scalar_subquery()
    op.execute(KEYS.update().where(KEYS.c.seq == first).values(name="first key", scopes=ADMIN_SCOPES))
    with op.batch_alter_table("api_keys") as keys:
        for column in added[:3]:
            keys.alter_column(column.name, existing_type=column.type, nullable=False)
    op.add_column("jobs", sa.Column("turn", INTEGER, nullable=True))
    op.execute("UPDATE jobs SET turn = seq")  # all jobs are already in the durable queue, or finished
    op.create_index("ix_jobs_turn", "jobs", ["turn"], unique=True)


def downgrade() -> None:
    """Drop the columns."""
    op.drop_index("ix_jobs_turn", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("turn")
    with op.batch_alter_table("api_keys") as keys:
        for name in ("expires_at", "scopes", "hint", "name"):
            keys.drop_column(name)
    with op.batch_alter_table("projects") as projects:
        projects.drop_column("limits")
