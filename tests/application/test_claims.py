"""External steps and the workers outside that claim, do, lose and leave them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from adapters.dispatch.local import LocalDispatcher
from application.authoring import Pipeline, RetryPolicy, StepContext, external_step, step
from application.claims import CANDIDATES, MAX_WAIT_S, Claimed
from domain.errors import AttemptOver, InvalidInput, NotExternal, StepNotFound, Unavailable
from tests.fakes.engine import Engine
from tests.fakes.world import settle

LEASE_S = 30.0
TIMEOUT_S = 100.0


@step(name="render")
async def our_own(context: StepContext) -> None:
    """Has the name of an external one of other pipelines."""
    await asyncio.Event().wait()


@step(depends_on=["render"])
async def publish(context: StepContext) -> dict[str, Any]:
    return {"published": context.data["file"]}


RENDER = external_step(
    "render", lease_s=LEASE_S, run_timeout_s=TIMEOUT_S, retry=RetryPolicy(retries=1, delay_s=1)
)
FILM = Pipeline("film", [RENDER, publish])
CLIP = Pipeline("clip", [external_step("render")])
OWN = Pipeline("own", [our_own])


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(FILM, CLIP, OWN, dispatcher=LocalDispatcher({"default": 8}))
    await engine.open()
    yield engine
    engine.feed.close()
    await settle()


async def triggered(engine: Engine, pipeline_type: str = "film", **data: Any) -> str:
    return (await engine.trigger(pipeline_type, data)).execution.execution_id


async def claim(engine: Engine, worker: str = "w1", **more: Any) -> Claimed:
    claimed = await engine.claims("render", worker, **more)
    assert claimed is not None
    return claimed


async def render(engine: Engine, uuid: str) -> Any:
    return next(s for s in (await engine.status.get(uuid)).steps if s.step_key == "render")


# -- what makes no sense ---------------------------------------------------------


@pytest.mark.parametrize(("field", "given"), [
    ("step_name", {"step_name": ""}), ("step_name", {"step_name": "render:*"}),
    ("worker_id", {"worker_id": ""}), ("worker_id", {"worker_id": "w" * 201}),
    ("worker_id", {"worker_id": "w\n"}), ("pipeline_type", {"pipeline_type": "no type"}),
    ("wait_s", {"wait_s": -1.0}), ("wait_s", {"wait_s": math.nan}),
    ("wait_s", {"wait_s": MAX_WAIT_S + 1}),
])  # fmt: skip
async def test_a_claim_that_makes_no_sense_names_its_field(
    engine: Engine, field: str, given: dict[str, Any]
) -> None:
    await triggered(engine)
    with pytest.raises(InvalidInput) as refused:
        await engine.claims(**({"step_name": "render", "worker_id": "w"} | given))
    assert refused.value.field == field


@pytest.mark.parametrize("progress", [-0.1, 100.1, math.nan, math.inf])
async def test_progress_is_from_0_to_100(engine: Engine, progress: float) -> None:
    await triggered(engine)
    claimed = await claim(engine)
    with pytest.raises(InvalidInput, match="from 0 to 100"):
        await engine.advance.beat_external(claimed.execution_id, "render", 1, progress=progress)


async def test_only_external_steps_that_are_there_are_heard_of(engine: Engine) -> None:
    uuid = await triggered(engine)
    with pytest.raises(NotExternal):
        await engine.advance.beat_external(uuid, "publish", 1)
    with pytest.raises(StepNotFound):
        await engine.advance.beat_external(uuid, "paint", 1)
    with pytest.raises(NotExternal):
        await engine.advance.release_external(uuid, "publish", 1)


# -- claims ----------------------------------------------------------------------


async def test_a_claim_hands_out_what_a_handler_would_be_given(engine: Engine) -> None:
    uuid = await triggered(engine, reel="A")
    claimed = await claim(engine)
    assert (claimed.execution_id, claimed.step_key, claimed.attempt) == (uuid, "render", 1)
    assert (claimed.data, claimed.params, claimed.checkpoint) == ({"reel": "A"}, {}, None)
    assert claimed.lease_expires_at == "2026-11-22T08:29:30.000Z"
    assert claimed.run_ends_at == "2026-11-22T08:30:40.000Z"
    shown = await render(engine, uuid)
    assert (shown.worker_id, shown.lease_expires_at) == ("w1", claimed.lease_expires_at)
    await engine.advance.complete_external(uuid, "render", 1, {"file": "a.mov"})
    await settle(60)
    done = await engine.status.get(uuid)
    assert (done.status, done.execution_data["published"]) == ("completed", "a.mov")
    assert (done.steps[0].worker_id, done.steps[0].lease_expires_at) == ("w1", None)


async def test_each_is_claimed_once_and_who_has_waited_longest_first(engine: Engine) -> None:
    waiting = []
    for _ in range(3 * CANDIDATES):
        waiting.append(await triggered(engine))
        engine.clock.tick(0.001)
    many = await asyncio.gather(*(claim(engine, f"w{n}") for n in range(2 * CANDIDATES)))
    assert {each.execution_id for each in many} == set(waiting[: 2 * CANDIDATES])
    rest = [(await claim(engine)).execution_id for _ in range(CANDIDATES)]
    assert rest == waiting[2 * CANDIDATES :]
    assert await engine.claims("render", "w1") is None


async def test_a_claim_may_ask_for_one_pipeline_and_gets_no_step_of_our_own(
    engine: Engine,
) -> None:
    await triggered(engine, "own")
    film, clip = await triggered(engine), await triggered(engine, "clip")
    assert (await claim(engine, pipeline_type="clip")).execution_id == clip
    assert await engine.claims("render", "w", pipeline_type="clip") is None
    assert await engine.claims("publish", "w") is None
    assert (await claim(engine)).execution_id == film
    assert await engine.claims("render", "w") is None


async def test_who_waits_gets_a_step_when_there_is_one(engine: Engine) -> None:
    waiting = asyncio.create_task(engine.claims("render", "w1", wait_s=60))
    await settle(60)
    assert not waiting.done()
    uuid = await triggered(engine)
    await settle(60)
    claimed = await waiting
    assert claimed is not None
    assert claimed.execution_id == uuid
    assert engine.clock.monotonic() == 0


async def test_who_has_waited_long_enough_is_told_that_there_is_none(engine: Engine) -> None:
    waiting = asyncio.create_task(engine.claims("render", "w1", wait_s=60))
    await settle(60)
    await engine.clock.advance(59)
    assert not waiting.done()
    await engine.clock.advance(1)
    assert await waiting is None


async def test_one_step_and_many_that_wait(engine: Engine) -> None:
    waiting = [asyncio.create_task(engine.claims("render", f"w{n}", wait_s=60)) for n in range(20)]
    await settle(60)
    for _ in range(3):
        await triggered(engine, "clip")
    await settle(200)
    got = [task.result() for task in waiting if task.done()]
    assert len(got) == len({each.execution_id for each in got if each}) == 3
    await engine.clock.advance(60)
    assert [await task for task in waiting].count(None) == 17


async def test_nothing_is_claimed_of_what_is_paused_held_or_has_failed(engine: Engine) -> None:
    uuid = await triggered(engine)
    await engine.pause.pause(uuid)
    assert await engine.claims("render", "w") is None
    waiting = asyncio.create_task(engine.claims("render", "w", wait_s=60))
    await settle(60)
    await engine.pause.resume(uuid)
    await settle(60)
    assert waiting.done()
    second = await triggered(engine)
    await engine.hold.pause()
    assert await engine.claims("render", "w") is None
    waiting = asyncio.create_task(engine.claims("render", "w", wait_s=60))
    await settle(60)
    await engine.hold.resume()
    await engine.clock.advance(2)
    claimed = await waiting
    assert claimed is not None
    assert claimed.execution_id == second
    third = await triggered(engine)
    await engine.cancel(third)
    assert await engine.claims("render", "w") is None


async def test_who_goes_away_while_it_waits_leaves_nothing_behind(engine: Engine) -> None:
    waiting = asyncio.create_task(engine.claims("render", "gone", wait_s=60))
    await settle(60)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await settle(60)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "claim" in repr(task).lower()]
    uuid = await triggered(engine)
    assert (await claim(engine)).execution_id == uuid


async def test_who_goes_away_at_any_moment_of_its_claim_keeps_nobody_from_the_step(
    engine: Engine,
) -> None:
    went = 0
    for turns in range(40):
        uuid = await triggered(engine)
        leaving = asyncio.create_task(engine.claims("render", "gone", wait_s=60))
        await settle(turns)
        leaving.cancel()
        (outcome,) = await asyncio.gather(leaving, return_exceptions=True)
        await settle(60)
        if isinstance(outcome, asyncio.CancelledError):
            went += 1
            claimed = await claim(engine, "next")
            assert claimed.execution_id == uuid
        shown = await render(engine, uuid)
        assert shown.worker_id == ("next" if isinstance(outcome, BaseException) else "gone")
        await engine.cancel(uuid)
    assert 0 < went < 40


async def test_a_claim_that_can_not_be_stored_leaves_the_step_to_others(engine: Engine) -> None:
    uuid = await triggered(engine)
    engine.executions.refuse_commits = 1
    first = asyncio.create_task(engine.claims("render", "w1", wait_s=60))
    second = asyncio.create_task(engine.claims("render", "w2", wait_s=60))
    await settle(60)
    with pytest.raises(Unavailable):
        await first
    claimed = await second
    assert claimed is not None
    assert claimed.execution_id == uuid


async def test_who_waits_at_the_stop_is_told(engine: Engine) -> None:
    waiting = asyncio.create_task(engine.claims("render", "w1", wait_s=60))
    await settle(60)
    engine.feed.close()
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
    with pytest.raises(Unavailable, match="stopping"):
        await engine.claims("render", "w1", wait_s=60)


# -- leases, time, and what an attempt leaves ------------------------------------


async def test_a_heartbeat_renews_the_lease_and_tells_how_far_it_is(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine)
    for n in range(1, 4):
        await engine.clock.advance(LEASE_S - 1)
        beat = await engine.advance.beat_external(uuid, "render", 1, progress=10 * n)
        assert (beat.running, beat.reason) == (True, None)
    shown = await render(engine, uuid)
    assert (shown.attempt, shown.progress) == (1, 30)
    assert shown.lease_expires_at == beat.lease_expires_at == "2026-11-22T08:30:57.000Z"


async def test_progress_is_told_to_everybody(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine)
    entries = engine.feed.follow(engine.feed.last_id)
    following = asyncio.ensure_future(anext(entries))
    await settle()
    await engine.advance.beat_external(uuid, "render", 1, progress=42, detail={"frame": 7})
    message = (await following).message
    await entries.aclose()
    assert message.type == "pipeline:step_progress"
    assert (message.data["progress"], message.data["detail"]) == (42.0, {"frame": 7})


async def test_the_last_heartbeat_is_told_however_soon_it_follows(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine)
    entries = engine.feed.follow(engine.feed.last_id)
    said: tuple[dict[str, Any], ...] = (
        {"progress": 10, "detail": {"frame": 1}},
        {"progress": 80, "detail": {"frame": 8}},
        {"detail": {"fps": 24}},
    )
    told = []
    for each in said:
        following = asyncio.ensure_future(anext(entries))
        await settle()
        await engine.advance.beat_external(uuid, "render", 1, **each)
        data = (await following).message.data
        told.append((data["progress"], data["detail"]))
        shown = await render(engine, uuid)
        assert (shown.progress, shown.detail) == (data["progress"], data["detail"])
    await entries.aclose()
    assert told == [(10.0, {"frame": 1}), (80.0, {"frame": 8}), (80.0, {"fps": 24})]


async def test_a_worker_that_is_silent_is_taken_over_and_refused(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine, "silent")
    await engine.advance.beat_external(uuid, "render", 1, progress=50, checkpoint={"frame": 7})
    progress = (await engine.status.get(uuid)).progress
    await engine.clock.advance(LEASE_S + 1)
    view = await engine.status.get(uuid)
    assert (view.steps[0].attempt, view.steps[0].status, view.progress) == (2, "running", progress)
    assert view.steps[0].failures == 0
    second = await claim(engine, "second")
    assert (second.attempt, second.checkpoint) == (2, {"frame": 7})
    beat = await engine.advance.beat_external(uuid, "render", 1, progress=60)
    assert not beat.running
    assert "attempt 1 is over" in str(beat.reason)
    with pytest.raises(AttemptOver):
        await engine.advance.complete_external(uuid, "render", 1, {"file": "late"})
    with pytest.raises(AttemptOver):
        await engine.advance.fail_external(uuid, "render", 1, "late")
    with pytest.raises(AttemptOver):
        await engine.advance.release_external(uuid, "render", 1)


async def test_a_worker_that_takes_too_long_has_failed_and_its_policy_says_what_follows(
    engine: Engine,
) -> None:
    uuid = await triggered(engine)
    await engine.clock.advance(10 * TIMEOUT_S)  # nobody's time counts before a claim
    for attempt in (1, 2):
        assert (await claim(engine)).attempt == attempt
        for _ in range(5):
            await engine.clock.advance(TIMEOUT_S / 5)
            beat = await engine.advance.beat_external(uuid, "render", attempt)
        assert not beat.running
        await engine.clock.advance(5)
    view = await engine.status.get(uuid)
    assert view.status == "failed"
    assert "ran longer than 100 s" in str(view.error_message)


async def test_a_worker_of_a_failed_execution_is_watched_too(engine: Engine) -> None:
    two = Pipeline("two", [RENDER, external_step("other")])
    engine = Engine(two, dispatcher=LocalDispatcher({"default": 8}))
    await engine.open()
    uuid = await triggered(engine, "two")
    await claim(engine)
    await engine.advance.fail_external(uuid, "other", 1, "no")
    await engine.clock.advance(LEASE_S + 1)
    view = await engine.status.get(uuid)
    assert (view.status, view.steps[0].status) == ("failed", "pending")
    engine.feed.close()


async def test_what_is_cancelled_tells_its_worker_to_end(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine)
    await engine.cancel(uuid)
    beat = await engine.advance.beat_external(uuid, "render", 1)
    assert not beat.running
    assert "cancelled" in str(beat.reason)


async def test_what_is_given_back_is_for_others_and_no_failure(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine, "stops")
    await engine.advance.release_external(uuid, "render", 1)
    claimed = await claim(engine, "next")
    assert (claimed.execution_id, claimed.attempt) == (uuid, 2)
    assert (await render(engine, uuid)).failures == 0


async def test_a_permanent_failure_is_not_tried_again(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine)
    view = await engine.advance.fail_external(uuid, "render", 1, "no such reel", permanent=True)
    assert (view.status, view.steps[0].attempt) == ("failed", 1)


async def test_a_claim_outlives_the_process_with_a_new_lease(engine: Engine) -> None:
    uuid = await triggered(engine)
    await claim(engine)
    engine.clock.tick(2 * LEASE_S)  # nobody was there to hear it
    again = Engine(FILM, executions=engine.executions, dispatcher=LocalDispatcher({"default": 8}))
    again.clock.tick(engine.clock.monotonic())
    await engine.dispatcher.stop()
    await again.open()
    await again.recovery()
    await again.clock.advance(LEASE_S - 1)
    assert ((await render(again, uuid)).worker_id, (await render(again, uuid)).attempt) == ("w1", 1)
    assert (await again.advance.beat_external(uuid, "render", 1)).running
    # Its own time goes on, though: that the server was away makes nobody faster.
    await again.clock.advance(TIMEOUT_S - 3 * LEASE_S + 1)
    assert (await render(again, uuid)).status == "pending"
    again.feed.close()
