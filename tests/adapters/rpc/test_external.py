"""Workers outside, over a real connection: claims, heartbeats, reports, and going away."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from adapters.rpc.pb import pipeline_pb2 as pb
from tests.adapters.rpc.conftest import PATIENCE_S, House, stub_of
from tests.adapters.rpc.test_service import refusal


async def claim(house: House, worker_id: str = "w1", **fields: Any) -> Any:
    request = pb.ClaimStepRequest(step_name="render", worker_id=worker_id, **fields)
    return await house.stub.ClaimStep(request)


def said(claimed: Any, **report: Any) -> pb.AdvanceStepRequest:
    return pb.AdvanceStepRequest(
        execution_id=claimed.execution_id,
        step_key=claimed.step_key,
        attempt=claimed.attempt,
        **report,
    )


async def until_waiting(house: House, number: int) -> None:
    """Until so many polls wait in the server."""
    async with asyncio.timeout(PATIENCE_S):
        while len(house.claims._waiting) != number:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("fields", [
    {"step_name": "no name"}, {"worker_id": ""}, {"pipeline_type": "no type"}, {"wait_s": -1},
    {"wait_s": float("nan")},
])  # fmt: skip
async def test_a_claim_that_makes_no_sense_is_an_invalid_argument(
    house: House, fields: dict[str, Any]
) -> None:
    request = pb.ClaimStepRequest(**({"step_name": "render", "worker_id": "w1"} | fields))
    status, code, details = await refusal(house.stub.ClaimStep(request))
    assert (status, code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_input")
    assert next(iter(fields)) in details or "name" in details or "type" in details


async def test_a_worker_claims_beats_and_completes(house: House) -> None:
    waiting = asyncio.ensure_future(claim(house, wait_s=60))
    await until_waiting(house, 1)
    started = await house.start("film", "m-1", seconds=2)
    claimed = (await waiting).claim
    assert (claimed.execution_id, claimed.message_id) == (started.execution_id, "m-1")
    assert (claimed.step_key, claimed.attempt) == ("render", 1)
    assert MessageToDict(claimed.data) == {"seconds": 2, "frames": 48}
    assert not claimed.HasField("lease_expires_at")
    beat = pb.HeartbeatStepRequest(
        execution_id=claimed.execution_id, step_key="render", attempt=1, progress=40
    )
    beat.detail.update({"frame": 19})
    assert (await house.stub.HeartbeatStep(beat)).running
    shown = (await house.get(started)).steps[1]
    assert (shown.worker_id, shown.progress) == ("w1", 40)
    report = said(claimed, completed=pb.StepCompleted())
    report.completed.output.update({"file": "film.mov"})
    await house.stub.AdvanceStep(report)
    await house.until(started, "pipeline:completed")
    after = await house.stub.HeartbeatStep(beat)
    assert (after.running, "attempt 1 is over" in after.reason) == (False, True)


async def test_there_may_be_none(house: House) -> None:
    assert not (await claim(house)).HasField("claim")
    assert not (await claim(house, wait_s=0.01)).HasField("claim")


async def test_a_step_that_is_given_back_is_claimed_by_another(house: House) -> None:
    await house.start("film")
    first = (await claim(house, wait_s=60)).claim
    await house.stub.AdvanceStep(said(first, released=pb.StepReleased()))
    second = (await claim(house, "w2", wait_s=60)).claim
    assert (second.execution_id, second.attempt) == (first.execution_id, 2)
    late = said(first, completed=pb.StepCompleted())
    assert (await refusal(house.stub.AdvanceStep(late)))[:2] == (
        grpc.StatusCode.ABORTED,
        "attempt_over",
    )


async def test_a_failure_can_be_permanent(house: House) -> None:
    await house.start("film")
    claimed = (await claim(house, wait_s=60)).claim
    failed = pb.StepFailed(error="no such reel", permanent=True)
    view = (await house.stub.AdvanceStep(said(claimed, failed=failed))).execution
    assert view.status == pb.EXECUTION_STATUS_FAILED


async def test_a_poll_ends_with_its_client_and_leaves_nothing_behind(house: House) -> None:
    polls = [
        house.stub.ClaimStep(
            pb.ClaimStepRequest(step_name="render", worker_id=f"w{n}", wait_s=300),
            timeout=PATIENCE_S if n else 0.05,
        )
        for n in range(3)
    ]
    assert await polls[0].code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_waiting(house, 2)
    for poll in polls:
        poll.cancel()
    await until_waiting(house, 0)
    async with grpc.aio.insecure_channel(house.address) as channel:
        lost = stub_of(channel).ClaimStep(
            pb.ClaimStepRequest(step_name="render", worker_id="lost", wait_s=300)
        )
        await until_waiting(house, 1)
    assert lost.done()
    await until_waiting(house, 0)
    await house.start("film")
    assert (await claim(house, "here", wait_s=60)).HasField("claim")


async def test_polls_end_with_the_server_at_once_and_say_so(house: House) -> None:
    polls = [asyncio.ensure_future(refusal(claim(house, wait_s=300))) for _ in range(5)]
    await until_waiting(house, 5)
    async with asyncio.timeout(PATIENCE_S):
        await house.server.stop(PATIENCE_S * 10)
        for poll in polls:
            assert await poll == (
                grpc.StatusCode.UNAVAILABLE,
                "unavailable",
                "the server is stopping",
            )
    await until_waiting(house, 0)


# -- everything else that can be done to an execution ----------------------------


async def test_an_execution_is_paused_resumed_and_cancelled(house: House) -> None:
    started = await house.start("film")
    named: dict[str, Any] = {"execution_id": started.execution_id}
    await house.until(started, "pipeline:step_started", "render")
    paused = await house.stub.PauseExecution(pb.PauseExecutionRequest(**named))
    assert paused.execution.HasField("paused_at")
    assert not (await claim(house)).HasField("claim")
    resumed = await house.stub.ResumeExecution(pb.ResumeExecutionRequest(**named))
    assert not resumed.execution.HasField("paused_at")
    cancelled = await house.stub.CancelExecution(pb.CancelExecutionRequest(**named))
    assert cancelled.execution.status == pb.EXECUTION_STATUS_CANCELLED
    status, code, _ = await refusal(house.stub.PauseExecution(pb.PauseExecutionRequest(**named)))
    assert (status, code) == (grpc.StatusCode.FAILED_PRECONDITION, "illegal_transition")


async def test_a_failed_step_is_skipped_or_completed_by_hand_and_a_part_run_again(
    house: House,
) -> None:
    async def failed() -> Any:
        started = await house.start("film")
        claimed = (await claim(house, wait_s=60)).claim
        await house.stub.AdvanceStep(said(claimed, failed=pb.StepFailed(error="no")))
        return {"execution_id": started.execution_id, "step_key": "render"}, started

    named, started = await failed()
    await house.stub.SkipStep(pb.SkipStepRequest(**named))
    await house.until(started, "pipeline:completed")
    done = await house.get(started)
    assert done.steps[1].waived
    named, started = await failed()
    request = pb.CompleteStepRequest(**named)
    request.output.update({"file": "by hand"})
    await house.stub.CompleteStep(request)
    await house.until(started, "pipeline:completed")
    assert (await house.get(started)).execution_data["file"] == "by hand"
    again = await house.stub.RerunExecution(
        pb.RerunExecutionRequest(execution_id=named["execution_id"], from_step="publish")
    )
    assert again.execution.rerun_of == started.id
    await house.until(again.execution, "pipeline:completed")


async def test_the_engine_is_paused_and_goes_on(house: House) -> None:
    await house.stub.PauseEngine(pb.PauseEngineRequest())
    held = await house.start("film")
    assert held.status == pb.EXECUTION_STATUS_PENDING
    assert held.HasField("engine_paused_at")
    engine = (await house.stub.GetEngine(pb.GetEngineRequest())).engine
    assert (engine.HasField("paused_at"), engine.running) == (True, 0)
    engine = (await house.stub.ResumeEngine(pb.ResumeEngineRequest())).engine
    assert not engine.HasField("paused_at")
    await house.until(held, "pipeline:step_started", "render")
