"""Where the disk of each destination is mounted.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "destination_disk",
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("mount_point", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("destination", name=op.f("pk_destination_disk")),
    )
