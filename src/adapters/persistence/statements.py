"""The statements of every transition, compiled once.

SQLAlchemy puts the parameters of each row together anew whenever a statement is
executed, and for a transition's few small rows that takes longer than SQLite takes
to write them. So a statement is compiled to its SQL when it is first executed, and
from then on the driver is handed tuples. Which columns there are comes from the
rows, in which order from the SQL, and how a value is written from its column's
type: nothing here knows a table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import JSON, Connection, Insert, Update
from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.exc import DBAPIError

from adapters.persistence.tables import UtcDateTime, iso

Row = Mapping[str, Any]

_json = msgspec.json.Encoder()

# Before it takes a value that is no plain int, float or str, the driver asks round for an
# adapter, and to find that there is none takes longer than to write the value. A quarter
# of a transition's values are None. These two answer at once with what would be written anyway.
sqlite3.register_adapter(type(None), lambda none: none)
sqlite3.register_adapter(bool, int)


def json_text(value: object) -> str:
    return _json.encode(value).decode()


class Statement:
    """An insert or an update whose parameters are named as the keys of its rows."""

    def __init__(self, statement: Insert | Update) -> None:
        self._statement = statement
        self._sql: str | None = None
        self._in_order: Callable[[Row], tuple[Any, ...]]
        self._encoders: list[tuple[int, Callable[[Any], str]]]

    def execute(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Execute it for each row; they all have the same keys. How many it has met."""
        if self._sql is None:
            self._compile(rows[0])
        assert self._sql is not None
        # The driver's own cursor: SQLAlchemy's way there takes longer than to write the few
        # rows of a lonely transition, and all that it would add here is its kind of error.
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(self._sql, [self._tuple(row) for row in rows])
            return cursor.rowcount
        except sqlite3.Error as error:
            raise DBAPIError.instance(self._sql, None, error, sqlite3.Error) from error
        finally:
            cursor.close()

    def _tuple(self, row: Row) -> tuple[Any, ...]:
        values = list(self._in_order(row))
        for position, encode in self._encoders:
            value = values[position]
            if value is not None:
                values[position] = encode(value)
        return tuple(values)

    def _compile(self, row: Row) -> None:
        compiled = self._statement.compile(
            dialect=dialect(), column_keys=list(row), for_executemany=True
        )
        names = compiled.positiontup
        assert names is not None
        encoders = {name: _ENCODERS.get(type(compiled.binds[name].type)) for name in names}
        self._encoders = [
            (position, encode)
            for position, name in enumerate(names)
            if (encode := encoders[name]) is not None
        ]
        self._in_order = itemgetter(*names)
        self._sql = compiled.string


_ENCODERS: Mapping[type, Callable[[Any], str]] = {JSON: json_text, UtcDateTime: iso}
"""How values are written that the driver doesn't take as they are."""
