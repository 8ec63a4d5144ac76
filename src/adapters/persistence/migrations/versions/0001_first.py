"""The first schema.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "pipeline_execution",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("message_id", sa.String(length=200), nullable=True),
        sa.Column("pipeline_type", sa.String(length=64), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("job_id", ID, nullable=True),
        sa.Column("execution_data", sa.JSON(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("card_key", sa.Text(), nullable=True),
        sa.Column("paused_at", sa.DateTime(), nullable=True),
        sa.Column("rerun_of", ID, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("completed_at", sa.DateTime(), nullable=True),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_pipeline_execution_job_id"), use_alter=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pipeline_execution")),
        sa.UniqueConstraint("uuid", name=op.f("uq_pipeline_execution_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_pipeline_execution_message_id", "pipeline_execution", ["message_id"], unique=False
    )
    op.create_index(
        "ix_pipeline_execution_status_id", "pipeline_execution", ["status", "id"], unique=False
    )
    op.create_index(
        "uq_pipeline_execution_active_card",
        "pipeline_execution",
        ["card_key"],
        unique=True,
        sqlite_where=sa.text("card_key IS NOT NULL AND status IN ('pending', 'running')"),
        postgresql_where=sa.text("card_key IS NOT NULL AND status IN ('pending', 'running')"),
    )
    op.create_table(
        "card_file",
        sa.Column("execution_id", ID, nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["pipeline_execution.id"], name=op.f("fk_card_file_execution_id")
        ),
        sa.PrimaryKeyConstraint("execution_id", "path", name=op.f("pk_card_file")),
    )
    op.create_table(
        "job",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("execution_id", ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("card_identity", sa.Text(), nullable=False),
        sa.Column("card_label", sa.Text(), nullable=False),
        sa.Column("card_volume", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("file_count", sa.Integer(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("completed_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["pipeline_execution.id"], name=op.f("fk_job_execution_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("execution_id", name=op.f("uq_job_execution_id")),
        sa.UniqueConstraint("name", name=op.f("uq_job_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_job_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "pipeline_event",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("execution_id", ID, nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("step_key", sa.String(length=300), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["pipeline_execution.id"], name=op.f("fk_pipeline_event_execution_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pipeline_event")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_pipeline_event_execution_id_id", "pipeline_event", ["execution_id", "id"], unique=False
    )
    op.create_table(
        "pipeline_step",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("execution_id", ID, nullable=False),
        sa.Column("step_name", sa.String(length=64), nullable=False),
        sa.Column("step_key", sa.String(length=300), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("required", sa.Boolean(), nullable=False),
        sa.Column("depends_on", sa.JSON(), nullable=False),
        sa.Column("after", sa.JSON(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("output_data", sa.JSON(), nullable=True),
        sa.Column("checkpoint", sa.JSON(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("takeovers", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=200), nullable=True),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("not_before", sa.DateTime(), nullable=True),
        sa.Column("waived", sa.Boolean(), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("queued_at", sa.DateTime(), nullable=True),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("completed_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["pipeline_execution.id"], name=op.f("fk_pipeline_step_execution_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pipeline_step")),
        sa.UniqueConstraint(
            "execution_id", "step_key", name=op.f("uq_pipeline_step_execution_id_step_key")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_pipeline_step_running",
        "pipeline_step",
        ["execution_id"],
        unique=False,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "trigger_message",
        sa.Column("message_id", sa.String(length=200), nullable=False),
        sa.Column("execution_id", ID, nullable=False),
        sa.Column("contents_hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["pipeline_execution.id"],
            name=op.f("fk_trigger_message_execution_id"),
        ),
        sa.PrimaryKeyConstraint("message_id", name=op.f("pk_trigger_message")),
    )
    op.create_index(
        op.f("ix_trigger_message_execution_id"), "trigger_message", ["execution_id"], unique=False
    )
    op.create_table(
        "imported_file",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("card_identity", sa.Text(), nullable=False),
        sa.Column("relative_path", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("hash_name", sa.String(length=16), nullable=False),
        sa.Column("hash", sa.String(length=128), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_imported_file_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_imported_file")),
        sa.UniqueConstraint(
            "relative_path",
            "size_bytes",
            "card_identity",
            "mtime_ns",
            "hash_name",
            "hash",
            name="uq_imported_file_contents",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_imported_file_job_id"), "imported_file", ["job_id"], unique=False)
    op.create_table(
        "imported_copy",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("imported_file_id", ID, nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("verified_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["imported_file_id"],
            ["imported_file.id"],
            name=op.f("fk_imported_copy_imported_file_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_imported_copy")),
        sa.UniqueConstraint(
            "imported_file_id",
            "destination",
            "path",
            name=op.f("uq_imported_copy_imported_file_id_destination_path"),
        ),
        sqlite_autoincrement=True,
    )
    # ### end Alembic commands ###
