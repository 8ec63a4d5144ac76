"""verify_folder: is what a library's manifests list still there, as it was?

Every file that a manifest below the folder lists is read from its device and
hashed as the manifest says; nothing in memory vouches for it where the system
lets us drop it (``kernel.forget_cached``). Each folder that has manifests of its own
answers for its own files. What no manifest lists is named, and is no damage: nobody
said how it should be.

Nothing is written unless it is asked for. ``write`` adds a generation with what was
found to each folder's manifests. ``repair_from`` names another copy of the folder:
a file that is damaged or missing is taken from there, if what is there is what the
manifest says. It goes the way of every copy: into a part, hashed while it is read,
synced, read back from the device, published under a name that is free. The damaged
one is put aside under another name first, and kept.

Finding damage is a result, not a failure: the step completes and says so
(``intact``). It fails where it can't tell: the folder isn't there, or has no manifest.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from adapters.steps import kernel
from adapters.steps.cards import MAX_PATH_BYTES, open_file, open_folder
from adapters.steps.faults import FileFault, LibraryFault, reason
from adapters.steps.hashes import Hashes
from adapters.steps.library import Folder
from adapters.steps.mhl.documents import (
    MANIFESTS,
    Action,
    Creator,
    HashedFile,
    ManifestFault,
    Process,
)
from adapters.steps.mhl.history import History, Known, add_generation, read_history
from application.authoring import PermanentError, Pipeline, StepContext, step
from application.ports import Clock
from domain.footage import is_junk, shown

BUFFER_BYTES = 4 * 1024 * 1024
"""Long reads for the disk's sake; small enough that a stop is seen at once."""

MAX_FINDINGS = 200
"""Damaged files that the output names; the counts are always whole."""

MAX_UNLISTED = 20
"""Files of no manifest, bad copies and notes that the output names, of each."""

MAX_SHOWN = 500
"""Characters of each name in the output, which is merged into the execution's data."""

_NOT_THERE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG}
)
_NO_FILE = frozenset({errno.ELOOP, errno.ENXIO})
"""What opening a link or a socket says."""

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
    """The pipeline that ``rushes verify`` starts. Its data: folder, repair_from, write."""
    verify = step(name="verify_files", pool="copy")
    return Pipeline("verify_folder", [verify(VerifyFolder(clock, roots, card_roots, creator))])


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

    def __call__(self, context: StepContext) -> dict[str, Any]:
        repair_from, write = context.data.get("repair_from"), context.data.get("write", False)
        if not isinstance(write, bool):
            raise PermanentError(f"write must be true or false, not {str(write)[:100]!a}")
        writes = write or repair_from is not None
        path = self._allowed(context.data.get("folder"), "folder", writes=writes)
        with ExitStack() as stack:
            folder = stack.enter_context(_open(path))
            other = None
            if repair_from is not None:
                other_path = self._allowed(repair_from, "repair_from", writes=False)
                other = stack.enter_context(_open(other_path))
                if os.path.samestat(os.fstat(other.fd), os.fstat(folder.fd)):
                    raise PermanentError(f"{folder.text} can't be repaired from itself")
            run = _Run(context, folder, other, write=write)
            places = list(_places(folder, context.check))
            if not places:
                raise PermanentError(
                    f"there is no manifest at {folder.text} or below it (a folder ascmhl), "
                    f"so there is nothing to verify it against{_hint(path)}"
                )
            histories = [place for place in places if run.expects(place)]
            if not (run.listed or run.bad):
                raise PermanentError(f"the manifests at {folder.text} list no file")
            for place in histories:
                checked = run.verify(place, self._clock)
                if run.write:
                    self._add(run, place or os.fsencode(os.path.basename(path)), place, checked)
            run.name_unlisted()
            if run.bad and not _is_there(path, folder):
                raise LibraryFault(f"{folder.text} is gone: it was there when this began")
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
                run.written.append(below.name_text(MANIFESTS + b"/" + added.generation.name))

    def _allowed(self, path: object, field: str, *, writes: bool) -> str:
        """The real path, if it is at or below one of the roots. Raises ``PermanentError``."""
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise PermanentError(f"{field} must be an absolute path, not {str(path)[:300]!a}")
        try:
            if len(path.encode()) >= MAX_PATH_BYTES:
                raise PermanentError(f"{field} is too long for a path")
        except UnicodeEncodeError:
            raise PermanentError(f"{field} can't be encoded") from None
        real = os.path.realpath(path)
        roots = self._roots if writes else self._all_roots
        if not any(_is_below(real, os.path.realpath(root)) for root in roots):
            where = ", ".join(shown(os.fsencode(root)) for root in roots)
            what = "repaired or given manifests" if writes else "verified"
            cards = "" if writes else ", RUSHES_CARD_ROOTS"
            raise PermanentError(
                f"{field} {shown(os.fsencode(real))[:300]} is refused: folders are {what} at or "
                f"below {where}, which the settings RUSHES_LIBRARY{cards} and "
                "RUSHES_VERIFY_ROOTS name"
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
            os.close(top)
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


def _is_there(path: str, folder: Folder) -> bool:
    try:
        with _open(path) as now:
            return os.path.samestat(os.fstat(now.fd), os.fstat(folder.fd))
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
                os.close(fd)
        except OSError as error:
            yield FileFault(path, f"can't be looked into: {reason(error)}", error.errno)
            continue
        yield _Listing(path, folders, files)
        left += [
            _join(path, name)
            for name in sorted(folders, reverse=True)
            if name != MANIFESTS and not is_junk(name)
        ]


def _places(folder: Folder, check: Callable[[], None]) -> Iterator[bytes]:
    """The folders that have manifests of their own."""
    for found in _walk(folder, check):
        if isinstance(found, _Listing) and MANIFESTS in found.folders:
            yield found.path


@dataclass(slots=True)
class _File:
    """A file of a manifest. ``found`` is its path as it is here, if it is."""

    place: bytes
    path: bytes
    known: Known
    found: bytes = b""

    def __post_init__(self) -> None:
        self.found = self.full

    @property
    def full(self) -> bytes:
        return _join(self.place, self.path)

    def spellings(self) -> Iterator[bytes]:
        yield self.full
        with suppress(UnicodeDecodeError):
            text = self.path.decode()
            for other in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
                if other != text:
                    yield _join(self.place, other.encode())


@dataclass(frozen=True, slots=True)
class _Hashed:
    """What a generation would say of a file now."""

    status: os.stat_result
    hashes: Mapping[str, str]
    action: Action


class _Run:
    """One attempt: what was expected, what was found, what was mended."""

    def __init__(
        self, context: StepContext, folder: Folder, other: Folder | None, *, write: bool
    ) -> None:
        self._context = context
        self.folder = folder
        self._other = other
        self.write = write
        self.written: list[str] = []
        self.listed = self._files_done = 0
        self._bytes_total = self._bytes_done = 0
        self._file = ""
        self._file_bytes = 0
        self._good = self._repaired = self._checked_bytes = 0
        self._counts: Counter[Finding] = Counter()
        self._findings: list[dict[str, str]] = []
        self._put_aside: list[str] = []
        self._notes: list[str] = []
        self._generations = 0
        self._listed_paths: set[bytes] = set()
        self._unlisted: list[str] = []
        self._unlisted_count = 0
        self._buffer = bytearray(BUFFER_BYTES)

    @property
    def bad(self) -> int:
        return self._counts.total()

    def expects(self, place: bytes) -> bool:
        """Whether this folder's manifests say what should be there."""
        try:
            history = _history(self.folder, place)
        except ManifestFault as fault:
            self._keep(_join(place, MANIFESTS), Finding.MANIFEST, str(fault))
            return False
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

    def verify(self, place: bytes, clock: Clock) -> list[HashedFile]:
        """Look at all files of one folder's manifests; what is to be written of them.

        The manifests are read anew, so that those of one folder at a time are in memory.
        """
        checked: list[HashedFile] = []
        for path, known in _history(self.folder, place).files.items():
            before, self._file_bytes = self._bytes_done, 0
            self._file = shown(_join(place, path))[:MAX_SHOWN]
            hashed = self._verify_one(place, path, known)
            if hashed is not None and self.write:
                now = clock.now()
                checked.append(
                    HashedFile(
                        path,
                        hashed.status.st_size,
                        hashed.status.st_mtime_ns,
                        hashed.hashes,
                        now,
                        hashed.action,
                    )
                )
            self._files_done += 1
            self._bytes_done = before + (known.size_bytes or 0)
            self._file_bytes = 0
            self._report()
        return checked

    def _text(self, place: bytes) -> str:
        return self.folder.name_text(place) if place else self.folder.text

    def _verify_one(self, place: bytes, path: bytes, known: Known) -> _Hashed | None:
        """What is to be written of it, if anything."""
        file = _File(place, path, known)
        fd = self._open(file)
        self._listed_paths.add(file.found)
        if not isinstance(fd, int):
            return self._mend(file, *fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return self._mend(file, Finding.CHANGED, _NO_REGULAR_FILE)
            size = known.size_bytes
            if size is not None and status.st_size != size and not self.write:
                why = f"has {status.st_size} bytes, not {size}"
                return self._mend(file, Finding.CHANGED, why)
            if not known.hashes:
                self._keep(file.full, Finding.UNCHECKED, "its manifest has no hash known here")
                return None
            try:
                hashes = self._hash(fd, known)
            except OSError as error:
                return self._mend(file, Finding.UNREADABLE, f"can't be read: {reason(error)}")
        finally:
            os.close(fd)
        self._checked_bytes += status.st_size
        if hashes == known.hashes:
            self._good += 1
            return _Hashed(status, hashes, Action.VERIFIED)
        name = next(name for name, value in hashes.items() if value != known.hashes[name])
        why = f"has the {name} {hashes[name]}, not {known.hashes[name]}"
        mended = self._mend(file, Finding.CHANGED, why)
        return mended or _Hashed(status, hashes, Action.FAILED)

    def _open(self, file: _File) -> int | tuple[Finding, str]:
        """It, open, under the name that it has here; or what is wrong with it, and why.

        A name that went through another system may have its letters composed differently.
        """
        for name in file.spellings():
            try:
                fd = open_file(self.folder.fd, name)
            except OSError as error:
                if error.errno in _NOT_THERE:
                    continue
                file.found = name
                if error.errno in _NO_FILE:
                    return Finding.CHANGED, _NO_REGULAR_FILE
                return Finding.UNREADABLE, f"can't be opened: {reason(error)}"
            file.found = name
            return fd
        return Finding.MISSING, ""

    def _hash(self, fd: int, known: Known) -> dict[str, str]:
        hashes = Hashes(known.hashes)
        kernel.forget_cached(fd)
        kernel.read_sequentially(fd)
        for chunk in self._chunks(fd):
            hashes.update(chunk)
        kernel.forget_cached(fd)
        return hashes.values()

    def _chunks(self, fd: int) -> Iterator[memoryview]:
        while True:
            self._context.check()
            count = os.readv(fd, [self._buffer])
            if not count:
                return
            yield memoryview(self._buffer)[:count]
            self._file_bytes += count
            self._report()

    def _mend(self, file: _File, finding: Finding, why: str) -> _Hashed | None:
        """Repair it, if that is wanted; None if it is as bad as before, and is named."""
        if self._other is not None:
            try:
                status = self._repair(self._other, file)
            except FileFault as fault:
                but = str(fault).removeprefix(f"{shown(file.full)}: ")
                why = f"{why}; not repaired: {but}" if why else but
            else:
                self._repaired += 1
                return _Hashed(status, file.known.hashes, Action.VERIFIED)
        self._keep(file.full, finding, why)
        return None

    def _repair(self, other: Folder, file: _File) -> os.stat_result:
        """Bring it from the other folder.

        Raises ``FileFault`` if this file can't be brought, ``LibraryFault`` if none can.
        """
        above, _, name = file.found.rpartition(b"/")
        known = file.known
        if not known.hashes:
            raise FileFault(file.full, "its manifest has no hash known here")
        with ExitStack() as stack:
            source = _source(stack, other, file)
            folder = stack.enter_context(self.folder.make(above))
            there = folder.status(name, file.full)
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise FileFault(file.full, "a folder has its name")
            folder.remove_leftovers({name})
            part, fd = folder.new_part(name, file.full)
            stack.callback(_remove, folder, part)
            with folder.faults():
                if self._copy(source, fd, known, other, file) != known.hashes:
                    raise _no_better(other, file)
                back = folder.open_file(part)
                try:
                    is_good = self._hash(back, known) == known.hashes
                finally:
                    os.close(back)
                if not is_good:
                    aside = folder.name_text(folder.put_aside(part))
                    raise LibraryFault(
                        f"{shown(file.full)}: the library's side is wrong: what {folder.text} "
                        f"gives back is not what was just written; the bad copy is {aside}"
                    )
                if there is not None:
                    bad = part.removesuffix(b".part") + b".bad"
                    kernel.rename_without_replacing(name, bad, dir_fd=folder.fd)
                    self._put_aside.append(folder.name_text(bad)[:MAX_SHOWN])
            folder.publish(part, name, file.full)
            with folder.faults():
                kernel.sync_folder(folder.fd)
                return os.stat(name, dir_fd=folder.fd, follow_symlinks=False)

    def _copy(
        self, source: int, target: int, known: Known, other: Folder, file: _File
    ) -> dict[str, str]:
        """Closes the target, which is synced then and in nobody's memory."""
        hashes = Hashes(known.hashes)
        times = os.fstat(source)
        try:
            kernel.forget_cached(source)
            kernel.read_sequentially(source)
            chunks = self._chunks(source)
            while True:
                try:
                    chunk = next(chunks, None)
                except OSError as error:
                    raise _unreadable(other, file, error) from error
                if chunk is None:
                    break
                hashes.update(chunk)
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]
            with suppress(PermissionError):  # some mounts set times for owners only
                os.utime(target, ns=(times.st_mtime_ns, times.st_mtime_ns))
            kernel.sync_file(target)
            kernel.forget_cached(target)
        finally:
            os.close(target)
        return hashes.values()

    def _keep(self, path: bytes, finding: Finding, why: str) -> None:
        self._counts[finding] += 1
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
        """What is there and in no manifest, but for what operating systems leave behind."""
        for found in _walk(self.folder, self._context.check):
            if isinstance(found, FileFault):
                self._note(str(found))
                continue
            for name in sorted(found.files):
                path = _join(found.path, name)
                if path in self._listed_paths or is_junk(name):
                    continue
                self._unlisted_count += 1
                if len(self._unlisted) < MAX_UNLISTED:
                    self._unlisted.append(shown(path)[:MAX_SHOWN])

    def _report(self) -> None:
        # What is read more than once, or is longer than it should be, is no progress.
        bytes_done = min(self._bytes_done + self._file_bytes, self._bytes_total)
        # Files count beside their bytes, so that empty ones are something too.
        self._context.progress(
            (bytes_done + self._files_done) / max(1, self._bytes_total + self.listed),
            files_done=self._files_done,
            files_total=self.listed,
            bytes_done=bytes_done,
            bytes_total=self._bytes_total,
            file=self._file,
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
            "written": self.written[:MAX_UNLISTED],
        }
        return output | {name: value for name, value in more.items() if value}


def _source(stack: ExitStack, other: Folder, file: _File) -> int:
    """The file in the other folder. Raises ``FileFault`` if it can't be the one that is wanted."""
    for name in file.spellings():
        try:
            fd = open_file(other.fd, name)
        except OSError as error:
            if error.errno in _NOT_THERE:
                continue
            raise _unreadable(other, file, error) from error
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or file.known.size_bytes not in (None, status.st_size):
            raise _no_better(other, file)
        return fd
    raise FileFault(file.full, f"it is not at {other.text} either")


def _no_better(other: Folder, file: _File) -> FileFault:
    return FileFault(file.full, f"what {other.text} has of it is damaged too")


def _unreadable(other: Folder, file: _File, error: OSError) -> FileFault:
    return FileFault(file.full, f"it can't be read at {other.text}: {reason(error)}", error.errno)


def _remove(folder: Folder, part: bytes) -> None:
    with suppress(OSError):  # a disk that is gone keeps it until the next repair
        folder.remove(part)


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
