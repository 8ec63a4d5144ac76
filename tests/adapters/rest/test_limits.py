"""What one client may take of the HTTP side, over real sockets, with little patience."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from adapters import tls
from adapters.limits import FAILURES, SHARE, Rates
from adapters.rest.limits import MAX_UNREAD, Connections, Limits, Patience, _Connection
from adapters.rest.problems import problem
from domain.errors import Unauthenticated
from tests.certificates import Authority
from tests.fakes.access import unlocked
from tests.fakes.world import FakeClock

DEADLINE_S = 10.0
SHORT = Patience(tls=0.3, head=0.3, body=0.3, reader=0.3)
LONG = Patience(60.0, 60.0, 60.0, 60.0)
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def hello(request: Request) -> Response:
    await request.body()
    return PlainTextResponse("hello")


async def flood(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65_536)
            await asyncio.sleep(0)  # or nothing else would run once its reader has gone

    return StreamingResponse(pieces())


async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    if websocket.query_params.get("busy"):
        await asyncio.Event().wait()
    async for _ in websocket.iter_text():
        await websocket.send_text("heard")


APP = Starlette(
    routes=[
        Route("/", hello, methods=["GET", "POST"]),
        Route("/flood", flood),
        WebSocketRoute("/ws", listen),
    ]
)


@contextlib.asynccontextmanager
async def serving(connections: Connections) -> AsyncIterator[int]:
    """Its port."""
    server = uvicorn.Server(
        uvicorn.Config(
            APP,
            http=connections.http(H11Protocol),  # type: ignore[arg-type]
            ws=connections.websocket(WebSocketsSansIOProtocol),
            timeout_graceful_shutdown=1,
            lifespan="off",
            log_config=None,
        )
    )
    listener = socket.create_server(("127.0.0.1", 0))
    looking = asyncio.create_task(connections.run())
    running = asyncio.create_task(server._serve([listener]))
    try:
        yield int(listener.getsockname()[1])
    finally:
        looking.cancel()
        connections.end_silent()
        server.should_exit = True
        await running


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the other side has ended the connection."""
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def answered(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    answer = await ended(reader)
    writer.close()
    return answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"hello")


INCOMPLETE = [
    b"",
    b"GET / HT",
    b"GET / HTTP/1.1\r\nhost: x\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nfive!",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfive!",
    GET + b"GET / HT",
]


async def ended_after(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    with contextlib.closing(writer):
        return await ended(reader)


async def test_a_request_that_doesn_t_come_to_its_end_is_given_up() -> None:
    connections = Connections(10, patience=SHORT)
    async with serving(connections) as port:
        await asyncio.gather(*(ended_after(port, sent) for sent in INCOMPLETE))
        await until(lambda: not connections)


async def test_to_let_it_drip_in_helps_nobody() -> None:
    async def drip(port: int, head: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        end = asyncio.create_task(ended(reader))
        while not end.done():
            with contextlib.suppress(ConnectionError):
                writer.write(b"a")
                await writer.drain()
            await asyncio.wait({end}, timeout=0.02)
        await end
        writer.close()

    body = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
    async with serving(Connections(10, patience=SHORT)) as port:
        await asyncio.gather(drip(port, b"GET / HTTP/1.1\r\nx: "), drip(port, body))


async def test_who_doesn_t_read_what_it_has_asked_for_is_let_go() -> None:
    connections = Connections(10, patience=SHORT)
    async with serving(connections) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: len(connections) == 1)
        await until(lambda: not connections)
        writer.close()


async def test_who_reads_slowly_but_reads_is_kept() -> None:
    connections = Connections(10, patience=SHORT)
    async with serving(connections) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        began = time.monotonic()
        while time.monotonic() - began < 2 * SHORT.reader:
            assert await reader.read(65_536)
        assert len(connections) == 1
        writer.close()


async def test_a_websocket_may_be_silent() -> None:
    connections = Connections(10, patience=SHORT)
    async with serving(connections) as port, connect(f"ws://127.0.0.1:{port}/ws") as quiet:
        other, writer = await asyncio.open_connection("127.0.0.1", port)
        await ended(other)  # and that one may not
        writer.close()
        await quiet.send("still here")
        assert await quiet.recv() == "heard"
        assert len(connections) == 1


async def test_who_never_asks_makes_room_for_who_does() -> None:
    connections = Connections(10, patience=LONG)
    async with serving(connections) as port, contextlib.AsyncExitStack() as stack:
        busy = await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws"))
        for _ in range(40):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            await until(lambda: len(connections) <= 10)
        assert len(connections) == 10
        for _ in range(20):
            assert await answered(port)
        await busy.send("still here")
        assert await busy.recv() == "heard"


async def test_when_all_are_in_use_the_next_one_is_kept_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connections = Connections(3, patience=LONG)
    async with serving(connections) as port, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws"))
        for _ in range(5):
            assert not await answered(port)
        assert len(connections) == 3
        assert [record.levelname for record in caplog.records if "kept out" in record.message] == [
            "WARNING"
        ]
        await stack.aclose()
        await until(lambda: not connections)
        assert await answered(port)


async def test_one_address_has_its_share_and_this_machine_all() -> None:
    connections = Connections(SHARE * 5, patience=LONG)

    def come(address: str) -> bool:
        connection = _Connection(connections, lambda: None)
        connection.address = address
        return connections.let_in(connection)

    assert [come("192.0.2.1") for _ in range(6)] == [True] * 5 + [False]
    assert come("192.0.2.2")
    connections = Connections(SHARE * 5, patience=LONG)
    async with serving(connections) as port, contextlib.AsyncExitStack() as stack:
        for _ in range(SHARE * 5):
            await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws"))


async def test_who_says_thousands_of_things_at_once_is_cut_off() -> None:
    connections = Connections(10, patience=LONG)
    async with serving(connections) as port, connect(f"ws://127.0.0.1:{port}/ws?busy=1") as loud:
        empty = b"\x81\x80\0\0\0\0"
        loud.transport.write(empty * (20 * MAX_UNREAD))
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(DEADLINE_S):
                await loud.recv()
        await until(lambda: not connections)


# -- over TLS --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tls.Identity:
    authority = Authority(tmp_path_factory.mktemp("tls"))
    return tls.identity(*authority.sign("127.0.0.1"), None, now=time.time())


async def test_a_handshake_that_goes_nowhere_is_given_up(identity: tls.Identity) -> None:
    connections = Connections(10, context=identity.context, patience=SHORT)
    async with serving(connections) as port:
        none = [b"", b"\x16\x03\x01\x02", GET, bytes(99)]
        await asyncio.gather(*(ended_after(port, sent) for sent in none))
        await until(lambda: not connections)


async def test_handshakes_make_room_too(identity: tls.Identity) -> None:
    connections = Connections(10, context=identity.context, patience=LONG)
    async with serving(connections) as port, contextlib.AsyncExitStack() as stack:
        for _ in range(30):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls.trusting(identity.own)
        )
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert len(connections) == 10
        writer.close()


async def test_a_request_that_comes_with_the_handshake_is_answered(identity: tls.Identity) -> None:
    """As one piece with the client's last words of the handshake."""
    connections = Connections(10, context=identity.context, patience=LONG)
    async with serving(connections) as port:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = tls.trusting(identity.own).wrap_bio(to_client, to_server)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(to_server.read())
                    to_client.write(await reader.read(65_536))
            client.write(GET)
            writer.write(to_server.read())
            while True:
                try:
                    assert client.read().startswith(b"HTTP/1.1 200")
                    break
                except ssl.SSLWantReadError:
                    to_client.write(await reader.read(65_536))
        writer.close()


# -- requests --------------------------------------------------------------------------


async def statuses(app: ASGIApp, times: int, address: str = "192.0.2.1") -> list[int]:
    said: list[int] = []
    retry_after: list[str] = []

    async def send(message: Any) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            said.append(message["status"])
            retry_after.extend(v for k, v in message["headers"] if k == b"retry-after")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    for kind in ["http"] * (times - 1) + ["websocket"]:
        scope = {"type": kind, "method": "GET", "path": "/", "headers": [], "client": (address, 1)}
        scope["extensions"] = {"websocket.http.response": {}}
        await app(scope, receive, send)
    assert len(retry_after) == said.count(429)
    return said


async def test_requests_are_counted_once_there_are_tokens() -> None:
    clock = FakeClock()
    access = unlocked(clock)

    async def good(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=204)(scope, receive, send)

    limits = Limits(good, Rates(1, access, clock))
    assert await statuses(limits, 50) == [204] * 50
    access.keep_locked()
    assert await statuses(limits, 6) == [204] * 4 + [429] * 2
    assert await statuses(limits, 4, "192.0.2.2") == [204] * 4


async def test_failures_are_counted_apart() -> None:
    clock = FakeClock()
    access = unlocked(clock)
    access.keep_locked()

    async def closed(scope: Scope, receive: Receive, send: Send) -> None:
        await problem(Unauthenticated("no"))(scope, receive, send)

    limits = Limits(closed, Rates(0, access, clock))
    assert await statuses(limits, FAILURES + 3) == [401] * FAILURES + [429] * 3
