"""The first schema: projects, keys, files, jobs with their events and checkpoints, and models.

Revision 0001, the first.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON_OR_NULL = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "projects",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("created_at", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )
    create_owned(
        "api_keys",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("last_used_at", INTEGER, nullable=True),
        sa.UniqueConstraint("hash", name="uq_api_keys_hash"),
    )
    create_owned(
        "files",
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("expires_at", INTEGER, nullable=True),
    )
    create_jobs()
    create_of_job(
        "events",
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("data", JSON_OR_NULL, nullable=True),
        sa.Column("source_line", INTEGER, nullable=True),
        sa.UniqueConstraint("job_id", "source_line", name="uq_events_job_id_source_line"),
    )
    create_of_job(
        "checkpoints",
        sa.Column("step", INTEGER, nullable=False),
        sa.Column("model_name", sa.String(255), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.UniqueConstraint("job_id", "step", name="uq_checkpoints_job_id_step"),
    )
    create_of_job(
        "models",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("base_model", sa.String(96), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("step", INTEGER, nullable=True),
        sa.UniqueConstraint("name", name="uq_models_name"),
    )


def create_jobs() -> None:
    """Create the table of jobs."""
    create_owned(
        "jobs",
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("base_model", sa.String(96), nullable=False),
        sa.Column("training_file", sa.String(64), nullable=False),
        sa.Column("validation_file", sa.String(64), nullable=True),
        sa.Column("suffix", sa.String(64), nullable=True),
        sa.Column("seed", INTEGER, nullable=False),
        sa.Column("method_type", sa.String(32), nullable=False),
        sa.Column("hyperparameters", sa.JSON(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("metadata", JSON_OR_NULL, nullable=True),
        sa.Column("result_files", sa.JSON(), nullable=False),
        sa.Column("error", JSON_OR_NULL, nullable=True),
        sa.Column("fine_tuned_model", sa.String(255), nullable=True),
        sa.Column("trained_tokens", INTEGER, nullable=True),
        sa.Column("started_at", INTEGER, nullable=True),
        sa.Column("finished_at", INTEGER, nullable=True),
        sa.Column("estimated_finish", INTEGER, nullable=True),
    )
    op.create_index("ix_jobs_status", "jobs", ["status"])


def create_owned(table: str, *parts: Any) -> None:
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
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=f"fk_{table}_project_id_projects"),
    )
    op.create_index(f"ix_{table}_project_id", table, ["project_id"])


def create_of_job(table: str, *parts: Any) -> None:
    """Create a table whose rows belong to a job."""
    create_owned(
        table,
        sa.Column("job_id", sa.String(64), nullable=False),
        *parts,
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=f"fk_{table}_job_id_jobs"),
    )
    op.create_index(f"ix_{table}_job_id", table, ["job_id"])


def downgrade() -> None:
    """Drop all tables."""
    for table in ("models", "checkpoints", "events", "jobs", "files", "api_keys", "projects"):
        op.drop_table(table)
