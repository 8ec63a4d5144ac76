"""Several destinations from one reading, and what only they can get wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash

from adapters.steps import copy_files, kernel, library
from adapters.steps.cards import OpenCard
from adapters.steps.copying import BUFFER_BYTES, SMALL_BYTES, Copier
from adapters.steps.faults import CardLost, FilesMissing, LibraryFault
from adapters.steps.library import Folder
from adapters.steps.parts import Part
from application.authoring import Interrupted
from domain.footage import Card, JobStatus
from tests.adapters.steps.conftest import MTIME_NS, Rig

JOB = "2026-11-22_A001"


@pytest.fixture
def backup(rig: Rig, tmp_path: Path) -> Path:
    """A second destination."""
    place = tmp_path / "backup"
    rig.further = [place]
    return place


@pytest.fixture
def small_backup(backup: Path) -> Iterator[Path]:
    """On a file system of its own, with 4 MiB."""
    backup.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", backup], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting takes privileges")
    yield backup
    subprocess.run(["umount", backup], check=True)


def shoot(rig: Rig, count: int = 3, size: int = 1_000) -> dict[bytes, bytes]:
    wanted = {}
    for number in range(count):
        content = os.urandom(size + number)
        rig.put(f"DCIM/{number}.mp4", content)
        wanted[f"{JOB}/DCIM/{number}.mp4".encode()] = content
    return wanted


def rows(rig: Rig, place: Path) -> set[bytes]:
    return {copy.path for copy in rig.ledger.copies if copy.destination == str(place)}


# -- what is refused before a byte is copied ---------------------------------------------


def test_every_problem_of_every_destination_is_told_at_once(
    rig: Rig, small_backup: Path, tmp_path: Path
) -> None:
    place = rig.put("huge.mp4", b"")
    os.truncate(place, 1 << 43)
    read_only = tmp_path / "read only"
    read_only.mkdir()
    rig.further.append(read_only)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", read_only], check=True)
    try:
        with pytest.raises(LibraryFault) as refused:
            rig.ingest()
    finally:
        subprocess.run(["umount", read_only], check=True)
    text = str(refused.value)
    assert "nothing was copied, for 3 reasons: (1) " in text
    assert f"the library {read_only} is on a file system that is read-only" in text
    assert f"not enough room in the library {rig.library}: 1 files need 8796.1 GB" in text
    assert f"not enough room in the library {small_backup}: 1 files need 8796.1 GB" in text
    assert rig.arrived() == rig.arrived(small_backup) == {}


def test_a_destination_on_the_card_or_inside_another_is_refused(rig: Rig, tmp_path: Path) -> None:
    shoot(rig)
    before = sorted(os.walk(rig.card))
    (tmp_path / "link").symlink_to(rig.library)
    rig.library.mkdir()
    rig.further = [
        rig.card / "copies",
        rig.library / "inside",
        tmp_path / "link",
        tmp_path / "not" / "there",
    ]
    with pytest.raises(LibraryFault) as refused:
        rig.ingest()
    for problem in (
        "copies lies on the card",
        "inside lies inside the library",
        "are one and the same folder",
        "is its disk connected?",
    ):
        assert problem in str(refused.value)
    assert sorted(os.walk(rig.card)) == before
    assert rig.arrived() == {}


def test_misplaced_destinations_and_too_little_room_are_told_together(
    rig: Rig, small_backup: Path
) -> None:
    place = rig.put("huge.mp4", b"")
    os.truncate(place, 1 << 43)
    rig.further.append(rig.card)
    with pytest.raises(LibraryFault, match="for 3 reasons") as refused:
        rig.ingest()
    for problem in ("lies on the card", f"{rig.library}: 1 files", f"{small_backup}: 1 files"):
        assert problem in str(refused.value)


def test_two_destinations_on_one_file_system_need_the_room_of_both(
    rig: Rig, small_backup: Path
) -> None:
    rig.put("clip.mp4", bytes(3 << 19))
    rig.library = small_backup / "one"
    rig.further = [small_backup / "two"]
    rig.put("other.mp4", bytes(3 << 19))
    with pytest.raises(LibraryFault, match=r"which are on one file system: 4 files need 6\.3 MB"):
        rig.ingest()
    os.unlink(rig.card / "other.mp4")
    assert rig.ingest(2)["copied_files"] == 1


# -- copying -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, SMALL_BYTES, BUFFER_BYTES * 3 + 1])
def test_every_destination_gets_everything_from_one_reading(
    rig: Rig, backup: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = shoot(rig, size=size)
    opened: list[bytes] = []
    real = OpenCard.open_with_status

    def open_file(self: OpenCard, path: bytes) -> tuple[int, os.stat_result]:
        opened.append(path)
        return real(self, path)

    data = rig.ready()
    monkeypatch.setattr(OpenCard, "open_with_status", open_file)
    output = rig.copy(1, data)
    assert rig.arrived() == rig.arrived(backup) == wanted
    assert sorted(opened) == [b"DCIM/0.mp4", b"DCIM/1.mp4", b"DCIM/2.mp4"]
    assert rows(rig, rig.library) == rows(rig, backup) == set(wanted)
    assert output["copied_files"] == output["verified"] == 3
    assert output["copied_bytes"] == sum(map(len, wanted.values()))
    assert output["copies"] == [
        {
            "destination": str(place),
            "copied_files": 3,
            "copied_bytes": output["copied_bytes"],
            "known_files": 0,
            "missing_files": 0,
            "job_folder": str(place / JOB),
        }
        for place in (rig.library, backup)
    ]
    for place in (rig.library, backup):
        assert (place / JOB / "DCIM/0.mp4").stat().st_mtime_ns == MTIME_NS
    assert rig.reports[-1][0] == 1.0


def test_a_destination_that_is_added_later_gets_what_it_has_not(rig: Rig, tmp_path: Path) -> None:
    wanted = shoot(rig)
    rig.ingest()
    rig.further = [tmp_path / "backup"]
    output = rig.ingest(2)
    assert {path.replace(b"A001-2", b"A001") for path in rig.arrived(tmp_path / "backup")} == set(
        wanted
    )
    assert rig.arrived() == wanted
    assert [each["known_files"] for each in output["copies"]] == [3, 0]
    assert [each["copied_files"] for each in output["copies"]] == [0, 3]
    assert (output["copied_files"], output["known_files"]) == (3, 0)
    assert rig.ingest(3)["known_files"] == 3


def test_what_was_deleted_at_one_destination_is_missing_there_and_named(
    rig: Rig, backup: Path
) -> None:
    shoot(rig)
    rig.ingest()
    (backup / JOB / "DCIM/1.mp4").unlink()
    output = rig.ingest(2)
    assert (output["known_files"], output["missing_files"]) == (2, 1)
    assert output["missing"] == ["DCIM/1.mp4"]
    assert [each["missing_files"] for each in output["copies"]] == [0, 1]


def test_a_job_s_name_is_free_at_every_destination(rig: Rig, backup: Path) -> None:
    shoot(rig)
    (backup / JOB).mkdir(parents=True)
    assert rig.ingest()["job_folder"] == str(rig.library / f"{JOB}-2")


def test_a_destination_that_fills_up_fails_the_step_and_the_other_is_complete(
    rig: Rig, small_backup: Path
) -> None:
    wanted = shoot(rig, count=3, size=SMALL_BYTES)

    def fill(fraction: float, detail: dict[str, Any]) -> None:
        with pytest.raises(OSError):
            (small_backup / "fill").write_bytes(bytes(4 << 20))
        rig.on_report = lambda fraction, detail: None

    data = rig.ready()
    rig.on_report = fill
    with pytest.raises(LibraryFault) as failed:
        rig.copy(1, data)
    assert str(failed.value).startswith("1 of 2 destinations failed: the library is full: ")
    assert f"at {small_backup}/{JOB}" in str(failed.value)
    assert f"everything is in {rig.library}; a retry copies what is missing" in str(failed.value)
    assert rig.arrived() == wanted
    assert rows(rig, rig.library) == set(wanted)
    (small_backup / "fill").unlink()
    assert not [path for path in rig.arrived(small_backup) if path.endswith(b".part")]
    assert rows(rig, small_backup) == set(rig.arrived(small_backup)) < set(wanted)
    assert rig.jobs.get(1).status is JobStatus.CREATED
    inodes = {path: os.stat(os.path.join(os.fsencode(rig.library), path)).st_ino for path in wanted}

    output = rig.copy(1, data)
    assert rig.arrived(small_backup) == wanted
    assert output["copied_files"] == 3
    for path, inode in inodes.items():
        assert os.stat(os.path.join(os.fsencode(rig.library), path)).st_ino == inode
    assert len(rig.ledger.copies) == 6


def test_what_is_certain_at_one_destination_is_recorded_while_another_is_slow(
    rig: Rig, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = shoot(rig, 1)
    recorded = threading.Event()
    record, sync_file = rig.ledger.record, kernel.sync_file

    def note(attempt: Any, job_id: int, copies: Sequence[Any]) -> None:
        record(attempt, job_id, copies)
        if any(copy.destination == str(rig.library) for copy in copies):
            recorded.set()

    def slow(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(backup)):
            assert recorded.wait(20), "the library waits for the backup"
        sync_file(fd)

    monkeypatch.setattr(rig.ledger, "record", note)
    monkeypatch.setattr(kernel, "sync_file", slow)
    assert rig.ingest()["copied_files"] == 1
    assert rig.arrived() == rig.arrived(backup) == wanted


class BadBackup(Copier):
    """Turns a byte of what was written to the second destination, once it is synced."""

    times = 1

    def _sync(self, parts: Sequence[Part]) -> None:
        super()._sync(parts)
        if "backup" in parts[0].folder.text and self.times:
            self.times -= 1
            place = Path(parts[0].folder.text) / os.fsdecode(parts[0].name)
            content = place.read_bytes()
            place.write_bytes(bytes([content[0] ^ 1]) + content[1:])


class HopelessBackup(BadBackup):
    times = 99


def test_a_byte_that_one_destination_turned_is_made_good_there(
    rig: Rig, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = shoot(rig)
    monkeypatch.setattr(copy_files, "Copier", BadBackup)
    output = rig.ingest()
    assert rig.arrived() == wanted
    (bad,) = output["bad_copies"]
    assert bad.startswith(str(backup))
    assert {path: content for path, content in rig.arrived(backup).items() if path in wanted} == (
        wanted
    )


def test_a_destination_that_is_wrong_twice_is_named_and_the_other_is_complete(
    rig: Rig, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = shoot(rig)
    monkeypatch.setattr(copy_files, "Copier", HopelessBackup)
    with pytest.raises(LibraryFault, match=f"the library's side is wrong: .*{backup}"):
        rig.ingest()
    assert rig.arrived() == wanted
    assert rows(rig, rig.library) == set(wanted)
    good = {path for path in rig.arrived(backup) if not path.endswith(b".bad")}
    assert rows(rig, backup) == good < set(wanted)  # what was good there is known to be


def test_a_second_reading_of_the_card_that_differs_is_the_card_s_fault(
    rig: Rig, backup: Path
) -> None:
    rig.put("good.mp4")
    place = rig.put("clip.mp4", b"x" * SMALL_BYTES)
    rig.settings = {"verify_source": True}
    data = rig.ready()

    def turn(fraction: float, detail: dict[str, Any]) -> None:
        """What a reader does that turns a byte: nobody is told."""
        if detail["file"] == "clip.mp4":
            with open(place, "r+b") as file:
                file.write(b"y")
            os.utime(place, ns=(MTIME_NS, MTIME_NS))
            rig.on_report = lambda fraction, detail: None

    rig.on_report = turn
    with pytest.raises(FilesMissing, match=r"1 of 2 .*the card's side is wrong: it gave other"):
        rig.copy(1, data)
    assert list(rig.arrived()) == list(rig.arrived(backup)) == [f"{JOB}/good.mp4".encode()]
    assert rig.copy(1, data)["copied_files"] == 2


# -- hashes ------------------------------------------------------------------------------


def test_every_hash_that_is_asked_for_comes_from_the_same_reading(rig: Rig, backup: Path) -> None:
    contents = {b"small.mp4": b"footage", b"big.mp4": os.urandom(BUFFER_BYTES * 2 + 1)}
    for path, content in contents.items():
        rig.put(path, content)
    rig.settings = {"hash_names": ("md5", "xxh64", "c4")}
    rig.ingest()
    assert len(rig.ledger.copies) == 4
    for copy in rig.ledger.copies:
        content = contents[copy.file.path]
        assert (copy.file.hash_name, copy.file.hash) == ("md5", hashlib.md5(content).hexdigest())
        further = dict(copy.file.further)
        assert further["xxh64"] == xxhash.xxh64_hexdigest(content)
        assert further["c4"].startswith("c4")


def test_rows_of_another_hash_are_still_known(rig: Rig) -> None:
    shoot(rig)
    rig.ingest()
    rig.settings = {"hash_names": ("md5",)}
    assert rig.ingest(2)["known_files"] == 3


# -- large files are gone on with ----------------------------------------------------------


SIZE = BUFFER_BYTES * 6 + 7


def stop_at(rig: Rig, share: float, deed: Callable[[], None]) -> None:
    def watch(fraction: float, detail: dict[str, Any]) -> None:
        if fraction >= share:
            rig.on_report = lambda fraction, detail: None
            deed()

    rig.on_report = watch


@pytest.mark.usefixtures("resuming")
def test_a_large_file_goes_on_where_it_was_stopped(
    rig: Rig, backup: Path, written: dict[str, int]
) -> None:
    content = os.urandom(SIZE)
    rig.put("clip.mp4", content)
    data = rig.ready()

    def stop() -> None:
        rig.stopping = lambda: True

    stop_at(rig, 0.2, stop)
    with pytest.raises(Interrupted):
        rig.copy(1, data)
    rig.stopping = lambda: False
    for place in (rig.library, backup):
        (part,) = rig.arrived(place)
        assert part.endswith(b".part")
    before = dict(written)
    assert min(before.values()) >= BUFFER_BYTES * 3
    assert rig.copy(1, data)["copied_files"] == 1
    assert sum(written.values()) == 2 * SIZE  # not a byte twice
    assert rig.arrived() == rig.arrived(backup) == {f"{JOB}/clip.mp4".encode(): content}


@pytest.mark.usefixtures("resuming")
@pytest.mark.parametrize("place", [0, BUFFER_BYTES * 2 + 5, -1])
def test_a_part_is_never_trusted_unread(rig: Rig, written: dict[str, int], place: int) -> None:
    content = os.urandom(SIZE)
    rig.put("clip.mp4", content)
    data = rig.ready()
    rig.job.mkdir(parents=True)
    bad = bytearray(content[: BUFFER_BYTES * 4])
    bad[place] ^= 1
    (rig.job / "clip.mp4.0123abcd.part").write_bytes(bad)
    rig.copy(1, data)
    assert rig.arrived() == {f"{JOB}/clip.mp4".encode(): content}
    good = len(bad) - 1 if place == -1 else place
    assert sum(written.values()) == SIZE - good // BUFFER_BYTES * BUFFER_BYTES


@pytest.mark.usefixtures("resuming")
def test_a_part_that_is_longer_than_the_file_or_a_link_does_no_harm(
    rig: Rig, tmp_path: Path
) -> None:
    content = os.urandom(SIZE)
    rig.put("long.mp4", content)
    rig.put("link.mp4", content)
    data = rig.ready()
    rig.job.mkdir(parents=True)
    (rig.job / "long.mp4.0123abcd.part").write_bytes(content + b"and more")
    (rig.job / "long.mp4.1123abcd.part").write_bytes(content[:100])
    (tmp_path / "victim").write_bytes(b"not ours")
    (rig.job / "link.mp4.0123abcd.part").symlink_to(tmp_path / "victim")
    assert rig.copy(1, data)["copied_files"] == 2
    assert (tmp_path / "victim").read_bytes() == b"not ours"
    (rig.job / "link.mp4.0123abcd.part").unlink()
    assert set(rig.arrived()) == {f"{JOB}/{name}.mp4".encode() for name in ("long", "link")}


@pytest.mark.usefixtures("resuming")
def test_a_file_of_the_card_that_looks_like_a_part_is_never_gone_on_with(rig: Rig) -> None:
    content = os.urandom(SIZE)
    rig.put("clip.mp4", content)
    rig.put("clip.mp4.0123abcd.part", content[:1000])
    wanted = {
        f"{JOB}/clip.mp4".encode(): content,
        f"{JOB}/clip.mp4.0123abcd.part".encode(): content[:1000],
    }
    data = rig.ready()
    rig.job.mkdir(parents=True)
    (rig.job / "clip.mp4.0123abcd.part").write_bytes(content[:1000])  # without its row
    assert rig.copy(1, data)["copied_files"] == 2
    assert rig.arrived() == wanted
    assert rig.ingest(2)["copied_files"] == 0


@pytest.mark.usefixtures("resuming")
def test_a_card_that_was_pulled_is_gone_on_with_when_it_is_back(
    rig: Rig, backup: Path, written: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(SIZE)
    rig.put("clip.mp4", content)
    data = rig.ready()
    real, pulled = os.readv, False

    def readv(fd: int, buffers: Sequence[bytearray]) -> int:
        if pulled:
            raise OSError(19, os.strerror(19))
        return real(fd, buffers)

    def pull() -> None:
        nonlocal pulled
        pulled = True

    monkeypatch.setattr(os, "readv", readv)
    stop_at(rig, 0.2, pull)
    with pytest.raises(CardLost, match=r"card lost: .*0 of 1 files.*put the card back in"):
        rig.copy(1, data)
    pulled = False
    assert rig.copy(1, data)["copied_files"] == 1
    assert sum(written.values()) == 2 * SIZE
    assert rig.arrived() == rig.arrived(backup) == {f"{JOB}/clip.mp4".encode(): content}


@pytest.mark.usefixtures("resuming")
def test_a_large_part_goes_when_the_card_is_ingested_anew(rig: Rig, backup: Path) -> None:
    rig.put("clip.mp4", os.urandom(SIZE))
    data = rig.ready()

    def stop() -> None:
        rig.stopping = lambda: True

    stop_at(rig, 0.2, stop)
    with pytest.raises(Interrupted):
        rig.copy(1, data)
    rig.stopping = lambda: False
    assert rig.ingest(2)["copied_files"] == 1
    for place in (rig.library, backup):
        assert list(rig.arrived(place)) == [f"{JOB}-2/clip.mp4".encode()]


# -- names -------------------------------------------------------------------------------


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backup is exFAT by its name; what it does with capitals is still the disk's."""
    real = kernel.file_system_of

    def file_system_of(fd: int) -> str:
        return "exfat" if "backup" in os.readlink(f"/proc/self/fd/{fd}") else real(fd)

    monkeypatch.setattr(kernel, "file_system_of", file_system_of)


@pytest.mark.usefixtures("picky")
def test_names_that_one_destination_can_t_hold_are_changed_only_there(
    rig: Rig, backup: Path
) -> None:
    names = {
        b"10:30/caf\xe9.mp4": b"10%3A30/caf%E9.mp4",
        b"10:30/end.": b"10%3A30/end%2E",
        b"CON/clip.mp4": b"%43ON/clip.mp4",
        b"DCIM/plain.mp4": b"DCIM/plain.mp4",
    }
    for name in names:
        rig.put(name, name)
    output = rig.ingest()
    job = JOB.encode()
    assert rig.arrived() == {job + b"/" + name: name for name in names}
    assert rig.arrived(backup) == {job + b"/" + stored: name for name, stored in names.items()}
    assert output["renamed"]["total"] == 3
    assert {each["destination"] for each in output["renamed"]["named"]} == {str(backup)}
    assert {"path": "10:30/caf\\xe9.mp4", "stored_as": "10%3A30/caf%E9.mp4"}.items() <= next(
        each for each in output["renamed"]["named"] if "caf" in each["path"]
    ).items()
    assert rows(rig, backup) == set(rig.arrived(backup))
    assert rig.ingest(2)["known_files"] == 4


@pytest.mark.usefixtures("picky", "resuming")
def test_parts_of_changed_names_are_found_again(rig: Rig, backup: Path) -> None:
    content = os.urandom(SIZE)
    rig.put("a:b/c:d.mp4", content)
    rig.put("a:b/small:.mp4", b"small")
    data = rig.ready()
    folder = backup / JOB / "a%3Ab"
    folder.mkdir(parents=True)
    (folder / "c%3Ad.mp4.0123abcd.part").write_bytes(content[:BUFFER_BYTES])
    (folder / "small%3A.mp4.0123abcd.part").write_bytes(b"sma")
    rig.copy(1, data)
    assert sorted(os.listdir(folder)) == ["c%3Ad.mp4", "small%3A.mp4"]


def test_what_a_destination_mixes_up_is_numbered_in_the_order_of_the_paths(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLIP.MP4", "Clip.mp4", "clip.mp4", "other.mp4"):
        rig.put(f"DCIM/{name}", name.encode())
    monkeypatch.setattr(Folder, "mixes_up", lambda self, name: True)
    data = rig.ready()
    output = rig.copy(1, data)
    assert rig.arrived() == {
        f"{JOB}/DCIM/CLIP.MP4".encode(): b"CLIP.MP4",
        f"{JOB}/DCIM/Clip%~2.mp4".encode(): b"Clip.mp4",
        f"{JOB}/DCIM/clip%~3.mp4".encode(): b"clip.mp4",
        f"{JOB}/DCIM/other.mp4".encode(): b"other.mp4",
    }
    assert output["renamed"]["total"] == 2
    assert rig.copy(1, data)["renamed"]["total"] == 2


def test_a_place_of_unknown_kind_is_asked_by_trying(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "file_system_of", lambda fd: "fuse.something")
    real = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT and isinstance(path, bytes) and b":" in path:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *arguments, **options)

    rig.put("a:b.mp4")
    rig.put("what?.mp4")
    monkeypatch.setattr(os, "open", refuse)
    assert rig.ingest()["copied_files"] == 2
    assert set(rig.arrived()) == {f"{JOB}/{name}".encode() for name in ("a%3Ab.mp4", "what?.mp4")}


def test_case_is_told_by_looking(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.library.mkdir()
    (rig.library / JOB).mkdir()
    with library.Library(str(rig.library)).open() as root:
        assert not root.mixes_up(JOB.encode())
        (rig.library / JOB.swapcase()).symlink_to("elsewhere")
        assert not root.mixes_up(JOB.encode())
        (rig.library / "1").write_bytes(b"")
        assert not root.mixes_up(b"1")


# -- folders, progress, again --------------------------------------------------------------


def test_empty_folders_and_the_times_of_all_come_along(rig: Rig, backup: Path) -> None:
    rig.put("PRIVATE/M4ROOT/CLIP/C0001.MP4")
    for name in ("PRIVATE/M4ROOT/THMBNL", "EMPTY/BELOW"):
        (rig.card / name).mkdir(parents=True)
    folders = ["PRIVATE", "PRIVATE/M4ROOT", "PRIVATE/M4ROOT/CLIP", "PRIVATE/M4ROOT/THMBNL"]
    folders += ["EMPTY", "EMPTY/BELOW"]
    for number, name in enumerate(folders):
        os.utime(rig.card / name, ns=(MTIME_NS + number, MTIME_NS + number))
    output = rig.ingest()
    assert output["empty_folders"] == 2
    assert "folder" not in output["left_out"]
    for place in (rig.library, backup):
        for number, name in enumerate(folders):
            assert (place / JOB / name).stat().st_mtime_ns == MTIME_NS + number


def test_folders_are_finished_by_the_attempt_after_a_crash(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("DCIM/clip.mp4")
    (rig.card / "EMPTY").mkdir()
    os.utime(rig.card / "DCIM", ns=(MTIME_NS, MTIME_NS))
    data = rig.ready()
    with monkeypatch.context() as crashing:
        crashing.setattr(copy_files._Run, "_finish_folders", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rig.copy(1, data)
    assert rig.copy(1, data)["copied_files"] == 1
    assert (rig.job / "EMPTY").is_dir()
    assert (rig.job / "DCIM").stat().st_mtime_ns == MTIME_NS


class Ticking:
    """Every look at the clock takes a tenth of a second."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 0.1
        return self._now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


def test_progress_says_how_fast_it_goes_and_what_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.put("clip.mp4", bytes(BUFFER_BYTES * 50))
    real = copy_files.Progress

    def ticking(context: Any, clock: Any) -> Any:
        return real(context, Ticking(clock))

    monkeypatch.setattr(copy_files, "Progress", ticking)
    rig.ingest()
    details = [detail for _, detail in rig.reports]
    assert "bytes_per_s" not in details[0]
    middle = details[len(details) // 2]
    # Read once and read back: half a buffer of the card at each look.
    assert middle["bytes_per_s"] == pytest.approx(BUFFER_BYTES / 2 / 0.1, rel=0.01)
    left = (middle["bytes_total"] - middle["bytes_done"]) / middle["bytes_per_s"]
    assert middle["seconds_left"] == pytest.approx(left, abs=1)
    assert details[-1]["seconds_left"] == 0


def test_again_brings_everything_once_more_into_a_folder_of_its_own(
    rig: Rig, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "adapters.steps.cards.identify",
        lambda fd, path, **where: Card("volume:0001:512", "A001", volume=True),
    )
    wanted = shoot(rig)
    rig.ingest()
    rig.again = True
    data = rig.ready(2)
    output = rig.copy(2, data)
    assert output["copied_files"] == 3
    assert output["job_folder"] == str(rig.library / f"{JOB}-2")
    assert len(rig.arrived()) == len(rig.arrived(backup)) == 6
    assert {path.replace(b"-2/", b"/") for path in rig.arrived()} == set(wanted)
    monkeypatch.setattr(Copier, "start", lambda self, errands: 1 / 0)
    assert rig.copy(2, data)["copied_files"] == 3  # a retry knows what this job has brought
