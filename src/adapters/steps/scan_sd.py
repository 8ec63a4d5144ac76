"""scan_sd: what is on the card."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from adapters.steps.cards import FsCards, OpenCard, open_folder
from adapters.steps.faults import CardFault, CardNotThere, reason
from application.authoring import StepContext
from application.ports import CardFiles
from domain.footage import (
    COPIED_KINDS,
    CardFile,
    FileKind,
    is_junk,
    kind_of,
    layout_of,
    shown,
)

SETTLE_S = 2.0
"""A detector may be faster than the mount, and a mount faster than its files."""

LOOK_EVERY_S = 0.1
REPORT_EVERY = 500
"""Entries between two looks at whether to stop; a folder may hold many thousands."""


class ScanSd:
    """The step. Nothing is copied yet; what is found is stored, and counted in the output."""

    def __init__(
        self,
        cards: FsCards,
        card_files: CardFiles,
        *,
        settle_s: float = SETTLE_S,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cards = cards
        self._card_files = card_files
        self._settle_s = settle_s
        self._wait = wait

    def __call__(self, context: StepContext) -> dict[str, Any]:
        with self._settled(context) as card:
            files: list[CardFile] = []
            layouts: set[str] = set()
            for entry in _walk(card, layouts, context.check):
                files.append(entry)
                if len(files) % REPORT_EVERY == 0:
                    context.progress(0.0, files=len(files), file=shown(entry.path))
            fingerprint = _fingerprint(card)
            self._card_files.replace(context.ref, files)
            return _summary(card, fingerprint, files, layouts)

    def _settled(self, context: StepContext) -> OpenCard:
        """The card, once it is there with something on it, or as it is when the wait is over."""
        waited_s = 0.0
        while True:
            over = waited_s >= self._settle_s
            try:
                card = self._cards.open(context.data.get("sd_path"))
            except CardNotThere:
                if over:
                    raise
            else:
                try:
                    if over or _holds_anything(card):
                        return card
                except BaseException:
                    os.close(card.fd)
                    raise
                os.close(card.fd)
            context.check()
            self._wait(LOOK_EVERY_S)
            waited_s += LOOK_EVERY_S


def _holds_anything(card: OpenCard) -> bool:
    """An empty folder may be a mount point whose mount is still to come."""
    try:
        with os.scandir(card.fd) as entries:
            return any(True for _ in entries)
    except OSError as error:
        raise CardFault(f"the card at {card.path_text} can't be read: {reason(error)}") from error


def _fingerprint(card: OpenCard) -> str:
    try:
        return card.fingerprint()
    except OSError as error:
        raise CardFault(f"the card at {card.path_text} can't be read: {reason(error)}") from error


def _walk(card: OpenCard, layouts: set[str], check: Callable[[], None]) -> Iterator[CardFile]:
    """Everything on the card but plain folders; adds the layouts that it recognises.

    Folders are reopened from the card's root one at a time: a folder swapped for
    a link is noticed, and however deep they are, one descriptor is enough.
    """
    folders = [b""]
    while folders:
        folder = folders.pop()
        layout = layout_of(folder)
        if layout is not None:
            layouts.add(layout)
        where = folder
        try:
            fd = open_folder(card.fd, folder)
            try:
                with os.scandir(fd) as entries:
                    for number, entry in enumerate(entries):
                        if number % REPORT_EVERY == 0:
                            check()
                        name = os.fsencode(entry.name)
                        where = folder + b"/" + name if folder else name
                        found = entry.stat(follow_symlinks=False)
                        kind = _kind(where, name, found, card.device)
                        if kind is None:
                            folders.append(where)
                            continue
                        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
                        yield CardFile(where, kind, size, found.st_mtime_ns)
            finally:
                os.close(fd)
        except OSError as error:
            what = shown(where) if where else "its root"
            raise CardFault(
                f"the card at {card.path_text} can't be read at {what}: {reason(error)}"
            ) from error


def _kind(path: bytes, name: bytes, found: os.stat_result, device: int) -> FileKind | None:
    """None for a folder to be walked."""
    if stat.S_ISLNK(found.st_mode):
        return FileKind.LINK
    if found.st_dev != device:
        return FileKind.SPECIAL  # another file system is mounted there: no part of this card
    if stat.S_ISDIR(found.st_mode):
        return FileKind.JUNK if is_junk(name) else None
    if stat.S_ISREG(found.st_mode):
        return kind_of(path)
    return FileKind.SPECIAL


def _summary(
    card: OpenCard, fingerprint: str, files: list[CardFile], layouts: set[str]
) -> dict[str, Any]:
    counts: Counter[FileKind] = Counter()
    sizes: Counter[FileKind] = Counter()
    for file in files:
        counts[file.kind] += 1
        sizes[file.kind] += file.size_bytes
    output: dict[str, Any] = {
        "card": {
            "identity": card.card.identity,
            "label": card.card.label,
            "fingerprint": fingerprint,
        },
        "layouts": sorted(layouts),
        "file_count": sum(counts[kind] for kind in COPIED_KINDS),
        "total_bytes": sum(sizes[kind] for kind in COPIED_KINDS),
        "by_kind": {
            kind.value: {"files": counts[kind], "bytes": sizes[kind]}
            for kind in FileKind
            if counts[kind]
        },
        "excluded": sum(counts[kind] for kind in FileKind if kind not in COPIED_KINDS),
    }
    if not files:
        output["note"] = "the card is empty"
    elif not counts[FileKind.MEDIA]:
        output["note"] = "no media found on the card"
    return output
