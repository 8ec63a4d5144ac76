from __future__ import annotations

import gc
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.steps import copy_destinations, copy_files, copy_stock
from adapters.steps.cards import FsCards, OpenCard
from adapters.steps.copying import BUFFER_BYTES, SMALL_BYTES, Copier
from adapters.steps.faults import (
    AnotherCard,
    CardLost,
    CardNotThere,
    FilesMissing,
    LibraryFault,
    NotACard,
    OffloadFault,
)
from adapters.steps.library import Folder
from adapters.steps.mhl.documents import Creator
from adapters.steps.parts import Part
from adapters.steps.sd_ingest import sd_ingest
from application.authoring import Interrupted, StepContext
from application.report import Report
from domain.errors import AttemptOver
from domain.footage import Card, JobStatus, VerifiedCopy
from tests.adapters.steps.conftest import MTIME_NS, NOON, NoonClock, Rig
from tests.fakes.executions import MemoryExecutions

PART = ".0123abcd.part"


@pytest.fixture
def volume(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the card one with an identity of its own; call it again to put in another."""
    serial = "0001"

    def identify(fd: int, path: str, *, disks: str, devices: str) -> Card:
        return Card(f"volume:{serial}:512", "A001", volume=True)

    def insert(other: str) -> None:
        nonlocal serial
        serial = other

    monkeypatch.setattr("adapters.steps.cards.identify", identify)
    return insert


@pytest.fixture
def small_library(rig: Rig) -> Iterator[Path]:
    """A library on a file system of its own, with 4 MiB."""
    rig.library.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", rig.library], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting takes privileges")
    yield rig.library
    subprocess.run(["umount", rig.library], check=True)


def shoot(rig: Rig, count: int = 3) -> dict[bytes, bytes]:
    """Clips with sidecars on the card: what has to arrive, by its path in the job's folder."""
    wanted = {}
    for number in range(1, count + 1):
        for name in (f"GX01{number:04}.MP4", f"GX01{number:04}.THM"):
            content = os.urandom(1_000 + number)
            rig.put(f"DCIM/100GOPRO/{name}", content)
            wanted[f"2026-11-22_A001/DCIM/100GOPRO/{name}".encode()] = content
    return wanted


def test_a_card_arrives_whole_and_verified(rig: Rig) -> None:
    wanted = shoot(rig)
    rig.put("DCIM/.DS_Store")
    (rig.card / "link").symlink_to("DCIM")
    output = rig.ingest()
    assert rig.arrived() == wanted
    assert output == {
        "copied_files": 6,
        "copied_bytes": sum(map(len, wanted.values())),
        "known_files": 0,
        "missing_files": 0,
        "verified": 6,
        "job_folder": str(rig.job),
        "left_out": {"junk": 1, "link": 1},
    }
    json.dumps(output)
    assert rig.jobs.get(1).status is JobStatus.COPIED
    assert {copy.path for copy in rig.ledger.copies} == set(wanted)
    for copy in rig.ledger.copies:
        assert copy.destination == str(rig.library)
        assert copy.file.card_identity == f"path:{rig.card}"
        assert copy.file.mtime_ns == MTIME_NS
        assert copy.verified_at == NOON


def test_names_arrive_as_they_are_on_the_card(rig: Rig) -> None:
    names = [b"caf\xe9.mp4", b"new\nline.mp4", b"\x1b[2Jclear.mp4", b"n" * 251 + b".mp4", b"\\"]
    names.append("é".encode() * 125 + b".mp4")
    for number, name in enumerate(names):
        rig.put(b"DC\xffIM/" + name, b"%d" % number)
    assert rig.ingest()["copied_files"] == 6
    assert sorted(rig.arrived()) == sorted(b"2026-11-22_A001/DC\xffIM/" + name for name in names)
    for _, detail in rig.reports:
        assert detail.get("file", "").isprintable()


def test_progress_never_falls_and_counts_verifying_as_half(rig: Rig) -> None:
    rig.put("clip.mp4", b"x" * (BUFFER_BYTES * 2 + 5))
    rig.put("empty.mp4", b"")
    rig.put("clip.thm", b"y" * 10)
    rig.ingest()
    fractions = [fraction for fraction, _ in rig.reports]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.5
    assert any(0.4 < fraction < 0.6 for fraction in fractions)
    assert rig.reports[-1][0] == 1.0
    last = rig.reports[-1][1]
    assert last["files_done"] == last["files_total"] == 3
    assert last["bytes_done"] == last["bytes_total"] == BUFFER_BYTES * 2 + 15
    assert last["file"] == "clip.mp4"


def test_the_same_card_again_brings_only_what_is_new(
    rig: Rig, volume: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = shoot(rig, 2)
    rig.ingest(1)
    new = rig.put("DCIM/100GOPRO/GX010099.MP4", b"new footage")
    opened: list[bytes] = []
    real = OpenCard.open_with_status

    def open_file(self: OpenCard, path: bytes) -> tuple[int, os.stat_result]:
        opened.append(path)
        return real(self, path)

    data = rig.ready(2)
    monkeypatch.setattr(OpenCard, "open_with_status", open_file)
    output = rig.copy(2, data)
    assert (output["copied_files"], output["known_files"]) == (1, 4)
    # The recordings that are known are read to prove that it is that card; nothing else is.
    proofs = {b"DCIM/100GOPRO/GX010001.MP4", b"DCIM/100GOPRO/GX010002.MP4"}
    assert set(opened) == {b"DCIM/100GOPRO/GX010099.MP4"} | proofs
    wanted[b"2026-11-22_A001-2/DCIM/100GOPRO/GX010099.MP4"] = b"new footage"
    assert rig.arrived() == wanted
    assert new.endswith(b"GX010099.MP4")


def test_when_nothing_is_new_no_folder_is_made(rig: Rig) -> None:
    shoot(rig)
    rig.ingest(1)
    before = rig.arrived()
    output = rig.ingest(2)
    assert (output["copied_files"], output["known_files"]) == (0, 6)
    assert output["job_folder"] is None
    assert rig.arrived() == before
    assert os.listdir(rig.library) == ["2026-11-22_A001"]
    assert rig.jobs.get(2).status is JobStatus.COPIED


def test_an_empty_card_makes_not_even_a_library(rig: Rig) -> None:
    rig.put(".DS_Store")
    assert rig.ingest()["copied_files"] == 0
    assert not rig.library.exists()


def test_what_was_deleted_from_the_library_stays_known_and_is_never_said_to_be_there(
    rig: Rig, volume: Callable[[str], None]
) -> None:
    shoot(rig, 1)
    rig.ingest(1)
    (rig.job / "DCIM/100GOPRO/GX010001.THM").unlink()
    output = rig.ingest(2)
    assert (output["copied_files"], output["known_files"], output["missing_files"]) == (0, 1, 1)
    assert output["missing"] == ["DCIM/100GOPRO/GX010001.THM"]
    assert output["library_note"] == (
        "1 file was imported earlier and is no longer in the library: DCIM/100GOPRO/GX010001.THM"
    )
    assert list(rig.arrived()) == [b"2026-11-22_A001/DCIM/100GOPRO/GX010001.MP4"]

    subprocess.run(["rm", "-r", rig.job], check=True)
    output = rig.ingest(3)
    assert (output["copied_files"], output["known_files"], output["missing_files"]) == (0, 0, 2)
    assert output["library_note"].startswith(
        "2 files were imported earlier and are no longer in the library: DCIM/"
    )
    assert rig.arrived() == {}
    assert rig.jobs.get(3).status is JobStatus.COPIED

    subprocess.run(["rmdir", rig.library], check=True)
    assert rig.ingest(4)["missing_files"] == 2
    assert not rig.library.exists()


@pytest.mark.parametrize("instead", ["other size", "folder", "link", "linked folder", "fifo"])
def test_only_the_file_itself_counts_as_being_in_the_library(
    rig: Rig, volume: Callable[[str], None], instead: str
) -> None:
    kept = rig.library / "kept"
    # As many bytes as the link has; a fifo has none.
    rig.put("DCIM/clip.mp4", b"" if instead == "fifo" else b"x" * len(str(kept)))
    rig.ingest(1)
    place = rig.job / "DCIM/clip.mp4"
    if instead == "linked folder":
        place.parent.rename(kept)
        place.parent.symlink_to(kept)
    else:
        place.rename(kept)
    if instead == "other size":
        place.write_bytes(b"foot")
    elif instead == "folder":
        place.mkdir()
    elif instead == "link":
        place.symlink_to(kept)
    elif instead == "fifo":
        os.mkfifo(place)
    output = rig.ingest(2)
    assert (output["copied_files"], output["known_files"], output["missing_files"]) == (0, 0, 1)


def test_what_the_hash_makes_known_is_looked_for_as_well(rig: Rig) -> None:
    shoot(rig, 1)
    rig.ingest(1)
    (rig.job / "DCIM/100GOPRO/GX010001.THM").unlink()
    output = rig.ingest(2)
    assert (output["copied_files"], output["known_files"], output["missing_files"]) == (0, 1, 1)


def test_one_of_several_copies_is_enough(rig: Rig, volume: Callable[[str], None]) -> None:
    rig.put("clip.mp4", b"footage")
    rig.ingest(1)
    (copy,) = rig.ledger.copies
    (context,) = [ref for ref in rig.live if ref.step_key == "copy_files"]
    rig.ledger.record(context, 1, [replace(copy, path=b"moved/clip.mp4")])
    (rig.library / "moved").mkdir()
    (rig.job / "clip.mp4").rename(rig.library / "moved/clip.mp4")
    assert rig.ingest(2)["known_files"] == 1


def test_missing_files_are_named_up_to_a_bound_and_printably(
    rig: Rig, volume: Callable[[str], None]
) -> None:
    for number in range(25):
        rig.put(b"\x1b\xff" + b"n" * 245 + b"/" + b"%02d" % number + b"x" * 250)
    rig.ingest(1)
    subprocess.run(["rm", "-r", rig.job], check=True)
    output = rig.ingest(2)
    assert output["missing_files"] == 25
    assert len(output["missing"]) == 20
    assert output["library_note"].endswith(" and 5 more")
    assert "25 files were imported earlier" in output["library_note"]
    assert output["library_note"].isprintable()
    assert len(json.dumps(output)) < 25_000


def test_a_failed_copy_names_what_is_missing_too(rig: Rig, volume: Callable[[str], None]) -> None:
    rig.put("gone.mp4")
    rig.put("kept.mp4")
    rig.ingest(1)
    (rig.job / "gone.mp4").unlink()
    rig.put("new.mp4")
    data = rig.ready(2)
    (rig.card / "new.mp4").unlink()
    with pytest.raises(FilesMissing) as missing:
        rig.copy(2, data)
    assert "1 of 3 files could not be copied (1 are in the library)" in str(missing.value)
    assert "1 file was imported earlier and is no longer in the library: gone.mp4" in str(
        missing.value
    )


def test_what_is_in_one_library_is_new_to_another(rig: Rig, volume: Callable[[str], None]) -> None:
    wanted = shoot(rig, 1)
    rig.ingest(1)
    rig.library = rig.library.parent / "disk2"
    output = rig.ingest(2)
    assert (output["copied_files"], output["known_files"], output["missing_files"]) == (2, 0, 0)
    assert rig.arrived() == {
        path.replace(b"_A001", b"_A001-2"): content for path, content in wanted.items()
    }


def test_known_files_of_a_library_whose_disk_is_away_are_not_said_to_be_gone(
    rig: Rig, volume: Callable[[str], None]
) -> None:
    disk = rig.library / "disk"
    disk.mkdir(parents=True)
    rig.library = disk / "library"
    shoot(rig, 1)
    rig.ingest(1)
    disk.rename(disk.parent / "unplugged")
    data = rig.ready(2)
    with pytest.raises(LibraryFault, match="is its disk connected"):
        rig.copy(2, data)
    (disk.parent / "unplugged").rename(disk)
    assert rig.copy(2, data)["known_files"] == 2


def test_footage_goes_where_the_execution_s_library_is(rig: Rig) -> None:
    """Whoever takes the execution up again, with whatever settings."""
    wanted = shoot(rig, 1)
    data = rig.ready()
    first = rig.library
    rig.library = first.parent / "of another server"
    output = rig.copy(1, data)
    assert output["job_folder"] == f"{first}/2026-11-22_A001"
    assert "library" not in output
    assert not rig.library.exists()
    assert {copy.destination for copy in rig.ledger.copies} == {str(first)}
    rig.library = first
    assert rig.arrived() == wanted


def test_an_execution_from_before_libraries_were_recorded_uses_the_server_s(rig: Rig) -> None:
    wanted = shoot(rig, 1)
    data = rig.ready()
    del data["library"]
    rig.copy(1, data)
    assert rig.arrived() == wanted


def killed(rig: Rig, monkeypatch: pytest.MonkeyPatch, execution_id: int) -> dict[str, Any]:
    """An attempt that dies after a first file, with a part of the second left behind."""
    data = rig.ready(execution_id)

    def die(*arguments: object, **options: object) -> None:
        raise Crash

    with monkeypatch.context() as crashing:
        crashing.setattr("adapters.steps.kernel.sync_file", die)
        crashing.setattr("adapters.steps.kernel.sync_file_system", die)
        crashing.setattr(os, "unlink", die)
        with pytest.raises(Crash):
            rig.copy(execution_id, data)
    return data


def parts(rig: Rig) -> list[bytes]:
    return [path for path in rig.arrived() if path.endswith(b".part")]


def test_parts_of_a_killed_run_go_when_the_card_is_ingested_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("DCIM/clip.mp4", b"footage")
    rig.put("loose.mp4", b"loose")
    rig.put(f"DCIM/clip.mp4{PART}", b"a file of the card that looks like a part")
    killed(rig, monkeypatch, 1)
    old = rig.library / "2026-11-22_A001"
    assert parts(rig)
    (old / "DCIM").mkdir(exist_ok=True)
    (old / f"DCIM/clip.mp4{PART}").write_bytes(b"whole, and named as on the card")
    (old / "DCIM/clip.mp4.00000001.part").write_bytes(b"half")
    kept = ["clip.mp4.part", "other.mp4.deadbeef.part", "clip.mp4.DEADBEEF.part", "clip.mp4.bad"]
    for name in kept:
        (old / "DCIM" / name).write_bytes(b"not ours")
    (old / "DCIM/clip.mp4.11111111.part").symlink_to("/etc/passwd")
    (old / "DCIM/clip.mp4.22222222.part").mkdir()
    assert rig.ingest(2)["copied_files"] == 3
    assert sorted(os.listdir(old / "DCIM")) == sorted(
        [*kept, f"clip.mp4{PART}", "clip.mp4.11111111.part", "clip.mp4.22222222.part"]
    )
    assert not list(old.glob("*.part"))


def test_parts_are_left_to_whoever_is_at_work_or_in_another_library(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("clip.mp4", b"footage")
    killed(rig, monkeypatch, 1)
    rig.busy.add(1)
    rig.ingest(2)
    assert len(parts(rig)) == 1
    rig.busy.clear()
    rig.libraries[1] = "/another"  # this folder of its job's name is somebody else's
    rig.ingest(3)
    assert len(parts(rig)) == 1
    rig.libraries[1] = str(rig.library)
    rig.ingest(4)
    assert parts(rig) == []


def test_a_swept_folder_that_is_a_link_now_is_not_followed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("clip.mp4", b"footage")
    killed(rig, monkeypatch, 1)
    elsewhere = rig.library.parent / "elsewhere"
    rig.job.rename(elsewhere)
    rig.job.symlink_to(elsewhere)
    rig.ingest(2)
    assert len(list(elsewhere.glob("*.part"))) == 1


def test_a_folder_that_can_t_be_swept_stops_neither_the_others_nor_the_copy(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("clip.mp4", b"footage")
    rig.busy |= {1, 2}
    killed(rig, monkeypatch, 1)
    killed(rig, monkeypatch, 2)
    rig.busy.clear()
    real = Folder.remove_leftovers

    def refuse(self: Folder, ours: Collection[bytes]) -> None:
        if self.text.endswith("A001-2"):
            raise LibraryFault("no")
        real(self, ours)

    monkeypatch.setattr(Folder, "remove_leftovers", refuse)
    assert rig.ingest(3)["copied_files"] == 1
    assert [path.partition(b"/")[0] for path in parts(rig)] == [b"2026-11-22_A001-2"]


def test_another_card_at_the_path_without_a_name_of_its_own_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shoot(rig)
    data = rig.ready()
    rig.card.rename(rig.mounts / "pulled")
    shoot(rig)

    def read(self: OpenCard, path: bytes) -> int:
        raise AssertionError("read before it was refused")

    with monkeypatch.context() as watching:
        watching.setattr(OpenCard, "open_with_status", read)
        with pytest.raises(AnotherCard, match=f"another card is at {rig.card}.*new run"):
            rig.copy(1, data)
    assert not rig.library.exists()
    subprocess.run(["rm", "-r", rig.card], check=True)
    (rig.mounts / "pulled").rename(rig.card)
    assert rig.copy(1, data)["copied_files"] == 6


def test_an_execution_from_before_fingerprints_goes_on(rig: Rig) -> None:
    shoot(rig)
    data = rig.ready()
    del data["card"]["fingerprint"]
    rig.card.rename(rig.mounts / "pulled")
    subprocess.run(["cp", "-a", rig.mounts / "pulled", rig.card], check=True)
    assert rig.copy(1, data)["copied_files"] == 6


def test_a_volume_is_told_by_its_own_name_only(rig: Rig, volume: Callable[[str], None]) -> None:
    shoot(rig)
    data = rig.ready()
    rig.card.rename(rig.mounts / "pulled")
    subprocess.run(["cp", "-a", rig.mounts / "pulled", rig.card], check=True)
    assert rig.copy(1, data)["copied_files"] == 6


def test_on_a_card_without_identity_the_hash_decides(rig: Rig) -> None:
    rig.put("DCIM/one.mp4", b"first day")
    rig.put("DCIM/two.mp4", b"same here")
    rig.ingest(1)
    rig.put("DCIM/one.mp4", b"other day")  # same path, size and time
    output = rig.ingest(2)
    assert (output["copied_files"], output["known_files"]) == (1, 1)
    assert rig.arrived()[b"2026-11-22_A001-2/DCIM/one.mp4"] == b"other day"


def test_two_cards_with_the_same_names_both_arrive(rig: Rig, volume: Callable[[str], None]) -> None:
    volume("AAAA")
    rig.put("DCIM/IMG_0001.JPG", b"card one")
    rig.ingest(1)
    volume("BBBB")
    rig.put("DCIM/IMG_0001.JPG", b"card two")
    assert rig.ingest(2)["copied_files"] == 1
    assert sorted(rig.arrived().values()) == [b"card one", b"card two"]


@pytest.mark.parametrize(
    ("shift_s", "content", "copied"),
    [
        (2, b"clip!", 0),  # within what FAT rounds
        (2, b"OTHER", 1),  # the same, but the smallest recording is always read
        (3_600, b"clip!", 0),  # a journey: read, and the same
        (3_600, b"OTHER", 1),  # read, and another one
        (60, b"clip!", 0),
        (60, b"OTHER", 1),
    ],
)
def test_another_time_makes_a_candidate_and_the_hash_decides(
    rig: Rig, volume: Callable[[str], None], shift_s: int, content: bytes, copied: int
) -> None:
    rig.put("clip.mp4", b"clip!")
    rig.ingest(1)
    rig.put("clip.mp4", content, MTIME_NS + shift_s * 1_000_000_000)
    output = rig.ingest(2)
    assert (output["copied_files"], output["known_files"]) == (copied, 1 - copied)


def test_another_card_at_the_same_path_is_refused_before_it_is_read(
    rig: Rig, volume: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shoot(rig)
    data = rig.ready()
    volume("BBBB")

    def read(self: OpenCard, path: bytes) -> int:
        raise AssertionError("read before it was refused")

    monkeypatch.setattr(OpenCard, "open_with_status", read)
    with pytest.raises(AnotherCard, match=f"another card is at {rig.card}: .*volume:BBBB"):
        rig.copy(1, data)
    assert not rig.library.exists()


def test_a_card_that_is_not_there_any_more_is_not_waited_for(rig: Rig) -> None:
    shoot(rig)
    data = rig.ready()
    rig.card.rename(rig.mounts / "elsewhere")
    with pytest.raises(CardNotThere, match="card not there"):
        rig.copy(1, data)
    rig.card.symlink_to("elsewhere")
    with pytest.raises(NotACard, match="symbolic link"):
        rig.copy(1, data)


def test_a_card_lost_on_the_way_says_how_far_it_came_and_a_retry_goes_on(
    rig: Rig, volume: Callable[[str], None]
) -> None:
    wanted = {}
    for number in range(4):
        content = bytes([number]) * SMALL_BYTES
        rig.put(f"{number}.mp4", content)
        wanted[f"2026-11-22_A001/{number}.mp4".encode()] = content
    data = rig.ready()
    pulled = rig.mounts / "pulled"

    def pull(fraction: float, detail: dict[str, Any]) -> None:
        if detail["file"] == "2.mp4" and rig.card.exists():
            for number in range(4):
                (rig.card / f"{number}.mp4").unlink()
            rig.card.rename(pulled)

    rig.on_report = pull
    with pytest.raises(CardLost, match=r"card lost: .* 3 of 4 files are in the library.*retry"):
        rig.copy(1, data)
    assert len(rig.arrived()) == 3
    assert rig.jobs.get(1).status is JobStatus.CREATED

    rig.on_report = lambda fraction, detail: None
    pulled.rename(rig.card)
    for path, content in wanted.items():
        rig.put(path.rpartition(b"/")[2], content)
    rig.reports.clear()
    output = rig.copy(1, data)
    assert rig.reports[-1][1]["files_total"] == 1
    assert (output["copied_files"], output["known_files"]) == (4, 0)
    assert rig.arrived() == wanted


def test_errors_in_a_row_are_a_lost_card(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        rig.put(f"{number}.mp4", bytes(SMALL_BYTES))

    def fail(fd: int, buffers: Sequence[bytearray]) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", fail)
    with pytest.raises(CardLost, match=r"card lost: 3 files in a row.*0 of 5 files"):
        rig.ingest()


def test_an_unreadable_file_is_named_after_the_others_are_saved(
    rig: Rig, volume: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = shoot(rig)
    bad = rig.put(b"DCIM/100GOPRO/bad\x1bname.MP4")
    real, broken = os.open, True

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if broken and path == b"bad\x1bname.MP4":
            raise PermissionError(13, "no")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    data = rig.ready()
    with pytest.raises(FilesMissing) as missing:
        rig.copy(1, data)
    assert str(missing.value) == (
        "1 of 7 files could not be copied (6 are in the library): "
        r"DCIM/100GOPRO/bad\x1bname.MP4: can't be read from the card: permission denied"
    )
    assert rig.arrived() == wanted
    assert len(rig.ledger.copies) == 6
    broken = False
    assert rig.copy(1, data)["copied_files"] == 7
    assert len(rig.arrived()) == 7
    assert os.path.exists(bad)


def test_a_long_list_of_unreadable_files_is_cut(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        rig.put(f"{number:03}" + "x" * 200)
    data = rig.ready()
    for number in range(100):
        (rig.card / (f"{number:03}" + "x" * 200)).unlink()
    with pytest.raises(FilesMissing, match="and 80 more") as missing:
        rig.copy(1, data)
    assert len(str(missing.value)) < 10_000


def test_a_file_swapped_for_a_fifo_or_link_after_the_scan_does_no_harm(rig: Rig) -> None:
    for name in ("a.mp4", "b.mp4", "sub/c.mp4", "d.mp4"):
        rig.put(name)
    data = rig.ready()
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        (rig.card / name).unlink()
    os.mkfifo(rig.card / "a.mp4")
    (rig.card / "b.mp4").symlink_to("/etc/passwd")
    (rig.card / "sub").rmdir()
    (rig.card / "sub").symlink_to("/etc")
    with pytest.raises(FilesMissing, match="3 of 4 files could not be copied"):
        rig.copy(1, data)
    assert list(rig.arrived()) == [b"2026-11-22_A001/d.mp4"]


def test_what_is_there_already_is_never_overwritten_and_the_file_gets_another_name(
    rig: Rig,
) -> None:
    for name in ("clip", "size", "folder", "link", "good"):
        rig.put(f"DCIM/{name}.mp4", b"footage")
    data = rig.ready()
    (rig.job / "DCIM").mkdir(parents=True)
    (rig.job / "DCIM/clip.mp4").write_bytes(b"FOOTAGE")
    (rig.job / "DCIM/clip%~2.mp4").write_bytes(b"theirs too")
    (rig.job / "DCIM/size.mp4").write_bytes(b"of another size")
    (rig.job / "DCIM/folder.mp4").mkdir()
    (rig.job / "DCIM/link.mp4").symlink_to(rig.card / "DCIM/link.mp4")
    output = rig.copy(1, data)
    assert output["copied_files"] == 5
    stored = {each["path"]: each["stored_as"] for each in output["renamed"]["named"]}
    assert stored == {
        "DCIM/clip.mp4": "DCIM/clip%~3.mp4",
        "DCIM/size.mp4": "DCIM/size%~2.mp4",
        "DCIM/folder.mp4": "DCIM/folder%~2.mp4",
        "DCIM/link.mp4": "DCIM/link%~2.mp4",
    }
    assert output["renamed"]["total"] == 4
    assert (rig.job / "DCIM/clip.mp4").read_bytes() == b"FOOTAGE"
    assert (rig.job / "DCIM/clip%~2.mp4").read_bytes() == b"theirs too"
    assert (rig.job / "DCIM/size.mp4").read_bytes() == b"of another size"
    for copy in rig.ledger.copies:
        place = os.fsencode(rig.library) + b"/" + copy.path
        assert not os.path.islink(place)
        with open(place, "rb") as file:
            assert file.read() == b"footage"
    assert len(rig.ledger.copies) == 5
    before = rig.arrived()
    again = rig.copy(1, data)
    assert again["renamed"]["total"] == 4
    rig.ledger = type(rig.ledger)(rig.live.__contains__)  # as if a crash had lost the rows
    assert rig.copy(1, data)["copied_files"] == 5
    assert rig.arrived() == before


def test_a_name_that_others_have_in_all_its_numbers_fails_only_its_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_destinations, "MAX_OWN_NAMES", 2)
    rig.put("clip.mp4")
    rig.put("good.mp4")
    data = rig.ready()
    rig.job.mkdir(parents=True)
    for name in ("clip.mp4", "clip%~2.mp4", "clip%~3.mp4"):
        (rig.job / name).write_bytes(b"theirs!")
    with pytest.raises(FilesMissing, match=r"1 of 2 .*clip%~3\.mp4 exists and is not the same"):
        rig.copy(1, data)
    assert (rig.job / "good.mp4").read_bytes() == b"footage"


def test_a_file_in_a_folder_s_place_fails_only_what_goes_there(rig: Rig) -> None:
    rig.put("DCIM/clip.mp4")
    rig.put("clip.mp4")
    data = rig.ready()
    rig.job.mkdir(parents=True)
    (rig.job / "DCIM").write_bytes(b"a file")
    with pytest.raises(FilesMissing, match=r"1 of 2 .*DCIM exists and is no folder"):
        rig.copy(1, data)
    assert (rig.job / "DCIM").read_bytes() == b"a file"


class Crash(BaseException):
    """Ends the attempt on the spot, as kill -9 would."""


def test_a_crash_between_publishing_and_the_ledger_is_made_good(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = shoot(rig)
    data = rig.ready()

    def die(*arguments: object) -> None:
        raise Crash

    with monkeypatch.context() as crashing:
        crashing.setattr(rig.ledger, "record", die)
        with pytest.raises(Crash):
            rig.copy(1, data)
    assert rig.arrived() == wanted
    assert rig.ledger.copies == []
    inodes = {path: os.stat(os.fsencode(rig.library) + b"/" + path).st_ino for path in wanted}
    output = rig.copy(1, data)
    assert output["copied_files"] == output["verified"] == 6
    assert len(rig.ledger.copies) == 6
    assert {
        path: os.stat(os.fsencode(rig.library) + b"/" + path).st_ino for path in wanted
    } == inodes


def test_parts_that_a_crash_left_are_removed_and_nothing_else_is(rig: Rig) -> None:
    rig.put("DCIM/clip.mp4", b"footage")
    rig.put(f"DCIM/clip.mp4{PART}", b"a file of the card that looks like a part")
    data = rig.ready()
    folder = rig.job / "DCIM"
    folder.mkdir(parents=True)
    (folder / "clip.mp4.deadbeef.part").write_bytes(b"half")
    others = ["clip.mp4.part", "clip.mp4.DEADBEEF.part", "other.mp4.deadbeef.part", "clip.mp4.bad"]
    for name in others:
        (folder / name).write_bytes(b"not ours")
    (folder / "clip.mp4.00000000.part").mkdir()
    (folder / "clip.mp4.11111111.part").symlink_to("/etc/passwd")
    assert rig.copy(1, data)["copied_files"] == 2
    left = [*others, "clip.mp4.00000000.part", "clip.mp4.11111111.part"]
    assert sorted(os.listdir(folder)) == sorted(["clip.mp4", f"clip.mp4{PART}", *left])
    inode = (folder / f"clip.mp4{PART}").stat().st_ino
    rig.ledger = type(rig.ledger)(rig.live.__contains__)  # as if a crash had lost the rows
    assert rig.copy(1, rig.ready())["copied_files"] == 2
    assert (folder / f"clip.mp4{PART}").stat().st_ino == inode


def test_killed_at_any_call_nothing_half_is_named_and_the_next_attempt_completes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt dies at each system call that changes the library, with nothing tidied up."""
    wanted = shoot(rig, 2)
    wanted[b"2026-11-22_A001/big.mp4"] = b"b" * SMALL_BYTES
    rig.put("big.mp4", b"b" * SMALL_BYTES)
    data = rig.ready()
    died = 0
    for die_at in range(1, 100):
        calls = 0

        def counted(real: Callable[..., Any], die_at: int = die_at) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls >= die_at:
                    raise Crash  # from here on nothing works any more
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as crashing:
            crashing.setattr(os, "mkdir", counted(os.mkdir))
            crashing.setattr(os, "write", counted(os.write))
            crashing.setattr(os, "utime", counted(os.utime))
            crashing.setattr(os, "unlink", counted(os.unlink))
            for name in ("sync_folder", "sync_file", "sync_file_system", "preallocate"):
                crashing.setattr(
                    f"adapters.steps.kernel.{name}",
                    counted(getattr(sys.modules["adapters.steps.kernel"], name)),
                )
            crashing.setattr(
                "adapters.steps.kernel.rename_without_replacing",
                counted(sys.modules["adapters.steps.kernel"].rename_without_replacing),
            )
            crashing.setattr(rig.ledger, "record", counted(rig.ledger.record))
            try:
                rig.copy(1, data)
            except Crash:
                died += 1
        for path, content in (rig.arrived() if rig.library.exists() else {}).items():
            assert path.endswith(b".part") or wanted[path] == content
        rows = {copy.path for copy in rig.ledger.copies}
        rig.copy(1, data)
        assert rows <= set(wanted)
        assert rig.arrived() == wanted
        assert {copy.path for copy in rig.ledger.copies} == set(wanted)
        if calls < die_at:
            break
        subprocess.run(["rm", "-r", rig.library], check=True)
        rig.ledger = type(rig.ledger)(rig.live.__contains__)
    assert died > 15


def test_a_stop_leaves_nothing_half_and_the_next_attempt_goes_on(
    rig: Rig, volume: Callable[[str], None]
) -> None:
    wanted = shoot(rig)
    rig.put("big.mp4", b"b" * (BUFFER_BYTES * 3))
    wanted[b"2026-11-22_A001/big.mp4"] = b"b" * (BUFFER_BYTES * 3)
    data = rig.ready()
    for stop_at in (1, 3, 6, 8, 10, 12):
        looks = iter(range(1_000))
        rig.stopping = lambda stop_at=stop_at, looks=looks: next(looks) >= stop_at  # type: ignore[misc]
        with pytest.raises(Interrupted):
            rig.copy(1, data)
        for path, content in (rig.arrived() if rig.library.exists() else {}).items():
            assert wanted[path] == content
    rig.stopping = lambda: False
    assert rig.copy(1, data)["copied_files"] == 7
    assert rig.arrived() == wanted


def test_an_attempt_that_is_over_records_nothing(rig: Rig) -> None:
    shoot(rig)
    data = rig.ready()
    rig.on_report = lambda fraction, detail: rig.live.clear()
    with pytest.raises(AttemptOver):
        rig.copy(1, data)
    assert rig.ledger.copies == []
    assert rig.jobs.get(1).status is JobStatus.CREATED


class TurnsAByte(Copier):
    def _sync(self, parts: Sequence[Part]) -> None:
        super()._sync(parts)
        for part in parts:
            place = Path(part.folder.text) / os.fsdecode(part.name)
            place.write_bytes(b"?" + place.read_bytes()[1:])


class TurnsOneByte(TurnsAByte):
    turned = False

    def _sync(self, parts: Sequence[Part]) -> None:
        if self.turned:
            Copier._sync(self, parts)
        else:
            self.turned = True
            super()._sync(parts)


def test_a_library_that_turns_bytes_stops_the_copy_and_is_named(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("clip.mp4")
    monkeypatch.setattr(copy_files, "Copier", TurnsAByte)
    with pytest.raises(LibraryFault, match="the library's side is wrong"):
        rig.ingest()
    assert rig.ledger.copies == []
    assert not (rig.job / "clip.mp4").exists()


def test_a_bad_copy_that_was_made_good_is_told_of(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("clip.mp4")
    monkeypatch.setattr(copy_files, "Copier", TurnsOneByte)
    output = rig.ingest()
    assert output["copied_files"] == 1
    (bad,) = output["bad_copies"]
    assert Path(bad).exists()
    assert (rig.job / "clip.mp4").read_bytes() == b"footage"


def test_too_little_room_is_found_before_anything_is_written(rig: Rig) -> None:
    place = rig.put("huge.mp4", b"")
    os.truncate(place, 1 << 43)
    with pytest.raises(LibraryFault) as refused:
        rig.ingest()
    assert f"not enough room in the library {rig.library}: 1 files need 8796.1 GB" in str(
        refused.value
    )
    assert "are there" in str(refused.value)
    assert rig.arrived() == {}


def test_what_a_crash_left_takes_no_room_from_the_retry(rig: Rig, small_library: Path) -> None:
    rig.put("clip.mp4", b"x" * (5 << 19))
    data = rig.ready()
    rig.job.mkdir()
    (rig.job / f"clip.mp4{PART}").write_bytes(b"y" * (5 << 19))
    assert rig.copy(1, data)["copied_files"] == 1


def test_a_library_that_fills_up_on_the_way_says_so_and_keeps_no_part(
    rig: Rig, small_library: Path
) -> None:
    for number in (1, 2, 3):
        rig.put(f"{number}.mp4", b"%d" % number * SMALL_BYTES)

    def fill(fraction: float, detail: dict[str, Any]) -> None:
        if detail["file"] == "2.mp4":
            with pytest.raises(OSError):
                (small_library / "fill").write_bytes(bytes(4 << 20))
            rig.on_report = lambda fraction, detail: None

    data = rig.ready()
    rig.on_report = fill
    with pytest.raises(LibraryFault, match=f"the library is full: .*{rig.job}"):
        rig.copy(1, data)
    (small_library / "fill").unlink()
    arrived = sorted(rig.arrived())
    assert arrived == [b"2026-11-22_A001/%d.mp4" % number for number in (1, 2)]
    assert sorted(copy.path for copy in rig.ledger.copies) == arrived
    assert rig.copy(1, data)["copied_files"] == 3


def test_a_library_on_a_read_only_file_system_is_refused(rig: Rig, small_library: Path) -> None:
    rig.put("clip.mp4")
    subprocess.run(["mount", "-o", "remount,ro", small_library], check=True)
    with pytest.raises(LibraryFault, match="read-only"):
        rig.ingest()


def test_a_library_without_permission_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.put("clip.mp4")
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)
    with pytest.raises(LibraryFault, match="may not be written to by this user"):
        rig.ingest()


def test_a_library_whose_disk_is_not_connected_is_not_made_up(rig: Rig) -> None:
    rig.put("clip.mp4")
    rig.library = rig.library / "RAID" / "library"
    with pytest.raises(LibraryFault, match="is its disk connected"):
        rig.ingest()
    assert not rig.library.parent.exists()


@pytest.mark.parametrize("below", ["library", ".", "DCIM"])
def test_a_library_on_the_card_is_refused(rig: Rig, below: str) -> None:
    rig.put("DCIM/clip.mp4")
    before = sorted(os.listdir(rig.card))
    rig.library = rig.card / below
    with pytest.raises(LibraryFault, match="lies on the card"):
        rig.ingest()
    assert sorted(os.listdir(rig.card)) == before


def test_an_inventory_that_is_not_the_job_s_is_not_worked_on(rig: Rig) -> None:
    shoot(rig)
    data = rig.ready()
    rig.card_files.replace(next(iter(rig.live)), [])
    with pytest.raises(OffloadFault, match="the inventory has 0 files to copy, but the scan"):
        rig.copy(1, data)


def test_an_inventory_of_many_pages_is_worked_off_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_files, "PAGE_FILES", 2)
    monkeypatch.setattr(copy_stock, "PAGE_FILES", 2)
    wanted = shoot(rig)
    rig.put("odd.one")
    assert rig.ingest()["copied_files"] == len(wanted) + 1
    assert rig.ingest(2)["known_files"] == len(wanted) + 1


def look_at_what_is_recorded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, look: Callable[[Sequence[VerifiedCopy]], None]
) -> None:
    """Before it is."""
    real = rig.ledger.record

    def record(attempt: Any, job_id: int, copies: Sequence[VerifiedCopy]) -> None:
        look(copies)
        real(attempt, job_id, copies)

    monkeypatch.setattr(rig.ledger, "record", record)


def test_many_small_files_go_in_batches_with_one_ledger_call_each(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_files, "BATCH_FILES", 64)
    for number in range(150):
        rig.put(f"DCIM/{number % 7}/{number:03}.thm", b"%d" % number)
    sizes: list[int] = []

    def look(copies: Sequence[VerifiedCopy]) -> None:
        sizes.append(len(copies))
        for copy in copies:
            assert (rig.library / os.fsdecode(copy.path)).exists()

    look_at_what_is_recorded(rig, monkeypatch, look)
    assert rig.ingest()["copied_files"] == 150
    assert sorted(sizes) == [22, 64, 64]


def test_no_batch_keeps_more_than_so_many_folders_open(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_files, "BATCH_FOLDERS", 4)
    for number in range(60):
        rig.put(f"DCIM/{number // 2:02}/{number:02}.thm", b"%d" % number)
    open_folders: list[int] = []
    look_at_what_is_recorded(
        rig,
        monkeypatch,
        lambda copies: open_folders.append(len({os.path.dirname(copy.path) for copy in copies})),
    )
    assert rig.ingest()["copied_files"] == 60
    assert sorted(open_folders) == [2, 4, 4, 4, 4, 4, 4, 4]


def test_no_descriptor_is_left_open(rig: Rig) -> None:
    shoot(rig)
    (rig.card / "DCIM/100GOPRO/GX010001.MP4").chmod(0)
    data = rig.ready()
    gc.collect()  # what others have forgotten isn't closed in the middle of it
    before = len(os.listdir("/proc/self/fd"))
    rig.copy(1, data)
    rig.copy(1, data)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_pipeline_has_the_steps_by_name(rig: Rig) -> None:
    pipeline = sd_ingest(
        cards=rig.cards,
        card_files=rig.card_files,
        jobs=rig.jobs,
        ledger=rig.ledger,
        clock=NoonClock(),
        executions=MemoryExecutions(),
        library=str(rig.library),
        report=Report(rig.jobs, rig.card_files, rig.ledger),
        creator=Creator("cart-1", "Rushes", "0.1.0"),
    )
    assert pipeline.type == "sd_ingest"
    assert pipeline.card
    assert [
        (spec.name, spec.depends_on, spec.weight, spec.pool) for spec in pipeline.definition.steps
    ] == [
        ("scan_sd", (), 1, "card"),
        ("create_job", ("scan_sd",), 1, "default"),
        ("copy_files", ("create_job",), 8, "copy"),
        ("write_manifest", ("copy_files",), 1, "default"),
        ("verdict", ("copy_files",), 1, "card"),
        ("write_report", ("verdict",), 1, "default"),
    ]
    shoot(rig)
    data: dict[str, Any] = {"sd_path": str(rig.card)}
    for spec in pipeline.definition.steps:
        handler = pipeline.handler(spec.name)
        assert handler is not None
        output = handler(rig.context(spec.name, 1, data))
        assert isinstance(output, dict)
        data |= output
    assert data["copied_files"] == 6
    assert data["safe_to_format"]


def test_permissions_as_the_system_enforces_them(tmp_path: Path) -> None:
    """Tests may run as root, which may do everything; a child without those privileges may not."""
    script = f"""
import os, sys
from pathlib import Path
import pytest
from adapters.steps.faults import *
from tests.adapters.steps.conftest import Rig
for name in ("unreadable", "library"):
    Path({str(tmp_path)!r}, name).mkdir()
rig = Rig(Path({str(tmp_path)!r}, "unreadable"))
rig.put("good.mp4"); rig.put("bad.mp4")
os.chmod(rig.card / "bad.mp4", 0)
with pytest.raises(FilesMissing, match=r"1 of 2.*bad.mp4: can't be read.*permission denied"):
    rig.ingest()
assert list(rig.arrived()) == [b"2026-11-22_A001/good.mp4"]
rig.put("folder/clip.mp4"); os.chmod(rig.card / "folder", 0)
named = rig.scan(2)["exceptions"]["named"]
problems = dict((each["path"], each["problem"]) for each in named)
assert problems["bad.mp4"] == "can't be read: permission denied"
assert problems["folder"] == "the folder can't be read: permission denied"
with pytest.raises(FilesMissing, match=r"2 of 3.*folder: can't be read.*permission denied"):
    rig.ingest(2)
rig = Rig(Path({str(tmp_path)!r}, "library"))
rig.put("clip.mp4"); rig.library.mkdir(); rig.library.chmod(0o555)
with pytest.raises(LibraryFault, match="may not be written to by this user"):
    rig.ingest()
print("enforced")
"""
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:
        dropped = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
        try:
            subprocess.run([*dropped, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no way to do without root's privileges here")
        command = [*dropped, *command]
    here = Path(inspect.getfile(FsCards)).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "enforced\n", done.stderr


def test_a_context_s_handler_output_is_small_whatever_the_card(rig: Rig) -> None:
    for number in range(300):
        rig.put(f"{number}.thm", b"%d" % number)
    context: StepContext = rig.context("copy_files", 1, rig.ready())
    step = copy_files.CopyFiles(
        rig.cards, rig.card_files, rig.jobs, rig.ledger, NoonClock(), str(rig.library)
    )
    assert len(json.dumps(step(context))) < 1_000


def half_copied(rig: Rig) -> dict[str, Any]:
    """Four recordings; one couldn't be read, and the others stand in the library."""
    for number in range(1, 5):
        rig.put(f"DCIM/IMG_{number:04}.JPG", b"monday %d" % number)
    data = rig.ready()
    (rig.card / "DCIM/IMG_0003.JPG").rename(rig.card / "away")
    with pytest.raises(FilesMissing, match="IMG_0003"):
        rig.copy(1, data)
    (rig.card / "away").rename(rig.card / "DCIM/IMG_0003.JPG")
    return data


def test_a_retry_is_refused_if_the_card_was_filled_anew_meanwhile(
    rig: Rig, volume: Callable[[str], None]
) -> None:
    data = half_copied(rig)
    before = rig.arrived()
    for number in range(1, 5):
        rig.put(f"DCIM/IMG_{number:04}.JPG", b"sunday %d" % number)
    with pytest.raises(AnotherCard, match=r"filled anew since it was scanned.*a new run"):
        rig.copy(1, data)
    assert rig.arrived() == before
    output = rig.ingest(2)
    assert output["copied_files"] == 4
    assert sum(content.startswith(b"sunday") for content in rig.arrived().values()) == 4


@pytest.mark.parametrize("shift_s", [0, 3_600])
def test_a_retry_goes_on_with_a_card_that_something_was_trimmed_on(
    rig: Rig, volume: Callable[[str], None], shift_s: int
) -> None:
    """By the camera, for room; and FAT's times move with the host's time zone."""
    data = half_copied(rig)
    for number in (2, 3, 4):
        time_ns = MTIME_NS + shift_s * 10**9
        rig.put(f"DCIM/IMG_{number:04}.JPG", b"monday %d" % number, time_ns)
    (rig.card / "DCIM/IMG_0001.JPG").unlink()
    rig.put("DCIM/IMG_0002.JPG", b"cut")
    assert rig.copy(1, data)["copied_files"] == 4
    assert rig.arrived()[b"2026-11-22_A001/DCIM/IMG_0002.JPG"] == b"monday 2"


def test_a_card_that_goes_while_it_proves_itself_is_lost(
    rig: Rig, volume: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = half_copied(rig)

    def hashes_of(self: object, path: bytes, *rest: object) -> None:
        raise CardLost("no such device")

    monkeypatch.setattr(OpenCard, "hashes_of", hashes_of)
    with pytest.raises(CardLost, match="card lost: no such device; 3 of 4 files are in"):
        rig.copy(1, data)
