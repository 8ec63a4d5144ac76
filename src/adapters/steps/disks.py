"""Whether the disk that a library was on is there.

A disk that isn't connected often leaves an empty folder where it was mounted, or a folder
in which one of its name could be made. What is written there lands on the disk above it,
fills that one, is no second copy, and is hidden as soon as the disk is mounted again.

So the ledger keeps, for each library, where that was mounted which it lies on: the deepest
mount point on its path, ``/`` for one on the system's own disk. What is mounted there may
be exchanged, as shuttle drives are. A library whose mount point has come nearer to the root
is away. One that is on a disk now and wasn't before has moved to it, and so has one whose
path leads elsewhere than it did (through a link).

That a library is meant to be where its disk was, without it, only a person can say: with an
empty file ``WORD`` in its folder, which is taken away once it is read, since what it says
holds for what is there now and not for the next time that the disk is away.
"""

from __future__ import annotations

import os
from contextlib import suppress

from adapters.steps import kernel
from adapters.steps.faults import LibraryFault, reason
from application.ports import Ledger
from domain.footage import shown

WORD = "rushes-destination"


def require_disk(root: str, ledger: Ledger, *, is_open: bool = False) -> None:
    """Raises ``LibraryFault`` if the disk of the library at ``root`` isn't mounted.

    is_open: the library is there, so what it is on now is kept for the next time.
    """
    path = os.path.realpath(os.fsencode(root))
    now, before = _mount_point(path), ledger.mount_point(root)
    if before is not None and now != before and _lies_in(path, before) and _lies_in(before, now):
        _take_word(root, before)
    elif not is_open:
        return
    if now != before:
        ledger.keep_mount_point(root, now)


def _mount_point(path: bytes) -> bytes:
    """The deepest on the path, of which the end may be yet to be made."""
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def _lies_in(path: bytes, folder: bytes) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _take_word(root: str, mount_point: bytes) -> None:
    """Raises ``LibraryFault`` unless somebody has said that it is to be there as it is."""
    place = shown(os.fsencode(root))
    word = os.path.join(root, WORD)
    if not os.path.lexists(word):
        raise LibraryFault(
            f"{shown(mount_point)} is not mounted, and the library {place} was on a disk there; "
            "is it connected? (If it is to lie there without that disk from now on: make an "
            f"empty file {WORD} in {place}, and try again)"
        )
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(FileNotFoundError):  # another step has taken it in this instant
                os.unlink(WORD, dir_fd=fd)
            kernel.sync_folder(fd)
        finally:
            kernel.close(fd)
    except OSError as error:
        raise LibraryFault(
            f"{WORD} can't be taken from the library {place}: {reason(error)}"
        ) from error
