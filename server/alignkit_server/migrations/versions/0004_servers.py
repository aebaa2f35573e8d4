"""Servers that share the database, and indexes for projects with many jobs.

Revision 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the table and the indexes."""
    op.create_table(
        "servers",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", INTEGER, nullable=False),
        sa.Column("started", sa.Float(), nullable=False),
        sa.Column("beat_at", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_servers"),
    )
    for column in ("turn", "seq"):
        op.create_index(f"ix_jobs_project_id_{column}", "jobs", ["project_id", column])


def downgrade() -> None:
    """Drop the table and the indexes."""
    for column in ("seq", "turn"):
        op.drop_index(f"ix_jobs_project_id_{column}", "jobs")
    op.drop_table("servers")
