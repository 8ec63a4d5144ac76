"""Libraries on exFAT and FAT, where a name can only be given in two steps (ADR 8)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.steps import kernel
from adapters.steps.faults import LibraryFault
from adapters.steps.mhl.documents import Creator
from adapters.steps.mhl.history import CHAIN
from adapters.steps.verify_folder import VerifyFolder
from tests.adapters.steps.conftest import NoonClock
from tests.adapters.steps.dying import killed
from tests.adapters.steps.finishing import Finishing
from tests.adapters.steps.mhl.conftest import Shelf
from tests.filesystems import EXFAT, FAT32, FileSystem, mounted

KINDS = [EXFAT, FAT32]
CLIP = "DCIM/100GOPRO/GX010001.LRV"
FOOTAGE = b"footage" * 1_000

Drive = Callable[[FileSystem], None]


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    return Finishing(tmp_path)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def drive(rig: Finishing, request: pytest.FixtureRequest) -> Iterator[FileSystem]:
    """The library is one of these."""
    with mounted(request.param, rig.library):
        yield request.param


def killed_at(step: str, work: Callable[[], object]) -> None:
    """Do the work in a process that is killed just before it makes this call for a claim."""

    def mortal() -> None:
        _die_before(step)
        work()

    assert killed(mortal), "it came to its end: that call wasn't made"


def _die_before(step: str) -> None:
    real_rename, real_claim = os.rename, kernel.rename_over_claim

    def die(*arguments: object, **more: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def claim(source: bytes, target: bytes, *, dir_fd: int) -> None:
        if target.startswith(b"rushes-probe"):  # trying out what this place can do
            return real_claim(source, target, dir_fd=dir_fd)
        match step:
            case "taking the name":
                die()
            case "renaming":
                os.rename = die
            case "giving its time":
                os.utime = die
        return real_claim(source, target, dir_fd=dir_fd)

    kernel.rename_over_claim = claim
    if step == "saying so":

        def rename(source: bytes, target: bytes, **folders: int) -> None:
            if target.endswith(b".take") and not target.startswith(b"rushes-probe"):
                die()
            real_rename(source, target, **folders)

        os.rename = rename


# -- what is refused -----------------------------------------------------------------


def test_fat_refuses_a_file_of_four_gibibytes_before_a_byte_is_copied(rig: Finishing) -> None:
    place = rig.put("DCIM/big.LRV")
    os.truncate(place, 4 * 1024**3)
    os.utime(place, ns=(10**18, 10**18))
    with mounted(FAT32, rig.library):
        with pytest.raises(LibraryFault, match="can't hold files of 4 GiB or more, and DCIM/big"):
            rig.ingest()
        assert os.listdir(rig.library) == []


def test_a_place_that_gives_taken_names_away_is_refused(
    rig: Finishing, drive: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None here does: this one is made to, by a kernel that renames as ``mv -f`` would."""
    rig.put(CLIP, FOOTAGE)

    def replacing(source: bytes, target: bytes, *, dir_fd: int) -> None:
        os.rename(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(kernel, "rename_over_claim", replacing)
    with pytest.raises(LibraryFault, match="gives names away that are taken"):
        rig.ingest()
    assert os.listdir(rig.library) == []


# -- what arrives --------------------------------------------------------------------


def test_a_card_arrives_with_its_manifest_its_verdict_and_its_report(
    rig: Finishing, drive: FileSystem
) -> None:
    rig.put(CLIP, FOOTAGE, mtime_ns=1_700_000_001_123_456_789)  # no FAT keeps such a time
    rig.put("empty.LRV", b"")
    done = rig.taken_in()
    assert done["safe_to_format"] is True, done["verdict"]["reasons"]
    assert (rig.job / CLIP).read_bytes() == FOOTAGE
    assert all(Path(path).stat().st_size for path in done["reports"])
    again = rig.ingest(2)
    assert (again["copied_files"], again["known_files"]) == (0, 2)
    names = {os.path.basename(path) for path in rig.arrived()}
    assert not {name for name in names if name.endswith((b".part", b".take"))}


def test_names_that_it_can_t_hold_are_changed_and_named(rig: Finishing, drive: FileSystem) -> None:
    names = {b"10:30.LRV", b"caf\xe9.LRV", b"end.", b"CON.LRV", b"two\nlines.LRV"}
    for name in names:
        rig.put(b"DCIM/" + name, name)
    output = rig.ingest()
    assert output["copied_files"] == output["renamed"]["total"] == len(names)
    assert set(os.listdir(rig.job / "DCIM")) == {
        "10%3A30.LRV",
        "caf%E9.LRV",
        "end%2E",
        "%43ON.LRV",
        "two%0Alines.LRV",
    }
    assert set(rig.arrived().values()) == names


def test_names_that_differ_in_capitals_stand_beside_one_another(
    rig: Finishing, drive: FileSystem
) -> None:
    footage = {"DCIM/A.LRV": b"large", "DCIM/a.lrv": b"small", "dcim/A.lrv": b"elsewhere"}
    for path, content in footage.items():
        rig.put(path, content)
    output = rig.ingest()
    assert (output["copied_files"], output["renamed"]["total"]) == (3, 2)
    assert sorted(rig.arrived().values()) == sorted(footage.values())
    assert {os.path.basename(path).lower() for path in rig.arrived()} == {
        b"a.lrv",
        b"a%~2.lrv",
        b"a%~3.lrv",
    }


def test_clips_that_differ_in_capitals_share_a_folder_there_and_keep_apart(
    rig: Finishing, drive: FileSystem
) -> None:
    rig.layout = "{date}/{card}/{clip}"
    footage = {"100/Clip.MP4": b"large", "101/clip.mp4": b"small", "102/CLIP.MP4": b"third"}
    for path, content in footage.items():
        rig.put(f"DCIM/{path}", content)
    done = rig.manifest(rig.copied())
    assert sorted(rig.arrived_footage()) == sorted(footage.values())
    (folder,) = (
        path
        for path in (rig.library / "2026-11-22/A001").iterdir()
        if path.is_dir() and path.name != "ascmhl"
    )
    assert {name.lower() for name in os.listdir(folder)} == {
        "clip.mp4",
        "clip%~2.mp4",
        "clip%~3.mp4",
    }
    assert rig.judge(done)["safe_to_format"]


def test_a_folder_is_verified_repaired_and_sealed_there(
    rig: Finishing, drive: FileSystem, tmp_path: Path
) -> None:
    shelf, other = Shelf(rig.library / "shelf"), Shelf(tmp_path / "other")
    shelf.add_new("A/one.mov", "A/two.mov")
    for path in ("A/one.mov", "A/two.mov"):
        other.put(path, (shelf.root / path).read_bytes())
    (shelf.root / "A/one.mov").write_bytes(b"footage of A/one.mow")
    step = VerifyFolder(NoonClock(), [str(tmp_path)], [], Creator("cart-1", "Rushes", "0.1.0"))
    data = {"folder": str(shelf.root), "repair_from": str(other.root), "write": True}
    output = step(rig.context("verify_files", 1, data))
    assert (output["intact"], output["repaired_files"]) == (True, 1)
    (bad,) = output["put_aside"]
    assert Path(bad).read_bytes() == b"footage of A/one.mow"
    assert [generation.number for generation in shelf.read().generations] == [1, 2]


# -- what a crash leaves -------------------------------------------------------------


@pytest.mark.parametrize("step", ["saying so", "taking the name", "renaming"])
@pytest.mark.parametrize("content", [FOOTAGE, b""], ids=["file", "empty file"])
def test_killed_while_it_takes_its_name_a_file_arrives_at_the_next_attempt(
    rig: Finishing, drive: FileSystem, step: str, content: bytes
) -> None:
    rig.put(CLIP, content)
    data = rig.ready()
    killed_at(step, lambda: rig.copy(1, data))
    if content:
        found = rig.job / CLIP
        assert not found.exists() or found.stat().st_size == 0, "half a file under its name"
    assert rig.copy(1, data)["copied_files"] == 1
    assert rig.arrived() == {os.fsencode(f"{rig.job.name}/{CLIP}"): content}
    assert rig.judge(data)["safe_to_format"]


def test_killed_before_fat_s_driver_has_given_its_time_back_it_is_adopted_with_it(
    rig: Finishing,
) -> None:
    rig.put(CLIP, FOOTAGE)
    with mounted(FAT32, rig.library):
        data = rig.ready()
        killed_at("giving its time", lambda: rig.copy(1, data))
        assert (rig.job / CLIP).read_bytes() == FOOTAGE
        rig.copy(1, data)
        assert rig.judge(data)["safe_to_format"]
        assert len(rig.arrived()) == 1


def test_what_such_a_crash_left_goes_when_the_card_is_ingested_anew(
    rig: Finishing, drive: FileSystem
) -> None:
    rig.put(CLIP, FOOTAGE)
    data = rig.ready(1)
    killed_at("renaming", lambda: rig.copy(1, data))
    assert (rig.job / CLIP).stat().st_size == 0
    rig.live.clear()
    rig.ingest(2)
    assert list(rig.arrived().values()) == [FOOTAGE]


@pytest.mark.parametrize("content", [b"", b"somebody else's"])
def test_a_file_of_somebody_else_s_is_left_though_a_part_of_ours_lies_beside_it(
    rig: Finishing, drive: FileSystem, content: bytes
) -> None:
    rig.put(CLIP, FOOTAGE)
    data = rig.ready()
    there = rig.job / CLIP
    there.parent.mkdir(parents=True)
    there.write_bytes(content)
    there.with_name(f"{there.name}.01234567.part").write_bytes(FOOTAGE)
    rig.copy(1, data)
    assert there.read_bytes() == content
    assert sorted(rig.arrived().values()) == sorted([content, FOOTAGE])


def test_what_has_contents_is_never_taken_for_an_empty_claim(
    rig: Finishing, drive: FileSystem
) -> None:
    rig.put(CLIP, FOOTAGE)
    data = rig.ready()
    there = rig.job / CLIP
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody else's")
    there.with_name(f"{there.name}.01234567.take").write_bytes(FOOTAGE)
    rig.copy(1, data)
    assert there.read_bytes() == b"somebody else's"
    assert sorted(rig.arrived().values()) == sorted([b"somebody else's", FOOTAGE])


@pytest.mark.parametrize("step", ["taking the name", "renaming"])
def test_killed_while_a_manifest_takes_its_name_the_folder_s_history_stays_whole(
    rig: Finishing, drive: FileSystem, step: str
) -> None:
    shelf = Shelf(rig.library / "shelf")
    shelf.add_new("one.mov")
    file = shelf.hashed(shelf.put("two.mov"))
    killed_at(step, lambda: shelf.add([file]))
    assert set(shelf.read().files) == {b"one.mov"}
    shelf.add([file])
    assert set(shelf.read().files) == {b"one.mov", b"two.mov"}
    names = {*os.listdir(shelf.root / "ascmhl")}
    assert names == {CHAIN.decode(), *(manifest.name for manifest in shelf.manifests)}
