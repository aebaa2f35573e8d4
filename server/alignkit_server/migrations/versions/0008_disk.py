"""Columns for a job's bytes on disk and for when its folder was removed.

Revision 0008, after 0007.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
COLUMNS = ("disk_bytes", "pruned_at")


def upgrade() -> None:
    """Add the columns; the sweeper measures the jobs there are."""
    for column in COLUMNS:
        op.add_column("jobs", sa.Column(column, INTEGER, nullable=True))
    op.create_index("ix_files_expires_at", "files", ["expires_at"])


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_files_expires_at", "files")
    for column in COLUMNS:
        op.drop_column("jobs", column)
