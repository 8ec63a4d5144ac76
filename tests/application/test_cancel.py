"""An execution that is stopped tells whoever works on it."""

from __future__ import annotations

import asyncio

import pytest

from adapters.testkit.executions import MemoryExecutions
from application.authoring import Pipeline, StepContext, step
from application.ports import Change
from domain.execution import Execution
from tests.fakes.engine import Engine
from tests.fakes.world import ManualDispatcher, settle


@step()
def work(context: StepContext) -> None:
    return None


class Answering(MemoryExecutions):
    """Its answer takes a few turns of the loop, as a writer's on another thread."""

    async def update(self, reference: str | int, change: Change) -> Execution:
        updated = await super().update(reference, change)
        for _ in range(3):
            await asyncio.sleep(0)
        return updated


@pytest.mark.parametrize("turns", range(8))
async def test_handlers_are_told_also_if_who_cancelled_goes_away_meanwhile(turns: int) -> None:
    dispatcher = ManualDispatcher()
    engine = await Engine(
        Pipeline("p", [work]), dispatcher=dispatcher, executions=Answering()
    ).open()
    made = (await engine.trigger("p", {})).execution.id
    asking = asyncio.create_task(engine.cancel(made))
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.cancel()
    await settle(20)
    is_cancelled = (await engine.executions.get(made)).status == "cancelled"
    assert dispatcher.cancelled == [made] * is_cancelled
    assert is_cancelled or turns < 4
