"""The GPUs of a job, by which its time counts.

Revision 0010, after 0009.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column; earlier jobs have as many as their recipe says."""
    op.add_column("jobs", sa.Column("gpus", INTEGER, server_default="1", nullable=False))
    jobs = sa.table("jobs", sa.column("recipe", sa.JSON), sa.column("gpus"))
    devices = jobs.c.recipe["training"]["devices"].as_integer()
    op.execute(jobs.update().where(devices > 1).values(gpus=devices))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("jobs", "gpus")
