"""copy_files: what is new on the card comes into the library, verified.

What is new is for the ledger to say, not for the disk: a file that was imported
once and deleted from the library since isn't copied again. A row of the same
volume with the same path, size and time is the file. Any other row with that
path and size is only a candidate (cards without an identity of their own, clocks
that were set, journeys through time zones, counters that start anew), and the
bytes decide: the source is read and its hash compared.

A retry finds the rows of the attempt before it, so it goes on where that stopped.
A file that can't be read is no reason to leave the others on the card: it is
named at the end. A lost card, or a library that can't be written, ends it at once.
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
    OffloadFault,
)
from adapters.steps.library import Folder, Library
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
        self._library = Library(library)

    def __call__(self, context: StepContext) -> dict[str, Any]:
        job = self._jobs.get(context.data["job_id"])
        with self._cards.open(context.data["sd_path"]) as card:
            if card.card.identity != job.card.identity:
                raise AnotherCard(
                    f"another card is at {card.path_text}: {card.card.label} "
                    f"({card.card.identity}); this job's card is {job.card.label} "
                    f"({job.card.identity}), put that one in and retry"
                )
            self._library.refuse_card(card)
            run = _Run(context, job, card, self._library, self._ledger, self._clock)
            try:
                run.take_stock(self._inventory(context))
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

    def _inventory(self, context: StepContext) -> Iterator[CardFile]:
        after: bytes | None = None
        while page := self._card_files.of(context.ref.execution_id, after=after, limit=PAGE_FILES):
            yield from page
            after = page[-1].path


class _Run:
    """One attempt: what is wanted, what is known, what has arrived."""

    def __init__(
        self,
        context: StepContext,
        job: Job,
        card: OpenCard,
        library: Library,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._context = context
        self._job = job
        self._card = card
        self._library = library
        self._ledger = ledger
        self._clock = clock
        self._progress = _Progress(context)
        self._copier = Copier(card, check=context.check, moved=self._progress.moved)
        self.wanted: list[CardFile] = []
        self.left_out: Counter[FileKind] = Counter()
        self.copied_files = self.copied_bytes = self.known_files = 0
        self._undecided: list[tuple[CardFile, frozenset[str]]] = []
        self._new: list[CardFile] = []
        self._faults: list[FileFault] = []
        self._unreadable_in_a_row = 0
        self._put_aside: list[str] = []
        self._job_folder = os.fsencode(os.path.join(library.root, job.name))
        self._is_resumed = os.path.isdir(self._job_folder)

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
            known = self._ledger.known(page)
            for file in page:
                self._sort(file, known.get(file.path, ()))

    def _sort(self, file: CardFile, rows: Sequence[ImportedFile]) -> None:
        card = self._card.card
        if any(
            card.volume
            and row.card_identity == card.identity
            and same_time(row.mtime_ns, file.mtime_ns)
            for row in rows
        ):
            self._count_known(file)
        elif rows:
            hashes = frozenset(row.hash for row in rows if row.hash_name == HASH_NAME)
            self._undecided.append((file, hashes))
            self._progress.expect(file, readings=3)
        else:
            self._new.append(file)
            self._progress.expect(file, readings=2)

    def decide(self) -> None:
        """Let the bytes say whether a candidate is the file that the ledger knows."""
        for file, hashes in self._undecided:
            try:
                is_known = self._copier.hash_source(file) in hashes
            except FileFault as fault:
                self._keep(fault)
                continue
            self._unreadable_in_a_row = 0
            if is_known:
                self._progress.settle(file)
                self._count_known(file)
            else:
                self._new.append(file)

    def _count_known(self, file: CardFile) -> None:
        """In the library already; in this job's own folder, if an earlier attempt brought it."""
        if self._is_resumed and os.path.lexists(os.path.join(self._job_folder, file.path)):
            self.copied_files += 1
            self.copied_bytes += file.size_bytes
        else:
            self.known_files += 1

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
            path=os.fsencode(self._job.name) + b"/" + file.path,
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
            )
        accounted = self.copied_files + self.known_files
        if accounted != len(self.wanted):
            raise OffloadFault(
                f"{len(self.wanted)} files were to be copied, but {accounted} are accounted for"
            )
        output: dict[str, Any] = {
            "copied_files": self.copied_files,
            "copied_bytes": self.copied_bytes,
            "known_files": self.known_files,
            "verified": self.copied_files,
            "job_folder": shown(self._job_folder) if os.path.isdir(self._job_folder) else None,
            "left_out": {kind.value: count for kind, count in sorted(self.left_out.items())},
        }
        if self._put_aside:
            output["bad_copies"] = self._put_aside[:MAX_PUT_ASIDE]
        return output


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
