"""Reading what is mounted, from scripted tables and from the machine's own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from adapters.detector.mounts import (
    CHECK_S,
    POLL_S,
    CardPlaces,
    LinuxMounts,
    Mount,
    MountTable,
    PolledMounts,
)
from tests.adapters.detector.mounting import Mounts

NAMES = {
    "a newline": b"two\nlines",
    "no UTF-8": b"caf\xe9",
    "255 bytes": b"n" * 255,
    "blanks and a tab": b"NO NAME\t1",
    "a backslash and digits": b"back\\040slash",
    "a hash": b"#1",
    "a terminal code": b"\x1b[31mred",
    "what separates fields": b"a - vfat none rw",
}


def everything_below(root: Path) -> CardPlaces:
    return CardPlaces(card_roots=[], watch_roots=[str(root)], kept_out=[])


def scripted(tmp_path: Path, *lines: bytes) -> LinuxMounts:
    table = tmp_path / "mountinfo"
    table.write_bytes(b"".join(line + b"\n" for line in lines))
    places = CardPlaces(card_roots=["/media"], watch_roots=[], kept_out=[])
    return LinuxMounts(places, str(table))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"nothing of the kind",
        b"36 35 8:1 / /media/A rw",
        b"36 35 8:1 / /media/A rw vfat /dev/sdb1 rw",
        b"x 35 8:1 / /media/A rw - vfat /dev/sdb1 rw",
        b"36 35 8 / /media/A rw - vfat /dev/sdb1 rw",
        b"36 35 8:x / /media/A rw - vfat /dev/sdb1 rw",
        b"36 - vfat",
    ],
)
def test_a_line_that_makes_no_sense_is_left_out(tmp_path: Path, line: bytes) -> None:
    good = b"37 35 8:17 / /media/B rw - vfat /dev/sdb1 rw"
    assert [mount.path for mount in scripted(tmp_path, line, good).mounts()] == ["/media/B"]


def test_a_line_of_the_table_is_read(tmp_path: Path) -> None:
    line = rb"37 35 8:17 / /media/me/NO\040NAME rw,nosuid shared:9 master:1 - vfat /dev/sdb1 rw"
    (mount,) = scripted(tmp_path, line).mounts()
    assert mount.path == "/media/me/NO NAME"
    assert mount.device == "/dev/sdb1"
    assert mount.number == os.makedev(8, 17)
    assert mount.fs_type == "vfat"


def test_a_table_that_tells_of_no_change_is_read_often(tmp_path: Path) -> None:
    silent = scripted(tmp_path)
    assert silent.read_every_s == POLL_S
    if sys.platform == "linux":
        assert LinuxMounts(everything_below(tmp_path)).read_every_s == CHECK_S


def test_what_is_mounted_over_something_hides_it(tmp_path: Path) -> None:
    below = b"37 35 8:17 / /media/A rw - vfat /dev/sdb1 rw"
    above = b"38 37 8:33 / /media/A rw - exfat /dev/sdc1 rw"
    assert [mount.device for mount in scripted(tmp_path, below, above).mounts()] == ["/dev/sdc1"]


def test_a_card_that_is_bound_to_a_second_place_is_one_card(tmp_path: Path) -> None:
    card = b"37 35 8:17 / /media/A rw - vfat /dev/sdb1 rw"
    again = b"38 35 8:17 / /media/B rw - vfat /dev/sdb1 rw"
    part = b"39 35 8:33 /DCIM /media/C rw - vfat /dev/sdc1 rw"
    assert [mount.path for mount in scripted(tmp_path, card, again, part).mounts()] == ["/media/A"]


def test_without_a_lasting_number_a_mounting_is_known_while_it_is_seen(tmp_path: Path) -> None:
    line = b"37 35 8:17 / /media/no-such-place rw - vfat /dev/sdb1 rw"
    table = scripted(tmp_path, line)
    first, again = table.mounts(), table.mounts()
    assert [mount.key for mount in first] == [mount.key for mount in again]
    (tmp_path / "mountinfo").write_bytes(b"")
    assert not table.mounts()
    (tmp_path / "mountinfo").write_bytes(line + b"\n")
    assert [mount.key for mount in table.mounts()] != [mount.key for mount in first]


@pytest.mark.parametrize(
    ("path", "fs_type", "removable", "is_card"),
    [
        ("/media/me/A", "vfat", False, True),
        ("/media/me/A", "exfat", False, True),
        ("/media/me/A", "fuseblk", False, True),
        ("/media/me/A", "ext4", False, False),  # a disk of the system's
        ("/media/me/A", "nfs4", False, False),
        ("/media/me/A", "tmpfs", False, False),
        ("/media", "vfat", False, False),
        ("/mediation/A", "vfat", False, False),
        ("/boot/efi", "vfat", False, False),
        ("/", "vfat", False, False),
        ("/media/me/.snapshots/A", "apfs", False, False),
        ("/shuttles/A", "ext4", False, True),
        ("/shuttles/A", "tmpfs", False, True),
        ("/shuttles", "ext4", False, False),
        ("E:\\", "exfat", True, True),
        ("/media/me/RAID", "exfat", False, False),  # holds the library
        ("/shuttles/library", "ext4", False, False),
        ("/shuttles/library/2026", "ext4", False, False),
        ("/shuttles/library-2", "ext4", False, True),
    ],
)
def test_what_may_be_a_card(path: str, fs_type: str, removable: bool, is_card: bool) -> None:
    places = CardPlaces(
        card_roots=["/media"],
        watch_roots=["/shuttles"],
        kept_out=["/media/me/RAID/Rushes", "/shuttles/library", "/home/me/rushes.db"],
    )
    assert places(path, fs_type, removable) is is_card


def test_a_root_that_is_a_link_is_looked_below_as_well(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/media")
    places = CardPlaces(card_roots=[str(tmp_path / "link")], watch_roots=[], kept_out=[])
    assert places("/media/A", "vfat", False)


def tables(root: Path) -> list[MountTable]:
    wanted = everything_below(root)
    return [PolledMounts(wanted), *([LinuxMounts(wanted)] if sys.platform == "linux" else [])]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_real_mount_is_found_whatever_its_name_is(mounts: Mounts, name: bytes) -> None:
    path = mounts.put(name)
    for table in tables(mounts.root):
        (found,) = table.mounts()
        assert os.fsencode(found.path) == os.fsencode(path)
        assert found.fs_type == "tmpfs"
        table.close()


def test_a_mount_that_comes_back_is_another_mounting(mounts: Mounts) -> None:
    for table in tables(mounts.root):
        path = mounts.put("A")
        (first,) = table.mounts()
        assert table.mounts() == [first]
        mounts.take("A")
        assert not table.mounts()
        assert mounts.put("A") == path
        (second,) = table.mounts()
        assert second.key != first.key
        mounts.take("A")
        table.close()


def kernel_numbers_mounts(mounts: Mounts) -> None:
    table = LinuxMounts(everything_below(mounts.root))
    mounts.put("A")
    (mount,) = table.mounts()
    mounts.take("A")
    table.close()
    if mount.key.startswith("seen:"):
        pytest.skip("this kernel gives numbers of mounts again")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own table")
def test_another_process_knows_the_same_mounting_and_no_other(mounts: Mounts) -> None:
    """Although the system gives device, number and path of the last one to the next."""
    kernel_numbers_mounts(mounts)
    seen: list[Mount] = []
    for _ in range(2):
        mounts.put("A")
        (mount,) = LinuxMounts(everything_below(mounts.root)).mounts()
        assert LinuxMounts(everything_below(mounts.root)).mounts() == [mount]
        seen.append(mount)
        mounts.take("A")
    assert seen[0].number == seen[1].number
    assert seen[0].key != seen[1].key


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own table")
def test_a_change_of_the_table_is_told(mounts: Mounts) -> None:
    table = LinuxMounts(everything_below(mounts.root))

    def told(timeout_s: float) -> bool:
        return bool(select.select([table.fileno()], [], [], timeout_s)[0])

    while told(0):  # whatever else is mounted on this machine just now
        pass
    mounts.put("A")
    assert told(30)
    mounts.take("A")
    assert told(30)
    table.close()


# -- macOS and Windows, by what psutil has of them -------------------------------------------


class Part(NamedTuple):
    """As psutil's ``sdiskpart``."""

    device: str
    mountpoint: str
    fstype: str
    opts: str


MACOS = (
    Part("/dev/disk3s1s1", "/", "apfs", "ro,local,rootfs,dovolfs,journaled,multilabel"),
    Part("devfs", "/dev", "devfs", "rw,local,dontbrowse,multilabel"),
    Part("/dev/disk3s6", "/System/Volumes/VM", "apfs", "rw,noexec,local,dovolfs,dontbrowse"),
    Part("/dev/disk3s5", "/System/Volumes/Data", "apfs", "rw,local,dovolfs,dontbrowse"),
    Part("map auto_home", "/System/Volumes/Data/home", "autofs", "rw,dontbrowse,automounted"),
    Part("com.apple.TimeMachine@/dev/disk5s1", "/Volumes/.timemachine/7/a", "apfs", "ro,local"),
    Part("//me@nas/Footage", "/Volumes/Footage", "smbfs", "rw,nosuid,nodev"),
)
"""As ``mount`` tells it there, with psutil's words for the flags."""

WINDOWS = (
    Part("C:\\", "C:\\", "NTFS", "rw,fixed"),
    Part("C:\\", "C:\\Mounted\\Archive\\", "NTFS", "rw"),
    Part("D:\\", "D:\\", "", "cdrom"),
    Part("E:\\", "E:\\", "", "removable"),  # a reader's slot with nothing in it
)
"""As psutil makes it of GetLogicalDriveStrings, GetDriveType and GetVolumeInformation."""


class Polled:
    """A table that a test changes between two looks."""

    def __init__(self, card_root: str, always: Sequence[Part]) -> None:
        places = CardPlaces(card_roots=[card_root], watch_roots=[], kept_out=[])
        self.table = PolledMounts(places, lambda: [*always, *self.cards])
        self.cards: list[Part] = []

    def look(self, *cards: Part) -> Sequence[Mount]:
        self.cards = list(cards)
        return self.table.mounts()


@pytest.mark.parametrize(
    "card",
    [
        Part("/dev/disk4s1", "/Volumes/GOPRO-A", "exfat", "rw,nosuid,local,noowners,noatime"),
        Part("/dev/disk4s1", "/Volumes/NO NAME 1", "msdos", "rw,nosuid,local,noowners"),
        Part("/dev/disk4s1", "/Volumes/LOCKED", "exfat", "ro,nosuid,local,noowners"),
        Part("msdos://disk4s1/EOS_DIGITAL", "/Volumes/EOS_DIGITAL", "msdos", "rw,nosuid,fskit"),
        Part("/dev/disk6s2", "/Volumes/A001R2EC", "hfs", "rw,nosuid,local,journaled"),
        Part("/dev/disk6s1", "/Volumes/AVID", "udf", "ro,nosuid,local"),
    ],
    ids=lambda card: str(card.mountpoint),
)
def test_on_macos_a_card_is_what_comes_below_volumes(card: Part) -> None:
    polled = Polled("/Volumes", MACOS)
    assert polled.look() == []
    (mount,) = polled.look(card)
    assert (mount.path, mount.device) == (card.mountpoint, card.device)
    assert (mount.fs_type, mount.number) == (card.fstype, None)
    assert polled.look(card) == [mount]
    assert polled.look() == []
    (again,) = polled.look(card)
    assert again.key != mount.key


def test_on_windows_a_card_is_what_comes_into_a_removable_drive() -> None:
    polled = Polled("D:\\cards", WINDOWS)
    assert polled.look() == [], "an empty slot was taken for a card"
    slot = WINDOWS[-1]
    locked = Part("F:\\", "F:\\", "FAT32", "ro,removable")
    packed = Part("G:\\", "G:\\", "NTFS", "rw,compressed,removable")
    (first,) = polled.look(slot._replace(fstype="exFAT", opts="rw,removable"))
    assert (first.path, first.fs_type) == ("E:\\", "exfat")
    assert [mount.path for mount in polled.look(locked, packed)] == ["F:\\", "G:\\"]
    (second,) = polled.look(slot._replace(fstype="exFAT", opts="rw,removable"))
    assert second.key != first.key


def test_on_windows_another_file_system_in_the_same_slot_is_another_card() -> None:
    polled = Polled("D:\\cards", WINDOWS)
    (first,) = polled.look(Part("E:\\", "E:\\", "exFAT", "rw,removable"))
    (second,) = polled.look(Part("E:\\", "E:\\", "FAT32", "rw,removable"))
    assert second.key != first.key


def test_the_room_needs_nothing_that_windows_lacks() -> None:
    script = "import sys; sys.modules['fcntl'] = None; import adapters.detector.__main__"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ})
