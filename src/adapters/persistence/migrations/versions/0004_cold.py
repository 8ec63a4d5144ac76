"""The ledger knows whether a copy was shown to come from its device when it was read back.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("imported_copy", sa.Column("cold", sa.Boolean(), nullable=True))
