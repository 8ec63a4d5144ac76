"""A thousand frontends, a hundred of which never read: nobody else notices, and they recover."""

from __future__ import annotations

import asyncio
import base64
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psutil
import pytest

from tests.e2e.server import DEADLINE_S, Server

FRONTENDS = 1_000
SLOW = 100
TRIGGERS = 40
AT_ONCE = 50

RECEIVE_BUFFER_BYTES = 4_096
"""Of those who don't read, so that what they leave is soon the server's."""

MAX_GROWTH_BYTES = 60 * 1024 * 1024
"""What a thousand connections take, and the buffers of those who don't read."""

TEXT, CLOSE = 0x1, 0x8
TRY_AGAIN_LATER = 1013


class Head(msgspec.Struct):
    """What is looked at of a message."""

    type: str
    id: int | None = None


class Frontend(asyncio.Protocol):
    """A WebSocket by hand: a thousand of a library's would take longer than the server."""

    def __init__(self, since: int | None = None) -> None:
        place = "" if since is None else f"&since={since}"
        self._request = (
            f"GET /ws?client_type=frontend{place} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n"
        ).encode()
        self._unread = b""
        self._upgraded = False
        self.types: list[str] = []
        self.ids: list[int] = []
        self.close_code: int | None = None
        self.lost = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if not self._upgraded:
            head, end, rest = self._unread.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._upgraded, self._unread = True, rest
        at = 0
        while (frame := self._frame(at)) is not None:
            opcode, start, at = frame
            payload = self._unread[start:at]
            if opcode == TEXT:
                message = msgspec.json.decode(payload, type=Head)
                self.types.append(message.type)
                if message.id is not None:
                    self.ids.append(message.id)
            elif opcode == CLOSE:
                (self.close_code,) = struct.unpack("!H", payload[:2])
                self.transport.close()
        self._unread = self._unread[at:]

    def _frame(self, at: int) -> tuple[int, int, int] | None:
        """Its opcode, where what it says begins, and where it ends; None if it isn't all there."""
        unread = self._unread
        if len(unread) < at + 2:
            return None
        length, start = unread[at + 1], at + 2
        if length == 126:
            start += 2
        elif length == 127:
            start += 8
        if len(unread) < start:
            return None
        if length >= 126:
            length = int.from_bytes(unread[at + 2 : start])
        end = start + length
        return (unread[at] & 0xF, start, end) if len(unread) >= end else None


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the sockets of both ends; the server inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FRONTENDS + 1_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and {hard} are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def connect(server: Server, since: int | None = None, *, slow: bool = False) -> Frontend:
    host, port = server.http.removeprefix("http://").split(":")
    wire = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    wire.setblocking(False)
    if slow:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(wire, (host, int(port)))
    frontend = Frontend(since)
    await loop.create_connection(lambda: frontend, sock=wire)
    await until(lambda: bool(frontend.types))
    assert frontend.types[0] == "hub:welcome"
    if slow:
        frontend.transport.pause_reading()
    return frontend


async def connect_all(server: Server, count: int, *, slow: bool = False) -> list[Frontend]:
    connected: list[Frontend] = []
    while len(connected) < count:
        several = min(AT_ONCE, count - len(connected))
        connected += await asyncio.gather(*(connect(server, slow=slow) for _ in range(several)))
    return connected


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not wanted():
            await asyncio.sleep(0.005)


def followers(server: Server) -> int:
    page = server.request("GET", "/metrics").text
    found = next(line for line in page.splitlines() if line.startswith("rushes_followers "))
    return int(float(found.split()[1]))


async def test_a_thousand_frontends_of_which_a_hundred_never_read(
    many_files: None, start_server: Callable[..., Server]
) -> None:
    server = start_server(RUSHES_CONNECTIONS=str(2 * FRONTENDS))
    assert server.process is not None
    memory = psutil.Process(server.process.pid).memory_info
    before = memory().rss
    readers = await connect_all(server, FRONTENDS - SLOW)
    silent = await connect_all(server, SLOW, slow=True)

    for _ in range(TRIGGERS):
        await asyncio.to_thread(server.trigger, "wide")
    events = await asyncio.to_thread(server.get, "/api/events", limit=1_000)
    told = [event["id"] for event in events["events"]]
    assert len(told) == 2 * TRIGGERS
    await until(lambda: all(len(each.ids) >= len(told) for each in readers))
    assert all(each.ids == told for each in readers)
    assert not any(each.lost or each.close_code for each in readers)

    # Those who didn't read are let go, and what they didn't read isn't kept for them.
    async with asyncio.timeout(DEADLINE_S):
        while await asyncio.to_thread(followers, server) > len(readers):
            await asyncio.sleep(0.05)
    assert memory().rss - before < MAX_GROWTH_BYTES

    for each in silent:
        each.transport.resume_reading()
    await until(lambda: all(each.lost for each in silent))
    assert {each.close_code for each in silent} == {TRY_AGAIN_LATER}
    for each in silent:
        had = each.ids[-1] if each.ids else told[0] - 1
        assert had < told[-1]
        again = await connect(server, since=had)
        await until(lambda again=again: again.ids and again.ids[-1] == told[-1])
        assert each.ids + again.ids == told

    await asyncio.to_thread(server.trigger, "wide")
    await until(lambda: all(len(each.ids) == len(told) + 2 for each in readers))
    for each in (*readers, *silent):
        each.transport.abort()
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
