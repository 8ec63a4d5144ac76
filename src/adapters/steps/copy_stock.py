"""What is wanted of a card, and what of it is new to a destination.

That is for the ledger to say, not for the disk: a file that was imported once and
deleted from the library since isn't copied again. A row of the same volume and generation
with the same path, size and time is the file, as long as a few recordings prove the card to
be of that generation (``recognition``). Any other row with that path and size is only a
candidate (cards without an identity of their own, clocks that were set, journeys through
time zones, counters that start anew), and the bytes decide: the source is read and its hash
compared. A person may wish otherwise (``again``): then only what this job itself has brought
is known.

Only rows of a destination count there: what is on one disk is new to another. And what
is known isn't therefore there, so the disk is asked as well, and a file that it no
longer has is counted apart and named: nobody may format a card on its account.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapters.steps.copy_destinations import Destination, Destinations, split
from adapters.steps.copy_outcome import Outcome
from adapters.steps.copy_progress import Progress
from adapters.steps.copying import Copier
from adapters.steps.faults import FileFault, OffloadFault
from adapters.steps.parts import Lane
from adapters.steps.recognition import Proofs
from application.ports import Ledger
from domain.footage import (
    COPIED_KINDS,
    CardFile,
    FileKind,
    Job,
    VerifiedCopy,
    known_copies,
)
from domain.places import AS_ON_THE_CARD, Places

PAGE_FILES = 1_000
"""Files of the inventory that are read, and asked about, at once."""


class Stock:
    """Taken once an attempt; every file of the card then has its place at each destination.

    wanted: the files that are to be everywhere, in the order of their paths. folders: those
    of the card that no file would bring along. left_out: what isn't copied, by kind.
    new: the files that some destination is to get. recognised: the copies whose bytes were
    a candidate's; as this card's rows they spare the next insertion the reading.
    places: where each file goes, by the layout that the job began with.
    proofs: of the recordings that were taken for known; for whoever has the card to look at.
    """

    def __init__(
        self,
        job: Job,
        destinations: Destinations,
        ledger: Ledger,
        outcome: Outcome,
        progress: Progress,
        *,
        check: Callable[[], None],
        is_again: bool,
        keeps_places: bool = False,
        layout: Mapping[str, Any] | None = None,
    ) -> None:
        self.wanted: list[CardFile] = []
        self.folders: list[CardFile] = []
        self.left_out: Counter[FileKind] = Counter()
        self.new: list[CardFile] = []
        self.recognised: list[VerifiedCopy] = []
        self.proofs = Proofs()
        self._job = job
        self._job_name = os.fsencode(job.name)
        self._destinations = destinations
        self._ledger = ledger
        self._outcome = outcome
        self._progress = progress
        self._check = check
        self._is_again = is_again
        self._keeps_places = keeps_places
        # Executions from before there were layouts have none.
        self._layout = layout or {"files": AS_ON_THE_CARD, "utc_offset_s": 0}
        self.places = Places(AS_ON_THE_CARD, 0, ())
        self._undecided: dict[bytes, dict[Lane, Sequence[VerifiedCopy]]] = {}

    def take(self, inventory: Iterable[CardFile], misplaced: Collection[Lane]) -> None:
        """Ask the ledger about every file; ``misplaced`` destinations aren't looked at.

        Raises ``OffloadFault`` if the inventory isn't the job's.
        """
        for file in inventory:
            if file.kind in COPIED_KINDS:
                self.wanted.append(file)
            elif file.kind is FileKind.FOLDER:
                self.folders.append(file)
            else:
                self.left_out[file.kind] += 1
        if len(self.wanted) != self._job.file_count:
            raise OffloadFault(
                f"the inventory has {len(self.wanted)} files to copy, but the scan counted "
                f"{self._job.file_count}; a new run scans the card again"
            )
        files, utc_offset_s = self._layout["files"], self._layout["utc_offset_s"]
        self.places = Places(files, utc_offset_s, self.wanted)
        for start in range(0, len(self.wanted), PAGE_FILES):
            self._check()
            page = self.wanted[start : start + PAGE_FILES]
            known = [
                {} if each.lane in misplaced else self._ledger.known(page, each.library.root)
                for each in self._destinations.all
            ]
            for file in page:
                self._sort(file, [each.get(file.path, ()) for each in known])

    def decide(self, copier: Copier) -> None:
        """Let the bytes say whether a candidate is the file that the ledger knows."""
        new = []
        for file in self.new:
            if file.path in self._undecided:
                try:
                    is_new = self._is_new(file, self._undecided[file.path], copier)
                except FileFault as fault:
                    self._outcome.keep(fault)
                    continue
                self._outcome.went_well()
                if not is_new:
                    self._progress.settle(file)
                    continue
            new.append(file)
        self.new = new

    def new_by_folder(self) -> Mapping[bytes, Sequence[CardFile]]:
        by_folder: dict[bytes, list[CardFile]] = {}
        for file in self.new:
            by_folder.setdefault(split(self.places.of(file))[0], []).append(file)
        return by_folder

    def _sort(self, file: CardFile, known: Sequence[Sequence[VerifiedCopy]]) -> None:
        undecided = {}
        readings = 0
        for destination, copies in zip(self._destinations.all, known, strict=True):
            if self._is_again:
                copies = [copy for copy in copies if self._is_ours(copy)]
            same = known_copies(file, copies, self._job.card)
            if same:
                self.proofs.add(file, same)
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
            self.new.append(file)
            self._progress.expect(file, readings=readings + 1 + bool(undecided))

    def _is_new(
        self, file: CardFile, undecided: Mapping[Lane, Sequence[VerifiedCopy]], copier: Copier
    ) -> bool:
        """To any of the destinations."""
        names = {copy.file.hash_name for copies in undecided.values() for copy in copies}
        hashes = copier.hash_source(file, sorted(names))
        for lane, copies in undecided.items():
            same = [copy for copy in copies if hashes[copy.file.hash_name] == copy.file.hash]
            if same:
                self._count_known(self._destinations.all[lane], file, same)
                self.recognised += [self._as_of_now(file, copy) for copy in same]
            else:
                self._destinations.all[lane].new.add(file.path)
        return any(file.path in each.new for each in self._destinations.all)

    def _count_known(
        self, destination: Destination, file: CardFile, copies: Sequence[VerifiedCopy]
    ) -> None:
        """Brought by an earlier attempt, in the library already, or there no longer."""
        self._check()
        there = [copy for copy in copies if destination.standing.holds(copy.path, file.size_bytes)]
        ours = [copy for copy in there if self._is_ours(copy)]
        if self._keeps_places and there:
            destination.places[file.path] = (ours or there)[0].path
        if ours:
            destination.copied[file.path] = file.size_bytes
            place = ours[0].path[len(self._job_name) + 1 :]
            self._outcome.stands(destination, file, place, self.places.of(file))
        elif there:
            destination.known.add(file.path)
        else:
            destination.missing.add(file.path)

    def _as_of_now(self, file: CardFile, copy: VerifiedCopy) -> VerifiedCopy:
        identity = self._job.card.ledger_identity
        now = replace(copy.file, card_identity=identity, mtime_ns=file.mtime_ns)
        return replace(copy, file=now)

    def _is_ours(self, copy: VerifiedCopy) -> bool:
        return copy.path.startswith(self._job_name + b"/")
