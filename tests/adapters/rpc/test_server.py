"""The server around the service: refusals, limits, health, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, NoReturn

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from adapters.rpc import health as rpc_health
from adapters.rpc import server as rpc_server
from adapters.rpc.access import SERVICE
from adapters.rpc.calls import MAX_DETAILS_BYTES
from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.server import MAX_REQUEST_BYTES
from adapters.status_codes import STATUS, Status
from application.feed import StepProgress
from domain import errors
from tests.adapters.rpc.conftest import PATIENCE_S, House, stub_of
from tests.adapters.rpc.test_service import read, refusal


class Raising:
    """A use case that raises, whatever it is asked."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def get(self, reference: object) -> NoReturn:
        raise self.error

    async def encoded(self, reference: object, encode: object) -> NoReturn:
        raise self.error


def made(kind: type[errors.RushesError], text: str) -> errors.RushesError:
    error = kind.__new__(kind)
    errors.RushesError.__init__(error, text)
    return error


async def both_kinds_of_call(house: House, error: BaseException) -> list[tuple[Any, str, str]]:
    """How a call with one answer, and one with a stream of them, are refused."""
    server = house.another_server(status=Raising(error))
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stub_of(channel)
        refusals = [
            await refusal(stub.GetExecution(pb.GetExecutionRequest(execution_id="7"))),
            await refusal(read(stub.WatchExecution(pb.WatchExecutionRequest(execution_id="7")))),
        ]
    await server.stop(PATIENCE_S)
    return refusals


# -- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "status"), STATUS.items(), ids=lambda v: getattr(v, "code", ""))
async def test_every_refusal_has_the_status_of_the_table(
    house: House, kind: type[errors.RushesError], status: Status
) -> None:
    for refused in await both_kinds_of_call(house, made(kind, "the reason")):
        assert refused == (status.grpc, status.code, "the reason")


async def test_a_bug_is_told_to_the_log_and_to_nobody_else(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    for refused in await both_kinds_of_call(house, KeyError("the secret")):
        assert refused == (grpc.StatusCode.INTERNAL, "internal", "internal error")
    bugs = [record for record in caplog.records if record.name == "adapters.rpc.calls"]
    assert [record.getMessage() for record in bugs] == [
        "a bug in /rushes.v1.PipelineService/GetExecution",
        "a bug in /rushes.v1.PipelineService/WatchExecution",
    ]
    assert all(record.exc_info and "the secret" in str(record.exc_info[1]) for record in bugs)


@pytest.mark.parametrize("text", [
    "caf\udce9 \x00\n\x1b[31m", "\u20ac" * 100_000, "x" * 100_000,
])  # fmt: skip
async def test_whatever_an_error_says_it_reaches_the_client(house: House, text: str) -> None:
    for status, code, details in await both_kinds_of_call(house, errors.Conflict(text)):
        assert (status, code) == (grpc.StatusCode.FAILED_PRECONDITION, "conflict")
        assert details[:3] == text[:3]
        assert len(details.encode()) <= MAX_DETAILS_BYTES + len("…".encode())


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_request_that_can_not_be_read_is_an_invalid_argument(
    house: House, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if streaming:
        call: Any = read(house.channel.unary_stream(f"/{SERVICE}/WatchExecution")(b"\xff\xff"))
    else:
        call = house.channel.unary_unary(f"/{SERVICE}/GetExecution")(b"\x0a\x02\xff\xfe")
    assert (await refusal(call))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_input")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_method_that_is_not_there_is_unimplemented(house: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.channel.unary_unary(f"/{SERVICE}/FormatCard")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# -- limits ---------------------------------------------------------------------------


async def test_a_request_over_the_limit_is_refused_and_the_next_one_served(house: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.start("nothing", text="x" * MAX_REQUEST_BYTES)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await house.start("nothing")


async def test_data_over_its_own_limit_is_an_invalid_argument(house: House) -> None:
    assert (await refusal(house.start("nothing", text="x" * (MAX_REQUEST_BYTES // 2))))[:2] == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid_input",
    )


async def test_calls_beyond_the_limit_are_refused_until_others_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_server, "MAX_CONCURRENT_RPCS", 2)
    server = house.another_server()
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stub_of(channel)
        watchers = [stub.WatchExecution(pb.WatchExecutionRequest()) for _ in range(2)]
        await house.feed.until_followed_by(2)
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await stub.ListExecutions(pb.ListExecutionsRequest()).code() is exhausted
        for watcher in watchers:
            watcher.cancel()
        await house.feed.until_followed_by(0)
        async with asyncio.timeout(PATIENCE_S):
            # A slot is free a moment after the follower has ended, when gRPC has noticed.
            while await stub.ListExecutions(pb.ListExecutionsRequest()).code() is exhausted:
                pass
    await server.stop(PATIENCE_S)


# -- addresses ------------------------------------------------------------------------


async def test_a_port_in_use_is_refused_by_its_address(house: House) -> None:
    port = int(house.address.rpartition(":")[2])
    second = house.another_server()
    with pytest.raises(errors.Unavailable, match=house.address):
        await second.start("127.0.0.1", port)
    await second.stop(0)
    await house.start("nothing")


async def test_an_ipv6_host_is_served(house: House) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    server = house.another_server()
    port = await server.start("::1", 0)
    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    await server.stop(0)


# -- health and the stop --------------------------------------------------------------

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", ["", "rushes.v1.PipelineService"])
async def test_health_is_serving_until_the_stop(house: House, name: str) -> None:
    health: Any = health_pb2_grpc.HealthStub(house.channel)
    request = health_pb2.HealthCheckRequest(service=name)
    assert (await health.Check(request)).status == SERVING
    watch = health.Watch(request)
    assert (await read(watch)).status == SERVING
    stopping = asyncio.create_task(house.server.stop(PATIENCE_S))
    assert (await read(watch)).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(watch)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await stopping


async def test_health_is_not_serving_while_the_store_does_not_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_health, "WATCH_EVERY_S", 0.01)
    health: Any = health_pb2_grpc.HealthStub(house.channel)
    request = health_pb2.HealthCheckRequest()
    watch = health.Watch(request)
    assert (await read(watch)).status == SERVING
    await house.close_store()
    assert (await health.Check(request)).status == NOT_SERVING
    assert (await read(watch)).status == NOT_SERVING
    watch.cancel()


async def test_a_service_that_is_not_there_is_unknown_and_its_watcher_ends_with_the_stop(
    house: House,
) -> None:
    health: Any = health_pb2_grpc.HealthStub(house.channel)
    request = health_pb2.HealthCheckRequest(service="rushes.v2.PipelineService")
    assert (await refusal(health.Check(request)))[0] is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(request)
    assert (await read(watch)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    async with asyncio.timeout(PATIENCE_S):
        await house.server.stop(PATIENCE_S * 10)


async def test_a_reflecting_client_does_not_hold_up_the_stop(house: House) -> None:
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(house.channel)
    call = reflection.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await read(call)
    async with asyncio.timeout(PATIENCE_S):
        await house.server.stop(PATIENCE_S * 10)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_stop_ends_streams_at_once_and_says_so(house: House) -> None:
    calls = [house.stub.WatchExecution(pb.WatchExecutionRequest()) for _ in range(5)]
    await house.feed.until_followed_by(5)
    async with asyncio.timeout(PATIENCE_S):
        await house.server.stop(PATIENCE_S * 10)
    for call in calls:
        assert await refusal(read(call)) == (
            grpc.StatusCode.UNAVAILABLE,
            "unavailable",
            "the server is stopping",
        )
    assert house.feed.following == 0


async def test_who_was_watching_at_the_stop_resumes_elsewhere_and_misses_nothing(
    house: House,
) -> None:
    started = [await house.start("nothing") for _ in range(25)]
    for each in started:
        await house.until(each, "pipeline:completed")
    call = house.stub.WatchExecution(pb.WatchExecutionRequest(since=0))
    seen = [(await read(call)).id]
    stopping = asyncio.create_task(house.server.stop(PATIENCE_S))
    with contextlib.suppress(grpc.aio.AioRpcError):
        while True:
            seen.append((await read(call)).id)
    await stopping
    elsewhere = house.another_server()
    port = await elsewhere.start("127.0.0.1", 0)
    everything = [fact.id for fact in await house.feed.page(0, 1_000)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stub_of(channel)
        call = stub.WatchExecution(pb.WatchExecutionRequest(since=seen[-1]))
        while len(seen) < len(everything):
            seen.append((await read(call)).id)
        call.cancel()
    await elsewhere.stop(PATIENCE_S)
    assert seen == everything


async def test_a_client_that_reads_nothing_does_not_hold_up_the_stop(house: House) -> None:
    started = await house.start("film")
    call = house.stub.WatchExecution(pb.WatchExecutionRequest())
    await house.feed.until_followed_by(1)
    detail = {"text": "x" * 500_000}
    for _ in range(50):  # far more than the connection's windows hold
        house.feed.tell(StepProgress(started.id, detail, house.clock.now()))
    await read(call)
    async with asyncio.timeout(PATIENCE_S):
        await house.server.stop(0.2)
    await house.feed.until_followed_by(0)
    call.cancel()


async def test_a_call_under_way_may_finish_while_the_server_stops(house: House) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class SlowStatus:
        async def encoded(self, reference: str | int, encode: Any) -> bytes:
            asked.set()
            await answer.wait()
            return await house.status.encoded(reference, encode)

    started = await house.start("film")
    server = house.another_server(status=SlowStatus())
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stub_of(channel)
        call = stub.GetExecution(pb.GetExecutionRequest(execution_id=str(started.id)))
        async with asyncio.timeout(PATIENCE_S):
            waiting = asyncio.ensure_future(call)
            await asked.wait()
            watcher = stub.WatchExecution(pb.WatchExecutionRequest())
            await house.feed.until_followed_by(1)
            stopping = asyncio.create_task(server.stop(PATIENCE_S))
            assert (await refusal(read(watcher)))[0] is grpc.StatusCode.UNAVAILABLE
            answer.set()
            assert (await waiting).execution.id == started.id
            await stopping


async def test_a_stop_before_the_start_and_a_second_one_do_nothing(house: House) -> None:
    await house.another_server().stop(PATIENCE_S)
    await house.server.stop(PATIENCE_S)
    await house.server.stop(PATIENCE_S)
