"""The guard around methods that do what ours never should."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from adapters.rpc.guard import Guard
from tests.adapters.rpc.conftest import PATIENCE_S
from tests.adapters.rpc.test_service import read, refusal


@contextlib.asynccontextmanager
async def served(guard: Guard, **methods: Any) -> AsyncIterator[Any]:
    """A channel to a server with these methods, of bytes, under the name of their kind."""
    handlers = {
        name: getattr(grpc, f"{name}_rpc_method_handler")(method)
        for name, method in methods.items()
    }
    server = grpc.aio.server(interceptors=[guard])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(PATIENCE_S)


def call(channel: Any, kind: str) -> Any:
    multi = getattr(channel, kind)(f"/t.T/{kind}")
    return multi(iter([b"request"]) if kind.startswith("stream") else b"request")


@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary", "unary_stream", "stream_stream"])
async def test_methods_of_every_kind_are_guarded(kind: str) -> None:
    async def answer(request: Any, context: Any) -> bytes:
        raise KeyError("the secret")

    async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise KeyError("the secret")

    method = generate if kind.endswith("stream") else answer
    async with served(Guard(), **{kind: method}) as channel:
        called = call(channel, kind)
        if kind.endswith("stream"):
            assert await read(called) == b"first"
            called = read(called)
        assert await refusal(called) == (grpc.StatusCode.INTERNAL, "internal", "internal error")


async def test_what_a_method_aborts_with_is_its_own_business(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.DATA_LOSS, "gone", (("rushes-code", "lost"),))

    async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await answer(request, context)

    async with served(Guard(), unary_unary=answer, unary_stream=generate) as channel:
        lost = (grpc.StatusCode.DATA_LOSS, "lost", "gone")
        assert await refusal(call(channel, "unary_unary")) == lost
        stream = call(channel, "unary_stream")
        assert await read(stream) == b"first"
        assert await refusal(read(stream)) == lost
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_generator_is_closed_when_its_client_goes_away_or_the_server_stops() -> None:
    closed: asyncio.Queue[str] = asyncio.Queue()

    async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.put_nowait("closed")

    guard = Guard()
    async with served(guard, unary_stream=generate) as channel, asyncio.timeout(PATIENCE_S):
        for by_client in (True, False):
            going = call(channel, "unary_stream")
            await going.read()
            end = going.cancel if by_client else guard.end_streams
            end()
            await closed.get()


async def test_to_write_to_a_client_that_has_gone_away_is_no_bug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = asyncio.Event()

    async def stubborn(request: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield b"second"
        finally:
            closed.set()

    async with served(Guard(), unary_stream=stubborn) as channel, asyncio.timeout(PATIENCE_S):
        going = call(channel, "unary_stream")
        await going.read()
        going.cancel()
        await closed.wait()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_method_whose_client_goes_away_is_cancelled() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def wait() -> None:
        told.put_nowait("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.put_nowait("cancelled")
            raise

    async def answer(request: Any, context: Any) -> None:
        await wait()

    async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
        await wait()
        yield b""

    async with served(Guard(), unary_unary=answer, unary_stream=generate) as channel:
        for kind in ("unary_unary", "unary_stream"):
            going = call(channel, kind)
            async with asyncio.timeout(PATIENCE_S):
                assert await told.get() == "begun"
                going.cancel()
                assert await told.get() == "cancelled"


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
async def test_streams_that_end_by_themselves_are_ok(kind: str) -> None:
    async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"only"

    async with served(Guard(), **{kind: generate}) as channel:
        assert [each async for each in call(channel, kind)] == [b"only"]


async def test_a_stream_that_comes_after_the_end_of_streams_is_refused_and_a_call_is_not() -> None:
    async def answer(request: Any, context: Any) -> bytes:
        return b"answer"

    async def forever(request: Any, context: Any) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    guard = Guard()
    guard.end_streams()
    async with served(guard, unary_unary=answer, unary_stream=forever) as channel:
        assert await call(channel, "unary_unary") == b"answer"
        assert await refusal(read(call(channel, "unary_stream"))) == (
            grpc.StatusCode.UNAVAILABLE,
            "unavailable",
            "the server is stopping",
        )


async def test_streams_that_end_in_the_middle_of_a_message_still_get_their_status() -> None:
    async def chatter(request: Any, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield b"x"

    async def listen(stream: Any) -> grpc.StatusCode:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while True:
                await stream.read()
        return await stream.code()  # type: ignore[no-any-return]

    guard = Guard()
    async with served(guard, unary_stream=chatter) as channel, asyncio.timeout(PATIENCE_S):
        streams = [call(channel, "unary_stream") for _ in range(50)]
        for stream in streams:
            await stream.read()
        guard.end_streams()
        codes = await asyncio.gather(*(listen(stream) for stream in streams))
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
