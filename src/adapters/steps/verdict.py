"""verdict: is everything that is on the card now standing verified on every destination now?

The card is walked once more, at the end: a camera may have gone on recording, or somebody
may have put another card in. Of each file that is found, the ledger says which copies were
verified, and the disks say which of those stand, by size and time. Nothing is read again,
except a file that the ledger knows under several hashes, or that was changed since the scan:
then its bytes decide. And since a card that was formatted may have its old serial number,
and names, sizes and times that recur, a few recordings are read to prove that it wasn't
(``recognition``). What is judged, and how, is ``domain/verdict.py``.

A card that isn't there any more, a disk that is away: these make the verdict false, and
don't fail the step. It can be asked for again, once they are back (``rushes rerun ID
verdict``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any

from adapters.steps import kernel
from adapters.steps.cards import FsCards, OpenCard, is_mounted, open_folder
from adapters.steps.faults import CardFault, FileFault, LibraryFault, reason
from adapters.steps.library import Library
from adapters.steps.mhl.documents import Creator
from adapters.steps.recognition import FURTHER_PROOF_BYTES, PROOFS, Proofs, refilled
from adapters.steps.scan_sd import Walk
from application.authoring import StepContext
from application.ports import CardFiles, Clock, Jobs, Ledger
from application.report import verdict_record
from domain.errors import InvalidPath
from domain.events import timestamp
from domain.footage import (
    COPIED_KINDS,
    FILE_KINDS,
    CardFile,
    FileKind,
    Job,
    JobStatus,
    VerifiedCopy,
    is_time_kept,
    same_moment,
    same_time,
    shown,
)
from domain.verdict import Doubt, Examined, FoundCopy, Reason, State, copies_of, judge

PAGE_FILES = 1_000
"""Files that the ledger is asked about at once."""

MAX_NAMED = 20
MAX_NAMED_CHARACTERS = 500
"""Reasons that the output and the event name, and of each; the job has a thousand."""

MAX_READ = 1_000
"""Files that are noted for the report as told apart by reading them, or as off the card."""

SOON = timedelta(minutes=1)
"""So shortly after copying nobody has formatted the card and filled it with large recordings."""

WORD = "card:verdict"

_NOTES = ("note", "card_note", "manifest_note")
"""What other steps have left to be said in the report."""

_NOT_THERE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EINVAL,
        errno.EILSEQ,
        errno.ENAMETOOLONG,
    }
)
"""No such name, or nothing that a copy could be reached through."""


class GiveVerdict:
    """The step. ``creator``: who the report says has judged."""

    def __init__(
        self,
        cards: FsCards,
        card_files: CardFiles,
        jobs: Jobs,
        ledger: Ledger,
        clock: Clock,
        library: str,
        creator: Creator,
    ) -> None:
        self._cards = cards
        self._card_files = card_files
        self._jobs = jobs
        self._ledger = ledger
        self._clock = clock
        self._library = library
        self._creator = creator

    def __call__(self, context: StepContext) -> dict[str, Any]:
        data = context.data
        job = self._jobs.get(data["job_id"])
        libraries = Library.all_of(context, self._library, self._ledger)
        destinations = [each.root for each in libraries]
        scanned = {file.path: file for file in self._inventory(job.execution_id)}
        with ExitStack() as stack:
            disks = [stack.enter_context(Disk(each)) for each in libraries]
            against = [*_unseen(disks)]
            card, files = self._look(stack, context, job, scanned, destinations, against)
            examination = _Examination(context, job, card, scanned, self._ledger, disks)
            verdict = judge(examination.of(files), destinations, against)
        now = self._clock.now()
        record = verdict_record(
            verdict,
            judged_at=timestamp(now),
            # The clock may have been set back since: the report is to have these copies too.
            copies_until=timestamp(max(now, examination.latest_at or now)),
            card_path=shown(os.fsencode(str(data["sd_path"]))),
            read=examination.read,
            not_on_card=_no_longer_there(scanned, files),
            copied={
                "files": data.get("copied_files", 0),
                "bytes": data.get("copied_bytes", 0),
                "known": data.get("known_files", 0),
            },
            manifests=data.get("manifests", []),
            notes=[data[name] for name in _NOTES if name in data],
            software=f"{self._creator.tool} {self._creator.tool_version}",
            host=self._creator.hostname,
        )
        self._jobs.judged(context.ref, job.id, record)
        told = {
            "words": record["words"],
            "judged_at": record["judged_at"],
            "destinations": record["destinations"],
            "files": verdict.files,
            "size_bytes": verdict.size_bytes,
            "safe_files": verdict.safe_files,
            "maybe_cached": verdict.maybe_cached,
            "remarked": verdict.remarked,
            "reason_count": len(verdict.reasons),
            "reasons": [str(each)[:MAX_NAMED_CHARACTERS] for each in verdict.reasons[:MAX_NAMED]],
        }
        context.announce(
            WORD,
            {
                "job_id": job.id,
                "job_name": job.name,
                "card": {"identity": job.card.identity, "label": job.card.label},
                "safe_to_format": verdict.safe_to_format,
                **told,
            },
        )
        return {"safe_to_format": verdict.safe_to_format, "verdict": told}

    def _inventory(self, execution_id: int) -> Iterator[CardFile]:
        after: bytes | None = None
        while page := self._card_files.of(execution_id, after=after, limit=PAGE_FILES):
            yield from page
            after = page[-1].path

    def _look(
        self,
        stack: ExitStack,
        context: StepContext,
        job: Job,
        scanned: Mapping[bytes, CardFile],
        destinations: Sequence[str],
        against: list[Reason],
    ) -> tuple[OpenCard | None, Sequence[CardFile]]:
        """What is on the card now; if that can't be seen, why not, and what was on it."""
        try:
            card = stack.enter_context(self._cards.find(context.data["sd_path"], job.card.identity))
            other = _another(card, job, context.data["card"].get("fingerprint"))
            now = () if other else (_as_scanned(f, scanned) for f in Walk(card, context).entries())
            files = sorted(now, key=lambda file: file.path)
            wanted = [file for file in files if file.kind in COPIED_KINDS]
            if not other and job.file_count and not any(file.path in scanned for file in wanted):
                other = "nothing of what was scanned is on the card any more: is it the same one?"
            if not other:
                other = self._refilled(card, context, job, wanted, scanned, destinations)
            is_there = bool(wanted) or card.card.volume or _is_mount(card)
        except (CardFault, InvalidPath) as fault:
            against.append(Reason(Doubt.CARD, f"the card can't be looked at again: {fault}"))
            return None, list(scanned.values())
        if other:
            against.append(Reason(Doubt.ANOTHER, other))
            return None, list(scanned.values())
        if not is_there:
            against.append(Reason(Doubt.CARD, "nothing is there: is the card mounted?"))
        return card, files

    def _refilled(
        self,
        card: OpenCard,
        context: StepContext,
        job: Job,
        files: Sequence[CardFile],
        scanned: Mapping[bytes, CardFile],
        destinations: Sequence[str],
    ) -> str | None:
        """Why what is on the card now isn't what was copied. Raises ``CardFault``."""
        proofs = self._proofs(job, files, scanned, destinations)
        holds = proofs.hold(card, context.check)
        if proofs and holds is None:
            raise CardFault(f"{card.path_text}: none of its smallest recordings can be read")
        return refilled(card) if holds is False else None

    def _proofs(
        self,
        job: Job,
        files: Sequence[CardFile],
        scanned: Mapping[bytes, CardFile],
        destinations: Sequence[str],
    ) -> Proofs:
        """Of the recordings that will be taken for copied without being read."""
        ended_at = job.completed_at
        is_soon = ended_at is not None and ended_at <= self._clock.now() <= ended_at + SOON
        recordings = sorted(
            (
                file
                for file in files
                if file.kind is FileKind.MEDIA
                and (file.size_bytes <= FURTHER_PROOF_BYTES or not is_soon)
            ),
            key=lambda file: file.size_bytes,
        )
        proofs = Proofs()
        for start in range(0, len(recordings), PAGE_FILES):
            page = recordings[start : start + PAGE_FILES]
            copies = _copies(self._ledger, page, destinations)
            for file in page:
                proofs.add(file, _own(file, copies.get(file.path, ()), job, scanned) or ())
            if len(proofs) == PROOFS:
                break
        return proofs


def _is_mount(card: OpenCard) -> bool:
    """An empty folder that is none may be where the card's mount is to be."""
    try:
        return is_mounted(card.fd)
    except OSError as error:
        raise CardFault(f"{card.path_text}: {reason(error)}") from error


def _as_scanned(file: CardFile, scanned: Mapping[bytes, CardFile]) -> CardFile:
    """The scan's own value of it where it says the same, so that a large card is held once.

    The scan knows of files better what they are; here they are only files.
    """
    before = scanned.get(file.path)
    if before is None or (
        before.kind is not file.kind and not {before.kind, file.kind} <= FILE_KINDS
    ):
        return file
    is_same = (before.size_bytes, before.mtime_ns, before.problem) == (
        file.size_bytes,
        file.mtime_ns,
        file.problem,
    )
    return before if is_same else file


def _another(card: OpenCard, job: Job, fingerprint: str | None) -> str | None:
    """Why this can't be taken for the job's card."""
    if card.card.identity != job.card.identity:
        return (
            f"another card is at {card.path_text}: {card.card.label} ({card.card.identity}), "
            f"not {job.card.label} ({job.card.identity})"
        )
    if card.card.volume or fingerprint is None:
        return None
    try:
        is_same = card.is_as(fingerprint)
    except OSError as error:
        raise CardFault(f"{card.path_text}: {reason(error)}") from error
    if is_same:
        return None
    return (
        f"another card is at {card.path_text}, or this one was changed since it was scanned; "
        "a new run scans what is there"
    )


def _no_longer_there(scanned: Mapping[bytes, CardFile], now: Sequence[CardFile]) -> list[str]:
    """What was scanned and isn't on the card now: no reason against it, but to be told."""
    there = {file.path for file in now}
    gone = (
        shown(path)
        for path, file in scanned.items()
        if file.kind in COPIED_KINDS and path not in there
    )
    return list(islice(gone, MAX_READ))


class Disk:
    """A destination as it is now. Nothing is made, and no link is followed below it.

    Copies are best asked about folder by folder: the last one's is kept open.
    """

    def __init__(self, library: Library) -> None:
        self.destination = library.root
        self._library = library
        self.fault: str | None = None
        self.status: os.stat_result | None = None
        self._fd = -1
        self._folder = -1
        self._path: bytes | None = None

    def __enter__(self) -> Disk:
        why: str | None = None
        try:
            root = self._library.look()
            if root is None:
                why = "it is not there"
            else:
                self._fd = root.fd
                self.status = os.fstat(self._fd)
        except LibraryFault as fault:
            why = str(fault)
        except OSError as error:
            why = reason(error)
        if why is not None:
            self.fault = f"the destination {self.text} can't be looked at: {why}"
        return self

    def __exit__(self, *of_the_block: object) -> None:
        self._leave()
        if self._fd >= 0:
            kernel.close(self._fd)

    @property
    def text(self) -> str:
        return shown(os.fsencode(self.destination))

    def state(self, copy: VerifiedCopy) -> State:
        if self._fd < 0:
            return State.UNSEEN
        above, _, name = copy.path.rpartition(b"/")
        try:
            if above != self._path:
                self._leave()
                self._folder = open_folder(self._fd, above)
                self._path = above
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            return State.GONE if error.errno in _NOT_THERE else State.UNSEEN
        if not stat.S_ISREG(found.st_mode):
            return State.GONE
        # A disk may keep times as coarsely as a card, and in local time; and not all of them.
        is_same = found.st_size == copy.file.size_bytes and (
            not is_time_kept(copy.file.mtime_ns)
            or same_moment(found.st_mtime_ns, copy.file.mtime_ns)
        )
        return State.STANDS if is_same else State.ALTERED

    def _leave(self) -> None:
        if self._folder >= 0:
            kernel.close(self._folder)
        self._folder, self._path = -1, None


def _unseen(disks: Sequence[Disk]) -> Iterator[Reason]:
    """Destinations that can't be looked at, and two that are one: a copy on it is one copy."""
    for number, disk in enumerate(disks):
        if disk.fault is not None:
            yield Reason(Doubt.DESTINATION, disk.fault)
        for other in disks[:number]:
            if disk.status and other.status and os.path.samestat(disk.status, other.status):
                yield Reason(
                    Doubt.DESTINATION,
                    f"the destinations {other.text} and {disk.text} are one and the same folder",
                )


def _copies(
    ledger: Ledger, page: Sequence[CardFile], destinations: Iterable[str]
) -> dict[bytes, list[VerifiedCopy]]:
    """Whatever the ledger has with their paths and sizes, by path."""
    copies: dict[bytes, list[VerifiedCopy]] = {}
    for destination in destinations:
        for path, known in ledger.known(page, destination).items():
            copies.setdefault(path, []).extend(known)
    return copies


def _own(
    file: CardFile, copies: Sequence[VerifiedCopy], job: Job, scanned: Mapping[bytes, CardFile]
) -> Sequence[VerifiedCopy] | None:
    """Those that hold this file's bytes; None if only reading the file can tell."""
    return copies_of(
        file,
        copies,
        card=job.card,
        job_folder=os.fsencode(job.name),
        is_settled=job.status is JobStatus.COPIED and _is_unchanged(file, scanned.get(file.path)),
    )


def _is_unchanged(file: CardFile, before: CardFile | None) -> bool:
    """Since the scan."""
    return (
        before is not None
        and before.kind in COPIED_KINDS
        and before.size_bytes == file.size_bytes
        and same_time(before.mtime_ns, file.mtime_ns)
    )


class _Examination:
    """Each file of the card, with what has become of its copies.

    read: the files that only reading could tell, with the names and values of the hashes that
    they have, in turns. latest_at: when the last of the copies was verified that the ledger
    has of them.
    """

    def __init__(
        self,
        context: StepContext,
        job: Job,
        card: OpenCard | None,
        scanned: Mapping[bytes, CardFile],
        ledger: Ledger,
        disks: Sequence[Disk],
    ) -> None:
        self._context = context
        self._job = job
        self._card = card
        self._scanned = scanned
        self._ledger = ledger
        self._disks = {disk.destination: disk for disk in disks}
        self.read: dict[str, list[str]] = {}
        self.latest_at: datetime | None = None

    def of(self, files: Sequence[CardFile]) -> Iterator[Examined]:
        for start in range(0, len(files), PAGE_FILES):
            self._context.check()
            self._context.progress(start / len(files), files_done=start, files_total=len(files))
            page = files[start : start + PAGE_FILES]
            copies = _copies(self._ledger, page, self._disks)
            for known in copies.values():
                latest_at = max(copy.verified_at for copy in known)
                self.latest_at = max(latest_at, self.latest_at or latest_at)
            for file in page:
                yield self._examine(file, copies.get(file.path, ()))

    def _examine(self, file: CardFile, copies: Sequence[VerifiedCopy]) -> Examined:
        if file.kind not in COPIED_KINDS:
            return Examined(file)
        before = self._scanned.get(file.path)
        found = _own(file, copies, self._job, self._scanned)
        if found is None:
            try:
                found = self._read(file, copies)
            except FileFault as fault:
                why = str(fault).removeprefix(f"{shown(file.path)}: ")
                return Examined(file, (), Doubt.UNREADABLE, why)
        if not found and before is None:
            return Examined(file, (), Doubt.NEW, "came onto the card after it was scanned")
        if not found and before is not None and not _is_unchanged(file, before):
            why = f"has changed since it was scanned ({before.size_bytes} bytes then, "
            return Examined(file, (), Doubt.CHANGED, f"{why}{file.size_bytes} now)")
        return Examined(
            file,
            [FoundCopy(copy, self._disks[copy.destination].state(copy)) for copy in found],
        )

    def _read(self, file: CardFile, copies: Sequence[VerifiedCopy]) -> Sequence[VerifiedCopy]:
        """The copies with the bytes that are on the card now. Raises ``FileFault``."""
        if self._card is None:
            raise FileFault(file.path, "only reading it could tell which copy is its own")
        names = {copy.file.hash_name for copy in copies}
        try:
            values = self._card.hashes_of(file.path, names, self._context.check)
        except CardFault as fault:
            raise FileFault(file.path, f"can't be read: {fault}") from fault
        if len(self.read) < MAX_READ:
            self.read[shown(file.path)] = [*chain(*sorted(values.items()))]
        return [copy for copy in copies if values[copy.file.hash_name] == copy.file.hash]
