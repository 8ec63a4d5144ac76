"""What is finished can be forgotten, the engine's pause is remembered, a step knows its maker.

A job and what its scan found outlive their execution, so they no longer refer to its row.
Executions of one type can be listed without going through all the others.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("job", table_kwargs={"sqlite_autoincrement": True}) as job:
        job.drop_constraint(op.f("fk_job_execution_id"), type_="foreignkey")
    with op.batch_alter_table("card_file") as card_file:
        card_file.drop_constraint(op.f("fk_card_file_execution_id"), type_="foreignkey")
    op.add_column("pipeline_step", sa.Column("spawned_by", sa.String(length=300), nullable=True))
    op.create_index(
        "ix_pipeline_execution_pipeline_type_id",
        "pipeline_execution",
        ["pipeline_type", "id"],
        unique=False,
    )
    engine_state = op.create_table(
        "engine_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("held_at", sa.DateTime(), nullable=True),
        sa.Column("facts_floor", ID, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_engine_state")),
    )
    op.bulk_insert(engine_state, [{"id": 1, "held_at": None, "facts_floor": 0}])
