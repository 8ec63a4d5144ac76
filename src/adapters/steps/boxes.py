"""Whether an MP4 or QuickTime file can be played, by the headers of its boxes.

A camera writes the index (``moov``) when it stops. A recording that broke off, because
the card was pulled or the battery was empty, has none. Only the headers of the outermost
boxes are read, a few dozen bytes in all, and nothing that they say is believed beyond
the file's end: whoever wrote the card chose those numbers.
"""

from __future__ import annotations

import os

SUFFIXES = frozenset({b".mp4", b".mov", b".m4v", b".360", b".insv", b".3gp"})

MAX_BOXES = 64
"""Cameras write three to ten. Beyond that nothing is said of a file rather than guessed."""

NO_INDEX = "can't be played: it has no moov box, as a recording that broke off"
CUT_OFF = "can't be played: its moov box is cut off"


def flaw_of(fd: int, size_bytes: int) -> str | None:
    """What keeps it from being played, as far as its boxes show. Raises ``OSError``."""
    at = 0
    for _ in range(MAX_BOXES):
        if at >= size_bytes:
            return NO_INDEX
        head = os.pread(fd, 16, at)
        length = int.from_bytes(head[:4])
        if length == 0:
            length = size_bytes - at  # the last box may leave its length open
        elif length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:])
        if len(head) < 8 or length < 8:
            return NO_INDEX  # no box, or none any more
        if head[4:8] == b"moov":
            return None if at + length <= size_bytes else CUT_OFF
        at += length
    return None
