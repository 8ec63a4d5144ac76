"""What the index of a Sony card (MEDIAPRO.XML) says belongs together.

Cameras keep it as they record, other devices don't, so it goes stale: it is asked only for
files that by their names belong to no clip. What it doesn't list stays where it was, what it
lists in vain is passed over, and one that can't be read is none at all: the scan never fails
for it. Whoever wrote the card wrote this as well. So it is parsed without entities and
document types, up to a size and a number of links, and its paths stay below its own folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote_to_bytes
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from adapters.steps.cards import OpenCard, parts_of
from adapters.steps.faults import FileFault
from domain.footage import FILE_KINDS, CardFile, FileKind
from domain.layouts import Link

MAX_INDEX_BYTES = 4 * 1024 * 1024
"""A clip takes about 1 kB in it, and no card holds thousands of films."""

MAX_INDEXES = 16
"""A card has one for each of its kinds of recording; a disk of cards' copies, a few more."""

_NAME = b"mediapro.xml"
_KINDS = {
    "Proxy": FileKind.PROXY,
    "JPG": FileKind.THUMBNAIL,
    "BMP": FileKind.THUMBNAIL,
}


def linked_files(card: OpenCard, files: Iterable[CardFile]) -> Mapping[bytes, Link]:
    """What belongs to which recording, by paths on the card. Raises ``CardLost``."""
    found: dict[bytes, Link] = {}
    indexes = [
        file.path
        for file in files
        if file.path.endswith((b"L", b"l"))
        and file.path.rpartition(b"/")[2].lower() == _NAME
        and file.kind in FILE_KINDS
        and file.size_bytes <= MAX_INDEX_BYTES
    ]
    for path in sorted(indexes)[:MAX_INDEXES]:
        try:
            found.update(_links(fromstring(_read(card, path), forbid_dtd=True), path))
        except (FileFault, ParseError, DefusedXmlException, ValueError, LookupError):
            continue  # it may be broken off as any other file, or be none of Sony's
    return found


def _read(card: OpenCard, path: bytes) -> bytes:
    with os.fdopen(card.open_file(path), "rb") as file:
        try:
            return file.read(MAX_INDEX_BYTES)
        except OSError as error:
            raise card.fault(error, path) from error


def _links(index: Element, path: bytes) -> Iterator[tuple[bytes, Link]]:
    folder = path.rpartition(b"/")[0]
    for material in index.iter():
        if _tag(material) != "Material":
            continue
        media = _path(folder, material.get("uri"))
        for part in material:
            linked = _path(folder, part.get("uri"))
            if media is not None and linked is not None:
                kind = _KINDS.get(_tag(part)) or _KINDS.get(part.get("type", "").upper())
                yield linked, Link(media, kind or FileKind.SIDECAR)


def _tag(element: Element) -> str:
    """Without its namespace; comments have no name."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _path(folder: bytes, uri: str | None) -> bytes | None:
    """``./CLIP/C0001.MP4`` below the index's own folder; None for what leads elsewhere."""
    path = unquote_to_bytes((uri or "").removeprefix("./"))
    try:
        parts = parts_of(path)
    except ValueError:
        return None
    return b"/".join(filter(None, (folder, path))) if parts else None
