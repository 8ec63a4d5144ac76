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
import contextlib
import logging
import os
import queue
import signal
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from adapters.persistence.batch import Batch, Committed, StaleRow, read_committed
from adapters.persistence.database import Database
from application.ports import Changed, Dispatcher, Started
from domain.errors import Conflict, StaleExecution, Unavailable
from domain.events import RecordedFact
from domain.execution import Execution

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUP = 64
"""Pieces of work in one commit: enough to make the sync cheap, few enough to keep it quick."""

STALE_TRIES = 3
"""How often a change runs anew when another writer keeps being first."""


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

    ``dispatcher`` decides what starts; ``publish`` is handed committed facts, on the loop,
    and ``changed`` before that, what a commit has changed.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        publish: Callable[[Sequence[RecordedFact]], None],
        loop: asyncio.AbstractEventLoop,
        changed: Changed = lambda execution_ids: None,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._publish = publish
        self._changed = changed
        self._loop = loop
        self._queue: queue.SimpleQueue[_Piece[Any] | None] = queue.SimpleQueue()
        self._committed = Committed()
        # Kept: to check it out for every commit takes as long as what a transition writes.
        self._connection: Connection | None = None
        self._closing = False
        self._door = threading.Lock()
        self._failpoint = os.environ.get("RUSHES_FAILPOINT", "")
        self._commits = 0
        self._thread = threading.Thread(target=self._run, name="rushes-writer", daemon=True)

    def open(self) -> None:
        with self._database.writer.begin() as connection:
            self._committed = read_committed(connection)
        self._thread.start()

    def close(self) -> None:
        """What is queued is still written; nothing new is taken."""
        with self._door:
            if not self._closing:
                self._closing = True
                self._queue.put(None)
        self._thread.join()
        self._disconnect()

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
            if self._connection is None:
                self._connection = self._database.writer.connect()
            with self._connection.begin():
                connection = self._connection
                batch = Batch(connection, self._committed, self._dispatcher)
                try:
                    for piece in group:
                        self._do(piece, batch)
                    batch.flush()
                    self._fail_at("before_commit")
                    connection.commit()
                    self._fail_at("after_commit")
                except BaseException:
                    batch.withdraw()
                    # A COMMIT that fails leaves SQLite's transaction open, and SQLAlchemy
                    # holds it to be over: the next BEGIN would be refused.
                    connection.connection.rollback()
                    raise
        except Exception as error:
            self._disconnect()
            self._commit_failed(group, error, tries)
            return
        started = batch.commit_into(self._committed)
        self._answer(group, batch.facts, started, batch.due(), batch.changed())

    def _fail_at(self, where: str) -> None:
        """For ``tests/chaos``: ``RUSHES_FAILPOINT=before_commit:7`` dies at the seventh commit.

        As ``kill -9`` would, at the two places where it matters most and that no kill
        from outside hits on purpose. Nothing happens unless it is set.
        """
        if not self._failpoint:
            return
        self._commits += where == "before_commit"
        if self._failpoint == f"{where}:{self._commits}":
            os.kill(os.getpid(), signal.SIGKILL)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it is given up anyway
                connection.close()

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
        if _is_locked(error):
            # Nothing was begun, and it is no piece's fault: who tries each alone would wait
            # as long again for every one of them.
            for piece in group:
                piece.error = _refusal(error)
            self._answer(group)
            return
        self._forget()
        if len(group) > 1:
            log.warning("a commit of %d changes failed (%s); trying each alone", len(group), error)
            for piece in group:
                self._commit([piece])
            return
        (piece,) = group
        # Ids that another writer has given out meanwhile collide: no less stale than a row.
        if isinstance(error, StaleRow | IntegrityError) and tries < STALE_TRIES:
            self._commit(group, tries + 1)
            return
        piece.error = _refusal(error)
        self._answer(group)

    def _forget(self) -> None:
        """What was known may be wrong: begin again from what is stored, if it can be read."""
        try:
            with self._database.writer.begin() as connection:
                self._committed = read_committed(connection)
        except Exception as error:
            # Whatever it is: this thread goes on, or nobody would be answered any more.
            log.error("the database can't be read: %s", error)
            self._committed.executions.clear()
            self._committed.ids_by_uuid.clear()
        self._answer((), changed=None)

    def _answer(
        self,
        group: Sequence[_Piece[Any]],
        facts: Sequence[RecordedFact] = (),
        started: Sequence[Started] = (),
        due: Sequence[tuple[int, datetime]] = (),
        changed: Collection[int] | None = (),
    ) -> None:
        waiting = []
        blocked = []
        for piece in group:
            if isinstance(piece.future, concurrent.futures.Future):
                blocked.append(piece)
            else:
                waiting.append(piece)
        if waiting or facts or started or due or changed or changed is None:
            try:
                self._loop.call_soon_threadsafe(
                    self._deliver, waiting, facts, started, due, changed
                )
            except RuntimeError:  # the loop is gone; what is committed is found at the next start
                log.warning("committed after the loop was closed")
        for piece in blocked:  # after the loop, which has told what has changed when they ask
            _resolve(piece)

    def _deliver(
        self,
        waiting: Sequence[_Piece[Any]],
        facts: Sequence[RecordedFact],
        started: Sequence[Started],
        due: Sequence[tuple[int, datetime]],
        changed: Collection[int] | None,
    ) -> None:
        if changed or changed is None:
            self._changed(changed)
        if facts:
            self._publish(facts)
        if started:
            self._dispatcher.launch(started)
        for execution_id, at in due:
            self._dispatcher.look_again(execution_id, at)
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


def _is_locked(error: Exception) -> bool:
    """Whether somebody else has the file open with another tool, and writes."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _refusal(error: Exception) -> BaseException:
    if isinstance(error, StaleRow):
        return StaleExecution("under way")
    if isinstance(error, IntegrityError):
        return Conflict(f"the database refuses the change: {error.orig}")
    if isinstance(error, DBAPIError):
        return Unavailable(f"the database did not take the change: {error.orig}")
    return error
