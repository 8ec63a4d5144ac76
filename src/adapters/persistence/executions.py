"""``Executions`` on SQLite: changes go to the writer, reads beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from adapters.persistence.batch import Batch
from adapters.persistence.database import READERS, Database
from adapters.persistence.forgetting import fact_bounds, forget, forgettable
from adapters.persistence.rows import detached, fact_of, load_execution, load_executions
from adapters.persistence.tables import (
    engine_state,
    pipeline_event,
    pipeline_execution,
    pipeline_step,
    trigger_message,
)
from adapters.persistence.writer import Writer
from application.ports import Change, Changed, Dispatcher, Query, Triggered
from domain.errors import ExecutionNotFound, FactsGone, MessageConflict, Unavailable
from domain.events import RecordedFact
from domain.execution import ACTIVE, Execution, ExecutionStatus
from domain.step import StepStatus

T = TypeVar("T")

MAX_ID = 2**63 - 1
"""The greatest integer that SQLite has; beyond it nothing can be there."""


LOADED_AT_ONCE = 500
"""SQLite bounds the parameters of a statement; and other work waits for some 100 ms."""


class SqlExecutions:
    """Implements ``application.ports.Executions``; see there for the contract.

    Between ``open`` and ``close`` it belongs to the running event loop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer: Writer | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._watchers: list[Changed] = []

    async def open(
        self, dispatcher: Dispatcher, publish: Callable[[Sequence[RecordedFact]], None]
    ) -> None:
        """``publish`` is called on the loop with each commit's facts, in order."""
        loop = asyncio.get_running_loop()
        writer = Writer(self._database, dispatcher, publish, loop, self._tell)
        await loop.run_in_executor(None, writer.open)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="rushes-reader")
        self._writer = writer

    async def close(self) -> None:
        if self._writer is not None and self._readers is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._writer.close)
            readers, self._readers = self._readers, None
            if readers is not None:
                readers.shutdown()
            # What the last commit let out is on the loop's queue, before this.
            await asyncio.sleep(0)

    @property
    def writer(self) -> Writer:
        if self._writer is None:
            raise Unavailable("the database is not open")
        return self._writer

    async def trigger(self, execution: Execution, contents_hash: str) -> Triggered:
        def work(batch: Batch) -> Triggered:
            message_id, card_key = execution.message_id, execution.card_key
            known = None if message_id is None else batch.message(message_id)
            if known is not None:
                owner, digest = known
                if digest != contents_hash:
                    assert message_id is not None
                    raise MessageConflict(message_id)
                return Triggered(batch.current(owner), "message")
            holder = None if card_key is None else batch.card_holder(card_key)
            if holder is not None:
                if message_id is not None:
                    batch.remember(message_id, holder, contents_hash)
                return Triggered(batch.current(holder), "card")
            return Triggered(batch.insert(execution, contents_hash), None)

        triggered = await self.writer.run(work)
        return Triggered(detached(triggered.execution), triggered.duplicate)

    async def update(self, reference: str | int, change: Change) -> Execution:
        _check(reference)
        return detached(
            await self.writer.run(lambda batch: batch.change(batch.id_of(reference), change))
        )

    async def apply(self, execution_id: int, change: Change) -> None:
        await self.writer.run(lambda batch: batch.change(execution_id, change))

    async def get(self, reference: str | int) -> Execution:
        live = self.writer.live(reference)
        if live is not None and self._readers is not None:
            return detached(live)
        _check(reference)
        found = await self._read(lambda connection: load_execution(connection, reference))
        if found is None:
            raise ExecutionNotFound(reference)
        return found

    def watch(self, changed: Changed) -> None:
        self._watchers.append(changed)

    def _tell(self, execution_ids: Collection[int] | None) -> None:
        for changed in self._watchers:
            changed(execution_ids)

    async def list(self, query: Query) -> Sequence[Execution]:
        table = pipeline_execution.c
        statement = select(pipeline_execution).order_by(table.id.desc()).limit(query.limit)
        if query.status is not None:
            status: ColumnElement[str] = table.status
            if query.pipeline_type is not None and query.status is ExecutionStatus.COMPLETED:
                # Most have completed: the type narrows better. With a plus SQLite doesn't
                # go by the status.
                status = literal_column("+pipeline_execution.status", String)
            statement = statement.where(status == query.status.value)
        if query.pipeline_type is not None:
            statement = statement.where(table.pipeline_type == query.pipeline_type)
        if query.message_id is not None:
            # A message may also have been answered with an execution that was there.
            statement = statement.where(
                table.id.in_(
                    select(trigger_message.c.execution_id).where(
                        trigger_message.c.message_id == query.message_id
                    )
                )
            )
        if query.before is not None:
            statement = statement.where(table.id < min(query.before, MAX_ID))

        def read(connection: Connection) -> Sequence[Execution]:
            return load_executions(connection, connection.execute(statement).all())

        return await self._read(read)

    async def unfinished(self) -> Sequence[int]:
        table = pipeline_execution.c
        running = select(pipeline_step.c.execution_id).where(
            pipeline_step.c.status == StepStatus.RUNNING.value
        )
        statement = (
            select(table.id)
            .where(or_(table.status.in_([s.value for s in ACTIVE]), table.id.in_(running)))
            .order_by(table.id)
        )
        found = await self._read(lambda connection: connection.execute(statement).scalars().all())
        # Who asks goes on with them. To read each by itself takes five times as long.
        for start in range(0, len(found), LOADED_AT_ONCE):
            await self._load(found[start : start + LOADED_AT_ONCE])
        return found

    async def _load(self, execution_ids: Sequence[int]) -> None:
        await self.writer.run(lambda batch: batch.load(execution_ids))

    async def unclaimed(
        self, step_name: str, pipeline_type: str | None, limit: int
    ) -> Sequence[tuple[int, str]]:
        step, execution = pipeline_step.c, pipeline_execution.c
        # Steps of Rushes' own may have the name too: what a step is, its definition says.
        spec = func.json_each(execution.definition, "$.steps").table_valued("value").c.value
        external = exists().where(
            func.json_extract(spec, "$.name") == step_name,
            func.json_extract(spec, "$.external"),
        )
        statement = (
            select(step.execution_id, step.step_key)
            .join(pipeline_execution, execution.id == step.execution_id)
            .where(
                step.status == StepStatus.RUNNING.value,
                step.step_name == step_name,
                step.worker_id.is_(None),
                execution.status == ExecutionStatus.RUNNING.value,
                execution.paused_at.is_(None),
                external.correlate(pipeline_execution),
            )
            .order_by(step.started_at, step.id)
            .limit(limit)
        )
        if pipeline_type is not None:
            statement = statement.where(execution.pipeline_type == pipeline_type)

        def read(connection: Connection) -> Sequence[tuple[int, str]]:
            return [(row.execution_id, row.step_key) for row in connection.execute(statement)]

        return await self._read(read)

    async def hold(self, at: datetime | None) -> None:
        statement = update(engine_state).where(engine_state.c.id == 1).values(held_at=at)
        # It queues up behind all that was asked before.
        await asyncio.get_running_loop().run_in_executor(
            None, self.writer.run_blocking, lambda batch: batch.connection.execute(statement)
        )

    async def held_at(self) -> datetime | None:
        statement = select(engine_state.c.held_at).where(engine_state.c.id == 1)
        return await self._read(lambda connection: connection.execute(statement).scalar_one())

    async def facts(
        self, since: int, limit: int, execution_id: int | None = None
    ) -> Sequence[RecordedFact]:
        table = pipeline_event.c
        since = max(0, min(since, MAX_ID))
        statement = select(pipeline_event).where(table.id > since).order_by(table.id).limit(limit)
        if execution_id is not None:
            statement = statement.where(table.execution_id == execution_id)

        def read(connection: Connection) -> Sequence[RecordedFact]:
            if execution_id is None:
                floor, last = fact_bounds(connection)
                if since < floor:
                    raise FactsGone(since, floor, last)
            return [fact_of(row) for row in connection.execute(statement)]

        return await self._read(read)

    async def fact_bounds(self) -> tuple[int, int]:
        return await self._read(fact_bounds)

    async def forget(self, before: datetime, limit: int) -> int:
        # Looked for beside the writer, which has only to see whether it is still so.
        found = await self._read(lambda connection: forgettable(connection, before, limit))
        if not found:
            return 0
        return await asyncio.get_running_loop().run_in_executor(
            None, self.writer.run_blocking, lambda batch: forget(batch, before, found)
        )

    async def _read(self, query: Callable[[Connection], T]) -> T:
        readers = self._readers
        if readers is None:
            raise Unavailable("the database is closed")

        def read() -> T:
            with self._database.reader.begin() as connection:
                return query(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(readers, read)
        except DBAPIError as error:
            raise Unavailable(f"the database can't be read: {error.orig}") from error


def _check(reference: str | int) -> None:
    """Raises ``ExecutionNotFound`` for what no execution can be, and SQLite may not take."""
    if isinstance(reference, int) and not 0 < reference <= MAX_ID:
        raise ExecutionNotFound(reference)
    if isinstance(reference, str) and not reference.isascii():
        raise ExecutionNotFound(ascii(reference))
