"""Calls without a message, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from adapters.rpc.access import FREE
from adapters.rpc.patience import MOST_FREE, Patience
from tests.adapters.rpc import test_calls
from tests.adapters.rpc.test_calls import calls_of

DEADLINE_S = 10.0
MOST = MOST_FREE + 100
ONE, MANY = "/test/One", "/test/Many"
OWNER = (test_calls.OWNER,)


@contextlib.asynccontextmanager
async def serving(patience: Patience, look_every_s: float = 0.01) -> AsyncIterator[aio.Channel]:
    async def one(request: bytes, context: Any) -> bytes:
        return request

    async def many(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        yield request

    calls = calls_of(patience=patience)
    methods = {
        "One": grpc.unary_unary_rpc_method_handler(one),
        "Many": grpc.unary_stream_rpc_method_handler(many),
    }
    free = {"Check": grpc.unary_unary_rpc_method_handler(one)}
    calls.add_registered_method_handlers("test", methods)
    calls.add_registered_method_handlers(FREE.strip("/"), free)
    server = aio.server(maximum_concurrent_rpcs=MOST)
    server.add_generic_rpc_handlers((calls,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    looking = asyncio.create_task(patience.run(look_every_s))
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    looking.cancel()
    calls.end_streams()
    await server.stop(0)


@pytest.mark.parametrize("method", [ONE, MANY])
async def test_a_call_without_its_message_is_given_up_and_frees_its_place(method: str) -> None:
    async with serving(Patience()) as channel, asyncio.timeout(DEADLINE_S):
        silent = [channel.stream_stream(method)(metadata=OWNER) for _ in range(MOST)]
        for call in silent:
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert "didn't come" in await call.details()
        assert await channel.unary_unary(ONE)(b"here", metadata=OWNER) == b"here"
        assert [each async for each in channel.unary_stream(MANY)(b"x", metadata=OWNER)] == [
            b"x",
            b"x",
        ]


async def test_calls_that_are_free_keep_nobody_out() -> None:
    async with serving(Patience(), look_every_s=3_600) as channel, asyncio.timeout(DEADLINE_S):
        check = channel.stream_unary(f"{FREE}Check")
        silent = [check() for _ in range(MOST_FREE + 50)]
        while sum(call.done() for call in silent) < 50:
            await asyncio.sleep(0.01)
        assert await channel.unary_unary(ONE)(b"here", metadata=OWNER) == b"here"
        assert await channel.unary_unary(f"{FREE}Check")(b"here") == b"here"
        for call in silent:
            if call.done():
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
            call.cancel()


async def test_a_call_that_ends_without_a_message_is_refused() -> None:
    async with serving(Patience()) as channel, asyncio.timeout(DEADLINE_S):
        call = channel.stream_unary(ONE)(metadata=OWNER)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_who_goes_away_without_a_message_leaves_nothing_behind() -> None:
    patience = Patience()
    async with serving(patience) as channel, asyncio.timeout(DEADLINE_S):
        for _ in range(30):
            call = channel.stream_stream(ONE)(metadata=OWNER)
            await call.wait_for_connection()
            call.cancel()
        assert await channel.unary_unary(ONE)(b"here", metadata=OWNER) == b"here"
        while patience._waiting:
            await asyncio.sleep(0.01)
