"""The methods of the service, over a real connection."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from adapters.rpc import service
from adapters.rpc.pb import pipeline_pb2 as pb
from application.views import ExecutionView
from tests.adapters.rpc.conftest import PATIENCE_S, House, stub_of


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Status, code for programs, and details of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    metadata: Any = error.trailing_metadata()
    return error.code(), metadata["rushes-code"], error.details() or ""


async def read(call: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await call.read()


# -- trigger and get ------------------------------------------------------------------


async def test_a_triggered_pipeline_runs_to_its_end_with_a_service_outside_doing_its_step(
    house: House,
) -> None:
    started = await house.start("film", "m-1", seconds=3)
    assert (started.status, started.message_id) == (pb.EXECUTION_STATUS_RUNNING, "m-1")
    await house.until(started, "pipeline:step_started", "render")
    waiting = await house.get(started)
    assert list(waiting.waits_for) == ["render"]
    assert [step.external for step in waiting.steps] == [False, True, False]
    await house.report_rendered(started, file="film.mov")
    await house.until(started, "pipeline:completed")
    done = await house.get(started)
    assert done.status == pb.EXECUTION_STATUS_COMPLETED
    assert done.progress == 100
    assert MessageToDict(done.execution_data) == {
        "seconds": 3,
        "frames": 72,
        "file": "film.mov",
        "published": True,
    }
    assert [step.status for step in done.steps] == [pb.STEP_STATUS_COMPLETED] * 3
    assert done.created_at.ToDatetime() <= done.completed_at.ToDatetime()
    assert not done.HasField("error_message")
    assert not done.HasField("job_id")


async def test_whole_numbers_reach_the_pipeline_as_whole_numbers(house: House) -> None:
    started = await house.start("nothing", take=3, fps=23.976, big=2.0**60, list=[1, {"a": 2.0}])
    stored = await house.executions.get(started.id)
    assert stored.data == {"take": 3, "fps": 23.976, "big": 2.0**60, "list": [1, {"a": 2}]}
    assert isinstance(stored.data["take"], int)
    assert isinstance(stored.data["big"], float)
    assert isinstance(stored.data["list"][1]["a"], int)


async def test_the_same_message_again_is_answered_with_the_same_execution(house: House) -> None:
    first = await house.start("film", "m-1", seconds=3)
    request = pb.TriggerPipelineRequest(pipeline_type="film", message_id="m-1")
    request.data.update({"seconds": 3})
    again = await house.stub.TriggerPipeline(request)
    assert again.execution.execution_id == first.execution_id
    assert again.duplicate == pb.DUPLICATE_MESSAGE


async def test_a_card_under_way_is_answered_with_the_execution_that_works_on_it(
    house: House,
) -> None:
    first = await house.start("card", "m-1", sd_path="/cards/A001")
    request = pb.TriggerPipelineRequest(pipeline_type="card", message_id="m-2")
    request.data.update({"sd_path": "/cards/A001"})
    again = await house.stub.TriggerPipeline(request)
    assert again.execution.execution_id == first.execution_id
    assert again.duplicate == pb.DUPLICATE_CARD


async def test_an_execution_is_found_by_its_uuid_and_by_its_number(house: House) -> None:
    started = await house.start("film")
    for reference in (started.execution_id, str(started.id)):
        found = await house.stub.GetExecution(pb.GetExecutionRequest(execution_id=reference))
        assert found.execution.execution_id == started.execution_id


# -- list ---------------------------------------------------------------------------


async def list_page(house: House, **fields: Any) -> Any:
    return await house.stub.ListExecutions(pb.ListExecutionsRequest(**fields))


async def test_pages_show_every_execution_once_newest_first(house: House) -> None:
    started = [(await house.start("film")).id for _ in range(4)]
    first = await list_page(house, page_size=2)
    assert [each.id for each in first.executions] == [started[3], started[2]]
    second = await list_page(house, page_size=2, page_token=first.next_page_token)
    assert [each.id for each in second.executions] == [started[1], started[0]]
    assert second.next_page_token == ""


async def test_a_page_has_fifty_unless_asked_and_two_hundred_at_most(house: House) -> None:
    await asyncio.gather(*(house.start("film") for _ in range(service.MAX_PAGE + 1)))
    assert len((await list_page(house)).executions) == service.DEFAULT_PAGE
    most = await list_page(house, page_size=1_000)
    assert len(most.executions) == service.MAX_PAGE
    rest = await list_page(house, page_size=1_000, page_token=most.next_page_token)
    assert len(rest.executions) == 1


async def test_a_page_ends_before_it_is_too_large_for_its_client(house: House) -> None:
    for _ in range(5):
        await house.start("film", text="x" * 1_000_000)
    seen, token = 0, ""
    while True:
        page = await list_page(house, page_token=token)
        assert page.executions
        seen += len(page.executions)
        token = page.next_page_token
        if not token:
            break
    assert seen == 5


async def test_one_that_is_too_large_for_a_page_is_listed_without_its_data(house: House) -> None:
    before = await house.start("film")
    large = await house.start("film", takes=[1] * 340_000)  # as JSON a third of it
    page = await list_page(house)
    assert [each.id for each in page.executions] == [large.id, before.id]
    assert page.ByteSize() < service.MAX_PAGE_BYTES
    assert not page.executions[0].HasField("execution_data")
    assert page.executions[1].HasField("execution_data")
    whole = await house.stub.GetExecution(pb.GetExecutionRequest(execution_id=large.execution_id))
    assert len(whole.execution.execution_data["takes"]) == 340_000


async def test_executions_are_listed_by_status_type_and_message(house: House) -> None:
    film = await house.start("film", "m-1")
    card = await house.start("card", "m-2", sd_path="/cards/A001")
    done = await house.start("nothing")
    await house.until(done, "pipeline:completed")

    async def ids(**fields: Any) -> list[int]:
        return [each.id for each in (await list_page(house, **fields)).executions]

    assert await ids(status=pb.EXECUTION_STATUS_COMPLETED) == [done.id]
    assert await ids(pipeline_type="film") == [film.id]
    assert await ids(message_id="m-2") == [card.id]
    assert await ids(status=pb.EXECUTION_STATUS_FAILED) == []


@pytest.mark.parametrize("fields", [
    {"page_size": -1}, {"page_token": "next"}, {"page_token": "-3"}, {"page_token": "9" * 400},
    {"status": 99},
])  # fmt: skip
async def test_a_list_that_makes_no_sense_is_refused_by_the_fields_name(
    house: House, fields: dict[str, Any]
) -> None:
    status, code, details = await refusal(list_page(house, **fields))
    assert (status, code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_input")
    assert next(iter(fields)) in details


# -- retry and advance ----------------------------------------------------------------


async def test_a_failed_execution_runs_again_from_the_step_that_failed(house: House) -> None:
    house.broken = True
    started = await house.start("film")
    await house.until(started, "pipeline:step_started", "render")
    await house.report_rendered(started)
    await house.until(started, "pipeline:failed")
    failed = await house.get(started)
    assert failed.status == pb.EXECUTION_STATUS_FAILED
    assert "publish" in failed.error_message
    assert "the shelf is full" in failed.error_message
    house.broken = False
    retried = await house.stub.RetryExecution(
        pb.RetryExecutionRequest(execution_id=started.execution_id)
    )
    assert retried.execution.status == pb.EXECUTION_STATUS_RUNNING
    await house.until(started, "pipeline:completed")
    done = await house.get(started)
    assert [step.attempt for step in done.steps] == [1, 1, 2]


async def test_a_service_can_say_that_its_step_failed_and_say_it_twice(house: House) -> None:
    started = await house.start("film")
    await house.until(started, "pipeline:step_started", "render")
    request = pb.AdvanceStepRequest(
        execution_id=str(started.id),
        step_key="render",
        attempt=1,
        failed=pb.StepFailed(error="no licence"),
    )
    for _ in range(2):
        failed = (await house.stub.AdvanceStep(request)).execution
        assert failed.status == pb.EXECUTION_STATUS_FAILED
        assert failed.steps[1].error_message == "no licence"
        assert failed.steps[2].status == pb.STEP_STATUS_SKIPPED


async def test_the_same_report_twice_changes_nothing(house: House) -> None:
    started = await house.start("film")
    await house.until(started, "pipeline:step_started", "render")
    await house.report_rendered(started, frames_done=72)
    await house.until(started, "pipeline:completed")
    last = house.feed.last_id
    assert (await house.report_rendered(started, frames_done=72)).progress == 100
    assert house.feed.last_id == last


# -- watch ----------------------------------------------------------------------------


async def test_a_watcher_without_since_gets_all_that_happens_after_the_metadata(
    house: House,
) -> None:
    await house.until(await house.start("nothing"), "pipeline:completed")
    call = house.stub.WatchExecution(pb.WatchExecutionRequest())
    await call.initial_metadata()
    started = await house.start("nothing", "m-9")
    first = await read(call)
    assert first.type == "pipeline:started"
    assert MessageToDict(first.data) == {
        "execution_id": started.execution_id,
        "message_id": "m-9",
        "pipeline_type": "nothing",
        "steps": ["nothing"],
    }
    call.cancel()


async def test_now_is_when_the_call_arrives_however_long_the_execution_is_looked_for(
    house: House,
) -> None:
    found = asyncio.Event()

    class SlowStatus:
        async def get(self, reference: str | int) -> ExecutionView:
            view = await house.status.get(reference)
            await found.wait()
            return view

    started = await house.start("film")
    await house.until(started, "pipeline:step_started", "render")
    server = house.another_server(status=SlowStatus())
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = stub_of(channel).WatchExecution(
            pb.WatchExecutionRequest(execution_id=started.execution_id)
        )
        await call.initial_metadata()
        await house.report_rendered(started)
        await house.until(started, "pipeline:completed")
        found.set()
        assert (await read(call)).type == "pipeline:step_completed"
        call.cancel()
    await server.stop(PATIENCE_S)


async def test_who_resumes_with_since_gets_every_event_once_and_in_order(house: House) -> None:
    seen: list[int] = []

    async def watch_some(number: int) -> None:
        call = house.stub.WatchExecution(pb.WatchExecutionRequest(since=seen[-1] if seen else 0))
        for _ in range(number):
            seen.append((await read(call)).id)
        call.cancel()

    runs = [house.start("nothing") for _ in range(10)]  # four facts each
    triggering = asyncio.gather(*runs)
    await watch_some(7)
    await watch_some(1)
    await triggering
    await watch_some(32)
    assert seen == [fact.id for fact in await house.feed.page(0, 1_000)]


async def test_a_watcher_of_one_execution_is_told_of_no_other(house: House) -> None:
    one, other = await house.start("nothing"), await house.start("nothing")
    await house.until(one, "pipeline:completed")
    await house.until(other, "pipeline:completed")
    call = house.stub.WatchExecution(pb.WatchExecutionRequest(execution_id=str(one.id), since=0))
    messages = [await read(call) for _ in range(4)]
    call.cancel()
    assert {each.data.fields["execution_id"].string_value for each in messages} == {
        one.execution_id
    }
    assert [each.type for each in messages] == [
        "pipeline:started",
        "pipeline:step_started",
        "pipeline:step_completed",
        "pipeline:completed",
    ]


async def test_progress_is_told_without_an_id(house: House) -> None:
    call = house.stub.WatchExecution(pb.WatchExecutionRequest())
    await call.initial_metadata()
    await house.start("slow")
    message = await read(call)
    while message.type != "pipeline:step_progress":
        assert message.HasField("id")
        message = await read(call)
    call.cancel()
    assert not message.HasField("id")
    assert message.timestamp.seconds > 0
    data = MessageToDict(message.data)
    assert data["progress"] == 50
    assert data["detail"] == {"bytes_done": 50, "bytes_total": 100}


async def test_the_follower_of_a_watcher_who_goes_away_ends(house: House) -> None:
    call = house.stub.WatchExecution(pb.WatchExecutionRequest())
    await house.feed.until_followed_by(1)
    call.cancel()
    await house.feed.until_followed_by(0)


async def test_the_followers_of_a_lost_connection_end(house: House) -> None:
    async with grpc.aio.insecure_channel(house.address) as channel:
        stub = stub_of(channel)
        calls = [stub.WatchExecution(pb.WatchExecutionRequest()) for _ in range(3)]
        await house.feed.until_followed_by(3)
    assert all(call.done() for call in calls)
    await house.feed.until_followed_by(0)


# -- refusals -------------------------------------------------------------------------


async def test_what_is_not_there_is_not_found(house: House) -> None:
    stub = house.stub
    there = await house.start("film")
    nowhere = "018f0000-0000-7000-8000-000000000000"
    assert await refusal(stub.TriggerPipeline(pb.TriggerPipelineRequest(pipeline_type="x"))) == (
        grpc.StatusCode.NOT_FOUND,
        "pipeline_not_found",
        "there is no pipeline of type 'x' (there are: card, film, nothing, slow)",
    )
    for reference in (nowhere, "999", "9" * 19, "9" * 400, "film\x00", "-1", "٣"):
        status, code, details = await refusal(
            stub.GetExecution(pb.GetExecutionRequest(execution_id=reference))
        )
        assert (status, code) == (grpc.StatusCode.NOT_FOUND, "execution_not_found")
        assert "there is no execution" in details
    for call in (
        stub.RetryExecution(pb.RetryExecutionRequest(execution_id=nowhere)),
        read(stub.WatchExecution(pb.WatchExecutionRequest(execution_id=nowhere))),
        stub.AdvanceStep(pb.AdvanceStepRequest(execution_id=nowhere, completed=pb.StepCompleted())),
    ):
        status, code, details = await refusal(call)
        assert (status, code) == (grpc.StatusCode.NOT_FOUND, "execution_not_found")
    status, code, _ = await refusal(
        stub.AdvanceStep(
            pb.AdvanceStepRequest(
                execution_id=there.execution_id,
                step_key="paint",
                attempt=1,
                completed=pb.StepCompleted(),
            )
        )
    )
    assert (status, code) == (grpc.StatusCode.NOT_FOUND, "step_not_found")


async def test_what_makes_no_sense_is_an_invalid_argument(house: House) -> None:
    stub = house.stub
    started = await house.start("film")
    nested = pb.TriggerPipelineRequest(pipeline_type="film")
    nested.data.update({"number": float("nan")})
    card = pb.TriggerPipelineRequest(pipeline_type="card")
    card.data.update({"sd_path": "/etc"})
    report = {"execution_id": started.execution_id, "step_key": "render", "attempt": 1}
    completed = pb.StepCompleted()
    for call, code, word in (
        (stub.GetExecution(pb.GetExecutionRequest()), "invalid_input", "execution_id"),
        (
            stub.TriggerPipeline(pb.TriggerPipelineRequest(pipeline_type="film", message_id="")),
            "invalid_input",
            "message_id",
        ),
        (stub.TriggerPipeline(nested), "invalid_input", "data"),
        (stub.TriggerPipeline(card), "invalid_path", "/etc"),
        (stub.AdvanceStep(pb.AdvanceStepRequest(**report)), "invalid_input", "report"),
        (
            stub.AdvanceStep(pb.AdvanceStepRequest(**report, failed=pb.StepFailed())),
            "invalid_input",
            "error",
        ),
        (
            stub.AdvanceStep(
                pb.AdvanceStepRequest(**(report | {"attempt": 0}), completed=completed)
            ),
            "invalid_input",
            "attempt",
        ),
    ):
        status, actual, details = await refusal(call)
        assert (status, actual) == (grpc.StatusCode.INVALID_ARGUMENT, code)
        assert word in details


async def test_what_the_present_state_does_not_allow_is_a_failed_precondition(
    house: House,
) -> None:
    started = await house.start("film")
    assert (
        await refusal(
            house.stub.RetryExecution(pb.RetryExecutionRequest(execution_id=str(started.id)))
        )
    )[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "illegal_transition")
    report = pb.AdvanceStepRequest(
        execution_id=str(started.id), step_key="publish", attempt=1, completed=pb.StepCompleted()
    )
    assert (await refusal(house.stub.AdvanceStep(report)))[:2] == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "not_external",
    )


async def test_a_retry_while_another_execution_has_the_card_is_refused(house: House) -> None:
    house.broken = True
    first = await house.start("card", sd_path="/cards/A001")
    await house.until(first, "pipeline:failed")
    house.broken = False
    second = await house.start("card", sd_path="/cards/A001")
    status, code, details = await refusal(
        house.stub.RetryExecution(pb.RetryExecutionRequest(execution_id=first.execution_id))
    )
    assert (status, code) == (grpc.StatusCode.FAILED_PRECONDITION, "card_busy")
    assert second.execution_id in details


async def test_a_report_from_an_attempt_that_is_over_is_aborted(house: House) -> None:
    started = await house.start("film")
    await house.until(started, "pipeline:step_started", "render")
    assert (await refusal(house.report_rendered(started, attempt=2)))[:2] == (
        grpc.StatusCode.ABORTED,
        "attempt_over",
    )


async def test_a_message_id_with_other_contents_already_exists(house: House) -> None:
    await house.start("film", "m-1", seconds=3)
    assert (await refusal(house.start("film", "m-1", seconds=4)))[:2] == (
        grpc.StatusCode.ALREADY_EXISTS,
        "message_conflict",
    )


@pytest.mark.parametrize("since", [-1, 10_000, 2**63 - 1])
async def test_a_place_outside_the_log_is_out_of_range(house: House, since: int) -> None:
    call = house.stub.WatchExecution(pb.WatchExecutionRequest(since=since))
    assert (await refusal(read(call)))[:2] == (grpc.StatusCode.OUT_OF_RANGE, "events_gone")


async def test_a_store_that_is_closed_is_unavailable(house: House) -> None:
    await house.close_store()
    assert (await refusal(house.start("film")))[:2] == (
        grpc.StatusCode.UNAVAILABLE,
        "unavailable",
    )
    call = house.stub.WatchExecution(pb.WatchExecutionRequest(since=0))
    assert (await refusal(read(call)))[:2] == (grpc.StatusCode.UNAVAILABLE, "unavailable")


async def test_a_feed_that_closes_ends_its_watchers_as_unavailable(house: House) -> None:
    call = house.stub.WatchExecution(pb.WatchExecutionRequest())
    await house.feed.until_followed_by(1)
    house.feed.close()
    assert (await refusal(read(call)))[:2] == (grpc.StatusCode.UNAVAILABLE, "unavailable")
