"""What is being moved: cards, the files on them, jobs, and what was imported.

A file's name is bytes here, always: cards carry names that are no UTF-8, hold
newlines or terminal codes, or differ only in such things. ``shown`` makes the
text that people and programs outside are given.

Recognising a file never decides whether it is copied: everything is, except the
litter that operating systems leave, and what is no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class FileKind(StrEnum):
    """What a directory entry on a card is to us.

    media: footage, stills and sound. proxy, thumbnail, sidecar: what a camera writes
    beside its media. metadata: what describes the card rather than a clip. folder: one
    that no copied file would bring along. unreadable: what is there and can't be looked
    at. The rest is listed, never silently dropped.
    """

    MEDIA = "media"
    PROXY = "proxy"
    THUMBNAIL = "thumbnail"
    SIDECAR = "sidecar"
    METADATA = "metadata"
    OTHER = "other"
    UNREADABLE = "unreadable"
    FOLDER = "folder"
    JUNK = "junk"
    LINK = "link"
    SPECIAL = "special"


FILE_KINDS = frozenset(
    {
        FileKind.MEDIA,
        FileKind.PROXY,
        FileKind.THUMBNAIL,
        FileKind.SIDECAR,
        FileKind.METADATA,
        FileKind.OTHER,
    }
)
"""Regular files that belong to the card's contents."""

COPIED_KINDS = FILE_KINDS | {FileKind.UNREADABLE}
"""What has to arrive. The unreadable is part of it although it can't: a copy without it
has to fail and name it, or the card would be taken for whole."""

_MEDIA = frozenset(
    b".mp4 .mov .mxf .mts .m2ts .m2t .mpg .avi .insv .insp .360 .r3d .braw .crm .ari .arx .dpx "
    b".nev .raw .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .gpr .jpg .jpeg .heic .heif .tif .tiff "
    b".png .wav .aif .aiff .mp3 .m4a .aac .m4v .mkv .webm .3gp .lvix".split()
)
_PROXY = frozenset(b".lrv .lrf .lrprv".split())
_THUMBNAIL = frozenset(b".thm .scr".split())
_SIDECAR = frozenset(
    b".srt .xml .xmp .smi .bim .ppn .cpi .mpl .bdm .tdt .tid .ale .rmd .cdl .cif .cpf .xmf .klv "
    b".aae .sidecar .cube .lut .idx .sav .txt .csv .json .gcsv .bin .rsv .pro .ind .dat .bmp "
    b".ifo".split()
)
_KIND_BY_SUFFIX = {
    **dict.fromkeys(_MEDIA, FileKind.MEDIA),
    **dict.fromkeys(_PROXY, FileKind.PROXY),
    **dict.fromkeys(_THUMBNAIL, FileKind.THUMBNAIL),
    **dict.fromkeys(_SIDECAR, FileKind.SIDECAR),
}
_JUNK_NAMES = frozenset(
    name.lower()
    for name in (
        b".Trashes",
        b".Spotlight-V100",
        b".fseventsd",
        b".TemporaryItems",
        b".DocumentRevisions-V100",
        b".DS_Store",
        b".apdisk",
        b"System Volume Information",
        b"Thumbs.db",
        b"desktop.ini",
        b"$RECYCLE.BIN",
        b"LOST.DIR",
        b"FOUND.000",
    )
)


def is_junk(name: bytes) -> bool:
    """Whether an operating system left it there: ``name`` is a file's or a folder's own."""
    return name.startswith(b"._") or name.lower() in _JUNK_NAMES


def kind_of(path: bytes) -> FileKind:
    """What a regular file is, by its own name; ``path`` is relative to the card's root.

    Where it lies may say more (``layouts``): an MP4 in a folder of proxies is one.
    """
    name = path[path.rfind(b"/") + 1 :].lower()
    if name in _JUNK_NAMES or name.startswith(b"._"):
        return FileKind.JUNK
    dot = name.rfind(b".")
    return FileKind.OTHER if dot < 0 else _KIND_BY_SUFFIX.get(name[dot:], FileKind.OTHER)


SAME_TIME_NS = 2_000_000_000
"""FAT counts in steps of two seconds."""

QUARTER_HOUR_NS = 900 * 1_000_000_000
DAY_NS = 96 * QUARTER_HOUR_NS

LAST_TIME_NS = 2**63 - 1
"""In the year 2262; as long before the epoch, in 1677, is the first. Databases hold no more."""


def kept_time(mtime_ns: int) -> int:
    """The time that is kept of a file: file systems hold some that are further away."""
    return max(-LAST_TIME_NS, min(mtime_ns, LAST_TIME_NS))


def is_time_kept(mtime_ns: int) -> bool:
    """Whether this is the file's own time, rather than the nearest one that can be kept."""
    return abs(mtime_ns) < LAST_TIME_NS


def same_time(one_ns: int, other_ns: int) -> bool:
    """Whether two modification times are one, as far as any card, and we, keep them."""
    return abs(one_ns - other_ns) <= SAME_TIME_NS or kept_time(one_ns) == kept_time(other_ns)


def same_moment(one_ns: int, other_ns: int, *, tolerance_ns: int = SAME_TIME_NS) -> bool:
    """Whether two modification times may be one moment, told in whatever time zone.

    FAT keeps local time without its zone, so a journey or a change of the host's zone
    shifts every time on the card by whole quarter hours, up to a day. That makes two
    files candidates for being one and the same; only their bytes can decide.
    """
    apart_ns = abs(kept_time(one_ns) - kept_time(other_ns))
    beyond_ns = apart_ns % QUARTER_HOUR_NS
    return (
        apart_ns <= DAY_NS + tolerance_ns
        and min(beyond_ns, QUARTER_HOUR_NS - beyond_ns) <= tolerance_ns
    )


def shown(name: bytes) -> str:
    r"""A name as text that can be printed, encoded and told apart.

    Bytes that are no UTF-8 become ``\xNN``, and so do control characters, line
    separators, direction marks and the backslash itself: two names never look
    the same unless they are, and no name can move a terminal's cursor.
    """
    text = name.decode("utf-8", "surrogateescape")
    return "".join(_shown_character(character) for character in text)


def _shown_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character == "\\":
        return "\\\\"
    if character == " " or character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


@dataclass(frozen=True, slots=True)
class Card:
    """A card as it was found.

    identity: what tells it from other cards. label: what people call it.
    volume: whether the identity is the volume's own; otherwise it is only the
        path, which the next card may have too, and a hash has to decide what is
        known.
    generation: counts the times that it was filled anew: formatted or emptied. What
        the ledger knows of one generation says nothing of another's files, for names,
        sizes and even times recur.
    """

    identity: str
    label: str
    volume: bool
    generation: int = 1

    @property
    def ledger_identity(self) -> str:
        """What the ledger's rows have: the identity, and from the second on the generation."""
        return self.identity if self.generation == 1 else f"{self.identity}#{self.generation}"


@dataclass(frozen=True, slots=True)
class CardFile:
    """One entry of a card's inventory.

    path: relative to the card's root, parts separated by ``/``.
    mtime_ns: since the epoch, as the file system told it; or the nearest ``kept_time``.
    clip: the clip that it belongs to, by the path of the clip's first media file.
    problem: what a person has to know of it: why it is left out, can't be read or
        can't be played.
    """

    path: bytes
    kind: FileKind
    size_bytes: int
    mtime_ns: int
    clip: bytes | None = None
    problem: str | None = None


HASH_NAMES = ("c4", "md5", "sha1", "xxh128", "xxh3", "xxh64")
"""Of the hashes that footage may be known by, as manifests write them."""


class Familiarity(StrEnum):
    """How much the ledger knows of a file, at all destinations together.

    NEW: nothing, at one of them at least. TO_HASH: it has a row with its path and size that
    only its bytes can tell to be its own. KNOWN: each has its row.
    """

    NEW = "new"
    KNOWN = "known"
    TO_HASH = "to_hash"


@dataclass(frozen=True, slots=True)
class Intake:
    """What there is to be copied, by kind and by what the ledger knows: files and bytes."""

    counts: Mapping[tuple[FileKind, Familiarity], tuple[int, int]]

    def of(self, familiarity: Familiarity) -> tuple[int, int]:
        found = [count for (_, each), count in self.counts.items() if each is familiarity]
        return sum(files for files, _ in found), sum(size_bytes for _, size_bytes in found)

    def as_json(self) -> dict[str, Any]:
        by_kind: dict[str, dict[str, Any]] = {}
        for (kind, familiarity), count in sorted(self.counts.items()):
            by_kind.setdefault(kind.value, {})[familiarity.value] = _count(count)
        return {each.value: _count(self.of(each)) for each in Familiarity} | {"by_kind": by_kind}


def _count(files_and_bytes: tuple[int, int]) -> dict[str, int]:
    files, size_bytes = files_and_bytes
    return {"files": files, "bytes": size_bytes}


class JobStatus(StrEnum):
    CREATED = "created"
    COPIED = "copied"


@dataclass(frozen=True, slots=True)
class Job:
    """One card's way into the library; one per execution.

    name: the folder below the library; nobody else has it.
    file_count and total_bytes: what the scan found to be copied.
    intake: how much of it the ledger knew at the scan, as JSON (``Intake.as_json``).
    verdict: the last one on its card, as JSON (``application/report.py``); None before that.
    """

    id: int
    uuid: str
    execution_id: int
    name: str
    card: Card
    status: JobStatus
    file_count: int
    total_bytes: int
    created_at: datetime
    completed_at: datetime | None = None
    intake: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A ledger row: a copy of this file was verified and published.

    card_identity: with its generation (``Card.ledger_identity``).
    hash: as text, by ``hash_name``. further: other hashes from the same reading, each with
    its name; they don't make it another file.
    """

    card_identity: str
    path: bytes
    size_bytes: int
    mtime_ns: int
    hash_name: str
    hash: str
    further: tuple[tuple[str, str], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class VerifiedCopy:
    """What a copy step tells the ledger of one file: it stands at ``destination``/``path``.

    cold: whether what was read back was shown to come from the device, not from memory.
    """

    file: ImportedFile
    destination: str
    path: bytes
    verified_at: datetime
    cold: bool = False


def known_copies(file: CardFile, copies: Iterable[VerifiedCopy], card: Card) -> list[VerifiedCopy]:
    """Those that are this file's without its being read: same generation of a volume, path,
    size and time. All others with its path and size are candidates, for its bytes to decide.
    """
    if not card.volume:
        return []
    return [
        copy
        for copy in copies
        if copy.file.card_identity == card.ledger_identity
        and (copy.file.path, copy.file.size_bytes) == (file.path, file.size_bytes)
        and same_time(copy.file.mtime_ns, file.mtime_ns)
    ]
