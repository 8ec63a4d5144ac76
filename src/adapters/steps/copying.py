"""The copy: files in from one card, verified files out at every destination.

What can be believed
    A copy is good when the bytes that come back from a destination's device are
    those that came off the card. That is less obvious than it sounds: after a
    write, reading gives back what is still in memory, whatever the device made
    of it. So the order is always the same:

    1. The source is read once, hashed, and written to a part file at every
       destination. Its length has to be the size that ``fstat`` gave, and a second
       ``fstat`` has to agree with the first, or it was being written meanwhile.
    2. Each part gets its time and is synced. Only clean pages can be dropped from
       memory, so the sync comes before the dropping.
    3. It is opened anew, read from the device and hashed again.
    4. If the hashes agree it is renamed to its final name, in a way that fails if
       the name is taken; then the folder is synced.

    Only after that does anybody tell the ledger. A crash in between leaves a
    part, which is never believed unread, or a final file without a row, which is
    read and compared again (``adopt``).

What goes on at once
    Of a large file, one thread reads the card, one computes each hash, and one
    writes to each destination; they share a few buffers, so nobody gets far ahead.
    Points 2 to 4 are done by a thread for each destination, while the next files
    are being read. What one destination can't do is no concern of the others.

A part that is gone on with
    A large file is not begun anew after a crash, or when the card was pulled. Its
    part is compared with the card, chunk by chunk as that is read and hashed again,
    and is written from where they differ. Nothing in it is taken on trust.

When the hashes differ
    The copy is read once more, then the source, which tells the sides apart:
    a card that gives other bytes at a second reading is at fault, otherwise it
    is the library. The bad copy is put aside and *kept*, so that the next try
    doesn't land on the same sectors, and the file is copied once more. All three
    readings of the card and the one of the copy have then to agree, or it fails:
    of a card that repeats itself only sometimes nobody knows when it was right.

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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType

from adapters.steps import kernel
from adapters.steps.cards import OpenCard
from adapters.steps.faults import CardLost, FileFault, LibraryFault, OffloadFault
from adapters.steps.hashes import Hashes
from adapters.steps.library import Folder
from application.authoring import Interrupted
from domain.footage import CardFile, same_moment, shown

HASH_NAME = "xxh64"

BUFFER_BYTES = 4 * 1024 * 1024
"""Long reads for the card's sake; small enough that a stop is seen at once on a slow reader."""

BUFFERS = 4
"""One being filled, one being written, and what evens out two destinations."""

BUFFERS_BACK = 2
"""One being filled, one being hashed; every destination has these for reading back."""

WINDOW_BYTES = 64 * 1024 * 1024
"""How much is written back at a time; at most two windows are unwritten."""

SMALL_BYTES = 1024 * 1024
"""A smaller file waits for others to share its sync."""

BATCH_FILES = 64
"""At most ``BATCH_FILES`` times ``SMALL_BYTES`` between two syncs, and as many open files."""

RESUME_BYTES = 64 * 1024 * 1024
"""What is smaller is copied again sooner than its part is looked for."""

Lane = int
"""The number of a destination."""


@dataclass(frozen=True, slots=True)
class Errand:
    """A file, and the name that it is to get in the folder of each of these destinations.

    left: parts of it that an earlier attempt has left there, to be gone on with.
    """

    file: CardFile
    names: Mapping[Lane, bytes]
    left: Mapping[Lane, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """What became of the files of one batch.

    hashes: of each file that stands verified under its final name anywhere, by its path.
    arrived: where, and as what: the file, the destination, the name, and whether it was
        shown to be the device that gave it back.
    faults: of files; of those at single destinations too.
    lost: destinations that can't be written any more.
    put_aside: where bad copies are that a second try made good.
    """

    hashes: dict[bytes, Mapping[str, str]] = field(default_factory=dict)
    arrived: list[tuple[CardFile, Lane, bytes, bool]] = field(default_factory=list)
    faults: list[FileFault] = field(default_factory=list)
    lost: dict[Lane, LibraryFault] = field(default_factory=dict)
    put_aside: list[str] = field(default_factory=list)

    @contextmanager
    def faults_kept(self) -> Iterator[None]:
        """One file's fault is no reason to leave the others behind."""
        try:
            yield
        except FileFault as fault:
            self.faults.append(fault)

    def add(self, other: Batch) -> None:
        self.hashes |= other.hashes
        self.arrived += other.arrived
        self.faults += other.faults
        self.lost |= other.lost
        self.put_aside += other.put_aside


@dataclass(slots=True)
class Part:
    """A file of ours that isn't believed yet. ``fd`` is open until it is synced.

    target: the name that it is to get. kept_bytes: what an earlier attempt has left in it.
    """

    file: CardFile
    name: bytes
    target: bytes
    fd: int | None
    kept_bytes: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)
    is_cold: bool = False

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Parts:
    """The parts of one batch in one folder; those that are still parts at the end are removed.

    Unless the card was lost, or somebody stopped us: then a large one is kept, to be
    gone on with.
    """

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
        is_kept = isinstance(error, CardLost | Interrupted)
        for part in list(self._open.values()):
            with suppress(OSError):  # a library that is gone keeps them until the next attempt
                if is_kept and part.file.size_bytes >= RESUME_BYTES:
                    self.keep(part)
                else:
                    self.remove(part)

    def new(self, file: CardFile, target: bytes, left: bytes | None = None) -> Part:
        """A new one, or the one that is left, if that is still there."""
        found = None if left is None else self.folder.open_part(left)
        if left is None or found is None:
            name, fd = self.folder.new_part(target, file.path)
            part = self._open[name] = Part(file, name, target, fd)
        else:
            part = self._open[left] = Part(file, left, target, found)
            part.kept_bytes = min(os.fstat(found).st_size, file.size_bytes)
        return part

    def remove(self, part: Part) -> None:
        part.close()
        self.folder.remove(part.name)
        del self._open[part.name]

    def keep(self, part: Part) -> None:
        part.close()
        del self._open[part.name]

    def publish(self, part: Part) -> None:
        self.folder.publish(part.name, part.target, part.file.path)
        del self._open[part.name]

    def put_aside(self, part: Part) -> str:
        aside = self.folder.put_aside(part.name)
        del self._open[part.name]
        return self.folder.name_text(aside)


class Pending:
    """A batch that is written, and is being made certain at its destinations."""

    def __init__(self, batch: Batch, settling: Mapping[Lane, Future[Batch]]) -> None:
        self._batch = batch
        self._settling = settling

    def finish(self) -> Batch:
        """What became of it. Raises ``CardLost``, and what ``check`` raises."""
        failed: BaseException | None = None
        for lane, future in self._settling.items():
            error = future.exception()
            if error is None:
                self._batch.add(future.result())
            elif isinstance(error, LibraryFault):
                self._batch.lost[lane] = error
            else:
                failed = failed or error
        if failed is not None:
            raise failed
        return self._batch


class Copier:
    """Copies files of one card into folders of the destinations.

    check: called for every buffer; whatever it raises ends the copy, and no small part stays.
    moved: told of every buffer of a file that was read, and of it being read back.
    Both are called from several threads.
    hash_names: the first is what copies are compared by.
    verify_source: whether each file is read from the card once more, for a reader or
        cable that turns bytes without an error.
    """

    def __init__(
        self,
        card: OpenCard,
        *,
        check: Callable[[], None],
        moved: Callable[[CardFile, int], None],
        hash_names: Sequence[str] = (HASH_NAME,),
        verify_source: bool = False,
    ) -> None:
        self._card = card
        self._check = check
        self._moved = moved
        self._hash_names = tuple(hash_names)
        self._verify_source = verify_source
        self._buffers = threading.local()
        self._threads: dict[Lane, ThreadPoolExecutor] = {}

    def __enter__(self) -> Copier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for threads in self._threads.values():
            threads.shutdown()

    def copy(self, folders: Mapping[Lane, Folder], errands: Sequence[Errand]) -> Batch:
        """Bring these files into the folders, where nothing has the names that they are to get.

        Raises ``CardLost``, and what ``check`` raises.
        """
        return self.start(folders, errands).finish()

    def start(self, folders: Mapping[Lane, Folder], errands: Sequence[Errand]) -> Pending:
        """Read and write them; they have arrived when what this answers has finished.

        The folders have to stay open until then. Raises as ``copy`` does.
        """
        batch = Batch()
        parts = {lane: Parts(folder) for lane, folder in folders.items()}
        written: dict[Lane, list[Part]] = {lane: [] for lane in folders}
        try:
            for errand in errands:
                with batch.faults_kept():
                    for lane, part in self._write(parts, errand, batch):
                        written[lane].append(part)
        except BaseException as error:
            for each in parts.values():
                each.__exit__(type(error), error, error.__traceback__)
            raise
        settling = {}
        for lane, each in parts.items():
            if lane in batch.lost:
                each.__exit__(None, None, None)
            elif written[lane]:
                settling[lane] = self._thread(lane).submit(
                    self._settle, lane, each, tuple(written[lane])
                )
        return Pending(batch, settling)

    def adopt(
        self, folder: Folder, name: bytes, file: CardFile, hashes: Mapping[str, str] | None = None
    ) -> tuple[Mapping[str, str], bool] | None:
        """The hashes of what has the file's final name already, if it is a copy of it.

        With them, whether it was read cold. It is made as durable as a new copy.
        hashes: the source's, if they are known.
        """
        found = folder.status(name, file.path)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != file.size_bytes:
            return None
        with folder.faults():
            fd = folder.open_file(name)
            try:
                kernel.sync_file(fd)
            finally:
                os.close(fd)
        wanted = self.hash_source(file) if hashes is None else hashes
        back, is_cold = self._read_back(folder, name, file)
        if back != wanted[self._hash_names[0]]:
            return None
        with folder.faults():
            kernel.sync_folder(folder.fd)
        return wanted, is_cold

    def hash_source(self, file: CardFile, further: Sequence[str] = ()) -> Mapping[str, str]:
        """What the card's device gives now. Raises ``FileFault``, ``CardLost``."""
        hashes = Hashes(dict.fromkeys((*self._hash_names, *further)))
        with self._source(file) as fd:
            kernel.forget_cached(fd)
            self._read_card(fd, file, hashes.update)
        return hashes.values()

    def _thread(self, lane: Lane) -> ThreadPoolExecutor:
        if lane not in self._threads:
            self._threads[lane] = ThreadPoolExecutor(1, f"rushes-settle-{lane}")
        return self._threads[lane]

    def _write(
        self, parts: Mapping[Lane, Parts], errand: Errand, batch: Batch
    ) -> list[tuple[Lane, Part]]:
        """The parts, filled; destinations that fail go to ``batch.lost``."""
        file = errand.file
        writers: list[_Writer] = []
        try:
            with self._source(file) as source:
                for lane, name in errand.names.items():
                    if lane in batch.lost:
                        continue
                    try:
                        part = parts[lane].new(file, name, errand.left.get(lane))
                        writers.append(_Writer(lane, parts[lane], part))
                    except LibraryFault as fault:
                        batch.lost[lane] = fault
                    except FileFault as fault:
                        batch.faults.append(fault)
                if not writers:
                    return []
                hashes = self._fill(writers, source, file)
                if self._verify_source and self.hash_source(file) != hashes:
                    raise FileFault(
                        file.path,
                        "the card's side is wrong: it gave other bytes when it was read once "
                        "more (card, reader or cable)",
                    )
        except FileFault as fault:
            # What can't be read may be a card that is going: a retry goes on with the part.
            is_kept = fault.errno is not None and file.size_bytes >= RESUME_BYTES
            for writer in writers:
                with suppress(OSError):  # it stays, where that can't be written any more
                    (writer.parts.keep if is_kept else writer.parts.remove)(writer.part)
            raise
        filled = []
        for writer in writers:
            if writer.fault is None:
                writer.part.hashes = hashes
                filled.append((writer.lane, writer.part))
            else:
                batch.lost[writer.lane] = writer.fault
        return filled

    def _fill(self, writers: Sequence[_Writer], source: int, file: CardFile) -> dict[str, str]:
        hashes = [Hashes((name,)) for name in self._hash_names]
        uses: list[Callable[[memoryview], object]] = [each.update for each in hashes]
        uses += [writer.take for writer in writers]

        def go_on() -> None:
            self._check()
            if all(writer.fault is not None for writer in writers):
                raise _NobodyLeft

        if file.size_bytes >= SMALL_BYTES:
            for writer in writers:
                writer.preallocate()
        with suppress(_NobodyLeft):
            if file.size_bytes <= BUFFER_BYTES:

                def use(chunk: memoryview) -> None:
                    for each in uses:
                        each(chunk)

                self._read_card(source, file, use, go_on)
            else:
                with _Fan(uses, self._ring()) as fan:
                    self._read_card(source, file, fan.hand_out, go_on, fan.chunks)
        for writer in writers:
            writer.finish()
        return {name: value for each in hashes for name, value in each.values().items()}

    def _settle(self, lane: Lane, parts: Parts, written: Sequence[Part]) -> Batch:
        """Points 2 to 4, at one destination. Raises ``LibraryFault``, ``CardLost``."""
        batch = Batch()
        self._ring(BUFFERS_BACK)
        with parts:
            self._sync(parts.folder, written)
            for part in written:
                with batch.faults_kept():
                    good = self._verified(lane, parts, part, batch)
                    parts.publish(good)
                    batch.hashes[good.file.path] = good.hashes
                    batch.arrived.append((good.file, lane, good.target, good.is_cold))
            if batch.arrived:
                with parts.folder.faults():
                    kernel.sync_folder(parts.folder.fd)
        return batch

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

    def _verified(self, lane: Lane, parts: Parts, part: Part, batch: Batch) -> Part:
        """The part, or a second one in its place. Raises ``FileFault`` or ``LibraryFault``."""
        folder, file, wanted = parts.folder, part.file, part.hashes[self._hash_names[0]]
        back, part.is_cold = self._read_back(folder, part.name, file)
        if back == wanted:
            return part
        copy_reads_well_now = self._read_back(folder, part.name, file)[0] == wanted
        source_now = self.hash_source(file)
        aside = parts.put_aside(part)
        rewritten = Batch()
        filled = self._write({lane: parts}, Errand(file, {lane: part.target}), rewritten)
        if not filled:
            raise rewritten.lost.get(lane) or rewritten.faults[0]
        ((_, again),) = filled
        self._sync(folder, [again])
        back, again.is_cold = self._read_back(folder, again.name, file)
        if back == again.hashes[self._hash_names[0]] and again.hashes == source_now == part.hashes:
            batch.put_aside.append(aside)
            return again
        asides = f"the bad copies are {aside} and {parts.put_aside(again)}"
        if source_now != part.hashes or source_now != again.hashes:
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

    def _read_back(self, folder: Folder, name: bytes, file: CardFile) -> tuple[str, bool]:
        """The hash of what the library's device gives, not of what is in memory.

        With it, whether it can be shown that nothing of it was.
        """
        hashes = Hashes(self._hash_names[:1])
        with folder.faults():
            fd = folder.open_file(name)
        try:
            with folder.faults():
                kernel.forget_cached(fd)
                is_cold = kernel.is_cold(fd)
                kernel.read_sequentially(fd)
            self._read(fd, file, hashes.update, folder.fault)
            with folder.faults():
                kernel.forget_cached(fd)
        finally:
            with suppress(OSError):  # what is gone can't even be closed; the reading has said so
                os.close(fd)
        return hashes.values()[self._hash_names[0]], is_cold

    @contextmanager
    def _source(self, file: CardFile) -> Iterator[int]:
        """The file on the card, which must be the scan's, and the same when we are done."""
        fd = self._card.open_file(file.path)
        try:
            before = self._status(fd, file)
            if before.st_size != file.size_bytes or not (
                same_moment(before.st_mtime_ns, file.mtime_ns)
            ):
                raise FileFault(
                    file.path,
                    f"is not what the scan found ({before.st_size} bytes now, "
                    f"{file.size_bytes} then): it was changed, or another card is here; "
                    "a new run scans it again",
                )
            kernel.read_sequentially(fd)
            yield fd
            after = self._status(fd, file)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise FileFault(file.path, "changed while it was being copied")
        finally:
            with suppress(OSError):  # a card that is gone can't even be closed, and says so here
                os.close(fd)

    def _status(self, fd: int, file: CardFile) -> os.stat_result:
        try:
            return os.fstat(fd)
        except OSError as error:
            raise self._card.fault(error, file.path) from error

    def _read_card(
        self,
        fd: int,
        file: CardFile,
        use: Callable[[memoryview], object],
        check: Callable[[], None] | None = None,
        chunks: Chunks | None = None,
    ) -> None:
        def fault(error: OSError) -> OffloadFault:
            return self._card.fault(error, file.path)

        count = self._read(fd, file, use, fault, check, chunks)
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
        check: Callable[[], None] | None = None,
        chunks: Chunks | None = None,
    ) -> int:
        """Hand everything to ``use``, a buffer at a time; how many bytes it was."""
        count = forgotten = 0
        check = check or self._check
        if chunks is None:
            chunks = _chunks_ahead if file.size_bytes > BUFFER_BYTES else _chunks
        with closing(chunks(fd, self._ring())) as coming:
            while True:
                check()
                try:
                    chunk = next(coming, None)
                except OSError as error:
                    raise fault(error) from error
                if chunk is None:
                    return count
                count += len(chunk)
                size_bytes = len(chunk)
                use(chunk)
                if count - forgotten >= WINDOW_BYTES:
                    kernel.forget_cached(fd, forgotten, count - forgotten)
                    forgotten = count
                self._moved(file, size_bytes)

    def _ring(self, count: int = BUFFERS) -> Sequence[bytearray]:
        """This thread's own buffers; ``count`` is for the first to ask."""
        if not hasattr(self._buffers, "ring"):
            self._buffers.ring = [bytearray(BUFFER_BYTES) for _ in range(count)]
        ring: Sequence[bytearray] = self._buffers.ring
        return ring


class _NobodyLeft(Exception):
    """Every destination has failed: the rest of the file is of no use to anybody."""


class _Writer:
    """Fills one part. It never raises the destination's fault, but keeps it."""

    def __init__(self, lane: Lane, parts: Parts, part: Part) -> None:
        self.lane = lane
        self.parts = parts
        self.part = part
        self.fault: LibraryFault | None = None
        self._done = self._window = self._previous = 0
        self._kept: bytearray | None = None

    def preallocate(self) -> None:
        with self._faults_kept() as fd:
            kernel.preallocate(fd, self.part.file.size_bytes)

    def take(self, chunk: memoryview) -> None:
        if self.fault is not None:
            return
        with self._faults_kept() as fd:
            if not (self.part.kept_bytes and self._is_there(fd, chunk)):
                _write_all(fd, chunk)
            self._done += len(chunk)
            if self._done - self._window >= WINDOW_BYTES:
                kernel.start_writing_back(fd, self._window, self._done - self._window)
                if self._window:
                    kernel.finish_writing_back(fd, self._previous, self._window - self._previous)
                self._previous, self._window = self._window, self._done

    def finish(self) -> None:
        if self.fault is not None:
            return
        mtime_ns = self.part.file.mtime_ns
        with self._faults_kept() as fd:
            if self.part.kept_bytes:
                os.ftruncate(fd, self._done)
            with suppress(PermissionError):  # some mounts set times for owners only
                os.utime(fd, ns=(mtime_ns, mtime_ns))

    def _is_there(self, fd: int, chunk: memoryview) -> bool:
        """Whether the part has this already; if not, it ends here."""
        if self._kept is None or len(self._kept) != len(chunk):
            self._kept = bytearray(len(chunk))
        end = self._done + len(chunk)
        if end <= self.part.kept_bytes:
            count = os.preadv(fd, [self._kept], self._done)
            if count == len(chunk) and self._kept == chunk:
                return True
        os.ftruncate(fd, self._done)
        os.lseek(fd, self._done, os.SEEK_SET)
        self.part.kept_bytes = 0
        self._kept = None
        return False

    @contextmanager
    def _faults_kept(self) -> Iterator[int]:
        fd = self.part.fd
        assert fd is not None
        try:
            with self.parts.folder.faults():
                yield fd
        except LibraryFault as fault:
            self.fault = fault


class _Fan:
    """Gives every chunk to several users, each in a thread of its own."""

    def __init__(
        self, uses: Sequence[Callable[[memoryview], object]], ring: Sequence[bytearray]
    ) -> None:
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for buffer in ring:
            self._free.put(buffer)
        self._users = [_User(use, self._done_with) for use in uses]
        self._lock = threading.Lock()
        self._uses_left: dict[int, int] = {}

    def __enter__(self) -> _Fan:
        for user in self._users:
            user.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for user in self._users:
            user.chunks.put(None)
        for user in self._users:
            user.join()
        for user in self._users:
            if user.error is not None and kind is None:
                raise user.error

    def chunks(self, fd: int, buffers: Sequence[bytearray]) -> Generator[memoryview, None, None]:
        """What the file has, in the next buffer that nobody uses any more."""
        while True:
            buffer = self._free.get()
            count = os.readv(fd, [buffer])
            if not count:
                return
            yield memoryview(buffer)[:count]

    def hand_out(self, chunk: memoryview) -> None:
        with self._lock:
            self._uses_left[id(chunk.obj)] = len(self._users)
        for user in self._users:
            if user.error is not None:
                raise user.error
        for user in self._users:
            user.chunks.put(chunk)

    def _done_with(self, chunk: memoryview) -> None:
        buffer = chunk.obj
        assert isinstance(buffer, bytearray)
        with self._lock:
            self._uses_left[id(buffer)] -= 1
            is_free = not self._uses_left[id(buffer)]
        if is_free:
            self._free.put(buffer)


class _User(threading.Thread):
    """Uses one chunk after the other. After an error it only hands them back."""

    def __init__(
        self, use: Callable[[memoryview], object], done_with: Callable[[memoryview], None]
    ) -> None:
        super().__init__(name="rushes-copy", daemon=True)
        self.chunks: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._use = use
        self._done_with = done_with

    def run(self) -> None:
        while (chunk := self.chunks.get()) is not None:
            if self.error is None:
                try:
                    self._use(chunk)
                except BaseException as error:  # raised again in the thread that reads
                    self.error = error
            self._done_with(chunk)


Chunks = Callable[[int, Sequence[bytearray]], Generator[memoryview, None, None]]


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
