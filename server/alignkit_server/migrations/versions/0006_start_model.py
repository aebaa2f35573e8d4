"""The fine-tuned model that a job starts from.

Revision 0006, after 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; all earlier jobs started from a base model."""
    op.add_column("jobs", sa.Column("start_model", sa.String(255), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("jobs", "start_model")
