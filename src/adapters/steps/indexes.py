"""What indexes on a card say belongs together: Sony's of the card, Panasonic's of each clip.

Cameras keep them as they record, other devices don't, so they go stale. Sony's MEDIAPRO.XML
is asked only for files that by their names belong to no clip. A P2 clip's own XML says of
which recording it is a part: a long one goes on in a new clip every few minutes, and from
one card to the next. It is believed only where the neighbour says the same.

What they don't list stays where it was, what they list in vain is passed over, and one that
can't be read is none at all: the scan never fails for it. Whoever wrote the card wrote these
as well. So they are parsed without entities and document types, up to a size and a number,
and their paths stay below their own folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from urllib.parse import unquote_to_bytes
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from adapters.steps.cards import OpenCard, parts_of
from adapters.steps.faults import FileFault
from domain.footage import FILE_KINDS, CardFile, FileKind, shown
from domain.layouts import Link, Neighbour, Span

MAX_INDEX_BYTES = 4 * 1024 * 1024
"""A clip takes about 1 kB in it, and no card holds thousands of films."""

MAX_INDEXES = 16
"""A card has one for each of its kinds of recording; a disk of cards' copies, a few more."""

MAX_SPAN_BYTES = 256 * 1024
"""A clip's own index takes about 5 kB, and more only with many notes in it."""

MAX_SPANS = 4_000
"""A P2 card holds a thousand clips; a disk of cards' copies, a few times as many."""

MAX_ID_CHARACTERS = 100
"""Of a clip's id, which has 64, and of what else is taken from its index."""

_NAME = b"mediapro.xml"
_CLIPS = b"contents/clip"
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


def spans_of(
    card: OpenCard, files: Iterable[CardFile], check: Callable[[], None]
) -> Mapping[bytes, Span]:
    """What P2 clips say of themselves, by their indexes' paths. Raises ``CardLost``."""
    found: dict[bytes, Span] = {}
    indexes = [
        file.path
        for file in files
        if file.path.endswith((b"L", b"l"))
        and file.path.lower().endswith(b".xml")
        and _is_of_clips(file.path.rpartition(b"/")[0].lower())
        and file.kind in FILE_KINDS
        and file.size_bytes <= MAX_SPAN_BYTES
    ]
    for path in sorted(indexes)[:MAX_SPANS]:
        check()
        try:
            span = _span(fromstring(_read(card, path), forbid_dtd=True))
        except (FileFault, ParseError, DefusedXmlException, ValueError, LookupError):
            continue
        if span is not None:
            found[path] = span
    return found


def _is_of_clips(folder: bytes) -> bool:
    return folder == _CLIPS or folder.endswith(b"/" + _CLIPS)


def _span(index: Element) -> Span | None:
    """``P2Main/ClipContent``: its id, and its neighbours in ``Relation/Connection``."""
    content = _child(index, "ClipContent")
    id = _said(content, "GlobalClipID")
    connection = _child(_child(content, "Relation"), "Connection")
    previous, following = (_neighbour(_child(connection, name)) for name in ("Previous", "Next"))
    return Span(id, previous, following) if id else None


def _neighbour(element: Element | None) -> Neighbour | None:
    id = _said(element, "GlobalClipID")
    card = _said(element, "P2SerialNo.")
    called = " of the P2 card ".join(filter(None, (_said(element, "ClipName"), card)))
    return Neighbour(id, f"clip {called}" if called else "a clip") if id else None


def _child(element: Element | None, name: str) -> Element | None:
    """The first of this name, in whatever version's namespace."""
    if element is None:
        return None
    return next((each for each in element if _tag(each) == name), None)


def _said(element: Element | None, name: str) -> str:
    """A child's text, as it can be shown."""
    child = _child(element, name)
    text = "" if child is None else (child.text or "").strip()
    return shown(text[:MAX_ID_CHARACTERS].encode())


def _read(card: OpenCard, path: bytes) -> bytes:
    try:
        with os.fdopen(card.open_file(path), "rb") as file:
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
