"""How a job's result is served.

Revision 0015, after 0014.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; earlier jobs are served as adapters, or with weights of their own."""
    op.add_column("jobs", sa.Column("serving", sa.String(16), server_default="adapter", nullable=False))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("jobs", "serving")
