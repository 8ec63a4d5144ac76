"""What ``Dispatcher`` promises whoever starts steps: the server's own, and the test kit's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters.dispatch.local import LocalDispatcher
from adapters.testkit.dispatcher import BedDispatcher
from application.authoring import KeyLimit, Pipeline, RetryPolicy, StepContext, external_step, step
from application.ports import Dispatcher
from domain.errors import Unavailable
from tests.adapters.dispatch.test_local import Deaf, Workshop, all_end, drive, trigger
from tests.fakes.engine import Engine
from tests.fakes.world import settle

Build = Callable[..., Engine]


@pytest.fixture(params=[LocalDispatcher, BedDispatcher])
def build(request: pytest.FixtureRequest) -> Build:
    def built(*pipelines: Pipeline, **pools: int) -> Engine:
        dispatcher: Dispatcher = request.param(pools)
        return Engine(*pipelines, dispatcher=dispatcher, pools=tuple(pools))

    return built


ASKING = Pipeline("asking", [external_step("ask")])


async def test_an_external_step_goes_without_a_slot_and_takes_none(build: Build) -> None:
    shop = Workshop()
    engine = await build(
        ASKING, Pipeline("one", [step(name="x")(shop.handler())]), default=1
    ).open()
    await trigger(engine, "a")
    asking = await trigger(engine, "b", "asking")
    assert (await engine.executions.get(asking)).waits_for() == ["ask"]
    shop.finish("a.x")
    assert await all_end(engine, 1) == {"completed": 1, "running": 1}
    await trigger(engine, "c")
    await settle()
    assert shop.begun == ["a.x", "c.x"]
    assert engine.dispatcher.load().running == 1
    shop.finish("c.x")


async def test_while_it_holds_nothing_goes_external_steps_included(build: Build) -> None:
    engine = await build(ASKING, default=1).open()
    made = await trigger(engine, "a", "asking")
    await engine.advance.fail_external(made, "ask", 1, "not now")
    engine.dispatcher.hold()
    engine.dispatcher.hold()
    await engine.retry(made)
    await settle()
    held = (await engine.executions.get(made)).step("ask")
    assert (str(held.status), held.attempt, held.queued_at is not None) == ("pending", 1, True)
    assert engine.dispatcher.load().waiting == 1
    engine.dispatcher.go_on()
    await settle()
    found = await engine.executions.get(made)
    assert (found.waits_for(), found.step("ask").attempt) == (["ask"], 2)
    assert engine.dispatcher.load().waiting == 0


async def test_an_external_step_whose_commit_fails_goes_the_next_time(build: Build) -> None:
    engine = await build(ASKING, default=1).open()
    engine.executions.refuse_commits = 1
    with pytest.raises(Unavailable):
        await trigger(engine, "a", "asking")
    asking = await trigger(engine, "a", "asking")
    assert (await engine.executions.get(asking)).waits_for() == ["ask"]


async def test_an_attempt_gives_back_what_it_took_itself_and_not_what_a_late_one_has(
    build: Build,
) -> None:
    """What a limit goes by may be said, or be another, from one attempt to the next."""
    shop, deaf = Workshop(), Deaf()
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
    one = Pipeline("one", [copying, step(name="choose")(choose)])
    other = Pipeline("two", [step(name="y", limits=[KeyLimit("reader", 1)])(shop.handler())])
    engine = await build(one, other, default=4).open()
    try:
        await trigger(engine, "a")
        assert await all_end(engine, 1) == {"completed": 1}
        assert [ref.attempt for ref in engine.dispatcher.load().overdue] == [1]
        await engine.trigger("two", {"name": "b", "reader": "usb1"})
        await drive(engine, lambda: "b.y" in shop.begun)
        assert engine.dispatcher.load().waiting == 0
        assert [ref.attempt for ref in engine.dispatcher.load().overdue] == [1]
    finally:
        deaf.let_go.set()  # or the loop would wait for it for ever
        await settle()
