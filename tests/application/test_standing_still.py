"""Steps that know of a pause: they stand still, or are given back and begin again after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from application import step_runner
from application.authoring import Handler, Pipeline, StepContext, step
from application.catalogue import Catalogue
from application.views import ExecutionView
from bootstrap import Container, Settings, running

DEADLINE_S = 20.0


@dataclass
class Bed:
    """A whole engine that runs one execution of one step, with real threads on a real clock."""

    container: Container
    execution_id: int

    async def look(self) -> ExecutionView:
        return await self.container.status().get(self.execution_id)

    async def until(self, wanted: Callable[[ExecutionView], bool]) -> ExecutionView:
        deadline = time.monotonic() + DEADLINE_S
        while not wanted(found := await self.look()):
            assert time.monotonic() < deadline, f"it never came about: {found}"
            await asyncio.sleep(0.005)
        return found

    async def pause(self, whole_engine: bool = False) -> None:
        await (self.container.hold().pause() if whole_engine else self._pause())

    async def resume(self, whole_engine: bool = False) -> None:
        await (self.container.hold().resume() if whole_engine else self._resume())

    def _pause(self) -> Awaitable[Any]:
        return self.container.pause().pause(self.execution_id)

    def _resume(self) -> Awaitable[Any]:
        return self.container.pause().resume(self.execution_id)


Started = Callable[[Handler], AbstractAsyncContextManager[Bed]]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.setattr(step_runner, "LOOK_EVERY_S", 0.01)

    @asynccontextmanager
    async def start(handler: Handler) -> AsyncIterator[Bed]:
        settings = {"database_url": f"sqlite:///{tmp_path}/rushes.db", "library": str(tmp_path)}
        container = Container(settings=Settings.load(settings, {}))
        pipeline = Pipeline("one", [step(name="long", lease_s=0.2)(handler)])
        with container.catalogue.override(Catalogue([pipeline], pools=["default"])):
            async with running(container):
                answer = await container.trigger()("one", {})
                assert answer.execution.id is not None
                yield Bed(container, answer.execution.id)

    return start


@pytest.mark.parametrize("whole_engine", [False, True])
async def test_a_step_that_stands_still_goes_on_in_the_same_attempt(
    started: Started, whole_engine: bool
) -> None:
    stood: list[float] = []

    def long(context: StepContext) -> dict[str, int]:
        while not context.paused:
            context.rest()
        while context.paused:
            stood.append(time.monotonic())
            context.rest()
        return {"done_by": context.attempt}

    async with started(long) as bed:
        await bed.pause(whole_engine)
        # Longer than its lease, and it isn't taken for lost.
        await bed.until(lambda found: bool(stood) and stood[-1] - stood[0] > 0.4)
        assert (await bed.look()).steps[0].status == "running"
        await bed.resume(whole_engine)
        found = await bed.until(lambda found: found.status == "completed")
    assert found.execution_data["done_by"] == 1


async def test_a_step_that_is_given_back_begins_again_after_the_pause_and_has_not_failed(
    started: Started,
) -> None:
    def long(context: StepContext) -> dict[str, int]:
        if context.attempt == 1:
            while not context.paused:
                context.rest()
            context.give_back()
        return {"done_by": context.attempt}

    async with started(long) as bed:
        await bed.pause()
        found = await bed.until(lambda found: found.steps[0].status == "pending")
        assert (found.steps[0].attempt, found.steps[0].error_message) == (1, None)
        await bed.resume()
        found = await bed.until(lambda found: found.status == "completed")
        facts = await bed.container.executions().facts(0, 1_000, bed.execution_id)
    assert found.execution_data["done_by"] == 2
    assert not [fact for fact in facts if fact.type.endswith(("failed", "retrying"))]


async def test_a_step_that_stands_still_is_told_of_a_cancel(started: Started) -> None:
    stood: list[str] = []

    def long(context: StepContext) -> None:
        try:
            while True:
                context.rest()
                if context.paused:
                    stood.append("paused")
        finally:
            stood.append("told")

    async with started(long) as bed:
        await bed.pause()
        await bed.until(lambda found: bool(stood))
        await bed.container.cancel()(bed.execution_id)
        await bed.until(lambda found: stood[-1] == "told")
