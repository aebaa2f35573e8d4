"""The peak of a job's memory.

Revision 0011, after 0010.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column; of earlier jobs the peak is not known."""
    op.add_column("jobs", sa.Column("peak_bytes", INTEGER, nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("jobs", "peak_bytes")
