"""What is mounted on this machine, and which of it may be a card.

Linux tells by itself when its mount table changes: a poll of ``/proc/self/mountinfo``
wakes then, whoever has mounted what, and in the mount namespace that we see. That is
later than udev's word that a device is there, and it is the moment that counts: before
it nothing can be read. Elsewhere the table is read again and again.

A mounting is known by its key. The kernel gives the number of a mount that has gone to
the next one, and the next card in a reader often gets the last one's device and path
too, so none of these tell two cards apart. Only the number that is never given twice
(Linux 6.8 and later) does, together with the boot that it belongs to. Without it a key
is good for the process that made it, and a detector that is started again announces
what it finds anew: better twice than never.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import uuid
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

from adapters.system import mount_id_of

REMOVABLE = frozenset(
    {
        *("vfat", "msdos", "exfat", "fuse.exfat", "fuseblk", "ntfs", "ntfs3"),
        *("hfs", "hfsplus", "apfs", "udf"),
    }
)
"""What cards and drives that travel are formatted with; FUSE's exFAT and NTFS are fuseblk."""

POLL_S = 2.0
"""How often the table is read where nothing says that it has changed."""

CHECK_S = 30.0
"""How often it is read where something does; in case a change was not told."""

Wanted = Callable[[str, str, bool], bool]
"""``(path, fs_type, removable)``: whether a mount may be a card."""


@dataclass(frozen=True, slots=True)
class Mount:
    """Something mounted.

    key: tells this mounting from every other one.
    path: where, as the system's own calls take it (``os.fsencode`` gives its bytes).
    device: what, as the system calls it. number: its ``st_dev``, but for btrfs, whose
    subvolumes have their own; None where that isn't known. mount_id: its number in the table.
    """

    key: str
    path: str
    device: str
    number: int | None
    fs_type: str
    mount_id: int | None = None


class MountTable(Protocol):
    @property
    def read_every_s(self) -> float:
        """How often to read it if it doesn't say that it has changed."""
        ...

    def mounts(self) -> Sequence[Mount]:
        """The mounts that may be cards. May block. Raises ``OSError``."""
        ...

    def fileno(self) -> int | None:
        """Becomes readable, once, when the table has changed; None where nothing tells."""
        ...

    def close(self) -> None: ...


class CardPlaces:
    """Which mounts may be cards.

    card_roots: folders strictly below which a removable file system is one.
    watch_roots: folders strictly below which everything mounted is one.
    kept_out: files and folders of Rushes' own; what holds them, or lies in them, never is.
    """

    def __init__(
        self, *, card_roots: Sequence[str], watch_roots: Sequence[str], kept_out: Sequence[str]
    ) -> None:
        self._card_roots = _spellings(card_roots)
        self._watch_roots = _spellings(watch_roots)
        self._kept_out = _spellings(kept_out)

    def __call__(self, path: str, fs_type: str, removable: bool) -> bool:
        if any(_below(own, path) or _below(path, own) or own == path for own in self._kept_out):
            return False
        if any(_below(path, root) for root in self._watch_roots):
            return True
        if removable:
            return True
        # Hidden ones are the system's: Time Machine's snapshots, say.
        return fs_type in REMOVABLE and any(
            _below(path, root) and f"{os.sep}." not in path[len(root) - 1 :]
            for root in self._card_roots
        )

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys((*self._card_roots, *self._watch_roots)))


class _Sightings:
    """Keys for what has no lasting name: the same one for as long as it is seen without a break."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, str] = {}
        self._now: dict[Hashable, str] = {}

    def begin(self) -> None:
        """A new look: what isn't asked for until the next one has gone."""
        self._keys, self._now = self._now, {}

    def key(self, seen: Hashable) -> str:
        key = self._keys.get(seen) or f"seen:{uuid.uuid4().hex}"
        self._now[seen] = key
        return key


class LinuxMounts:
    """The kernel's own table."""

    def __init__(self, wanted: Wanted, table: str = "/proc/self/mountinfo") -> None:
        """Raises ``OSError`` where there is no such table."""
        self._wanted = wanted
        self._table = table
        self._fd = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
        # The table itself is always readable. An epoll that asks only for its changes
        # isn't, and can be waited for as any file.
        self._changes = select.epoll()
        try:
            self._changes.register(self._fd, select.EPOLLPRI)
        except PermissionError:  # a kernel that only looks like Linux, or a file of a test's
            self.read_every_s = POLL_S
        else:
            self.read_every_s = CHECK_S
        self._boot = _boot_id()
        self._sightings = _Sightings()

    def fileno(self) -> int:
        return self._changes.fileno()

    def close(self) -> None:
        self._changes.close()
        os.close(self._fd)

    def mounts(self) -> Sequence[Mount]:
        with open(self._table, "rb") as file:
            lines = file.read().splitlines()
        # What is mounted over something else at the same place comes after it, and hides it.
        visible = {entry.path: entry for entry in map(_entry, lines) if entry is not None}
        self._sightings.begin()
        found: list[Mount] = []
        devices: set[int] = set()
        for entry in visible.values():
            if not self._wanted(entry.path, entry.fs_type, False):
                continue
            if entry.fs_type in REMOVABLE:
                # Bound to a second place, it is still one card.
                if entry.root != "/" or entry.number in devices:
                    continue
                devices.add(entry.number)
            found.append(
                Mount(
                    key=self._key(entry),
                    path=entry.path,
                    device=entry.device,
                    number=entry.number,
                    fs_type=entry.fs_type,
                    mount_id=entry.mount_id,
                )
            )
        return found

    def _key(self, entry: _Entry) -> str:
        unique = mount_id_of(entry.path, unique=True)
        if unique is None or self._boot is None:
            return self._sightings.key(entry)
        return f"{self._boot}:{unique}"


class Partition(Protocol):
    """A line of the table, as psutil has it."""

    @property
    def device(self) -> str: ...
    @property
    def mountpoint(self) -> str: ...
    @property
    def fstype(self) -> str: ...
    @property
    def opts(self) -> str: ...


def partitions() -> Sequence[Partition]:
    """All that is mounted.

    On Windows "all" would be network drives and floppies too, whose motors would start every
    two seconds; on macOS, without it cards are left out whose driver is no device's.
    """
    return psutil.disk_partitions(all=sys.platform != "win32")


class PolledMounts:
    """The table as psutil reads it: macOS, Windows, and wherever Linux hides its own."""

    read_every_s = POLL_S

    def __init__(
        self, wanted: Wanted, partitions: Callable[[], Sequence[Partition]] = partitions
    ) -> None:
        self._wanted = wanted
        self._partitions = partitions
        self._sightings = _Sightings()

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass

    def mounts(self) -> Sequence[Mount]:
        self._sightings.begin()
        found = {
            part.mountpoint: Mount(
                key=self._sightings.key((part.device, part.mountpoint, part.fstype)),
                path=part.mountpoint,
                device=part.device,
                number=None,
                fs_type=part.fstype.lower(),
            )
            for part in self._partitions()
            # On Windows an empty slot of a reader is a drive too, without a file system.
            if part.fstype
            # Only Windows says that a drive is removable, and has no folder to look below.
            and self._wanted(
                part.mountpoint, part.fstype.lower(), "removable" in part.opts.split(",")
            )
        }
        return list(found.values())


def mount_table(wanted: Wanted) -> MountTable:
    """The best one that this system has."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return LinuxMounts(wanted)
    return PolledMounts(wanted)


@dataclass(frozen=True, slots=True)
class _Entry:
    mount_id: int
    number: int
    root: str
    path: str
    fs_type: str
    device: str


def _entry(line: bytes) -> _Entry | None:
    """``36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw``"""
    before, separator, after = line.partition(b" - ")
    mount_id, _, number, root, path, *_ = [*before.split(b" "), *[b""] * 5]
    fs_type, device, *_ = [*after.split(b" "), b"", b""]
    major, _, minor = number.partition(b":")
    if not separator or not (mount_id.isdigit() and major.isdigit() and minor.isdigit()):
        return None
    return _Entry(
        mount_id=int(mount_id),
        number=os.makedev(int(major), int(minor)),
        root=_unescaped(root),
        path=_unescaped(path),
        fs_type=_unescaped(fs_type),
        device=_unescaped(device),
    )


def _unescaped(field: bytes) -> str:
    """Blanks, tabs, line ends, ``#`` and backslashes stand there as three octal digits."""
    raw = re.sub(rb"\\([0-3][0-7]{2})", lambda octal: bytes([int(octal[1], 8)]), field)
    return os.fsdecode(raw)


def _boot_id() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip() or None
    except OSError:
        return None


def _spellings(folders: Sequence[str]) -> tuple[str, ...]:
    """As they were named, and as they really are: the table has only the latter."""

    def each() -> Iterator[str]:
        for folder in folders:
            yield os.path.normpath(folder)
            yield os.path.realpath(folder)

    return tuple(dict.fromkeys(each()))


def _below(path: str, folder: str) -> bool:
    """Strictly."""
    return path != folder and path.startswith(folder.rstrip(os.sep) + os.sep)
