"""Pools are never exceeded, nobody is overtaken, no slot is lost, and nothing is forgotten."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adapters.dispatch.local import START_AGAIN_S, LocalDispatcher
from adapters.dispatch.pools import most_at_work
from adapters.persistence.database import Database
from adapters.persistence.executions import SqlExecutions
from adapters.system import LoopThreads
from application.authoring import (
    Interrupted,
    KeyLimit,
    Pipeline,
    RetryPolicy,
    StepContext,
    StepError,
    external_step,
    step,
)
from application.ports import Change, Query
from domain.errors import Unavailable
from domain.execution import ExecutionStatus
from tests.fakes.engine import Engine
from tests.fakes.executions import MemoryExecutions
from tests.fakes.world import settle, until


class Workshop:
    """Handlers that begin, wait for the test's word, and end; and how many there were at once."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.gates: dict[str, asyncio.Event] = {}
        self.open = False

    def handler(self, pool: str = "default") -> Callable[[StepContext], Awaitable[None]]:
        async def work(context: StepContext) -> None:
            name = f"{context.data.get('name')}.{context.step_name}"
            self.begun.append(name)
            self.now[pool] += 1
            self.most[pool] = max(self.most[pool], self.now[pool])
            try:
                if not self.open:
                    await self.gates.setdefault(name, asyncio.Event()).wait()
                else:
                    await settle(15)
            finally:
                self.now[pool] -= 1

        return work

    def finish(self, *names: str) -> None:
        for name in names:
            self.gates[name].set()


ABANDON_AFTER_S = 60.0


def build(*pipelines: Pipeline, executions: Any = None, **pools: int) -> Engine:
    return Engine(
        *pipelines,
        dispatcher=LocalDispatcher(pools, abandon_after_s=ABANDON_AFTER_S),
        executions=executions,
        pools=tuple(pools),
    )


async def drive(engine: Engine, condition: Callable[[], Any]) -> None:
    """Let things run, and the time with them, until it is so."""
    for _ in range(2_000):
        await settle()
        if condition():
            return
        if engine.clock.sleeping:
            await engine.clock.advance(0.5)
    raise AssertionError("it never came to that")


async def statuses(engine: Engine) -> Counter[str]:
    listed = await engine.executions.list(Query(limit=100_000))
    return Counter(str(execution.status) for execution in listed)


async def all_end(engine: Engine, count: int) -> Counter[str]:
    """Let everything run until so many executions have ended."""
    for _ in range(5_000):
        await settle()
        found = await statuses(engine)
        if found["completed"] + found["failed"] >= count:
            return found
        if engine.clock.sleeping:
            await engine.clock.advance(0.5)
    raise AssertionError(f"not all {count} ended: {found}")


async def trigger(engine: Engine, name: str, pipeline: str = "one") -> int:
    return (await engine.trigger(pipeline, {"name": name})).execution.id


async def test_no_more_run_at_once_than_a_pool_has_slots() -> None:
    shop = Workshop()
    steps = [step(name=f"s{n}")(shop.handler()) for n in range(5)]
    engine = await build(Pipeline("one", steps), default=3).open()
    for number in range(4):
        await trigger(engine, str(number))
    await settle()
    assert shop.most["default"] == shop.now["default"] == engine.dispatcher.running == 3
    while shop.now["default"]:
        shop.finish(shop.begun[len(shop.begun) - shop.now["default"]])
        await settle()
        assert shop.now["default"] <= 3
    assert shop.most["default"] == 3
    assert await statuses(engine) == {"completed": 4}


async def test_pools_do_not_take_each_others_slots() -> None:
    shop = Workshop()
    steps = [
        step(name="copy", pool="disk")(shop.handler("disk")),
        step(name="probe")(shop.handler()),
    ]
    engine = await build(Pipeline("one", steps), default=2, disk=1).open()
    for name in "abc":
        await trigger(engine, name)
    await settle()
    assert shop.begun == ["a.copy", "a.probe", "b.probe"]
    shop.finish("a.copy")
    await settle()
    assert shop.begun[3:] == ["b.copy"]


async def test_who_has_waited_longest_is_next() -> None:
    shop = Workshop()
    steps = [
        step(name="x")(shop.handler()),
        step(name="y", depends_on=["x"])(shop.handler()),
    ]
    engine = await build(Pipeline("one", steps), default=1).open()
    for name in "abc":
        await trigger(engine, name)
    order = ["a.x", "b.x", "c.x", "a.y", "b.y", "c.y"]
    for name in order:
        await settle()
        shop.finish(name)
    await all_end(engine, 3)
    assert shop.begun == order


async def test_where_nobody_waits_what_follows_starts_with_the_commit_of_what_ended() -> None:
    shop = Workshop()
    shop.open = True
    steps = [step(name="x")(shop.handler()), step(name="y", depends_on=["x"])(shop.handler())]
    engine = await build(Pipeline("one", steps), default=1).open()
    await trigger(engine, "a")
    await all_end(engine, 1)
    assert engine.executions.commits == 3


async def test_a_slot_of_a_trigger_that_cant_be_stored_is_free_again() -> None:
    shop = Workshop()
    engine = await build(Pipeline("one", [step(name="x")(shop.handler())]), default=1).open()
    engine.executions.refuse_commits = 1
    with pytest.raises(Unavailable):
        await trigger(engine, "a")
    await trigger(engine, "b")
    await settle()
    assert shop.begun == ["b.x"]


async def test_a_slot_that_a_failed_commit_gives_back_goes_to_who_waits() -> None:
    shop = Workshop()
    slow, fast = step(name="x")(shop.handler()), step(name="y")(shop.handler())
    engine = await build(Pipeline("one", [slow]), Pipeline("two", [fast]), default=1).open()
    await trigger(engine, "a")
    await trigger(engine, "b")
    await trigger(engine, "c", "two")
    await settle()
    engine.executions.refuse_commits = 2  # of the report, and of the start that follows
    shop.finish("a.x")
    await drive(engine, lambda: len(shop.begun) == 2)
    shop.finish(shop.begun[-1])
    await drive(engine, lambda: len(shop.begun) == 3)
    shop.finish(shop.begun[-1])
    assert await all_end(engine, 3) == {"completed": 3}
    assert shop.most["default"] == 1


async def test_a_start_that_cant_be_stored_is_tried_again() -> None:
    shop = Workshop()
    engine = await build(Pipeline("one", [step(name="x")(shop.handler())]), default=1).open()
    await trigger(engine, "a")
    await trigger(engine, "b")
    await settle()
    apply, failures = engine.executions.apply, [Unavailable("full")] * 3

    async def failing(execution_id: int, change: Any) -> Any:
        if execution_id == 2 and failures:
            raise failures.pop()
        return await apply(execution_id, change)

    engine.executions.apply = failing
    shop.finish("a.x")
    for _ in range(3):
        await settle()
        assert shop.begun == ["a.x"]
        await engine.clock.advance(START_AGAIN_S)
    assert shop.begun == ["a.x", "b.x"]


async def test_a_place_in_the_queue_that_is_no_longer_wanted_is_passed_on() -> None:
    shop = Workshop()
    pipeline = Pipeline("two", [external_step("render"), step(name="x")(shop.handler())])
    engine = await build(
        Pipeline("one", [step(name="x")(shop.handler())]), pipeline, default=1
    ).open()
    await trigger(engine, "a")
    doomed = await trigger(engine, "b", "two")
    await trigger(engine, "c")
    await settle()
    await engine.advance.fail_external(doomed, "render", 1, "no")
    shop.finish("a.x")
    await settle()
    assert shop.begun == ["a.x", "c.x"]


async def test_a_retried_step_runs_though_its_old_place_was_passed_on() -> None:
    shop = Workshop()
    pipeline = Pipeline("two", [external_step("render"), step(name="x")(shop.handler())])
    engine = await build(
        Pipeline("one", [step(name="x")(shop.handler())]), pipeline, default=1
    ).open()
    await trigger(engine, "a")
    doomed = await trigger(engine, "b", "two")
    await engine.advance.fail_external(doomed, "render", 1, "no")
    shop.finish("a.x")
    await settle()
    await engine.retry(doomed)
    await settle()
    assert shop.begun == ["a.x", "b.x"]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_fails_on_the_way_many_executions_all_end_within_the_bounds(
    seed: int,
) -> None:
    chance = random.Random(seed)
    shop = Workshop()
    shop.open = True

    async def flaky(context: StepContext) -> None:
        await shop.handler("disk")(context)
        if context.attempt == 1 and context.data["flaky"]:
            raise StepError("not today")

    steps = [
        step(name="scan")(shop.handler()),
        step(name="left", depends_on=["scan"])(shop.handler()),
        step(name="right", depends_on=["scan"], pool="disk")(flaky),
        step(name="last", depends_on=["left", "right"])(shop.handler()),
    ]
    engine = await build(Pipeline("one", steps), default=3, disk=2).open()
    made = []
    while len(made) < 60:
        engine.executions.refuse_commits = chance.choice([0, 0, 0, 1, 2])
        try:
            answer = await engine.trigger("one", {"flaky": chance.random() < 0.3})
            made.append(answer.execution.id)
        except Unavailable:
            pass
        await settle(chance.randrange(4))
    await all_end(engine, len(made))
    failed = await engine.executions.list(Query(status=ExecutionStatus.FAILED, limit=1000))
    for execution in failed:
        await engine.retry(execution.id)
    assert await all_end(engine, len(made)) is not None
    await drive(engine, lambda: not engine.dispatcher.running)
    assert await statuses(engine) == {"completed": len(made)}
    assert shop.most == {"default": 3, "disk": 2}, "never more"
    shop.most.clear()
    await asyncio.gather(*(engine.trigger("one", {"flaky": False}) for _ in range(20)))
    await all_end(engine, len(made) + 20)
    assert shop.most == {"default": 3, "disk": 2}, "no slot was lost on the way"


# -- handlers that don't end when they are told to ---------------------------------


class Deaf:
    """Handlers that end when the test says so, and not when they are told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let_go = asyncio.Event()

    async def __call__(self, context: StepContext) -> dict[str, bool]:
        self.begun.append(f"{context.data.get('name')}.{context.attempt}")
        while not self.let_go.is_set():
            with suppress(asyncio.CancelledError):
                await self.let_go.wait()
        return {"too_late": True}


@pytest.fixture
async def deaf() -> AsyncIterator[Deaf]:
    made = Deaf()
    yield made
    made.let_go.set()  # or the loop would wait for it for ever


async def load(engine: Engine) -> dict[str, Any]:
    """What the dispatcher says of itself, in short."""
    await settle()
    said = engine.dispatcher.load()
    return {
        "overdue": [f"{ref.execution_id}.{ref.attempt}" for ref in said.overdue],
        "abandoned": [f"{ref.execution_id}.{ref.attempt}" for ref in said.abandoned],
        "waiting": said.waiting,
    }


async def test_a_handler_that_ignores_its_timeout_keeps_its_slot_for_a_while_and_no_longer(
    deaf: Deaf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop = Workshop()
    late = Pipeline("one", [step(name="x", run_timeout_s=10)(deaf)])
    other = Pipeline("two", [step(name="y")(shop.handler())])
    engine = await build(late, other, default=1).open()
    first = await trigger(engine, "a")
    await trigger(engine, "b", "two")
    await settle()
    await engine.clock.advance(10)
    assert (await engine.executions.get(first)).status is ExecutionStatus.FAILED
    assert await load(engine) == {"overdue": ["1.1"], "abandoned": [], "waiting": 1}
    await engine.clock.advance(ABANDON_AFTER_S - 0.1)
    assert shop.begun == []
    assert "abandoned" not in caplog.text
    await engine.clock.advance(0.1)
    assert shop.begun == ["b.y"]
    assert await load(engine) == {"overdue": [], "abandoned": ["1.1"], "waiting": 0}
    assert "x of execution 1, attempt 1 is abandoned" in caplog.text
    deaf.let_go.set()
    assert await load(engine) == {"overdue": [], "abandoned": [], "waiting": 0}
    ended = await engine.executions.get(first)
    assert (ended.status, ended.data) == (ExecutionStatus.FAILED, {"name": "a"})
    await trigger(engine, "c", "two")
    await settle()
    assert shop.begun == ["b.y"], "there is one slot, as before"
    shop.finish("b.y")
    await settle()
    assert shop.begun == ["b.y", "c.y"]


async def test_the_bound_counts_from_the_cancel_and_what_it_says_then_is_refused(
    deaf: Deaf,
) -> None:
    shop = Workshop()
    engine = await build(
        Pipeline("one", [step(name="x", run_timeout_s=50)(deaf)]),
        Pipeline("two", [step(name="y")(shop.handler())]),
        default=1,
    ).open()
    first = await trigger(engine, "a")
    await trigger(engine, "b", "two")
    await settle()
    await engine.cancel(first)
    await settle()
    # Being cancelled again, and its own timeout meanwhile, don't make it longer.
    await engine.clock.advance(30)
    await engine.cancel(first)
    await engine.clock.advance(ABANDON_AFTER_S - 30.1)
    assert await load(engine) == {"overdue": ["1.1"], "abandoned": [], "waiting": 1}
    await engine.clock.advance(0.1)
    assert await load(engine) == {"overdue": [], "abandoned": ["1.1"], "waiting": 0}
    assert shop.begun == ["b.y"]
    deaf.let_go.set()
    assert (await load(engine))["abandoned"] == []
    ended = await engine.executions.get(first)
    assert (ended.status, ended.data) == (ExecutionStatus.CANCELLED, {"name": "a"})


async def test_a_handler_that_ends_within_the_bound_is_never_abandoned(
    deaf: Deaf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = await build(
        Pipeline("one", [step(name="x", run_timeout_s=10)(deaf)]), default=1
    ).open()
    await trigger(engine, "a")
    await settle()
    await engine.clock.advance(10 + ABANDON_AFTER_S - 1)
    deaf.let_go.set()
    await settle()
    assert engine.clock.sleeping == 0, "nothing is left that would look at it"
    await engine.clock.advance(10)
    assert "abandoned" not in caplog.text
    assert engine.dispatcher.running == 0


async def test_the_next_attempt_waits_for_what_the_abandoned_one_has_its_hands_on(
    deaf: Deaf,
) -> None:
    copying = step(
        name="x", run_timeout_s=10, limits=[KeyLimit("reader", 1)],
        retry=RetryPolicy(retries=1, delay_s=1, jitter=0),
    )(deaf)  # fmt: skip
    engine = await build(Pipeline("one", [copying]), default=1).open()
    made = (await engine.trigger("one", {"name": "a", "reader": "usb1"})).execution.id
    other = (await engine.trigger("one", {"name": "b", "reader": "usb2"})).execution.id
    await settle()
    await engine.clock.advance(10 + ABANDON_AFTER_S + 1)
    assert deaf.begun == ["a.1", "b.1"], "the slot is free, and the first reader is not"
    assert await load(engine) == {"overdue": [], "abandoned": [f"{made}.1"], "waiting": 1}
    deaf.let_go.set()
    await drive(engine, lambda: "a.2" in deaf.begun)
    assert await all_end(engine, 2) == {"completed": 2}
    assert (await engine.executions.get(made)).step("x").attempt == 2
    assert (await engine.executions.get(other)).step("x").attempt == 1


async def test_an_attempt_gives_back_what_it_took_itself_and_not_what_a_late_one_has(
    deaf: Deaf,
) -> None:
    """What a limit goes by may be said, or be another, from one attempt to the next."""
    shop = Workshop()
    shop.open = True

    async def copy(context: StepContext) -> None:
        if context.attempt == 1:
            await deaf(context)

    async def choose(context: StepContext) -> dict[str, str]:
        await shop.handler()(context)
        return {"reader": "usb1"}

    copying = step(
        name="copy", run_timeout_s=10, limits=[KeyLimit("reader", 1)],
        retry=RetryPolicy(retries=1, delay_s=1, jitter=0),
    )(copy)  # fmt: skip
    other = Pipeline("two", [step(name="y", limits=[KeyLimit("reader", 1)])(shop.handler())])
    engine = await build(
        Pipeline("one", [copying, step(name="choose")(choose)]), other, default=4
    ).open()
    await trigger(engine, "a")
    assert await all_end(engine, 1) == {"completed": 1}
    assert [ref.attempt for ref in engine.dispatcher.load().overdue] == [1]
    await engine.trigger("two", {"name": "b", "reader": "usb1"})
    await drive(engine, lambda: "b.y" in shop.begun)
    assert deaf.begun == ["a.1"]
    assert engine.dispatcher.load().waiting == 0


async def test_what_nobody_here_runs_starts_without_a_slot_but_not_while_the_engine_is_held() -> (
    None
):
    shop = Workshop()
    asking = Pipeline("asking", [external_step("ask")])
    busy = Pipeline("one", [step(name="x")(shop.handler())])
    engine = await build(asking, busy, default=1).open()
    await trigger(engine, "a")
    first = await trigger(engine, "b", "asking")
    assert (await engine.executions.get(first)).waits_for() == ["ask"]
    await engine.advance.fail_external(first, "ask", 1, "not now")
    engine.dispatcher.hold()
    await engine.retry(first)
    held = (await engine.executions.get(first)).step("ask")
    assert (str(held.status), held.attempt) == ("pending", 1)
    assert engine.dispatcher.load().waiting == 1
    engine.dispatcher.go_on()
    await settle()
    assert (await engine.executions.get(first)).waits_for() == ["ask"]
    assert engine.dispatcher.load().waiting == 0
    shop.finish("a.x")


async def test_nobody_has_waited_too_long_for_a_slot_while_the_engine_is_held() -> None:
    shop = Workshop()
    patient = Pipeline("patient", [step(name="y", queue_timeout_s=10)(shop.handler())])
    busy = Pipeline("one", [step(name="x")(shop.handler())])
    engine = await build(busy, patient, default=1).open()
    await trigger(engine, "a")
    made = await trigger(engine, "b", "patient")
    await settle()
    engine.dispatcher.hold()
    await engine.clock.advance(100)
    assert (await engine.executions.get(made)).status == "running"
    engine.dispatcher.go_on()
    await engine.clock.advance(100)
    failed = await engine.executions.get(made)
    assert failed.status == "failed"
    assert "waited more than 10 s" in str(failed.error_message)
    shop.finish("a.x")


async def test_when_too_many_of_a_pool_are_abandoned_the_next_one_keeps_its_slot(
    deaf: Deaf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop = Workshop()
    engine = await build(
        Pipeline("one", [step(name="x", run_timeout_s=10)(deaf)]),
        Pipeline("two", [step(name="y")(shop.handler())]),
        default=1,
    ).open()
    for name in ("a", "b"):
        await trigger(engine, name)
        await settle()
        await engine.clock.advance(10 + ABANDON_AFTER_S)
    await trigger(engine, "c", "two")
    await engine.clock.advance(10 * ABANDON_AFTER_S)
    assert await load(engine) == {"overdue": ["2.1"], "abandoned": ["1.1"], "waiting": 1}
    assert "only a restart helps" in caplog.text
    assert shop.begun == []
    deaf.let_go.set()
    await settle()
    assert shop.begun == ["c.y"]
    assert (await load(engine))["overdue"] == []


async def test_nothing_waits_longer_for_an_abandoned_handler_when_rushes_stops(
    deaf: Deaf,
) -> None:
    pipeline = Pipeline("one", [step(name="x", run_timeout_s=10)(deaf)])
    engine = build(pipeline, default=1)
    engine.dispatcher = engine.cancel._dispatcher = LocalDispatcher(
        {"default": 1}, grace_s=0.05, abandon_after_s=ABANDON_AFTER_S
    )
    await engine.open()
    await trigger(engine, "a")
    await settle()
    await engine.clock.advance(10 + ABANDON_AFTER_S)
    await asyncio.wait_for(engine.dispatcher.stop(), 10)
    assert engine.dispatcher.running == 1, "whoever ends the process has to know of it"
    deaf.let_go.set()
    await settle()


async def test_threads_that_never_look_up_don_t_starve_the_steps_after_them() -> None:
    """On real threads, as many as ``rushes serve`` would have."""
    let_go, begun = threading.Event(), threading.Semaphore(0)
    done: list[str] = []

    def blocking(context: StepContext) -> None:
        if context.data["name"] == "after":
            done.append(threading.current_thread().name)
            return
        begun.release()
        let_go.wait(60)

    sizes = {"default": 2}
    engine = build(Pipeline("one", [step(name="x", run_timeout_s=10)(blocking)]), **sizes)
    threads = LoopThreads(most_at_work(sizes))
    threads.open()
    engine.runner._threads = threads
    await engine.open()
    try:
        for name in ("a", "b"):
            await trigger(engine, name)
        await until(lambda: begun.acquire(blocking=False))
        await until(lambda: begun.acquire(blocking=False))
        await settle()
        await engine.clock.advance(10 + ABANDON_AFTER_S)
        assert len(engine.dispatcher.load().abandoned) == 2
        last = await trigger(engine, "after")
        await until(lambda: done)
        await drive(engine, lambda: len(engine.dispatcher._working) == 2)
        assert (await engine.executions.get(last)).status is ExecutionStatus.COMPLETED
    finally:
        let_go.set()
    await until(lambda: not engine.dispatcher.running)
    assert engine.dispatcher.load().abandoned == ()
    threads.close()


# -- leases ----------------------------------------------------------------------------


class SlowExecutions(MemoryExecutions):
    """Takes nothing while it is told to wait, or is full."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.is_full = False

    async def apply(self, execution_id: int, change: Change) -> None:
        await self.go_on.wait()
        if self.is_full:
            raise Unavailable("the disk is full")
        await super().apply(execution_id, change)


async def test_who_waits_for_the_store_is_not_silent() -> None:
    executions = SlowExecutions()

    async def diligent(context: StepContext) -> dict[str, int]:
        await context.aheartbeat({"done": 1})
        await engine.clock.sleep(5)
        return {"attempt": context.attempt}

    pipeline = Pipeline("one", [step(name="x", lease_s=10)(diligent)])
    engine = await build(pipeline, executions=executions, default=2).open()
    made = await trigger(engine, "a")
    executions.go_on.clear()
    await settle()
    await engine.clock.advance(60)
    executions.go_on.set()
    await drive(engine, lambda: not engine.dispatcher.running)
    execution = await engine.executions.get(made)
    assert (execution.status, execution.data["attempt"]) == ("completed", 1)
    assert execution.step("x").takeovers == 0


async def test_what_a_handler_says_while_the_disk_is_full_is_stored_once_it_can_be() -> None:
    executions = SlowExecutions()
    left = []

    async def scan(context: StepContext) -> None:
        await engine.clock.sleep(5)
        await context.aheartbeat({"done": 1})
        left.append((await executions.get(context.ref.execution_id)).step("scan").checkpoint)
        await context.aspawn("probe", "a")

    steps = [
        step(name="scan", spawns=["probe"], lease_s=10)(scan),
        step(name="probe", dynamic=True)(lambda context: None),
    ]
    engine = await build(Pipeline("one", steps), executions=executions, default=2).open()
    made = await trigger(engine, "a")
    executions.is_full = True
    await settle()
    await engine.clock.advance(60)
    executions.is_full = False
    await drive(engine, lambda: not engine.dispatcher.running)
    execution = await engine.executions.get(made)
    assert (execution.status, execution.step("scan").attempt) == ("completed", 1)
    assert left == [{"done": 1}]
    assert execution.step("probe:a").status == "completed"


async def test_a_cancel_that_a_handler_has_left_behind_does_not_lose_its_outcome() -> None:
    executions = SlowExecutions()
    tasks: list[asyncio.Task[Any]] = []

    async def careless(context: StepContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await engine.clock.sleep(5)

    engine = await build(
        Pipeline("one", [step(name="x")(careless)]), executions=executions, default=1
    ).open()
    made = await trigger(engine, "a")
    executions.is_full = True
    await settle()
    await engine.clock.advance(5)
    for _ in range(2):
        tasks[0].cancel()
        await settle()
    executions.is_full = False
    await engine.clock.advance(60)
    execution = await engine.executions.get(made)
    assert (execution.status, execution.step("x").status) == ("completed", "completed")


async def test_a_cancel_stops_a_coroutine_that_a_plain_function_returned() -> None:
    ended: list[str] = []

    def decorated(context: StepContext) -> Awaitable[None]:
        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(context.step_key)

        return work()

    engine = await build(Pipeline("one", [step(name="x")(decorated)]), default=1).open()
    made = await trigger(engine, "a")
    await settle()
    await engine.cancel(made)
    await settle()
    assert ended == ["x"]
    assert engine.dispatcher.running == 0


# -- stopping --------------------------------------------------------------------


async def test_what_runs_when_rushes_stops_is_given_back_and_nothing_more_starts() -> None:
    shop = Workshop()
    steps = [step(name="x")(shop.handler()), step(name="y", depends_on=["x"])(shop.handler())]
    engine = await build(Pipeline("one", steps), default=1).open()
    running, waiting = await trigger(engine, "a"), await trigger(engine, "b")
    await settle()
    await asyncio.wait_for(engine.dispatcher.stop(), 10)
    assert engine.dispatcher.running == 0
    late = await trigger(engine, "c")
    await settle()
    assert shop.begun == ["a.x"]
    for each in (running, waiting, late):
        execution = await engine.executions.get(each)
        assert (execution.status, execution.step("x").status) == ("running", "pending")
        assert execution.step("x").takeovers == 0

    shop.open = True
    survivor = await build(Pipeline("one", steps), executions=engine.executions, default=1).open()
    await survivor.recovery()
    assert await all_end(survivor, 3) == {"completed": 3}


async def test_a_step_that_was_launched_just_before_the_stop_is_given_back() -> None:
    shop = Workshop()
    engine = await build(Pipeline("one", [step(name="x")(shop.handler())]), default=1).open()
    made = await trigger(engine, "a")  # launched, and its task has had no turn yet
    await engine.dispatcher.stop()
    execution = await engine.executions.get(made)
    assert (execution.step("x").status, execution.step("x").takeovers) == ("pending", 0)
    assert engine.dispatcher.running == 0


async def test_a_step_whose_commit_was_under_way_at_the_stop_is_given_back_unrun() -> None:
    shop = Workshop()
    pipeline = Pipeline("one", [step(name="x")(shop.handler())])
    engine = await build(pipeline, default=2).open()
    launch, held = engine.dispatcher.launch, []
    engine.dispatcher.launch = held.append
    made = await trigger(engine, "a")
    engine.dispatcher.launch = launch
    await engine.dispatcher.stop()
    for started in held:
        engine.dispatcher.launch(started)
    await settle()
    execution = await engine.executions.get(made)
    assert (execution.step("x").status, execution.step("x").takeovers) == ("pending", 0)
    assert shop.begun == []


async def test_a_handler_in_a_thread_is_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    begun = threading.Event()

    def endless(context: StepContext) -> None:
        begun.set()
        while True:
            try:
                context.check()
            except Interrupted:
                raise
            threading.Event().wait(0.001)

    engine = build(Pipeline("one", [step(name="x")(endless)]), default=1)
    threads = LoopThreads()
    threads.open()
    engine.runner._threads = threads
    await engine.open()
    made = await trigger(engine, "a")
    await until(begun.is_set)
    await asyncio.wait_for(engine.dispatcher.stop(), 10)
    execution = await engine.executions.get(made)
    assert (execution.step("x").status, execution.step("x").takeovers) == ("pending", 0)
    threads.close()


async def test_what_ends_by_itself_while_rushes_stops_keeps_its_outcome() -> None:
    go_on = asyncio.Event()

    async def stubborn(context: StepContext) -> dict[str, int]:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                go_on.set()
        return {"x": 1}

    engine = await build(Pipeline("one", [step(name="x")(stubborn)]), default=1).open()
    made = await trigger(engine, "a")
    await settle()
    await asyncio.wait_for(engine.dispatcher.stop(), 10)
    assert (await engine.executions.get(made)).status is ExecutionStatus.COMPLETED


# -- on the real store -----------------------------------------------------------


async def test_on_sqlite_many_executions_end_within_the_bounds_and_in_order(
    tmp_path: Path,
) -> None:
    shop = Workshop()
    shop.open = True
    database = Database(f"sqlite:///{tmp_path}/r.db")
    database.open()
    names = ["a", "b", "c"]
    steps = [
        step(name=name, depends_on=names[n - 1 : n] if n else ())(shop.handler())
        for n, name in enumerate(names)
    ]
    executions = SqlExecutions(database)
    engine = await build(Pipeline("one", steps), executions=executions, default=4).open()
    count = 150
    await asyncio.gather(*(engine.trigger("one", {}) for _ in range(count)))
    completed, ids = 0, []
    async for entry in engine.feed.follow(0):
        ids.append(entry.message.id)
        completed += entry.message.type == "pipeline:completed"
        if completed == count:
            break
    assert shop.most["default"] == 4
    assert ids == sorted(set(ids))
    assert len(ids) == count * 8
    await engine.dispatcher.stop()
    await executions.close()
    database.close()
