"""What is being moved: cards, the files on them, jobs, and what was imported.

A file's name is bytes here, always: cards carry names that are no UTF-8, hold
newlines or terminal codes, or differ only in such things. ``shown`` makes the
text that people and programs outside are given.

What counts as media, and which folders are a camera's, follows the makers'
layouts (GoPro, DJI, Insta360, Sony, Panasonic P2, AVCHD, Canon, RED, ARRI,
Blackmagic). Recognising a file never decides whether it is copied: on a
structured card everything is, except the litter that operating systems leave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class FileKind(StrEnum):
    """What a directory entry on a card is to us.

    Media, sidecars and others are copied; the rest is listed, never silently dropped.
    """

    MEDIA = "media"
    SIDECAR = "sidecar"
    OTHER = "other"
    JUNK = "junk"
    LINK = "link"
    SPECIAL = "special"


COPIED_KINDS = frozenset({FileKind.MEDIA, FileKind.SIDECAR, FileKind.OTHER})

_MEDIA = frozenset(
    b".mp4 .mov .mxf .mts .m2ts .m2t .mpg .avi .insv .insp .360 .r3d .braw .ari .arx .crm .nev "
    b".raw .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .gpr .jpg .jpeg .heic .heif .tif .tiff .png "
    b".wav .aif .aiff .mp3 .m4a .aac .m4v .mkv .webm .3gp .lvix".split()
)
_SIDECAR = frozenset(
    b".thm .lrv .lrf .lrprv .srt .xml .xmp .smi .bim .ppn .cpi .mpl .bdm .tdt .tid .ale .rmd .cdl "
    b".cube .lut .idx .sav .txt .csv .json .gcsv .bin .rsv .pro .ind .dat .scr .bmp .ifo".split()
)
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

_LAYOUTS: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (label, re.compile(pattern, re.IGNORECASE))
    for label, pattern in (
        ("GoPro", rb"DCIM/\d{3}GOPRO\Z"),
        ("DJI", rb"DCIM/(?:DJI_[^/]*|\d{3}MEDIA)\Z"),
        ("Insta360", rb"DCIM/Camera\d\d\Z"),
        ("Canon", rb"DCIM/\d{3}(?:CANON|EOS[^/]*)\Z"),
        ("Sony", rb"(?:PRIVATE/)?(?:M4ROOT|XDROOT)\Z"),
        ("AVCHD", rb"PRIVATE/AVCHD(?:/BDMV)?\Z"),
        ("Panasonic P2", rb"CONTENTS/(?:AUDIO|ICON|PROXY|VOICE)\Z"),
        ("Canon XF", rb"CONTENTS/CLIPS\d{3}\Z"),
        ("RED", rb"(?:.*/)?[^/]+\.RD[MC]\Z"),
        ("DCIM", rb"DCIM\Z"),
    )
)


def is_junk(name: bytes) -> bool:
    """Whether an operating system left it there: ``name`` is a file's or a folder's own."""
    return name.startswith(b"._") or name.lower() in _JUNK_NAMES


def kind_of(path: bytes) -> FileKind:
    """What a regular file is, by its name; ``path`` is relative to the card's root."""
    name = path.rsplit(b"/", 1)[-1]
    if is_junk(name):
        return FileKind.JUNK
    dot = name.rfind(b".")
    suffix = name[dot:].lower() if dot >= 0 else b""
    if suffix in _MEDIA:
        return FileKind.MEDIA
    if suffix in _SIDECAR:
        return FileKind.SIDECAR
    return FileKind.OTHER


def layout_of(folder: bytes) -> str | None:
    """Whose layout a folder belongs to; ``folder`` is relative to the card's root."""
    for label, pattern in _LAYOUTS:
        if pattern.match(folder):
            return label
    return None


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
    """

    identity: str
    label: str
    volume: bool


@dataclass(frozen=True, slots=True)
class CardFile:
    """One entry of a card's inventory.

    path: relative to the card's root, parts separated by ``/``.
    mtime_ns: since the epoch, as the file system told it.
    """

    path: bytes
    kind: FileKind
    size_bytes: int
    mtime_ns: int


class JobStatus(StrEnum):
    CREATED = "created"
    COPIED = "copied"


@dataclass(frozen=True, slots=True)
class Job:
    """One card's way into the library; one per execution.

    name: the folder below the library; nobody else has it.
    file_count and total_bytes: what the scan found to be copied.
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


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A ledger row: a copy of this file was verified and published.

    hash: hexadecimal, by ``hash_name``.
    """

    card_identity: str
    path: bytes
    size_bytes: int
    mtime_ns: int
    hash_name: str
    hash: str


@dataclass(frozen=True, slots=True)
class VerifiedCopy:
    """What a copy step tells the ledger of one file: it stands at ``destination``/``path``."""

    file: ImportedFile
    destination: str
    path: bytes
    verified_at: datetime
