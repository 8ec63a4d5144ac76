"""The copy: one file in, one verified file out.

What can be believed
    A copy is good when the bytes that come back from the library's device are
    those that came off the card. That is less obvious than it sounds: after a
    write, reading gives back what is still in memory, whatever the device made
    of it. So the order is always the same:

    1. The source is read once, and hashed on the way to the part file. Its
       length has to be the size that ``fstat`` gave, and a second ``fstat`` has to
       agree with the first, or it was being written meanwhile.
    2. The part gets its time and is synced. Only clean pages can be dropped from
       memory, so the sync comes before the dropping.
    3. It is opened anew, read from the device and hashed again.
    4. If the hashes agree it is renamed to its final name, in a way that fails if
       the name is taken; then the folder is synced.

    Only after that does anybody tell the ledger. A crash in between leaves a
    part, which is never believed, or a final file without a row, which is read
    and compared again (``adopt``).

When the hashes differ
    The copy is read once more, then the source, which tells the sides apart:
    a card that gives other bytes at a second reading is at fault, otherwise it
    is the library. The bad copy is put aside and *kept*, so that the next try
    doesn't land on the same sectors, and the file is copied once more. Two
    readings of the card and one of the copy have then to agree, or it fails.

Why in batches
    A sync costs the same for one file as for fifty. The copies of several small
    files go through the four points side by side: all written, one sync, all
    read back, all published, one sync of the folder. A large file is a batch of one.

Why written pages are pushed out as we go
    Left alone, the kernel gathers gigabytes before the last sync, which then
    can't be interrupted for minutes and stands at the same percentage all the
    time. A bounded window of written and unsynced data costs nothing and keeps
    progress, and a stop, honest.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType

import xxhash

from adapters.steps import kernel
from adapters.steps.cards import OpenCard
from adapters.steps.faults import FileFault, LibraryFault, OffloadFault
from adapters.steps.library import Folder
from domain.footage import CardFile, shown

HASH_NAME = "xxh64"

BUFFER_BYTES = 4 * 1024 * 1024
"""Long reads for the card's sake; small enough that a stop is seen at once on a slow reader."""

BUFFERS = 3
"""One being filled, one being written, one between."""

WINDOW_BYTES = 64 * 1024 * 1024
"""How much is written back at a time; at most two windows are unwritten."""

SMALL_BYTES = 1024 * 1024
"""A smaller file waits for others to share its sync."""

BATCH_FILES = 64
"""At most ``BATCH_FILES`` times ``SMALL_BYTES`` between two syncs, and as many open files."""

SAME_TIME_NS = 2_000_000_000
"""FAT counts in steps of two seconds."""

QUARTER_HOUR_NS = 900 * 1_000_000_000
DAY_NS = 96 * QUARTER_HOUR_NS


def same_time(one_ns: int, other_ns: int) -> bool:
    return abs(one_ns - other_ns) <= SAME_TIME_NS


def zone_apart(one_ns: int, other_ns: int) -> bool:
    """The same local time in another zone: whole quarter hours, up to a day."""
    apart = abs(one_ns - other_ns)
    beyond = apart % QUARTER_HOUR_NS
    return apart <= DAY_NS + SAME_TIME_NS and (
        min(beyond, QUARTER_HOUR_NS - beyond) <= SAME_TIME_NS
    )


@dataclass(slots=True)
class Batch:
    """What became of the files of one batch.

    hashes: of those that stand verified under their final names, by their path.
    faults: of those that don't.
    put_aside: where bad copies are that a second try made good.
    """

    hashes: dict[bytes, str] = field(default_factory=dict)
    faults: list[FileFault] = field(default_factory=list)
    put_aside: list[str] = field(default_factory=list)

    @contextmanager
    def faults_kept(self) -> Iterator[None]:
        """One file's fault is no reason to leave the others behind."""
        try:
            yield
        except FileFault as fault:
            self.faults.append(fault)


@dataclass(slots=True)
class Part:
    """A file of ours that isn't believed yet. ``fd`` is open until it is synced."""

    file: CardFile
    name: bytes
    fd: int | None
    hash: str = ""

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Parts:
    """The parts of one batch; those that are still parts at the end are removed."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._open: dict[bytes, Part] = {}

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for part in list(self._open.values()):
            with suppress(OSError):  # a library that is gone keeps them until the next attempt
                self.remove(part)

    def new(self, file: CardFile) -> Part:
        name, fd = self.folder.new_part(name_of(file), file.path)
        part = self._open[name] = Part(file, name, fd)
        return part

    def remove(self, part: Part) -> None:
        part.close()
        self.folder.remove(part.name)
        del self._open[part.name]

    def publish(self, part: Part) -> None:
        self.folder.publish(part.name, name_of(part.file), part.file.path)
        del self._open[part.name]

    def put_aside(self, part: Part) -> str:
        aside = self.folder.put_aside(part.name)
        del self._open[part.name]
        return self.folder.name_text(aside)


class Copier:
    """Copies files of one card into folders of the library.

    check: called for every buffer; whatever it raises ends the copy, and no part stays.
    moved: told of every buffer of a file that was read, and of it being read back.
    """

    def __init__(
        self, card: OpenCard, *, check: Callable[[], None], moved: Callable[[CardFile, int], None]
    ) -> None:
        self._card = card
        self._check = check
        self._moved = moved
        self._buffers = [bytearray(BUFFER_BYTES) for _ in range(BUFFERS)]

    def copy(self, folder: Folder, files: Sequence[CardFile]) -> Batch:
        """Bring these into the folder, where nothing has their names.

        Raises ``CardLost``, ``LibraryFault``, and what ``check`` raises.
        """
        batch = Batch()
        written: list[Part] = []
        with Parts(folder) as parts:
            for file in files:
                with batch.faults_kept():
                    written.append(self._write(parts, file))
            self._sync(folder, written)
            for part in written:
                with batch.faults_kept():
                    good = self._verified(parts, part, batch)
                    parts.publish(good)
                    batch.hashes[good.file.path] = good.hash
        if batch.hashes:
            with folder.faults():
                kernel.sync_folder(folder.fd)
        return batch

    def adopt(self, folder: Folder, file: CardFile) -> str:
        """The hash of what has the file's final name already, and is a copy of it.

        It is made as durable as a new copy. Raises ``FileFault`` if it is anything else.
        """
        name = name_of(file)
        found = folder.status(name, file.path)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != file.size_bytes:
            raise folder.taken(name, file.path)
        with folder.faults():
            fd = folder.open_file(name)
            try:
                kernel.sync_file(fd)
            finally:
                os.close(fd)
        wanted = self.hash_source(file)
        if self._read_back(folder, name, file) != wanted:
            raise folder.taken(name, file.path)
        with folder.faults():
            kernel.sync_folder(folder.fd)
        return wanted

    def hash_source(self, file: CardFile) -> str:
        """What the card's device gives now. Raises ``FileFault``, ``CardLost``."""
        digest = xxhash.xxh64()
        with self._source(file) as fd:
            kernel.forget_cached(fd)
            self._read_card(fd, file, digest.update)
        return digest.hexdigest()

    def _write(self, parts: Parts, file: CardFile) -> Part:
        with self._source(file) as source:
            part = parts.new(file)
            try:
                self._fill(parts.folder, part, source)
            except FileFault:
                with parts.folder.faults():
                    parts.remove(part)
                raise
        return part

    def _fill(self, folder: Folder, part: Part, source: int) -> None:
        fd = part.fd
        assert fd is not None
        digest = xxhash.xxh64()
        done = window = previous = 0

        def write(chunk: memoryview) -> None:
            nonlocal done, window, previous
            digest.update(chunk)
            with folder.faults():
                _write_all(fd, chunk)
                done += len(chunk)
                if done - window >= WINDOW_BYTES:
                    kernel.start_writing_back(fd, window, done - window)
                    if window:
                        kernel.finish_writing_back(fd, previous, window - previous)
                    kernel.forget_cached(source, window, done - window)
                    previous, window = window, done

        if part.file.size_bytes >= SMALL_BYTES:
            with folder.faults():
                kernel.preallocate(fd, part.file.size_bytes)
        self._read_card(source, part.file, write)
        with folder.faults(), suppress(PermissionError):  # some mounts set times for owners only
            os.utime(fd, ns=(part.file.mtime_ns, part.file.mtime_ns))
        part.hash = digest.hexdigest()

    def _sync(self, folder: Folder, parts: Sequence[Part]) -> None:
        """From here on the bytes are the device's; nothing in memory vouches for them."""
        with folder.faults():
            together = len(parts) > 1 and kernel.sync_file_system(folder.fd)
            for part in parts:
                assert part.fd is not None
                if not together:
                    kernel.sync_file(part.fd)
                kernel.forget_cached(part.fd)
                part.close()

    def _verified(self, parts: Parts, part: Part, batch: Batch) -> Part:
        """The part, or a second one in its place. Raises ``FileFault`` or ``LibraryFault``."""
        folder, file = parts.folder, part.file
        if self._read_back(folder, part.name, file) == part.hash:
            return part
        copy_reads_well_now = self._read_back(folder, part.name, file) == part.hash
        source_now = self.hash_source(file)
        aside = parts.put_aside(part)
        again = self._write(parts, file)
        self._sync(folder, [again])
        back = self._read_back(folder, again.name, file)
        if back == again.hash == source_now:
            batch.put_aside.append(aside)
            return again
        asides = f"the bad copies are {aside} and {parts.put_aside(again)}"
        if source_now != part.hash or source_now != again.hash:
            raise FileFault(
                file.path,
                "the card's side is wrong: it gives other bytes each time it is read "
                f"(card, reader or cable); {asides}",
            )
        raise LibraryFault(
            f"{shown(file.path)}: the library's side is wrong: the card reads the same each time, "
            f"but what {folder.text} gives back is not what was written, twice"
            + (" (a second reading was right)" if copy_reads_well_now else "")
            + f"; {asides}"
        )

    def _read_back(self, folder: Folder, name: bytes, file: CardFile) -> str:
        """The hash of what the library's device gives, not of what is in memory."""
        digest = xxhash.xxh64()
        with folder.faults():
            fd = folder.open_file(name)
        try:
            kernel.forget_cached(fd)
            kernel.read_sequentially(fd)
            self._read(fd, file, digest.update, folder.fault)
            kernel.forget_cached(fd)
        finally:
            os.close(fd)
        return digest.hexdigest()

    @contextmanager
    def _source(self, file: CardFile) -> Iterator[int]:
        """The file on the card, which must be the scan's, and the same when we are done."""
        fd = self._card.open_file(file.path)
        try:
            before = os.fstat(fd)
            if before.st_size != file.size_bytes or not (
                same_time(before.st_mtime_ns, file.mtime_ns)
                or zone_apart(before.st_mtime_ns, file.mtime_ns)
            ):
                raise FileFault(
                    file.path,
                    f"is not what the scan found ({before.st_size} bytes now, "
                    f"{file.size_bytes} then): it was changed, or another card is here; "
                    "a new run scans it again",
                )
            kernel.read_sequentially(fd)
            yield fd
            after = os.fstat(fd)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise FileFault(file.path, "changed while it was being copied")
        finally:
            os.close(fd)

    def _read_card(self, fd: int, file: CardFile, use: Callable[[memoryview], object]) -> None:
        count = self._read(fd, file, use, lambda error: self._card.fault(error, file.path))
        if count != file.size_bytes:
            raise FileFault(
                file.path,
                f"changed while it was being copied: {count} bytes came of {file.size_bytes}",
            )

    def _read(
        self,
        fd: int,
        file: CardFile,
        use: Callable[[memoryview], object],
        fault: Callable[[OSError], OffloadFault],
    ) -> int:
        """Hand everything to ``use``, a buffer at a time; how many bytes it was."""
        count = 0
        ahead = _chunks_ahead if file.size_bytes > BUFFER_BYTES else _chunks
        with closing(ahead(fd, self._buffers)) as chunks:
            while True:
                self._check()
                try:
                    chunk = next(chunks, None)
                except OSError as error:
                    raise fault(error) from error
                if chunk is None:
                    return count
                use(chunk)
                count += len(chunk)
                self._moved(file, len(chunk))


def _chunks(fd: int, buffers: Sequence[bytearray]) -> Generator[memoryview, None, None]:
    buffer = buffers[0]
    while count := os.readv(fd, [buffer]):
        yield memoryview(buffer)[:count]


def _chunks_ahead(fd: int, buffers: Sequence[bytearray]) -> Generator[memoryview, None, None]:
    """The same, with the next read under way in a thread while this chunk is used."""
    free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[memoryview | OSError | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def read() -> None:
        try:
            while (buffer := free.get()) is not None and not stopped.is_set():
                count = os.readv(fd, [buffer])
                if not count:
                    break
                full.put(memoryview(buffer)[:count])
            full.put(None)
        except OSError as error:
            full.put(error)

    for buffer in buffers:
        free.put(buffer)
    reader = threading.Thread(target=read, name="rushes-read-ahead", daemon=True)
    reader.start()
    try:
        while (chunk := full.get()) is not None:
            if isinstance(chunk, OSError):
                raise chunk
            yield chunk
            assert isinstance(chunk.obj, bytearray)
            free.put(chunk.obj)
    finally:
        # The descriptor is the caller's to close, so nobody may be reading from it any more.
        stopped.set()
        free.put(None)
        reader.join()


def _write_all(fd: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(fd, chunk) :]


def name_of(file: CardFile) -> bytes:
    return file.path.rpartition(b"/")[2]
