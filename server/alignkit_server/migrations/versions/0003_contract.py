"""The rest of OpenAI's contract: uploads in parts, checkpoint permissions, webhooks, and pausing jobs.

Revision 0003, after 0002.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables, and the columns for jobs that pause."""
    create_owned(
        "uploads",
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("expires_at", INTEGER, nullable=False),
        sa.Column("file_seconds", INTEGER, nullable=True),
        sa.Column("file_id", sa.String(64), nullable=True),
    )
    create_owned(
        "upload_parts",
        sa.Column("upload_id", sa.String(64), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        foreign("upload_parts", "upload_id", "uploads"),
        indexed=("upload_id",),
    )
    create_owned(
        "checkpoint_permissions",
        sa.Column("model_id", sa.String(64), nullable=False),
        sa.Column("grantee_id", sa.String(64), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        foreign("checkpoint_permissions", "model_id", "models", ondelete="CASCADE"),
        foreign("checkpoint_permissions", "grantee_id", "projects"),
        sa.UniqueConstraint("model_id", "grantee_id", name="uq_checkpoint_permissions_model_id_grantee_id"),
        indexed=("model_id", "grantee_id"),
    )
    create_webhooks()
    op.add_column("jobs", sa.Column("attempt", INTEGER, server_default="1", nullable=False))
    op.add_column("jobs", sa.Column("idempotency_key", sa.String(255), nullable=True))
    op.add_column("jobs", sa.Column("request_hash", sa.String(64), nullable=True))
    op.create_index("uq_jobs_idempotency_key", "jobs", ["project_id", "idempotency_key"], unique=True)


def create_webhooks() -> None:
    """Create the tables of webhooks."""
    create_owned(
        "webhook_endpoints",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.JSON(), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("old_secret", sa.String(64), nullable=True),
        sa.Column("old_secret_until", INTEGER, nullable=True),
        sa.Column("updated_at", INTEGER, nullable=False),
    )
    create_owned(
        "webhook_deliveries",
        sa.Column("endpoint_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("event_type", sa.String(64), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", INTEGER, nullable=False),
        sa.Column("last_answer", sa.Text(), nullable=True),
        foreign("webhook_deliveries", "endpoint_id", "webhook_endpoints", ondelete="CASCADE"),
        foreign("webhook_deliveries", "job_id", "jobs"),
        sa.UniqueConstraint(
            "endpoint_id", "job_id", "event_type", name="uq_webhook_deliveries_endpoint_id_job_id_event_type"
        ),
        indexed=("endpoint_id", "job_id", "status"),
    )


def create_owned(table: str, *parts: Any, indexed: tuple[str, ...] = ()) -> None:
    """Create a table whose rows belong to a project."""
    op.create_table(
        table,
        sa.Column("seq", INTEGER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("created_at", INTEGER, nullable=False),
        *parts,
        sa.PrimaryKeyConstraint("seq", name=f"pk_{table}"),
        sa.UniqueConstraint("id", name=f"uq_{table}_id"),
        foreign(table, "project_id", "projects"),
    )
    for column in ("project_id", *indexed):
        op.create_index(f"ix_{table}_{column}", table, [column])


def foreign(table: str, column: str, target: str, *, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    """A foreign key to another table's id, named by the tables' naming convention."""
    name = f"fk_{table}_{column}_{target}"
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=name, ondelete=ondelete)


def downgrade() -> None:
    """Drop the tables and columns."""
    op.drop_index("uq_jobs_idempotency_key", "jobs")
    for column in ("request_hash", "idempotency_key", "attempt"):
        op.drop_column("jobs", column)
    for table in (
        "webhook_deliveries",
        "webhook_endpoints",
        "checkpoint_permissions",
        "upload_parts",
        "uploads",
    ):
        op.drop_table(table)
