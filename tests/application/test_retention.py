"""What is over for long enough is forgotten, little by little, whatever fails."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Any

import pytest

from application import retention as retention_module
from application.authoring import Pipeline, StepContext, step
from application.retention import BATCH, EVERY_S, PAUSE_S, Retention
from domain.errors import Unavailable
from tests.fakes.engine import Engine
from tests.fakes.executions import MemoryExecutions
from tests.fakes.world import settle

DAY_S = 86_400.0


def nothing(context: StepContext) -> None:
    return None


class Noting(MemoryExecutions):
    """Notes how it was asked to forget. error: what the next call raises."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[datetime, int]] = []
        self.error: Exception | None = None

    async def forget(self, before: datetime, limit: int) -> int:
        self.asked.append((before, limit))
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return await super().forget(before, limit)


@pytest.fixture
async def engine() -> Engine:
    return await Engine(Pipeline("one", [step(name="a")(nothing)]), executions=Noting()).open()


def keeping(engine: Engine, days: float) -> Retention:
    return Retention(executions=engine.executions, clock=engine.clock, keep_days=days)


async def there(engine: Engine) -> int:
    return len(await engine.executions.unfinished()) + len(
        {fact.execution_id for fact in engine.executions._facts}
    )


async def running(engine: Engine, days: float) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(keeping(engine, days).run())
    await settle()
    return task


async def test_who_keeps_everything_forgets_nothing(engine: Engine) -> None:
    await engine.ran("one")
    engine.clock.tick(100_000 * DAY_S)
    assert await keeping(engine, 0)() == 0
    await keeping(engine, 0).run()
    assert engine.executions.asked == []
    assert await there(engine) == 1


async def test_only_what_is_older_than_the_days_goes(engine: Engine) -> None:
    old = await engine.ran("one")
    engine.clock.tick(DAY_S)
    young = await engine.ran("one")
    engine.clock.tick(9.5 * DAY_S)
    assert await keeping(engine, 10)() == 1
    assert not engine.executions.has(old.id)
    assert engine.executions.has(young.id)
    engine.clock.tick(DAY_S)
    assert await keeping(engine, 10)() == 1
    assert not engine.executions.has(young.id)


async def test_it_goes_in_batches_with_time_for_others_between_them(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 3)
    for _ in range(8):
        await engine.ran("one")
    engine.clock.tick(2 * DAY_S)
    forgetting = asyncio.ensure_future(keeping(engine, 1)())
    for left in (5, 2):
        await settle()
        assert await there(engine) == left
        assert not forgetting.done()
        await engine.clock.advance(PAUSE_S)
    assert await there(engine) == 0
    assert await forgetting == 8
    assert {limit for _, limit in engine.executions.asked} == {3}
    assert len({before for before, _ in engine.executions.asked}) == 1


async def test_it_happens_at_the_start_and_then_every_hour(engine: Engine) -> None:
    await engine.ran("one")
    engine.clock.tick(DAY_S)
    task = await running(engine, 0.01)
    assert await there(engine) == 0
    for hour in (2, 3):
        await engine.ran("one")
        await engine.clock.advance(EVERY_S - 1)
        assert await there(engine) == 1
        await engine.clock.advance(1)
        assert await there(engine) == 0
        assert len(engine.executions.asked) == hour
    assert engine.executions.asked[-1][1] == BATCH
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


@pytest.mark.parametrize("error", [Unavailable("the disk is gone"), RuntimeError("a bug")])
async def test_what_fails_is_logged_and_tried_again_an_hour_later(
    engine: Engine, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.ran("one")
    engine.clock.tick(2 * DAY_S)
    engine.executions.error = error
    with caplog.at_level(logging.WARNING):
        task = await running(engine, 1)
    assert str(error) in caplog.text
    assert bool(caplog.records[0].exc_info) is isinstance(error, RuntimeError), "a bug is traced"
    assert await there(engine) == 1
    assert not task.done()
    await engine.clock.advance(EVERY_S - 1)
    assert len(engine.executions.asked) == 1
    await engine.clock.advance(1)
    assert await there(engine) == 0
    task.cancel()


async def test_a_commit_that_fails_on_the_way_keeps_what_had_gone_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 1)
    for _ in range(3):
        await engine.ran("one")
    engine.clock.tick(2 * DAY_S)
    task = await running(engine, 1)
    assert await there(engine) == 2
    engine.executions.refuse_commits = 1
    await engine.clock.advance(PAUSE_S)
    assert await there(engine) == 2
    await engine.clock.advance(EVERY_S + 2 * PAUSE_S)
    assert await there(engine) == 0
    task.cancel()
