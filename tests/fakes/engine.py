"""All use cases around fakes, wired as ``bootstrap`` wires the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from application.advance import Advance
from application.authoring import Pipeline
from application.cancel import Cancel
from application.catalogue import Catalogue
from application.claims import Claims
from application.feed import Feed
from application.hold import Hold
from application.pause import Pause
from application.ports import Dispatcher
from application.progress import ProgressBoard
from application.recovery import Recovery
from application.rerun import Rerun
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.step_runner import StepRunner
from application.trigger import Trigger
from application.views import ExecutionView
from domain.events import RecordedFact
from tests.fakes.executions import MemoryExecutions
from tests.fakes.world import (
    AllCards,
    FakeClock,
    FixedChance,
    InlineDispatcher,
    InlineThreads,
    ManualDispatcher,
    SequentialIds,
)

LIBRARY = "/library"


class Engine:
    """``dispatcher``: steps run at once by themselves, or wait to be run by the test."""

    def __init__(
        self,
        *pipelines: Pipeline,
        dispatcher: Dispatcher | None = None,
        executions: Any = None,
        pools: Sequence[str] = ("default",),
    ) -> None:
        self.clock = FakeClock()
        self.ids = SequentialIds()
        self.threads = InlineThreads()
        self.executions = MemoryExecutions() if executions is None else executions
        self.dispatcher: Any = InlineDispatcher() if dispatcher is None else dispatcher
        self.feed = Feed(self.executions, self.clock)
        self.board = ProgressBoard(self.feed, self.clock, self.threads)
        self.hold = Hold(executions=self.executions, dispatcher=self.dispatcher, clock=self.clock)
        self.status = Status(executions=self.executions, progress=self.board, hold=self.hold)
        self.chance = FixedChance()
        self.advance = Advance(
            executions=self.executions,
            clock=self.clock,
            chance=self.chance,
            progress=self.board,
            status=self.status,
        )
        self.catalogue = Catalogue(pipelines, pools=pools)
        self.runner = StepRunner(
            catalogue=self.catalogue,
            advance=self.advance,
            progress=self.board,
            clock=self.clock,
            threads=self.threads,
        )
        self.claims = Claims(
            executions=self.executions, clock=self.clock, feed=self.feed, hold=self.hold
        )
        self.trigger = self.trigger_of(LIBRARY)
        self.retry = Retry(executions=self.executions, clock=self.clock, status=self.status)
        self.cancel = Cancel(
            executions=self.executions,
            dispatcher=self.dispatcher,
            clock=self.clock,
            progress=self.board,
            status=self.status,
        )
        self.pause = Pause(executions=self.executions, clock=self.clock, status=self.status)
        self.settle = Settle(executions=self.executions, clock=self.clock, status=self.status)
        self.recovery = Recovery(executions=self.executions, clock=self.clock, hold=self.hold)
        self.rerun = Rerun(
            executions=self.executions, clock=self.clock, ids=self.ids, hold=self.hold
        )

    def trigger_of(self, library: str, *destinations: str) -> Trigger:
        """As of a server with this library, and these further destinations."""
        return Trigger(
            catalogue=self.catalogue,
            executions=self.executions,
            cards=AllCards(),
            clock=self.clock,
            ids=self.ids,
            threads=self.threads,
            hold=self.hold,
            library=library,
            destinations=destinations,
        )

    async def open(self) -> Engine:
        await self.executions.open(self.dispatcher, self.feed.publish)
        if isinstance(self.dispatcher, InlineDispatcher):
            self.dispatcher.open(self.runner)
        elif not isinstance(self.dispatcher, ManualDispatcher):
            self.dispatcher.open(self.runner, self.executions, self.clock)
        await self.feed.open()
        return self

    async def ran(self, pipeline_type: str, data: object = None, **kwargs: Any) -> ExecutionView:
        """Trigger it, and let everything run to its end."""
        answer = await self.trigger(pipeline_type, {} if data is None else data, **kwargs)
        await self.dispatcher.idle()
        return await self.status.get(answer.execution.id)

    async def log(self) -> Sequence[RecordedFact]:
        facts: Sequence[RecordedFact] = await self.executions.facts(0, 100_000)
        return facts
