"""What is around methods that do what ours never should."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import grpc
import pytest

from adapters.audit import Audit
from adapters.limits import BURST_S, FAILURES, SHARE, Rates, Shares
from adapters.rpc.access import FREE
from adapters.rpc.calls import Calls
from adapters.rpc.patience import Patience
from application.access import Access
from tests.adapters.rpc.conftest import PATIENCE_S
from tests.adapters.rpc.test_service import read, refusal
from tests.fakes.access import unlocked
from tests.fakes.world import FakeClock

KEY = "the owner's key"


def calls_of(
    access: Access | None = None,
    *,
    patience: Patience | None = None,
    rate: int = 0,
    shares: Shares | None = None,
    long_polls: Collection[str] = (),
) -> Calls:
    """What is around the methods of t.T, of which the table of permissions knows nothing."""
    clock = FakeClock()
    access = access or unlocked(clock, owner_key=KEY)
    return Calls(
        access=access,
        audit=Audit(clock),
        rates=Rates(rate, access, clock),
        shares=shares or Shares(1_000),
        patience=patience or Patience(),
        long_polls=long_polls,
    )


@contextlib.asynccontextmanager
async def served(calls: Calls, at: str = "", **methods: Any) -> AsyncIterator[Any]:
    """A channel to a server with these methods, of bytes, under the name of their kind.

    at: an address that isn't the loopback's.
    """
    handlers = {
        name: getattr(grpc, f"{name}_rpc_method_handler")(method)
        for name, method in methods.items()
    }
    calls.add_registered_method_handlers("t.T", handlers)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((calls,))
    port = server.add_insecure_port(at or "127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(at or f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(PATIENCE_S)


def call(channel: Any, kind: str, *shown: tuple[str, str]) -> Any:
    multi = getattr(channel, kind)(f"/t.T/{kind}")
    asked = iter([b"request"]) if kind.startswith("stream") else b"request"
    return multi(asked, metadata=shown, timeout=PATIENCE_S)


async def heard(request: Any) -> None:
    """All that is asked. A call that ends while gRPC's client still asks fails there by itself."""
    if not isinstance(request, bytes):
        async for _ in request:
            pass


OWNER = ("x-rushes-key", KEY)


@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary", "unary_stream", "stream_stream"])
async def test_methods_of_every_kind_are_guarded(kind: str) -> None:
    async def answer(request: Any, context: Any) -> bytes:
        await heard(request)
        raise KeyError("the secret")

    async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
        await heard(request)
        yield b"first"
        raise KeyError("the secret")

    method = generate if kind.endswith("stream") else answer
    async with served(calls_of(), **{kind: method}) as channel:
        called = call(channel, kind, OWNER)
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

    async with served(calls_of(), unary_unary=answer, unary_stream=generate) as channel:
        lost = (grpc.StatusCode.DATA_LOSS, "lost", "gone")
        assert await refusal(call(channel, "unary_unary", OWNER)) == lost
        stream = call(channel, "unary_stream", OWNER)
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

    calls = calls_of()
    async with served(calls, unary_stream=generate) as channel, asyncio.timeout(PATIENCE_S):
        for by_client in (True, False):
            going = call(channel, "unary_stream", OWNER)
            await going.read()
            end = going.cancel if by_client else calls.end_streams
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

    async with served(calls_of(), unary_stream=stubborn) as channel, asyncio.timeout(PATIENCE_S):
        going = call(channel, "unary_stream", OWNER)
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

    async with served(calls_of(), unary_unary=answer, unary_stream=generate) as channel:
        for kind in ("unary_unary", "unary_stream"):
            going = call(channel, kind, OWNER)
            async with asyncio.timeout(PATIENCE_S):
                assert await told.get() == "begun"
                going.cancel()
                assert await told.get() == "cancelled"


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
async def test_streams_that_end_by_themselves_are_ok(kind: str) -> None:
    async def generate(request: Any, context: Any) -> AsyncIterator[bytes]:
        await heard(request)
        yield b"only"

    async with served(calls_of(), **{kind: generate}) as channel:
        assert [each async for each in call(channel, kind, OWNER)] == [b"only"]


async def test_a_stream_that_comes_after_the_end_of_streams_is_refused_and_a_call_is_not() -> None:
    async def answer(request: Any, context: Any) -> bytes:
        return b"answer"

    async def forever(request: Any, context: Any) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    calls = calls_of()
    calls.end_streams()
    async with served(calls, unary_unary=answer, unary_stream=forever) as channel:
        assert await call(channel, "unary_unary", OWNER) == b"answer"
        assert await refusal(read(call(channel, "unary_stream", OWNER))) == (
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

    calls = calls_of()
    async with served(calls, unary_stream=chatter) as channel, asyncio.timeout(PATIENCE_S):
        streams = [call(channel, "unary_stream", OWNER) for _ in range(50)]
        for stream in streams:
            await stream.read()
        calls.end_streams()
        codes = await asyncio.gather(*(listen(stream) for stream in streams))
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE}


async def test_who_asks_too_often_is_told_so_and_asks_nothing_meanwhile() -> None:
    asked = 0

    async def answer(request: Any, context: Any) -> bytes:
        nonlocal asked
        asked += 1
        return b"answer"

    access = unlocked(FakeClock(), owner_key=KEY)
    await access.new("viewer")
    calls = calls_of(access, rate=2)
    calls.add_registered_method_handlers(
        FREE.strip("/"), {"Check": grpc.unary_unary_rpc_method_handler(answer)}
    )
    async with served(calls, unary_unary=answer) as channel:
        for number in range(2 * BURST_S):
            if number % 2:
                await call(channel, "unary_unary", OWNER)
            else:
                await channel.unary_unary(f"{FREE}Check")(b"request")
        for called in (
            call(channel, "unary_unary", OWNER),
            channel.unary_unary(f"{FREE}Check")(b""),
        ):
            code, word, why = await refusal(called)
            assert (code, word) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_requests")
            assert "127.0.0.1 asks more than 2 times a second" in why
    assert asked == 2 * BURST_S


async def test_an_address_has_its_share_of_the_calls_that_are_open(tmp_path: Path) -> None:
    async def follow(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    calls = calls_of(shares=Shares(2 * SHARE))
    async with served(calls, at=f"unix:{tmp_path / 'calls'}", unary_stream=follow) as channel:
        open_ones = [call(channel, "unary_stream", OWNER) for _ in range(2)]
        for each in open_ones:
            assert await read(each) == b"first"
        for _ in range(2):  # who is refused takes nothing, and gives nothing back
            assert await refusal(read(call(channel, "unary_stream", OWNER))) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too_many_requests",
                "unix has 2 calls open",
            )
        open_ones[0].cancel()
        async with asyncio.timeout(PATIENCE_S):
            while True:  # until the server has heard of it
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert await read(call(channel, "unary_stream", OWNER)) == b"first"
                    break


async def test_who_fails_too_often_to_say_who_they_are_is_told_so_and_others_are_let_in() -> None:
    async def answer(request: Any, context: Any) -> bytes:
        return b"answer"

    access = unlocked(FakeClock(), owner_key=KEY)
    await access.new("viewer")
    async with served(calls_of(access), unary_unary=answer) as channel:
        wrong = ("authorization", "Bearer rushes_1_wrong")
        for _ in range(FAILURES):
            called = call(channel, "unary_unary", wrong)
            assert (await refusal(called))[0] is grpc.StatusCode.UNAUTHENTICATED
        called = call(channel, "unary_unary", wrong)
        assert (await refusal(called))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(channel, "unary_unary", OWNER) == b"answer"
