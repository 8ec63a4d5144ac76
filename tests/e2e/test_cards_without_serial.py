"""Cards that the system has no serial number for, as a detector announces them without udev."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.cards import files_below
from tests.e2e.server import Server
from tests.e2e.test_detector import Detector
from tests.filesystems import TMPFS, formatted, with_subvolume

IN_1601 = -11_644_473_600 * 10**9

VOLUME = {"uuid": None, "label": "A001", "fs_type": "tmpfs", "device": "none"}


def ended(server: Server, folder: Path) -> dict[str, Any]:
    message = server.announce(folder, str(uuid4()), volume=VOLUME)
    return server.ended(message["data"]["execution_id"])


@pytest.mark.parametrize("is_below", [False, True])
def test_one_that_was_pulled_before_its_message_came_is_not_there(
    server: Server, card: Path, is_below: bool
) -> None:
    """What lies below a mount point is no card either."""
    card.mkdir()
    if is_below:
        (card / "clip.jpg").write_bytes(b"what somebody copied there")
    execution = ended(server, card)
    assert execution["status"] == "failed"
    assert "card not there: nothing is mounted at" in execution["error_message"]
    assert "safe_to_format" not in execution["execution_data"]


def test_one_that_is_mounted_comes_over_whatever_the_times_of_its_files(
    server: Server, card: Path, tmp_path: Path
) -> None:
    with formatted(TMPFS, tmp_path / "image") as mount:
        mount.put_in(card)
        (card / "clip.jpg").write_bytes(b"footage")
        (card / "zero.jpg").write_bytes(b"of a camera without a clock")
        os.utime(card / "zero.jpg", ns=(0, IN_1601))
        os.utime(card / "clip.jpg", ns=(0, 2**70))
        execution = ended(server, card)
        assert execution["status"] == "completed", execution["error_message"]
        data = execution["execution_data"]
        assert data["safe_to_format"], data["reasons"]
        assert {each["path"] for each in data["exceptions"]["named"]} == {"clip.jpg", "zero.jpg"}
        assert files_below(server.library / data["job_name"]) == files_below(card)


def test_a_btrfs_disk_is_announced_and_its_subvolumes_come_over(
    server: Server, card: Path, tmp_path: Path
) -> None:
    detector = Detector(tmp_path, card)
    with with_subvolume(card / "SSD", "day2"):
        footage = {"A001/clip1.jpg": b"monday", "day2/A001/clip2.jpg": b"tuesday"}
        for path, data in footage.items():
            (card / "SSD" / path).parent.mkdir()
            (card / "SSD" / path).write_bytes(data)
        try:
            with server.client("frontend") as frontend:
                detector.start(server.http)
                started = frontend.until(lambda m: m["type"] == "pipeline:started")
            execution = server.ended(started["data"]["execution_id"])
        finally:
            detector.kill()
        assert execution["status"] == "completed", execution["error_message"]
        found = execution["execution_data"]
        assert found["volume"]["fs_type"] == "btrfs"
        assert found["safe_to_format"], found["reasons"]
        assert files_below(server.library / found["job_name"]) == footage
