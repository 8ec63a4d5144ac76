"""Who walks along with the others, who falls behind, and that nobody misses anything by it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from adapters.audit import Audit
from adapters.scope import PRINCIPAL
from adapters.websocket import broadcast, hub
from adapters.websocket.broadcast import Broadcast
from adapters.websocket.frames import SEND_BUFFER_BYTES, WebSocketProtocol
from adapters.websocket.hub import TRY_AGAIN_LATER, Hub
from application.authoring import Pipeline, step
from application.feed import StepProgress
from domain.access import ANYBODY
from tests.fakes.access import unlocked
from tests.fakes.engine import Engine
from tests.fakes.world import until

PATIENCE_S = 10.0
LARGE = "x" * 20_000


class House:
    """The hub of an engine without steps to speak of, on a real port."""

    def __init__(self) -> None:
        self.engine = Engine(Pipeline("one", [step(name="a")(lambda context: None)]))
        self.hub = Hub(
            feed=self.engine.feed,
            trigger=self.engine.trigger,
            clock=self.engine.clock,
            access=unlocked(self.engine.clock),
            audit=Audit(self.engine.clock),
            card_pipeline="one",
        )
        self.address = ""
        self._told = 0

    async def client(self, since: int | None = None, receive_bytes: int = 0) -> ClientConnection:
        host, port = self.address.split(":")
        wire = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_bytes:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        wire.setblocking(False)
        await asyncio.get_running_loop().sock_connect(wire, (host, int(port)))
        place = "" if since is None else f"?since={since}"
        made = await connect(f"ws://{self.address}/ws{place}", sock=wire, max_queue=1)
        assert (await message(made))["type"] == "hub:welcome"
        return made

    def tell(self, text: str = "") -> int:
        """Something that isn't in the log; its number."""
        self._told += 1
        data = {"execution_id": "", "number": self._told, "text": text}
        self.engine.feed.tell(StepProgress(1, data, self.engine.clock.now()))
        return self._told

    @property
    def walking(self) -> int:
        return len(self.hub._broadcast._live)


async def message(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        said: dict[str, Any] = json.loads(await client.recv())
    return said


async def numbers(client: ClientConnection, last: int) -> list[int]:
    """What it is told, up to the one with this number."""
    heard: list[int] = []
    while not heard or heard[-1] != last:
        heard.append((await message(client))["data"]["number"])
    return heard


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    await made.engine.open()
    app = Starlette(routes=[WebSocketRoute("/ws", made.hub.connect)])

    async def by_anybody(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, PRINCIPAL: ANYBODY}, receive, send)

    config = uvicorn.Config(
        by_anybody,
        port=0,
        ws=WebSocketProtocol,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    made.address = f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield made
    made.engine.feed.close()
    server.should_exit = True
    await serving


class Walker:
    """Notes what it is given, in place of a client."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.since = 0
        self.frames: Any = self
        self.given = b""

    def write(self, frames: bytes) -> bool:
        self.given += frames
        return True

    @property
    def numbers(self) -> list[int]:
        return [int(each) for each in re.findall(rb'"number":(\d+)', self.given)]


async def test_who_joins_before_the_walk_has_come_so_far_begins_at_its_own_place(
    house: House,
) -> None:
    feed = house.engine.feed
    walk = Broadcast(feed, lambda follower: None)
    walkers = [Walker(feed.end)]
    assert walk.join(walkers[0])
    for _ in range(8):  # more than go in one piece
        house.tell(LARGE)
        walkers.append(Walker(feed.end))
        assert walk.join(walkers[-1])
    await until(lambda: not walk.busy)
    assert [each.numbers for each in walkers] == [list(range(n, 9)) for n in range(1, 10)]
    assert not walk.join(Walker(feed.end - 1)), "the walk is past that"
    for each in walkers:
        walk.leave(each)


async def test_who_is_up_to_date_walks_along_and_an_event_is_framed_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    framed: list[bytes] = []
    text_frame = broadcast.text_frame
    monkeypatch.setattr(
        broadcast, "text_frame", lambda payload: framed.append(payload) or text_frame(payload)
    )
    clients = [await house.client() for _ in range(3)]
    await until(lambda: house.walking == 3)
    assert house.engine.feed.followers == 3  # the walk itself is none
    last = [house.tell() for _ in range(5)][-1]
    for client in clients:
        assert await numbers(client, last) == [1, 2, 3, 4, 5]
    assert len(framed) == 5
    for client in clients:
        await client.close()
    await until(lambda: house.walking == 0)
    assert house.engine.feed.followers == 0


async def test_who_comes_in_between_gets_what_follows_and_nothing_else(house: House) -> None:
    first = await house.client()
    house.tell()
    second = await house.client()
    house.tell()
    third = await house.client()
    last = house.tell()
    assert await numbers(first, last) == [1, 2, 3]
    assert await numbers(second, last) == [2, 3]
    assert await numbers(third, last) == [3]
    for client in (first, second, third):
        await client.close()


async def test_who_comes_back_with_since_catches_up_and_walks_along_again(house: House) -> None:
    for _ in range(3):
        await house.engine.trigger("one", {})
        await house.engine.dispatcher.idle()
    client = await house.client(since=2)
    heard = [(await message(client))["id"] for _ in range(10)]
    await until(lambda: house.walking == 1)
    await house.engine.trigger("one", {})
    heard += [(await message(client))["id"] for _ in range(4)]
    assert heard == list(range(3, 17))
    await client.close()


async def test_who_reads_slowly_leaves_the_walk_and_misses_nothing(house: House) -> None:
    quick = await house.client()
    slow = await house.client(receive_bytes=32_768)
    await until(lambda: house.walking == 2)
    # More than the buffers on the way hold; the tail of the feed holds it all.
    while house.walking == 2:
        last = house.tell(LARGE)
        assert last * len(LARGE) < 100 * SEND_BUFFER_BYTES
        assert (await numbers(quick, last))[-1] == last
    for _ in range(3):
        last = house.tell(LARGE)
    assert await numbers(slow, last) == list(range(1, last + 1))
    last = house.tell()
    assert await numbers(slow, last) == [last]
    assert await numbers(quick, last) == list(range(last - 3, last + 1))
    await until(lambda: house.walking == 2)
    for client in (quick, slow):
        await client.close()


async def test_who_does_not_read_is_let_go_and_learns_why_once_it_reads(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_LAG_S", 0.2)
    deaf = await house.client(receive_bytes=32_768)
    await until(lambda: house.walking == 1)
    while house.walking:
        last = house.tell(LARGE)
        await asyncio.sleep(0)
    await until(lambda: not house.hub._welcomed)
    with pytest.raises(ConnectionClosed) as closed:
        await numbers(deaf, last)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == TRY_AGAIN_LATER


async def test_a_card_that_is_taken_out_is_told_to_who_walks_along(house: House) -> None:
    frontend, detector = await house.client(), await house.client()
    await detector.close()
    host = f"ws://{house.address}/ws?client_type=detector"
    async with connect(host) as detector:
        await detector.send('{"type": "detector:sd_removed", "sd_path": "/media/A"}')
        assert (await message(frontend))["type"] == "card:removed"
    await frontend.close()


async def test_the_others_are_told_that_the_server_stops(house: House) -> None:
    clients = [await house.client() for _ in range(2)]
    await until(lambda: house.walking == 2)
    house.engine.feed.close()
    for client in clients:
        with pytest.raises(ConnectionClosed) as closed:
            await message(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
