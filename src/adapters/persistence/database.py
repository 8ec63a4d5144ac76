"""The database file: engines, pragmas, and its schema brought up to date.

SQLite in WAL mode with ``synchronous=FULL``: a commit is on the disk before
anybody hears of it. One connection writes, on the writer's thread; others read
the last committed state beside it.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from adapters.persistence.location import database_file
from adapters.persistence.tables import engine_state, metadata
from domain.errors import Unavailable

SCHEMA = "0009"
"""The revision that this code works with: the head of ``migrations/versions``."""

BUSY_TIMEOUT_S = 10.0
"""How long to wait for somebody who has the file open with another tool."""

READERS = 4
"""Connections that read beside the writer; each costs a page cache."""

READER_CACHE_KIB = 4_000
"""Of each. What it hasn't, the system has: a large card's rows would fill any, and be read once."""


class Database:
    """An SQLite database by its URL (``sqlite:///path``). Blocking; opened once.

    Raises ``InvalidInput`` for a URL of another kind; ``Unavailable``, naming the file,
    if it can't be opened or belongs to a newer version.
    """

    def __init__(self, url: str) -> None:
        self.path = database_file(url)
        self.url = URL.create("sqlite+pysqlite", database=str(self.path))
        self._writer: Engine | None = None
        self._reader: Engine | None = None

    def open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One connection, whoever asks: the writer's thread keeps it, and nobody else writes.
            self._writer = self._engine(poolclass=StaticPool)
            event.listen(self._writer, "begin", _begin_immediate)
            self._migrate()
            # The one that read last is asked first: it has in memory what is asked for again.
            self._reader = self._engine(pool_size=READERS, max_overflow=0, pool_use_lifo=True)
            event.listen(self._reader, "connect", _read_only)
            event.listen(self._reader, "begin", _begin)
        except (OSError, DBAPIError) as error:
            self.close()
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise Unavailable(f"the database {self.path} can't be opened: {reason}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()
        self._reader = self._writer = None

    @property
    def writer(self) -> Engine:
        if self._writer is None:
            raise Unavailable(f"the database {self.path} is closed")
        return self._writer

    @property
    def reader(self) -> Engine:
        if self._reader is None:
            raise Unavailable(f"the database {self.path} is closed")
        return self._reader

    def _engine(self, **pool: Any) -> Engine:
        engine = create_engine(
            self.url,
            **pool,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
        )
        event.listen(engine, "connect", _configure)
        return engine

    def _migrate(self) -> None:
        with self.writer.begin() as connection:
            if _is_empty(connection):
                _create(connection)
                return
            found = _revision(connection)
        if found == SCHEMA:
            return
        # Alembic takes longer to import than to run: only where it is needed.
        from adapters.persistence.migrations import upgrade

        with self.writer.connect() as connection:
            # A table that is made anew must be dropped without what refers to it. SQLite
            # leaves that alone only if it is told so outside a transaction.
            _enforce_references(connection, False)
            with connection.begin():
                upgrade(connection, found, self.path)
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    raise Unavailable(
                        f"the database {self.path} can't be brought up to date: "
                        f"rows of {broken[0][0]} refer to what isn't there"
                    )
            _enforce_references(connection, True)


def _is_empty(connection: Connection) -> bool:
    return connection.execute(text("SELECT 1 FROM sqlite_master")).first() is None


def _create(connection: Connection) -> None:
    """At once what all migrations together make of an empty file, at a tenth of the cost."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(engine_state.insert().values(id=1, facts_floor=0))
    connection.exec_driver_sql(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (SCHEMA,))


def _revision(connection: Connection) -> str | None:
    there = connection.execute(
        text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'")
    ).scalar()
    if not there:
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _enforce_references(connection: Connection, enforced: bool) -> None:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute(f"PRAGMA foreign_keys={'ON' if enforced else 'OFF'}")


def _configure(connection: sqlite3.Connection, record: Any) -> None:
    # The driver's own transaction handling begins late and never IMMEDIATE; ours does.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "temp_store=MEMORY",
        "cache_size=-16000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _read_only(connection: sqlite3.Connection, record: Any) -> None:
    connection.execute("PRAGMA query_only=ON")
    connection.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")


def _begin(connection: Connection) -> None:
    # One snapshot for all that is read together.
    connection.exec_driver_sql("BEGIN")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
