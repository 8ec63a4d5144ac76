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

    The small ones are read one after the other, but opened some way ahead, and the system
    is told that they will be read. So the device has several to look for at once, and no
    threads have to take turns for it. A copy is dropped from memory, and seen to be gone,
    before the system is told: what it then reads ahead comes from the device.

Why written pages are pushed out as we go
    Left alone, the kernel gathers gigabytes before the last sync, which then
    can't be interrupted for minutes and stands at the same percentage all the
    time. A bounded window of written and unsynced data costs nothing and keeps
    progress, and a stop, honest.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, contextmanager, suppress

from adapters.steps import kernel
from adapters.steps.cards import OpenCard
from adapters.steps.faults import FileFault, LibraryFault, OffloadFault
from adapters.steps.hashes import Hashes
from adapters.steps.library import Folder
from adapters.steps.parts import Arrived, Batch, Errand, Lane, Part, Parts, Place, is_resumed
from adapters.steps.streams import Chunks, Coming, Fan, Opened, chunks_ahead, opened_ahead
from domain.footage import CardFile, same_moment, shown

HASH_NAME = "xxh64"

BUFFER_BYTES = 4 * 1024 * 1024
"""Long reads for the card's sake; small enough that a stop is seen at once on a slow reader."""

BUFFERS = 4
"""One being filled, one being written, and what evens out two destinations."""

BUFFERS_BACK = 2
"""One being filled, one being hashed; every destination has these for reading back."""

WINDOW_BYTES = 8 * 1024 * 1024
"""How much is written back at a time; at most two windows are unwritten.

Little, so that a file of some megabytes is on its way to the device before it has been read
to its end, and its sync has nothing left to wait for."""

SETTLING = 2
"""Batches that are made certain at once at a destination: one is synced, one is read back."""

SMALL_BYTES = 1024 * 1024
"""A smaller file waits for others to share its sync."""


class Pending:
    """A batch that is written, and is being made certain at its destinations."""

    def __init__(self, batch: Batch, settling: Mapping[Lane, Future[Batch]]) -> None:
        self._batch = batch
        self._settling = settling

    def wait(self) -> None:
        """Until nobody is at work on it any more."""
        wait(self._settling.values())

    def coming(self) -> Iterator[Batch]:
        """What became of it at each destination, the quickest first.

        Raises ``CardLost``, and what ``check`` raises, once all have ended.
        """
        yield self._batch
        failed: BaseException | None = None
        lanes = {future: lane for lane, future in self._settling.items()}
        for future in as_completed(lanes):
            error = future.exception()
            if error is None:
                yield future.result()
            elif isinstance(error, LibraryFault):
                yield Batch(lost={lanes[future]: error})
            else:
                failed = failed or error
        if failed is not None:
            raise failed


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
        self._kinds: dict[int, str] = {}

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *of_the_block: object) -> None:
        for threads in self._threads.values():
            threads.shutdown()

    def copy(self, errands: Sequence[Errand]) -> Batch:
        """Bring these files to their places, where nothing has the names that they are to get.

        Raises ``CardLost``, and what ``check`` raises.
        """
        whole = Batch()
        for batch in self.start(errands).coming():
            whole.add(batch)
        return whole

    def start(self, errands: Sequence[Errand]) -> Pending:
        """Read and write them; they have arrived when all that this answers has come.

        Their folders have to stay open until then. Raises as ``copy`` does.
        """
        batch = Batch()
        lanes = dict.fromkeys(lane for errand in errands for lane in errand.places)
        parts = {lane: Parts() for lane in lanes}
        written: list[Mapping[Lane, Part]] = [{} for _ in errands]

        def open_one(number: int) -> Opened:
            return self._open_source(errands[number].file)

        def write(number: int, opened: Coming) -> None:
            try:
                written[number] = self._write(parts, errands[number], batch, opened)
            except FileFault as fault:
                batch.faults.append(fault)

        try:
            _in_turn(len(errands), open_one, write)
        except BaseException as error:
            for each in parts.values():
                each.__exit__(type(error), error, error.__traceback__)
            raise
        settling = {}
        for lane, each in parts.items():
            ours = [filled[lane] for filled in written if lane in filled]
            if lane in batch.lost:
                each.__exit__(None, None, None)
            elif ours:
                settling[lane] = self._thread(lane).submit(self._settle, lane, each, ours)
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
                kernel.close(fd)
        wanted = self.hash_source(file) if hashes is None else hashes
        back, is_cold = self._read_back(folder, name, file)
        if back != wanted[self._hash_names[0]]:
            return None
        with folder.faults():
            folder.keep_time(name, file.mtime_ns)
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
            self._threads[lane] = ThreadPoolExecutor(SETTLING, f"rushes-settle-{lane}")
        return self._threads[lane]

    def _write(
        self,
        parts: Mapping[Lane, Parts],
        errand: Errand,
        batch: Batch,
        opened: Coming | None = None,
    ) -> Mapping[Lane, Part]:
        """The parts, filled; destinations that fail go to ``batch.lost``."""
        file = errand.file
        writers: list[_Writer] = []
        try:
            with self._source(file, opened) as source:
                for lane, place in errand.places.items():
                    if lane in batch.lost:
                        continue
                    try:
                        part = parts[lane].new(file, place, errand.left.get(lane))
                        writers.append(_Writer(lane, parts[lane], part))
                    except LibraryFault as fault:
                        batch.lost[lane] = fault
                    except FileFault as fault:
                        batch.faults.append(fault)
                if not writers:
                    return {}
                hashes = self._fill(writers, source, file)
                if self._verify_source and self.hash_source(file) != hashes:
                    raise FileFault(
                        file.path,
                        "the card's side is wrong: it gave other bytes when it was read once "
                        "more (card, reader or cable)",
                    )
        except FileFault as fault:
            # What can't be read may be a card that is going: a retry goes on with the part.
            is_kept = fault.errno is not None and is_resumed(file)
            for writer in writers:
                with suppress(OSError):  # it stays, where that can't be written any more
                    (writer.parts.keep if is_kept else writer.parts.remove)(writer.part)
            raise
        filled = {}
        for writer in writers:
            if writer.fault is None:
                writer.part.hashes = hashes
                filled[writer.lane] = writer.part
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
                self._read_card(source, file, _all(uses), go_on)
            else:
                with Fan(uses, self._ring()) as fan:
                    self._read_card(source, file, fan.hand_out, go_on, fan.chunks)
        for writer in writers:
            writer.finish()
        return {name: value for each in hashes for name, value in each.values().items()}

    def _settle(self, lane: Lane, parts: Parts, written: Sequence[Part]) -> Batch:
        """Points 2 to 4, at one destination. Raises ``LibraryFault``, ``CardLost``."""
        batch = Batch()
        self._buffers.most = BUFFERS_BACK
        with parts:
            self._sync(written)

            def open_one(number: int) -> Opened:
                part = written[number]
                return self._open_copy(part.folder, part.name, part.file)

            def make_certain(number: int, opened: Coming) -> None:
                try:
                    good = self._verified(lane, parts, written[number], batch, opened)
                    parts.publish(good)
                except FileFault as fault:
                    batch.faults.append(fault)
                    return
                batch.arrived.append(
                    Arrived(good.file, lane, good.target, good.is_cold, good.hashes)
                )

            try:
                _in_turn(len(written), open_one, make_certain)
            except LibraryFault as fault:
                batch.lost[lane] = fault
            for folder, _ in _by_folder(written):
                with folder.faults():
                    kernel.sync_folder(folder.fd)
        return batch

    def _sync(self, parts: Sequence[Part]) -> None:
        """From here on the bytes are the device's; nothing in memory vouches for them."""
        together: dict[int, bool] = {}
        for folder, ours in _by_folder(parts):
            with folder.faults():
                if folder.device not in together:
                    together[folder.device] = len(parts) > 1 and kernel.sync_file_system(folder.fd)
                for part in ours:
                    if not together[folder.device]:
                        part.open_again()
                        assert part.fd is not None
                        kernel.sync_file(part.fd)
                    part.close()

    def _verified(self, lane: Lane, parts: Parts, part: Part, batch: Batch, opened: Coming) -> Part:
        """The part, or a second one in its place. Raises ``FileFault`` or ``LibraryFault``."""
        folder, file, wanted = part.folder, part.file, part.hashes[self._hash_names[0]]
        back, part.is_cold = self._read_back(folder, part.name, file, opened)
        if back == wanted:
            return part
        copy_reads_well_now = self._read_back(folder, part.name, file)[0] == wanted
        source_now = self.hash_source(file)
        aside = parts.put_aside(part)
        rewritten = Batch()
        errand = Errand(file, {lane: Place(folder, part.target)})
        filled = self._write({lane: parts}, errand, rewritten)
        if not filled:
            raise rewritten.lost.get(lane) or rewritten.faults[0]
        again = filled[lane]
        self._sync([again])
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

    def _read_back(
        self, folder: Folder, name: bytes, file: CardFile, opened: Coming | None = None
    ) -> tuple[str, bool]:
        """The hash of what the library's device gives, not of what is in memory.

        With it, whether it can be shown that nothing of it was.
        """
        hashes = Hashes(self._hash_names[:1])
        fd, is_cold, _ = opened() if opened else self._open_copy(folder, name, file)
        try:
            self._read(fd, file, hashes.update, folder.fault)
            if file.size_bytes >= SMALL_BYTES:
                with folder.faults():
                    kernel.forget_cached(fd)
        finally:
            kernel.close(fd)
        return hashes.values()[self._hash_names[0]], is_cold

    def _open_copy(self, folder: Folder, name: bytes, file: CardFile) -> Opened:
        """Opened anew, and dropped from memory. Raises ``LibraryFault``."""
        try:
            fd = folder.open_file(name)
            try:
                kind = self._kind(folder)
                kernel.forget_cached(fd)
                is_cold = kernel.is_cold(fd, kind)
                _announce(fd, file, kind)
            except BaseException:
                kernel.close(fd)
                raise
        except OSError as error:
            raise folder.fault(error) from error
        return Opened(fd, is_cold)

    def _kind(self, place: Folder | OpenCard) -> str:
        """Which file system it is on. Nothing is mounted in its place while it is open.

        Raises ``OSError``.
        """
        if place.device not in self._kinds:
            self._kinds[place.device] = kernel.file_system_of(place.fd)
        return self._kinds[place.device]

    def _open_source(self, file: CardFile) -> Opened:
        """Raises ``FileFault``, ``CardLost``."""
        fd, status = self._card.open_with_status(file.path)
        try:
            _announce(fd, file, self._kind(self._card))
        except OSError as error:
            kernel.close(fd)
            raise self._card.fault(error, file.path) from error
        return Opened(fd, status=status)

    @contextmanager
    def _source(self, file: CardFile, opened: Coming | None = None) -> Iterator[int]:
        """The file on the card, which must be the scan's, and the same when we are done."""
        fd, _, before = opened() if opened else self._open_source(file)
        assert before is not None
        try:
            if before.st_size != file.size_bytes or not (
                same_moment(before.st_mtime_ns, file.mtime_ns)
            ):
                raise FileFault(
                    file.path,
                    f"is not what the scan found ({before.st_size} bytes now, "
                    f"{file.size_bytes} then): it was changed, or another card is here; "
                    "a new run scans it again",
                )
            yield fd
            try:
                after = os.fstat(fd)
            except OSError as error:
                raise self._card.fault(error, file.path) from error
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise FileFault(file.path, "changed while it was being copied")
        finally:
            kernel.close(fd)

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
        check = check or self._check
        if chunks is None and file.size_bytes <= BUFFER_BYTES:
            return self._read_at_once(fd, file, use, fault, check)
        count = forgotten = 0
        with closing((chunks or chunks_ahead)(fd, self._ring())) as coming:
            while True:
                check()
                try:
                    chunk = next(coming, None)
                except OSError as error:
                    raise fault(error) from error
                if chunk is None:
                    return count
                size_bytes = len(chunk)
                count += size_bytes
                use(chunk)
                if count - forgotten >= WINDOW_BYTES:
                    kernel.forget_cached(fd, forgotten, count - forgotten)
                    forgotten = count
                self._moved(file, size_bytes)

    def _read_at_once(
        self,
        fd: int,
        file: CardFile,
        use: Callable[[memoryview], object],
        fault: Callable[[OSError], OffloadFault],
        check: Callable[[], None],
    ) -> int:
        """The same, of a file that one buffer holds, with little ado: there may be very many."""
        buffer = self._ring(1)[0]
        count = 0
        while True:
            check()
            try:
                size_bytes = os.readv(fd, [buffer])
            except OSError as error:
                raise fault(error) from error
            if size_bytes:
                count += size_bytes
                use(memoryview(buffer)[:size_bytes])
                self._moved(file, size_bytes)
            # A file ends in a short read; of a small one that spares half of the calls.
            if not size_bytes or (count == file.size_bytes and size_bytes < len(buffer)):
                return count

    def _ring(self, count: int = 0) -> Sequence[bytearray]:
        """This thread's own buffers: so many at least, made when they are needed first."""
        ring: list[bytearray] = self._buffers.__dict__.setdefault("ring", [])
        wanted: int = count or getattr(self._buffers, "most", BUFFERS)
        while len(ring) < wanted:
            ring.append(bytearray(BUFFER_BYTES))
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
        try:
            kernel.preallocate(self._fd, self.part.file.size_bytes)
        except OSError as error:
            self.fault = self.part.folder.fault(error)

    def take(self, chunk: memoryview) -> None:
        if self.fault is not None:
            return
        try:
            fd = self._fd
            if not (self.part.kept_bytes and self._is_there(fd, chunk)):
                _write_all(fd, chunk)
            self._done += len(chunk)
            if self._done - self._window >= WINDOW_BYTES:
                kernel.start_writing_back(fd, self._window, self._done - self._window)
                if self._window:
                    kernel.finish_writing_back(fd, self._previous, self._window - self._previous)
                self._previous, self._window = self._window, self._done
        except OSError as error:
            self.fault = self.part.folder.fault(error)

    def finish(self) -> None:
        if self.fault is not None:
            return
        mtime_ns = self.part.file.mtime_ns
        try:
            if self.part.kept_bytes:
                os.ftruncate(self._fd, self._done)
            kernel.set_time(self._fd, mtime_ns)
            if self.part.file.size_bytes < SMALL_BYTES:
                self.part.close()  # a batch has more of them than a process may have open
        except OSError as error:
            self.fault = self.part.folder.fault(error)

    @property
    def _fd(self) -> int:
        fd = self.part.fd
        assert fd is not None
        return fd

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


def _in_turn(
    count: int, open_one: Callable[[int], Opened], work: Callable[[int, Coming], None]
) -> None:
    """Work on each of these files; the next ones are opened already."""
    with closing(opened_ahead(count, open_one)) as coming:
        for number, opened in enumerate(coming):
            work(number, opened)


def _announce(fd: int, file: CardFile, kind: str) -> None:
    """Tell the system what is read next: a small file at once, with those before it.

    Not where a program is the driver: one of FAT gave zeros when it was asked for several.
    """
    if file.size_bytes >= SMALL_BYTES:
        kernel.read_sequentially(fd)
    elif not kind.startswith("fuse"):
        kernel.read_ahead(fd, file.size_bytes)


def _by_folder(parts: Iterable[Part]) -> Iterable[tuple[Folder, Sequence[Part]]]:
    found: dict[int, tuple[Folder, list[Part]]] = {}
    for part in parts:
        found.setdefault(id(part.folder), (part.folder, []))[1].append(part)
    return found.values()


def _all(uses: Sequence[Callable[[memoryview], object]]) -> Callable[[memoryview], None]:
    def use(chunk: memoryview) -> None:
        for each in uses:
            each(chunk)

    return use


def _write_all(fd: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(fd, chunk) :]
