"""copy_files: what is new on the card comes into the library, verified.

What is new is for the ledger to say, not for the disk: a file that was imported
once and deleted from the library since isn't copied again. A row of the same
volume with the same path, size and time is the file. Any other row with that
path and size is only a candidate (cards without an identity of their own, clocks
that were set, journeys through time zones, counters that start anew), and the
bytes decide: the source is read and its hash compared.

Only rows of this library count: what is on one disk is new to another. And what is
known isn't therefore there, so the disk is asked as well, and a file that it no
longer has is counted apart and named: nobody may format a card on its account.

A retry finds the rows of the attempt before it, so it goes on where that stopped.
A file that can't be read is no reason to leave the others on the card: it is
named at the end. A lost card, or a library that can't be written, ends it at once.

A run that was killed leaves parts in its job's folder, which are removed when the
job is gone on with. If the card is ingested anew instead, they are removed as well:
every run clears the folders of the card's earlier jobs that nobody is at.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from adapters.steps.cards import FsCards, OpenCard
from adapters.steps.copying import BATCH_FILES, HASH_NAME, SMALL_BYTES, Copier, name_of, same_time
from adapters.steps.faults import (
    AnotherCard,
    CardLost,
    FileFault,
    FilesMissing,
    LibraryFault,
    OffloadFault,
    reason,
)
from adapters.steps.library import Folder, Library, Standing
from application.authoring import StepContext
from application.ports import CardFiles, Clock, Jobs, Ledger
from domain.footage import (
    COPIED_KINDS,
    CardFile,
    FileKind,
    ImportedFile,
    Job,
    VerifiedCopy,
    shown,
)

PAGE_FILES = 1_000
"""Files of the inventory that are read, and asked about, at once."""

UNREADABLE_IN_A_ROW = 3
"""So many input/output errors one after the other are a lost card, whatever its mount says."""

MAX_PUT_ASIDE = 20
"""Bad copies that the output names; it is merged into the execution's data."""

MAX_MISSING = 20
MAX_MISSING_CHARACTERS = 500
"""Files that the output names as no longer in the library, and of each name."""


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
    ) -> None:
        self._cards = cards
        self._card_files = card_files
        self._jobs = jobs
        self._ledger = ledger
        self._clock = clock
        self._library = library

    def __call__(self, context: StepContext) -> dict[str, Any]:
        job = self._jobs.get(context.data["job_id"])
        library = Library.of(context, self._library)
        with self._cards.open(context.data["sd_path"]) as card, Standing(library) as standing:
            _refuse_another(card, job, context.data["card"].get("fingerprint"))
            library.refuse_card(card)
            self._sweep(context, job, library)
            run = _Run(context, job, card, library, standing, self._ledger, self._clock)
            try:
                # The job's own scan, also where a later execution does this step again.
                run.take_stock(self._inventory(job.execution_id))
                run.decide()
                run.bring()
            except CardLost as lost:
                raise CardLost(
                    f"card lost: {lost}; {run.copied_files + run.known_files} of "
                    f"{len(run.wanted)} files are in the library; put the card back in and "
                    "retry, it goes on from there"
                ) from lost
            output = run.result()
        self._jobs.copied(context.ref, job.id)
        return output

    def _inventory(self, execution_id: int) -> Iterator[CardFile]:
        after: bytes | None = None
        while page := self._card_files.of(execution_id, after=after, limit=PAGE_FILES):
            yield from page
            after = page[-1].path

    def _sweep(self, context: StepContext, job: Job, library: Library) -> None:
        """Remove the parts of this card's earlier jobs; one that can't be is no hindrance."""
        unfinished = self._jobs.unfinished(job.card.identity, library.root)
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
                    names.setdefault(file.path.rpartition(b"/")[0], set()).add(name_of(file))
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


class _Run:
    """One attempt: what is wanted, what is known, what has arrived."""

    def __init__(
        self,
        context: StepContext,
        job: Job,
        card: OpenCard,
        library: Library,
        standing: Standing,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._context = context
        self._job = job
        self._card = card
        self._library = library
        self._standing = standing
        self._ledger = ledger
        self._clock = clock
        self._progress = _Progress(context)
        self._copier = Copier(card, check=context.check, moved=self._progress.moved)
        self.wanted: list[CardFile] = []
        self.left_out: Counter[FileKind] = Counter()
        self.copied_files = self.copied_bytes = self.known_files = self.missing_files = 0
        self._missing: list[str] = []
        self._undecided: list[tuple[CardFile, Sequence[VerifiedCopy]]] = []
        self._new: list[CardFile] = []
        self._faults: list[FileFault] = []
        self._unreadable_in_a_row = 0
        self._put_aside: list[str] = []
        self._job_folder = os.fsencode(os.path.join(library.root, job.name))

    def take_stock(self, inventory: Iterator[CardFile]) -> None:
        """Ask the ledger about every file that is to be copied."""
        for file in inventory:
            if file.kind in COPIED_KINDS:
                self.wanted.append(file)
            else:
                self.left_out[file.kind] += 1
        if len(self.wanted) != self._job.file_count:
            raise OffloadFault(
                f"the inventory has {len(self.wanted)} files to copy, but the scan counted "
                f"{self._job.file_count}; a new run scans the card again"
            )
        for start in range(0, len(self.wanted), PAGE_FILES):
            self._context.check()
            page = self.wanted[start : start + PAGE_FILES]
            known = self._ledger.known(page, self._library.root)
            for file in page:
                self._sort(file, known.get(file.path, ()))

    def _sort(self, file: CardFile, copies: Sequence[VerifiedCopy]) -> None:
        card = self._card.card
        same = [
            copy
            for copy in copies
            if card.volume
            and copy.file.card_identity == card.identity
            and same_time(copy.file.mtime_ns, file.mtime_ns)
        ]
        if same:
            self._count_known(file, same)
        elif copies:
            self._undecided.append((file, copies))
            self._progress.expect(file, readings=3)
        else:
            self._new.append(file)
            self._progress.expect(file, readings=2)

    def decide(self) -> None:
        """Let the bytes say whether a candidate is the file that the ledger knows."""
        for file, copies in self._undecided:
            try:
                contents = (HASH_NAME, self._copier.hash_source(file))
            except FileFault as fault:
                self._keep(fault)
                continue
            self._unreadable_in_a_row = 0
            same = [copy for copy in copies if (copy.file.hash_name, copy.file.hash) == contents]
            if same:
                self._progress.settle(file)
                self._count_known(file, same)
            else:
                self._new.append(file)

    def _count_known(self, file: CardFile, copies: Sequence[VerifiedCopy]) -> None:
        """Brought by an earlier attempt, in the library already, or there no longer."""
        self._context.check()
        there = {copy.path for copy in copies if self._standing.holds(copy.path, file.size_bytes)}
        if self._place(file) in there:
            self.copied_files += 1
            self.copied_bytes += file.size_bytes
        elif there:
            self.known_files += 1
        else:
            self.missing_files += 1
            if len(self._missing) < MAX_MISSING:
                self._missing.append(shown(file.path)[:MAX_MISSING_CHARACTERS])

    def _place(self, file: CardFile) -> bytes:
        """Where it goes, below the library."""
        return os.fsencode(self._job.name) + b"/" + file.path

    def bring(self) -> None:
        if not self._new:
            return
        by_folder: dict[bytes, list[CardFile]] = {}
        for file in self._new:
            by_folder.setdefault(file.path.rpartition(b"/")[0], []).append(file)
        job_name = os.fsencode(self._job.name)
        with self._library.open() as library:
            self._prepare(library, job_name, by_folder)
            with library.make(job_name) as job_folder:
                for path, files in by_folder.items():
                    try:
                        folder = job_folder.make(path)
                    except FileFault as fault:
                        for file in files:
                            self._keep(FileFault(file.path, str(fault)))
                        continue
                    with folder:
                        for batch in _batches(files):
                            self._bring_batch(folder, batch)

    def _prepare(
        self, library: Folder, job_name: bytes, by_folder: Mapping[bytes, Sequence[CardFile]]
    ) -> None:
        """Clear away what a crash left, then see whether there is room, before any byte moves."""
        ours: dict[bytes, set[bytes]] = {path: set() for path in by_folder}
        for file in self.wanted:
            path, _, name = file.path.rpartition(b"/")
            if path in ours:
                ours[path].add(name)
        missing: list[CardFile] = []
        for path, files in by_folder.items():
            folder = library.find(job_name + b"/" + path if path else job_name)
            if folder is None:
                missing += files
                continue
            with folder:
                folder.remove_leftovers(ours[path])
                for file in files:
                    with suppress(FileFault):
                        if folder.status(name_of(file), file.path) is None:
                            missing.append(file)
        if missing:
            largest = max(missing, key=lambda file: file.size_bytes)
            library.check_room(
                [file.size_bytes for file in missing], (largest.path, largest.size_bytes)
            )

    def _bring_batch(self, folder: Folder, files: Sequence[CardFile]) -> None:
        hashes: dict[bytes, str] = {}
        faults: list[FileFault] = []
        absent: list[CardFile] = []
        for file in files:
            try:
                if folder.status(name_of(file), file.path) is None:
                    absent.append(file)
                else:
                    # Ours, from a crash before its row was written; or somebody else's.
                    hashes[file.path] = self._copier.adopt(folder, file)
            except FileFault as fault:
                faults.append(fault)
        if absent:
            batch = self._copier.copy(folder, absent)
            hashes |= batch.hashes
            faults += batch.faults
            self._put_aside += batch.put_aside
        arrived = [file for file in files if file.path in hashes]
        if arrived:
            now = self._clock.now()
            self._ledger.record(
                self._context.ref,
                self._job.id,
                [self._row(file, hashes[file.path], now) for file in arrived],
            )
        for file in arrived:
            self._unreadable_in_a_row = 0
            self.copied_files += 1
            self.copied_bytes += file.size_bytes
            self._progress.settle(file)
        for kept in faults:
            self._keep(kept)

    def _row(self, file: CardFile, hash: str, verified_at: datetime) -> VerifiedCopy:
        return VerifiedCopy(
            file=ImportedFile(
                card_identity=self._card.card.identity,
                path=file.path,
                size_bytes=file.size_bytes,
                mtime_ns=file.mtime_ns,
                hash_name=HASH_NAME,
                hash=hash,
            ),
            destination=self._library.root,
            path=self._place(file),
            verified_at=verified_at,
        )

    def _keep(self, fault: FileFault) -> None:
        """The other files may be better, unless it is the card that has stopped answering."""
        self._faults.append(fault)
        if fault.errno not in (errno.EIO, errno.ENXIO):
            self._unreadable_in_a_row = 0
            return
        self._unreadable_in_a_row += 1
        if self._unreadable_in_a_row == UNREADABLE_IN_A_ROW:
            raise CardLost(f"{UNREADABLE_IN_A_ROW} files in a row, the last {fault}")

    def result(self) -> dict[str, Any]:
        if self._faults:
            raise FilesMissing(
                self._faults,
                arrived=self.copied_files + self.known_files,
                wanted=len(self.wanted),
                note=self._note(),
            )
        accounted = self.copied_files + self.known_files + self.missing_files
        if accounted != len(self.wanted):
            raise OffloadFault(
                f"{len(self.wanted)} files were to be copied, but {accounted} are accounted for"
            )
        output: dict[str, Any] = {
            "copied_files": self.copied_files,
            "copied_bytes": self.copied_bytes,
            "known_files": self.known_files,
            "missing_files": self.missing_files,
            "verified": self.copied_files,
            "job_folder": shown(self._job_folder) if os.path.isdir(self._job_folder) else None,
            "left_out": {kind.value: count for kind, count in sorted(self.left_out.items())},
        }
        if self._put_aside:
            output["bad_copies"] = self._put_aside[:MAX_PUT_ASIDE]
        if self._missing:
            output["missing"] = self._missing
            output["library_note"] = self._note()
        return output

    def _note(self) -> str:
        """Which files nobody may believe to be in the library; empty if there are none."""
        if not self.missing_files:
            return ""
        one = self.missing_files == 1
        more = self.missing_files - len(self._missing)
        return (
            f"{self.missing_files} {'file was' if one else 'files were'} imported earlier and "
            f"{'is' if one else 'are'} no longer in the library: {', '.join(self._missing)}"
            + (f" and {more} more" if more else "")
        )


class _Progress:
    """How far it is by bytes read and read back, so that verifying moves it as copying does."""

    def __init__(self, context: StepContext) -> None:
        self._context = context
        self._open: dict[bytes, int] = {}
        self._work = self._done = 0
        self._files_total = self._files_done = self._bytes_total = 0

    def expect(self, file: CardFile, *, readings: int) -> None:
        """So often its bytes will pass by; one more, so that empty files count for something."""
        self._open[file.path] = readings * file.size_bytes + 1
        self._work += self._open[file.path]
        self._files_total += 1
        self._bytes_total += file.size_bytes

    def moved(self, file: CardFile, count: int) -> None:
        # Reading again after a mismatch is no progress.
        step = min(count, self._open[file.path])
        self._open[file.path] -= step
        self._done += step
        self._report(file)

    def settle(self, file: CardFile) -> None:
        self._done += self._open.pop(file.path)
        self._files_done += 1
        self._report(file)

    def _report(self, file: CardFile) -> None:
        fraction = self._done / self._work
        self._context.progress(
            fraction,
            files_done=self._files_done,
            files_total=self._files_total,
            bytes_done=int(fraction * self._bytes_total),
            bytes_total=self._bytes_total,
            file=shown(file.path),
        )


def _batches(files: Sequence[CardFile]) -> Iterator[list[CardFile]]:
    """The small ones of a folder together, then each of the others by itself."""
    small = [file for file in files if file.size_bytes < SMALL_BYTES]
    for start in range(0, len(small), BATCH_FILES):
        yield small[start : start + BATCH_FILES]
    for file in files:
        if file.size_bytes >= SMALL_BYTES:
            yield [file]
