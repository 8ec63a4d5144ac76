"""Carrying messages to servers that lose, refuse, delay or don't understand them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from adapters.detector import courier as module
from adapters.detector.courier import Courier
from adapters.detector.outbox import INSERTED, REMOVED, Outbox
from adapters.detector.watch import Removed
from tests.fakes.world import until

Answer = dict[str, Any] | str | None
Script = Callable[[dict[str, Any], int], Answer]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES_S", (0.01,))
    monkeypatch.setattr(module, "AGAIN_S", (0.01,))


def accepted(message: dict[str, Any], execution_id: str = "e-1") -> dict[str, Any]:
    message_id = message["data"]["message_id"]
    data = {"message_id": message_id, "execution_id": execution_id, "duplicate": None}
    return {"type": "detector:accepted", "data": data}


def refused(message: dict[str, Any], code: str, *, named: bool = True) -> dict[str, Any]:
    message_id = message["data"]["message_id"] if named else None
    data = {"message_id": message_id, "code": code, "message": "because\nof this"}
    return {"type": "error", "data": data}


class ScriptedServer:
    """A WebSocket server that answers as it is told; what it was asked is in ``asked``.

    script: ``(message, number)``: the answer to the numberth message; text is sent as it
    stands, None closes the connection instead.
    """

    def __init__(self, script: Script, *, port: int = 0, welcome: bool = True) -> None:
        self.asked: list[dict[str, Any]] = []
        self.connections: list[ServerConnection] = []
        self._script = script
        self._welcome = welcome
        self.port = port

    async def __aenter__(self) -> ScriptedServer:
        self._server = await serve(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def _serve(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        with contextlib.suppress(ConnectionClosed):
            if self._welcome:
                await connection.send(json.dumps({"type": "hub:welcome", "data": {}}))
            async for frame in connection:
                message = json.loads(frame)
                self.asked.append(message)
                answer = self._script(message, len(self.asked))
                if answer is None:
                    await connection.close()
                    return
                await connection.send(answer if isinstance(answer, str) else json.dumps(answer))


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(tmp_path / "detector")
    outbox.open()
    yield outbox
    outbox.close()


@contextlib.asynccontextmanager
async def at_work(courier: Courier) -> AsyncIterator[None]:
    working = asyncio.create_task(courier.run())
    try:
        yield
    finally:
        assert not working.done(), working.exception()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def delivered(
    outbox: Outbox, script: Script, done: Callable[[], bool] | None = None
) -> tuple[ScriptedServer, list[str]]:
    """What a server with this script was asked, until the outbox is idle; what was said."""
    lines: list[str] = []
    async with ScriptedServer(script) as server:
        async with at_work(Courier(server.url, outbox, lines.append)):
            await until(done or (lambda: outbox.idle))
    return server, lines


async def test_a_message_is_sent_until_it_is_answered_always_the_same(outbox: Outbox) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")

    def script(message: dict[str, Any], number: int) -> Answer:
        return None if number < 4 else accepted(message)

    server, lines = await delivered(outbox, script)
    assert len(server.asked) == 4
    assert all(each == server.asked[0] for each in server.asked)
    assert len(server.connections) == 4
    assert lines[-1] == "/media/A: accepted, execution e-1"


async def test_a_server_that_gives_no_answer_is_asked_over_a_new_connection(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience_s = module.ANSWER_S
    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")

    def script(message: dict[str, Any], number: int) -> Answer:
        if number == 1:  # what is no answer to this message is none
            return accepted({"data": {"message_id": "another"}})
        if number == 2:
            monkeypatch.setattr(module, "ANSWER_S", patience_s)  # at the next question
            return '{"type": "pipeline:started", "data": {"execution_id": "x"}}'
        return accepted(message)

    server, _ = await delivered(outbox, script)
    assert len(server.connections) == 3


@pytest.mark.parametrize("noise", ["", "{", "[]", '{"type": 1, "data": {}}', '{"type": "error"}'])
async def test_noise_of_a_server_is_passed_over(
    outbox: Outbox, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    server, _ = await delivered(outbox, lambda m, n: noise if n == 1 else accepted(m))
    assert server.asked[0] == server.asked[1]


@pytest.mark.parametrize("code", sorted(module.REFUSED_FOR_GOOD))
async def test_a_refusal_for_good_is_shouted_once_and_the_next_card_is_served(
    outbox: Outbox, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    await outbox.insert("b", {"sd_path": "/media/B"}, "look")
    server, lines = await delivered(
        outbox, lambda m, n: refused(m, code) if n == 1 else accepted(m)
    )
    assert [each["data"]["sd_path"] for each in server.asked] == ["/media/A", "/media/B"]
    (shout,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "/media/A: REFUSED" in shout.getMessage()
    assert "because\\x0aof this" in shout.getMessage()
    assert lines[-1].startswith("/media/B: accepted")


async def test_a_refusal_without_a_name_is_of_what_was_asked(outbox: Outbox) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    server, _ = await delivered(outbox, lambda m, n: refused(m, "invalid_input", named=False))
    assert len(server.asked) == 1


@pytest.mark.parametrize("code", ["unavailable", "internal", "forbidden", "not_invented_yet"])
async def test_not_now_is_asked_again_and_holds_up_no_other_card(
    outbox: Outbox, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    await outbox.insert("b", {"sd_path": "/media/B"}, "look")
    taken: list[str] = []

    def script(message: dict[str, Any], number: int) -> Answer:
        path = message["data"]["sd_path"]
        if path == "/media/A" and ("/media/B" not in taken or number < 5):
            return refused(message, code)
        taken.append(path)
        return accepted(message)

    server, _ = await delivered(outbox, script)
    assert taken == ["/media/B", "/media/A"]
    first = [each for each in server.asked if each["data"]["sd_path"] == "/media/A"]
    assert len(first) > 2
    assert all(each == first[0] for each in first)
    assert caplog.text.count("asking again") == 1


async def test_a_server_that_knows_no_removal_disturbs_nothing(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    await outbox.remove(Removed("a", "/media/A"))
    await outbox.insert("b", {"sd_path": "/media/B"}, "look")

    def script(message: dict[str, Any], number: int) -> Answer:
        if message["type"] == REMOVED:
            return refused(message, "invalid_input")
        return accepted(message)

    server, lines = await delivered(outbox, script)
    types = [(each["type"], each["data"]["sd_path"]) for each in server.asked]
    assert types == [(INSERTED, "/media/A"), (REMOVED, "/media/A"), (INSERTED, "/media/B")]
    assert lines[-1].startswith("/media/B: accepted")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(server.connections) == 1


async def test_a_server_that_is_away_is_told_when_it_is_back(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines: list[str] = []
    courier = Courier(f"ws://127.0.0.1:{port}/ws", outbox, lines.append)
    async with at_work(courier):
        await outbox.insert("a", {"sd_path": "/media/A"}, "look")
        await until(lambda: "no connection" in caplog.text)
        for card in "bc":
            async with ScriptedServer(lambda m, n: accepted(m), port=port) as server:
                await until(lambda: outbox.idle)
                assert len(server.asked) == 1
            await until(lambda: courier.offline is not None)
            await outbox.insert(card, {"sd_path": f"/media/{card}"}, "look")
    assert caplog.text.count("no connection") == 3, "each loss is told once"
    assert len(outbox.unsent()) == 1


async def other_protocol(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    writer.close()


async def no_websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("handler", [other_protocol, no_websocket])
async def test_what_is_no_rushes_server_is_told_and_asked_again(
    outbox: Outbox,
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    listening = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with at_work(Courier(f"ws://127.0.0.1:{port}/ws", outbox, lambda line: None)):
        await until(lambda: "no connection" in caplog.text)
        listening.close()
        await listening.wait_closed()
        async with ScriptedServer(lambda m, n: accepted(m), port=port):
            await until(lambda: outbox.idle)


async def test_a_websocket_without_our_welcome_is_told_nothing(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "OPEN_S", 0.05)
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    async with ScriptedServer(lambda m, n: accepted(m), welcome=False) as server:
        async with at_work(Courier(server.url, outbox, lambda line: None)):
            await until(lambda: "no Rushes server" in caplog.text)
    assert not server.asked


async def test_what_became_of_a_card_is_said(outbox: Outbox) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    lines: list[str] = []
    async with ScriptedServer(lambda m, n: accepted(m, "e-7")) as server:
        async with at_work(Courier(server.url, outbox, lines.append)):
            await until(lambda: outbox.idle)
            (connection,) = server.connections
            message_id = server.asked[0]["data"]["message_id"]
            for its in ("another's", message_id, message_id):
                error = {"step_key": "copy_files", "message": "card\nlost"}
                data = {"execution_id": "e-7", "message_id": its, "error": error}
                await connection.send(json.dumps({"type": "pipeline:failed", "data": data}))
            await until(lambda: len(lines) > 2)
            await outbox.insert("b", {"sd_path": "/media/B"}, "look")
            await until(lambda: outbox.idle)
    assert [line for line in lines if "failed" in line] == ["/media/A: failed: card\\x0alost"]


def duplicate(message: dict[str, Any], execution_id: str, of: str = "card") -> dict[str, Any]:
    answer = accepted(message, execution_id)
    answer["data"]["duplicate"] = of
    return answer


def ended(execution_id: str, message_id: str | None = None, how: str = "completed") -> str:
    data = {"execution_id": execution_id, "message_id": message_id, "warnings": []}
    return json.dumps({"type": f"pipeline:{how}", "data": data})


def ids(server: ScriptedServer) -> list[str]:
    return [each["data"]["message_id"] for each in server.asked]


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
async def test_a_card_that_another_message_s_execution_answered_for_is_announced_again_after_it(
    outbox: Outbox, how: str
) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    await outbox.insert("b", {"sd_path": "/media/B"}, "look")
    lines: list[str] = []

    def script(message: dict[str, Any], number: int) -> Answer:
        return duplicate(message, "e-1") if number == 1 else accepted(message, f"e-{number}")

    async with ScriptedServer(script) as server:
        async with at_work(Courier(server.url, outbox, lines.append)):
            await until(lambda: outbox.idle)
            await server.connections[0].send(ended("e-1", "a message of somebody else", how))
            await until(lambda: len(server.asked) == 3 and outbox.idle)
            for number in (2, 3):
                name = server.asked[number - 1]["data"]["message_id"]
                await server.connections[0].send(ended(f"e-{number}", name))
            await until(lambda: len(lines) > 7)
    assert len(set(ids(server))) == 3
    assert [each["data"]["sd_path"] for each in server.asked] == [
        "/media/A",
        "/media/B",
        "/media/A",
    ]
    assert lines[1].endswith("e-1 (which was at work on this card already)")
    assert lines[3:] == [
        f"/media/A: {how}",
        "/media/A: announced again, now that execution e-1 has ended",
        "/media/A: accepted, execution e-3",
        "/media/B: completed",
        "/media/A: completed",
    ]


async def test_an_end_that_is_told_before_the_answer_counts(outbox: Outbox) -> None:
    """Events and answers come by different ways at the server."""
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")

    def script(message: dict[str, Any], number: int) -> Answer:
        return ended("e-1", "another") if number == 1 else accepted(message, "e-2")

    async with ScriptedServer(script) as server:
        async with at_work(Courier(server.url, outbox, lambda line: None)):
            await until(lambda: server.asked)
            await server.connections[0].send(json.dumps(duplicate(server.asked[0], "e-1")))
            await until(lambda: len(server.asked) == 2 and outbox.idle)
    assert not outbox.waiting


async def test_a_card_that_waits_is_announced_again_over_a_new_connection(outbox: Outbox) -> None:
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    lines: list[str] = []

    def script(message: dict[str, Any], number: int) -> Answer:
        return duplicate(message, "e-1") if number < 3 else accepted(message, "e-2")

    async with ScriptedServer(script) as server:
        async with at_work(Courier(server.url, outbox, lines.append)):
            for number in (1, 2):
                await until(lambda n=number: len(server.asked) == n and outbox.idle)
                await server.connections[-1].close()
            await until(lambda: len(server.asked) == 3 and outbox.idle)
            await server.connections[-1].close()
            await until(lambda: len(server.connections) == 4)
            await outbox.insert("b", {"sd_path": "/media/B"}, "look")
            await until(lambda: outbox.idle)
    assert len(set(ids(server))) == 4, "what was taken is not announced again"


@pytest.mark.parametrize("is_own", [True, False])
async def test_whose_execution_answered_for_a_known_message_is_told_by_its_end(
    outbox: Outbox, is_own: bool
) -> None:
    """The first answer was lost; it may have named another message's execution."""
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")

    def script(message: dict[str, Any], number: int) -> Answer:
        answers = (None, duplicate(message, "e-1", "message"), accepted(message, "e-2"))
        return answers[number - 1]

    lines: list[str] = []
    async with ScriptedServer(script) as server:
        async with at_work(Courier(server.url, outbox, lines.append)):
            await until(lambda: len(server.asked) == 2 and outbox.idle)
            first, second = ids(server)
            assert first == second
            await server.connections[-1].send(ended("e-1", first if is_own else "another"))
            await until(lambda: any("completed" in line for line in lines))
            if not is_own:
                await until(lambda: len(server.asked) == 3 and outbox.idle)
    assert len(set(ids(server))) == (1 if is_own else 2)


async def test_what_an_earlier_run_may_have_sent_is_asked_under_another_message(
    outbox: Outbox,
) -> None:
    """It was killed before it had the answer, and the end may have been told meanwhile."""
    await outbox.insert("a", {"sd_path": "/media/A"}, "look")
    outbox.close()
    outbox.open()
    asked: list[str] = []

    def script(message: dict[str, Any], number: int) -> Answer:
        asked.append(message["data"]["message_id"])
        return duplicate(message, "e-1", "message") if number == 1 else accepted(message, "e-2")

    await delivered(outbox, script, lambda: len(asked) == 2 and outbox.idle)
    assert asked[0] != asked[1]
