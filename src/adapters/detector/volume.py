"""A mounted card as it looks from outside: what lies in its root, and what it calls itself.

Nothing here writes, and the folder is opened without touching its access time where the
system lets us.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adapters.detector.mounts import Mount
from adapters.system import mount_id_of, name_of_device
from domain.footage import is_junk, shown

MAX_ENTRIES = 10_000
"""Of a root that are compared: whoever is still copying on it adds some among them."""

_FOLDER = (
    os.O_RDONLY
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_NO_ATIME = getattr(os, "O_NOATIME", 0)


class NotMounted(OSError):
    """Something else is at the path of the mount by now."""


@dataclass(frozen=True, slots=True)
class Look:
    """state: equal for two looks at one card between which nothing has come, gone or grown.

    facts: about the volume, as JSON. empty: nothing of a camera's is in the root (yet).
    """

    state: str
    empty: bool
    facts: dict[str, Any]


def look(mount: Mount, disks: str = "/dev/disk") -> Look:
    """Blocks, for as long as the card takes to answer. Raises ``OSError`` if it doesn't read."""
    with _opened(mount) as folder:
        state = hashlib.blake2b(digest_size=16)
        empty = True
        entries = []
        with os.scandir(folder) as found:
            for entry, _ in zip(found, range(MAX_ENTRIES), strict=False):
                name = os.fsencode(entry.name)
                empty = empty and is_junk(name)
                status = entry.stat(follow_symlinks=False)
                entries.append((name, stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime))
        total_bytes, free_bytes = _room(folder)
    label = shown(os.fsencode(_name_of(mount, f"{disks}/by-label") or _last_part(mount.path)))
    uuid = _text(_name_of(mount, f"{disks}/by-uuid"))
    state.update(repr((label, uuid, total_bytes, free_bytes, sorted(entries))).encode())
    facts = {
        "label": label,
        "uuid": uuid,
        "fs_type": mount.fs_type,
        "device": _text(mount.device),
        "size_bytes": total_bytes,
        "free_bytes": free_bytes,
    }
    return Look(state.hexdigest(), empty, facts)


@contextmanager
def _opened(mount: Mount) -> Iterator[int | str]:
    """The root's descriptor, bound to the mount; where folders have none, its path."""
    if mount.number is None and not hasattr(os, "O_DIRECTORY"):
        yield mount.path
        return
    try:
        folder = os.open(mount.path, _FOLDER | _NO_ATIME)
    except PermissionError:
        if not _NO_ATIME:
            raise
        folder = os.open(mount.path, _FOLDER)  # only owners may leave access times alone
    try:
        if mount.number is not None and not _is_of(mount, mount.number, folder):
            raise NotMounted(f"{shown(os.fsencode(mount.path))} is something else now")
        yield folder
    finally:
        os.close(folder)


def _is_of(mount: Mount, number: int, folder: int) -> bool:
    """Whether this folder is on it: by its device number, or, if that is no disk's, its own.

    The files of a btrfs have the numbers of their subvolumes, which the table doesn't tell.
    """
    if os.fstat(folder).st_dev == number:
        return True
    is_anonymous = os.major(number) == 0
    return is_anonymous and mount.mount_id == mount_id_of(b"", folder) is not None


def _room(folder: int | str) -> tuple[int, int]:
    if sys.platform == "win32":
        room = shutil.disk_usage(folder)
        return room.total, room.free
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _name_of(mount: Mount, folder: str) -> str | None:
    """What a /dev/disk folder calls the mount's device."""
    name = None if mount.number is None else name_of_device(folder, mount.number)
    return None if name is None else os.fsdecode(name)


def _last_part(path: str) -> str:
    return os.path.basename(path.rstrip(os.sep)) or path


def _text(name: str | None) -> str | None:
    return None if name is None else shown(os.fsencode(name))
