"""The whole engine is paused and goes on: nothing starts before, nothing is left behind after."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from adapters.dispatch.local import LocalDispatcher
from adapters.persistence.database import Database
from adapters.persistence.executions import SqlExecutions
from application.authoring import Pipeline, StepContext, step
from application.hold import AT_ONCE
from domain.errors import IllegalTransition, Unavailable
from domain.execution import ExecutionStatus
from tests.fakes.engine import Engine
from tests.fakes.world import settle, until

BEGUN: list[str] = []


@step()
async def first(context: StepContext) -> dict[str, int]:
    BEGUN.append(str(context.data.get("name")))
    return {"first": 1}


@step(depends_on=["first"])
async def second(context: StepContext) -> dict[str, int]:
    return {"second": 2}


TWO = Pipeline("two", [first, second])
CARD = Pipeline("card", [first], card=True)


@pytest.fixture(autouse=True)
def _nothing_begun() -> None:
    BEGUN.clear()


async def build(executions: Any = None) -> Engine:
    """A process: opened as ``bootstrap`` opens one."""
    engine = Engine(TWO, CARD, dispatcher=LocalDispatcher({"default": 100}), executions=executions)
    await engine.open()
    await engine.hold.open()
    return engine


async def status(engine: Engine, made: int) -> str:
    await settle(60)
    return str((await engine.executions.get(made)).status)


async def test_what_is_triggered_while_the_engine_is_held_is_pending_and_begins_with_it() -> None:
    engine = await build()
    await engine.hold.pause()
    answer = await engine.trigger("two", {"name": "a"}, message_id="m")
    assert (answer.execution.status, answer.duplicate) == ("pending", None)
    assert answer.execution.started_at is None
    assert answer.execution.engine_paused_at == "2026-11-22T08:29:00.000Z"
    made = answer.execution.id
    assert await status(engine, made) == "pending"
    assert await engine.log() == []
    again = await engine.trigger("two", {"name": "a"}, message_id="m")
    assert (again.execution.status, again.duplicate) == ("pending", "message")
    await engine.hold.resume()
    assert await status(engine, made) == "completed"
    assert (await engine.log())[0].type == "pipeline:started"
    assert (await engine.status.get(made)).engine_paused_at is None


async def test_pausing_and_resuming_twice_is_the_same_as_once() -> None:
    engine = await build()
    await engine.hold.resume()
    assert engine.hold.held_at is None
    await engine.hold.pause()
    since = engine.hold.held_at
    await engine.clock.advance(60)
    await engine.hold.pause()
    assert engine.hold.held_at == since == await engine.executions.held_at()
    assert engine.dispatcher.load().held
    await engine.hold.resume()
    await engine.hold.resume()
    assert engine.hold.held_at is await engine.executions.held_at() is None
    assert not engine.dispatcher.load().held


async def test_a_card_that_waits_for_the_engine_is_under_way() -> None:
    engine = await build()
    await engine.hold.pause()
    made = await engine.trigger("card", {"sd_path": "/cards/a"}, message_id="m1")
    again = await engine.trigger("card", {"sd_path": "/cards/a"}, message_id="m2")
    assert (again.duplicate, again.execution.id) == ("card", made.execution.id)
    assert again.execution.status == "pending"


async def test_a_pending_execution_is_cancelled_and_never_begins() -> None:
    engine = await build()
    await engine.hold.pause()
    made = (await engine.trigger("card", {"sd_path": "/cards/a"})).execution.id
    cancelled = await engine.cancel(made)
    assert (cancelled.status, cancelled.engine_paused_at) == ("cancelled", None)
    other = await engine.trigger("card", {"sd_path": "/cards/a", "name": "b"})
    assert other.duplicate is None, "the card is free again"
    await engine.hold.resume()
    assert await status(engine, made) == "cancelled"
    assert await status(engine, other.execution.id) == "completed"
    assert BEGUN == ["b"]
    with pytest.raises(IllegalTransition):
        await engine.retry(made)


async def test_a_pending_execution_that_is_paused_begins_with_the_engine_and_stays_paused() -> None:
    engine = await build()
    await engine.hold.pause()
    made = (await engine.trigger("two", {"name": "a"})).execution.id
    assert (await engine.pause.pause(made)).status == "pending"
    await engine.hold.resume()
    assert await status(engine, made) == "running"
    found = await engine.executions.get(made)
    assert found.paused_at is not None
    assert BEGUN == []
    await engine.pause.resume(made)
    assert await status(engine, made) == "completed"


async def test_a_pending_execution_whose_own_pause_is_over_waits_for_the_engine_alone() -> None:
    engine = await build()
    await engine.hold.pause()
    made = (await engine.trigger("two", {"name": "a"})).execution.id
    await engine.pause.pause(made)
    assert (await engine.pause.resume(made)).status == "pending"
    assert BEGUN == []
    await engine.hold.resume()
    assert await status(engine, made) == "completed"


async def test_a_part_that_is_run_again_while_the_engine_is_held_is_pending() -> None:
    engine = await build()
    made = (await engine.trigger("two", {"name": "a"})).execution.id
    assert await status(engine, made) == "completed"
    await engine.hold.pause()
    again = await engine.rerun(made, "second")
    assert (again.status, again.rerun_of) == ("pending", made)
    assert again.engine_paused_at is not None
    await engine.hold.resume()
    assert await status(engine, again.id) == "completed"
    assert BEGUN == ["a"]


async def test_what_ran_when_the_engine_was_paused_says_why_it_goes_no_further() -> None:
    engine = await build()
    made = (await engine.trigger("two", {"name": "a"})).execution.id
    await engine.hold.pause()
    assert await status(engine, made) == "running"
    view = await engine.status.get(made)
    assert view.engine_paused_at is not None
    assert [each.status for each in view.steps] == ["completed", "pending"]
    await engine.hold.resume()
    assert await status(engine, made) == "completed"


async def test_more_than_fit_into_one_go_begin_in_the_order_of_their_triggers() -> None:
    engine = await build()
    await engine.hold.pause()
    names = [str(number) for number in range(AT_ONCE + 10)]
    for name in names:
        await engine.trigger("two", {"name": name})
    await engine.hold.resume()
    await settle(200)
    assert sorted(BEGUN, key=int) == names
    started = [f.execution_id for f in await engine.log() if f.type == "pipeline:started"]
    assert started == sorted(started)


@pytest.mark.parametrize("turns", range(8))
async def test_a_trigger_that_is_on_its_way_while_the_engine_resumes_is_not_left_behind(
    turns: int,
) -> None:
    engine = await build()
    await engine.hold.pause()
    asked = [
        asyncio.ensure_future(engine.trigger(kind, {"name": "a", "sd_path": f"/c/{kind}"}))
        for kind in ("two", "card")
    ]
    await settle(turns)
    await engine.hold.resume()
    for each in asked:
        assert await status(engine, (await each).execution.id) == "completed"


# -- when the store can't, and when the process dies -------------------------------


async def test_a_pause_that_cant_be_stored_holds_nothing() -> None:
    engine = await build()
    engine.executions.refuse_commits = 1
    with pytest.raises(Unavailable):
        await engine.hold.pause()
    assert not engine.dispatcher.load().held
    made = (await engine.trigger("two", {"name": "a"})).execution.id
    assert await status(engine, made) == "completed"


@pytest.mark.parametrize("stored", [0, 1, 2, 3])
async def test_a_resume_that_cant_be_stored_leaves_it_held_and_is_asked_again(stored: int) -> None:
    """It fails at its own commit, or at one of those that begin what is pending."""
    engine = await build()
    await engine.hold.pause()
    made = [(await engine.trigger("two", {"name": name})).execution.id for name in "abc"]
    before, commit = engine.executions.commits, engine.executions._commit

    def full_disk() -> None:
        if engine.executions.commits - before >= stored:
            raise Unavailable("the disk is full")
        commit()

    engine.executions._commit = full_disk
    with pytest.raises(Unavailable):
        await engine.hold.resume()
    await settle()
    engine.executions._commit = commit
    assert engine.hold.held_at is not None
    assert engine.dispatcher.load().held
    assert BEGUN == []
    late = await engine.trigger("two", {"name": "d"})
    assert late.execution.status == "pending"
    await engine.hold.resume()
    for each in (*made, late.execution.id):
        assert await status(engine, each) == "completed"


async def test_a_process_that_starts_where_the_engine_is_held_recovers_and_starts_nothing() -> None:
    engine = await build()
    running = (await engine.trigger("two", {"name": "a"})).execution.id
    await engine.hold.pause()
    pending = (await engine.trigger("two", {"name": "b"})).execution.id
    await settle()
    begun = list(BEGUN)
    survivor = await build(engine.executions)
    assert survivor.hold.held_at == engine.hold.held_at is not None
    assert await survivor.recovery() == 2
    assert await status(survivor, running) == "running"
    assert await status(survivor, pending) == "pending"
    assert begun == BEGUN
    await survivor.hold.resume()
    for made in (running, pending):
        assert await status(survivor, made) == "completed"


async def test_what_a_resume_that_was_killed_left_pending_begins_at_the_next_start() -> None:
    engine = await build()
    await engine.hold.pause()
    made = (await engine.trigger("two", {"name": "a"})).execution.id
    await engine.executions.hold(None)  # and the process is gone
    survivor = await build(engine.executions)
    assert survivor.hold.held_at is None
    await survivor.recovery()
    found = await survivor.executions.get(made)
    assert found.status is ExecutionStatus.RUNNING
    assert await status(survivor, made) == "completed"


async def test_on_sqlite_a_trigger_that_waits_for_the_disk_is_not_left_behind_by_a_resume(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path}/r.db")
    database.open()
    executions = SqlExecutions(database)
    engine = await build(executions)
    await engine.hold.pause()
    busy, go_on = threading.Event(), threading.Event()

    def work(batch: object) -> None:
        busy.set()
        assert go_on.wait(10)

    writing = asyncio.ensure_future(executions.writer.run(work))
    await until(busy.is_set)
    asked = asyncio.ensure_future(engine.trigger("two", {"name": "a"}))
    await settle()
    resuming = asyncio.ensure_future(engine.hold.resume())
    later = asyncio.ensure_future(engine.trigger("two", {"name": "b"}))
    await settle()
    go_on.set()
    await asyncio.gather(writing, resuming)
    assert (await asked).execution.status == "pending"
    assert (await later).execution.status == "running"
    await until(lambda: len(BEGUN) == 2)
    await engine.dispatcher.stop()
    await executions.close()
    database.close()
