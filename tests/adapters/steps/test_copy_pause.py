"""A copy that stands still in a pause, and goes on where it stood."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from adapters.steps.copying import BUFFER_BYTES, BUFFERS
from application.authoring import Interrupted
from tests.adapters.steps.conftest import Rig

SIZE = BUFFER_BYTES * 12 + 7
JOB = "2026-11-22_A001"


@pytest.fixture
def read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was read of the card, read by read."""
    counts: list[int] = []
    real = os.readv

    def readv(fd: int, buffers: Sequence[bytearray]) -> int:
        count = real(fd, buffers)
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(rig.card)):
            counts.append(count)
        return count

    monkeypatch.setattr(os, "readv", readv)
    return counts


def pause_at(rig: Rig, share: float) -> None:
    def watch(fraction: float, detail: dict[str, Any]) -> None:
        if fraction >= share:
            rig.on_report = lambda fraction, detail: None
            rig.pausing = lambda: True

    rig.on_report = watch


def test_a_paused_copy_reads_no_more_and_goes_on_where_it_stood(
    rig: Rig, read: list[int], written: dict[str, int]
) -> None:
    content = os.urandom(SIZE)
    rig.put("clip.mp4", content)
    data = rig.ready()
    read.clear()
    stood_at: list[int] = []

    def look() -> None:
        if sum(read) == sum(written.values()):  # what was on its way has been written
            stood_at.append(sum(read))
            if len(stood_at) == 50:
                rig.pausing = lambda: False

    pause_at(rig, 0.1)
    rig.on_rest = look
    output = rig.copy(1, data)
    assert len(set(stood_at)) == 1
    assert stood_at[0] <= SIZE * 0.2 + BUFFERS * BUFFER_BYTES
    assert sum(read) == sum(written.values()) == SIZE  # nothing twice
    assert output["copied_files"] == 1
    assert rig.arrived() == {f"{JOB}/clip.mp4".encode(): content}
    standing = [detail for _, detail in rig.reports if detail.get("paused")]
    assert standing
    assert not any("bytes_per_s" in detail or "seconds_left" in detail for detail in standing)
    assert "paused" not in rig.reports[-1][1]


@pytest.mark.usefixtures("resuming")
def test_a_card_taken_out_in_a_pause_is_gone_on_with_once_it_is_back(
    rig: Rig, written: dict[str, int]
) -> None:
    content = os.urandom(SIZE)
    rig.put("clip.mp4", content)
    data = rig.ready()
    elsewhere = rig.mounts / "taken-out"
    pause_at(rig, 0.1)
    rig.on_rest = lambda: rig.card.exists() and rig.card.rename(elsewhere)
    with pytest.raises(Interrupted):
        rig.copy(1, data)
    assert rig.given_back
    (part,) = rig.arrived()
    assert part.endswith(b".part")

    elsewhere.rename(rig.card)
    rig.pausing = lambda: False
    assert rig.copy(1, data)["copied_files"] == 1
    assert sum(written.values()) == SIZE  # not a byte twice
    assert rig.arrived() == {f"{JOB}/clip.mp4".encode(): content}


@pytest.mark.usefixtures("resuming")
def test_a_stop_in_a_pause_keeps_what_was_copied(rig: Rig, written: dict[str, int]) -> None:
    content = os.urandom(SIZE)
    rig.put("clip.mp4", content)
    data = rig.ready()

    def stop() -> None:
        rig.stopping = lambda: True

    pause_at(rig, 0.1)
    rig.on_rest = stop
    with pytest.raises(Interrupted):
        rig.copy(1, data)
    assert not rig.given_back
    rig.pausing = rig.stopping = lambda: False
    assert rig.copy(1, data)["copied_files"] == 1
    assert sum(written.values()) == SIZE


def test_small_files_wait_too(rig: Rig) -> None:
    for number in range(40):
        rig.put(f"DCIM/{number}.jpg", b"%d" % number)
    data = rig.ready()
    looks: list[int] = []

    def look() -> None:
        looks.append(len(rig.ledger.copies))
        if len(looks) == 100:
            rig.pausing = lambda: False

    rig.pausing = lambda: True
    rig.on_rest = look
    assert rig.copy(1, data)["copied_files"] == 40
    assert set(looks) == {0}
