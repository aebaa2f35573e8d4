"""Wider columns for sealed signing secrets.

Revision 0007, after 0006. The secrets themselves are sealed by the server when it starts, because it has the key;
see `alignkit_server.webhooks.signing`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COLUMNS = {"secret": False, "old_secret": True}
"""Column -> whether it is nullable."""


def upgrade() -> None:
    """Widen the columns: a sealed secret is three times as long."""
    with op.batch_alter_table("webhook_endpoints") as table:
        for column, nullable in COLUMNS.items():
            table.alter_column(
                column, existing_type=sa.String(64), type_=sa.Text(), existing_nullable=nullable
            )


def downgrade() -> None:
    """Narrow the columns. Sealed secrets do not fit and cannot be opened here, so all endpoints are deleted."""
    op.execute("DELETE FROM webhook_deliveries")
    op.execute("DELETE FROM webhook_endpoints")
    with op.batch_alter_table("webhook_endpoints") as table:
        for column, nullable in COLUMNS.items():
            table.alter_column(
                column, existing_type=sa.Text(), type_=sa.String(64), existing_nullable=nullable
            )
