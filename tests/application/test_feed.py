"""A follower misses nothing and sees nothing twice, whenever it comes and however slow it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from application import feed as feed_module
from application.authoring import Pipeline, StepContext, step
from application.feed import Entry, Feed, StepProgress
from application.views import message_view
from domain.errors import FactsGone, Unavailable
from tests.fakes.engine import Engine
from tests.fakes.executions import MemoryExecutions
from tests.fakes.world import EPOCH, FakeClock, ManualDispatcher, settle, until


def nothing(context: StepContext) -> None:
    return None


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = await Engine(Pipeline("one", [step(name="a")(nothing)])).open()
    yield made
    made.feed.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tail of 16 and pages of 5, so that both ends are reached at once."""
    monkeypatch.setattr(feed_module, "TAIL", 16)
    monkeypatch.setattr(feed_module, "PAGE", 5)


class Follower:
    """Follows on a task of its own, and keeps what it was given."""

    def __init__(self, feed: Feed, since: int | None, **kwargs: Any) -> None:
        self.entries: list[Entry] = []
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.task = asyncio.ensure_future(self._follow(feed, since, kwargs))

    async def _follow(self, feed: Feed, since: int | None, kwargs: dict[str, Any]) -> None:
        async with aclosing(feed.follow(since, **kwargs)) as entries:
            async for entry in entries:
                self.entries.append(entry)
                await self.gate.wait()

    @property
    def ids(self) -> list[int]:
        return [e.message.id for e in self.entries if e.message.id is not None]


async def all_ids(engine: Engine) -> list[int]:
    return [fact.id for fact in await engine.log()]


def progress(execution_id: int, number: int) -> StepProgress:
    return StepProgress(execution_id, {"n": number}, EPOCH)


async def test_history_comes_first_and_then_what_happens(engine: Engine) -> None:
    await engine.ran("one")
    follower = Follower(engine.feed, 0)
    await settle()
    assert follower.ids == await all_ids(engine)
    await engine.ran("one")
    await settle()
    assert follower.ids == await all_ids(engine) == list(range(1, 9))


async def test_who_comes_back_with_the_last_id_goes_on_after_it(engine: Engine) -> None:
    for _ in range(3):
        await engine.ran("one")
    for since in range(engine.feed.last_id + 1):
        follower = Follower(engine.feed, since)
        await settle()
        assert follower.ids == list(range(since + 1, engine.feed.last_id + 1))
        follower.task.cancel()


async def test_who_follows_from_now_on_sees_only_what_comes(engine: Engine) -> None:
    await engine.ran("one")
    follower = Follower(engine.feed, None)
    await settle()
    assert follower.ids == []
    await engine.ran("one")
    await settle()
    assert follower.ids == [5, 6, 7, 8]


async def test_a_feed_of_a_log_from_an_earlier_life_goes_on_after_it(engine: Engine) -> None:
    await engine.ran("one")
    later = await Engine(
        Pipeline("one", [step(name="a")(nothing)]), executions=engine.executions
    ).open()
    assert later.feed.last_id == 4
    since_two, from_now = Follower(later.feed, 2), Follower(later.feed, None)
    await settle()
    await later.ran("one")
    await settle()
    assert since_two.ids == [3, 4, 5, 6, 7, 8]
    assert from_now.ids == [5, 6, 7, 8]
    later.feed.close()


@pytest.mark.usefixtures("short")
async def test_followers_that_come_at_any_time_see_every_fact_once_in_order() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(nothing)])).open()
    followers: list[tuple[int, Follower]] = []
    for number in range(30):
        running = [asyncio.ensure_future(engine.trigger("one", {})) for _ in range(number % 4)]
        followers.append((0, Follower(engine.feed, 0)))
        followers.append((engine.feed.last_id, Follower(engine.feed, engine.feed.last_id)))
        await settle(number % 5)
        await asyncio.gather(*running)
    await engine.dispatcher.idle()
    every = await all_ids(engine)
    await until(lambda: all(f.ids and f.ids[-1] == every[-1] for _, f in followers))
    for since, follower in followers:
        assert follower.ids == [each for each in every if each > since]
    engine.feed.close()
    await asyncio.gather(*(follower.task for _, follower in followers))


@pytest.mark.usefixtures("short")
async def test_who_is_slow_falls_back_to_the_log_and_misses_no_fact() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(nothing)])).open()
    slow = Follower(engine.feed, 0)
    await engine.ran("one")
    await until(lambda: slow.entries)
    slow.gate.clear()
    for _ in range(30):
        await engine.ran("one")
    assert len(slow.entries) <= 5
    slow.gate.set()
    await until(lambda: slow.ids and slow.ids[-1] == engine.feed.last_id)
    assert slow.ids == await all_ids(engine)
    assert any(entry.published_at is None for entry in slow.entries), "some came from the log"
    await engine.ran("one")
    await until(lambda: slow.ids[-1] == engine.feed.last_id)
    assert slow.entries[-1].published_at is not None, "and it is at the live end again"
    engine.feed.close()


@pytest.mark.usefixtures("short")
async def test_progress_may_fall_off_the_tail_and_facts_may_not() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(nothing)])).open()
    slow = Follower(engine.feed, 0)
    await engine.ran("one")
    await until(lambda: len(slow.entries) == 4)
    slow.gate.clear()
    engine.feed.tell(progress(1, 0))
    await until(lambda: len(slow.entries) == 5)
    for number in range(1, 100):
        engine.feed.tell(progress(1, number))
        if number == 50:
            await engine.ran("one")
    slow.gate.set()
    await settle(200)
    assert slow.ids == await all_ids(engine)
    numbers = [e.message.data["n"] for e in slow.entries if isinstance(e.message, StepProgress)]
    assert numbers == sorted(set(numbers)), "none twice, none out of order"
    assert numbers[-1] == 99
    engine.feed.close()


async def test_a_follower_of_one_execution_sees_only_that(engine: Engine) -> None:
    one, two = await engine.ran("one"), await engine.ran("one")
    follower = Follower(engine.feed, 0, execution_id=two.id)
    await settle()
    engine.feed.tell(progress(one.id, 1))
    engine.feed.tell(progress(two.id, 2))
    await engine.ran("one")
    await settle()
    assert {entry.message.execution_id for entry in follower.entries} == {two.id}
    assert [entry.message.type for entry in follower.entries] == [
        "pipeline:started",
        "pipeline:step_started",
        "pipeline:step_completed",
        "pipeline:completed",
        "pipeline:step_progress",
    ]


@pytest.mark.usefixtures("short")
async def test_a_follower_of_one_execution_finds_it_in_a_long_log() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(nothing)])).open()
    for _ in range(20):
        await engine.ran("one")
    follower = Follower(engine.feed, 0, execution_id=2)
    await until(lambda: len(follower.ids) == 4)
    await engine.ran("one")
    engine.feed.tell(progress(2, 1))
    await settle()
    assert follower.ids == [5, 6, 7, 8]
    assert follower.entries[-1].message.id is None, "it has reached the live end"
    engine.feed.close()
    await follower.task


async def test_what_was_read_from_the_log_before_it_was_let_out_is_seen_once(
    engine: Engine,
) -> None:
    await engine.ran("one")
    later = Feed(engine.executions, engine.clock)
    await later.open()
    await engine.ran("one")  # committed, and ``later`` hasn't let it out yet
    follower = Follower(later, 0)
    await settle()
    assert follower.ids == [1, 2, 3, 4, 5, 6, 7, 8]
    later.publish((await engine.log())[4:])
    await settle()
    assert follower.ids == [1, 2, 3, 4, 5, 6, 7, 8]
    later.close()


@pytest.mark.parametrize("since", [-1, 5, 2**70])
async def test_a_place_outside_the_log_is_refused_with_the_bounds(
    engine: Engine, since: int
) -> None:
    await engine.ran("one")
    for attempt in (engine.feed.page(since, 10), anext(engine.feed.follow(since))):
        with pytest.raises(FactsGone) as refused:
            await attempt
        assert (refused.value.since, refused.value.oldest, refused.value.last) == (since, 0, 4)


async def test_what_is_forgotten_is_no_place_and_the_rest_of_the_log_is(engine: Engine) -> None:
    await engine.ran("one")
    engine.clock.tick(10)
    young = await engine.ran("one")
    assert await engine.executions.forget(engine.clock.now(), 10) == 1
    for attempt in (engine.feed.page(3, 10), anext(engine.feed.follow(3)), engine.feed.check(3)):
        with pytest.raises(FactsGone) as refused:
            await attempt
        assert (refused.value.since, refused.value.oldest, refused.value.last) == (3, 4, 8)
    assert await engine.feed.oldest() == 4
    assert [fact.id for fact in await engine.feed.page(4, 10)] == [5, 6, 7, 8]
    follower = Follower(engine.feed, 4)
    await settle()
    assert follower.ids == [5, 6, 7, 8]
    assert young.id == 2


async def test_an_execution_that_is_there_is_followed_from_wherever_it_was_seen_last(
    engine: Engine,
) -> None:
    await engine.ran("one")
    engine.clock.tick(10)
    await engine.ran("one")
    assert await engine.executions.forget(engine.clock.now(), 10) == 1
    for since, ids in ((0, [5, 6, 7, 8]), (3, [5, 6, 7, 8]), (6, [7, 8])):
        await engine.feed.check(since, 2)
        assert [fact.id for fact in await engine.feed.page(since, 10, 2)] == ids
        follower = Follower(engine.feed, since, execution_id=2)
        await settle()
        assert follower.ids == ids
    for since in (-1, 9):
        with pytest.raises(FactsGone):
            await engine.feed.check(since, 2)


@pytest.mark.usefixtures("short")
async def test_who_reads_too_slowly_is_told_that_the_rest_was_forgotten() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(nothing)])).open()
    for _ in range(10):
        await engine.ran("one")
    slow = Follower(engine.feed, 0)
    slow.gate.clear()
    await until(lambda: slow.entries)
    engine.clock.tick(10)
    assert await engine.executions.forget(engine.clock.now(), 6) == 6
    slow.gate.set()
    with pytest.raises(FactsGone) as refused:
        await slow.task
    assert (refused.value.since, refused.value.oldest) == (5, 24)
    assert slow.ids == [1, 2, 3, 4, 5], "a page is whole, and there is none with a gap"
    engine.feed.close()


async def test_who_follows_one_execution_is_told_that_the_rest_of_it_was_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "PAGE", 2)
    engine = await Engine(Pipeline("one", [step(name="a")(nothing)])).open()
    made = (await engine.ran("one")).id
    later = Feed(engine.executions, engine.clock)  # to which all of it is history
    await later.open()
    async with aclosing(later.follow(0, made)) as entries:
        seen = [await anext(entries), await anext(entries)]
        assert len(await engine.log()) > len(seen)
        engine.clock.tick(10)
        assert await engine.executions.forget(engine.clock.now(), 1) == 1
        with pytest.raises(FactsGone):
            await anext(entries)


async def test_who_follows_one_that_is_held_waits_for_it_to_begin() -> None:
    one = Pipeline("one", [step(name="a")(nothing)])
    engine = await Engine(one, dispatcher=ManualDispatcher()).open()
    await engine.trigger("one", {})
    await engine.hold.pause()
    made = (await engine.trigger("one", {})).execution.id
    later = Feed(engine.executions, engine.clock)
    await later.open()
    follower = Follower(later, 0, execution_id=made)
    await settle()
    assert not follower.task.done(), "nothing has been said of it yet, and it isn't forgotten"
    later.close()
    await follower.task


async def test_a_feed_goes_on_after_the_last_id_when_everything_is_forgotten(
    engine: Engine,
) -> None:
    await engine.ran("one")
    engine.clock.tick(10)
    assert await engine.executions.forget(engine.clock.now(), 10) == 1
    later = await Engine(
        Pipeline("one", [step(name="a")(nothing)]), executions=engine.executions
    ).open()
    assert later.feed.last_id == 4
    follower = Follower(later.feed, 4)
    await settle()
    await later.ran("one")
    await settle()
    assert follower.ids == [5, 6, 7, 8]
    later.feed.close()


async def test_a_page_is_bounded_and_may_be_of_one_execution(engine: Engine) -> None:
    await engine.ran("one")
    two = await engine.ran("one")
    assert [fact.id for fact in await engine.feed.page(1, 2)] == [2, 3]
    assert [fact.id for fact in await engine.feed.page(0, 2, two.id)] == [5, 6]


async def test_a_close_ends_every_follower_wherever_it_is(engine: Engine) -> None:
    await engine.ran("one")
    followers = [Follower(engine.feed, since) for since in (0, 4, None)]
    slow = Follower(engine.feed, 0)
    slow.gate.clear()
    await settle()
    engine.feed.close()
    slow.gate.set()
    await asyncio.wait_for(asyncio.gather(*(f.task for f in [*followers, slow])), 10)
    late = Follower(engine.feed, 0)
    await asyncio.wait_for(late.task, 10)


async def test_a_follower_that_leaves_disturbs_nobody(engine: Engine) -> None:
    leaving, staying = Follower(engine.feed, 0), Follower(engine.feed, 0)
    await settle()
    leaving.task.cancel()
    await engine.ran("one")
    await settle()
    assert staying.ids == [1, 2, 3, 4]


async def test_progress_travels_in_its_place_between_the_facts(engine: Engine) -> None:
    await engine.ran("one")
    follower = Follower(engine.feed, None)
    await settle()
    engine.feed.tell(progress(1, 1))
    await engine.ran("one")
    engine.feed.tell(progress(1, 2))
    await settle()
    assert [entry.message.id for entry in follower.entries] == [None, 5, 6, 7, 8, None]


async def test_a_failed_commit_lets_nothing_out(engine: Engine) -> None:
    follower = Follower(engine.feed, 0)
    engine.executions.refuse_commits = 1
    with pytest.raises(Unavailable):
        await engine.trigger("one", {})
    await settle()
    assert follower.entries == []
    assert engine.feed.last_id == 0


async def test_a_store_that_fails_while_a_follower_catches_up_ends_that_follower() -> None:
    executions = MemoryExecutions()
    engine = await Engine(Pipeline("one", [step(name="a")(nothing)]), executions=executions).open()
    await engine.ran("one")
    fresh = Feed(executions, FakeClock())
    await fresh.open()
    await executions.close()
    follower = Follower(fresh, 0)
    with pytest.raises(Unavailable):
        await follower.task


async def test_live_entries_know_when_they_were_let_out(engine: Engine) -> None:
    await engine.ran("one")
    follower = Follower(engine.feed, None)
    await settle()
    engine.clock.tick(5)
    await engine.ran("one")
    await settle()
    assert {entry.published_at for entry in follower.entries} == {5.0}


def test_a_message_is_encoded_once_for_each_encoding() -> None:
    entry = Entry(progress(1, 1), 0.0)
    calls: list[str] = []

    def encoding(name: str) -> Callable[[Any], str]:
        def encode(message: Any) -> str:
            calls.append(name)
            return name

        return encode

    first, second = encoding("first"), encoding("second")
    assert [entry.encoded(e) for e in (first, first, second, first)] == [
        "first", "first", "second", "first",
    ]  # fmt: skip
    assert calls == ["first", "second"]


async def test_messages_look_as_the_design_says(engine: Engine) -> None:
    view = await engine.ran("one", message_id="m")
    started = message_view((await engine.log())[0])
    assert started == {
        "id": 1,
        "type": "pipeline:started",
        "timestamp": "2026-11-22T08:29:00.000Z",
        "data": {
            "execution_id": view.uuid,
            "message_id": "m",
            "pipeline_type": "one",
            "steps": ["a"],
        },
    }
    assert "id" not in message_view(progress(1, 1))
