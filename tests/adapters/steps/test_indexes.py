"""An index on the card helps to group, and can do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.steps.cards import OpenCard
from adapters.steps.indexes import MAX_INDEX_BYTES, linked_files
from domain.footage import CardFile, FileKind, kind_of
from domain.layouts import Link
from tests.adapters.steps.conftest import Rig
from tests.cards import film

ROOT = "PRIVATE/M4ROOT"
INDEX = f"{ROOT}/MEDIAPRO.XML"
CLIP = f"{ROOT}/CLIP/C0001.MP4"


def material(uri: str, *parts: str) -> str:
    return f'<Material uri="{uri}" type="MP4" dur="48">{"".join(parts)}</Material>'


def index(*materials: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<MediaProfile xmlns="http://xmlns.sony.net/pro/metadata/mediaprofile" version="2.10">'
        f"<Properties/><Contents>{''.join(materials)}</Contents></MediaProfile>"
    ).encode()


TYPICAL = material(
    "./CLIP/C0001.MP4",
    '<Proxy uri="./SUB/interview.MP4" type="MP4"/>',
    '<RelevantInfo uri="./CLIP/notes.XML" type="XML"/>',
    '<RelevantInfo uri="./THMBNL/first%20look.JPG" type="JPG"/>',
)
"""The camera gave it names of its own, so names alone don't tell that they are one."""


@pytest.fixture
def card(rig: Rig) -> Iterator[OpenCard]:
    with rig.cards.open(str(rig.card)) as card:
        yield card


def entry(path: str, size_bytes: int) -> CardFile:
    return CardFile(path.encode(), kind_of(path.encode()), size_bytes, 5)


def found(rig: Rig, card: OpenCard, content: bytes) -> dict[bytes, Link]:
    rig.put(INDEX, content)
    return dict(linked_files(card, [entry(INDEX, len(content))]))


HARMLESS = [
    b"",
    b"\0" * 4_096,
    b"<MediaProfile><Contents><Material uri='./CLIP/C0001.MP4'><Proxy uri='./SU",  # cut off
    b'<?xml version="1.0" encoding="no-such"?><a/>',
    b"<a>" * 50_000,
    b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    + index(TYPICAL.replace("interview", "&d;")).partition(b"\n")[2],
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
    b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/evil.dtd"><a/>',
    index(material("./CLIP/C0001.MP4", "<Proxy/>", "<!-- none -->", '<Proxy uri=""/>')),
    index(material("", '<Proxy uri="./SUB/a.MP4"/>')),
    b"<Contents><Material><Proxy uri='./SUB/a.MP4'/></Material></Contents>",
]


@pytest.mark.parametrize("content", HARMLESS, ids=range(len(HARMLESS)))
def test_an_index_that_says_nothing_sensible_is_none(
    rig: Rig, card: OpenCard, content: bytes
) -> None:
    assert found(rig, card, content) == {}


@pytest.mark.parametrize(
    "uri",
    [
        "../../../etc/passwd",
        "./../DCIM/a.JPG",
        "/etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "CLIP//C0001.MP4",
        "./CLIP/./C0001.MP4",
        "CLIP/C0001%00.MP4",
    ],
)
def test_a_path_that_leads_elsewhere_is_passed_over(rig: Rig, card: OpenCard, uri: str) -> None:
    beside = '<Proxy uri="SUB/a.MP4"/>'
    assert found(rig, card, index(material(uri, beside))) == {}
    assert found(rig, card, index(material("CLIP/C0001.MP4", f'<Proxy uri="{uri}"/>', beside))) == {
        f"{ROOT}/SUB/a.MP4".encode(): Link(CLIP.encode(), FileKind.PROXY)
    }


def test_one_that_is_too_large_is_not_read(rig: Rig, card: OpenCard) -> None:
    content = index(TYPICAL)
    assert len(found(rig, card, content)) == 3
    assert not linked_files(card, [entry(INDEX, MAX_INDEX_BYTES + 1)])


def test_one_that_is_no_file_any_more_is_none(rig: Rig, card: OpenCard) -> None:
    (rig.card / "MEDIAPRO.XML").symlink_to("/etc/passwd")
    assert not linked_files(card, [entry("MEDIAPRO.XML", 10), entry("gone/MEDIAPRO.XML", 10)])


def shot(rig: Rig) -> None:
    rig.put(CLIP, film("C0001", 400))
    rig.put(f"{ROOT}/CLIP/C0002.MP4", film("C0002", 400))
    rig.put(f"{ROOT}/SUB/interview.MP4", film("interview", 400))
    rig.put(f"{ROOT}/CLIP/notes.XML", b"<a/>")
    rig.put(f"{ROOT}/THMBNL/first look.JPG", b"jpg")


def clips(rig: Rig) -> dict[str, tuple[FileKind, str | None]]:
    rig.scan()
    return {
        file.path.decode().rpartition("/")[2]: (
            file.kind,
            None if file.clip is None else Path(file.clip.decode()).name,
        )
        for file in rig.card_files.of(1)
    }


def test_what_names_do_not_tell_the_index_does(rig: Rig) -> None:
    shot(rig)
    without = clips(rig)
    assert without["interview.MP4"] == (FileKind.MEDIA, "interview.MP4")
    assert without["notes.XML"] == (FileKind.SIDECAR, None)
    rig.put(INDEX, index(TYPICAL))
    told = clips(rig)
    assert told.pop("MEDIAPRO.XML") == (FileKind.METADATA, None)
    assert told == {
        "C0001.MP4": (FileKind.MEDIA, "C0001.MP4"),
        "C0002.MP4": (FileKind.MEDIA, "C0002.MP4"),  # which it knows nothing of
        "interview.MP4": (FileKind.PROXY, "C0001.MP4"),
        "notes.XML": (FileKind.SIDECAR, "C0001.MP4"),
        "first look.JPG": (FileKind.THUMBNAIL, "C0001.MP4"),
    }


@pytest.mark.parametrize(
    "stale",
    [
        index(material("./CLIP/C0009.MP4", '<Proxy uri="./SUB/interview.MP4"/>')),
        index(material("./CLIP/C0001.MP4", '<Proxy uri="./CLIP/C0002.MP4"/>')),
        index(material("./CLIP/C0001.MP4", '<Proxy uri="./CLIP/C0001.MP4"/>')),
        index(
            material("./CLIP/C0001.MP4", '<Proxy uri="./SUB/interview.MP4"/>'),
            material("./SUB/interview.MP4", '<Proxy uri="./CLIP/C0001.MP4"/>'),
        ),
        b"<broken",
    ],
)
def test_a_stale_index_changes_no_recording_and_hides_none(rig: Rig, stale: bytes) -> None:
    shot(rig)
    before = clips(rig)
    rig.put(INDEX, stale)
    after = clips(rig)
    del after["MEDIAPRO.XML"]
    assert after == before
