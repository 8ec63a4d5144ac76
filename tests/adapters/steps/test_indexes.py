"""An index on the card helps to group, and can do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.steps.cards import OpenCard
from adapters.steps.indexes import MAX_INDEX_BYTES, MAX_SPAN_BYTES, linked_files, spans_of
from domain.footage import CardFile, FileKind, kind_of
from domain.layouts import Link, Neighbour, Span
from tests.adapters.steps.conftest import Rig
from tests.cards import film, p2_index

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


# -- Panasonic's of each clip ----------------------------------------------------------

P2_CLIP = "CONTENTS/CLIP/0001AB.XML"


def spans(rig: Rig, card: OpenCard, content: bytes, path: str = P2_CLIP) -> dict[bytes, Span]:
    rig.put(path, content)
    return dict(spans_of(card, [entry(path, len(content))], lambda: None))


@pytest.mark.parametrize(
    "content",
    [
        *HARMLESS[:-3],
        p2_index("0001AB").replace(b"GlobalClipID", b"Another"),
        p2_index("0001AB").replace(b"ClipContent", b"Another"),
        b"<GlobalClipID>A</GlobalClipID>",
        b"<P2Main><ClipContent><GlobalClipID/></ClipContent></P2Main>",
        b"<P2Main><ClipContent><GlobalClipID> \n </GlobalClipID></ClipContent></P2Main>",
    ],
)
def test_a_clip_s_index_that_says_nothing_sensible_is_none(
    rig: Rig, card: OpenCard, content: bytes
) -> None:
    assert spans(rig, card, content) == {}


def test_a_clip_s_index_says_where_its_recording_came_from_and_goes_on(
    rig: Rig, card: OpenCard
) -> None:
    before, after = Neighbour("ID-0001AB", "clip 0001AB of the P2 card ABD06C0058"), "0003EF"
    content = p2_index("0002CD", "0001AB", after)
    assert spans(rig, card, content) == {
        P2_CLIP.encode(): Span(
            "ID-0002CD", before, Neighbour("ID-0003EF", "clip 0003EF of the P2 card ABD06C0058")
        )
    }
    assert spans(rig, card, p2_index("0002CD")) == {P2_CLIP.encode(): Span("ID-0002CD", None, None)}


def test_text_of_a_clip_s_index_can_be_shown(rig: Rig, card: OpenCard) -> None:
    content = p2_index("0002CD", None, "0003EF").replace(
        b"<ClipName>0003EF", "<ClipName>\u202e\x7f".encode() + b"&lt;b&gt;" + b"x" * 10_000
    )
    (span,) = spans(rig, card, content).values()
    assert span.next is not None
    assert span.next.called.startswith("clip \\xe2\\x80\\xae\\x7f<b>xxx")
    assert len(span.next.called) < 200


@pytest.mark.parametrize("path", ["CLIP/0001AB.XML", "CONTENTS/VIDEO/0001AB.XML", "a.XML"])
def test_only_indexes_in_their_own_place_are_read(rig: Rig, card: OpenCard, path: str) -> None:
    assert spans(rig, card, p2_index("0001AB"), path) == {}
    assert spans(rig, card, p2_index("0001AB"), "contents/Clip/0001ab.xml")
    assert not spans_of(card, [entry(P2_CLIP, MAX_SPAN_BYTES + 1)], lambda: None)


def spanned(rig: Rig) -> dict[str, str]:
    """A recording of three clips, and one by itself; the files with their clips."""
    for name, *neighbours in (
        ("0001AB", None, "0002CD"),
        ("0002CD", "0001AB", "0003EF"),
        ("0003EF", "0002CD", None),
        ("0004GH", None, None),
    ):
        rig.put(f"CONTENTS/VIDEO/{name}.MXF", name.encode())
        rig.put(f"CONTENTS/AUDIO/{name}00.MXF", name.encode())
        rig.put(f"CONTENTS/CLIP/{name}.XML", p2_index(name, *neighbours))
    return {
        path: f"CONTENTS/VIDEO/{first}.MXF"
        for name, first in zip(
            ("0001AB", "0002CD", "0003EF", "0004GH"), ["0001AB"] * 3 + ["0004GH"], strict=True
        )
        for path in (
            f"CONTENTS/VIDEO/{name}.MXF",
            f"CONTENTS/AUDIO/{name}00.MXF",
            f"CONTENTS/CLIP/{name}.XML",
        )
    }


def grouped(rig: Rig) -> dict[str, str]:
    return {file.path.decode(): (file.clip or b"").decode() for file in rig.card_files.of(1)}


def test_what_a_recording_goes_on_in_is_one_clip_and_stays_where_it_was(rig: Rig) -> None:
    expected = spanned(rig)
    data = rig.ready()
    assert data["clip_count"] == 2
    assert data["exceptions"]["total"] == 0
    assert grouped(rig) == expected
    assert rig.copy(1, data)["copied_files"] == 12
    assert {path.decode() for path in rig.arrived()} == {
        f"2026-11-22_A001/{path}" for path in expected
    }


def test_what_a_recording_goes_on_in_on_another_card_is_said(rig: Rig) -> None:
    spanned(rig)
    rig.put("CONTENTS/CLIP/0003EF.XML", p2_index("0003EF", "0002CD", "0099ZZ"))
    rig.put("CONTENTS/CLIP/0004GH.XML", p2_index("0004GH", "0098YY", None))
    data = rig.scan()
    assert data["clip_count"] == 2
    of_card = "of the P2 card ABD06C0058, not found on this card"
    assert {each["path"]: each["problem"] for each in data["exceptions"]["named"]} == {
        "CONTENTS/VIDEO/0003EF.MXF": f"its recording goes on in clip 0099ZZ {of_card}",
        "CONTENTS/VIDEO/0004GH.MXF": f"its recording began in clip 0098YY {of_card}",
    }
