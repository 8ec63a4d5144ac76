"""verdict, on real folders: every way in which a card can stop being safe, made for real."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters.steps import cards
from adapters.steps.cards import OpenCard
from adapters.steps.faults import FileFault
from domain.errors import AttemptOver
from domain.footage import Card, JobStatus
from tests.adapters.steps.conftest import MTIME_NS, NOON, NoonClock, snapshot
from tests.adapters.steps.finishing import Finishing
from tests.filesystems import unavailable

CLIPS = ("DCIM/100GOPRO/GX010001.LRV", "DCIM/100GOPRO/GX010002.LRV", "notes.txt")


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    return Finishing(tmp_path)


@pytest.fixture
def shot(rig: Finishing) -> dict[str, Any]:
    """A card of three files that has been copied."""
    for path in CLIPS:
        rig.put(path, path.encode() * 100)
    return rig.copied()


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the card one with an identity of its own; call it again to put in another."""
    serial = "0001"

    def identify(fd: int, path: str, *, disks: str, devices: str) -> Card:
        return Card(f"volume:{serial}:64", "A001", volume=True)

    def put_in(other: str) -> None:
        nonlocal serial
        serial = other

    monkeypatch.setattr(cards, "identify", identify)
    return put_in


def reasons(data: dict[str, Any]) -> list[str]:
    assert data["safe_to_format"] is False
    assert data["verdict"]["words"].startswith("NOT safe to format: ")
    reasons: list[str] = data["verdict"]["reasons"]
    return reasons


def shoot(rig: Finishing, said: bytes, *names: str) -> None:
    """Recordings whose names, sizes and times don't tell what was recorded."""
    for name in names or ("IMG_0001.JPG", "IMG_0002.JPG", "IMG_0003.JPG", "IMG_0004.JPG"):
        rig.put(f"DCIM/100CANON/{name}", said + name.encode())


# -- bad cards and disks first -------------------------------------------------------


def test_a_file_that_has_changed_since_it_was_copied(rig: Finishing, shot: dict[str, Any]) -> None:
    rig.put(CLIPS[0], b"longer than it was before" * 100)
    (reason,) = reasons(rig.judge(shot))
    assert reason == f"{CLIPS[0]}: has changed since it was scanned (2600 bytes then, 2500 now)"


def test_other_bytes_of_the_same_length_at_another_time(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    """The time tells that there is something to look at, and the bytes tell what."""
    rig.put(CLIPS[0], bytes(len(CLIPS[0]) * 100), MTIME_NS + 60_000_000_000)
    (reason,) = reasons(rig.judge(shot))
    assert reason.startswith(f"{CLIPS[0]}: has changed since it was scanned")


def test_a_file_that_was_only_touched_is_the_same(rig: Finishing, shot: dict[str, Any]) -> None:
    place = rig.card / CLIPS[0]
    os.utime(place, ns=(MTIME_NS, MTIME_NS + 60_000_000_000))
    judged = rig.judge(shot)
    assert judged["safe_to_format"], judged
    verdict = rig.jobs.get(1).verdict
    assert verdict is not None
    assert list(verdict["read"]) == [CLIPS[0]]


def test_a_file_that_came_after_the_scan(rig: Finishing, shot: dict[str, Any]) -> None:
    rig.put("DCIM/100GOPRO/GX010003.LRV", b"new")
    (reason,) = reasons(rig.judge(shot))
    assert reason == "DCIM/100GOPRO/GX010003.LRV: came onto the card after it was scanned"


def test_a_copy_that_was_deleted(rig: Finishing, shot: dict[str, Any]) -> None:
    os.unlink(rig.arrived_as(CLIPS[1]))
    (reason,) = reasons(rig.judge(shot))
    assert reason == f"{CLIPS[1]}: its copy is no longer on {rig.library}"


def test_a_folder_of_copies_that_was_deleted(rig: Finishing, shot: dict[str, Any]) -> None:
    shutil.rmtree(rig.arrived_as("DCIM"))
    assert len(reasons(rig.judge(shot))) == 2


@pytest.mark.parametrize("size_bytes", [0, 2599, 2601])
def test_a_copy_of_another_length(rig: Finishing, shot: dict[str, Any], size_bytes: int) -> None:
    os.truncate(rig.arrived_as(CLIPS[0]), size_bytes)
    os.utime(rig.arrived_as(CLIPS[0]), ns=(MTIME_NS, MTIME_NS))
    (reason,) = reasons(rig.judge(shot))
    assert reason == f"{CLIPS[0]}: its copy on {rig.library} has another size or time now"


def test_a_copy_with_another_time(rig: Finishing, shot: dict[str, Any]) -> None:
    os.utime(rig.arrived_as(CLIPS[0]), ns=(MTIME_NS, MTIME_NS + 60_000_000_000))
    (reason,) = reasons(rig.judge(shot))
    assert "another size or time" in reason


@pytest.mark.parametrize("other", ["link", "folder", "pipe"])
def test_what_is_no_file_is_no_copy(rig: Finishing, shot: dict[str, Any], other: str) -> None:
    place = rig.arrived_as(CLIPS[0])
    os.rename(place, place + ".real")
    if other == "link":
        os.symlink(place + ".real", place)
    elif other == "folder":
        os.mkdir(place)
    else:
        os.mkfifo(place)
    (reason,) = reasons(rig.judge(shot))
    assert reason == f"{CLIPS[0]}: its copy is no longer on {rig.library}"


def test_a_copy_that_is_reached_only_through_a_link(rig: Finishing, shot: dict[str, Any]) -> None:
    folder = rig.arrived_as("DCIM")
    os.rename(folder, rig.library / "elsewhere")
    os.symlink(rig.library / "elsewhere", folder)
    assert len(reasons(rig.judge(shot))) == 2


def test_a_flipped_bit_is_not_seen_by_size_and_time(rig: Finishing, shot: dict[str, Any]) -> None:
    """What the verdict doesn't promise, and docs/verdict.md says so: ``rushes verify`` reads."""
    place = rig.arrived_as(CLIPS[0])
    with open(place, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(place, ns=(MTIME_NS, MTIME_NS))
    assert rig.judge(shot)["safe_to_format"]


def test_a_library_that_is_away(rig: Finishing, shot: dict[str, Any]) -> None:
    os.rename(rig.library, str(rig.library) + ".unplugged")
    first, *others = reasons(rig.judge(shot))
    assert first == f"the destination {rig.library} can't be looked at: it is not there"
    assert others == [f"{path}: {rig.library} can't be looked at" for path in CLIPS]


def test_one_of_two_destinations_that_is_away(rig: Finishing, tmp_path: Path) -> None:
    for path in CLIPS:
        rig.put(path, path.encode() * 100)
    second = tmp_path / "second"
    shot = rig.copied(destinations=[str(second)])
    assert rig.judge(shot)["verdict"]["words"] == (
        "Safe to format: every one of 3 files stands verified on 2 destinations"
    )
    second.rename(tmp_path / "unplugged")
    assert f"the destination {second} can't be looked at" in reasons(rig.judge(shot))[0]
    (tmp_path / "unplugged").rename(second)
    (next(second.rglob("notes.txt"))).unlink()
    assert reasons(rig.judge(shot)) == [f"notes.txt: its copy is no longer on {second}"]


def test_a_destination_that_nothing_was_copied_to(
    rig: Finishing, shot: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    found = reasons(rig.judge(shot | {"destinations": [str(tmp_path / "second")]}))
    assert found == [f"{path}: has no verified copy on {tmp_path / 'second'}" for path in CLIPS]


def test_two_destinations_that_are_one_folder_are_one(
    rig: Finishing, shot: dict[str, Any], tmp_path: Path
) -> None:
    os.symlink(rig.library, tmp_path / "second")
    found = reasons(rig.judge(shot | {"destinations": [str(tmp_path / "second")]}))
    assert found[0] == (
        f"the destinations {rig.library} and {tmp_path / 'second'} are one and the same folder"
    )


def test_a_card_that_is_gone_leaves_what_is_known_of_its_copies(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    shutil.rmtree(rig.card)
    judged = rig.judge(shot)
    (reason,) = reasons(judged)
    assert reason.startswith("the card can't be looked at again: card not there")
    assert judged["verdict"]["safe_files"] == judged["verdict"]["files"] == 3


@pytest.mark.parametrize("put_in", [True, False])
def test_another_card_at_the_same_path(
    rig: Finishing, volume: Callable[[str], None], put_in: bool
) -> None:
    for path in CLIPS:
        rig.put(path, path.encode() * 100)
    shot = rig.copied()
    if not put_in:
        assert rig.judge(shot)["safe_to_format"]
        return
    volume("0002")
    (reason,) = reasons(rig.judge(shot))
    assert reason.startswith(f"another card is at {rig.card}: A001 (volume:0002:64), not")


def test_a_card_without_identity_that_was_swapped(rig: Finishing, shot: dict[str, Any]) -> None:
    rig.card.rename(rig.mounts / "taken out")
    rig.put("DCIM/other.MP4", b"another card's")
    (reason,) = reasons(rig.judge(shot))
    assert reason.startswith(f"another card is at {rig.card}, or this one was changed")


def test_a_card_with_nothing_of_what_was_scanned_is_doubted(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    """An empty folder where there was a card is rather a mount that has gone."""
    for path in CLIPS:
        (rig.card / path).unlink()
    (reason,) = reasons(rig.judge(shot))
    assert reason == "nothing of what was scanned is on the card any more: is it the same one?"


def test_what_was_taken_off_the_card_since_is_no_reason_and_is_told(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    (rig.card / CLIPS[0]).unlink()
    judged = rig.judge(shot)
    assert judged["safe_to_format"]
    assert judged["verdict"]["files"] == 2
    (line, *_) = rig.page.lines(rig.jobs.get(1))
    assert line.state == "was no longer on the card"


def test_known_files_that_are_no_longer_in_the_library_are_named(rig: Finishing) -> None:
    for path in CLIPS:
        rig.put(path, path.encode() * 100)
    rig.copied()
    os.unlink(rig.arrived_as(CLIPS[1]))
    again = rig.copied(2)
    assert again["missing_files"] == 1
    assert reasons(rig.judge(again, 2)) == [f"{CLIPS[1]}: its copy is no longer on {rig.library}"]


def test_a_copy_step_that_was_waived_vouches_for_nothing(rig: Finishing) -> None:
    for path in CLIPS:
        rig.put(path, path.encode() * 100)
    shot = rig.ready()
    rig.library.mkdir()
    assert rig.jobs.get(1).status is JobStatus.CREATED
    assert reasons(rig.judge(shot)) == [f"{path}: was never copied" for path in CLIPS]


def test_an_attempt_that_is_over_judges_nothing(rig: Finishing, shot: dict[str, Any]) -> None:
    context = rig.context("verdict", 1, shot)
    rig.live.clear()
    with pytest.raises(AttemptOver):
        rig.jobs.judged(context.ref, 1, {"safe_to_format": True})
    assert rig.jobs.get(1).verdict is None


# -- and a good one ------------------------------------------------------------------


def test_a_card_that_stands_verified_is_safe_and_everybody_is_told(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    rig.put(".DS_Store", b"an operating system's own")
    os.symlink("/etc/passwd", rig.card / "link")
    snapshot(rig.card)  # to look at a link for the first time changes its access time
    before = snapshot(rig.card)
    judged = rig.judge(shot)
    assert snapshot(rig.card) == before
    assert judged["safe_to_format"] is True
    told = judged["verdict"]
    assert told["words"] == "Safe to format: every one of 3 files stands verified on 1 destination"
    assert (told["files"], told["safe_files"], told["reasons"]) == (3, 3, [])
    ((word, said),) = rig.contexts[-1].announced
    assert word == "card:verdict"
    assert said == {
        "job_id": 1,
        "job_name": "2026-11-22_A001",
        "card": {"identity": f"path:{rig.card}", "label": "A001"},
        "safe_to_format": True,
        **told,
    }
    stored = rig.jobs.get(1).verdict
    assert stored is not None
    assert stored["left_out"] == {"junk": 1, "link": 1}
    assert stored["words"] == told["words"]


def test_the_same_card_again_is_safe_by_what_is_known(rig: Finishing) -> None:
    """Cards without an identity too: the copy step has read what could have been another."""
    for path in CLIPS:
        rig.put(path, path.encode() * 100)
    rig.copied()
    rig.put("DCIM/100GOPRO/GX010003.LRV", b"new")
    again = rig.copied(2)
    assert (again["known_files"], again["copied_files"]) == (3, 1)
    assert rig.judge(again, 2)["verdict"]["words"].startswith("Safe to format: every one of 4")
    verdict = rig.jobs.get(2).verdict
    assert verdict is not None
    assert verdict["read"] == {}


def test_a_file_that_the_ledger_knows_under_several_hashes_is_read(rig: Finishing) -> None:
    rig.put("A.LRV", b"one")
    rig.copied()
    rig.put("A.LRV", b"two", MTIME_NS + 10**12)
    rig.copied(2)
    rig.put("A.LRV", b"one")
    third = rig.copied(3)
    assert third["known_files"] == 1
    judged = rig.judge(third, 3)
    assert judged["safe_to_format"], judged
    os.unlink(rig.arrived_as("A.LRV"))  # the other copy, of other bytes, still stands
    assert reasons(rig.judge(third, 3)) == [f"A.LRV: its copy is no longer on {rig.library}"]


def test_it_can_be_asked_for_again_and_the_last_one_counts(
    rig: Finishing, shot: dict[str, Any]
) -> None:
    rig.library.rename(str(rig.library) + ".unplugged")
    assert not rig.judge(shot)["safe_to_format"]
    Path(f"{rig.library}.unplugged").rename(rig.library)
    assert rig.judge(shot)["safe_to_format"]
    stored = rig.jobs.get(1).verdict
    assert stored is not None
    assert stored["safe_to_format"] is True
    assert stored["judged_at"] == "2026-11-22T12:00:00.000Z"


def test_names_of_any_bytes_are_judged_and_shown_escaped(rig: Finishing) -> None:
    names = [b"caf\xe9.txt", b"line\nbreak.txt", b"a" * 255, "\u202eright to left".encode()]
    for name in names:
        rig.put(name, b"x")
    shot = rig.copied()
    assert rig.judge(shot)["safe_to_format"]
    for name in names:
        os.unlink(os.path.join(os.fsencode(rig.job), name))
    found = reasons(rig.judge(shot))
    assert [each.partition(": ")[0] for each in found] == [
        "a" * 255,
        "caf\\xe9.txt",
        "line\\x0abreak.txt",
        "\\xe2\\x80\\xaeright to left",
    ]


def test_of_very_many_reasons_the_output_names_some_and_the_job_a_thousand(
    rig: Finishing,
) -> None:
    for number in range(1_100):
        rig.put(f"clips/{number:04}.LRV", b"")
    shot = rig.copied()
    shutil.rmtree(rig.job)
    told = rig.judge(shot)["verdict"]
    assert (len(told["reasons"]), told["reason_count"]) == (20, 1_100)
    stored = rig.jobs.get(1).verdict
    assert stored is not None
    assert (len(stored["reasons"]), stored["reason_count"]) == (1_000, 1_100)
    assert told["words"].endswith(
        "1100 of 1100 files not standing verified on 1 destination "
        "(clips/0000.LRV, clips/0001.LRV, clips/0002.LRV and 1097 more)"
    )


def test_nothing_is_left_open(rig: Finishing, shot: dict[str, Any]) -> None:
    gc.collect()  # what others have forgotten isn't closed in the middle of it
    before = len(os.listdir("/proc/self/fd"))
    rig.judge(shot)
    shutil.rmtree(rig.card)
    rig.judge(shot)
    assert len(os.listdir("/proc/self/fd")) == before


# -- a card that was formatted meanwhile, and is called as it was --------------------


@pytest.mark.parametrize("has_serial", [True, False])
def test_a_card_that_was_filled_anew_is_another_one(
    rig: Finishing, request: pytest.FixtureRequest, has_serial: bool
) -> None:
    if has_serial:
        request.getfixturevalue("volume")
    shoot(rig, b"monday ")
    copied = rig.copied()
    assert rig.judge(copied)["safe_to_format"]
    shoot(rig, b"sunday ")
    (reason,) = reasons(rig.judge(copied))
    assert reason == (
        f"the card at {rig.card} was filled anew since it was scanned: a recording on it has "
        "the name, size and time of a known one, but other bytes; a new run scans what is there"
    )
    verdict = rig.jobs.get(1).verdict
    assert verdict is not None
    assert [each["doubt"] for each in verdict["reasons"]] == ["another card"]


def test_what_a_camera_has_trimmed_or_deleted_since_is_no_other_card(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    copied = rig.copied()
    (rig.card / "DCIM/100CANON/IMG_0001.JPG").unlink()
    rig.put("DCIM/100CANON/IMG_0002.JPG", b"cut")
    (reason,) = reasons(rig.judge(copied))
    assert reason.startswith("DCIM/100CANON/IMG_0002.JPG: has changed since it was scanned")


def test_a_card_whose_recordings_cannot_be_read_any_more_is_not_safe(
    rig: Finishing, volume: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shoot(rig, b"monday ")
    copied = rig.copied()

    def hashes_of(self: object, path: bytes, *rest: object) -> None:
        raise FileFault(path, "can't be read from the card: input/output error")

    monkeypatch.setattr(OpenCard, "hashes_of", hashes_of)
    (reason,) = reasons(rig.judge(copied))
    assert reason == (
        f"the card can't be looked at again: {rig.card}: none of its smallest recordings can "
        "be read"
    )


@pytest.mark.parametrize(
    ("limit", "later_s", "read"),
    [(100, 0, 3), (10, 0, 0), (10, 59, 0), (10, 61, 1), (10, -1, 1)],
)
def test_a_few_small_recordings_are_read_and_large_ones_only_after_a_while(
    rig: Finishing,
    volume: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    proving: list[bytes],
    limit: int,
    later_s: int,
    read: int,
) -> None:
    for module in ("recognition", "verdict"):
        monkeypatch.setattr(f"adapters.steps.{module}.FURTHER_PROOF_BYTES", limit)
    shoot(rig, b"monday ")
    copied = rig.copied()
    monkeypatch.setattr(NoonClock, "now", lambda self: NOON + timedelta(seconds=later_s))
    proving.clear()
    assert rig.judge(copied)["safe_to_format"]
    assert len(proving) == read


# -- nothing there -------------------------------------------------------------------


@pytest.mark.parametrize("left", [None, "DCIM/.DS_Store"])
def test_an_empty_folder_is_rather_a_card_that_is_not_mounted(
    rig: Finishing, left: str | None
) -> None:
    if left is not None:
        rig.put(left)
    rig.library.mkdir()
    judged = rig.judge(rig.copied())
    assert reasons(judged) == ["nothing is there: is the card mounted?"]
    assert judged["verdict"]["words"] == (
        "NOT safe to format: nothing is there: is the card mounted?"
    )


def test_an_empty_card_has_nothing_to_lose(rig: Finishing) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", rig.card], capture_output=True)
    if mounted.returncode:
        unavailable("mounting takes privileges")
    try:
        rig.library.mkdir()
        judged = rig.judge(rig.copied())
    finally:
        subprocess.run(["umount", rig.card], check=True)
    assert judged["verdict"]["words"] == "Safe to format: there is no file on it"


# -- other hashes than before --------------------------------------------------------


def test_copies_under_several_hashes_are_told_by_reading(
    rig: Finishing, volume: Callable[[str], None], tmp_path: Path
) -> None:
    """The hashes were changed, and a destination was added."""
    shoot(rig, b"monday ")
    rig.taken_in(1)
    rig.further.append(tmp_path / "second")
    rig.settings["hash_names"] = ("md5", "c4")
    shoot(rig, b"monday ", "IMG_0005.JPG")
    data = rig.taken_in(2)
    assert data["copied_files"] == 5
    assert data["safe_to_format"], data
    lines = list(rig.page.lines(rig.jobs.get(2)))
    for line in lines:
        assert {copy.destination for copy in line.copies} == {
            str(rig.library),
            str(tmp_path / "second"),
        }
    assert [name for name, _ in lines[0].hashes] == ["xxh64", "md5", "c4"]
