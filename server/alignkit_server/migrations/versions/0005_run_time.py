"""The time a job ran, over all of its attempts.

Revision 0005, after 0004.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the columns; for earlier jobs only their last start and their end are known."""
    op.add_column("jobs", sa.Column("running_since", INTEGER, nullable=True))
    op.add_column("jobs", sa.Column("run_seconds", INTEGER, server_default="0", nullable=False))
    op.execute("UPDATE jobs SET running_since = started_at WHERE status = 'running'")
    op.execute("UPDATE jobs SET run_seconds = finished_at - started_at WHERE finished_at > started_at")


def downgrade() -> None:
    """Drop the columns."""
    op.drop_column("jobs", "run_seconds")
    op.drop_column("jobs", "running_since")
