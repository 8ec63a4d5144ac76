"""What became of a copy: faults, changed names, what is missing, and the step's output."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from adapters.steps.copy_destinations import Destination, Destinations
from adapters.steps.faults import (
    CardLost,
    FileFault,
    FilesMissing,
    LibraryFault,
    OffloadFault,
)
from domain.footage import CardFile, FileKind, Job, shown

UNREADABLE_IN_A_ROW = 3
"""So many input/output errors one after the other are a lost card, whatever its mount says."""

MAX_PUT_ASIDE = 20
"""Bad copies that the output names; it is merged into the execution's data."""

MAX_MISSING = 20
MAX_MISSING_CHARACTERS = 500
"""Files that the output names as no longer in the library, and of each name."""

MAX_RENAMED = 20
"""Files that the output names as having another name now; the ledger has them all."""


class Outcome:
    """Gathered while an attempt goes on; ``result`` sums it up.

    put_aside: where bad copies are that a second try made good.
    """

    def __init__(self, job: Job, destinations: Destinations) -> None:
        self.put_aside: list[str] = []
        self._job = job
        self._destinations = destinations
        self._faults: list[FileFault] = []
        self._unreadable_in_a_row = 0
        self._renamed: list[dict[str, str]] = []
        self._renamed_files = 0

    def keep(self, fault: FileFault) -> None:
        """The other files may be better, unless it is the card that has stopped answering.

        Raises ``CardLost``.
        """
        self._faults.append(fault)
        if fault.errno not in (errno.EIO, errno.ENXIO):
            self._unreadable_in_a_row = 0
            return
        self._unreadable_in_a_row += 1
        if self._unreadable_in_a_row == UNREADABLE_IN_A_ROW:
            raise CardLost(f"{UNREADABLE_IN_A_ROW} files in a row, the last {fault}")

    def went_well(self) -> None:
        """The card still answers."""
        self._unreadable_in_a_row = 0

    def stands(
        self, destination: Destination, file: CardFile, place: bytes, planned: bytes
    ) -> None:
        """``place``: below the job's folder there; ``planned``: where the layout has it."""
        if place == planned:
            return
        self._renamed_files += 1
        if len(self._renamed) < MAX_RENAMED:
            self._renamed.append(
                {
                    "path": shown(file.path)[:MAX_MISSING_CHARACTERS],
                    "destination": destination.library.text,
                    "stored_as": shown(place)[:MAX_MISSING_CHARACTERS],
                }
            )

    def arrived(self, wanted: Sequence[CardFile]) -> int:
        """Files that stand at every destination."""
        return sum(all(each.has(file.path) for each in self._destinations.all) for file in wanted)

    def result(
        self,
        wanted: Sequence[CardFile],
        *,
        left_out: Mapping[FileKind, int],
        empty_folders: int,
    ) -> dict[str, Any]:
        """The step's output. Raises ``OffloadFault`` unless every file is accounted for."""
        destinations = self._destinations.all
        if len(self._destinations.working) < len(destinations):
            whole = [
                each
                for each in self._destinations.working
                if all(each.has(file.path) for file in wanted)
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
        missing = self._missing(wanted)
        if self._faults:
            raise FilesMissing(
                list({(fault.path, str(fault)): fault for fault in self._faults}.values()),
                arrived=self.arrived(wanted),
                wanted=len(wanted),
                note=_note(missing),
            )
        lacking = {file.path for file in missing}
        copied = [
            file
            for file in wanted
            if file.path not in lacking and any(file.path in each.copied for each in destinations)
        ]
        known_files = sum(all(file.path in each.known for each in destinations) for file in wanted)
        accounted = len(copied) + known_files + len(missing)
        if accounted != len(wanted) or any(
            len(each.copied) + len(each.known) + len(each.missing) != len(wanted)
            for each in destinations
        ):
            raise OffloadFault(
                f"{len(wanted)} files were to be copied, but {accounted} are accounted for"
            )
        output: dict[str, Any] = {
            "copied_files": len(copied),
            "copied_bytes": sum(file.size_bytes for file in copied),
            "known_files": known_files,
            "missing_files": len(missing),
            "verified": len(copied),
            "job_folder": self._job_folder(destinations[0]),
            "left_out": {kind.value: count for kind, count in sorted(left_out.items())},
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
        if empty_folders:
            output["empty_folders"] = empty_folders
        if self._renamed_files:
            output["renamed"] = {"total": self._renamed_files, "named": self._renamed}
        if self.put_aside:
            output["bad_copies"] = self.put_aside[:MAX_PUT_ASIDE]
        if missing:
            output["missing"] = _names(missing)
            output["library_note"] = _note(missing)
        return output

    def _job_folder(self, destination: Destination) -> str | None:
        place = os.path.join(destination.library.root, self._job.name)
        return shown(os.fsencode(place)) if os.path.isdir(place) else None

    def _missing(self, wanted: Sequence[CardFile]) -> Sequence[CardFile]:
        """What was imported once, and some destination no longer has."""
        return [
            file
            for file in wanted
            if any(file.path in each.missing for each in self._destinations.all)
        ]


def _names(missing: Sequence[CardFile]) -> list[str]:
    return [shown(file.path)[:MAX_MISSING_CHARACTERS] for file in missing[:MAX_MISSING]]


def _note(missing: Sequence[CardFile]) -> str:
    """Which files nobody may believe to be in the library; empty if there are none."""
    if not missing:
        return ""
    named = _names(missing)
    more = len(missing) - len(named)
    return (
        f"{len(missing)} {'file was' if len(missing) == 1 else 'files were'} imported earlier and "
        f"{'is' if len(missing) == 1 else 'are'} no longer in the library: {', '.join(named)}"
        + (f" and {more} more" if more else "")
    )
