"""copy_files: what is new on the card comes into the library, verified.

What is new is for the ledger to say, not for the disk: a file that was imported
once and deleted from the library since isn't copied again. A row of the same
volume with the same path, size and time is the file. Any other row with that
path and size is only a candidate (cards without an identity of their own, clocks
that were set, journeys through time zones, counters that start anew), and the
bytes decide: the source is read and its hash compared.

A retry finds the rows of the attempt before it, so it goes on where that stopped.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.steps.cards import FsCards, OpenCard
from adapters.steps.copying import (
    BATCH_FILES,
    HASH_NAME,
    SMALL_BYTES,
    Copier,
    same_time,
)
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
    Card,
    CardFile,
    ImportedFile,
    Job,
    VerifiedCopy,
    shown,
)

PAGE_FILES = 1_000
"""Files that are asked about at once, of the inventory and of the ledger."""

UNREADABLE_IN_A_ROW = 3
"""So many files with input/output errors, one after the other, are a lost card."""


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
            _refuse_another(card, job)
            run = _Run(context, job, card, self._inventory(context))
            try:
                self._sort_out(run)
                if run.to_copy:
                    with self._library.open(card) as library:
                        self._bring(run, library)
            except CardLost as lost:
                raise CardLost(
                    f"card lost: {lost}; {len(run.arrived)} of {len(run.wanted)} files are in "
                    "the library. Put the card back in and retry: it goes on from there"
                ) from lost
        ...


@dataclass(slots=True)
class _Run:
    ...
