"""What is mounted within a card, and what only looks as if it were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters.steps.cards import is_mounted
from adapters.steps.faults import CardNotThere, FilesMissing
from adapters.system import mount_id_of
from domain.footage import FileKind
from tests.adapters.steps.finishing import Finishing
from tests.filesystems import TMPFS, formatted, mounted, with_subvolume


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    return Finishing(tmp_path)


def test_a_subvolume_is_part_of_the_card_and_a_mount_is_not(rig: Finishing, tmp_path: Path) -> None:
    with with_subvolume(rig.card, "day2"), formatted(TMPFS, tmp_path / "image") as mount:
        mount.put_in(rig.card / "day2" / "other")
        rig.put("A001/clip1.jpg", b"one")
        rig.put("day2/A001/clip2.jpg", b"two")
        rig.put("day2/other/clip3.jpg", b"three")
        data = rig.taken_in()
        assert sorted(rig.arrived_footage()) == [b"one", b"two"]
        assert data["excluded_named"] == {"special": ["day2/other"]}
        (left_out,) = data["exceptions"]["named"]
        assert "another file system is mounted there" in left_out["problem"]
        assert data["safe_to_format"]


def test_a_subvolume_is_no_mount_unless_it_is_mounted(rig: Finishing) -> None:
    with with_subvolume(rig.card, "day2"):
        for folder, wanted in ((rig.card, True), (rig.card / "day2", False)):
            fd = os.open(folder, os.O_RDONLY)
            assert is_mounted(fd) is wanted
            os.close(fd)
        rig.put("day2/clip.jpg")
        with rig.cards.open(str(rig.card / "day2")) as card:
            # The next subvolume may get its number, and each one's root has the same inode.
            then = card.fingerprint()
            assert card.is_as(then)
        rig.put("day2/another.jpg")
        with rig.cards.open(str(rig.card / "day2")) as card:
            assert not card.is_as(then)


def test_what_may_be_mounted_or_not_is_never_left_out_silently(
    rig: Finishing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older kernel doesn't tell of mounts."""
    monkeypatch.setattr("adapters.steps.cards.mount_id_of", lambda *where: None)
    with formatted(TMPFS, tmp_path / "image") as mount:
        mount.put_in(rig.card / "day2")
        rig.put("clip1.jpg", b"one")
        rig.put("day2/clip2.jpg", b"two")
        (rig.card / "link").symlink_to("day2")
        data = rig.ready()
        assert data["by_kind"]["unreadable"]["files"] == 1
        with pytest.raises(FilesMissing, match=r"1 of 2 files could not be copied .*day2"):
            rig.copy(1, data)
    kinds = {file.path: file.kind for file in rig.card_files.of(1)}
    assert kinds[b"day2"] is FileKind.UNREADABLE
    assert kinds[b"link"] is FileKind.LINK


def test_a_card_without_a_serial_number_is_there_as_long_as_it_is_mounted(rig: Finishing) -> None:
    data = {"sd_path": str(rig.card), "volume": {"uuid": None, "fs_type": "tmpfs"}}
    with mounted(TMPFS, rig.card):
        rig.put("clip.jpg")
        assert rig.scanner()(rig.context("scan_sd", 1, data))["file_count"] == 1
    with pytest.raises(CardNotThere, match="nothing is mounted at"):
        rig.scanner()(rig.context("scan_sd", 1, data))


def test_mounts_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        here = mount_id_of(b"", fd)
        if here is None:
            pytest.skip("this kernel doesn't tell of mounts")
        assert mount_id_of(b"folder", fd) == mount_id_of(str(tmp_path)) == here
        assert mount_id_of("/proc") != here
        assert mount_id_of(b"nothing", fd) is None
        with mounted(TMPFS, tmp_path / "folder"):
            assert mount_id_of(b"folder", fd) not in (here, None)
    finally:
        os.close(fd)
