"""Who is let in over gRPC, where a server has what ours has not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from adapters.rpc.access import NEEDS
from adapters.rpc.calls import address_of
from adapters.rpc.pb import pipeline_pb2 as pb
from application.access import Access
from tests.adapters.rpc.conftest import PATIENCE_S, House
from tests.adapters.rpc.test_calls import KEY, OWNER, call, calls_of, heard, served
from tests.adapters.rpc.test_external import until_waiting
from tests.adapters.rpc.test_service import read, refusal
from tests.fakes.access import unlocked
from tests.fakes.world import FakeClock, until


@pytest.fixture
def access() -> Access:
    return unlocked(FakeClock(), owner_key=KEY)


async def answer(request: Any, context: Any) -> bytes:
    await heard(request)
    return b"answer"


async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
    await heard(request)
    yield b"answer"


KINDS = {
    "unary_unary": answer,
    "stream_unary": answer,
    "unary_stream": generate,
    "stream_stream": generate,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_method_that_nobody_has_thought_of_is_open_to_nobody(
    access: Access, kind: str
) -> None:
    async with served(calls_of(access), **{kind: KINDS[kind]}) as channel:

        async def outcome(*shown: tuple[str, str]) -> Any:
            # Who is refused isn't heard, so a stream asks nothing.
            asked = [] if kind.startswith("stream") else [b"request"]
            method = getattr(channel, kind)(f"/t.T/{kind}")
            called = method(*asked, metadata=shown, timeout=PATIENCE_S)
            return await refusal(read(called) if kind.endswith("stream") else called)

        assert (await outcome())[0] is grpc.StatusCode.UNAUTHENTICATED
        _, text = await access.new("service")
        code, word, why = await outcome(("authorization", f"Bearer {text}"))
        assert (code, word) == (grpc.StatusCode.PERMISSION_DENIED, "not_permitted")
        assert "service" in why
        assert "tokens" in why
        owner = call(channel, kind, OWNER)
        assert await (read(owner) if kind.endswith("stream") else owner) == b"answer"


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_what_waits_ends_when_who_asked_may_not_any_more(access: Access, kind: str) -> None:
    begun = asyncio.Event()

    async def wait(request: Any, context: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        await wait(request, context)
        yield b""

    token, text = await access.new("admin")
    methods = {"unary_unary": wait, "unary_stream": stream}
    calls = calls_of(access, long_polls=("/t.T/unary_unary",))
    async with served(calls, **{kind: methods[kind]}) as channel:
        called = call(channel, kind, ("authorization", f"Bearer {text}"))
        ended = asyncio.ensure_future(refusal(read(called) if kind.endswith("stream") else called))
        await begun.wait()
        await access.revoke(token.id)
        assert (await ended)[:2] == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")


async def test_a_request_is_not_read_before_it_is_known_who_asks(house: House) -> None:
    await house.access.new("viewer")
    name = pb.DESCRIPTOR.services_by_name["PipelineService"].full_name
    for method in (*NEEDS, "FormatCard"):
        garbled = house.channel.unary_unary(f"/{name}/{method}")(b"\xff\xff\xff")
        code, word, why = await refusal(garbled)
        assert (code, word) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
        assert "token" in why


async def test_what_changes_something_is_written_down_with_its_execution(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rushes.audit")
    execution = await house.start("nothing")
    await house.get(execution)
    retry = pb.RetryExecutionRequest(execution_id=execution.execution_id)
    with pytest.raises(grpc.aio.AioRpcError):
        await house.stub.RetryExecution(retry)
    wanted = pb.ClaimStepRequest(step_name="never", worker_id="w", wait_s=PATIENCE_S)
    gone = house.stub.ClaimStep(wanted)
    await until_waiting(house, 1)
    gone.cancel()
    await until(lambda: "ClaimStep" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name == "rushes.audit"]
    who = "who=anonymous from=127.0.0.1 what=rushes.v1.PipelineService"
    assert lines == [
        f"{who}/TriggerPipeline execution={execution.execution_id} outcome=OK",
        f"{who}/RetryExecution execution={execution.execution_id} outcome=FAILED_PRECONDITION",
        f"{who}/ClaimStep outcome=CANCELLED",
    ]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50312", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50312", "::1"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"),
        ("unix:", "unix"),
        ("", ""),
    ],
)
def test_an_address_has_neither_kind_nor_port(peer: str, address: str) -> None:
    assert address_of(peer) == address
