"""scan_sd: what is on the card.

Everything that there is becomes a row of the inventory: files with their kind and
clip, and, with the reason, what is no file, what can't be read and what can't be
played. Folders are rows where no copied file would bring them along: a camera may not
accept its card without them.

What can't be read
    A file or folder that refuses is a row, and the walk goes on: the others may be
    better. It belongs to what has to arrive, so copying fails in the end and names it.
    Several input/output errors in a row are a card that is going, and end the scan.

What is still being written
    A clip that grows while it is copied would arrive as a piece. So whatever was
    modified just now is looked at once more after a pause, and if it has changed the
    whole card is walked again, for there may be more. If that doesn't come to an end
    the scan fails and says which files: leaving them out would make the card look
    whole, and copying them would verify a piece. A retry, once the writing is over,
    costs nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adapters.steps import boxes
from adapters.steps.cards import FsCards, OpenCard, open_file_in, open_folder
from adapters.steps.faults import CardFault, CardLost, CardNotThere, StillWritten, reason
from application.authoring import StepContext
from application.ports import CardFiles, Clock
from domain.footage import (
    COPIED_KINDS,
    FILE_KINDS,
    CardFile,
    FileKind,
    is_junk,
    kind_of,
    same_moment,
    shown,
)
from domain.layouts import Contents, contents_of

SETTLE_S = 2.0
"""A detector may be faster than the mount, and a mount faster than its files."""

LOOK_EVERY_S = 0.1
REPORT_EVERY = 500
"""Entries between two looks at whether to stop; a folder may hold many thousands."""

RECENT_NS = 10_000_000_000
"""A file modified so shortly ago, in whatever time zone, may still be growing."""

LOOKS = 5
LOOKS_APART_S = 2.0
"""FAT tells times in steps of two seconds. Who writes longer than these looks is copying
onto the card, and that may take hours."""

_EXCLUDED = frozenset(FileKind) - COPIED_KINDS - {FileKind.FOLDER}

_AS_WE_ARE = os.access in os.supports_effective_ids

UNREADABLE_IN_A_ROW = 3
"""So many input/output errors one after the other are a card that is going."""

MAX_NAMED = 20
MAX_NAMED_CHARACTERS = 500
"""Exceptions that the output names, and of each path; it is merged into the execution's data."""


class ScanSd:
    """The step. Nothing is copied yet; what is found is stored, and counted in the output."""

    def __init__(
        self,
        cards: FsCards,
        card_files: CardFiles,
        clock: Clock,
        *,
        settle_s: float = SETTLE_S,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cards = cards
        self._card_files = card_files
        self._clock = clock
        self._settle_s = settle_s
        self._wait = wait

    def __call__(self, context: StepContext) -> dict[str, Any]:
        with self._settled(context) as card:
            contents = contents_of(self._quiet(card, context))
            fingerprint = _fingerprint(card)
            files = list(contents.files())
            output = _summary(card, fingerprint, files, contents)
            del contents  # the rows are enough, and a card may have very many
            self._card_files.replace(context.ref, files)
            return output

    def _quiet(self, card: OpenCard, context: StepContext) -> list[CardFile]:
        """The inventory, when nothing on the card grows any more. Raises ``StillWritten``."""
        for _ in range(LOOKS):
            now_ns = int(self._clock.now().timestamp() * 1e9)
            files = list(Walk(card, context).entries())
            recent = [
                file
                for file in files
                if file.kind in FILE_KINDS
                and same_moment(file.mtime_ns, now_ns, tolerance_ns=RECENT_NS)
            ]
            if not recent:
                return files
            self._wait(LOOKS_APART_S)
            changed = [file for file in recent if _changed(card, file, context.check)]
            if not changed:
                return files
        named = ", ".join(shown(file.path)[:MAX_NAMED_CHARACTERS] for file in changed[:MAX_NAMED])
        more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
        raise StillWritten(
            f"the card at {card.path_text} is still being written to: {named}{more} "
            "changed while it was scanned; retry once that is over"
        )

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


class Walk:
    """One look at everything on the card.

    Folders are reopened from the card's root one at a time: a folder swapped for a
    link is noticed, and however deep they are, one descriptor is enough.
    """

    def __init__(self, card: OpenCard, context: StepContext) -> None:
        self._card = card
        self._context = context
        self._found = 0
        self._unreadable_in_a_row = 0

    def entries(self) -> Iterator[CardFile]:
        folders = [b""]
        while folders:
            folder = folders.pop()
            below: list[bytes] = []
            carries = False
            try:
                fd = open_folder(self._card.fd, folder)
                try:
                    for entry in self._in_folder(fd, folder, below):
                        carries = carries or entry.kind in COPIED_KINDS
                        yield entry
                        self._report(entry)
                finally:
                    os.close(fd)
            except OSError as error:
                if not folder:
                    raise CardFault(
                        f"the card at {self._card.path_text} can't be read at its root: "
                        f"{reason(error)}"
                    ) from error
                yield self._unreadable(folder, error, "the folder")
                carries = True
            folders += below
            if folder and not below and not carries:
                yield CardFile(folder, FileKind.FOLDER, 0, 0)

    def _in_folder(self, fd: int, folder: bytes, below: list[bytes]) -> Iterator[CardFile]:
        with os.scandir(fd) as entries:
            for number, entry in enumerate(entries):
                if number % REPORT_EVERY == 0:
                    self._context.check()
                name = os.fsencode(entry.name)
                path = folder + b"/" + name if folder else name
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError as error:
                    yield self._unreadable(path, error)
                    continue
                kind, problem = _kind(name, found, self._card.device)
                if kind is None:
                    below.append(path)
                    continue
                size_bytes = 0
                if stat.S_ISREG(found.st_mode):
                    size_bytes = found.st_size
                    if kind in FILE_KINDS:
                        problem = self._problem(fd, path, name, size_bytes)
                yield CardFile(path, kind, size_bytes, found.st_mtime_ns, None, problem)

    def _problem(self, folder: int, path: bytes, name: bytes, size_bytes: int) -> str | None:
        """What a person has to know of a file that is copied like the others."""
        problems = [] if path.isascii() or _is_text(path) else ["its name is no UTF-8"]
        try:
            if name[name.rfind(b".") :].lower() in boxes.SUFFIXES:
                fd = open_file_in(folder, name)
                try:
                    problems += filter(None, [boxes.flaw_of(fd, size_bytes)])
                finally:
                    os.close(fd)
            elif not os.access(name, os.R_OK, dir_fd=folder, effective_ids=_AS_WE_ARE):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            problems.append(f"can't be read: {self._failed(path, error)}")
        else:
            self._unreadable_in_a_row = 0
        return "; ".join(problems) or None

    def _unreadable(self, path: bytes, error: OSError, what: str = "it") -> CardFile:
        problem = f"{what} can't be read: {self._failed(path, error)}"
        return CardFile(path, FileKind.UNREADABLE, 0, 0, None, problem)

    def _failed(self, path: bytes, error: OSError) -> str:
        """The reason; or, if the card doesn't answer any more, ``CardLost`` is raised."""
        fault = self._card.fault(error, path)
        if isinstance(fault, CardLost):
            raise CardLost(f"card lost: {fault}") from error
        if error.errno in (errno.EIO, errno.ENXIO):
            self._unreadable_in_a_row += 1
            if self._unreadable_in_a_row == UNREADABLE_IN_A_ROW:
                raise CardLost(
                    f"card lost: {UNREADABLE_IN_A_ROW} input/output errors in a row, "
                    f"the last at {shown(path)}"
                ) from error
        return reason(error)

    def _report(self, entry: CardFile) -> None:
        self._found += 1
        if self._found % REPORT_EVERY == 0:
            self._context.progress(0.0, files=self._found, file=shown(entry.path))


def _changed(card: OpenCard, file: CardFile, check: Callable[[], None]) -> bool:
    check()
    folder, _, name = file.path.rpartition(b"/")
    try:
        fd = open_folder(card.fd, folder)
        try:
            now = os.stat(name, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
    except OSError:
        return True  # gone, perhaps under another name: the card has to be walked again
    return (now.st_size, now.st_mtime_ns) != (file.size_bytes, file.mtime_ns)


def _kind(name: bytes, found: os.stat_result, device: int) -> tuple[FileKind | None, str | None]:
    """With the reason for what is left out; no kind for a folder to be walked."""
    mode = found.st_mode
    if stat.S_ISLNK(mode):
        return FileKind.LINK, "a symbolic link, not followed"
    if found.st_dev != device:
        return FileKind.SPECIAL, "another file system is mounted there, no part of this card"
    if stat.S_ISDIR(mode):
        return (FileKind.JUNK if is_junk(name) else None), None
    if stat.S_ISREG(mode):
        return kind_of(name), None
    return FileKind.SPECIAL, _SPECIAL.get(stat.S_IFMT(mode), "no regular file")


_SPECIAL = {
    stat.S_IFIFO: "a named pipe, no file",
    stat.S_IFSOCK: "a socket, no file",
    stat.S_IFBLK: "a device, no file",
    stat.S_IFCHR: "a device, no file",
}


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def _summary(
    card: OpenCard, fingerprint: str, files: Sequence[CardFile], contents: Contents
) -> dict[str, Any]:
    counts: Counter[FileKind] = Counter()
    sizes: Counter[FileKind] = Counter()
    exceptions = []
    for file in files:
        counts[file.kind] += 1
        sizes[file.kind] += file.size_bytes
        if file.problem is not None:
            exceptions.append(file)
    output: dict[str, Any] = {
        "card": {
            "identity": card.card.identity,
            "label": card.card.label,
            "fingerprint": fingerprint,
        },
        "layouts": [layout.value for layout in contents.layouts],
        "clip_count": len(contents.clips),
        "file_count": sum(counts[kind] for kind in COPIED_KINDS),
        "total_bytes": sum(sizes[kind] for kind in COPIED_KINDS),
        "by_kind": {
            kind.value: {"files": counts[kind], "bytes": sizes[kind]}
            for kind in FileKind
            if counts[kind]
        },
        "excluded": sum(counts[kind] for kind in _EXCLUDED),
        "exceptions": {
            "total": len(exceptions),
            "named": [
                {
                    "path": shown(file.path)[:MAX_NAMED_CHARACTERS],
                    "kind": file.kind.value,
                    "problem": file.problem,
                }
                for file in sorted(exceptions, key=lambda file: file.path)[:MAX_NAMED]
            ],
        },
    }
    if all(file.kind is FileKind.FOLDER for file in files):
        output["note"] = "the card is empty"
    elif not counts[FileKind.MEDIA]:
        output["note"] = "no media found on the card"
    return output
