"""What a look at a mounted card finds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.detector.mounts import CardPlaces, LinuxMounts, Mount
from adapters.detector.volume import NotMounted, look
from tests.adapters.detector.mounting import Mounts
from tests.filesystems import with_subvolume


def the_mount(mounts: Mounts) -> Mount:
    return the_mount_at(mounts.root)


def the_mount_at(root: Path) -> Mount:
    """The only one that is strictly below."""
    places = CardPlaces(card_roots=[], watch_roots=[str(root)], kept_out=[])
    table = LinuxMounts(places)
    (mount,) = table.mounts()
    table.close()
    return mount


def test_a_mount_that_has_gone_is_not_taken_for_what_is_at_its_path(mounts: Mounts) -> None:
    mounts.put("A")
    mount = the_mount(mounts)
    mounts.take("A")
    (mounts.root / "A" / "DCIM").mkdir()
    with pytest.raises(NotMounted):
        look(mount)
    (mounts.root / "A" / "DCIM").rmdir()
    (mounts.root / "A").rmdir()
    with pytest.raises(FileNotFoundError):
        look(mount)
    (mounts.root / "A").symlink_to("/etc")
    for number in (mount.number, None):  # None: where the system doesn't say
        with pytest.raises(OSError):
            look(replace(mount, number=number))


def test_two_looks_are_equal_until_something_changes(mounts: Mounts) -> None:
    card = mounts.put("A")
    mount = the_mount(mounts)
    states = [look(mount).state]

    def differs() -> None:
        states.append(look(mount).state)
        assert states[-1] == look(mount).state
        assert len(set(states)) == len(states)

    (card / "DCIM").mkdir()
    differs()
    (card / "A.MP4").write_bytes(b"x")
    differs()
    (card / "A.MP4").write_bytes(b"xy")
    differs()
    (card / "DCIM" / "B.MP4").write_bytes(b"x")
    differs()
    (card / "DCIM" / "B.MP4").write_bytes(bytes(1_000_000))  # shows in the free room only
    differs()
    os.utime(card / "A.MP4", (1, 1))
    differs()


def test_what_operating_systems_leave_behind_makes_no_card(mounts: Mounts) -> None:
    card = mounts.put("A")
    mount = the_mount(mounts)
    assert look(mount).empty
    (card / ".Trashes").mkdir()
    (card / "System Volume Information").mkdir()
    assert look(mount).empty
    (card / "DCIM").mkdir()
    assert not look(mount).empty


def test_a_look_leaves_no_trace_on_the_card(mounts: Mounts) -> None:
    card = mounts.put("A")
    (card / "DCIM").mkdir()
    subprocess.run(["mount", "-o", "remount,strictatime", str(card)], check=True)
    os.utime(card, (1, 1))
    look(the_mount(mounts))
    assert card.stat().st_atime == 1


def test_facts_without_names_of_the_system_are_told_all_the_same(mounts: Mounts) -> None:
    mounts.put(b"caf\xe9\n1")
    facts = look(the_mount(mounts)).facts
    assert facts["label"] == "caf\\xe9\\x0a1"
    assert facts["uuid"] is None
    assert facts["fs_type"] == "tmpfs"
    assert facts["size_bytes"] == 16 * 1024 * 1024
    assert 0 < facts["free_bytes"] <= facts["size_bytes"]


def test_a_subvolume_has_another_device_number_than_the_mount_table_says(tmp_path: Path) -> None:
    root = tmp_path / "cards"
    with with_subvolume(root / "disk", "day2"):
        (root / "disk" / "day2" / "A001").mkdir()
        found = []
        for mount in (the_mount_at(root), replace(the_mount_at(root), number=os.makedev(0, 9_999))):
            found.append(look(mount))
            with pytest.raises(NotMounted):
                look(replace(mount, number=os.makedev(0, 9_999), mount_id=1))
            with pytest.raises(NotMounted):  # of a disk the number is its own
                look(replace(mount, number=os.makedev(8, 1)))
        assert found[0] == found[1]
        assert (found[0].empty, found[0].facts["fs_type"]) == (False, "btrfs")


@pytest.fixture
def disk(mounts: Mounts, tmp_path: Path) -> Iterator[str]:
    """A loop device with a file system on it, mounted as A."""
    if not (shutil.which("mkfs.ext4") and shutil.which("losetup")):
        pytest.skip("nothing here makes file systems")
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 8 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    made = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("this user may not make loop devices")
    device = made.stdout.strip()
    try:
        mounts.put("A", kind="ext4", device=device)
        yield device
        mounts.take("A")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_disk_is_told_by_what_the_system_calls_it(
    mounts: Mounts, disk: str, tmp_path: Path
) -> None:
    for folder, name in (("by-uuid", "1AF3-00C2"), ("by-label", "NO\\x20NAME\\x0a")):
        (tmp_path / "disks" / folder).mkdir(parents=True)
        (tmp_path / "disks" / folder / name).symlink_to(disk)
        (tmp_path / "disks" / folder / "0-dangling").symlink_to("/dev/no-such-disk")
        (tmp_path / "disks" / folder / "0-other").symlink_to("/dev/null")
    facts = look(the_mount(mounts), str(tmp_path / "disks")).facts
    assert facts["uuid"] == "1AF3-00C2"
    assert facts["label"] == "NO NAME\\x0a"
    assert facts["device"] == disk
