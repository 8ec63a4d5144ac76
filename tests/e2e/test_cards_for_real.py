"""Whole servers with cards and libraries that are real file systems, and ones that fail."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cards import contents, files_below, gopro_card, job_folders, put
from tests.e2e.server import Server, eventually, steps
from tests.e2e.test_command_line import CommandLine
from tests.faulty_card import FAIL, HOLD, SPOIL, Fault, FaultyCard, faulty_card
from tests.filesystems import EXFAT, EXT4, mounted

BIG = "DCIM/100GOPRO/GX010001.MP4"
BIG_BYTES = 13_000_000
HALF = BIG_BYTES // 2


def fill(folder: Path) -> dict[str, bytes]:
    footage = {
        BIG: contents(f"{folder} big", BIG_BYTES),
        "DCIM/100GOPRO/GX010002.MP4": contents(f"{folder} small", 9_000),
    }
    for path, data in footage.items():
        put(folder / path, data)
    return footage


def account(server: Server, execution: Mapping[str, Any]) -> dict[str, bytes]:
    """What the job has in the library; the ledger has just that, and nothing of it is a part."""
    if execution["job_id"] is None:
        return {}
    folder = server.library / server.get(f"/api/jobs/{execution['job_id']}")["name"]
    there = files_below(folder)
    assert not [path for path in there if path.endswith(".part")]
    footage = {path: data for path, data in there.items() if not path.endswith(".bad")}
    with closing(sqlite3.connect(f"file:{server.place}/rushes.db?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT c.path, f.size_bytes FROM imported_copy c"
            " JOIN imported_file f ON f.id = c.imported_file_id"
            " WHERE c.destination = ? ORDER BY c.path",
            (str(server.library),),
        ).fetchall()
    of_job = f"{folder.name}/".encode()
    recorded = [(path, size) for path, size in rows if path.startswith(of_job)]
    assert recorded == [
        (of_job + os.fsencode(path), len(data)) for path, data in sorted(footage.items())
    ]
    return footage


@pytest.fixture
def failing(card: Path, tmp_path: Path) -> Iterator[FaultyCard]:
    """A card for the server of all tests."""
    with faulty_card(tmp_path / "behind", card) as faulty:
        yield faulty


def held(server: Server, card: FaultyCard, message_id: str) -> str:
    """An execution whose card has stopped in the middle of the big file."""
    card.set(Fault("read", BIG, HOLD, at=HALF))
    execution_id: str = server.announce(card.folder, message_id)["data"]["execution_id"]
    assert card.wait_until_held() == BIG
    return execution_id


def test_a_card_whose_root_can_t_be_read_fails_with_the_reason(
    server: Server, failing: FaultyCard
) -> None:
    failing.set(Fault("readdir", "", FAIL))
    failed = server.ended(server.announce(failing.folder, "no root")["data"]["execution_id"])
    assert failed["status"] == "failed"
    assert "input/output error" in failed["error_message"]
    assert account(server, failed) == {}


def test_rushes_ingest_brings_a_camera_s_card_over(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    with mounted(EXFAT, tmp_path / "A001") as card, mounted(EXT4, tmp_path / "disk") as disk:
        footage = gopro_card(card.folder)
        library = disk.folder / "rushes"
        done = rushes("ingest", str(card.folder), "--library", str(library))
        assert done.returncode == 0, done.stderr
        assert f"{len(footage)} files" in done.stdout
        (job,) = job_folders(library)
        assert files_below(job) == footage


def test_a_card_pulled_in_the_middle_of_a_file_is_gone_on_with_once_it_is_back(
    server: Server, card: Path, tmp_path: Path
) -> None:
    with faulty_card(tmp_path / "behind", card) as first:
        footage = fill(first.behind)
        execution_id = held(server, first, "pulled")
        first.pull()
        failed = server.ended(execution_id)
    assert failed["status"] == "failed"
    assert "card lost" in failed["error_message"]
    assert BIG not in account(server, failed)

    server.request("POST", f"/api/pipeline/{execution_id}/retry")
    assert server.ended(execution_id)["status"] == "failed", "there is no card to be read"
    with faulty_card(tmp_path / "behind", card):
        server.request("POST", f"/api/pipeline/{execution_id}/retry")
        completed = server.ended(execution_id)
    assert completed["status"] == "completed", completed["error_message"]
    assert steps(completed)["scan_sd"]["attempt"] == 1
    assert account(server, completed) == footage


def test_a_server_killed_while_its_card_is_slow_goes_on_at_its_next_start(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server()
    with faulty_card(tmp_path / "behind", server.cards / "A001") as failing:
        footage = fill(failing.behind)
        execution_id = held(server, failing, "killed")
        assert server.execution(execution_id)["status"] == "running"
        assert server.process is not None
        server.process.kill()
        failing.set()  # a process dies only when its read has come back
        server.kill()
        server.start()
        completed = server.ended(execution_id)
    assert completed["status"] == "completed", completed["error_message"]
    assert account(server, completed) == footage


def test_a_cancel_is_not_kept_waiting_by_a_card_that_hangs(
    server: Server, failing: FaultyCard
) -> None:
    footage = fill(failing.behind)
    execution_id = held(server, failing, "cancelled")
    server.request("POST", f"/api/pipeline/{execution_id}/cancel")
    cancelled = server.execution(execution_id)
    assert cancelled["status"] == "cancelled"
    failing.set()
    # The handler's thread ends when its read has come back, and clears up behind itself. What
    # it had brought by then is whole.
    folder = server.library / server.get(f"/api/jobs/{cancelled['job_id']}")["name"]
    eventually(
        lambda: files_below(folder),
        lambda there: there.items() <= footage.items() and BIG not in there,
    )


def test_a_disk_that_turns_bytes_always_fails_by_its_own_name(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    with faulty_card(tmp_path / "disk", tmp_path / "library") as library:
        server = start_server()
        footage = fill(server.cards / "A001")
        library.set(Fault("fsync", "", SPOIL, at=HALF))
        execution_id = server.announce(server.cards / "A001", "turning")["data"]["execution_id"]
        failed = server.ended(execution_id)
        assert failed["status"] == "failed"
        assert "the library's side is wrong" in failed["error_message"]
        assert BIG in failed["error_message"]
        assert BIG not in account(server, failed)
        library.set()
        server.request("POST", f"/api/pipeline/{execution_id}/retry")
        completed = server.ended(execution_id)
        assert completed["status"] == "completed"
        assert account(server, completed) == footage


def test_a_broken_file_among_good_ones_is_named_on_every_way_out(
    server: Server, failing: FaultyCard
) -> None:
    footage = fill(failing.behind)
    failing.set(Fault("read", BIG, FAIL, at=HALF))
    with server.client("frontend") as frontend:
        execution_id = server.announce(failing.folder, "broken")["data"]["execution_id"]
        events = frontend.events(execution_id)
    told: dict[str, Any] = events[-1]["data"]["error"]
    assert told["step_key"] == "copy_files"
    failed = server.execution(execution_id)
    for text in (told["message"], failed["error_message"]):
        assert BIG in text
        assert "input/output error" in text
        assert "1 of 2 files" in text
    assert account(server, failed) == {p: data for p, data in footage.items() if p != BIG}
