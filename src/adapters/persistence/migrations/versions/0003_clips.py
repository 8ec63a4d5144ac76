"""A file of a scan knows its clip, and what is wrong with it.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("card_file", sa.Column("clip", sa.LargeBinary(), nullable=True))
    op.add_column("card_file", sa.Column("problem", sa.Text(), nullable=True))
