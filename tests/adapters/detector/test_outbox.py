"""What is kept until a server has taken it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.detector import outbox as module
from adapters.detector.outbox import INSERTED, REMOVED, Outbox, OutboxFull
from adapters.detector.watch import Removed
from domain.errors import Unavailable
from tests.fakes.world import until

A: dict[str, Any] = {"sd_path": "/media/A", "volume": {"free_bytes": 5}}


def opened(path: Path) -> Outbox:
    outbox = Outbox(path / "detector")
    outbox.open()
    return outbox


def reopened(outbox: Outbox) -> Outbox:
    """As after a ``kill -9``: only the file is left."""
    outbox.close()
    again = Outbox(outbox.path)
    again.open()
    return again


def said(outbox: Outbox) -> list[dict[str, Any]]:
    return [json.loads(message.encode()) for message in outbox.unsent()]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"version": 2, "insertions": []}',
        b'{"version": 1, "insertions": [{"key": "a", "data": {}}]}',
        b'{"version": 1, "insertions": [{"key": "a", "data": {"message_id": 1, "sd_path": "/a"}}]}',
        b'{"version": 1, "insertions": [{"key": "a", "data": {}, "state": "odd"}]}',
        b"[" * 10_000,
    ],
)
async def test_a_file_that_can_t_be_understood_is_put_aside_and_said_so(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "detector").write_bytes(content)
    outbox = opened(tmp_path)
    assert outbox.idle
    assert "announced anew" in caplog.text
    (aside,) = tmp_path.glob("detector.damaged-*")
    assert aside.read_bytes() == content
    await outbox.insert("a", A, "look")
    assert len(said(reopened(outbox))) == 1


async def test_a_folder_that_can_t_be_had_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(Unavailable, match="a file"):
        Outbox(tmp_path / "a file" / "detector").open()
    (tmp_path / "detector").mkdir()
    with pytest.raises(Unavailable, match="can't be read"):
        opened(tmp_path)


async def test_a_second_detector_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(Unavailable, match="another detector"):
        opened(tmp_path)
    script = (
        "import asyncio, pathlib, sys; from adapters.detector.outbox import Outbox;"
        "Outbox(pathlib.Path(sys.argv[1])).open()"
    )
    command = [sys.executable, "-c", script, str(first.path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another detector" in refused.stderr
    first.close()
    subprocess.run(command, check=True)


async def test_a_message_is_the_same_word_for_word_until_it_is_taken(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    await outbox.insert("a", A, "look")
    (first,) = said(outbox)
    assert first["type"] == INSERTED
    assert first["data"] == {**A, "message_id": first["data"]["message_id"]}
    for _ in range(3):
        outbox = reopened(outbox)
        assert said(outbox) == [first]
    await outbox.settle(outbox.unsent()[0], accepted=True)
    assert said(outbox) == []
    assert said(reopened(outbox)) == []


async def test_an_announced_card_is_remembered_until_it_has_gone(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    await outbox.insert("a", A, "look")
    await outbox.settle(outbox.unsent()[0], accepted=True)
    outbox = reopened(outbox)
    assert outbox.announced() == {"a": "/media/A"}
    await outbox.remove(Removed("a", "/media/A"))
    outbox = reopened(outbox)
    assert outbox.announced() == {}
    (removal,) = said(outbox)
    assert removal["type"] == REMOVED
    assert removal["data"]["sd_path"] == "/media/A"
    await outbox.settle(outbox.unsent()[0], accepted=False)  # a server that doesn't know it
    assert outbox.idle
    assert json.loads(outbox.path.read_bytes())["insertions"] == []


async def test_a_card_that_went_before_it_could_be_announced_is_announced_then_removed(
    tmp_path: Path,
) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "look")
    await outbox.remove(Removed("a", "/media/A"))
    outbox = reopened(outbox)
    (message,) = outbox.unsent()
    assert message.type == INSERTED
    await outbox.settle(message, accepted=True)
    (message,) = outbox.unsent()
    assert message.type == REMOVED
    assert message.message_id == insertion.message_id


async def test_of_a_refused_card_nothing_more_is_said(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    await outbox.insert("a", A, "look")
    await outbox.settle(outbox.unsent()[0], accepted=False)
    outbox = reopened(outbox)
    assert outbox.idle
    assert outbox.announced() == {"a": "/media/A"}, "it would be announced again"
    await outbox.remove(Removed("a", "/media/A"))
    assert outbox.idle

    await outbox.insert("b", A, "look")
    await outbox.remove(Removed("b", "/media/A"))
    await outbox.settle(outbox.unsent()[0], accepted=False)
    assert outbox.idle


async def test_the_removal_of_a_card_that_nobody_knows_is_no_message(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    await outbox.remove(Removed("a", "/media/A"))
    assert outbox.idle


@pytest.mark.parametrize("sent", [False, True])
async def test_a_card_is_recognised_by_what_is_on_it_and_keeps_its_message(
    tmp_path: Path, sent: bool
) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "two clips")
    await outbox.insert("b", A, "other clips")
    if sent:
        await outbox.settle(outbox.unsent()[0], accepted=True)
    assert not await outbox.recognise("a", "a2", "three clips")
    assert not await outbox.recognise("c", "a2", "two clips")
    assert await outbox.recognise("a", "a2", "two clips")
    outbox = reopened(outbox)
    assert list(outbox.announced()) == ["a2", "b"]
    assert [m.message_id == insertion.message_id for m in outbox.unsent()] == [
        *([] if sent else [True]),
        False,
    ]


async def test_nothing_is_sent_before_it_is_written_down(tmp_path: Path) -> None:
    """A FIFO in the file's place takes nothing until somebody reads it."""
    outbox = opened(tmp_path)
    fifo = outbox.path.with_name("detector.new")
    os.mkfifo(fifo)
    inserting = asyncio.create_task(outbox.insert("a", A, "look"))
    await until(lambda: "a" in outbox.announced())
    meanwhile = outbox.unsent(), outbox.idle
    with open(fifo, "rb"):
        await inserting
    assert meanwhile == ([], False)
    assert len(outbox.unsent()) == 1


def told_ids(outbox: Outbox) -> list[str]:
    return [message.message_id for message in outbox.unsent()]


async def test_what_another_execution_answered_for_is_announced_again_when_that_has_ended(
    tmp_path: Path,
) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "look")
    first = insertion.message_id
    await outbox.settle(outbox.unsent()[0], accepted=True, by="e-1", waits=True)
    assert outbox.waiting == [insertion]
    assert await outbox.ended("e-2", "m-2", completed=True) == []
    assert outbox.idle
    assert await outbox.ended("e-1", "m-1", completed=True) == [insertion]
    (message,) = said(reopened(outbox))
    assert message["type"] == INSERTED
    assert message["data"] == {**A, "message_id": message["data"]["message_id"]}
    assert message["data"]["message_id"] != first
    assert await outbox.ended("e-1", "m-1", completed=True) == [], "of what waits no more"


async def test_a_card_that_was_taken_out_meanwhile_is_not_announced_again(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "look")
    first = insertion.message_id
    await outbox.settle(outbox.unsent()[0], accepted=True, by="e-1", waits=True)
    await outbox.insert("b", A, "look")
    await outbox.settle(outbox.unsent()[0], accepted=True, by="e-1", waits=True)
    await outbox.remove(Removed("a", "/media/A"))
    assert [each.key for each in await outbox.ended("e-1", "m-1", completed=False)] == ["b"]
    assert [(m.type, m.insertion.key) for m in outbox.unsent()] == [(REMOVED, "a"), (INSERTED, "b")]
    assert outbox.unsent()[0].message_id == first

    await outbox.remove(Removed("b", "/media/A"))  # before it could be announced again
    assert [m.type for m in outbox.unsent()] == [REMOVED, REMOVED]
    for message in outbox.unsent():
        await outbox.settle(message, accepted=True)
    assert outbox.idle


async def test_a_removal_is_told_under_the_message_that_the_server_knows(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "look")
    first = insertion.message_id
    await outbox.settle(outbox.unsent()[0], accepted=True)
    outbox = reopened(outbox)
    assert await outbox.resume("a", unheard=True)
    await outbox.settle(outbox.unsent()[0], accepted=True, by="e-1", waits=True)
    await outbox.remove(Removed("a", "/media/A"))
    assert said(outbox)[0]["data"]["message_id"] == first


async def test_after_a_lost_connection_ends_may_have_been_missed(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    await outbox.insert("a", A, "look")
    await outbox.insert("b", A, "look")
    first, other = outbox.unsent()
    await outbox.settle(first, accepted=True, by="e-1", waits=True)
    await outbox.settle(other, accepted=True)
    assert [each.key for each in await outbox.missed_ends()] == ["a"]
    assert [m.insertion.key for m in outbox.unsent()] == ["a"]
    assert await outbox.missed_ends() == []


@pytest.mark.parametrize("completed", [True, False])
async def test_a_card_whose_end_was_heard_is_left_alone_after_a_restart(
    tmp_path: Path, completed: bool
) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "look")
    await outbox.settle(outbox.unsent()[0], accepted=True)
    assert await outbox.ended("e-1", insertion.message_id, completed=completed) == []
    outbox = reopened(outbox)
    assert not await outbox.resume("a", unheard=True)
    assert outbox.idle
    assert outbox.announced() == {"a": "/media/A"}


async def test_a_card_whose_end_was_never_heard_is_announced_again_after_a_restart_once(
    tmp_path: Path,
) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "look")
    await outbox.settle(outbox.unsent()[0], accepted=True)
    assert not await outbox.resume("a", unheard=True), "nothing was missed since it was announced"
    outbox = reopened(outbox)
    assert outbox.idle, "it may be gone"
    assert not await outbox.resume("a", unheard=False)
    # Heard while it was in doubt whether this is that card: it may have failed for want of it.
    await outbox.ended("e-1", insertion.message_id, completed=False)
    assert await outbox.recognise("a", "a2", "look")
    assert await outbox.resume("a2", unheard=True)
    (again,) = told_ids(outbox)
    assert again != insertion.message_id
    assert not await outbox.resume("a2", unheard=True)
    assert not await outbox.resume("nothing", unheard=True)
    outbox = reopened(outbox)
    assert not await outbox.resume("a2", unheard=True), "it isn't sent yet"
    assert told_ids(outbox) == [again]


async def test_what_waits_for_another_execution_is_announced_again_after_a_restart(
    tmp_path: Path,
) -> None:
    outbox = opened(tmp_path)
    await outbox.insert("a", A, "look")
    await outbox.settle(outbox.unsent()[0], accepted=True, by="e-1", waits=True)
    outbox = reopened(outbox)
    assert await outbox.ended("e-1", "m-1", completed=True) == [], "it may be gone"
    assert await outbox.missed_ends() == []
    assert await outbox.resume("a", unheard=False)
    assert len(outbox.unsent()) == 1


@pytest.mark.parametrize("completed", [True, False])
async def test_the_other_execution_may_be_the_card_s_own_from_before_a_restart(
    tmp_path: Path, completed: bool
) -> None:
    outbox = opened(tmp_path)
    insertion = await outbox.insert("a", A, "look")
    first = insertion.message_id
    await outbox.settle(outbox.unsent()[0], accepted=True)
    for _ in range(2):
        outbox = reopened(outbox)
        assert await outbox.resume("a", unheard=True)
        await outbox.settle(outbox.unsent()[0], accepted=True, by="e-1", waits=True)
    again = await outbox.ended("e-1", first, completed=completed)
    # It failed, maybe for want of the card that is in again.
    assert [each.key for each in again] == ([] if completed else ["a"])
    assert outbox.waiting == []


async def test_a_file_of_an_older_detector_is_understood(tmp_path: Path) -> None:
    data = {"message_id": "detector:1", "sd_path": "/media/A"}
    stored = {"key": "a", "data": data, "look": "look", "state": "accepted", "removed": False}
    content = {"version": 1, "insertions": [stored]}
    (tmp_path / "detector").write_text(json.dumps(content))
    outbox = opened(tmp_path)
    assert outbox.announced() == {"a": "/media/A"}
    assert await outbox.resume("a", unheard=True)
    await outbox.remove(Removed("a", "/media/A"))
    (removal,) = said(outbox)
    assert removal["type"] == REMOVED
    assert removal["data"] == data


async def test_messages_keep_their_order(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for name in "cab":
        await outbox.insert(name, {"sd_path": f"/media/{name}"}, "look")
    paths = [each["data"]["sd_path"] for each in said(reopened(outbox))]
    assert paths == ["/media/c", "/media/a", "/media/b"]


async def test_there_is_an_end_to_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_INSERTIONS", 2)
    outbox = opened(tmp_path)
    await outbox.insert("a", A, "look")
    await outbox.insert("b", A, "look")
    with pytest.raises(OutboxFull, match="2 cards"):
        await outbox.insert("c", A, "look")
    assert len(outbox.unsent()) == 2


async def test_a_file_that_can_t_be_written_keeps_no_card_from_being_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = opened(tmp_path)
    in_the_way = outbox.path.with_name("detector.new")
    in_the_way.mkdir()
    await outbox.insert("a", A, "look")
    await outbox.insert("b", A, "look")
    assert len(outbox.unsent()) == 2
    assert caplog.text.count("can't be written") == 1
    assert caplog.records[0].levelno == logging.ERROR
    in_the_way.rmdir()
    await outbox.insert("c", A, "look")
    assert len(said(reopened(outbox))) == 3
