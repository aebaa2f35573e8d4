"""The bytes of a project's stored log-probs under references.

Revision 0012, after 0011.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column; the sweeper measures."""
    op.add_column("projects", sa.Column("reference_bytes", INTEGER, server_default="0", nullable=False))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("projects", "reference_bytes")
