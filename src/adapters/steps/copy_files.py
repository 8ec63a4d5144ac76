"""copy_files: what is new on the card comes to every destination, verified.

What is new is for the ledger to say, not for the disk: a file that was imported
once and deleted from the library since isn't copied again. A row of the same
volume with the same path, size and time is the file. Any other row with that
path and size is only a candidate (cards without an identity of their own, clocks
that were set, journeys through time zones, counters that start anew), and the
bytes decide: the source is read and its hash compared. A person may wish otherwise
(``again``): then only what this job itself has brought is known.

Only rows of a destination count there: what is on one disk is new to another. And what
is known isn't therefore there, so the disk is asked as well, and a file that it no
longer has is counted apart and named: nobody may format a card on its account.

A retry finds the rows of the attempt before it, so it goes on where that stopped, at
each destination. A file that can't be read is no reason to leave the others on the
card, nor is a destination that fails: it is named at the end. A lost card, or the last
destination, ends it at once.

Names
    A file keeps its name wherever it can. Where it can't, ``domain.names`` has the rule
    for another one; folders follow it too. Files that a destination would mix up are
    numbered in the order of their paths, so every attempt finds the same names. A name
    that somebody else's file has in the job's folder is taken, and the next number is.

A run that was killed leaves parts in its job's folder; small ones are removed when the
job is gone on with, large ones are gone on with themselves. If the card is ingested anew
instead, they are removed as well: every run clears the folders of the card's earlier
jobs that nobody is at.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Any

from adapters.steps.cards import FsCards, OpenCard, open_folder
from adapters.steps.copying import (
    BATCH_FILES,
    HASH_NAME,
    RESUME_BYTES,
    SMALL_BYTES,
    Batch,
    Copier,
    Errand,
    Lane,
    Pending,
)
from adapters.steps.faults import (
    AnotherCard,
    CardLost,
    FileFault,
    FilesMissing,
    LibraryFault,
    OffloadFault,
    reason,
)
from adapters.steps.library import MAX_OWN_NAMES, Folder, Library, Room, Standing
from application.authoring import StepContext
from application.ports import CardFiles, Clock, Jobs, Ledger
from domain.footage import (
    COPIED_KINDS,
    CardFile,
    FileKind,
    ImportedFile,
    Job,
    VerifiedCopy,
    same_time,
    shown,
)
from domain.names import MAX_NAME_BYTES, folded, stored_name

PAGE_FILES = 1_000
"""Files of the inventory that are read, and asked about, at once."""

UNREADABLE_IN_A_ROW = 3
"""So many input/output errors one after the other are a lost card, whatever its mount says."""

BATCHES_AHEAD = 2
"""Batches that are being made certain while the next is read; each holds files open."""

MAX_PUT_ASIDE = 20
"""Bad copies that the output names; it is merged into the execution's data."""

MAX_MISSING = 20
MAX_MISSING_CHARACTERS = 500
"""Files that the output names as no longer in the library, and of each name."""

MAX_RENAMED = 20
"""Files that the output names as having another name now; the ledger has them all."""

RATE_OVER_S = 5.0
"""Long enough to be steady, short enough that a slow card is seen."""


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
    ) -> None:
        self._cards = cards
        self._card_files = card_files
        self._jobs = jobs
        self._ledger = ledger
        self._clock = clock
        self._library = library
        self._hash_names = hash_names
        self._verify_source = verify_source

    def __call__(self, context: StepContext) -> dict[str, Any]:
        job = self._jobs.get(context.data["job_id"])
        libraries = Library.all_of(context, self._library)
        with self._cards.find(context.data["sd_path"], job.card.identity) as card:
            _refuse_another(card, job, context.data["card"].get("fingerprint"))
            misplaced = _misplaced(libraries, card)
            for library in libraries:
                self._sweep(context, job, library, libraries[0])
            progress = _Progress(context, self._clock)
            with (
                Copier(
                    card,
                    check=context.check,
                    moved=progress.moved,
                    hash_names=self._hash_names,
                    verify_source=self._verify_source,
                ) as copier,
                _Destinations(libraries) as destinations,
            ):
                run = _Run(
                    context, job, card, copier, progress, destinations, self._ledger, self._clock
                )
                # The job's own scan, also where a later execution does this step again.
                output = run(self._inventory(job.execution_id), misplaced)
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
            names: dict[bytes, set[bytes]] = {}
            for file in self._inventory(job.execution_id):
                if file.kind in COPIED_KINDS:
                    above, name = _split(file.path)
                    ours = {name, *(stored_name(name, number) for number in (1, 2, 3))}
                    for folder_path in {above, b"/".join(map(stored_name, above.split(b"/")))}:
                        names.setdefault(folder_path, set()).update(ours)
            for path, ours in names.items():
                context.check()
                folder = job_folder.find(path)
                if folder is not None:
                    with folder:
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


def _misplaced(libraries: Sequence[Library], card: OpenCard) -> Mapping[Lane, list[str]]:
    """What is wrong with destinations as places."""
    misplaced: dict[Lane, list[str]] = {}
    for number, library in enumerate(libraries):
        problems = []
        try:
            library.refuse_card(card)
            found = library.look()
            if found is not None:
                os.close(found.fd)
        except LibraryFault as fault:
            problems.append(str(fault))
        others = [*libraries[:number], *libraries[number + 1 :]]
        beside = library.problem_beside(others)
        if beside is not None:
            problems.append(beside)
        if problems:
            misplaced[number] = problems
    return misplaced


class _Destination:
    """What one of them has, and is to get.

    copied, known, missing: the files (by path) that this job has brought, that were there,
    and that were known and are there no longer. new: those to be brought. left: parts of
    large ones that an earlier attempt has left.
    """

    def __init__(self, lane: Lane, library: Library) -> None:
        self.lane = lane
        self.library = library
        self.standing = Standing(library)
        self.copied: dict[bytes, int] = {}
        self.known: set[bytes] = set()
        self.missing: set[bytes] = set()
        self.new: set[bytes] = set()
        self.left: dict[bytes, bytes] = {}
        self.fault: LibraryFault | None = None
        self.job_folder: Folder | None = None
        self._numbers: dict[bytes, int] = {}
        self._components: dict[bytes, bytes] = {}

    def open(self, job_name: bytes) -> None:
        """The job's folder, made if need be."""
        with self.library.open() as root:
            self.job_folder = root.make(job_name)

    def close(self) -> None:
        self.standing.__exit__(None, None, None)
        if self.job_folder is not None:
            os.close(self.job_folder.fd)

    def has(self, path: bytes) -> bool:
        return path in self.copied or path in self.known

    def folder_path(self, path: bytes) -> bytes:
        """Where what is in this folder of the card goes, below the job's folder."""
        return b"/".join(map(self._component, path.split(b"/"))) if path else path

    def number(self, files: Sequence[CardFile], job_name: bytes) -> None:
        """Tell apart what this destination would mix up."""
        assert self.job_folder is not None
        with self.library.open() as root:
            if not root.mixes_up(job_name):
                return
        seen: Counter[str] = Counter()
        for file in files:
            above, name = _split(file.path)
            key = folded(self.folder_path(above) + b"/" + self._component(name))
            seen[key] += 1
            if seen[key] > 1:
                self._numbers[file.path] = seen[key]

    def names(self, path: bytes) -> Iterator[bytes]:
        """The names that a file may have, the best first."""
        _, name = _split(path)
        first = self._numbers.get(path, 1)
        if first == 1:
            yield self._component(name)
            first = 2
        for number in range(first, first + MAX_OWN_NAMES):
            yield stored_name(name, number)

    def _component(self, name: bytes) -> bytes:
        """The name, or what it becomes where the destination can't hold it."""
        if name not in self._components:
            self._components[name] = self._checked(name)
        return self._components[name]

    def _checked(self, name: bytes) -> bytes:
        other = stored_name(name)
        if other == name:
            return name
        folder = self.job_folder
        assert folder is not None
        if folder.is_picky or len(name) > MAX_NAME_BYTES:
            return other
        if folder.is_picky is None and not folder.takes(name):
            return other
        return name


class _Destinations:
    """All of them, by their numbers; those that have failed stay in the list."""

    def __init__(self, libraries: Sequence[Library]) -> None:
        self.all = [_Destination(lane, library) for lane, library in enumerate(libraries)]

    def __enter__(self) -> _Destinations:
        return self

    def __exit__(self, *failure: object) -> None:
        for each in self.all:
            each.close()

    @property
    def working(self) -> list[_Destination]:
        return [each for each in self.all if each.fault is None]

    def lose(self, lane: Lane, fault: LibraryFault) -> None:
        """Raises ``LibraryFault`` if that was the last."""
        self.all[lane].fault = self.all[lane].fault or fault
        if not self.working:
            raise self.fault()

    def fault(self) -> LibraryFault:
        """Of all that have failed."""
        faults = [each.fault for each in self.all if each.fault is not None]
        if len(self.all) == 1:
            return faults[0]
        return LibraryFault(
            f"{len(faults)} of {len(self.all)} destinations failed: "
            + "; ".join(map(str, dict.fromkeys(map(str, faults))))
        )


@dataclass(slots=True)
class _UnderWay:
    """A batch that is being made certain, and the folders that it needs open."""

    files: Sequence[CardFile]
    folders: Mapping[Lane, Folder]
    pending: Pending | None
    before: Batch = field(default_factory=Batch)

    def close(self) -> None:
        for folder in self.folders.values():
            with suppress(OSError):
                os.close(folder.fd)


class _Run:
    """One attempt: what is wanted, what is known, what has arrived."""

    def __init__(
        self,
        context: StepContext,
        job: Job,
        card: OpenCard,
        copier: Copier,
        progress: _Progress,
        destinations: _Destinations,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._context = context
        self._job = job
        self._card = card
        self._copier = copier
        self._progress = progress
        self._destinations = destinations
        self._ledger = ledger
        self._clock = clock
        self._is_again = context.data.get("again") is True
        self._job_name = os.fsencode(job.name)
        self._wanted: list[CardFile] = []
        self._folders: list[CardFile] = []
        self._left_out: Counter[FileKind] = Counter()
        self._undecided: dict[bytes, dict[Lane, Sequence[VerifiedCopy]]] = {}
        self._new: list[CardFile] = []
        self._under_way: deque[_UnderWay] = deque()
        self._faults: list[FileFault] = []
        self._unreadable_in_a_row = 0
        self._put_aside: list[str] = []
        self._renamed: list[dict[str, str]] = []
        self._renamed_files = 0

    def __call__(
        self, inventory: Iterator[CardFile], misplaced: Mapping[Lane, Sequence[str]]
    ) -> dict[str, Any]:
        """misplaced: destinations that can't be written to, and why."""
        try:
            self._take_stock(inventory, misplaced)
            if misplaced:
                self._prepare(misplaced)
            self._decide()
            self._bring()
            self._finish_folders()
        except CardLost as lost:
            raise CardLost(
                f"card lost: {lost}; {self._arrived()} of "
                f"{len(self._wanted)} files are in the library; put the card back in and "
                "retry, it goes on from there"
            ) from lost
        return self._result()

    # -- what is new -------------------------------------------------------------------

    def _take_stock(self, inventory: Iterator[CardFile], misplaced: Collection[Lane]) -> None:
        """Ask the ledger about every file that is to be copied."""
        for file in inventory:
            if file.kind in COPIED_KINDS:
                self._wanted.append(file)
            elif file.kind is FileKind.FOLDER:
                self._folders.append(file)
            else:
                self._left_out[file.kind] += 1
        if len(self._wanted) != self._job.file_count:
            raise OffloadFault(
                f"the inventory has {len(self._wanted)} files to copy, but the scan counted "
                f"{self._job.file_count}; a new run scans the card again"
            )
        for start in range(0, len(self._wanted), PAGE_FILES):
            self._context.check()
            page = self._wanted[start : start + PAGE_FILES]
            known = [
                {} if each.lane in misplaced else self._ledger.known(page, each.library.root)
                for each in self._destinations.all
            ]
            for file in page:
                self._sort(file, [each.get(file.path, ()) for each in known])

    def _sort(self, file: CardFile, known: Sequence[Sequence[VerifiedCopy]]) -> None:
        card = self._card.card
        undecided = {}
        readings = 0
        for destination, copies in zip(self._destinations.all, known, strict=True):
            if self._is_again:
                copies = [copy for copy in copies if self._is_ours(copy)]
            same = [
                copy
                for copy in copies
                if card.volume
                and copy.file.card_identity == card.identity
                and same_time(copy.file.mtime_ns, file.mtime_ns)
            ]
            if same:
                self._count_known(destination, file, same)
                continue
            readings += 1
            if copies:
                undecided[destination.lane] = copies
            else:
                destination.new.add(file.path)
        if undecided:
            self._undecided[file.path] = undecided
        if readings:
            self._new.append(file)
            self._progress.expect(file, readings=readings + 1 + bool(undecided))

    def _decide(self) -> None:
        """Let the bytes say whether a candidate is the file that the ledger knows."""
        new = []
        for file in self._new:
            if file.path in self._undecided:
                try:
                    is_new = self._is_new(file, self._undecided[file.path])
                except FileFault as fault:
                    self._keep(fault)
                    continue
                self._unreadable_in_a_row = 0
                if not is_new:
                    self._progress.settle(file)
                    continue
            new.append(file)
        self._new = new

    def _is_new(self, file: CardFile, undecided: Mapping[Lane, Sequence[VerifiedCopy]]) -> bool:
        """To any of the destinations."""
        names = {copy.file.hash_name for copies in undecided.values() for copy in copies}
        hashes = self._copier.hash_source(file, sorted(names))
        for lane, copies in undecided.items():
            same = [copy for copy in copies if hashes[copy.file.hash_name] == copy.file.hash]
            if same:
                self._count_known(self._destinations.all[lane], file, same)
            else:
                self._destinations.all[lane].new.add(file.path)
        return any(file.path in each.new for each in self._destinations.all)

    def _count_known(
        self, destination: _Destination, file: CardFile, copies: Sequence[VerifiedCopy]
    ) -> None:
        """Brought by an earlier attempt, in the library already, or there no longer."""
        self._context.check()
        there = [copy for copy in copies if destination.standing.holds(copy.path, file.size_bytes)]
        ours = [copy for copy in there if self._is_ours(copy)]
        if ours:
            destination.copied[file.path] = file.size_bytes
            self._note_name(destination, file, _split(ours[0].path[len(self._job_name) + 1 :]))
        elif there:
            destination.known.add(file.path)
        else:
            destination.missing.add(file.path)

    def _is_ours(self, copy: VerifiedCopy) -> bool:
        return copy.path.startswith(self._job_name + b"/")

    # -- bringing it -------------------------------------------------------------------

    def _bring(self) -> None:
        if not self._new:
            return
        by_folder = self._by_folder()
        self._prepare({})
        try:
            for path, files in by_folder.items():
                for batch in _batches(files):
                    self._begin(path, batch)
                    while len(self._under_way) >= BATCHES_AHEAD:
                        self._finish_one()
            while self._under_way:
                self._finish_one()
        except BaseException:
            # What has arrived all the same needn't be read again by the next attempt.
            while self._under_way:
                with suppress(BaseException):
                    self._finish_one()
            raise

    def _by_folder(self) -> Mapping[bytes, Sequence[CardFile]]:
        by_folder: dict[bytes, list[CardFile]] = {}
        for file in self._new:
            by_folder.setdefault(_split(file.path)[0], []).append(file)
        return by_folder

    def _prepare(self, misplaced: Mapping[Lane, Sequence[str]]) -> None:
        """Clear away what a crash left, then see whether everything can go where it is to go.

        All that is wrong is said at once, before any byte moves.
        """
        problems = [problem for each in misplaced.values() for problem in each]
        by_folder = self._by_folder()
        rooms: dict[int, list[tuple[str, int, Room]]] = {}
        for destination in self._destinations.all:
            if not destination.new or destination.lane in misplaced:
                continue
            place = destination.library.text
            try:
                with destination.library.open() as root:
                    largest = max(
                        (file for file in self._new if file.path in destination.new),
                        key=lambda file: file.size_bytes,
                    )
                    found = root.problems((largest.path, largest.size_bytes))
                    problems += found
                    if found:
                        continue
                    sizes, kept_bytes = self._needed(destination, root, by_folder)
                    room = root.room(sizes)
                    room = Room(
                        room.device,
                        max(0, room.needed_bytes - kept_bytes),
                        room.reserve_bytes,
                        room.free_bytes,
                    )
                    if sizes:
                        rooms.setdefault(room.device, []).append((place, len(sizes), room))
            except LibraryFault as fault:
                problems.append(str(fault))
        for together in rooms.values():
            places, counts, each = zip(*together, strict=True)
            room = Room(
                each[0].device,
                sum(one.needed_bytes for one in each),
                each[0].reserve_bytes,
                each[0].free_bytes,
            )
            problem = room.problem(places, sum(counts))
            if problem is not None:
                problems.append(problem)
        if problems:
            raise LibraryFault(_together(problems))
        for destination in self._destinations.all:
            if destination.new:
                try:
                    destination.open(self._job_name)
                    destination.number(self._wanted, self._job_name)
                except LibraryFault as fault:
                    self._destinations.lose(destination.lane, fault)

    def _needed(
        self,
        destination: _Destination,
        root: Folder,
        by_folder: Mapping[bytes, Sequence[CardFile]],
    ) -> tuple[list[int], int]:
        """The sizes of the files that aren't there, and what is there of them already."""
        sizes: list[int] = []
        kept_bytes = 0
        job_folder = root.find(self._job_name)
        if job_folder is None:
            return [file.size_bytes for file in self._new if file.path in destination.new], 0
        destination.job_folder = job_folder
        ours: dict[bytes, set[bytes]] = {path: set() for path in by_folder}
        for file in self._wanted:
            path, name = _split(file.path)
            if path in ours:
                ours[path].add(name)
        try:
            destination.number(self._wanted, self._job_name)
            for path, files in by_folder.items():
                missing = [file for file in files if file.path in destination.new]
                folder = job_folder.find(destination.folder_path(path))
                if folder is None:
                    sizes += [file.size_bytes for file in missing]
                    continue
                with folder:
                    large: dict[bytes, CardFile] = {}
                    absent = []
                    names = set(ours[path])
                    for file in files:
                        candidates = list(destination.names(file.path))
                        names.update(candidates)
                        if file not in missing:
                            continue
                        with suppress(FileFault):
                            if folder.status(candidates[0], file.path) is None:
                                absent.append(file)
                                if file.size_bytes >= RESUME_BYTES:
                                    large[candidates[0]] = file
                    for name, left in folder.remove_leftovers(names, large).items():
                        destination.left[large[name].path] = left.name
                        kept_bytes += left.room_bytes
                    sizes += [file.size_bytes for file in absent]
        finally:
            destination.job_folder = None
            os.close(job_folder.fd)
        return sizes, kept_bytes

    def _begin(self, path: bytes, files: Sequence[CardFile]) -> None:
        """Read and write a batch of one folder's files; it is finished later."""
        under_way = _UnderWay(files, folders := {}, None)
        try:
            for destination in self._destinations.working:
                if any(file.path in destination.new for file in files):
                    folder = self._folder(destination, path, files, under_way.before)
                    if folder is not None:
                        folders[destination.lane] = folder
            errands = []
            for file in files:
                with under_way.before.faults_kept():
                    names = self._places(file, folders, under_way.before)
                    if names:
                        errands.append(Errand(file, names, self._left(file, names)))
            if errands:
                under_way.pending = self._copier.start(folders, errands)
        except BaseException:
            under_way.close()
            raise
        self._under_way.append(under_way)

    def _folder(
        self, destination: _Destination, path: bytes, files: Sequence[CardFile], batch: Batch
    ) -> Folder | None:
        assert destination.job_folder is not None
        try:
            return destination.job_folder.make(destination.folder_path(path))
        except FileFault as fault:
            batch.faults += [
                FileFault(file.path, str(fault)) for file in files if file.path in destination.new
            ]
        except LibraryFault as fault:
            self._destinations.lose(destination.lane, fault)
        return None

    def _places(
        self, file: CardFile, folders: Mapping[Lane, Folder], batch: Batch
    ) -> Mapping[Lane, bytes]:
        """The names that it is to get; where it has arrived already it is adopted."""
        names: dict[Lane, bytes] = {}
        hashes: Mapping[str, str] | None = None
        for lane, folder in folders.items():
            destination = self._destinations.all[lane]
            if file.path not in destination.new or lane in batch.lost:
                continue
            try:
                for name in destination.names(file.path):
                    found = folder.status(name, file.path)
                    if found is None:
                        names[lane] = name
                        break
                    # Ours, from a crash before its row was written; or somebody else's.
                    if found.st_size == file.size_bytes and hashes is None:
                        hashes = self._copier.hash_source(file)
                    adopted = self._copier.adopt(folder, name, file, hashes)
                    if adopted is not None:
                        batch.hashes[file.path], is_cold = adopted
                        batch.arrived.append((file, lane, name, is_cold))
                        break
                else:
                    batch.faults.append(folder.taken(name, file.path))
            except LibraryFault as fault:
                batch.lost[lane] = fault
        return names

    def _left(self, file: CardFile, lanes: Iterable[Lane]) -> Mapping[Lane, bytes]:
        destinations = self._destinations.all
        return {
            lane: destinations[lane].left[file.path]
            for lane in lanes
            if file.path in destinations[lane].left
        }

    def _finish_one(self) -> None:
        under_way = self._under_way.popleft()
        try:
            batch = under_way.before
            if under_way.pending is not None:
                batch.add(under_way.pending.finish())
        finally:
            under_way.close()
        self._record(batch)
        for file in under_way.files:
            if all(
                each.has(file.path) or file.path in each.missing
                for each in self._destinations.working
            ):
                self._unreadable_in_a_row = 0
                self._progress.settle(file)
        for kept in batch.faults:
            self._keep(kept)
        for lane, fault in batch.lost.items():
            self._destinations.lose(lane, fault)

    def _record(self, batch: Batch) -> None:
        self._put_aside += batch.put_aside
        if not batch.arrived:
            return
        now = self._clock.now()
        rows = []
        for file, lane, name, is_cold in batch.arrived:
            destination = self._destinations.all[lane]
            above = destination.folder_path(_split(file.path)[0])
            path = b"/".join(filter(None, (self._job_name, above, name)))
            rows.append(self._row(file, destination, path, batch.hashes[file.path], now, is_cold))
        self._ledger.record(self._context.ref, self._job.id, rows)
        for file, lane, name, _ in batch.arrived:
            destination = self._destinations.all[lane]
            destination.copied[file.path] = file.size_bytes
            above = destination.folder_path(_split(file.path)[0])
            self._note_name(destination, file, (above, name))

    def _row(
        self,
        file: CardFile,
        destination: _Destination,
        path: bytes,
        hashes: Mapping[str, str],
        verified_at: datetime,
        is_cold: bool,
    ) -> VerifiedCopy:
        (hash_name, hash), *further = hashes.items()
        return VerifiedCopy(
            file=ImportedFile(
                card_identity=self._card.card.identity,
                path=file.path,
                size_bytes=file.size_bytes,
                mtime_ns=file.mtime_ns,
                hash_name=hash_name,
                hash=hash,
                further=tuple(further),
            ),
            destination=destination.library.root,
            path=path,
            verified_at=verified_at,
            cold=is_cold,
        )

    def _note_name(
        self, destination: _Destination, file: CardFile, place: tuple[bytes, bytes]
    ) -> None:
        stored = b"/".join(filter(None, place))
        if stored == file.path:
            return
        self._renamed_files += 1
        if len(self._renamed) < MAX_RENAMED:
            self._renamed.append(
                {
                    "path": shown(file.path)[:MAX_MISSING_CHARACTERS],
                    "destination": destination.library.text,
                    "stored_as": shown(stored)[:MAX_MISSING_CHARACTERS],
                }
            )

    def _finish_folders(self) -> None:
        """Those that nothing was in, and every folder's own time; the deepest first."""
        for destination in self._destinations.working:
            if not destination.copied:
                continue
            if destination.job_folder is None:  # an earlier attempt has brought everything
                destination.open(self._job_name)
            assert destination.job_folder is not None
            empty = {each.path for each in self._folders}
            for path in empty:
                with suppress(FileFault):
                    os.close(destination.job_folder.make(destination.folder_path(path)).fd)
            above = {_split(path)[0] for path in destination.copied}
            paths = {path for below in above | empty for path in _with_those_above(below)}
            for path in sorted(paths, key=lambda path: -path.count(b"/")):
                # Nothing hangs on a folder's time, and some places refuse to set it.
                with suppress(OSError, OffloadFault):
                    self._set_time(destination, destination.job_folder, path)

    def _set_time(self, destination: _Destination, job_folder: Folder, path: bytes) -> None:
        fd = open_folder(self._card.fd, path)
        try:
            mtime_ns = os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)
        folder = job_folder.find(destination.folder_path(path))
        if folder is not None:
            with folder:
                folder.set_time(mtime_ns)

    def _keep(self, fault: FileFault) -> None:
        """The other files may be better, unless it is the card that has stopped answering."""
        self._faults.append(fault)
        if fault.errno not in (errno.EIO, errno.ENXIO):
            self._unreadable_in_a_row = 0
            return
        self._unreadable_in_a_row += 1
        if self._unreadable_in_a_row == UNREADABLE_IN_A_ROW:
            raise CardLost(f"{UNREADABLE_IN_A_ROW} files in a row, the last {fault}")

    # -- what became of it -------------------------------------------------------------

    def _arrived(self) -> int:
        """Files that stand at every destination."""
        return sum(
            all(each.has(file.path) for each in self._destinations.all) for file in self._wanted
        )

    def _result(self) -> dict[str, Any]:
        destinations = self._destinations.all
        if len(self._destinations.working) < len(destinations):
            whole = [
                each
                for each in self._destinations.working
                if all(each.has(file.path) for file in self._wanted)
            ]
            raise LibraryFault(
                f"{self._destinations.fault()}; "
                + (
                    f"everything is in {' and '.join(each.library.text for each in whole)}; "
                    if whole
                    else ""
                )
                + "a retry copies what is missing, where it is missing"
            )
        if self._faults:
            raise FilesMissing(
                list({(fault.path, str(fault)): fault for fault in self._faults}.values()),
                arrived=self._arrived(),
                wanted=len(self._wanted),
                note=self._note(),
            )
        missing = [
            file for file in self._wanted if any(file.path in each.missing for each in destinations)
        ]
        lacking = {file.path for file in missing}
        copied = [
            file
            for file in self._wanted
            if file.path not in lacking and any(file.path in each.copied for each in destinations)
        ]
        known_files = sum(
            all(file.path in each.known for each in destinations) for file in self._wanted
        )
        accounted = len(copied) + known_files + len(missing)
        if accounted != len(self._wanted) or any(
            len(each.copied) + len(each.known) + len(each.missing) != len(self._wanted)
            for each in destinations
        ):
            raise OffloadFault(
                f"{len(self._wanted)} files were to be copied, but {accounted} are accounted for"
            )
        output: dict[str, Any] = {
            "copied_files": len(copied),
            "copied_bytes": sum(file.size_bytes for file in copied),
            "known_files": known_files,
            "missing_files": len(missing),
            "verified": len(copied),
            "job_folder": self._job_folder(destinations[0]),
            "left_out": {kind.value: count for kind, count in sorted(self._left_out.items())},
        }
        if len(destinations) > 1:
            output["copies"] = [
                {
                    "destination": each.library.text,
                    "copied_files": len(each.copied),
                    "copied_bytes": sum(each.copied.values()),
                    "known_files": len(each.known),
                    "missing_files": len(each.missing),
                    "job_folder": self._job_folder(each),
                }
                for each in destinations
            ]
        if self._folders:
            output["empty_folders"] = len(self._folders)
        if self._renamed_files:
            output["renamed"] = {"total": self._renamed_files, "named": self._renamed}
        if self._put_aside:
            output["bad_copies"] = self._put_aside[:MAX_PUT_ASIDE]
        if missing:
            output["missing"] = self._missing_names()
            output["library_note"] = self._note()
        return output

    def _job_folder(self, destination: _Destination) -> str | None:
        place = os.path.join(destination.library.root, self._job.name)
        return shown(os.fsencode(place)) if os.path.isdir(place) else None

    def _missing_paths(self) -> list[bytes]:
        lacking = set().union(*(each.missing for each in self._destinations.all))
        return [file.path for file in self._wanted if file.path in lacking]

    def _missing_names(self) -> list[str]:
        return [
            shown(path)[:MAX_MISSING_CHARACTERS] for path in self._missing_paths()[:MAX_MISSING]
        ]

    def _note(self) -> str:
        """Which files nobody may believe to be in the library; empty if there are none."""
        count = len(self._missing_paths())
        if not count:
            return ""
        named = self._missing_names()
        more = count - len(named)
        return (
            f"{count} {'file was' if count == 1 else 'files were'} imported earlier and "
            f"{'is' if count == 1 else 'are'} no longer in the library: {', '.join(named)}"
            + (f" and {more} more" if more else "")
        )


class _Progress:
    """How far it is by bytes read and read back, so that verifying moves it as copying does.

    Told from several threads.
    """

    def __init__(self, context: StepContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self._lock = Lock()
        self._open: dict[bytes, int] = {}
        self._work = self._done = 0
        self._files_total = self._files_done = self._bytes_total = 0
        self._samples: deque[tuple[float, int]] = deque()

    def expect(self, file: CardFile, *, readings: int) -> None:
        """So often its bytes will pass by; one more, so that empty files count for something."""
        self._open[file.path] = readings * file.size_bytes + 1
        self._work += self._open[file.path]
        self._files_total += 1
        self._bytes_total += file.size_bytes

    def moved(self, file: CardFile, count: int) -> None:
        with self._lock:
            # Reading again after a mismatch is no progress.
            step = min(count, self._open.get(file.path, 0))
            if step:
                self._open[file.path] -= step
                self._done += step
            self._report(file)

    def settle(self, file: CardFile) -> None:
        with self._lock:
            self._done += self._open.pop(file.path, 0)
            self._files_done += 1
            self._report(file)

    def _report(self, file: CardFile) -> None:
        fraction = self._done / self._work
        bytes_done = int(fraction * self._bytes_total)
        detail: dict[str, Any] = {}
        rate = self._rate(bytes_done)
        if rate:
            detail["bytes_per_s"] = int(rate)
            detail["seconds_left"] = int((self._bytes_total - bytes_done) / rate + 0.5)
        self._context.progress(
            fraction,
            files_done=self._files_done,
            files_total=self._files_total,
            bytes_done=bytes_done,
            bytes_total=self._bytes_total,
            file=shown(file.path),
            **detail,
        )

    def _rate(self, bytes_done: int) -> float:
        """Bytes a second over the last few; 0 while that can't be said."""
        now = self._clock.monotonic()
        if not self._samples or now - self._samples[-1][0] >= RATE_OVER_S / 20:
            self._samples.append((now, bytes_done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_OVER_S:
            self._samples.popleft()
        began, before = self._samples[0]
        return (bytes_done - before) / (now - began) if now - began >= RATE_OVER_S / 10 else 0.0


def _batches(files: Sequence[CardFile]) -> Iterator[list[CardFile]]:
    """The small ones of a folder together, then each of the others by itself."""
    small = [file for file in files if file.size_bytes < SMALL_BYTES]
    for start in range(0, len(small), BATCH_FILES):
        yield small[start : start + BATCH_FILES]
    for file in files:
        if file.size_bytes >= SMALL_BYTES:
            yield [file]


def _split(path: bytes) -> tuple[bytes, bytes]:
    """The folder, and the name in it."""
    folder, _, name = path.rpartition(b"/")
    return folder, name


def _with_those_above(path: bytes) -> Iterator[bytes]:
    while path:
        yield path
        path = _split(path)[0]


def _together(problems: Sequence[str]) -> str:
    """As one sentence, if it is one problem."""
    each = list(dict.fromkeys(problems))
    if len(each) == 1:
        return each[0]
    return f"nothing was copied, for {len(each)} reasons: " + "; ".join(
        f"({number}) {problem}" for number, problem in enumerate(each, start=1)
    )
