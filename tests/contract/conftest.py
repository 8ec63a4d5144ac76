"""The stores that the contract is for: the fake, and SQLite on a real file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from adapters.persistence.database import Database
from adapters.persistence.executions import SqlExecutions
from application.ports import AttemptRef, Triggered
from domain.definition import PipelineDefinition, StepSpec
from domain.events import RecordedFact
from domain.execution import Execution
from domain.step import StepStatus
from tests.fakes.executions import MemoryExecutions
from tests.fakes.world import EPOCH, ManualDispatcher, SequentialIds, settle, until

AB = PipelineDefinition("ab", (StepSpec("a"), StepSpec("b", depends_on=("a",))))
PAIR = PipelineDefinition("pair", (StepSpec("x"), StepSpec("y")))


class Store:
    """One open store with everything around it that a test wants to look at or to break."""

    kind: str

    def __init__(self) -> None:
        self.ids = SequentialIds()
        self.dispatcher = ManualDispatcher()
        self.published: list[RecordedFact] = []

    executions: Any

    def publish(self, facts: Sequence[RecordedFact]) -> None:
        self.published.extend(facts)

    async def open(self) -> None:
        await self.executions.open(self.dispatcher, self.publish)

    async def close(self) -> None:
        await self.executions.close()

    def fail_commits(self, count: int) -> None:
        raise NotImplementedError

    @property
    def commits(self) -> int:
        raise NotImplementedError

    async def together(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        """Make the calls in one commit where the store can; their answers and their errors."""
        return list(await asyncio.gather(*calls, return_exceptions=True))

    # -- short for what every test does ------------------------------------------

    def new(
        self,
        definition: PipelineDefinition = AB,
        *,
        data: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        card_key: str | None = None,
    ) -> Execution:
        return Execution.trigger(
            definition,
            uuid=self.ids.new(),
            data={} if data is None else data,
            at=EPOCH,
            message_id=message_id,
            card_key=card_key,
        )

    async def trigger(self, *args: Any, contents: str = "h", **kwargs: Any) -> Triggered:
        triggered: Triggered = await self.executions.trigger(self.new(*args, **kwargs), contents)
        return triggered

    async def make(self, *args: Any, **kwargs: Any) -> int:
        made = (await self.trigger(*args, **kwargs)).execution.id
        assert made is not None
        return made

    async def complete(
        self, execution_id: int, key: str, attempt: int = 1, **output: Any
    ) -> Execution:
        done: Execution = await self.executions.update(
            execution_id, lambda e: e.complete(key, attempt, output, at=EPOCH)
        )
        return done

    async def fail(self, execution_id: int, key: str, attempt: int = 1) -> Execution:
        failed: Execution = await self.executions.update(
            execution_id, lambda e: e.fail(key, attempt, "broken", at=EPOCH)
        )
        return failed


class MemoryStore(Store):
    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.executions = MemoryExecutions()

    def fail_commits(self, count: int) -> None:
        self.executions.refuse_commits = count

    @property
    def commits(self) -> int:
        commits: int = self.executions.commits
        return commits

    def fence(self) -> Callable[[AttemptRef], bool]:
        fence: Callable[[AttemptRef], bool] = self.executions.runs
        return fence

    def cancelled(self) -> Callable[[AttemptRef], bool]:
        return lambda attempt: bool(self.executions.runs(attempt, StepStatus.CANCELLED))

    def busy(self, execution_id: int) -> bool:
        return bool(self.executions.busy(execution_id))

    def has(self, execution_id: int) -> bool:
        return bool(self.executions.has(execution_id))

    def library(self, execution_id: int) -> str | None:
        library: str | None = self.executions.data(execution_id).get("library")
        return library


class SqlStore(Store):
    kind = "sql"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.database = Database(f"sqlite:///{path}")
        self.executions = SqlExecutions(self.database)
        self._commits = 0
        self._failing = 0
        self._holding = False

    async def open(self) -> None:
        self.database.open()
        event.listen(self.database.writer, "commit", self._on_commit)
        await super().open()

    async def close(self) -> None:
        await super().close()
        self.database.close()

    async def reopen(self) -> None:
        """As the next process would."""
        await self.close()
        self.database = Database(f"sqlite:///{self.path}")
        self.executions = SqlExecutions(self.database)
        await self.open()

    def fail_commits(self, count: int) -> None:
        """The next ``count`` commits of the writer's connection fail, as on a full disk."""
        self._failing = count

    @property
    def commits(self) -> int:
        return self._commits

    def _on_commit(self, connection: Connection) -> None:
        if self._holding:
            self._holding = False
            return
        if self._failing:
            self._failing -= 1
            raise OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))
        self._commits += 1

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The writer is busy with another commit until the end of the block."""
        busy, go_on = threading.Event(), threading.Event()

        def work(batch: object) -> None:
            self._holding = True
            busy.set()
            assert go_on.wait(10)

        holding = asyncio.ensure_future(self.executions.writer.run(work))
        try:
            await until(busy.is_set)
            yield
        finally:
            go_on.set()
            await holding

    async def together(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        async with self.held():
            tasks = [asyncio.ensure_future(call) for call in calls]
            await settle(3)  # now they all stand in the queue
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """With another connection, as another program would."""
        connection = sqlite3.connect(self.path, timeout=10)
        try:
            with connection:
                return connection.execute(statement, parameters).fetchall()
        finally:
            connection.close()


@pytest.fixture(params=["memory", "sql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SqlStore(tmp_path / "r.db")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def sql(tmp_path: Path) -> AsyncIterator[SqlStore]:
    made = SqlStore(tmp_path / "r.db")
    await made.open()
    yield made
    await made.close()
