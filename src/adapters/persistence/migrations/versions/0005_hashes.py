"""An imported file may be known by further hashes, all from the reading that copied it.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("imported_file", sa.Column("further_hashes", sa.JSON(), nullable=True))
