"""verify_folder: is what a library's manifests list still there, as it was?

Every file that a manifest below the folder lists is read from its device and
hashed as the manifest says; nothing in memory vouches for it where the system
lets us drop it (``kernel.forget_cached``). Each folder that has manifests of its own
answers for its own files. What no manifest lists is named, and is no damage: nobody
said how it should be.

Nothing is written unless it is asked for. ``write`` adds a generation with what was
found to each folder's manifests. ``repair_from`` names another copy of the folder:
a file that is damaged or missing is taken from there, if what is there is what the
manifest says (``verify_files.py``).

Finding damage is a result, not a failure: the step completes and says so
(``intact``). It fails where it can't tell: the folder isn't there, or has no manifest.

A folder may take days to read, so what was found is noted every few seconds, and an
attempt after a crash or a failure goes on from there. Of what was good, it looks only
whether it is still there with its size; what wasn't is read again. If the manifests have
become others, it begins anew.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import xxhash

from adapters.steps import kernel
from adapters.steps.cards import MAX_PATH_BYTES, open_file, open_folder
from adapters.steps.check_report import GOOD, REPAIRED, UNLISTED, Checked, CheckReport
from adapters.steps.faults import FileFault, LibraryFault, reason
from adapters.steps.library import Folder
from adapters.steps.mhl.documents import (
    MANIFESTS,
    Action,
    Creator,
    Generation,
    HashedFile,
    ManifestFault,
    Process,
)
from adapters.steps.mhl.history import History, Known, add_generation, read_history
from adapters.steps.rate import Rate
from adapters.steps.verify_files import NOT_THERE, Listed, Reading, Repair, joined
from adapters.steps.write_report import REPORTS
from application.authoring import PermanentError, Pipeline, StepContext, step
from application.ports import Clock
from application.report import size_text
from domain.errors import InvalidInput
from domain.footage import is_junk, shown

MAX_FINDINGS = 200
"""Damaged files that the output names; the counts are always whole."""

MAX_UNLISTED = 20
"""Files of no manifest, bad copies and notes that the output names, of each."""

MAX_SHOWN = 500
"""Characters of each name in the output, which is merged into the execution's data."""

NOTE_EVERY_S = 10.0
"""So much is read again after a crash, beside the file that was being read."""

MAX_NOTED = 1_000
MAX_NOTED_CHARACTERS = 300
"""Files that weren't good and that a checkpoint names, and of each reason: it is a row of
the database. A folder that is worse gets no later checkpoint."""

_NO_FILE = frozenset({errno.ELOOP, errno.ENXIO})
"""What opening a link or a socket says."""

_NEVER = datetime.fromtimestamp(0, UTC)
_NO_REGULAR_FILE = "is no regular file any more"


class Finding(StrEnum):
    """What is wrong with a file.

    UNCHECKED: its manifest has no hash that we could compare. MANIFEST: the manifests of
    this folder can't be believed, so nothing in it was checked.
    """

    MISSING = "missing"
    CHANGED = "changed"
    UNREADABLE = "unreadable"
    UNCHECKED = "unchecked"
    MANIFEST = "manifest"


def verify_folder(
    *, clock: Clock, roots: Sequence[str], card_roots: Sequence[str], creator: Creator
) -> Pipeline:
    """The pipeline that ``rushes verify`` starts. Its data: folder, repair_from, write, report."""
    verify = step(name="verify_files", pool="copy")
    handler = VerifyFolder(clock, roots, card_roots, creator)
    return Pipeline("verify_folder", [verify(handler)], check=handler.check)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The real paths of what a trigger's data name."""

    folder: str
    repair_from: str | None
    write: bool
    report: str | None


class VerifyFolder:
    """The step.

    roots: the folders at or below which it may look, and write if that is wanted.
    card_roots: those at or below which it may only look: nothing is written to a card.
    creator: who a generation says has written it.
    """

    def __init__(
        self, clock: Clock, roots: Sequence[str], card_roots: Sequence[str], creator: Creator
    ) -> None:
        self._clock = clock
        self._roots = tuple(roots)
        self._all_roots = (*roots, *card_roots)
        self._creator = creator

    def check(self, data: Mapping[str, Any]) -> None:
        """Raises ``InvalidInput`` for what could never be done, or isn't allowed here."""
        self._asked(data)

    def _asked(self, data: Mapping[str, Any]) -> _Asked:
        repair_from, write = data.get("repair_from"), data.get("write", False)
        report = data.get("report")
        if not isinstance(write, bool):
            raise InvalidInput(
                f"write must be true or false, not {str(write)[:100]!a}", field="write"
            )
        writes = write or repair_from is not None
        folder = self._allowed(data.get("folder"), "folder", writes=writes)
        if repair_from is not None:
            repair_from = self._allowed(repair_from, "repair_from", writes=False)
        if report is not None:
            above, name = os.path.split(report) if isinstance(report, str) else (report, "")
            if name.startswith(".") or not name.endswith((".csv", ".html")):
                raise InvalidInput(
                    f"report must be the path of a .csv or .html, not {str(report)[:300]!a}",
                    field="report",
                )
            report = os.path.join(self._allowed(above, "report", writes=True), name)
        return _Asked(folder, repair_from, write, report)

    def __call__(self, context: StepContext) -> dict[str, Any]:
        try:
            asked = self._asked(context.data)
        except InvalidInput as error:  # the settings may be others than at the trigger
            raise PermanentError(str(error)) from error
        path = asked.folder
        with ExitStack() as stack:
            folder = stack.enter_context(_open(path))
            other = None
            if asked.repair_from is not None:
                other = stack.enter_context(_open(asked.repair_from))
                if _is_same(other, folder):
                    raise PermanentError(f"{folder.text} can't be repaired from itself")
            report = None
            if asked.report is not None:
                report = stack.enter_context(CheckReport(asked.report))
            run = _Run(context, folder, other, self._clock, report, path=path, write=asked.write)
            places = list(_places(folder, context.check))
            if not places:
                raise PermanentError(
                    f"there is no manifest at {folder.text} or below it (a folder ascmhl), "
                    f"so there is nothing to verify it against{_hint(path)}"
                )
            histories = [place for place in places if run.expects(place)]
            if not (run.listed or run.bad):
                raise PermanentError(f"the manifests at {folder.text} list no file")
            run.go_on(context.checkpoint)
            for place in histories:
                checked = run.verify(place)
                if run.write and not run.has_written(place):
                    self._add(run, place or os.fsencode(os.path.basename(path)), place, checked)
            run.name_unlisted()
            if run.bad:
                run.refuse_if_gone()
            return run.result()

    def _add(self, run: _Run, name: bytes, place: bytes, checked: Sequence[HashedFile]) -> None:
        below = run.folder.find(place)
        if below is None:
            raise LibraryFault(f"{run.folder.name_text(place)} is gone")
        with below:
            added = add_generation(
                below,
                name.rpartition(b"/")[2],
                checked,
                creator=self._creator,
                process=Process.IN_PLACE,
                at=self._clock.now(),
            )
            if added.generation is not None:
                run.wrote(place, added.generation, below)

    def _allowed(self, path: object, field: str, *, writes: bool) -> str:
        """The real path, if it is at or below one of the roots. Raises ``InvalidInput``."""
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise InvalidInput(
                f"{field} must be an absolute path, not {str(path)[:300]!a}", field=field
            )
        try:
            if len(path.encode()) >= MAX_PATH_BYTES:
                raise InvalidInput(f"{field} is too long for a path", field=field)
        except UnicodeEncodeError:
            raise InvalidInput(f"{field} can't be encoded", field=field) from None
        real = os.path.realpath(path)
        roots = self._roots if writes else self._all_roots
        if not any(_is_below(real, os.path.realpath(root)) for root in roots):
            where = ", ".join(shown(os.fsencode(root)) for root in roots)
            what = "repaired or written to" if writes else "verified"
            cards = "" if writes else ", RUSHES_CARD_ROOTS"
            raise InvalidInput(
                f"{field} {shown(os.fsencode(real))[:300]} is refused: folders are {what} at or "
                f"below {where}, which the settings RUSHES_LIBRARY{cards} and "
                "RUSHES_VERIFY_ROOTS name",
                field=field,
            )
        return real


def _is_below(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root


def _open(path: str) -> Folder:
    """By its real path, so no component of it is a link unless one was just put there."""
    text = shown(os.fsencode(path))
    try:
        top = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return Folder(open_folder(top, os.fsencode(path).strip(b"/")), text)
        finally:
            kernel.close(top)
    except OSError as error:
        raise LibraryFault(f"the folder {text} can't be opened: {reason(error)}") from error


def _hint(path: str) -> str:
    """Which folder above has manifests, for who named one within it."""
    above = os.path.dirname(path)
    while above != "/":
        if os.path.isdir(os.path.join(above, os.fsdecode(MANIFESTS))):
            return f"; {shown(os.fsencode(above))} has manifests: verify that"
        above = os.path.dirname(above)
    return ""


def _is_same(one: Folder, other: Folder) -> bool:
    """Raises ``LibraryFault``."""
    try:
        return os.path.samestat(os.fstat(one.fd), os.fstat(other.fd))
    except OSError as error:
        raise LibraryFault(
            f"{one.text} and {other.text} can't be told apart: {reason(error)}"
        ) from error


def _is_there(path: str, folder: Folder) -> bool:
    try:
        with _open(path) as now:
            return _is_same(now, folder)
    except LibraryFault:
        return False


def _history(folder: Folder, place: bytes) -> History:
    below = folder.find(place)
    if below is None:
        raise LibraryFault(f"{folder.name_text(place)} is gone")
    with below:
        return read_history(below) or History()


@dataclass(frozen=True, slots=True)
class _Listing:
    """One folder: its path below the one that is verified, and what is in it."""

    path: bytes
    folders: Sequence[bytes]
    files: Sequence[bytes]


def _walk(folder: Folder, check: Callable[[], None]) -> Iterator[_Listing | FileFault]:
    """All folders below, one at a time, following no link; or why one can't be seen.

    Not what is in the trash, nor what else operating systems keep on a disk for themselves.
    """
    left = [b""]
    while left:
        check()
        path = left.pop()
        folders: list[bytes] = []
        files: list[bytes] = []
        try:
            fd = open_folder(folder.fd, path)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        is_folder = entry.is_dir(follow_symlinks=False)
                        (folders if is_folder else files).append(os.fsencode(entry.name))
            finally:
                kernel.close(fd)
        except OSError as error:
            yield FileFault(path, f"can't be looked into: {reason(error)}", error.errno)
            continue
        yield _Listing(path, folders, files)
        left += [
            joined(path, name)
            for name in sorted(folders, reverse=True)
            if name != MANIFESTS and not is_junk(name)
        ]


def _places(folder: Folder, check: Callable[[], None]) -> Iterator[bytes]:
    """The folders that have manifests of their own."""
    for found in _walk(folder, check):
        if isinstance(found, _Listing) and MANIFESTS in found.folders:
            yield found.path


@dataclass(frozen=True, slots=True)
class _Hashed:
    """What a generation would say of a file now."""

    size_bytes: int
    mtime_ns: int
    hashes: Mapping[str, str]
    action: Action


def _hashed(status: os.stat_result, hashes: Mapping[str, str], action: Action) -> _Hashed:
    return _Hashed(status.st_size, status.st_mtime_ns, hashes, action)


@dataclass(frozen=True, slots=True)
class _Noted:
    """What an earlier attempt has left: the first ``files`` files, in the manifests' order.

    again: those of them that weren't good, by their numbers: they are read again, as what
    was wrong may have been the cable. mended: why those needed it that were. at: when.
    """

    files: int = 0
    again: frozenset[int] = frozenset()
    mended: Mapping[str, str] = field(default_factory=dict)
    at: datetime = _NEVER


class _Run:
    """One attempt: what was expected, what was found, what was mended."""

    def __init__(
        self,
        context: StepContext,
        folder: Folder,
        other: Folder | None,
        clock: Clock,
        report: CheckReport | None,
        *,
        path: str,
        write: bool,
    ) -> None:
        self._context = context
        self.folder = folder
        self._clock = clock
        self._rate = Rate()
        self._table = report
        self._path = path
        self.write = write
        self._written: list[str] = []
        self._written_places = 0
        self._places: list[bytes] = []
        self._states: list[str] = []
        self._earlier = _Noted()
        self._again: list[int] = []
        self._mended: dict[str, str] = {}
        self._noted_at_s = clock.monotonic()
        self.listed = self._files_done = 0
        self._bytes_total = self._bytes_done = 0
        self._file = ""
        self._file_bytes = 0
        self._good = self._repaired = self._checked_bytes = 0
        self._state: tuple[str, str] = (GOOD, "")
        self._counts: Counter[Finding] = Counter()
        self._findings: list[dict[str, str]] = []
        self._put_aside: list[str] = []
        self._notes: list[str] = []
        self._generations = 0
        self._listed_paths: set[bytes] = set()
        self._beside: Mapping[bytes, Known] = {}
        self._unlisted: list[str] = []
        self._unlisted_count = 0
        self._reading = Reading(context.check, self._read)
        self._repair = None if other is None else Repair(folder, other, self._reading, self._kept)

    @property
    def bad(self) -> int:
        return self._counts.total()

    def expects(self, place: bytes) -> bool:
        """Whether this folder's manifests say what should be there."""
        try:
            history = _history(self.folder, place)
        except ManifestFault as fault:
            self._keep(joined(place, MANIFESTS), Finding.MANIFEST, str(fault))
            return False
        self._places.append(place)
        self._states.append(
            " ".join([place.hex(), *(each.c4 for each in history.generations)])
            + f" {len(history.files)}"
        )
        self._generations += len(history.generations)
        self.listed += len(history.files)
        self._bytes_total += sum(known.size_bytes or 0 for known in history.files.values())
        if history.unchained is not None:
            self._note(
                f"{self._text(place)}: the chain doesn't know {shown(history.unchained)}: its "
                "writing broke off, or it was added"
            )
        if history.replaced:
            self._note(
                f"{self._text(place)}: {len(history.replaced)} files are listed with other "
                "contents than earlier; the latest counts"
            )
        return True

    def go_on(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Take what an earlier attempt has noted for read, if the manifests are still those."""
        if checkpoint is None or checkpoint["manifests"] != self._manifests(checkpoint["written"]):
            return
        self._earlier = _Noted(
            checkpoint["files"],
            frozenset(checkpoint["again"]),
            checkpoint["mended"],
            datetime.fromisoformat(checkpoint["at"]),
        )
        self._written_places = checkpoint["written"]
        self._written = list(checkpoint["written_names"])
        self._put_aside = list(checkpoint["put_aside"])

    def has_written(self, place: bytes) -> bool:
        """Whether an earlier attempt has added its generation."""
        return self._places.index(place) < self._written_places

    def wrote(self, place: bytes, generation: Generation, folder: Folder) -> None:
        self._written.append(folder.name_text(MANIFESTS + b"/" + generation.name))
        self._written_places = self._places.index(place) + 1
        self._note_down()

    def refuse_if_gone(self) -> None:
        """A disk that is away makes every file of its look missing. Raises ``LibraryFault``."""
        if not _is_there(self._path, self.folder):
            raise LibraryFault(f"{self.folder.text} is gone: it was there when this began")

    def verify(self, place: bytes) -> list[HashedFile]:
        """Look at all files of one folder's manifests; what is to be written of them.

        The manifests are read anew, so that those of one folder at a time are in memory.
        """
        checked: list[HashedFile] = []
        self._beside = _history(self.folder, place).files
        for path, known in self._beside.items():
            before, self._file_bytes = self._bytes_done, 0
            self._file = shown(joined(place, path))[:MAX_SHOWN]
            self._state = (GOOD, "")
            number = self._files_done
            at = self._earlier.at
            hashed = self._as_noted(number, place, path, known)
            if hashed is None:
                hashed = self._verify_one(place, path, known)
                at = self._clock.now()
            self._keep_state(number, place, path, known)
            if hashed is not None and self.write:
                checked.append(
                    HashedFile(
                        path,
                        hashed.size_bytes,
                        hashed.mtime_ns,
                        hashed.hashes,
                        at,
                        hashed.action,
                    )
                )
            self._files_done += 1
            self._bytes_done = before + (known.size_bytes or 0)
            self._file_bytes = 0
            self._report()
            is_further = self._files_done > self._earlier.files
            if is_further and self._clock.monotonic() - self._noted_at_s >= NOTE_EVERY_S:
                self._note_down()
        return checked

    def _keep_state(self, number: int, place: bytes, path: bytes, known: Known) -> None:
        """For the report, and for an attempt after this one."""
        finding, why = self._state
        if self._table is not None:
            row = Checked(joined(place, path), finding, why, known.size_bytes, known.hashes)
            self._table.add(row)
        if finding == REPAIRED:
            self._mended[str(number)] = why[:MAX_NOTED_CHARACTERS]
        elif finding != GOOD:
            self._again.append(number)

    def _as_noted(self, number: int, place: bytes, path: bytes, known: Known) -> _Hashed | None:
        """A file that an earlier attempt found good, or mended; None if it has to be read."""
        if number >= self._earlier.files or number in self._earlier.again:
            return None
        file = Listed(place, path, known)
        fd = self._open(file)
        if not isinstance(fd, int):
            return None
        try:
            status = os.fstat(fd)
        except OSError:
            return None
        finally:
            kernel.close(fd)
        if not stat.S_ISREG(status.st_mode) or known.size_bytes not in (None, status.st_size):
            return None
        self._listed_paths.add(file.found)
        if str(number) in self._earlier.mended:
            self._repaired += 1
            self._state = (REPAIRED, self._earlier.mended[str(number)])
        else:
            self._good += 1
            self._checked_bytes += status.st_size
        return _hashed(status, known.hashes, Action.VERIFIED)

    def _note_down(self) -> None:
        """Leave a checkpoint, unless it would have to name too many files."""
        if len(self._again) + len(self._mended) > MAX_NOTED:
            return
        self.refuse_if_gone()
        self._context.heartbeat(
            {
                "manifests": self._manifests(self._written_places),
                "files": self._files_done,
                "again": self._again,
                "mended": self._mended,
                "at": self._clock.now().isoformat(),
                "written": self._written_places,
                "written_names": self._written[:MAX_UNLISTED],
                "put_aside": self._put_aside[:MAX_UNLISTED],
            }
        )
        self._noted_at_s = self._clock.monotonic()

    def _manifests(self, written: int) -> str:
        """Which ones are gone by. Those of the first ``written`` folders we have added to."""
        states = [
            state.split()[-1] if number < written else state
            for number, state in enumerate(self._states)
        ]
        return xxhash.xxh128("\n".join(states).encode()).hexdigest()

    def _text(self, place: bytes) -> str:
        return self.folder.name_text(place) if place else self.folder.text

    def _verify_one(self, place: bytes, path: bytes, known: Known) -> _Hashed | None:
        """What is to be written of it, if anything."""
        file = Listed(place, path, known)
        fd = self._open(file)
        self._listed_paths.add(file.found)
        if not isinstance(fd, int):
            return self._mend(file, *fd)
        try:
            status = os.fstat(fd)
            unlike = self._unlike(status, known)
            hashes = {} if unlike or not known.hashes else self._reading.hashes_of(fd, known)
        except OSError as error:
            return self._mend(file, Finding.UNREADABLE, f"can't be read: {reason(error)}")
        finally:
            kernel.close(fd)
        if unlike:
            return self._mend(file, Finding.CHANGED, unlike)
        if not known.hashes:
            self._keep(file.full, Finding.UNCHECKED, "its manifest has no hash known here")
            return None
        self._checked_bytes += status.st_size
        if hashes == known.hashes:
            self._good += 1
            return _hashed(status, hashes, Action.VERIFIED)
        name = next(name for name, value in hashes.items() if value != known.hashes[name])
        why = f"has the {name} {hashes[name]}, not {known.hashes[name]}"
        mended = self._mend(file, Finding.CHANGED, why)
        return mended or _hashed(status, hashes, Action.FAILED)

    def _unlike(self, status: os.stat_result, known: Known) -> str:
        """Why it can't be what is listed, by its status alone."""
        if not stat.S_ISREG(status.st_mode):
            return _NO_REGULAR_FILE
        if known.size_bytes not in (None, status.st_size) and not self.write:
            return f"has {status.st_size} bytes, not {known.size_bytes}"
        return ""

    def _open(self, file: Listed) -> int | tuple[Finding, str]:
        """It, open, under the name that it has here; or what is wrong with it, and why.

        A name that went through another system may have its letters composed differently.
        """
        for name in file.spellings(self._beside):
            try:
                fd = open_file(self.folder.fd, name)
            except OSError as error:
                if error.errno in NOT_THERE:
                    continue
                file.found = name
                if error.errno in _NO_FILE:
                    return Finding.CHANGED, _NO_REGULAR_FILE
                return Finding.UNREADABLE, f"can't be opened: {reason(error)}"
            file.found = name
            return fd
        return Finding.MISSING, ""

    def _mend(self, file: Listed, finding: Finding, why: str) -> _Hashed | None:
        """Repair it, if that is wanted; None if it is as bad as before, and is named."""
        if self._repair is not None:
            try:
                status = self._repair(file)
            except FileFault as fault:
                but = str(fault).removeprefix(f"{shown(file.full)}: ")
                why = f"{why}; not repaired: {but}" if why else but
            else:
                self._repaired += 1
                self._state = (REPAIRED, why)
                return _hashed(status, file.known.hashes, Action.VERIFIED)
        self._keep(file.full, finding, why)
        return None

    def _read(self, count: int) -> None:
        self._file_bytes += count
        self._report()

    def _kept(self, name: str) -> None:
        self._put_aside.append(name[:MAX_SHOWN])

    def _keep(self, path: bytes, finding: Finding, why: str) -> None:
        self._counts[finding] += 1
        self._state = (finding.value, why)
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(
                {
                    "path": shown(path)[:MAX_SHOWN],
                    "finding": finding.value,
                    "detail": why[: 2 * MAX_SHOWN],
                }
            )

    def _note(self, text: str) -> None:
        if len(self._notes) < MAX_UNLISTED:
            self._notes.append(text[: 2 * MAX_SHOWN])

    def name_unlisted(self) -> None:
        """What is there and in no manifest, but for what operating systems leave behind.

        And but for our own reports, which lie beside the jobs' folders.
        """
        is_library = b"" not in self._places
        for found in _walk(self.folder, self._context.check):
            if isinstance(found, FileFault):
                self._note(str(found))
                continue
            for name in sorted(found.files):
                path = joined(found.path, name)
                if path in self._listed_paths or is_junk(name):
                    continue
                if is_library and found.path == REPORTS and name.endswith((b".html", b".csv")):
                    continue
                self._unlisted_count += 1
                if self._table is not None:
                    self._table.add(Checked(path, UNLISTED, "", None, {}))
                if len(self._unlisted) < MAX_UNLISTED:
                    self._unlisted.append(shown(path)[:MAX_SHOWN])

    def _report(self) -> None:
        # What is read more than once, or is longer than it should be, is no progress.
        bytes_done = min(self._bytes_done + self._file_bytes, self._bytes_total)
        # Nor is it a speed to pass by what an earlier attempt has read.
        rate = (
            self._rate.at(self._clock.monotonic(), bytes_done, self._bytes_total)
            if self._files_done >= self._earlier.files
            else {}
        )
        # Files count beside their bytes, so that empty ones are something too.
        self._context.progress(
            (bytes_done + self._files_done) / max(1, self._bytes_total + self.listed),
            files_done=self._files_done,
            files_total=self.listed,
            bytes_done=bytes_done,
            bytes_total=self._bytes_total,
            file=self._file,
            **rate,
        )

    def result(self) -> dict[str, Any]:
        output: dict[str, Any] = {
            "intact": not self.bad,
            "generations": self._generations,
            "listed_files": self.listed,
            "good_files": self._good,
            "repaired_files": self._repaired,
            "checked_bytes": self._checked_bytes,
            "bad_files": self.bad,
            "damage": {kind.value: count for kind, count in sorted(self._counts.items())},
            "unlisted_files": self._unlisted_count,
        }
        more = {
            "findings": self._findings,
            "unlisted": self._unlisted,
            "put_aside": self._put_aside[:MAX_UNLISTED],
            "notes": self._notes,
            "written": self._written[:MAX_UNLISTED],
        }
        output |= {name: value for name, value in more.items() if value}
        if self._table is not None:
            output["report"] = self._table.finish(
                f"Verification of {self.folder.text}", self._facts(), is_intact=not self.bad
            )
        return output

    def _facts(self) -> Mapping[str, str]:
        now = self._clock.now().astimezone(UTC)
        return {
            "Verified on": f"{now:%Y-%m-%d %H:%M:%S} UTC",
            "Listed files": f"{self.listed} ({size_text(self._bytes_total)})",
            "As the manifests say": str(self._good),
            "Repaired": str(self._repaired),
            "Damaged or missing": str(self.bad),
            "In no manifest": str(self._unlisted_count),
            "Generations": str(self._generations),
            **({"Damaged files were kept": "; ".join(self._put_aside)} if self._put_aside else {}),
            **({"Notes": "; ".join(self._notes)} if self._notes else {}),
        }
