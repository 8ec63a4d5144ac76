"""A card's generations, and what a scan found of it in the ledger.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column(
        "job", sa.Column("card_generation", sa.Integer(), nullable=False, server_default="1")
    )
    op.add_column("job", sa.Column("intake", sa.JSON(), nullable=True))
