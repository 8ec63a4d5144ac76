"""The detector at work on a table that the test writes, and on cards that hang."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.detector import detector as module
from adapters.detector import volume, watch
from adapters.detector.detector import Detector
from adapters.detector.mounts import Mount
from adapters.detector.outbox import Outbox
from adapters.detector.volume import Look, look
from tests.adapters.detector.test_courier import (
    Answer,
    ScriptedServer,
    accepted,
    duplicate,
    ended,
    ids,
    refused,
)
from tests.adapters.detector.test_outbox import reopened
from tests.fakes.world import until


class Table:
    """A mount table of the test's own: plain folders, and no word of changes."""

    read_every_s = 0.01

    def __init__(self) -> None:
        self.there: list[Mount] = []
        self.broken = False

    def put(self, path: Path) -> Mount:
        path.mkdir(exist_ok=True)
        (path / "DCIM").mkdir(exist_ok=True)
        number = os.stat(path).st_dev
        mount = Mount(f"key of {path.name}", str(path), "/dev/sdb1", number, "vfat")
        self.there = [*self.there, mount]
        return mount

    def mounts(self) -> list[Mount]:
        if self.broken:
            raise OSError(5, "Input/output error")
        return self.there

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # The cards here are folders. What is free beside them others take and give back all the time.
    monkeypatch.setattr(volume, "_room", lambda folder: (64_000_000, 32_000_000))
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(watch, "QUIET_S", 0.02)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "detector")
    outbox.open()
    yield outbox
    outbox.close()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer(lambda message, number: accepted(message)) as server:
        yield server


@contextlib.asynccontextmanager
async def at_work(detector: Detector) -> AsyncIterator[None]:
    working = asyncio.create_task(detector.run())
    try:
        yield
    finally:
        assert not working.done(), working.exception()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def paths(server: ScriptedServer) -> list[str]:
    return [Path(each["data"]["sd_path"]).name for each in server.asked]


async def test_a_card_that_hangs_holds_up_no_other_card_and_not_the_end(
    tmp_path: Path, outbox: Outbox, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    table, answers = Table(), threading.Event()

    def hanging(mount: Mount) -> Look:
        if Path(mount.path).name.startswith("hangs"):
            answers.wait()
        return look(mount)

    said: list[str] = []
    detector = Detector(table=table, outbox=outbox, url=server.url, say=said.append, look=hanging)
    async with at_work(detector):
        table.put(tmp_path / "hangs-1")
        table.put(tmp_path / "hangs-2")
        await until(lambda: len(said) >= 2)
        table.put(tmp_path / "A")
        await until(lambda: paths(server) == ["A"])
    answers.set()
    assert not caplog.records


async def test_more_cards_that_hang_than_are_looked_at_at_once_are_no_end_either(
    tmp_path: Path, outbox: Outbox, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LOOKS", 2)
    table, answers = Table(), threading.Event()
    looking: list[str] = []

    def hanging(mount: Mount) -> Look:
        looking.append(mount.path)
        answers.wait()
        return look(mount)

    detector = Detector(
        table=table, outbox=outbox, url=server.url, say=lambda line: None, look=hanging
    )
    async with at_work(detector):
        for number in range(6):
            table.put(tmp_path / str(number))
        await until(lambda: len(looking) == 2)
        answers.set()
        await until(lambda: len(server.asked) == 6)


async def test_a_table_that_can_t_be_read_is_told_once_and_tried_again(
    tmp_path: Path, outbox: Outbox, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    table = Table()
    table.put(tmp_path / "A")
    detector = Detector(table=table, outbox=outbox, url=server.url, say=lambda line: None)
    async with at_work(detector):
        await until(lambda: paths(server) == ["A"])
        table.broken = True
        await until(lambda: caplog.records)
        table.broken = False
        table.put(tmp_path / "B")
        await until(lambda: paths(server) == ["A", "B"])
    (record,) = caplog.records
    assert "mount table" in record.getMessage()
    assert len(outbox.announced()) == 2, "a card was taken for removed"


async def test_once_without_a_server_keeps_the_card_for_the_next_time(
    tmp_path: Path,
    outbox: Outbox,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ONCE_S", 1.0)
    table = Table()
    table.put(tmp_path / "A")
    nowhere = Detector(table=table, outbox=outbox, url="ws://127.0.0.1:9/ws", say=print)
    assert not await nowhere.once()
    (message,) = outbox.unsent()
    assert "kept for the next time" in caplog.text
    async with ScriptedServer(lambda message, number: accepted(message)) as server:
        assert await Detector(table=table, outbox=outbox, url=server.url, say=print).once()
        assert [each["data"]["message_id"] for each in server.asked] == [message.message_id]


@pytest.mark.parametrize("code", ["invalid_path", "unavailable"])
async def test_once_says_when_a_card_was_not_taken(
    tmp_path: Path,
    outbox: Outbox,
    code: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ONCE_S", 1.0)
    table = Table()
    table.put(tmp_path / "A")
    async with ScriptedServer(lambda message, number: refused(message, code)) as server:
        detector = Detector(table=table, outbox=outbox, url=server.url, say=print)
        assert not await detector.once()
    assert [record.levelno for record in caplog.records][-1] == logging.ERROR


async def test_once_says_which_card_it_could_not_read(
    tmp_path: Path,
    outbox: Outbox,
    server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ONCE_S", 1.0)
    table = Table()
    table.put(tmp_path / "A")
    (tmp_path / "A" / "DCIM").rmdir()
    (tmp_path / "A").rmdir()
    assert not await Detector(table=table, outbox=outbox, url=server.url, say=print).once()
    assert "A: not announced: it can't be read: No such file or directory" in caplog.text


async def test_after_a_restart_only_a_card_that_is_in_and_whose_end_was_not_heard_comes_again(
    tmp_path: Path, outbox: Outbox, server: ScriptedServer
) -> None:
    table = Table()
    for name in ("heard", "not-heard", "taken-out", "mounted-anew"):
        table.put(tmp_path / name)
    detector = Detector(table=table, outbox=outbox, url=server.url, say=print)
    async with at_work(detector):
        await until(lambda: len(server.asked) == 4 and outbox.idle)
        (heard,) = [each for each in server.asked if each["data"]["sd_path"].endswith("/heard")]
        await server.connections[0].send(ended("e-1", heard["data"]["message_id"]))
        await until(lambda: b'"ended"' in outbox.path.read_bytes())
    asked = len(server.asked)
    table.there = [
        replace(mount, key="another") if mount.path.endswith("anew") else mount
        for mount in table.there
        if not mount.path.endswith("taken-out")
    ]
    detector = Detector(table=table, outbox=reopened(outbox), url=server.url, say=print)
    async with at_work(detector):
        await until(lambda: len(server.asked) == asked + 3 and outbox.idle)
    assert sorted(paths(server)[asked:]) == ["mounted-anew", "not-heard", "taken-out"]
    assert len(set(ids(server))) == asked + 2, "the removal has its insertion's message_id"


async def test_once_doesn_t_ask_what_became_of_the_cards_that_it_announced_before(
    tmp_path: Path, outbox: Outbox, server: ScriptedServer
) -> None:
    table = Table()
    table.put(tmp_path / "A")
    assert await Detector(table=table, outbox=outbox, url=server.url, say=print).once()
    again = Detector(table=table, outbox=reopened(outbox), url=server.url, say=print)
    assert await again.once()
    assert len(server.asked) == 1


async def test_once_takes_no_other_insertion_s_execution_for_an_answer(
    tmp_path: Path,
    outbox: Outbox,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ONCE_S", 1.0)
    table = Table()
    table.put(tmp_path / "A")

    def script(message: dict[str, Any], number: int) -> Answer:
        return duplicate(message, "e-1") if number == 1 else accepted(message, "e-2")

    async with ScriptedServer(script) as server:
        assert not await Detector(table=table, outbox=outbox, url=server.url, say=print).once()
        assert "announced again the next time" in caplog.text
        again = Detector(table=table, outbox=reopened(outbox), url=server.url, say=print)
        assert await again.once()
        assert len(set(ids(server))) == 2
