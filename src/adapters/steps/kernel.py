"""What a copy asks of the operating system beyond ``os``, and what is done where it is missing.

Linux offers all of it; elsewhere (macOS, or a file system that knows less) each
function degrades as its docstring says, and never into something less safe.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

_RENAME = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_RENAME_NOREPLACE = 1
_RENAME_EXCL = 4
_FALLOC_FL_KEEP_SIZE = 1
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_ALL = 7

_UNSUPPORTED = frozenset(
    {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ESPIPE, errno.ENOTTY}
)

_NO_TIME = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ERANGE, errno.EOVERFLOW})
"""A time that a file can't be given; that is no fault of the disk's."""

_SYNCFS_IS_ENOUGH = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "exfat"})
"""Where ``syncfs`` does for every file what ``fsync`` does; FUSE, say, never hears of it."""


_REMOTE = frozenset(
    {"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "nfs", "nfs4", "smb2", "smb3"}
    | {"smbfs", "vboxsf", "virtiofs", "webdav"}
)
"""Another machine may answer for these out of its own memory, as FUSE's programs may."""

_LOOK_BYTES = 1024 * 1024 * 1024
"""How much of a file ``mincore`` is asked about at once; a page is a byte of the answer."""

_CACHESTAT = 451
_CACHESTAT_MACHINES = frozenset({"aarch64", "riscv64", "x86_64"})
"""Where this is the number of ``cachestat``, for which the C library has no function."""

_WHOLE_FILE = (ctypes.c_uint64 * 2)(0, 0)


class CannotPublish(OSError):
    """This file system can't give a name in one step without maybe taking it from another file."""


def _function(name: str, *arguments: Any) -> Callable[..., int] | None:
    try:
        function = getattr(_libc, name)
    except AttributeError:
        return None
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_rename_flagged, _NO_REPLACE = (
    (_function("renameat2", *_RENAME), _RENAME_NOREPLACE)
    if hasattr(_libc, "renameat2")
    else (_function("renameatx_np", *_RENAME), _RENAME_EXCL)
)
_syncfs = _function("syncfs", ctypes.c_int)
_fallocate = _function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_mincore = _function("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_sync_file_range = _function(
    "sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
)
_cachestat = (
    _function(
        "syscall", ctypes.c_long, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint
    )
    if sys.platform == "linux" and os.uname().machine in _CACHESTAT_MACHINES
    else None
)


def _call(function: Callable[..., int] | None, *arguments: object) -> bool:
    """False where the system or the file system doesn't know the call; raises ``OSError``."""
    if function is None:
        return False
    while function(*arguments) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def rename_without_replacing(source: bytes, target: bytes, *, dir_fd: int) -> None:
    """Rename within one folder. Raises ``FileExistsError`` if the target's name is taken.

    Without a flagged rename: a hard link, then the old name goes (a crash between
    leaves both). Without hard links too: ``CannotPublish``; see ``rename_over_claim``.
    """
    if _call(_rename_flagged, dir_fd, source, dir_fd, target, _NO_REPLACE):
        return
    try:
        os.link(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in _UNSUPPORTED | {errno.EPERM}:
            raise CannotPublish(error.errno, os.strerror(error.errno)) from error
        raise
    os.unlink(source, dir_fd=dir_fd)


def rename_over_claim(source: bytes, target: bytes, *, dir_fd: int) -> None:
    """The same where ``CannotPublish`` is raised: take the name with an empty file, then rename.

    Only a file that isn't there can be made so, whoever else tries: nothing that has the
    name is lost. A crash between leaves the empty file, which the caller has to know for
    ours. Raises ``FileExistsError`` too if somebody wrote into it in that instant.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(target, flags, 0o666, dir_fd=dir_fd))
    if os.stat(target, dir_fd=dir_fd, follow_symlinks=False).st_size:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    try:
        os.rename(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        release_claim(target, dir_fd=dir_fd)
        raise


def set_time(target: int | bytes, mtime_ns: int, *, dir_fd: int | None = None) -> None:
    """Give a file its time: an open one, or a name in ``dir_fd``, no link followed.

    Not where it can't have it: some mounts set times for owners only, and not every file
    system has every time; Linux's own take the nearest. Raises ``OSError`` for all else.
    """
    times = (mtime_ns, mtime_ns)
    try:
        if isinstance(target, int):
            os.utime(target, ns=times)
        else:
            os.utime(target, ns=times, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_TIME:
            raise


def release_claim(target: bytes, *, dir_fd: int) -> None:
    """Remove what an attempt to rename over a claim has left; never what has contents."""
    with suppress(OSError):  # a disk that is gone keeps it until the next attempt
        found = os.stat(target, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            os.unlink(target, dir_fd=dir_fd)


def preallocate(fd: int, size_bytes: int) -> None:
    """Take the room now; where that is unknown it is taken as we write.

    ``fallocate``, not ``posix_fallocate``: where the file system can't, the C
    library's version writes zeros over the whole length. Raises ``OSError`` if there is no room.
    """
    if size_bytes:
        _call(_fallocate, fd, _FALLOC_FL_KEEP_SIZE, 0, size_bytes)


def start_writing_back(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin with these pages; elsewhere the last sync does it all."""
    _call(_sync_file_range, fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def finish_writing_back(fd: int, offset: int, length: int) -> None:
    """Wait until these pages have left. No promise of durability: that is ``sync_file``'s."""
    _call(_sync_file_range, fd, offset, length, _SYNC_FILE_RANGE_ALL)


def sync_file(fd: int) -> None:
    """On stable storage, as far as the device tells the truth."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        try:
            fcntl.fcntl(fd, full_sync)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    os.fsync(fd)


def sync_file_system(fd: int) -> bool:
    """Every file of the file system at once; False where only ``sync_file`` of each is sure."""
    return file_system_of(fd) in _SYNCFS_IS_ENOUGH and _call(_syncfs, fd)


def close(fd: int) -> None:
    """Give a descriptor back. A mount that is gone answers even that with an error.

    Nobody would be the wiser for it, and it would hide the fault that is on its way: what
    had to be on the device was synced before.
    """
    with suppress(OSError):
        os.close(fd)


def sync_folder(fd: int) -> None:
    """The names in it; a file system that can't sync folders keeps them in its own way."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def read_sequentially(fd: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def read_ahead(fd: int, size_bytes: int) -> None:
    """Have the kernel begin to read, so that the device has several files to do at once."""
    if hasattr(os, "posix_fadvise") and size_bytes:
        os.posix_fadvise(fd, 0, size_bytes, os.POSIX_FADV_WILLNEED)


def forget_cached(fd: int, offset: int = 0, length: int = 0) -> None:
    """Drop the clean pages, so that the next read comes from the device.

    On macOS: what is read through ``fd`` from now on isn't cached.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    elif hasattr(fcntl, "F_NOCACHE"):
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)


def is_cold(fd: int, kind: str | None = None) -> bool:
    """Whether what is read now has to come from the device: nothing of the file is in memory.

    False too where that can't be known: neither ``cachestat`` nor ``mincore``, or a file system
    of which a server or another program gives out the contents. ``kind``: its file system, if
    that is known. Raises ``OSError``.
    """
    kind = file_system_of(fd) if kind is None else kind
    if kind in _REMOTE or kind.startswith("fuse"):
        return False
    cached_pages = _cached_pages(fd)
    if cached_pages is not None:
        return not cached_pages
    if _mincore is None:
        return False
    size_bytes = os.fstat(fd).st_size
    for offset in range(0, size_bytes, _LOOK_BYTES):
        length = min(_LOOK_BYTES, size_bytes - offset)
        pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        # Private and writable only so that ctypes can tell where it lies; nobody writes to it.
        with mmap.mmap(
            fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset
        ) as view:
            start = ctypes.c_char.from_buffer(view)
            try:
                known = _call(_mincore, ctypes.addressof(start), length, pages)
            finally:
                del start
        if not known or any(page & 1 for page in bytes(pages)):
            return False
    return True


def _cached_pages(fd: int) -> int | None:
    """How many of the file's pages are in memory, in one call; None where that isn't told."""
    found = (ctypes.c_uint64 * 5)()  # cached, dirty, written back, evicted, evicted just now
    try:
        known = _call(_cachestat, _CACHESTAT, fd, _WHOLE_FILE, found, 0)
    except PermissionError:  # somebody else's file; ``mincore`` says the worst of it
        return None
    return int(found[0]) if known else None


def file_system_of(fd: int) -> str:
    """``ext4``, ``vfat`` and so on; empty where that can't be known."""
    try:
        device = os.fstat(fd).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", "rb") as mounts:
            for line in mounts:
                fields, _, rest = line.decode("utf-8", "replace").partition(" - ")
                if fields.split()[2] == number:
                    return rest.split()[0]
    except (OSError, IndexError):
        pass
    return ""
