"""A whole Rushes behind a real gRPC server on the loopback, with a pipeline to play with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest_asyncio
from grpc import aio

from adapters.audit import Audit
from adapters.dispatch.local import LocalDispatcher
from adapters.limits import Rates
from adapters.persistence.database import Database
from adapters.persistence.executions import SqlExecutions
from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub
from adapters.rpc.server import RpcServer
from adapters.system import LoopThreads, SystemChance, SystemClock, Uuid7
from application.advance import Advance
from application.authoring import Pipeline, StepContext, StepError, external_step, step
from application.cancel import Cancel
from application.catalogue import Catalogue
from application.claims import Claims
from application.feed import Entry, Feed
from application.hold import Hold
from application.pause import Pause
from application.progress import ProgressBoard
from application.rerun import Rerun
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.step_runner import StepRunner
from application.trigger import Trigger
from domain.errors import InvalidPath
from tests.fakes.access import unlocked

PATIENCE_S = 10.0
"""No test waits this long unless something is wrong."""


def stub_of(channel: aio.Channel) -> Any:
    return PipelineServiceStub(channel)  # type: ignore[no-untyped-call]


class WatchedFeed(Feed):
    """Knows how many follow it, and can be asked to wait until that has changed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.following = 0
        self._changed = asyncio.Condition()

    async def follow(
        self, since: int | None = None, execution_id: int | None = None
    ) -> AsyncGenerator[Entry, None]:
        await self._count(+1)
        entries = super().follow(since, execution_id)
        try:
            async for entry in entries:
                yield entry
        finally:
            await entries.aclose()
            await self._count(-1)

    async def _count(self, difference: int) -> None:
        async with self._changed:
            self.following += difference
            self._changed.notify_all()

    async def until_followed_by(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: self.following == number)


class CardRoot:
    """``application.ports.Cards``: every card is below /cards."""

    def locate(self, sd_path: object, *, anywhere: bool = False) -> str:
        if not isinstance(sd_path, str) or not sd_path.startswith("/cards/"):
            raise InvalidPath(f"{sd_path!r} is not below /cards", field="sd_path")
        return sd_path


class House:
    """Rushes and a client of it.

    ``broken``: whether the steps publish and copy fail. ``gate``: what the step slow waits for.
    """

    channel: Any
    stub: Any
    address: str

    def __init__(self, folder: Path) -> None:
        self.broken = False
        self.gate = asyncio.Event()
        self.database = Database(f"sqlite:///{folder}/rushes.db")
        self.clock = SystemClock()
        self.threads = LoopThreads()
        self.executions = SqlExecutions(self.database)
        self.feed = WatchedFeed(self.executions, self.clock)
        board = ProgressBoard(self.feed, self.clock, self.threads)
        self.dispatcher = LocalDispatcher({"default": 8})
        self.hold = Hold(executions=self.executions, dispatcher=self.dispatcher, clock=self.clock)
        self.status = Status(executions=self.executions, progress=board, hold=self.hold)
        self.advance = Advance(
            executions=self.executions,
            clock=self.clock,
            chance=SystemChance(),
            progress=board,
            status=self.status,
        )
        self.catalogue = Catalogue(self._pipelines(), pools=["default"])
        self.runner = StepRunner(
            catalogue=self.catalogue,
            advance=self.advance,
            progress=board,
            clock=self.clock,
            threads=self.threads,
        )
        self.trigger = Trigger(
            catalogue=self.catalogue,
            executions=self.executions,
            cards=CardRoot(),
            clock=self.clock,
            ids=Uuid7(),
            threads=self.threads,
            hold=self.hold,
            library="/library",
        )
        self.retry = Retry(executions=self.executions, clock=self.clock, status=self.status)
        self.cancel = Cancel(
            executions=self.executions,
            dispatcher=self.dispatcher,
            clock=self.clock,
            progress=board,
            status=self.status,
        )
        self.pause = Pause(executions=self.executions, clock=self.clock, status=self.status)
        self.settle = Settle(executions=self.executions, clock=self.clock, status=self.status)
        self.rerun = Rerun(
            executions=self.executions, clock=self.clock, ids=Uuid7(), hold=self.hold
        )
        self.claims = Claims(
            executions=self.executions, clock=self.clock, feed=self.feed, hold=self.hold
        )
        self.access = unlocked(self.clock, owner_key="owner's")
        self.server = self.another_server()

    def another_server(self, **instead: Any) -> RpcServer:
        use_cases: dict[str, Any] = {
            "trigger": self.trigger,
            "status": self.status,
            "retry": self.retry,
            "cancel": self.cancel,
            "pause": self.pause,
            "settle": self.settle,
            "rerun": self.rerun,
            "hold": self.hold,
            "dispatcher": self.dispatcher,
            "claims": self.claims,
            "advance": self.advance,
            "feed": self.feed,
            "access": self.access,
            "audit": Audit(self.clock),
            "rates": Rates(0, self.access, self.clock),
        }
        return RpcServer(**(use_cases | instead))

    def _pipelines(self) -> Iterable[Pipeline]:
        @step()
        async def measure(context: StepContext) -> dict[str, Any]:
            return {"frames": 24 * context.data.get("seconds", 1)}

        @step(depends_on=["render"])
        async def publish(context: StepContext) -> dict[str, Any]:
            if self.broken:
                raise StepError("the shelf is full")
            return {"published": True}

        @step()
        async def slow(context: StepContext) -> None:
            context.progress(0.5, bytes_done=50, bytes_total=100)
            await self.gate.wait()

        @step()
        async def copy(context: StepContext) -> None:
            if self.broken:
                raise StepError("the card was pulled")

        @step()
        async def nothing(context: StepContext) -> None:
            return None

        wait = external_step("wait", depends_on=["copy"])
        yield Pipeline("film", [measure, external_step("render", depends_on=["measure"]), publish])
        yield Pipeline("slow", [slow])
        yield Pipeline("card", [copy, wait], card=True)
        yield Pipeline("nothing", [nothing])

    async def open(self) -> None:
        self.database.open()
        self.threads.open()
        self._store_is_open = True
        await self.executions.open(self.dispatcher, self.feed.publish)
        self.dispatcher.open(self.runner, self.executions, self.clock)
        await self.feed.open()
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1', 0)}"
        self.channel = aio.insecure_channel(self.address)
        self.stub = stub_of(self.channel)

    async def close(self) -> None:
        self.gate.set()
        await self.channel.close(None)
        await self.server.stop(PATIENCE_S)
        self.feed.close()
        await self.close_store()
        self.threads.close()
        self.database.close()

    async def close_store(self) -> None:
        if self._store_is_open:
            self._store_is_open = False
            await self.dispatcher.stop()
            await self.executions.close()

    # -- what tests say often ------------------------------------------------------

    async def start(self, pipeline_type: str, message_id: str | None = None, **data: Any) -> Any:
        """Trigger it; the execution."""
        request = pb.TriggerPipelineRequest(pipeline_type=pipeline_type, message_id=message_id)
        request.data.update(data)
        return (await self.stub.TriggerPipeline(request)).execution

    async def get(self, execution: Any) -> Any:
        request = pb.GetExecutionRequest(execution_id=execution.execution_id)
        return (await self.stub.GetExecution(request)).execution

    async def until(self, execution: Any, type: str, step_key: str | None = None) -> int:
        """Wait until it has happened; the id of that event."""
        call = self.stub.WatchExecution(
            pb.WatchExecutionRequest(execution_id=execution.execution_id, since=0)
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for message in call:
                    if message.type == type and step_key in (
                        None,
                        message.data.fields["step_key"].string_value,
                    ):
                        return int(message.id)
        finally:
            call.cancel()
        raise AssertionError("the stream has ended")

    async def report_rendered(self, execution: Any, attempt: int = 1, **output: Any) -> Any:
        request = pb.AdvanceStepRequest(
            execution_id=execution.execution_id,
            step_key="render",
            attempt=attempt,
            completed=pb.StepCompleted(),
        )
        request.completed.output.update(output)
        return (await self.stub.AdvanceStep(request)).execution


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.open()
    yield house
    await house.close()
