"""What of a card the ledger knows, and which generation of the card this is.

A file is known without being read if a row of the same card has its path, size and time.
That holds only as long as the card is one history. A format ends it: counters start anew,
a camera whose clock was reset writes the same times again, and frames and stills may all
have one size. Formatting renews a volume's serial number as a rule, but not every camera
does so, and copied cards share theirs. So each filling of a card is a *generation*, the
rows of one say nothing of another's files, and going on with one takes proof:

    a recording that the ledger knows of it is on the card now, byte for byte. No camera
    makes the same recording twice, and no format leaves one on the card.

The proof is read: the smallest recordings that match by path, size and time, a few of
them, and every one must have the bytes of its row. What isn't footage proves nothing
(cameras write the same index and version files after each format), nor does an empty
file. Without proof, or with one contradiction, a new generation begins: nothing is known
by its name then, every match is only a candidate, and copying lets the bytes decide. So
a wrong guess costs reading, never a file.

The same proof is asked for whenever rows are to be believed later on: a card may have been
formatted between the scan and a retry of the copy, or before the verdict is asked for again.

What this takes for granted: that nobody puts old recordings back onto a formatted card.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters.steps import kernel
from adapters.steps.cards import OpenCard
from adapters.steps.faults import FileFault
from application.ports import Jobs, Ledger
from domain.footage import (
    COPIED_KINDS,
    Card,
    CardFile,
    Familiarity,
    FileKind,
    Intake,
    VerifiedCopy,
    same_moment,
    same_time,
)

PAGE_FILES = 1_000
"""Files that the ledger is asked about at once."""

PROOFS = 3
"""One of them could be what somebody puts on every card; and one may not be readable."""

FURTHER_PROOF_BYTES = 64 * 1024 * 1024
"""Beyond the first, only what is read in no time."""

MAX_GENERATIONS = 8
"""Of those whose rows match, the newest that are asked for proof: cards with one serial
number may come in turns, but there are never many."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """card: with its generation. is_refilled: files were there whose bytes weren't the ledger's."""

    card: Card
    intake: Intake
    is_refilled: bool


def recognise(
    card: OpenCard,
    files: Iterable[CardFile],
    destinations: Collection[str],
    *,
    jobs: Jobs,
    ledger: Ledger,
    is_again: bool,
    check: Callable[[], None],
) -> Recognised:
    """``is_again``: everything is to be copied anew, whatever is known. Raises ``CardLost``."""
    wanted = [file for file in files if file.kind in COPIED_KINDS]
    found = _Matches(card.card)
    for start in range(0, len(wanted), PAGE_FILES):
        check()
        page = wanted[start : start + PAGE_FILES]
        found.add(page, [ledger.known(page, each) for each in destinations])
    if not card.card.volume:
        return Recognised(card.card, found.intake(card.card, is_again), False)
    is_refilled = False
    for identity in found.generations()[:MAX_GENERATIONS]:
        proven = found.proofs(identity).hold(card, check)
        if proven:
            this = _of(card.card, identity)
            return Recognised(this, found.intake(this, is_again), False)
        is_refilled = is_refilled or proven is False
    this = replace(card.card, generation=jobs.generation(card.card.identity) + 1)
    return Recognised(this, found.intake(this, is_again), is_refilled)


def _of(card: Card, ledger_identity: str) -> Card:
    number = ledger_identity[len(card.identity) + 1 :]
    return replace(card, generation=int(number) if number else 1)


class Proofs:
    """The smallest of the recordings that the ledger seems to know, with its rows of them.

    If one of them has other bytes, the card was filled anew: under its old names, with the
    old sizes and times.
    """

    def __init__(self) -> None:
        self._smallest: list[tuple[CardFile, Sequence[VerifiedCopy]]] = []

    def __len__(self) -> int:
        return len(self._smallest)

    def add(self, file: CardFile, copies: Sequence[VerifiedCopy]) -> None:
        """``copies``: its rows, by path, size and time. What proves nothing is passed over."""
        if not copies or file.kind is not FileKind.MEDIA or not file.size_bytes:
            return
        is_full = len(self._smallest) == PROOFS
        if is_full and file.size_bytes >= self._smallest[-1][0].size_bytes:
            return
        if any(each is file for each, _ in self._smallest):  # of another destination
            return
        insort(self._smallest, (file, copies), key=lambda proof: proof[0].size_bytes)
        del self._smallest[PROOFS:]

    def hold(self, card: OpenCard, check: Callable[[], None]) -> bool | None:
        """Whether these are the recordings that they look like; None if none could be read.

        One that is on the card no more, or with another size or time, says nothing either.
        Raises ``CardLost``, and what ``check`` raises.
        """
        answer = None
        for file, copies in self._smallest:
            if answer and file.size_bytes > FURTHER_PROOF_BYTES:
                break
            names = {copy.file.hash_name for copy in copies}
            try:
                if not _is_there(card, file):
                    continue
                hashes = card.hashes_of(file.path, names, check)
            except FileFault:
                continue
            if not any(hashes[copy.file.hash_name] == copy.file.hash for copy in copies):
                return False
            answer = True
        return answer


def refilled(card: OpenCard) -> str:
    """What is said where ``Proofs`` don't hold of a card that was scanned before."""
    return (
        f"the card at {card.path_text} was filled anew since it was scanned: a recording on it "
        "has the name, size and time of a known one, but other bytes; a new run scans what is "
        "there"
    )


def _is_there(card: OpenCard, file: CardFile) -> bool:
    """As it was. Raises ``FileFault`` and ``CardLost``."""
    fd, found = card.open_with_status(file.path)
    kernel.close(fd)
    return found.st_size == file.size_bytes and same_moment(found.st_mtime_ns, file.mtime_ns)


class _Matches:
    """The files with what the ledger has of them, as far as it takes to count and to prove."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._files: Counter[_Pattern] = Counter()
        self._bytes: Counter[_Pattern] = Counter()
        self._proofs: dict[str, Proofs] = {}

    def add(
        self, page: Sequence[CardFile], known: Sequence[Mapping[bytes, Sequence[VerifiedCopy]]]
    ) -> None:
        """``known``: of each destination."""
        is_strange = not any(known)  # as all of a card is that comes for the first time
        for file in page:
            of_each = (
                (None,) * len(known)
                if is_strange
                else tuple(self._sure(file, each.get(file.path, ())) for each in known)
            )
            pattern = file.kind, of_each
            self._files[pattern] += 1
            self._bytes[pattern] += file.size_bytes

    def _sure(self, file: CardFile, copies: Sequence[VerifiedCopy]) -> frozenset[str] | None:
        """In which generations this is surely one of these copies; None if there are none."""
        if not copies:
            return None
        sure: dict[str, list[VerifiedCopy]] = {}
        for copy in copies:
            if self._is_of_card(copy.file.card_identity) and same_time(
                copy.file.mtime_ns, file.mtime_ns
            ):
                sure.setdefault(copy.file.card_identity, []).append(copy)
        for identity, of_generation in sure.items():
            self._proofs.setdefault(identity, Proofs()).add(file, of_generation)
        return frozenset(sure)

    def _is_of_card(self, ledger_identity: str) -> bool:
        own = self._card.identity
        identity, _, generation = ledger_identity.rpartition("#")
        return ledger_identity == own or (identity == own and generation.isdigit())

    def generations(self) -> list[str]:
        """Those with a recording that is on the card by its name, the newest first."""
        proven_by = [identity for identity, proofs in self._proofs.items() if proofs]
        return sorted(proven_by, key=lambda each: _of(self._card, each).generation, reverse=True)

    def proofs(self, ledger_identity: str) -> Proofs:
        return self._proofs[ledger_identity]

    def intake(self, card: Card, is_again: bool) -> Intake:
        counts: dict[tuple[FileKind, Familiarity], tuple[int, int]] = {}
        for pattern, files in self._files.items():
            kind, of_each = pattern
            familiarity = Familiarity.NEW if is_again else _familiarity(of_each, card)
            before_files, before_bytes = counts.get((kind, familiarity), (0, 0))
            counts[kind, familiarity] = (
                before_files + files,
                before_bytes + self._bytes[pattern],
            )
        return Intake(counts)


_Pattern = tuple[FileKind, tuple[frozenset[str] | None, ...]]
"""Of a file: its kind, and of each destination in which generations it is known there."""


def _familiarity(of_each: Sequence[frozenset[str] | None], card: Card) -> Familiarity:
    """As copying will take it."""
    sure = [each is not None and card.volume and card.ledger_identity in each for each in of_each]
    if all(sure):
        return Familiarity.KNOWN
    if any(each is not None and not is_sure for each, is_sure in zip(of_each, sure, strict=True)):
        return Familiarity.TO_HASH
    return Familiarity.NEW
