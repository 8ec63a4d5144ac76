"""The statements of every transition, as SQL and tuples.

SQLAlchemy puts the parameters of each row together anew whenever a statement is
executed, and for a transition's few small rows that takes longer than SQLite takes
to write them. So the handful of statements on the hot path are written out once,
from the tables, and the driver is handed tuples whose values are written already
(``rows.py``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from adapters.persistence.tables import iso

_json = msgspec.json.Encoder()

# Before it takes a value that is no plain int, float or str, the driver asks round for an
# adapter, and to find that there is none takes longer than to write the value. A quarter
# of a transition's values are None. These two answer at once with what would be written anyway.
sqlite3.register_adapter(type(None), lambda none: none)
sqlite3.register_adapter(bool, int)


def json_text(value: object) -> str:
    return _json.encode(value).decode()


def time_text(value: datetime | None) -> str | None:
    return None if value is None else iso(value)


class Statement:
    """SQL whose parameters are given by position."""

    def __init__(self, sql: str) -> None:
        self.sql = sql

    @classmethod
    def insert(cls, table: Table, columns: Sequence[str]) -> Statement:
        names, values = ", ".join(_named(table, columns)), ", ".join("?" * len(columns))
        return cls(f"INSERT INTO {table.name} ({names}) VALUES ({values})")  # noqa: S608 - ours

    @classmethod
    def update(cls, table: Table, columns: Sequence[str], where: Sequence[str]) -> Statement:
        """Its parameters are the values of ``columns``, then those of ``where``."""
        changes = ", ".join(f"{name} = ?" for name in _named(table, columns))
        condition = " AND ".join(f"{name} = ?" for name in _named(table, where))
        return cls(f"UPDATE {table.name} SET {changes} WHERE {condition}")  # noqa: S608 - ours

    def execute(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """Execute it for each row. How many rows of the table it has met."""
        # The driver's own cursor: SQLAlchemy's way there takes longer than to write the few
        # rows of a lonely transition, and all that it would add here is its kind of error.
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(self.sql, rows)
            return cursor.rowcount
        except sqlite3.Error as error:
            raise DBAPIError.instance(self.sql, None, error, sqlite3.Error) from error
        finally:
            cursor.close()


def _named(table: Table, columns: Sequence[str]) -> Sequence[str]:
    return [f'"{table.c[name].name}"' for name in columns]
