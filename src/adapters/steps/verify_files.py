"""One file that a manifest lists: under which names it may be here, how it is read and mended.

What is mended goes the way of every copy: into a part, hashed while it is read, synced, read
back from the device, published under a name that is free. The damaged one is put aside under
another name first, and kept.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from adapters.steps import kernel
from adapters.steps.cards import open_file
from adapters.steps.faults import FileFault, LibraryFault, reason
from adapters.steps.hashes import Hashes
from adapters.steps.library import Folder
from adapters.steps.mhl.history import Known
from domain.footage import same_time, shown

BUFFER_BYTES = 4 * 1024 * 1024
"""Long reads for the disk's sake; small enough that a stop is seen at once."""

NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG})


@dataclass(slots=True)
class Listed:
    """A file of a manifest. ``found`` is its path as it is here, if it is."""

    place: bytes
    path: bytes
    known: Known
    found: bytes = b""

    def __post_init__(self) -> None:
        self.found = self.full

    @property
    def full(self) -> bytes:
        return joined(self.place, self.path)

    def spellings(self, listed: Mapping[bytes, Known] | None = None) -> Iterator[bytes]:
        """``listed``: beside it; what has one of these names for its own is another file."""
        yield self.full
        with suppress(UnicodeDecodeError):
            text = self.path.decode()
            for other in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
                name = other.encode()
                if other != text and not (listed and self._is_another(listed.get(name))):
                    yield joined(self.place, name)

    def _is_another(self, listed: Known | None) -> bool:
        hashes = {} if listed is None else listed.hashes
        return any(self.known.hashes.get(name, value) != value for name, value in hashes.items())


class Reading:
    """From the device. check: raises at a stop; told: of how many bytes were read."""

    def __init__(self, check: Callable[[], None], told: Callable[[int], None]) -> None:
        self._check = check
        self._told = told
        self._buffer = bytearray(BUFFER_BYTES)

    def hashes_of(self, fd: int, known: Known) -> dict[str, str]:
        hashes = Hashes(known.hashes)
        kernel.forget_cached(fd)
        kernel.read_sequentially(fd)
        for chunk in self.chunks(fd):
            hashes.update(chunk)
        kernel.forget_cached(fd)
        return hashes.values()

    def chunks(self, fd: int) -> Iterator[memoryview]:
        while True:
            self._check()
            count = os.readv(fd, [self._buffer])
            if not count:
                return
            yield memoryview(self._buffer)[:count]
            self._told(count)


class Repair:
    """Brings files of ``folder`` from another copy of it, ``other``.

    put_aside: is told under which names the damaged ones were kept.
    """

    def __init__(
        self, folder: Folder, other: Folder, reading: Reading, put_aside: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._other = other
        self._reading = reading
        self._put_aside = put_aside

    def __call__(self, file: Listed) -> os.stat_result:
        """Bring it from the other folder.

        Raises ``FileFault`` if this file can't be brought, ``LibraryFault`` if none can.
        """
        above, _, name = file.found.rpartition(b"/")
        known = file.known
        if not known.hashes:
            raise FileFault(file.full, "its manifest has no hash known here")
        with ExitStack() as stack:
            source, mtime_ns = self._source(stack, file)
            folder = stack.enter_context(self._folder.make(above))
            there = folder.status(name, file.full)
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise FileFault(file.full, "a folder has its name")
            folder.remove_leftovers({name})
            part, fd = folder.new_part(name, file.full)
            stack.callback(_remove, folder, part)
            with folder.faults():
                times_ns = [mtime_ns]
                if there is not None and stat.S_ISREG(there.st_mode):
                    times_ns.insert(0, there.st_mtime_ns)
                if self._copy(source, fd, file, _changed_at(known, times_ns)) != known.hashes:
                    raise self._no_better(file)
                back = folder.open_file(part)
                try:
                    is_good = self._reading.hashes_of(back, known) == known.hashes
                finally:
                    kernel.close(back)
                if not is_good:
                    aside = folder.name_text(folder.put_aside(part))
                    raise LibraryFault(
                        f"{shown(file.full)}: the library's side is wrong: what {folder.text} "
                        f"gives back is not what was just written; the bad copy is {aside}"
                    )
                if there is not None:
                    bad = part.removesuffix(b".part") + b".bad"
                    folder.move(name, bad)
                    self._put_aside(folder.name_text(bad))
            folder.publish(part, name, file.full)
            with folder.faults():
                kernel.sync_folder(folder.fd)
                return os.stat(name, dir_fd=folder.fd, follow_symlinks=False)

    def _copy(self, source: int, target: int, file: Listed, mtime_ns: int) -> dict[str, str]:
        """Closes the target, which is synced then and in nobody's memory."""
        hashes = Hashes(file.known.hashes)
        try:
            kernel.forget_cached(source)
            kernel.read_sequentially(source)
            chunks = self._reading.chunks(source)
            while True:
                try:
                    chunk = next(chunks, None)
                except OSError as error:
                    raise self._unreadable(file, error) from error
                if chunk is None:
                    break
                hashes.update(chunk)
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]
            kernel.set_time(target, mtime_ns)
            kernel.sync_file(target)
            kernel.forget_cached(target)
        finally:
            kernel.close(target)
        return hashes.values()

    def _source(self, stack: ExitStack, file: Listed) -> tuple[int, int]:
        """The file in the other folder, and when that was changed last.

        Raises ``FileFault`` if it can't be the one that is wanted.
        """
        for name in file.spellings():
            try:
                fd = open_file(self._other.fd, name)
            except OSError as error:
                if error.errno in NOT_THERE:
                    continue
                raise self._unreadable(file, error) from error
            stack.callback(kernel.close, fd)
            try:
                status = os.fstat(fd)
            except OSError as error:
                raise self._unreadable(file, error) from error
            wanted = (None, status.st_size)
            if not stat.S_ISREG(status.st_mode) or file.known.size_bytes not in wanted:
                raise self._no_better(file)
            return fd, status.st_mtime_ns
        raise FileFault(file.full, f"it is not at {self._other.text} either")

    def _no_better(self, file: Listed) -> FileFault:
        return FileFault(file.full, f"what {self._other.text} has of it is damaged too")

    def _unreadable(self, file: Listed, error: OSError) -> FileFault:
        return FileFault(
            file.full, f"it can't be read at {self._other.text}: {reason(error)}", error.errno
        )


def _changed_at(known: Known, times_ns: Sequence[int]) -> int:
    """When a file that is mended was changed last, in ns since the epoch.

    As its manifest says, since its copies may have been made without their times; but that
    counts in seconds, so the first of theirs that is the same one. times_ns: the damaged
    file's own if it has one, then the other copy's; the first of them where no manifest says.
    """
    if known.mtime_ns is None:
        return times_ns[0]
    same = (each for each in times_ns if same_time(each, known.mtime_ns))
    return next(same, known.mtime_ns)


def _remove(folder: Folder, part: bytes) -> None:
    with suppress(OSError):  # a disk that is gone keeps it until the next repair
        folder.remove(part)


def joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
