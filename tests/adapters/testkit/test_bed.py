"""What an author's tests rely on: scripts, jumping time, crashes, and a clear word when stuck."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from adapters.testkit import Stuck, Testbed, does, fails, hangs, raises, returns, script
from adapters.testkit.dispatcher import ABANDON_AFTER_S
from application.authoring import (
    KeyLimit,
    Pipeline,
    RetryPolicy,
    StepContext,
    StepError,
    external_step,
    step,
)
from domain.errors import IllegalTransition, InvalidDefinition, InvalidInput, MessageConflict

HOUR = 3600.0


@step(retry=RetryPolicy(retries=3, delay_s=HOUR, factor=2, max_delay_s=10 * HOUR))
async def fetch(context: StepContext) -> dict[str, object]:
    return {"fetched": context.data["take"]}


@step(depends_on=["fetch"], run_timeout_s=5 * HOUR)
def cut(context: StepContext) -> dict[str, object]:
    return {"cut": context.data["fetched"]}


two = Pipeline("two", [fetch, cut])


@step(spawns=["part"])
def split(context: StepContext) -> None:
    for number in range(3):
        context.spawn("part", str(number), {"number": number})


@step(dynamic=True, lease_s=HOUR)
def part(context: StepContext) -> dict[str, object]:
    seen = (context.checkpoint or {}).get("seen", 0)
    context.heartbeat({"seen": seen + 1})
    return {"seen": seen + 1, "number": context.params["number"]}


@step(depends_on=["part:*"])
async def join(context: StepContext) -> dict[str, object]:
    return {"joined": sum(part["number"] for part in context.data["part"].values())}


family = Pipeline("family", [split, part, join])


async def test_a_pipeline_runs_as_it_is() -> None:
    async with Testbed(two) as bed:
        result = await bed.run({"take": 7})
    assert result.status == "completed"
    assert result.execution_data == {"take": 7, "fetched": 7, "cut": 7, **_library(result)}
    assert result.event_types[0] == "pipeline:started"
    assert result.event_types[-1] == "pipeline:completed"
    assert result.step("cut").attempt == 1
    with pytest.raises(KeyError, match="no step 'nothing', only"):
        result.step("nothing")


def _library(result: object) -> dict[str, object]:
    data = result.execution_data  # type: ignore[attr-defined]
    return {"library": data["library"]} if "library" in data else {}


async def test_pauses_of_hours_pass_in_no_time() -> None:
    scripted = script(fails("no"), fails("still no"), returns({"fetched": 9}))
    began = time.monotonic()
    async with Testbed(two, handlers={"fetch": scripted}) as bed:
        result = await bed.run({"take": 1})
        assert bed.clock.monotonic() == pytest.approx(3 * HOUR)
    assert time.monotonic() - began < HOUR
    assert result.execution_data["cut"] == 9
    assert scripted.attempts == [1, 2, 3]
    assert result.event_types.count("pipeline:step_retrying") == 2


async def test_what_hangs_is_ended_by_its_timeout() -> None:
    async with Testbed(two, handlers={"cut": hangs()}) as bed:
        result = await bed.run({"take": 1})
        assert bed.clock.monotonic() == pytest.approx(5 * HOUR)
    assert result.status == "failed"
    assert result.error_message == "step cut failed (attempt 1): ran longer than 18000 s"


async def test_what_hangs_goes_on_once_it_is_let_go() -> None:
    hanging = hangs(then=returns({"cut": "late"}))
    async with Testbed(two, handlers={"cut": hanging}) as bed:
        await bed.start({"take": 1})
        seen = await bed.until("cut", "running")
        assert seen.statuses == {"fetch": "completed", "cut": "running"}
        await bed.advance(4 * HOUR)
        assert (await bed.look()).status == "running"
        hanging.let_go()
        result = await bed.finish()
    assert result.execution_data["cut"] == "late"


async def test_a_failed_execution_is_retried_from_what_failed() -> None:
    cutting = script(fails("blunt", permanent=True), returns({"cut": True}))
    fetching = script(returns({"fetched": 1}))
    async with Testbed(two, handlers={"cut": cutting, "fetch": fetching}) as bed:
        assert (await bed.run()).status == "failed"
        result = await bed.retry()
        with pytest.raises(IllegalTransition):
            await bed.retry()
    assert result.status == "completed"
    assert fetching.attempts == [1]
    assert cutting.attempts == [1, 2]


async def test_a_part_is_run_again_as_a_new_execution() -> None:
    cutting = script(returns({"cut": 1}), returns({"cut": 2}))
    async with Testbed(two, handlers={"cut": cutting}) as bed:
        first = await bed.run({"take": 1})
        again = await bed.rerun("cut")
        assert (await bed.look()).uuid == again.uuid != first.uuid
    assert again.status == "completed"
    assert "fetch" not in [event["data"].get("step_key") for event in again.events]


async def test_a_failed_step_is_settled_by_hand() -> None:
    async with Testbed(two, handlers={"fetch": fails("gone", permanent=True)}) as bed:
        await bed.run({"take": 1})
        await bed.settle("fetch", {"fetched": "by hand"})
        result = await bed.finish()
        assert result.execution_data["cut"] == "by hand"
        await bed.run({"take": 2})
        await bed.skip("fetch")
        skipped = await bed.finish()
    assert skipped.error_message == "step cut failed (attempt 1): KeyError: 'fetched'"


async def test_cancel_refuses_a_result_that_comes_late() -> None:
    deaf = hangs(then=returns({"cut": "too late"}), deaf=True)
    async with Testbed(two, handlers={"cut": deaf}) as bed:
        await bed.start({"take": 1})
        await bed.until("cut")
        cancelled = await bed.cancel()
        assert cancelled.status == "cancelled"
        deaf.let_go()
        await bed.advance(1)
        assert "cut" not in (await bed.look()).execution_data


async def test_a_paused_execution_waits_for_a_person() -> None:
    hanging = hangs(then=returns({"fetched": 1}))
    async with Testbed(two, handlers={"fetch": hanging}) as bed:
        await bed.start({"take": 1})
        await bed.pause()
        hanging.let_go()
        with pytest.raises(
            Stuck, match="nothing more will happen: the execution is running, pause"
        ):
            await bed.finish()
        await bed.resume()
        assert (await bed.finish()).status == "completed"


async def test_a_held_engine_starts_nothing() -> None:
    async with Testbed(two) as bed:
        await bed.hold()
        await bed.start({"take": 1})
        with pytest.raises(Stuck, match="fetch pending"):
            await bed.finish()
        await bed.crash()
        held = await bed.look()
        assert (held.status, held.events) == ("pending", [])
        await bed.go_on()
        assert (await bed.finish()).status == "completed"


async def test_a_blocking_handler_spawns_and_leaves_checkpoints() -> None:
    async with Testbed(family) as bed:
        result = await bed.run()
    assert result.execution_data["joined"] == 3
    assert result.step("part:2").params == {"number": 2}
    assert result.event_types.count("pipeline:step_spawned") == 3


async def test_a_crash_is_taken_over_with_the_checkpoint_that_was_left() -> None:
    async def half(context: StepContext) -> None:
        await context.aheartbeat({"seen": 41})

    scripted = script(hangs(first=does(half)), does(part))
    async with Testbed(family, handlers={"part": scripted}) as bed:
        await bed.start()
        await bed.rest()
        await bed.crash()
        result = await bed.finish()
    assert result.status == "completed"
    assert {result.step(f"part:{n}").attempt for n in range(3)} == {2}
    assert result.step("part:0").output_data == {"seen": 42, "number": 0}
    assert result.step("split").attempt == 1


async def test_a_crash_while_a_thread_is_at_work() -> None:
    attempts: list[int] = []

    @step()
    def loops(context: StepContext) -> dict[str, object]:
        attempts.append(context.attempt)
        while context.attempt == 1:
            context.check()
            threading.Event().wait(0.001)
        return {"by": context.attempt}

    async with Testbed(Pipeline("loops", [loops])) as bed:
        await bed.start()
        await bed.until("loops")
        await bed.crash()
        result = await bed.finish()
    assert result.execution_data["by"] == 2
    assert attempts == [1, 2]


async def test_a_lost_lease_is_taken_over() -> None:
    scripted = script(hangs(), returns({"number": 5}))
    async with Testbed(family, handlers={"part": scripted}) as bed:
        result = await bed.run()
        assert bed.clock.monotonic() == pytest.approx(HOUR)
    assert result.execution_data["joined"] == 15
    assert sorted(scripted.attempts) == [1, 1, 1, 2, 2, 2]


async def test_each_step_of_a_family_goes_through_the_script_by_itself() -> None:
    scripted = script(raises(ValueError("no")), returns({"number": 1}))
    async with Testbed(family, handlers={"part": scripted}) as bed:
        failed = await bed.run()
        assert failed.error_message is not None
        assert "ValueError: no" in failed.error_message
        await bed.retry()
        result = await bed.retry()
    assert result.execution_data["joined"] == 3
    assert sorted(scripted.attempts) == [1, 1, 1, 2, 2, 2]


async def test_an_external_step_is_answered() -> None:
    asking = Pipeline("asking", [external_step("ask", retry=RetryPolicy(retries=1)), two_after()])
    async with Testbed(asking) as bed:
        await bed.start()
        with pytest.raises(Stuck, match="waits for ask outside"):
            await bed.finish()
        await bed.refuse("ask", "busy")
        await bed.answer("ask", {"said": "yes"})
        result = await bed.finish()
    assert result.execution_data["heard"] == "yes"
    assert result.step("ask").attempt == 2
    with pytest.raises(InvalidDefinition, match="external"):
        Testbed(asking, handlers={"ask": returns()})


def two_after() -> object:
    @step(depends_on=["ask"])
    async def hear(context: StepContext) -> dict[str, object]:
        return {"heard": context.data["said"]}

    return hear


async def test_pools_and_key_limits_hold() -> None:
    at_once: dict[str, int] = {"now": 0, "most": 0}

    @step(pool="narrow", limits=[KeyLimit("reader")])
    async def busy(context: StepContext) -> None:
        at_once["now"] += 1
        at_once["most"] = max(at_once["most"], at_once["now"])
        for _ in range(25):
            await asyncio.sleep(0)
        at_once["now"] -= 1

    pipeline = Pipeline("busy", [busy])
    for pools, reader, most in (({}, "a", 1), ({"narrow": 2}, None, 2), ({}, None, 5)):
        at_once["most"] = 0
        async with Testbed(pipeline, pools=pools) as bed:
            uuids = [await bed.start({"reader": reader}) for _ in range(5)]
            results = [await bed.finish(uuid) for uuid in uuids]
        assert {result.status for result in results} == {"completed"}
        assert at_once["most"] == most


@pytest.mark.parametrize("reader", [None, "a"])
async def test_a_deaf_handler_is_abandoned_and_keeps_what_it_has_its_hands_on(
    reader: str | None,
) -> None:
    @step(
        pool="narrow",
        limits=[KeyLimit("reader")],
        run_timeout_s=60,
        retry=RetryPolicy(retries=1, delay_s=1),
    )
    async def busy(context: StepContext) -> None: ...

    deaf = hangs(deaf=True)
    scripted = {"busy": script(deaf, returns({"done": True}))}
    async with Testbed(Pipeline("busy", [busy]), pools={"narrow": 1}, handlers=scripted) as bed:
        await bed.start({"reader": reader})
        await bed.advance(60 + ABANDON_AFTER_S - 1)
        assert (await bed.look()).step("busy").status == "pending", "its slot is taken"
        await bed.advance(1)
        if reader is not None:
            assert (await bed.look()).step("busy").status == "pending"
            deaf.let_go()
        result = await bed.finish()
    assert (result.status, result.step("busy").attempt) == ("completed", 2)


async def test_a_blocking_handler_of_ones_own_is_waited_for() -> None:
    @step(run_timeout_s=0.01)
    def slow(context: StepContext) -> dict[str, object]:
        threading.Event().wait(0.1)
        return {"slow": True}

    async with Testbed(Pipeline("slow", [slow])) as bed:
        assert (await bed.run()).status == "completed"


async def test_advance_ends_a_handler_of_ones_own() -> None:
    @step(run_timeout_s=HOUR)
    def endless(context: StepContext) -> None:
        while True:
            context.check()
            threading.Event().wait(0.001)

    async with Testbed(Pipeline("endless", [endless]), patience_s=0.1) as bed:
        await bed.start()
        with pytest.raises(Stuck, match=r"endless \(attempt 1\) at work for 0.1 real seconds"):
            await bed.finish()
        with pytest.raises(Stuck, match=r"endless \(attempt 1\) at work"):
            await bed.rest()
        await bed.advance(HOUR)
        result = await bed.finish()
    assert result.error_message == "step endless failed (attempt 1): ran longer than 3600 s"


async def test_waiting_for_what_never_comes_ends_with_how_it_stands() -> None:
    async with Testbed(two) as bed:
        await bed.start({"take": 1})
        with pytest.raises(Stuck, match="it never has step cut failed: the execution is completed"):
            await bed.until("cut", "failed")


async def test_a_trigger_is_checked_as_everywhere() -> None:
    async with Testbed(two) as bed:
        with pytest.raises(InvalidInput):
            await bed.run(["no object"])
        await bed.run({"take": 1}, message_id="m")
        with pytest.raises(MessageConflict):
            await bed.run({"take": 2}, message_id="m")


def test_a_stand_in_that_fits_no_step_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match="no step 'fecth', only fetch, cut"):
        Testbed(two, handlers={"fecth": returns()})


async def test_scripts_can_be_used_again() -> None:
    scripted = script(fails("no"), hangs(), returns({"fetched": 1}))
    for _ in range(2):
        async with Testbed(two, handlers={"fetch": scripted}) as bed:
            await bed.start()
            await bed.until("fetch", "pending")
            await bed.advance(HOUR)
            assert scripted.attempts == [1, 2]


async def test_a_blocking_handler_s_errors_keep_their_names() -> None:
    @step()
    def ends(context: StepContext) -> None:
        raise StopIteration("over")

    @step(required=False)
    def says(context: StepContext) -> None:
        raise StepError("no film in the camera")

    async with Testbed(Pipeline("ends", [says, ends])) as bed:
        result = await bed.run()
    assert result.error_message == "step ends failed (attempt 1): RuntimeError: StopIteration: over"
    assert result.step("says").error_message == "no film in the camera"
