"""Evals, their runs and rows.

Revision 0013, after 0012.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _owned(table: str, *columns: sa.schema.SchemaItem) -> None:
    """Make a table of rows that a project owns."""
    op.create_table(
        table,
        sa.Column("seq", INTEGER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("created_at", INTEGER, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("seq", name=f"pk_{table}"),
        sa.UniqueConstraint("id", name=f"uq_{table}_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=f"fk_{table}_project_id_projects"),
    )
    op.create_index(f"ix_{table}_project_id", table, ["project_id"])


def upgrade() -> None:
    """Make the tables."""
    _owned(
        "evals",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("data_source_config", sa.JSON(), nullable=False),
        sa.Column("testing_criteria", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True),
    )
    _owned(
        "eval_runs",
        sa.Column("eval_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("data_source", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("total", INTEGER, nullable=False),
        sa.Column("tally", sa.JSON(), nullable=False),
        sa.Column("disk_bytes", INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["eval_id"], ["evals.id"], name="fk_eval_runs_eval_id_evals", ondelete="CASCADE"
        ),
    )
    for column in ("eval_id", "status"):
        op.create_index(f"ix_eval_runs_{column}", "eval_runs", [column])
    _owned(
        "eval_items",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("number", INTEGER, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("item", sa.JSON(), nullable=False),
        sa.Column("given", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("sample", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("results", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["eval_runs.id"], name="fk_eval_items_run_id_eval_runs", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("run_id", "number", name="uq_eval_items_run_id_number"),
    )


def downgrade() -> None:
    """Remove them."""
    for table in ("eval_items", "eval_runs", "evals"):
        op.drop_table(table)
