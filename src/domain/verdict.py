"""The verdict on a card: whether it may be formatted, and if not, why not.

A card is safe to format when everything that is on it now stands verified on every
destination now. Each word of that is looked at anew: the card was walked again, the
ledger says which copies were verified, and the disks say which of those still stand.
What can't be shown counts against it, so every doubt makes the verdict false.

Which copies are a file's (``copies_of``)
    A row of the same generation of the same volume with the same path, size and time; or
    one that this very job made of it. Any further copy with that path and size whose hash
    is the same is as good. Where none of these is there, the copy step has compared hashes:
    a file that is as the scan found it, in a job that was copied to its end, is one of the
    copies with its path and size. If those all have one hash, that is it; if not, only
    reading the file can tell. So it is where all that a destination has are rows under
    another kind of hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from domain.footage import (
    COPIED_KINDS,
    Card,
    CardFile,
    FileKind,
    VerifiedCopy,
    known_copies,
    same_time,
    shown,
)

MAX_NAMED = 3
MAX_NAMED_CHARACTERS = 80
"""Files that the words name, and of each path: they are one sentence, on a screen at a cart."""


class Doubt(StrEnum):
    """Why a card isn't safe to format.

    Of the card or a destination as a whole: CARD (it can't be looked at), ANOTHER (it isn't
    the one that was copied), DESTINATION (it can't be looked at). Of a file: NEW (it has never
    been copied), CHANGED (it isn't any more what was copied), UNREADABLE, UNFINISHED (it has
    no verified copy on one of the destinations), GONE (a copy was deleted), ALTERED (a copy has
    another size or time than it had).
    """

    CARD = "card"
    ANOTHER = "another card"
    DESTINATION = "destination"
    NEW = "new"
    CHANGED = "changed"
    UNREADABLE = "unreadable"
    UNFINISHED = "unfinished"
    GONE = "gone"
    ALTERED = "altered"


class State(StrEnum):
    """What has become of a verified copy. UNSEEN: its destination can't be looked at."""

    STANDS = "stands"
    GONE = "gone"
    ALTERED = "altered"
    UNSEEN = "unseen"


@dataclass(frozen=True, slots=True)
class FoundCopy:
    """A copy that the ledger has as verified, and what was found of it now."""

    copy: VerifiedCopy
    state: State


@dataclass(frozen=True, slots=True)
class Examined:
    """A file as it is on the card now.

    doubt: what is wrong with the file itself, whatever copies it has.
    """

    file: CardFile
    copies: Sequence[FoundCopy] = ()
    doubt: Doubt | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that stands against formatting. ``path``: of the file, if it is one's."""

    doubt: Doubt
    detail: str
    path: bytes | None = None

    def __str__(self) -> str:
        return self.detail if self.path is None else f"{shown(self.path)}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and whether the card is safe to format: only if nothing is against it.

    files and size_bytes: of everything on the card that has to be safe. safe_files: those
    that are. maybe_cached: those of them of which a destination has only copies that were
    read back perhaps from memory. remarked: those of them of which a person has to know
    something, as that a recording broke off. left_out: what need not be safe, by kind.
    """

    destinations: tuple[str, ...]
    files: int
    size_bytes: int
    safe_files: int
    maybe_cached: int
    remarked: int
    left_out: tuple[tuple[FileKind, int], ...]
    reasons: tuple[Reason, ...]

    @property
    def safe_to_format(self) -> bool:
        return not self.reasons and bool(self.destinations) and self.safe_files == self.files

    @property
    def words(self) -> str:
        """It, in a sentence."""
        where = _count(len(self.destinations), "destination")
        if self.safe_to_format:
            if not self.files:
                return "Safe to format: there is no file on it"
            every = "its one file" if self.files == 1 else f"every one of {self.files} files"
            also = [
                f"{self.maybe_cached} maybe read back from memory" if self.maybe_cached else "",
                f"{self.remarked} with a remark in the report" if self.remarked else "",
            ]
            said = "; ".join(filter(None, also))
            return f"Safe to format: {every} stands verified on {where}" + (
                f" ({said})" if said else ""
            )
        whole = [reason.detail for reason in self.reasons if reason.path is None]
        unsafe = self.files - self.safe_files
        if unsafe:
            files = _count(self.files, "file")
            whole.append(f"{unsafe} of {files} not standing verified on {where}{self._names()}")
        return f"NOT safe to format: {'; '.join(whole) or 'there is no destination'}"

    def _names(self) -> str:
        """The first files that aren't safe, in brackets."""
        paths = dict.fromkeys(each.path for each in self.reasons if each.path is not None)
        named = [_cut(shown(path)) for path in islice(paths, MAX_NAMED)]
        if not named:
            return ""
        more = len(paths) - len(named)
        return f" ({', '.join(named)}{f' and {more} more' if more else ''})"


def judge(
    examined: Iterable[Examined],
    destinations: Sequence[str],
    against: Sequence[Reason] = (),
) -> Verdict:
    """``examined``: everything on the card. ``against``: what is wrong beside single files."""
    files = size_bytes = safe = cached = remarked = 0
    left_out: Counter[FileKind] = Counter()
    reasons = list(against)
    for each in examined:
        if each.file.kind not in COPIED_KINDS:
            left_out[each.file.kind] += 1
            continue
        files += 1
        size_bytes += each.file.size_bytes
        found = list(_reasons(each, destinations))
        reasons += found
        safe += not found
        remarked += not found and each.file.problem is not None
        cached += not found and not all(
            any(_stands(copy, place) and copy.copy.cold for copy in each.copies)
            for place in destinations
        )
    return Verdict(
        destinations=tuple(destinations),
        files=files,
        size_bytes=size_bytes,
        safe_files=safe,
        maybe_cached=cached,
        remarked=remarked,
        left_out=tuple(sorted(left_out.items())),
        reasons=tuple(reasons),
    )


def copies_of(
    file: CardFile,
    copies: Sequence[VerifiedCopy],
    *,
    card: Card,
    job_folder: bytes,
    is_settled: bool,
) -> Sequence[VerifiedCopy] | None:
    """Those that hold this file's bytes; None if only reading the file can tell.

    copies: whatever the ledger has with its path. job_folder: this job's, below its
    destination. is_settled: the copy step has looked at this file as it is now, and all
    that it wanted was brought or known.
    """
    alike = [
        copy
        for copy in copies
        if (copy.file.path, copy.file.size_bytes) == (file.path, file.size_bytes)
    ]
    made = [
        copy
        for copy in alike
        if copy.file.card_identity == card.ledger_identity
        and same_time(copy.file.mtime_ns, file.mtime_ns)
        and copy.path.startswith(job_folder + b"/")
    ]
    known = made or known_copies(file, alike, card) or (alike if is_settled else [])
    contents = {(copy.file.hash_name, copy.file.hash) for copy in known}
    if len(contents) > 1:
        return None
    if not contents and alike:
        return None
    same = [copy for copy in alike if (copy.file.hash_name, copy.file.hash) in contents]
    names = {copy.file.hash_name for copy in same}
    places = {copy.destination for copy in same}
    if any(c.file.hash_name not in names and c.destination not in places for c in alike):
        return None
    return same


def _reasons(each: Examined, destinations: Collection[str]) -> Iterable[Reason]:
    path = each.file.path
    if each.doubt is not None:
        yield Reason(each.doubt, each.detail, path)
        return
    if each.file.kind is FileKind.UNREADABLE:
        yield Reason(Doubt.UNREADABLE, each.file.problem or "can't be read", path)
        return
    if not each.copies:
        yield Reason(Doubt.NEW, "was never copied", path)
        return
    for place in destinations:
        there = [copy for copy in each.copies if copy.copy.destination == place]
        states = {copy.state for copy in there}
        if State.STANDS in states:
            continue
        where = shown(place.encode("utf-8", "surrogateescape"))
        if not there:
            yield Reason(Doubt.UNFINISHED, f"has no verified copy on {where}", path)
        elif State.UNSEEN in states:
            yield Reason(Doubt.DESTINATION, f"{where} can't be looked at", path)
        elif State.ALTERED in states:
            yield Reason(Doubt.ALTERED, f"its copy on {where} has another size or time now", path)
        else:
            yield Reason(Doubt.GONE, f"its copy is no longer on {where}", path)


def _stands(found: FoundCopy, destination: str) -> bool:
    return found.state is State.STANDS and found.copy.destination == destination


def _cut(name: str) -> str:
    """Its end: that is what tells one file of a card from another."""
    over = len(name) - MAX_NAMED_CHARACTERS
    return name if over <= 0 else f"...{name[over + 3 :]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
