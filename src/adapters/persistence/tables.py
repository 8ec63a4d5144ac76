"""The tables, and the types in which they store what the domain knows.

The execution_data of an execution, its definition and the facts are JSON; card
paths are bytes, since a name on a card need not be text.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import UserDefinedType

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(UserDefinedType[datetime]):
    """An aware time, stored in UTC as ISO 8601 text with microseconds: it sorts as it reads.

    Not the dialect's own DATETIME, which takes a fifth of a transition to write.
    """

    cache_ok = True

    def get_col_spec(self, **more: object) -> str:
        return "DATETIME"

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], str | None]:
        return lambda value: None if value is None else iso(value)

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[str | None], datetime | None]:
        return _time_or_none


@lru_cache(maxsize=1024)
def iso(value: datetime) -> str:
    # Cached, because a transition writes one and the same time into up to eight columns.
    return value.astimezone(UTC).isoformat(timespec="microseconds")


def _time_or_none(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


Id = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts only plain INTEGER keys by itself."""

pipeline_execution = Table(
    "pipeline_execution",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("message_id", String(200), nullable=True),
    Column("pipeline_type", String(64), nullable=False),
    Column("definition", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("job_id", Id, ForeignKey("job.id", use_alter=True), nullable=True),
    Column("execution_data", JSON, nullable=False),
    Column("error_message", Text, nullable=True),
    Column("warnings", JSON, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("card_key", Text, nullable=True),
    Column("given", JSON, nullable=True),
    Column("paused_at", UtcDateTime, nullable=True),
    Column("rerun_of", Id, nullable=True),
    Column("version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    Column("completed_at", UtcDateTime, nullable=True),
    Column("updated_at", UtcDateTime, nullable=False),
    Index("ix_pipeline_execution_status_id", "status", "id"),
    Index("ix_pipeline_execution_message_id", "message_id"),
    Index("ix_pipeline_execution_pipeline_type_id", "pipeline_type", "id"),
    Index(
        "uq_pipeline_execution_active_card",
        "card_key",
        unique=True,
        sqlite_where=text("card_key IS NOT NULL AND status IN ('pending', 'running')"),
    ),
    sqlite_autoincrement=True,
)

trigger_message = Table(
    "trigger_message",
    metadata,
    Column("message_id", String(200), primary_key=True),
    Column("execution_id", Id, ForeignKey("pipeline_execution.id"), nullable=False, index=True),
    Column("contents_hash", String(64), nullable=False),
)

pipeline_step = Table(
    "pipeline_step",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("execution_id", Id, ForeignKey("pipeline_execution.id"), nullable=False),
    Column("step_name", String(64), nullable=False),
    Column("step_key", String(300), nullable=False),
    Column("status", String(16), nullable=False),
    Column("required", Boolean, nullable=False),
    Column("depends_on", JSON, nullable=False),
    Column("after", JSON, nullable=False),
    Column("params", JSON, nullable=False),
    Column("output_data", JSON, nullable=True),
    Column("checkpoint", JSON, nullable=True),
    Column("error_message", Text, nullable=True),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("takeovers", Integer, nullable=False),
    Column("worker_id", String(200), nullable=True),
    Column("progress", Float, nullable=False),
    Column("not_before", UtcDateTime, nullable=True),
    Column("waived", Boolean, nullable=False),
    Column("lease_expires_at", UtcDateTime, nullable=True),
    Column("spawned_by", String(300), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("queued_at", UtcDateTime, nullable=True),
    Column("started_at", UtcDateTime, nullable=True),
    Column("completed_at", UtcDateTime, nullable=True),
    UniqueConstraint("execution_id", "step_key"),
    Index(
        "ix_pipeline_step_running",
        "execution_id",
        sqlite_where=text("status = 'running'"),
    ),
    sqlite_autoincrement=True,
)

pipeline_event = Table(
    "pipeline_event",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("execution_id", Id, ForeignKey("pipeline_execution.id"), nullable=False),
    Column("type", String(64), nullable=False),
    Column("step_key", String(300), nullable=True),
    Column("data", JSON, nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    Index("ix_pipeline_event_execution_id_id", "execution_id", "id"),
    sqlite_autoincrement=True,
)

job = Table(
    "job",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("execution_id", Id, nullable=False, unique=True),  # which may be forgotten by now
    Column("name", String(200), nullable=False, unique=True),
    Column("card_identity", Text, nullable=False),
    Column("card_label", Text, nullable=False),
    Column("card_volume", Boolean, nullable=False),
    Column("card_generation", Integer, nullable=False, server_default="1"),
    Column("status", String(16), nullable=False),
    Column("file_count", Integer, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("intake", JSON, nullable=True),
    Column("verdict", JSON, nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("completed_at", UtcDateTime, nullable=True),
    sqlite_autoincrement=True,
)

card_file = Table(
    "card_file",
    metadata,
    Column("execution_id", Id, primary_key=True),
    Column("path", LargeBinary, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("clip", LargeBinary, nullable=True),
    Column("problem", Text, nullable=True),
)

imported_file = Table(
    "imported_file",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("card_identity", Text, nullable=False),
    Column("relative_path", LargeBinary, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("hash_name", String(16), nullable=False),
    Column("hash", String(128), nullable=False),
    Column("further_hashes", JSON, nullable=True),
    Column("job_id", Id, ForeignKey("job.id"), nullable=False, index=True),
    UniqueConstraint(
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

imported_copy = Table(
    "imported_copy",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("imported_file_id", Id, ForeignKey("imported_file.id"), nullable=False),
    Column("destination", Text, nullable=False),
    Column("path", LargeBinary, nullable=False),
    Column("verified_at", UtcDateTime, nullable=False),
    Column("cold", Boolean, nullable=True),
    UniqueConstraint("imported_file_id", "destination", "path"),
    sqlite_autoincrement=True,
)

destination_disk = Table(
    "destination_disk",
    metadata,
    Column("destination", Text, primary_key=True),
    Column("mount_point", LargeBinary, nullable=False),
)
"""mount_point: of what the destination lay on when it was last used."""

engine_state = Table(
    "engine_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("held_at", UtcDateTime, nullable=True),
    Column("facts_floor", Id, nullable=False),
)
"""One row, whose id is 1. facts_floor: every fact that is gone has this id or a smaller one."""

token = Table(
    "token",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(100), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=True),
    Column("last_used_at", UtcDateTime, nullable=True),
    sqlite_autoincrement=True,
)
"""A revoked one's row is gone."""
