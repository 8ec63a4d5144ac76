"""The names in an execution's data that its trigger said.

Revision ID: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("pipeline_execution", sa.Column("given", sa.JSON(), nullable=True))
