"""Who is let go for being slow, and who isn't."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.datastructures import QueryParams
from starlette.websockets import WebSocketState

from adapters.audit import Audit
from adapters.scope import PRINCIPAL
from adapters.websocket.hub import MAX_LAG_S, TRY_AGAIN_LATER, Hub
from application import feed as feed_module
from application.authoring import Pipeline, step
from application.feed import Feed
from domain.access import ANYBODY
from tests.fakes.access import unlocked
from tests.fakes.engine import Engine
from tests.fakes.world import until


class FakeSocket:
    """The part of a WebSocket that the hub uses; ``takes`` says whether the client reads."""

    def __init__(self, **query: str) -> None:
        self.query_params = QueryParams(query)
        self.scope: dict[str, Any] = {"type": "websocket", PRINCIPAL: ANYBODY}
        self.application_state = WebSocketState.CONNECTED
        self.sent: list[Any] = []
        self.closed: int | None = None
        self.takes = asyncio.Event()
        self.takes.set()
        self._left = asyncio.Event()

    async def accept(self) -> None:
        pass

    async def send_text(self, text: str) -> None:
        await self.takes.wait()
        self.sent.append(json.loads(text))

    async def receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "websocket.disconnect", "code": 1000}

    async def close(self, code: int, reason: str) -> None:
        self.closed = code
        self.application_state = WebSocketState.DISCONNECTED

    def leave(self) -> None:
        self._left.set()

    @property
    def ids(self) -> list[int]:
        return [message["id"] for message in self.sent if "id" in message]


@pytest.fixture
async def engine() -> Engine:
    return await Engine(Pipeline("one", [step(name="a")(lambda context: None)])).open()


def hub_of(engine: Engine) -> Hub:
    return Hub(
        feed=engine.feed,
        trigger=engine.trigger,
        clock=engine.clock,
        access=unlocked(engine.clock),
        audit=Audit(engine.clock),
        card_pipeline="one",
    )


async def test_who_comes_back_after_a_while_gets_everything_and_stays(engine: Engine) -> None:
    await engine.trigger("one", {})
    await engine.dispatcher.idle()
    engine.clock.tick(10 * MAX_LAG_S)
    socket = FakeSocket(since="0")
    connected = asyncio.create_task(hub_of(engine).connect(socket))  # type: ignore[arg-type]
    await until(lambda: socket.ids == [1, 2, 3, 4])
    await engine.trigger("one", {})
    await until(lambda: socket.ids == [1, 2, 3, 4, 5, 6, 7, 8])
    assert socket.closed is None
    socket.leave()
    await connected


async def test_who_was_up_to_date_and_stops_reading_is_let_go(engine: Engine) -> None:
    socket = FakeSocket()
    connected = asyncio.create_task(hub_of(engine).connect(socket))  # type: ignore[arg-type]
    await until(lambda: socket.sent)
    await engine.trigger("one", {})
    await until(lambda: socket.ids == [1, 2, 3, 4])
    socket.takes.clear()
    await engine.trigger("one", {})
    await engine.dispatcher.idle()
    engine.clock.tick(MAX_LAG_S + 1)
    socket.takes.set()
    await asyncio.wait_for(connected, 10)
    assert socket.closed == TRY_AGAIN_LATER


async def test_who_has_missed_what_is_forgotten_is_told_to_begin_anew(engine: Engine) -> None:
    for _ in range(2):
        await engine.trigger("one", {})
        await engine.dispatcher.idle()
        engine.clock.tick(10)
    assert await engine.executions.forget(engine.clock.now(), 1) == 1
    sockets = {since: FakeSocket(since=since) for since in ("3", "4")}
    hub = hub_of(engine)
    tasks = [asyncio.create_task(hub.connect(each)) for each in sockets.values()]  # type: ignore[arg-type]
    await until(lambda: len(sockets["3"].sent) == 2 and sockets["4"].ids == [5, 6, 7, 8])
    welcome, reset = sockets["3"].sent
    assert (welcome["type"], reset["type"]) == ("hub:welcome", "hub:reset")
    assert (reset["data"]["since"], reset["data"]["last_event_id"]) == (3, 8)
    await engine.trigger("one", {})
    await until(lambda: sockets["3"].ids == [9, 10, 11, 12])
    await until(lambda: sockets["4"].ids == [5, 6, 7, 8, 9, 10, 11, 12])
    for socket in sockets.values():
        socket.leave()
    await asyncio.gather(*tasks)


async def test_what_is_forgotten_while_a_client_catches_up_is_no_gap_but_a_reset(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feed_module, "PAGE", 4)
    monkeypatch.setattr(feed_module, "TAIL", 4)
    engine.feed = Feed(engine.executions, engine.clock)
    for _ in range(3):
        await engine.trigger("one", {})
        await engine.dispatcher.idle()
    await engine.feed.open()
    engine.clock.tick(10)
    socket = FakeSocket(since="0")
    take = socket.send_text

    async def take_one(text: str) -> None:
        await take(text)
        if socket.ids == [1]:
            socket.takes.clear()

    monkeypatch.setattr(socket, "send_text", take_one)
    connected = asyncio.create_task(hub_of(engine).connect(socket))  # type: ignore[arg-type]
    await until(lambda: not socket.takes.is_set())
    assert await engine.executions.forget(engine.clock.now(), 2) == 2
    assert socket.ids == [1]
    socket.takes.set()
    await until(lambda: socket.sent[-1]["type"] == "hub:reset")
    assert socket.ids == [1, 2, 3, 4]
    assert socket.sent[-1]["data"]["last_event_id"] == 12
    socket.leave()
    await connected
    assert caplog.records == []
