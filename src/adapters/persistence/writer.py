"""The writer: one thread, one connection, many changes in one commit.

SQLite takes one writer at a time, and what costs is the sync at the end of a
transaction. So all that is to be written queues up here, and while one commit
is being synced the next group gathers. A group is one transaction:

1. BEGIN IMMEDIATE.
2. Each piece of work runs in its turn, on the state that the ones before it left.
   Executions that are under way are kept in memory, since nobody else writes this
   database: a change reads nothing. A piece that raises leaves no trace, and only
   its own caller hears of it.
3. What changed is written with one statement a table, and committed.
4. The drafts become the committed state; facts, started steps and answers are
   handed to the event loop in one go.

If the commit fails, nothing of the group happened: slots are given back, what
was in memory is forgotten, and each piece is tried again by itself, on what is
stored. So a piece that can't be stored fails alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, bindparam, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from adapters.persistence.database import Database
from adapters.persistence.rows import (
    detached,
    execution_row,
    load_execution,
    new_execution_row,
    new_step_row,
    step_row,
)
from adapters.persistence.tables import (
    pipeline_event,
    pipeline_execution,
    pipeline_step,
    trigger_message,
)
from application.ports import Change, Dispatcher, Started
from application.transition import Transition, fact_data, start_ready, transition
from domain.errors import (
    CardBusy,
    Conflict,
    ExecutionNotFound,
    StaleExecution,
    Unavailable,
)
from domain.events import RecordedFact
from domain.execution import ACTIVE, Execution
from domain.step import Step, StepStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUP = 64
"""Pieces of work in one commit: enough to make the sync cheap, few enough to keep it quick."""

STALE_TRIES = 3
"""How often a change runs anew when another writer keeps being first."""

_update_execution = (
    update(pipeline_execution)
    .where(
        pipeline_execution.c.id == bindparam("b_id"),
        pipeline_execution.c.version == bindparam("b_version"),
    )
    .values({name: bindparam(name) for name in (
        "status", "job_id", "execution_data", "error_message", "warnings", "progress",
        "version", "started_at", "completed_at", "updated_at",
    )})
)  # fmt: skip

_update_step = (
    update(pipeline_step)
    .where(
        pipeline_step.c.execution_id == bindparam("b_execution_id"),
        pipeline_step.c.step_key == bindparam("b_step_key"),
    )
    .values({name: bindparam(name) for name in (
        "status", "output_data", "error_message", "attempt", "failures", "takeovers",
        "progress", "queued_at", "started_at", "completed_at",
    )})
)  # fmt: skip


class _Stale(Exception):
    """A row wasn't what this process knew of it: another writer has been here."""


@dataclass(slots=True)
class _Committed:
    """What is in the database, as far as it matters to the next change.

    cards: the active execution of each card.
    """

    executions: dict[int, Execution] = field(default_factory=dict)
    ids_by_uuid: dict[str, int] = field(default_factory=dict)
    cards: dict[str, int] = field(default_factory=dict)
    last_execution_id: int = 0
    last_fact_id: int = 0


class Batch:
    """One transaction: what the work in it sees, and what it will write."""

    def __init__(self, connection: Connection, committed: _Committed, dispatcher: Dispatcher):
        self.connection = connection
        self.drafts: dict[int, Execution] = {}
        self.facts: list[RecordedFact] = []
        self.admitted: list[tuple[int, Step]] = []
        self.last_execution_id = committed.last_execution_id
        self.last_fact_id = committed.last_fact_id
        self._committed = committed
        self._dispatcher = dispatcher
        self._loaded: dict[int, Execution] = {}
        self._messages: dict[str, tuple[int, str]] = {}
        self._cards: dict[str, int | None] = {}

    def current(self, execution_id: int) -> Execution:
        """The execution as the work before this left it. Raises ``ExecutionNotFound``."""
        draft = self.drafts.get(execution_id)
        return draft if draft is not None else self._base(execution_id)

    def change(self, execution_id: int, change: Change) -> Execution:
        """Adopt a change into the transaction. Raises what it raises, and ``CardBusy``."""
        current = self.current(execution_id)
        moved = transition(current, change, self._dispatcher)
        try:
            self._check_card(execution_id, current, moved.draft)
        except BaseException:
            self._dispatcher.withdraw(execution_id, [step.key for step in moved.admitted])
            raise
        if moved.draft.differs_from(current):
            self._adopt(moved)
            return moved.draft
        return current

    def insert(self, execution: Execution, contents_hash: str) -> Execution:
        """A new execution, with an id and its first steps started."""
        draft = detached(execution)
        draft.recorded.extend(execution.recorded)
        draft.id = self.last_execution_id + 1
        moved = Transition(draft, start_ready(draft, self._dispatcher))
        self.last_execution_id = draft.id
        if draft.message_id is not None:
            self.remember(draft.message_id, draft.id, contents_hash)
        if draft.card_key is not None:
            self._cards[draft.card_key] = draft.id
        self._adopt(moved)
        return draft

    def remember(self, message_id: str, execution_id: int, contents_hash: str) -> None:
        self._messages[message_id] = (execution_id, contents_hash)

    def message(self, message_id: str) -> tuple[int, str] | None:
        """Which execution a message belongs to, and the hash of what it said."""
        if message_id in self._messages:
            return self._messages[message_id]
        row = self.connection.execute(
            select(trigger_message.c.execution_id, trigger_message.c.contents_hash).where(
                trigger_message.c.message_id == message_id
            )
        ).first()
        return None if row is None else (row.execution_id, row.contents_hash)

    def card_holder(self, card_key: str) -> int | None:
        """The active execution that works on the card."""
        if card_key in self._cards:
            return self._cards[card_key]
        return self._committed.cards.get(card_key)

    def flush(self) -> None:
        """Write what has changed, one statement a table."""
        new: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        new_steps: list[dict[str, Any]] = []
        changed_steps: list[dict[str, Any]] = []
        for execution_id, draft in self.drafts.items():
            base = self._known(execution_id)
            draft.version = (base.version if base else 0) + 1
            if base is None:
                new.append(new_execution_row(draft))
                new_steps.extend(new_step_row(execution_id, step) for step in draft.steps.values())
                continue
            changed.append(
                {"b_id": execution_id, "b_version": base.version, **execution_row(draft)}
            )
            for key, step in draft.steps.items():
                before = base.steps.get(key)
                if before is None:
                    new_steps.append(new_step_row(execution_id, step))
                elif before is not step:
                    changed_steps.append(
                        {"b_execution_id": execution_id, "b_step_key": key, **step_row(step)}
                    )
        execute = self.connection.execute
        # Changed ones first: one of them may have left a card that a new one takes.
        if changed and execute(_update_execution, changed).rowcount != len(changed):
            raise _Stale
        if new:
            execute(insert(pipeline_execution), new)
        if new_steps:
            execute(insert(pipeline_step), new_steps)
        if changed_steps and execute(_update_step, changed_steps).rowcount != len(changed_steps):
            raise _Stale
        if self._messages:
            execute(
                insert(trigger_message),
                [
                    {"message_id": message, "execution_id": owner, "contents_hash": digest}
                    for message, (owner, digest) in self._messages.items()
                ],
            )
        if self.facts:
            execute(
                insert(pipeline_event),
                [
                    {
                        "id": fact.id,
                        "execution_id": fact.execution_id,
                        "type": fact.type,
                        "step_key": fact.step_key,
                        "data": fact.data,
                        "occurred_at": fact.occurred_at,
                    }
                    for fact in self.facts
                ],
            )

    def commit_into(self, committed: _Committed) -> list[Started]:
        """After the commit: the drafts are the state now. What is to be launched."""
        committed.last_execution_id = self.last_execution_id
        committed.last_fact_id = self.last_fact_id
        for execution_id, execution in self.drafts.items():
            card_key = execution.card_key
            if card_key is not None and execution.status in ACTIVE:
                committed.cards[card_key] = execution_id
            elif card_key is not None and committed.cards.get(card_key) == execution_id:
                del committed.cards[card_key]
            if execution.unfinished:
                committed.executions[execution_id] = execution
                committed.ids_by_uuid[execution.uuid] = execution_id
            else:
                committed.executions.pop(execution_id, None)
                committed.ids_by_uuid.pop(execution.uuid, None)
        started = []
        for execution_id, step in self.admitted:
            final = self.drafts[execution_id].steps[step.key]
            if final.status is StepStatus.RUNNING and final.attempt == step.attempt:
                started.append(Started(self.drafts[execution_id], final))
            else:  # a later change in this very commit has ended it again
                self._dispatcher.withdraw(execution_id, [step.key])
        return started

    def withdraw(self) -> None:
        """The transaction is gone, and the slots of what it started are free again."""
        for execution_id, step in self.admitted:
            self._dispatcher.withdraw(execution_id, [step.key])

    def _known(self, execution_id: int) -> Execution | None:
        return self._committed.executions.get(execution_id) or self._loaded.get(execution_id)

    def _base(self, execution_id: int) -> Execution:
        known = self._known(execution_id)
        if known is None:
            known = load_execution(self.connection, execution_id)
            if known is None:
                raise ExecutionNotFound(execution_id)
            self._loaded[execution_id] = known
        return known

    def _check_card(self, execution_id: int, before: Execution, after: Execution) -> None:
        card_key = after.card_key
        if card_key is None or before.active == after.active:
            return
        if not after.active:
            self._cards[card_key] = None
            return
        holder = self.card_holder(card_key)
        if holder is not None and holder != execution_id:
            raise CardBusy(card_key, self.current(holder).uuid)
        self._cards[card_key] = execution_id

    def _adopt(self, moved: Transition) -> None:
        draft = moved.draft
        assert draft.id is not None
        for fact in draft.recorded:
            self.last_fact_id += 1
            self.facts.append(
                RecordedFact(
                    id=self.last_fact_id,
                    execution_id=draft.id,
                    type=fact.type,
                    step_key=fact.subject,
                    data=fact_data(draft, fact),
                    occurred_at=fact.at,
                )
            )
        draft.recorded = []
        self.drafts[draft.id] = draft
        self.admitted.extend((draft.id, step) for step in moved.admitted)


@dataclass(slots=True)
class _Piece(Generic[T]):
    """A piece of work and who waits for it."""

    work: Callable[[Batch], T]
    future: asyncio.Future[T] | concurrent.futures.Future[T]
    savepoint: bool
    result: T | None = None
    error: BaseException | None = None


class Writer:
    """Runs work on the writer's thread, in groups that share a commit.

    ``dispatcher`` decides what starts; ``publish`` is handed committed facts, on the loop.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        publish: Callable[[Sequence[RecordedFact]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._publish = publish
        self._loop = loop
        self._queue: queue.SimpleQueue[_Piece[Any] | None] = queue.SimpleQueue()
        self._committed = _Committed()
        self._closing = False
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rushes-writer", daemon=True)

    def open(self) -> None:
        with self._database.writer.begin() as connection:
            self._committed = _read_committed(connection)
        self._thread.start()

    def close(self) -> None:
        """What is queued is still written; nothing new is taken."""
        with self._door:
            if not self._closing:
                self._closing = True
                self._queue.put(None)
        self._thread.join()

    def live(self, reference: str | int) -> Execution | None:
        """The committed state of an execution that is under way. Nobody may change it."""
        committed = self._committed
        if isinstance(reference, str):
            execution_id = committed.ids_by_uuid.get(reference)
            return None if execution_id is None else committed.executions.get(execution_id)
        return committed.executions.get(reference)

    async def run(self, work: Callable[[Batch], T]) -> T:
        """For the loop. ``work`` touches no SQL that writes: it changes executions."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(_Piece(work, future, savepoint=False))
        return await future

    def run_blocking(self, work: Callable[[Batch], T]) -> T:
        """For handlers' threads. ``work`` may write with ``batch.connection``."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._put(_Piece(work, future, savepoint=True))
        return future.result()

    def _put(self, piece: _Piece[Any]) -> None:
        # Nothing may come to stand behind the end of the queue: nobody would answer it.
        with self._door:
            if self._closing:
                raise Unavailable("the database is closed")
            self._queue.put(piece)

    # -- on the writer's thread --------------------------------------------------

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            group = [] if first is None else [first]
            closing = first is None
            while len(group) < GROUP and not closing:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    closing = True
                else:
                    group.append(following)
            if group:
                self._commit(group)
            if closing:
                return

    def _commit(self, group: Sequence[_Piece[Any]], tries: int = 1) -> None:
        try:
            with self._database.writer.connect() as connection, connection.begin():
                batch = Batch(connection, self._committed, self._dispatcher)
                try:
                    for piece in group:
                        self._do(piece, batch)
                    batch.flush()
                    connection.commit()
                except BaseException:
                    batch.withdraw()
                    # A COMMIT that fails leaves SQLite's transaction open, and SQLAlchemy
                    # holds it to be over: the next BEGIN would be refused.
                    connection.connection.rollback()
                    raise
        except Exception as error:
            self._commit_failed(group, error, tries)
            return
        started = batch.commit_into(self._committed)
        self._answer(group, batch.facts, started)

    def _do(self, piece: _Piece[Any], batch: Batch) -> None:
        piece.error = piece.result = None
        try:
            if piece.savepoint:
                with batch.connection.begin_nested():
                    piece.result = piece.work(batch)
            else:
                piece.result = piece.work(batch)
        except DBAPIError:
            raise
        except BaseException as error:
            piece.error = error

    def _commit_failed(self, group: Sequence[_Piece[Any]], error: Exception, tries: int) -> None:
        self._forget()
        if len(group) > 1:
            log.warning("a commit of %d changes failed (%s); trying each alone", len(group), error)
            for piece in group:
                self._commit([piece])
            return
        (piece,) = group
        # Ids that another writer has given out meanwhile collide: no less stale than a row.
        if isinstance(error, _Stale | IntegrityError) and tries < STALE_TRIES:
            self._commit(group, tries + 1)
            return
        piece.error = _refusal(error)
        self._answer(group, [], [])

    def _forget(self) -> None:
        """What was known may be wrong: begin again from what is stored, if it can be read."""
        try:
            with self._database.writer.begin() as connection:
                self._committed = _read_committed(connection)
        except Exception as error:
            # Whatever it is: this thread goes on, or nobody would be answered any more.
            log.error("the database can't be read: %s", error)
            self._committed.executions.clear()
            self._committed.ids_by_uuid.clear()

    def _answer(
        self,
        group: Sequence[_Piece[Any]],
        facts: Sequence[RecordedFact],
        started: Sequence[Started],
    ) -> None:
        waiting = []
        for piece in group:
            if isinstance(piece.future, concurrent.futures.Future):
                _resolve(piece)
            else:
                waiting.append(piece)
        if waiting or facts or started:
            try:
                self._loop.call_soon_threadsafe(self._deliver, waiting, facts, started)
            except RuntimeError:  # the loop is gone; what is committed is found at the next start
                log.warning("committed after the loop was closed")

    def _deliver(
        self,
        waiting: Sequence[_Piece[Any]],
        facts: Sequence[RecordedFact],
        started: Sequence[Started],
    ) -> None:
        if facts:
            self._publish(facts)
        if started:
            self._dispatcher.launch(started)
        for piece in waiting:
            _resolve(piece)


def _resolve(piece: _Piece[Any]) -> None:
    if piece.future.done():  # its caller was cancelled meanwhile
        return
    if isinstance(piece.error, StopIteration):  # a future doesn't take it
        piece.future.set_exception(RuntimeError(f"the change raised {piece.error!r}"))
    elif piece.error is not None:
        piece.future.set_exception(piece.error)
    else:
        piece.future.set_result(piece.result)


def _refusal(error: Exception) -> BaseException:
    if isinstance(error, _Stale):
        return StaleExecution("under way")
    if isinstance(error, IntegrityError):
        return Conflict(f"the database refuses the change: {error.orig}")
    if isinstance(error, DBAPIError):
        return Unavailable(f"the database did not take the change: {error.orig}")
    return error


def _read_committed(connection: Connection) -> _Committed:
    """The counters and who holds which card; executions are loaded when they are needed."""
    cards = connection.execute(
        select(pipeline_execution.c.card_key, pipeline_execution.c.id).where(
            pipeline_execution.c.card_key.is_not(None),
            pipeline_execution.c.status.in_([status.value for status in ACTIVE]),
        )
    )
    return _Committed(
        cards={row.card_key: row.id for row in cards},
        last_execution_id=_sequence(connection, pipeline_execution.name),
        last_fact_id=_sequence(connection, pipeline_event.name),
    )


def _sequence(connection: Connection, table: str) -> int:
    """The highest id that a table has ever given out, also if its row is gone."""
    found = connection.execute(
        text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table}
    ).scalar()
    return 0 if found is None else int(found)
