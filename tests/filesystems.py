"""Real file systems for tests, each on an image of its own, and nothing of them left behind.

Cards are exFAT and FAT, and disks of other people's may be NTFS and take ``A`` and ``a``
for one name; none of that can be shown on the disk that tests happen to run on. Where the
kernel doesn't know them, FUSE drivers do; they come with Debian's packages (``PACKAGES``),
which ``python -m tests.filesystems`` installs if it may.

Where a file system can't be had, the tests that need it are skipped, counted, and say why.
With ``RUSHES_SKIP_NOTHING`` set that is a failure instead.

A mount is undone by a guard, a process of its own that waits for the end of its input.
It ends when the test says so, and just as well when the test's process is killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGES = {
    "mkfs.exfat": "exfatprogs",
    "mount.exfat-fuse": "exfat-fuse",
    "mkfs.vfat": "dosfstools",
    "fusefat": "fusefat",
    "mkntfs": "ntfs-3g",
    "lowntfs-3g": "ntfs-3g",
    "fusermount3": "fuse3",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "btrfs": "btrfs-progs",
    "losetup": "mount",
    "ip": "iproute2",
}

DEADLINE_S = 10.0

INSTALL_S = 90.0
"""A mirror that hasn't answered by then isn't going to."""

MEBIBYTE = 1024 * 1024

_GUARD = """
cat > /dev/null
umount "$1" 2> /dev/null || umount --lazy "$1" 2> /dev/null
if [ -n "$2" ]; then losetup --detach "$2" 2> /dev/null; fi
exit 0
"""


@dataclass(frozen=True)
class FileSystem:
    """format and mount: commands, with ``{device}`` and ``{folder}`` filled in.

    loop: whether the driver wants a block device, or takes the image as it is.
    foreground: the driver stays our child until it is unmounted and everything is in the image.
    needs_fuse: whether it is no file system of the kernel's.
    """

    name: str
    format: tuple[str, ...]
    mount: tuple[str, ...]
    loop: bool = False
    foreground: bool = False
    needs_fuse: bool = True

    @property
    def commands(self) -> tuple[str, ...]:
        loop = ("losetup",) if self.loop else ()
        fuse = ("fusermount3",) if self.needs_fuse else ()
        return (*self.format[:1], *self.mount[:1], *loop, *fuse)


EXFAT = FileSystem(
    "exfat",
    ("mkfs.exfat", "-L", "A001", "{device}"),
    ("mount.exfat-fuse", "-d", "{device}", "{folder}"),
    loop=True,
    foreground=True,
)
FAT32 = FileSystem(
    "fat32",
    ("mkfs.vfat", "-F", "32", "{device}"),
    ("fusefat", "-f", "-o", "rw+", "{device}", "{folder}"),
    foreground=True,
)
NTFS_IGNORING_CASE = FileSystem(
    "ntfs",
    ("mkntfs", "-F", "-q", "-f", "-L", "A001", "{device}"),
    ("lowntfs-3g", "-o", "no_detach,ignore_case", "{device}", "{folder}"),
    foreground=True,
)
EXT4 = FileSystem(
    "ext4",
    ("mkfs.ext4", "-q", "-m", "0", "{device}"),
    ("mount", "-t", "ext4", "{device}", "{folder}"),
    loop=True,
    needs_fuse=False,
)
TMPFS = FileSystem(
    "tmpfs",
    (),
    ("mount", "-t", "tmpfs", "-o", "size={size_bytes}", "none", "{folder}"),
    needs_fuse=False,
)
BTRFS = FileSystem(
    "btrfs",
    ("mkfs.btrfs", "-q", "{device}"),
    ("mount", "-t", "btrfs", "{device}", "{folder}"),
    loop=True,
    needs_fuse=False,
)
ALL = (EXFAT, FAT32, NTFS_IGNORING_CASE, EXT4, TMPFS)

_LEAST_BYTES = {"fat32": 40 * MEBIBYTE, "btrfs": 120 * MEBIBYTE}
"""FAT with fewer clusters than this has would be FAT16, and btrfs takes no smaller disk."""


def nothing_may_be_skipped() -> bool:
    return os.environ.get("RUSHES_SKIP_NOTHING", "").lower() not in ("", "0", "false")


def require(*commands: str, fuse: bool) -> None:
    """Skip the test, or fail it where nothing may be skipped, if these can't be had here."""
    lacking = sorted({PACKAGES.get(each, each) for each in commands if _which(each) is None})
    why = ""
    if os.geteuid() != 0:
        why = "only root may mount a file system here"
    elif fuse and not _opens("/dev/fuse"):
        why = "there is no FUSE here: /dev/fuse can't be opened"
    elif lacking:
        why = f"not installed: {', '.join(lacking)} (python -m tests.filesystems installs them)"
    elif not _may_mount():
        why = "mounting is not allowed here"
    elif "losetup" in commands and not _has_loop_devices():
        why = "there is no free loop device here"
    if why:
        unavailable(why)


@cache
def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False
        )
        if mount.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return mount.returncode == 0


@cache
def _has_loop_devices() -> bool:
    return subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode == 0


def unavailable(why: str) -> None:
    if nothing_may_be_skipped():
        pytest.fail(f"{why}; and nothing may be skipped")
    pytest.skip(why)


class Mount:
    """A file system on an image, mounted at ``folder``; it can be taken out and put in again."""

    def __init__(self, kind: FileSystem, image: Path) -> None:
        self.kind = kind
        self._image = image
        self.folder = Path()
        self.device = ""
        self._guard: subprocess.Popen[bytes] | None = None
        self._driver: subprocess.Popen[bytes] | None = None

    def put_in(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        """environment: what the driver sees beside our own, as ``TZ``."""
        assert self._guard is None, f"{self.kind.name} is mounted at {self.folder} already"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.device = str(self._image)
        if self.kind.loop:
            find = ["losetup", "--find", "--show", self.device]
            self.device = subprocess.run(
                find, check=True, capture_output=True, text=True
            ).stdout.strip()
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", str(folder), self.device if self.kind.loop else ""],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._mount({**os.environ, **(environment or {})})
        except BaseException:
            self.take_out()
            raise

    def _mount(self, environment: Mapping[str, str]) -> None:
        command = _filled(self.kind.mount, self._image, self.device, self.folder)
        log = self._image.with_suffix(".log")
        with log.open("wb") as output:
            self._driver = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if not self.kind.foreground:
            assert self._driver.wait(DEADLINE_S) == 0, f"{command}: {log.read_text()}"
            self._driver = None
        deadline = time.monotonic() + DEADLINE_S
        while not os.path.ismount(self.folder):
            gone = self._driver is not None and self._driver.poll() is not None
            assert not gone, f"{command}: {log.read_text()}"
            assert time.monotonic() < deadline, f"{command} mounted nothing: {log.read_text()}"
            time.sleep(0.002)

    def pull(self) -> None:
        """As a hand would: what drives it is gone in the middle of it, and then the mount is."""
        assert self._driver is not None, f"{self.kind.name} is the kernel's: it can't be pulled"
        self._driver.kill()
        self._driver.wait(DEADLINE_S)
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        self.take_out()

    def take_out(self) -> None:
        """Unmount, with everything in the image."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(DEADLINE_S)
        self._guard = None
        if self._driver is not None:
            self._driver.wait(DEADLINE_S)
            self._driver = None


@contextmanager
def formatted(kind: FileSystem, place: Path, size_bytes: int = 40 * MEBIBYTE) -> Iterator[Mount]:
    """A new, empty one with its image in ``place``, not mounted yet."""
    require(*kind.commands, fuse=kind.needs_fuse)
    place.mkdir(parents=True, exist_ok=True)
    image = place / f"{kind.name}.img"
    with image.open("xb") as file:
        file.truncate(max(size_bytes, _LEAST_BYTES.get(kind.name, 0)))
    if kind.format:
        command = _filled(kind.format, image, str(image), place)
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, f"{command}: {made.stdout}{made.stderr}"
    mount = Mount(kind, image)
    try:
        yield mount
    finally:
        mount.take_out()
        image.unlink()


@contextmanager
def mounted(kind: FileSystem, folder: Path, size_bytes: int = 40 * MEBIBYTE) -> Iterator[Mount]:
    """The same, at ``folder``; the image is beside it."""
    with formatted(kind, folder.parent / f"{folder.name}.image", size_bytes) as mount:
        mount.put_in(folder)
        yield mount


@contextmanager
def with_subvolume(folder: Path, name: str) -> Iterator[Mount]:
    """A btrfs at ``folder``; what is in its folder ``name`` has a device number of its own."""
    require("btrfs", fuse=False)
    modprobe = _which("modprobe")
    if modprobe is not None:
        subprocess.run([modprobe, "--quiet", "btrfs"], check=False)
    if "btrfs" not in Path("/proc/filesystems").read_text():
        unavailable("this kernel knows no btrfs")
    with mounted(BTRFS, folder) as mount:
        create = ["btrfs", "--quiet", "subvolume", "create", str(folder / name)]
        subprocess.run(create, check=True)
        yield mount


def _filled(command: tuple[str, ...], image: Path, device: str, folder: Path) -> list[str]:
    filled = [
        part.format(device=device, folder=folder, size_bytes=image.stat().st_size)
        for part in command
    ]
    return [_which(filled[0]) or filled[0], *filled[1:]]


def _which(command: str) -> str | None:
    # A user's PATH may lack the folders of the administrator.
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def main() -> int:
    """Install what is lacking, where that is possible; what isn't there is told of, no failure."""
    lacking = sorted({package for name, package in PACKAGES.items() if _which(name) is None})
    if not lacking:
        return 0
    if os.geteuid() != 0 or _which("apt-get") is None:
        print(
            "Tests on real file systems will be skipped; they need, as root, these packages: "
            + " ".join(lacking)
        )
        return 0
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *lacking]
    for command in (["apt-get", "update", "--quiet"], install):
        try:
            done = subprocess.run(
                command,
                env=quiet,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=INSTALL_S,
            )
            error = done.stderr.strip() if done.returncode != 0 else ""
        except subprocess.TimeoutExpired:
            error = f"nothing came of it within {INSTALL_S:g} s"
        if error:
            print(f"{' '.join(command)} failed, so tests on real file systems can't all run:")
            print(error)
            return 0
    print(f"installed for the tests on real file systems: {' '.join(lacking)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
