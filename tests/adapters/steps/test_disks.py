"""Whether a library's disk is there, with mounts as the test says; real ones are in tests/e2e."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.steps.faults import LibraryFault
from adapters.steps.library import Folder, Library, Standing
from adapters.steps.write_manifest import ManifestsMissing
from adapters.steps.write_report import ReportsMissing
from bootstrap import prepare_library
from tests.adapters.steps.finishing import Finishing

CLIP = "DCIM/100GOPRO/GX010001.MP4"
WORD = "rushes-destination"

Mounts = set[Path]


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    """Its library is ``mnt/raid/library``, its second destination ``mnt/shuttle``."""
    rig = Finishing(tmp_path)
    rig.library = tmp_path / "mnt" / "raid" / "library"
    rig.library.parent.mkdir(parents=True)
    rig.further.append(tmp_path / "mnt" / "shuttle")
    rig.put(CLIP)
    return rig


@pytest.fixture
def mounts(rig: Finishing, monkeypatch: pytest.MonkeyPatch) -> Mounts:
    """What is mounted, beside the root."""
    mounts = {rig.library.parent, *rig.further}

    def is_mount(path: bytes) -> bool:
        return path == b"/" or Path(os.fsdecode(path)) in mounts

    monkeypatch.setattr("os.path.ismount", is_mount)
    return mounts


@pytest.fixture
def library(rig: Finishing) -> Library:
    """The first one, used once."""
    library = Library(str(rig.library), rig.ledger)
    with library.open():
        return library


def is_away(library: Library) -> bool:
    """However one asks."""
    answers = {_opens(library.open), _opens(library.look)}
    assert len(answers) == 1
    return answers == {False}


def _opens(ask: Callable[[], Folder | None]) -> bool:
    try:
        folder = ask()
    except LibraryFault:
        return False
    assert folder is not None
    with folder:
        return True


def test_a_library_whose_disk_is_away_is_neither_opened_nor_made(
    mounts: Mounts, library: Library, rig: Finishing
) -> None:
    assert not is_away(library)
    mounts.remove(rig.library.parent)
    assert is_away(library)
    rig.library.rmdir()
    assert is_away(library)
    assert not rig.library.exists()
    with Standing(library) as standing, pytest.raises(LibraryFault, match="is not mounted"):
        standing.holds(b"a", 1)
    mounts.add(rig.library.parent)
    assert not is_away(library)


def test_what_is_away_is_named_with_what_can_be_done(
    mounts: Mounts, library: Library, rig: Finishing
) -> None:
    mounts.clear()
    with pytest.raises(LibraryFault) as fault:
        library.open()
    assert str(fault.value) == (
        f"{rig.library.parent} is not mounted, and the library {rig.library} was on a disk "
        "there; is it connected? (If it is to lie there without that disk from now on: make an "
        f"empty file {WORD} in {rig.library}, and try again)"
    )


def test_a_library_on_the_systems_own_disk_stays_there(
    mounts: Mounts, rig: Finishing, tmp_path: Path
) -> None:
    library = Library(str(tmp_path / "home"), rig.ledger)
    assert not is_away(library)
    mounts.clear()
    assert not is_away(library)


def test_a_disk_that_is_mounted_later_is_the_librarys_from_then_on(
    mounts: Mounts, library: Library, rig: Finishing
) -> None:
    mounts.add(rig.library)
    assert not is_away(library)
    mounts.remove(rig.library)
    assert is_away(library)


def test_what_was_never_there_is_on_no_disk_yet(mounts: Mounts, rig: Finishing) -> None:
    mounts.clear()
    library = Library(str(rig.library), rig.ledger)
    assert library.look() is None
    assert rig.ledger.mount_point(library.root) is None
    mounts.add(rig.library.parent)
    assert not is_away(library)
    mounts.clear()
    assert is_away(library)


def test_a_mount_nearer_to_the_root_is_not_the_disk(
    mounts: Mounts, library: Library, rig: Finishing
) -> None:
    mounts.clear()
    mounts.add(rig.library.parent.parent)
    assert is_away(library)


def test_a_link_that_leads_elsewhere_has_moved_the_library(
    mounts: Mounts, rig: Finishing, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    rig.library.mkdir()
    link.symlink_to(rig.library)
    library = Library(str(link), rig.ledger)
    assert not is_away(library)
    mounts.clear()
    assert is_away(library)
    link.unlink()
    (tmp_path / "new").mkdir()
    link.symlink_to(tmp_path / "new")
    assert not is_away(library)


def test_somebodys_word_holds_for_what_is_there_now(
    mounts: Mounts, library: Library, rig: Finishing
) -> None:
    mounts.clear()
    (rig.library / WORD).touch()
    assert not is_away(library)
    assert not (rig.library / WORD).exists()
    mounts.add(rig.library.parent)
    assert not is_away(library)
    mounts.clear()
    assert is_away(library)


def test_a_word_that_stays_is_refused(mounts: Mounts, library: Library, rig: Finishing) -> None:
    mounts.clear()
    (rig.library / WORD).mkdir()
    with pytest.raises(LibraryFault, match=f"{WORD} can't be taken from the library"):
        library.look()


def test_a_word_that_nobody_needs_is_left_alone(
    mounts: Mounts, library: Library, rig: Finishing
) -> None:
    (rig.library / WORD).touch()
    assert not is_away(library)
    assert (rig.library / WORD).exists()


def test_all_disks_that_are_away_are_named_and_nothing_is_copied(
    mounts: Mounts, rig: Finishing
) -> None:
    rig.taken_in()
    before = sorted(rig.library.parent.parent.rglob("*"))
    places = [rig.library.parent, *rig.further]
    mounts.clear()
    rig.put("DCIM/100GOPRO/GX010002.MP4")
    with pytest.raises(LibraryFault) as fault:
        rig.copied(2)
    assert all(f"{place} is not mounted" in str(fault.value) for place in places)
    assert sorted(rig.library.parent.parent.rglob("*")) == before


def test_a_disk_that_goes_after_the_copy_gets_no_manifest_no_report_and_no_verdict(
    mounts: Mounts, rig: Finishing
) -> None:
    data = rig.copied()
    (shuttle,) = rig.further
    mounts.remove(shuttle)
    before = sorted(shuttle.rglob("*"))
    with pytest.raises(ManifestsMissing, match=f"{shuttle} is not mounted"):
        rig.manifest(data)
    judged = rig.judge(data)
    assert not judged["safe_to_format"]
    assert f"{shuttle} is not mounted" in judged["verdict"]["reasons"][0]
    with pytest.raises(ReportsMissing, match=f"{shuttle} is not mounted"):
        rig.report(judged)
    assert sorted(shuttle.rglob("*")) == before
    mounts.add(shuttle)
    assert rig.judge(data)["safe_to_format"]


def test_a_server_that_starts_makes_a_library_at_home_but_not_that_of_a_disk_that_is_away(
    mounts: Mounts, rig: Finishing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_library(rig.library, rig.ledger)
    with Library(str(rig.library), rig.ledger).open():
        pass
    rig.library.rmdir()
    prepare_library(rig.library, rig.ledger)
    assert rig.library.is_dir()
    rig.library.rmdir()
    mounts.clear()
    prepare_library(rig.library, rig.ledger)
    assert not rig.library.exists()
