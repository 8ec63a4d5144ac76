"""A manifest and the chain of manifests, as the XML that they are stored as.

What is read here may have been written by anyone, so nothing in it is believed
that can be checked: there may be no DOCTYPE (without one there are no entities,
and nothing to be fetched), texts, depth and length are bounded, hashes must look
like hashes, and a path must be a plain relative one that stays below its folder.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import BinaryIO

from adapters.steps.cards import parts_of
from adapters.steps.faults import OffloadFault
from adapters.steps.hashes import HASH_NAMES, normal_value
from domain.footage import shown

MANIFESTS = b"ascmhl"
"""The folder that has them; never itself part of what they list."""

MANIFEST_NAMESPACE = "urn:ASC:MHL:v2.0"
CHAIN_NAMESPACE = "urn:ASC:MHL:DIRECTORY:v2.0"
VERSION = "2.0"

IGNORED = (".DS_Store", "ascmhl", "ascmhl/")
"""What the standard's own tool ignores when nobody says otherwise."""

OWN_IGNORED = tuple("*." + 8 * "[0-9a-f]" + suffix for suffix in (".part", ".bad"))
"""Our unfinished and our bad copies: no footage, so no tool should miss them in a manifest."""

MAX_MANIFEST_BYTES = 1024 * 1024 * 1024
"""A manifest of a million files has a third of it."""

MAX_CHAIN_BYTES = 16 * 1024 * 1024
"""Tens of thousands of generations."""

MAX_TEXT = 8_192
"""Characters of one text that we keep; no path that a system takes is longer."""

MAX_DEPTH = 64
"""Elements within elements; the standard needs six, and its metadata may hold anything."""

MAX_PATTERNS = 1_000
"""Ignored patterns that are carried on from one generation to the next."""

READ_BYTES = 1024 * 1024

_TEXT = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
"""What XML 1.0 can carry, escaped or not."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)

_GENERATION = re.compile(r"([0-9]{4,9})(?:_.*)?\.mhl", re.DOTALL)


class ManifestFault(OffloadFault):
    """A manifest or a chain that can't be believed. Nothing was changed on its account."""


class Process(StrEnum):
    """How the files came to be where they are."""

    IN_PLACE = "in-place"
    TRANSFER = "transfer"


class Action(StrEnum):
    """What a hash says of its file.

    ORIGINAL: the first that is known of it. VERIFIED: it is as earlier generations
    say. FAILED: it isn't, and this is what it is instead.
    """

    ORIGINAL = "original"
    VERIFIED = "verified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Creator:
    """Who writes a generation."""

    hostname: str
    tool: str
    tool_version: str


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file to be listed. ``path`` is relative to the folder; hashes are by their names."""

    path: bytes
    size_bytes: int
    mtime_ns: int
    hashes: Mapping[str, str]
    hashed_at: datetime
    action: Action = Action.ORIGINAL


@dataclass(slots=True)
class ListedFile:
    """A file that a manifest lists.

    hashes: those that hold; the failed ones are left out. hashed_at: by the hash's
    name, as it is written. is_original: whether it was new to who wrote this.
    mtime_ns: when it was changed last, in whole seconds; None where that isn't told.
    """

    path: bytes = b""
    size_bytes: int | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    hashed_at: dict[str, str] = field(default_factory=dict)
    is_original: bool = False
    previous_path: bytes | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One line of the chain: a manifest's number and name, and its C4."""

    number: int
    name: bytes
    c4: str


def why_not_listed(path: bytes) -> str | None:
    """Why no manifest can list this path; None if one can."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return "the name is not UTF-8"
    if not _TEXT.fullmatch(text):
        return "the name holds a character that XML can't carry"
    if MANIFESTS in path.split(b"/"):
        return "it belongs to a manifest itself"
    return None


def number_of(name: bytes) -> int | None:
    """The generation that a manifest's file name says; None for other files."""
    match = _GENERATION.fullmatch(name.decode("utf-8", "replace"))
    return int(match[1]) if match else None


# -- writing -------------------------------------------------------------------------


def manifest_xml(
    files: Iterable[HashedFile],
    *,
    creator: Creator,
    process: Process,
    ignored: Sequence[str],
    at: datetime,
) -> Iterator[bytes]:
    """A manifest, piece by piece. Each file must be one that can be listed."""
    yield _opening("hashlist", MANIFEST_NAMESPACE, f' version="{VERSION}"')
    info = ET.Element("creatorinfo")
    _child(info, "creationdate", _time(at))
    _child(info, "hostname", _carried(creator.hostname))
    _child(info, "tool", _carried(creator.tool), version=_carried(creator.tool_version))
    yield _piece(info, 1)
    how = ET.Element("processinfo")
    _child(how, "process", process)
    patterns = _child(how, "ignore")
    for pattern in ignored:
        _child(patterns, "pattern", pattern)
    yield _piece(how, 1)
    yield b"  <hashes>\n"
    for file in files:
        yield _piece(_hash_element(file), 2)
    yield b"  </hashes>\n</hashlist>\n"


def chain_xml(generations: Sequence[Generation]) -> bytes:
    pieces = [_opening("ascmhldirectory", CHAIN_NAMESPACE)]
    for generation in generations:
        element = ET.Element("hashlist", sequencenr=str(generation.number))
        _child(element, "path", generation.name.decode())
        _child(element, "c4", generation.c4)
        pieces.append(_piece(element, 1))
    return b"".join([*pieces, b"</ascmhldirectory>\n"])


def _hash_element(file: HashedFile) -> ET.Element:
    element = ET.Element("hash")
    path = _child(element, "path", file.path.decode(), size=str(file.size_bytes))
    changed = _mtime(file.mtime_ns)
    if changed:
        path.set("lastmodificationdate", changed)
    for name in HASH_NAMES:
        if name in file.hashes:
            _child(
                element,
                name,
                file.hashes[name],
                action=file.action.value,
                hashdate=_time(file.hashed_at),
            )
    return element


def _child(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _opening(tag: str, namespace: str, more: str = "") -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{tag}{more} xmlns="{namespace}">\n'.encode()


def _piece(element: ET.Element, level: int) -> bytes:
    ET.indent(element, level=level)
    text = ET.tostring(element, encoding="unicode")
    # A reader would take a bare one for the end of a line, and the name for another.
    return f"{level * '  '}{text}\n".replace("\r", "&#13;").encode()


def _carried(text: str) -> str:
    return "".join(each if _TEXT.fullmatch(each) else "_" for each in text)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


def _mtime(mtime_ns: int) -> str | None:
    """None for times that no calendar has; file systems hold what they were given."""
    try:
        return _time(datetime.fromtimestamp(mtime_ns // 1_000_000_000, UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _mtime_ns(text: str) -> int | None:
    """None for what says no moment: it is no ``dateTime``, or has no zone."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return None if at.tzinfo is None else (at - _EPOCH) // _SECOND * 1_000_000_000


def hashed_at_text(file: HashedFile) -> str:
    """As it stands in a manifest."""
    return _time(file.hashed_at)


# -- reading -------------------------------------------------------------------------


class ManifestReader:
    """One manifest, read to its end: its files one by one, then what else it says.

    ``where`` names it in the errors. ``saw`` is given every byte that was read.
    """

    def __init__(self, file: BinaryIO, where: str, saw: Callable[[bytes], object]) -> None:
        self._file = file
        self._where = where
        self._saw = saw
        self.ignored: list[str] = []

    def __iter__(self) -> Iterator[ListedFile]:
        """Raises ``ManifestFault``, at the latest at its end."""
        target = _ManifestTarget(self._where)
        for _ in _fed(self._file, target, self._where, self._saw, MAX_MANIFEST_BYTES):
            yield from target.files
            target.files.clear()
        self.ignored = target.ignored


def read_chain(file: BinaryIO, where: str) -> list[Generation]:
    """The generations in their order. Raises ``ManifestFault``."""
    target = _ChainTarget(where)
    for _ in _fed(file, target, where, lambda chunk: None, MAX_CHAIN_BYTES):
        pass
    for earlier, later in zip(target.generations, target.generations[1:], strict=False):
        if later.number <= earlier.number:
            raise ManifestFault(f"{where}: generation {later.number} follows {earlier.number}")
    return target.generations


def _fed(
    file: BinaryIO,
    target: _Target,
    where: str,
    saw: Callable[[bytes], object],
    max_bytes: int,
) -> Iterator[None]:
    parser = ET.XMLParser(target=target)  # noqa: S314 - the target refuses a DOCTYPE
    count = 0
    try:
        while chunk := file.read(READ_BYTES):
            count += len(chunk)
            if count > max_bytes:
                raise ManifestFault(f"{where} has more than {max_bytes} bytes")
            saw(chunk)
            parser.feed(chunk)
            yield
        parser.close()
        yield
    except (ET.ParseError, LookupError, ValueError) as error:
        raise ManifestFault(f"{where} is damaged or not complete: {error}") from error


class _Target:
    """What the parser tells of a document: which elements are open, and the last one's text."""

    root = ""
    namespace = ""

    def __init__(self, where: str) -> None:
        self._where = where
        self._open: list[str] = []
        self._text: list[str] = []
        self._characters = 0

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise self.fault("has a DOCTYPE, which no manifest has: it could make entities")

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if not self._open and tag != f"{{{self.namespace}}}{self.root}":
            raise self.fault(
                f"is no {self.root} of {self.namespace}, but begins with {tag[:100]!a}"
            )
        if len(self._open) == MAX_DEPTH:
            raise self.fault(f"has more than {MAX_DEPTH} elements within each other")
        self._open.append(tag.removeprefix(f"{{{self.namespace}}}"))
        self._text.clear()
        self._characters = 0
        self.opened(self._open, attributes)

    def data(self, text: str) -> None:
        self._characters += len(text)
        if self._characters <= MAX_TEXT:
            self._text.append(text)

    def end(self, tag: str) -> None:
        if self._characters > MAX_TEXT and self.wanted(self._open):
            raise self.fault(f"has a text of more than {MAX_TEXT} characters")
        self.closed(self._open, "".join(self._text))
        self._open.pop()
        self._text.clear()
        self._characters = 0

    def close(self) -> None:
        pass

    def opened(self, path: Sequence[str], attributes: Mapping[str, str]) -> None:
        raise NotImplementedError

    def wanted(self, path: Sequence[str]) -> bool:
        """Whether the text of this element is kept."""
        raise NotImplementedError

    def closed(self, path: Sequence[str], text: str) -> None:
        raise NotImplementedError

    def fault(self, why: str) -> ManifestFault:
        return ManifestFault(f"{self._where} {why}")


class _ManifestTarget(_Target):
    root = "hashlist"
    namespace = MANIFEST_NAMESPACE

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.files: list[ListedFile] = []
        self.ignored: list[str] = []
        self._file = ListedFile()
        self._attributes: Mapping[str, str] = {}

    def opened(self, path: Sequence[str], attributes: Mapping[str, str]) -> None:
        self._attributes = attributes
        if len(path) == 1 and attributes.get("version") != VERSION:
            raise self.fault(f"has the version {attributes.get('version')!a}, not {VERSION}")
        if path[1:] == ["hashes", "hash"]:
            self._file = ListedFile()

    def wanted(self, path: Sequence[str]) -> bool:
        return path[1:3] in (["hashes", "hash"], ["processinfo", "ignore"]) and len(path) == 4

    def closed(self, path: Sequence[str], text: str) -> None:
        if path[1:] == ["hashes", "hash"]:
            if not self._file.path:
                raise self.fault("lists a file without a path")
            self.files.append(self._file)
        elif path[1:] == ["processinfo", "ignore", "pattern"]:
            if len(self.ignored) < MAX_PATTERNS:
                self.ignored.append(text)
        elif self.wanted(path):
            self._tell(path[3], text)

    def _tell(self, tag: str, text: str) -> None:
        if tag == "path":
            self._file.path = self._plain(text)
            self._file.size_bytes = self._size()
            self._file.mtime_ns = _mtime_ns(self._attributes.get("lastmodificationdate", ""))
        elif tag == "previousPath":
            self._file.previous_path = self._plain(text)
        elif tag in HASH_NAMES:
            action = self._attributes.get("action")
            if action == Action.FAILED:
                return
            value = normal_value(tag, text.strip())
            if value is None:
                raise self.fault(f"gives {text[:100]!a} as a hash of the kind {tag}")
            self._file.hashes[tag] = value
            self._file.hashed_at[tag] = self._attributes.get("hashdate", "")
            self._file.is_original |= action == Action.ORIGINAL

    def _plain(self, text: str) -> bytes:
        path = text.encode()
        try:
            parts = parts_of(path)
        except ValueError:
            parts = []
        if not parts:
            raise self.fault(
                f"lists {shown(path[:300])!r}, which is no plain path below the folder"
            )
        if MANIFESTS in parts:
            raise self.fault(f"lists {shown(path[:300])!r}, which belongs to a manifest itself")
        return path

    def _size(self) -> int | None:
        size = self._attributes.get("size")
        if size is None:
            return None
        if not (size.isascii() and size.isdigit() and len(size) < 20):
            raise self.fault(f"gives {size[:100]!a} as a size")
        return int(size)


class _ChainTarget(_Target):
    root = "ascmhldirectory"
    namespace = CHAIN_NAMESPACE

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.generations: list[Generation] = []
        self._sequence: str | None = None
        self._said: dict[str, str] = {}

    def opened(self, path: Sequence[str], attributes: Mapping[str, str]) -> None:
        if path[1:] == ["hashlist"]:
            self._sequence = attributes.get("sequencenr")
            self._said = {}

    def wanted(self, path: Sequence[str]) -> bool:
        return path[1:2] == ["hashlist"] and len(path) == 3

    def closed(self, path: Sequence[str], text: str) -> None:
        if self.wanted(path):
            self._said[path[2]] = text
        elif path[1:] == ["hashlist"]:
            name, c4 = self._said.get("path", "").encode(), self._said.get("c4", "").strip()
            number = number_of(name)
            if number is None or b"/" in name or self._sequence not in (None, str(number)):
                raise self.fault(f"names {shown(name[:300])!r}, which is no manifest's name")
            if normal_value("c4", c4) is None:
                raise self.fault(f"has no C4 for {shown(name)}")
            self.generations.append(Generation(number, name, c4))
