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
import gc
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import nsmallest
from threading import Lock
from typing import Any

from adapters.steps import boxes, kernel
from adapters.steps.cards import (
    FsCards,
    OpenCard,
    is_mounted,
    open_file_in,
    open_folder,
    volume_identity,
)
from adapters.steps.faults import (
    AnotherCard,
    CardFault,
    CardLost,
    CardNotThere,
    StillWritten,
    reason,
)
from adapters.steps.indexes import linked_files, spans_of
from adapters.steps.library import Library
from adapters.steps.recognition import recognise
from application.authoring import StepContext
from application.ports import CardFiles, Clock, Jobs, Ledger
from domain.footage import (
    COPIED_KINDS,
    DAY_NS,
    FILE_KINDS,
    CardFile,
    FileKind,
    is_junk,
    kept_time,
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

_TOLD = ("layouts", "clip_count", "file_count", "total_bytes", "by_kind", "intake", "card_note")
"""What the event says of the output, beside the card."""

WORD = "card:scanned"

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""What ``os.fsencode`` asks for each name, of which a card may have a hundred thousand."""

_ANYBODY = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
"""Who may read nearly every file of a card, so that the system needn't be asked."""

_AS_WE_ARE = os.access in os.supports_effective_ids

UNREADABLE_IN_A_ROW = 3
"""So many input/output errors one after the other are a card that is going."""

MAX_NAMED = 20
MAX_EXCLUDED = 3
MAX_NAMED_CHARACTERS = 500
"""Exceptions that the output names, left out ones of each kind, and characters of each path;
it is merged into the execution's data."""


class ScanSd:
    """The step. Nothing is copied yet; what is found is stored, and counted in the output."""

    def __init__(
        self,
        cards: FsCards,
        card_files: CardFiles,
        jobs: Jobs,
        ledger: Ledger,
        clock: Clock,
        library: str,
        *,
        settle_s: float = SETTLE_S,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cards = cards
        self._card_files = card_files
        self._jobs = jobs
        self._ledger = ledger
        self._clock = clock
        self._library = library
        self._settle_s = settle_s
        self._wait = wait

    def __call__(self, context: StepContext) -> dict[str, Any]:
        with self._settled(context) as card:
            entries = self._quiet(card, context)
            linked = linked_files(card, entries)
            spans = spans_of(card, entries, context.check)
            with _uncollected():
                # What is given up is gone: a card may have very many.
                contents = contents_of(_given_up(entries), linked, spans)
                files = list(contents.files())
            output = _summary(card, _fingerprint(card), files, contents)
            del contents  # the rows are enough
            self._card_files.replace(context.ref, files)
            recognised = recognise(
                card,
                files,
                [each.root for each in Library.all_of(context, self._library)],
                jobs=self._jobs,
                ledger=self._ledger,
                is_again=context.data.get("again") is True,
                check=context.check,
            )
        output["card"]["generation"] = recognised.card.generation
        output["intake"] = recognised.intake.as_json()
        if recognised.is_refilled:
            output["card_note"] = (
                f"this card was filled anew (generation {recognised.card.generation}): files "
                "on it have the names, sizes and times of known ones, but other bytes; "
                "whatever looks known is read and compared"
            )
        context.announce(
            WORD,
            {
                **{each: output["card"][each] for each in ("identity", "label", "generation")},
                **{each: output[each] for each in _TOLD if each in output},
            },
        )
        return output

    def _quiet(self, card: OpenCard, context: StepContext) -> list[CardFile]:
        """The inventory, when nothing on the card grows any more. Raises ``StillWritten``."""
        for _ in range(LOOKS):
            now_ns = int(self._clock.now().timestamp() * 1e9)
            with _uncollected():
                files = list(Walk(card, context).entries())
            recent = [
                file
                for file in files
                if now_ns - file.mtime_ns <= DAY_NS + RECENT_NS
                and file.kind in FILE_KINDS
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
                    there = _is_announced(card, context.data.get("volume"))
                    if over and not there:
                        raise CardNotThere(
                            f"card not there: nothing is mounted at {card.path_text} any more"
                        )
                    if over or (there and _holds_anything(card)):
                        return card
                except BaseException:
                    kernel.close(card.fd)
                    raise
                kernel.close(card.fd)
            context.check()
            self._wait(LOOK_EVERY_S)
            waited_s += LOOK_EVERY_S


def _is_announced(card: OpenCard, volume: object) -> bool:
    """Whether a card is there; ``volume`` is what the detector saw, where one announced it.

    A message may come late: kept while the server was away, with the next card at that
    path by now, or none. Raises ``AnotherCard``.
    """
    if not isinstance(volume, Mapping):
        return True  # nobody has said, and any folder may be one
    if not card.card.volume:  # no name of its own, or the system tells us less than the detector
        try:
            return is_mounted(card.fd)
        except OSError as error:
            raise CardFault(
                f"the card at {card.path_text} doesn't answer: {reason(error)}"
            ) from error
    serial = volume.get("uuid")
    if not isinstance(serial, str) or not serial:
        return True
    if card.card.identity.startswith(volume_identity(serial)):
        return True
    raise AnotherCard(
        f"another card is at {card.path_text}: {card.card.label} ({card.card.identity}); "
        f"the one that was announced has the serial number {shown(serial.encode())}: put that "
        "one in and retry"
    )


def _given_up(entries: list[CardFile]) -> Iterator[CardFile]:
    entries.reverse()
    while entries:
        yield entries.pop()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector, for work that makes objects by the hundred thousand and no cycle.

    It would go through all of them time and again: a third of a scan. Other threads' garbage
    has to wait as well, as far as it is in cycles, which little is.
    """
    with _collector:
        if not _uncollected_blocks:
            _uncollected_blocks.append(gc.isenabled())
        _uncollected_blocks.append(True)
        gc.disable()
    try:
        yield
    finally:
        with _collector:
            _uncollected_blocks.pop()
            if len(_uncollected_blocks) == 1 and _uncollected_blocks.pop():
                gc.enable()


_collector = Lock()
_uncollected_blocks: list[bool] = []
"""Whether the collector was on before the first, and one more for each."""


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

    Folders are opened by themselves below the one that was left last, or else from the
    card's root anew: a folder swapped for a link is noticed, and however deep they are,
    two descriptors are enough.
    """

    def __init__(self, card: OpenCard, context: StepContext) -> None:
        self._card = card
        self._context = context
        self._found = 0
        self._unreadable_in_a_row = 0
        self._last: tuple[bytes, int] | None = None

    def entries(self) -> Iterator[CardFile]:
        try:
            yield from self._entries()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._last is not None:
            kernel.close(self._last[1])
            self._last = None

    def _opened(self, folder: bytes) -> int:
        above, _, name = folder.rpartition(b"/")
        last = self._last
        fd = (
            open_folder(last[1], name)
            if name and last is not None and last[0] == above
            else open_folder(self._card.fd, folder)
        )
        self._leave()
        self._last = folder, fd
        return fd

    def _entries(self) -> Iterator[CardFile]:
        folders = [b""]
        while folders:
            folder = folders.pop()
            below: list[bytes] = []
            carries = False
            try:
                for entry in self._in_folder(self._opened(folder), folder, below):
                    carries = carries or entry.kind in COPIED_KINDS
                    yield entry
                    self._report(entry)
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
        device = self._card.device
        with os.scandir(fd) as entries:
            for number, entry in enumerate(entries):
                if number % REPORT_EVERY == 0:
                    self._context.check()
                name = entry.name.encode(_ENCODING, _ERRORS)
                path = folder + b"/" + name if folder else name
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError as error:
                    yield self._unreadable(path, error)
                    continue
                elsewhere = None if found.st_dev == device else self._elsewhere(fd, name, found)
                kind, problem = elsewhere or _kind(name, found)
                if kind is None:
                    below.append(path)
                    continue
                size_bytes = 0
                if stat.S_ISREG(found.st_mode):
                    size_bytes = found.st_size
                    if kind in FILE_KINDS:
                        problem = self._problem(fd, path, name, found)
                mtime_ns = kept_time(found.st_mtime_ns)
                if mtime_ns != found.st_mtime_ns and kind in FILE_KINDS:
                    problem = "; ".join(filter(None, (problem, _NO_TIME)))
                yield CardFile(path, kind, size_bytes, mtime_ns, None, problem)

    def _elsewhere(
        self, folder: int, name: bytes, found: os.stat_result
    ) -> tuple[FileKind, str] | None:
        """What is no part of this card, with the reason; None for what is, or is a link."""
        if stat.S_ISLNK(found.st_mode):
            return None
        is_part = self._card.has(found, name, folder)
        if is_part is None:  # nobody may take the card for whole without it
            return FileKind.UNREADABLE, (
                "it has another device number than the card, and the system doesn't tell whether "
                "something else is mounted there"
            )
        if is_part:
            return None
        return FileKind.SPECIAL, "another file system is mounted there, no part of this card"

    def _problem(self, folder: int, path: bytes, name: bytes, found: os.stat_result) -> str | None:
        """What a person has to know of a file that is copied like the others."""
        has_boxes = name[name.rfind(b".") :].lower() in boxes.SUFFIXES
        is_anybodys = found.st_mode & _ANYBODY == _ANYBODY
        if is_anybodys and not has_boxes and path.isascii():  # as a hundred thousand may be
            self._unreadable_in_a_row = 0
            return None
        problems = [] if path.isascii() or _is_text(path) else ["its name is no UTF-8"]
        try:
            if has_boxes:
                fd = open_file_in(folder, name)
                try:
                    problems += filter(None, [boxes.flaw_of(fd, found.st_size)])
                finally:
                    kernel.close(fd)
            elif not is_anybodys and not os.access(
                name, os.R_OK, dir_fd=folder, effective_ids=_AS_WE_ARE
            ):
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
            kernel.close(fd)
    except OSError:
        return True  # gone, perhaps under another name: the card has to be walked again
    return (now.st_size, kept_time(now.st_mtime_ns)) != (file.size_bytes, file.mtime_ns)


def _kind(name: bytes, found: os.stat_result) -> tuple[FileKind | None, str | None]:
    """With the reason for what is left out; no kind for a folder to be walked."""
    mode = found.st_mode
    if stat.S_ISLNK(mode):
        return FileKind.LINK, "a symbolic link, not followed"
    if stat.S_ISDIR(mode):
        return (FileKind.JUNK if is_junk(name) else None), None
    if stat.S_ISREG(mode):
        return kind_of(name), None
    return FileKind.SPECIAL, _SPECIAL.get(stat.S_IFMT(mode), "no regular file")


_NO_TIME = "its time lies outside of 1677 to 2262; it is kept as the nearest"

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
    excluded: dict[str, list[bytes]] = {}
    for file in files:
        counts[file.kind] += 1
        sizes[file.kind] += file.size_bytes
        if file.problem is not None:
            exceptions.append(file)
        if file.kind in _EXCLUDED:
            excluded.setdefault(file.kind.value, []).append(file.path)
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
            "remarked": sum(file.kind not in _EXCLUDED for file in exceptions),
            "named": [
                {
                    "path": shown(file.path)[:MAX_NAMED_CHARACTERS],
                    "kind": file.kind.value,
                    "problem": file.problem,
                }
                for file in nsmallest(
                    MAX_NAMED, exceptions, key=lambda file: (file.kind in _EXCLUDED, file.path)
                )
            ],
        },
    }
    if excluded:
        output["excluded_named"] = {
            kind: [shown(path)[:MAX_NAMED_CHARACTERS] for path in nsmallest(MAX_EXCLUDED, paths)]
            for kind, paths in excluded.items()
        }
    if all(file.kind is FileKind.FOLDER for file in files):
        output["note"] = "the card is empty"
    elif not counts[FileKind.MEDIA]:
        output["note"] = "no media found on the card"
    return output
