"""Tokens on SQLite. Blocking: for threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import RowMapping, bindparam, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from adapters.persistence.batch import Batch
from adapters.persistence.database import Database
from adapters.persistence.executions import SqlExecutions
from adapters.persistence.tables import token
from domain.access import Role, Token
from domain.errors import TokenNotFound, Unavailable


class SqlTokens:
    """Implements ``application.ports.Tokens``."""

    def __init__(self, database: Database, executions: SqlExecutions) -> None:
        self._database = database
        self._executions = executions

    def add(
        self,
        *,
        name: str,
        role: Role,
        digest: str,
        created_at: datetime,
        expires_at: datetime | None,
    ) -> Token:
        values = {
            "name": name,
            "role": role.value,
            "digest": digest,
            "created_at": created_at,
            "expires_at": expires_at,
        }

        def work(batch: Batch) -> Token:
            made = batch.connection.execute(insert(token).returning(token), values).one()
            return _token(made._mapping)

        return self._executions.writer.run_blocking(work)

    def all(self) -> Sequence[Token]:
        try:
            with self._database.reader.begin() as connection:
                rows = connection.execute(select(token).order_by(token.c.id)).all()
        except DBAPIError as error:
            raise Unavailable(f"the database can't be read: {error.orig}") from error
        return [_token(row._mapping) for row in rows]

    def revoke(self, token_id: int) -> None:
        def work(batch: Batch) -> None:
            if not batch.connection.execute(delete(token).where(token.c.id == token_id)).rowcount:
                raise TokenNotFound(token_id)

        self._executions.writer.run_blocking(work)

    def used(self, at: Mapping[int, datetime]) -> None:
        statement = (
            update(token).where(token.c.id == bindparam("of")).values(last_used_at=bindparam("at"))
        )
        rows = [{"of": token_id, "at": used_at} for token_id, used_at in at.items()]
        if rows:
            self._executions.writer.run_blocking(
                lambda batch: batch.connection.execute(statement, rows)
            )


def _token(row: RowMapping) -> Token:
    return Token(
        id=row["id"],
        name=row["name"],
        role=Role(row["role"]),
        digest=row["digest"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
    )
