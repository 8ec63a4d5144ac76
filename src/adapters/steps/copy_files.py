"""copy_files: what is new on the card comes to every destination, verified.

What is new is said by ``copy_stock``, what stands in the way by ``copy_preflight``; here
it is brought, batch by batch, and told to the ledger.

A retry finds the rows of the attempt before it, so it goes on where that stopped, at
each destination, once a few recordings have proved that the card wasn't filled anew
meanwhile (``recognition``). A file that can't be read is no reason to leave the others on
the card, nor is a destination that fails: it is named at the end. A lost card, or the last
destination, ends it at once.

A run that was killed leaves parts in its job's folder; small ones are removed when the
job is gone on with, large ones are gone on with themselves. If the card is ingested anew
instead, they are removed as well: every run clears the folders of the card's earlier
jobs that nobody is at.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any

from adapters.steps import kernel
from adapters.steps.cards import FsCards, OpenCard, open_folder
from adapters.steps.clip_steps import ClipSteps
from adapters.steps.copy_destinations import Destination, Destinations, split, with_those_above
from adapters.steps.copy_outcome import Outcome
from adapters.steps.copy_preflight import misplaced, prepare
from adapters.steps.copy_progress import Progress
from adapters.steps.copy_stock import Stock
from adapters.steps.copying import HASH_NAME, SMALL_BYTES, Copier, Pending
from adapters.steps.faults import (
    AnotherCard,
    CardLost,
    FileFault,
    LibraryFault,
    OffloadFault,
    reason,
)
from adapters.steps.library import Folder, Library, unfinished
from adapters.steps.parts import Arrived, Batch, Errand, Lane, Place
from adapters.steps.recognition import refilled
from application.authoring import Interrupted, StepContext
from application.ports import CardFiles, Clock, Jobs, Ledger
from domain.footage import COPIED_KINDS, CardFile, ImportedFile, Job, VerifiedCopy
from domain.names import stored_name

PAGE_FILES = 1_000
"""Files of the inventory that are read at once."""

BATCH_FILES = 512
BATCH_BYTES = 64 * 1024 * 1024
"""At most so much of small files between two syncs: what a crash takes back of them."""

BATCH_FOLDERS = 64
"""Of one batch: they stay open, at every destination, until it is in the ledger."""

BATCHES_AHEAD = 4
"""One is read, one is synced, one is read back, one goes into the ledger."""


class CopyFiles:
    """The step."""

    def __init__(
        self,
        cards: FsCards,
        card_files: CardFiles,
        jobs: Jobs,
        ledger: Ledger,
        clock: Clock,
        library: str,
        *,
        hash_names: Sequence[str] = (HASH_NAME,),
        verify_source: bool = False,
        clip_families: Sequence[str] = (),
    ) -> None:
        """``clip_families``: the steps that are made for each clip once it is whole."""
        self._cards = cards
        self._card_files = card_files
        self._jobs = jobs
        self._ledger = ledger
        self._clock = clock
        self._library = library
        self._hash_names = hash_names
        self._verify_source = verify_source
        self._clip_families = clip_families

    def __call__(self, context: StepContext) -> dict[str, Any]:
        job = self._jobs.get(context.data["job_id"])
        libraries = Library.all_of(context, self._library, self._ledger)
        with self._cards.find(context.data["sd_path"], job.card.identity) as card:
            _refuse_another(card, job, context.data["card"].get("fingerprint"))
            out_of_place = misplaced(libraries, card)
            for library in libraries:
                self._sweep(context, job, library, libraries[0])
            progress = Progress(context, self._clock)
            check = _Check(context, card, progress)
            with (
                Copier(
                    card,
                    check=check,
                    moved=progress.moved,
                    hash_names=self._hash_names,
                    verify_source=self._verify_source,
                ) as copier,
                Destinations(libraries) as destinations,
            ):
                run = _Run(
                    context,
                    job,
                    card,
                    copier,
                    progress,
                    check,
                    destinations,
                    self._ledger,
                    self._clock,
                    self._clip_families,
                )
                # The job's own scan, also where a later execution does this step again.
                output = run(self._inventory(job.execution_id), out_of_place)
        self._jobs.copied(context.ref, job.id)
        return output

    def _inventory(self, execution_id: int) -> Iterator[CardFile]:
        after: bytes | None = None
        while page := self._card_files.of(execution_id, after=after, limit=PAGE_FILES):
            yield from page
            after = page[-1].path

    def _sweep(self, context: StepContext, job: Job, library: Library, first: Library) -> None:
        """Remove the parts of this card's earlier jobs; one that can't be is no hindrance."""
        unfinished = [
            each
            for each in self._jobs.unfinished(job.card.identity, first.root)
            if each.id != job.id
        ]
        with suppress(LibraryFault):
            root = library.look() if unfinished else None
            if root is None:
                return
            with root:
                for other in unfinished:
                    with suppress(LibraryFault):
                        self._sweep_one(context, root, other)

    def _sweep_one(self, context: StepContext, library: Folder, job: Job) -> None:
        job_folder = library.find(os.fsencode(job.name))
        if job_folder is None:
            return
        with job_folder:
            ours: set[bytes] = set()
            for file in self._inventory(job.execution_id):
                if file.kind in COPIED_KINDS:
                    _, name = split(file.path)
                    ours |= {name, *(stored_name(name, number) for number in (1, 2, 3))}
            for folder, names in job_folder.walk():  # wherever its layout has put them
                context.check()
                if any(map(unfinished, names)):
                    folder.remove_leftovers(ours)


def _refuse_another(card: OpenCard, job: Job, fingerprint: str | None) -> None:
    """Raises ``AnotherCard``. Executions from before there were fingerprints have none."""
    if card.card.identity != job.card.identity:
        raise AnotherCard(
            f"another card is at {card.path_text}: {card.card.label} "
            f"({card.card.identity}); this job's card is {job.card.label} "
            f"({job.card.identity}), put that one in and retry"
        )
    if card.card.volume or fingerprint is None:
        return
    try:
        is_same = card.is_as(fingerprint)
    except OSError as error:
        raise CardLost(f"card lost: {card.path_text}: {reason(error)}") from error
    if not is_same:
        raise AnotherCard(
            f"another card is at {card.path_text}, or this one was changed since it was "
            "scanned: put this job's card in and retry, or start a new run, which scans what "
            "is there"
        )


class _Check:
    """Whether to go on: everybody who reads or writes asks, buffer by buffer.

    In a pause they all stand still where they are. If the card is taken out meanwhile, the
    attempt is given back: the next one looks for the card again, wherever it is by then.

    gives_up: nothing that is still read would be of any use.
    """

    def __init__(self, context: StepContext, card: OpenCard, progress: Progress) -> None:
        self.gives_up = False
        self._context = context
        self._card = card
        self._progress = progress

    def __call__(self) -> None:
        """Raises ``Interrupted``."""
        if self.gives_up:
            raise Interrupted
        self._context.check()
        while self._context.paused:
            self._progress.pause()
            if not self._is_there():
                self._context.give_back()
            self._context.rest()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._card.path), os.fstat(self._card.fd))
        except OSError:
            return False


@dataclass(slots=True)
class _UnderWay:
    """A batch that is being made certain, and the folders that it needs open."""

    files: Sequence[CardFile]
    folders: dict[tuple[Lane, bytes], Folder] = field(default_factory=dict)
    before: Batch = field(default_factory=Batch)
    pending: Pending | None = None

    def close(self) -> None:
        """Once nobody is at work in the folders any more."""
        if self.pending is not None:
            self.pending.wait()
        for folder in self.folders.values():
            kernel.close(folder.fd)


class _Run:
    """One attempt: take stock, see whether it can be done, bring it, sum up."""

    def __init__(
        self,
        context: StepContext,
        job: Job,
        card: OpenCard,
        copier: Copier,
        progress: Progress,
        check: _Check,
        destinations: Destinations,
        ledger: Ledger,
        clock: Clock,
        clip_families: Sequence[str],
    ) -> None:
        self._context = context
        self._job = job
        self._card = card
        self._copier = copier
        self._progress = progress
        self._check = check
        self._destinations = destinations
        self._ledger = ledger
        self._clock = clock
        self._job_name = os.fsencode(job.name)
        self._outcome = Outcome(job, destinations)
        self._stock = Stock(
            job,
            destinations,
            ledger,
            self._outcome,
            progress,
            check=check,
            is_again=context.data.get("again") is True,
            keeps_places=bool(clip_families),
            layout=context.data.get("layout"),
        )
        self._keeps_places = bool(clip_families)
        self._clip_steps = ClipSteps(context, clip_families, destinations.all[0])

    def __call__(
        self, inventory: Iterator[CardFile], misplaced: Mapping[Lane, Sequence[str]]
    ) -> dict[str, Any]:
        """misplaced: destinations that can't be written to, and why."""
        stock = self._stock
        try:
            stock.take(inventory, misplaced)
            if misplaced:
                prepare(stock, self._destinations, self._job_name, misplaced)
            if stock.proofs.hold(self._card, self._check) is False:
                raise AnotherCard(refilled(self._card))
            stock.decide(self._copier)
            if self._job.card.volume and stock.recognised:
                self._ledger.record(self._context.ref, self._job.id, stock.recognised)
            self._clip_steps.begin(stock.wanted)
            if stock.new:
                prepare(stock, self._destinations, self._job_name, {})
                self._bring()
            self._finish_folders()
        except CardLost as lost:
            raise CardLost(
                f"card lost: {lost}; {self._outcome.arrived(stock.wanted)} of "
                f"{len(stock.wanted)} files are in the library; put the card back in and "
                "retry, it goes on from there"
            ) from lost
        output = self._outcome.result(
            stock.wanted, left_out=stock.left_out, empty_folders=len(stock.folders)
        )
        return {**output, **self._clip_steps.output()}

    def _bring(self) -> None:
        """This thread finds the places, and records; one reads, and others make certain."""
        under_way: deque[Future[_UnderWay]] = deque()
        with ThreadPoolExecutor(1, "rushes-read") as reading:
            try:
                for batch in _batches(self._stock.new, self._above):
                    under_way.append(reading.submit(self._start, *self._prepare(batch)))
                    while len(under_way) >= BATCHES_AHEAD:
                        self._finish(under_way.popleft().result())
                while under_way:
                    self._finish(under_way.popleft().result())
            except BaseException:
                self._check.gives_up = True
                # What has arrived all the same needn't be read again by the next attempt.
                while under_way:
                    with suppress(BaseException):
                        self._finish(under_way.popleft().result())
                raise

    def _prepare(self, files: Sequence[CardFile]) -> tuple[_UnderWay, Sequence[Errand]]:
        """What is to be brought of a batch, and where to."""
        under_way = _UnderWay(files)
        errands = []
        try:
            for file in files:
                places = self._places(file, under_way)
                if places:
                    errands.append(Errand(file, places, self._left(file, places)))
        except BaseException:
            under_way.close()
            raise
        return under_way, errands

    def _start(self, under_way: _UnderWay, errands: Sequence[Errand]) -> _UnderWay:
        """Read and write a batch; it is finished later."""
        try:
            if errands:
                under_way.pending = self._copier.start(errands)
        except BaseException:
            under_way.close()
            raise
        return under_way

    def _places(self, file: CardFile, under_way: _UnderWay) -> Mapping[Lane, Place]:
        """The places that it is to get; where it has arrived already it is adopted."""
        batch = under_way.before
        places: dict[Lane, Place] = {}
        hashes: Mapping[str, str] | None = None
        for destination in self._destinations.working:
            lane = destination.lane
            if file.path not in destination.new or lane in batch.lost:
                continue
            try:
                folder = self._folder(destination, file, under_way)
                for name in destination.names(file.path):
                    found = folder.status(name, file.path)
                    if found is None:
                        places[lane] = Place(folder, name)
                        break
                    # Ours, from a crash before its row was written; or somebody else's.
                    if found.st_size == file.size_bytes and hashes is None:
                        hashes = self._copier.hash_source(file)
                    adopted = self._copier.adopt(folder, name, file, hashes)
                    if adopted is not None:
                        hashes, is_cold = adopted
                        batch.arrived.append(Arrived(file, lane, name, is_cold, hashes))
                        break
                else:
                    batch.faults.append(folder.taken(name, file.path))
            except FileFault as fault:
                batch.faults.append(fault)
            except LibraryFault as library_fault:
                batch.lost[lane] = library_fault
        return places

    def _folder(self, destination: Destination, file: CardFile, under_way: _UnderWay) -> Folder:
        """Raises ``FileFault`` if it can't be made, ``LibraryFault``."""
        assert destination.job_folder is not None
        above = self._above(file)
        key = (destination.lane, above)
        if key not in under_way.folders:
            try:
                made = destination.job_folder.make(destination.folder_path(above))
            except FileFault as fault:
                raise FileFault(file.path, str(fault)) from fault
            under_way.folders[key] = made
        return under_way.folders[key]

    def _above(self, file: CardFile) -> bytes:
        """The folder that the layout has it in."""
        return split(self._stock.places.of(file))[0]

    def _left(self, file: CardFile, lanes: Iterable[Lane]) -> Mapping[Lane, bytes]:
        destinations = self._destinations.all
        return {
            lane: destinations[lane].left[file.path]
            for lane in lanes
            if file.path in destinations[lane].left
        }

    def _finish(self, under_way: _UnderWay) -> None:
        faults: list[FileFault] = []
        lost: dict[Lane, LibraryFault] = {}
        try:
            coming = () if under_way.pending is None else under_way.pending.coming()
            for batch in chain([under_way.before], coming):
                self._record(batch)
                faults += batch.faults
                lost |= batch.lost
        finally:
            under_way.close()
        for file in under_way.files:
            if all(
                each.has(file.path) or file.path in each.missing
                for each in self._destinations.working
            ):
                self._outcome.went_well()
                self._progress.settle(file)
        for fault in faults:
            self._outcome.keep(fault)
        for lane, library_fault in lost.items():
            self._destinations.lose(lane, library_fault)

    def _record(self, batch: Batch) -> None:
        self._outcome.put_aside += batch.put_aside
        if not batch.arrived:
            return
        now = self._clock.now()
        places = [self._place(each) for each in batch.arrived]
        rows = [
            self._row(each, b"/".join((self._job_name, place)), now)
            for each, place in zip(batch.arrived, places, strict=True)
        ]
        self._ledger.record(self._context.ref, self._job.id, rows)
        for each, place in zip(batch.arrived, places, strict=True):
            destination = self._destinations.all[each.lane]
            destination.copied[each.file.path] = each.file.size_bytes
            self._outcome.stands(destination, each.file, place, self._stock.places.of(each.file))
            if each.lane == 0:
                if self._keeps_places:
                    destination.places[each.file.path] = b"/".join((self._job_name, place))
                self._clip_steps.arrived(each.file)

    def _place(self, arrived: Arrived) -> bytes:
        """Below the job's folder."""
        above = self._destinations.all[arrived.lane].folder_path(self._above(arrived.file))
        return b"/".join(filter(None, (above, arrived.name)))

    def _row(self, arrived: Arrived, path: bytes, verified_at: datetime) -> VerifiedCopy:
        file = arrived.file
        (hash_name, hash), *further = arrived.hashes.items()
        return VerifiedCopy(
            file=ImportedFile(
                card_identity=self._job.card.ledger_identity,
                path=file.path,
                size_bytes=file.size_bytes,
                mtime_ns=file.mtime_ns,
                hash_name=hash_name,
                hash=hash,
                further=tuple(further),
            ),
            destination=self._destinations.all[arrived.lane].library.root,
            path=path,
            verified_at=verified_at,
            cold=arrived.is_cold,
        )

    def _finish_folders(self) -> None:
        """Those that nothing was in, and every folder's own time; the deepest first.

        Where a layout sorts the files, the card's folders aren't there.
        """
        if not self._stock.places.are_as_on_the_card:
            return
        for destination in self._destinations.working:
            if not destination.copied:
                continue
            if destination.job_folder is None:  # an earlier attempt has brought everything
                destination.open(self._job_name)
            assert destination.job_folder is not None
            empty = {each.path for each in self._stock.folders}
            for path in empty:
                with suppress(FileFault):
                    kernel.close(destination.job_folder.make(destination.folder_path(path)).fd)
            above = {split(path)[0] for path in destination.copied}
            paths = {path for below in above | empty for path in with_those_above(below)}
            for path in sorted(paths, key=lambda path: -path.count(b"/")):
                # Nothing hangs on a folder's time, and some places refuse to set it.
                with suppress(OSError, OffloadFault):
                    self._set_time(destination, destination.job_folder, path)

    def _set_time(self, destination: Destination, job_folder: Folder, path: bytes) -> None:
        fd = open_folder(self._card.fd, path)
        try:
            mtime_ns = os.fstat(fd).st_mtime_ns
        finally:
            kernel.close(fd)
        folder = job_folder.find(destination.folder_path(path))
        if folder is not None:
            with folder:
                folder.set_time(mtime_ns)


def _batches(
    files: Sequence[CardFile], above: Callable[[CardFile], bytes]
) -> Iterator[Sequence[CardFile]]:
    """The small ones together, then each of the others by itself.

    In this order, since a clip is whole once its media are: what lies beside them is small.
    """
    batch: list[CardFile] = []
    batch_bytes = 0
    folders: set[bytes] = set()
    for file in files:
        if file.size_bytes < SMALL_BYTES:
            folder = above(file)
            if (
                len(batch) == BATCH_FILES
                or batch_bytes + file.size_bytes > BATCH_BYTES
                or (len(folders) == BATCH_FOLDERS and folder not in folders)
            ):
                yield batch
                batch, batch_bytes, folders = [], 0, set()
            batch.append(file)
            batch_bytes += file.size_bytes
            folders.add(folder)
    if batch:
        yield batch
    for file in files:
        if file.size_bytes >= SMALL_BYTES:
            yield [file]
