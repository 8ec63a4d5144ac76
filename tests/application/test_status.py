"""An answer is given again only as long as it is true."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from adapters.dispatch.local import LocalDispatcher
from application import status as status_module
from application.authoring import (
    PermanentError,
    Pipeline,
    StepContext,
    external_step,
    step,
)
from application.feed import Entry
from application.ports import AttemptRef, Started
from application.status import Status
from application.views import ExecutionView
from domain.errors import ExecutionNotFound
from domain.execution import Execution
from tests.fakes.engine import Engine
from tests.fakes.executions import MemoryExecutions
from tests.fakes.world import until


class Encoder:
    """Counts what it has encoded."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, view: ExecutionView) -> bytes:
        self.calls += 1
        return msgspec.json.encode(view)


class SlowExecutions(MemoryExecutions):
    """Reads, and keeps what it has read for as long as ``gate`` is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.reading = False

    async def get(self, reference: str | int) -> Execution:
        found = await super().get(reference)
        self.reading = True
        await self.gate.wait()
        return found


def two() -> Pipeline:
    return Pipeline("two", [external_step("a"), external_step("b", depends_on=["a"])])


@pytest.fixture
async def engine() -> Engine:
    return await Engine(two()).open()


async def asked(engine: Engine, encoder: Encoder, reference: str | int) -> Any:
    return msgspec.json.decode(await engine.status.encoded(reference, encoder.encode))


async def test_what_is_not_there_is_not_found_however_often_it_is_asked(engine: Engine) -> None:
    for reference in (7, "7", "nobody", 0, -1):
        for _ in range(2):
            with pytest.raises(ExecutionNotFound):
                await engine.status.encoded(reference, msgspec.json.encode)


async def test_the_answer_is_made_once_by_uuid_and_by_id_until_something_changes(
    engine: Engine,
) -> None:
    encoder = Encoder()
    made = (await engine.trigger("two", {})).execution
    for reference in (made.id, made.uuid, made.id, made.uuid):
        assert (await asked(engine, encoder, reference))["steps"][0]["status"] == "running"
    assert encoder.calls == 1
    await engine.advance.complete_external(made.id, "a", 1, {"x": 1})
    for reference in (made.uuid, made.id):
        shown = await asked(engine, encoder, reference)
        assert [each["status"] for each in shown["steps"]] == ["completed", "running"]
    assert encoder.calls == 2
    assert shown == msgspec.json.decode(msgspec.json.encode(await engine.status.get(made.id)))


async def test_whoever_has_heard_an_event_is_answered_with_nothing_older(engine: Engine) -> None:
    encoder = Encoder()
    heard: list[tuple[Entry, Any]] = []

    async def follow() -> None:
        async for entry in engine.feed.follow(0):
            heard.append((entry, await asked(engine, encoder, made.id)))

    made = (await engine.trigger("two", {})).execution
    await asked(engine, encoder, made.id)
    following = asyncio.create_task(follow())
    for key in ("a", "b"):
        await engine.advance.complete_external(made.id, key, 1, {})
    await until(lambda: bool(heard) and heard[-1][0].message.type == "pipeline:completed")
    for entry, shown in heard:
        statuses = {each["step_key"]: each["status"] for each in shown["steps"]}
        if entry.message.type == "pipeline:step_completed":
            assert statuses[entry.message.data["step_key"]] == "completed"
        if entry.message.type == "pipeline:completed":
            assert shown["status"] == "completed"
    engine.feed.close()
    await following


async def test_progress_between_commits_is_in_the_next_answer(engine: Engine) -> None:
    encoder = Encoder()
    made = (await engine.trigger("two", {})).execution
    assert (await asked(engine, encoder, made.id))["steps"][0]["progress"] == 0
    await engine.advance.beat_external(made.id, "a", 1, progress=30)
    before = encoder.calls
    assert (await asked(engine, encoder, made.id))["steps"][0]["progress"] == 30
    execution = await engine.executions.get(made.id)
    engine.board.note(Started(execution, execution.step("a")), 0.6, {})
    assert (await asked(engine, encoder, made.id))["steps"][0]["progress"] == 60
    assert (await asked(engine, encoder, made.id))["steps"][0]["progress"] == 60
    assert encoder.calls == before + 2
    engine.board.end(AttemptRef(made.id, "a", 1))
    # What was noted, and never committed, is known no more.
    assert (await asked(engine, encoder, made.id))["steps"][0]["progress"] == 30


async def test_a_held_engine_is_in_the_next_answer_and_in_what_every_verb_answers() -> None:
    @step(name="f")
    async def fails(context: StepContext) -> None:
        raise PermanentError("no")

    encoder = Encoder()
    engine = Engine(two(), Pipeline("fails", [fails]), dispatcher=LocalDispatcher({"default": 4}))
    await engine.open()
    made = (await engine.trigger("two", {})).execution
    failed = [(await engine.trigger("fails", {})).execution.id for _ in range(3)]
    for each in failed:
        await until(lambda each=each: engine.executions.committed(each).status == "failed")
    await asked(engine, encoder, made.id)
    await engine.hold.pause()
    since = (await asked(engine, encoder, made.id))["engine_paused_at"]
    assert since is not None
    answers = [
        await engine.pause.pause(made.id),
        await engine.pause.resume(made.id),
        await engine.advance.complete_external(made.id, "a", 1, {}),
        await engine.retry(failed[0]),
        (await engine.trigger("two", {})).execution,
    ]
    assert {each.engine_paused_at for each in answers} == {since}
    # What has ended waits for no engine.
    for ended in (
        await engine.settle.skip(failed[1], "f"),
        await engine.settle.complete(failed[2], "f", {}),
        await engine.cancel(made.id),
    ):
        assert (ended.engine_paused_at, ended.status in ("completed", "cancelled")) == (None, True)
    assert (await asked(engine, encoder, failed[0]))["engine_paused_at"] == since
    await engine.hold.resume()
    assert (await asked(engine, encoder, failed[0]))["engine_paused_at"] is None
    await engine.dispatcher.stop()


async def test_what_changes_while_it_is_read_is_not_kept() -> None:
    encoder = Encoder()
    executions = SlowExecutions()
    engine = await Engine(two(), executions=executions).open()
    made = (await engine.trigger("two", {})).execution
    executions.gate.clear()
    reading = asyncio.create_task(asked(engine, encoder, made.id))
    await until(lambda: executions.reading)
    await executions.apply(made.id, lambda e: e.cancel(at=engine.clock.now()))
    executions.gate.set()
    assert (await reading)["status"] == "running"
    assert (await asked(engine, encoder, made.id))["status"] == "cancelled"


async def test_what_is_forgotten_is_not_found_by_whoever_had_it() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: None)])).open()
    done = await engine.ran("one")
    encoder = Encoder()
    for reference in (done.id, done.uuid):
        assert (await asked(engine, encoder, reference))["status"] == "completed"
    engine.clock.tick(10)
    assert await engine.executions.forget(engine.clock.now(), 10) == 1
    for reference in (done.id, done.uuid):
        with pytest.raises(ExecutionNotFound):
            await asked(engine, encoder, reference)


async def test_two_ways_to_write_it_are_both_kept(engine: Engine) -> None:
    made = (await engine.trigger("two", {})).execution
    encoders = [Encoder(), Encoder()]
    for _ in range(2):
        for encoder in encoders:
            await asked(engine, encoder, made.id)
    assert [encoder.calls for encoder in encoders] == [1, 1]


async def test_no_more_is_kept_than_there_is_room_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [(await engine.trigger("two", {})).execution.id for _ in range(3)]
    size = len(await engine.status.encoded(made[0], msgspec.json.encode))
    monkeypatch.setattr(status_module, "KEPT_BYTES", 2 * size + size // 2)
    status = Status(executions=engine.executions, progress=engine.board, hold=engine.hold)
    encoder = Encoder()
    for execution_id in made:
        await status.encoded(execution_id, encoder.encode)
    assert encoder.calls == 3
    for execution_id in (made[2], made[1]):
        await status.encoded(execution_id, encoder.encode)
    assert encoder.calls == 3
    await status.encoded(made[0], encoder.encode)
    assert encoder.calls == 4
    # Who was asked for last stays longest.
    await status.encoded(made[1], encoder.encode)
    assert encoder.calls == 4
