"""google.rpc.Status: what a refusal says for programs, as their libraries read it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details_pb
from grpc_status import rpc_status

from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.status_codes import STATUS
from domain import errors
from tests.adapters.rpc.conftest import House, stub_of
from tests.adapters.rpc.test_server import made


async def details_of(call: Any) -> dict[str, Any]:
    """By the name of their types; the library checks that they fit the plain status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return details_in(caught.value)


def details_in(error: Any) -> dict[str, Any]:
    status = rpc_status.from_call(error_as_call(error))
    assert status is not None
    found = {}
    for detail in status.details:
        kind = detail.type_url.rpartition(".")[2]
        found[kind] = getattr(details_pb, kind).FromString(detail.value)
    return found


def error_as_call(error: Any) -> Any:
    class Call:
        def code(self) -> Any:
            return error.code()

        def details(self) -> Any:
            return error.details()

        def trailing_metadata(self) -> Any:
            return tuple(error.trailing_metadata())

    return Call()


async def test_what_makes_no_sense_names_its_field(house: House) -> None:
    found = await details_of(house.stub.ListExecutions(pb.ListExecutionsRequest(page_size=-1)))
    (violation,) = found["BadRequest"].field_violations
    assert violation.field == "page_size"
    assert "negative" in violation.description
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == ("invalid_input", "rushes")


async def test_what_the_state_does_not_allow_names_the_state(house: House) -> None:
    started = await house.start("film")
    found = await details_of(
        house.stub.RetryExecution(pb.RetryExecutionRequest(execution_id=started.execution_id))
    )
    (violation,) = found["PreconditionFailure"].violations
    assert violation.subject == f"execution {started.execution_id}"
    assert violation.type == found["ErrorInfo"].reason == "illegal_transition"
    assert dict(found["ErrorInfo"].metadata) == {"state": "running", "verb": "retry"}


async def test_what_is_not_there_is_named(house: House) -> None:
    found = await details_of(house.stub.GetExecution(pb.GetExecutionRequest(execution_id="999")))
    resource = found["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == ("execution", "999")


async def test_a_place_outside_the_log_says_which_there_are(house: House) -> None:
    await house.start("nothing")
    call = house.stub.WatchExecution(pb.WatchExecutionRequest(since=10_000))
    found = await details_of(call.read())
    assert found["ErrorInfo"].reason == "events_gone"
    assert int(found["ErrorInfo"].metadata["last_event_id"]) > 0


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.__name__)
async def test_every_refusal_has_its_reason(house: House, kind: type[errors.RushesError]) -> None:
    found = await details_of(refused_by(house, made(kind, "the reason")))
    assert found["ErrorInfo"].reason == STATUS[kind].code


async def refused_by(house: House, error: BaseException) -> Any:
    class Raising:
        async def encoded(self, reference: object, encode: object) -> None:
            raise error

    server = house.another_server(status=Raising())
    port = await server.start("127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await stub_of(channel).GetExecution(pb.GetExecutionRequest(execution_id="7"))
    finally:
        await server.stop(0)


@pytest.mark.parametrize("text", ["x" * 100_000, "\u20ac" * 100_000, "caf\udce9 \x00\n"])
async def test_however_much_an_error_says_it_reaches_the_client_whole(
    house: House, text: str
) -> None:
    """Metadata beyond 8 KiB is dropped by peers, and the status with it."""
    found = await details_of(refused_by(house, errors.InvalidInput(text, field=text)))
    (violation,) = found["BadRequest"].field_violations
    assert violation.description[:3] == violation.field[:3] == text[:3]
