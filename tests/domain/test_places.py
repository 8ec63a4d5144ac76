from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

import pytest

from domain.footage import CardFile, FileKind
from domain.layouts import Layout
from domain.names import folded, stored_name
from domain.places import (
    AS_ON_THE_CARD,
    DEFAULT_LAYOUT,
    MAX_COMPONENT_BYTES,
    Places,
    Template,
    job_values,
)

NOON = datetime(2026, 11, 22, 12, 34, tzinfo=UTC)
SHOT_NS = 1_795_305_600_000_000_000  # 2026-11-22 00:00 UTC

NASTY = [
    "../../etc",
    "..",
    ".",
    "",
    "   ",
    "CON",
    "nul.txt",
    "x" * 255,
    "é" * 200,
    "new\nline",
    "\x1b]0;title\x07",
    "trailing. . ",
    "a/b\\c:d",
    "{clip}",
    "ascmhl",
    "Reports",
    "LOST.DIR",
    ".Trashes",
    "\u202egpj",
    "\udce9",
    unicodedata.normalize("NFD", "Übung"),
]


def named(layout: str, label: str = "A001", layouts: tuple[str, ...] = ("GoPro",)) -> str:
    return Template.parse(layout).job_name(job_values(NOON, label, layouts))


def sorted_by(layout: str, *files: CardFile, layouts: tuple[str, ...] = ("GoPro",)) -> list[bytes]:
    sorting = Template.parse(layout).sorting(job_values(NOON, "A001", layouts), layouts)
    places = Places(sorting, 0, files)
    return [places.of(file) for file in files]


def file(
    path: str | bytes, clip: str | bytes | None = "", kind: FileKind = FileKind.MEDIA
) -> CardFile:
    """Its own clip's first, unless another is named."""
    name = path if isinstance(path, bytes) else path.encode()
    of = name if clip == "" else clip.encode() if isinstance(clip, str) else clip
    return CardFile(name, kind, 1, SHOT_NS, of)


# -- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        ("", "at least one folder"),
        ("  ", "at least one folder"),
        ("/{date}", "absolute"),
        ("{date}/", "empty folder name"),
        ("{date}//{card}", "empty folder name"),
        ("{date}/..", "must not lead elsewhere"),
        ("./{date}", "must not lead elsewhere"),
        ("{date}/{reel}", "{reel} is no field (there are {date}, {year}"),
        ("{date}/{}", "{} is no field"),
        ("{date}/{card", "holds '{'"),
        ("{date}/{{card}}", "holds '{'"),
        ("footage", "gives no job a folder of its own"),
        ("{clip}", "gives no job a folder of its own"),
        ("{kind}/{date}", "gives no job a folder of its own"),
        ("{path}", "gives no job a folder of its own"),
        ("{date}/{path}/{clip}", "{path} stands at the end"),
        ("{date}/x{path}", "{path} stands by itself"),
        ("{date}:{card}", "holds ':'"),
        ("{date}\\{card}", "not every disk takes"),
        ("{date}\n", "not every disk takes"),
        ("{date}/CON", "a meaning of its own"),
        ("{date}/AscMHL", "a meaning of its own"),
        ("reports/{date}", "a meaning of its own"),
        ("{date}/.hidden", "a dot or a space"),
        ("{date}./{card}", "a dot or a space"),
        ("{date}/ {card}", "a dot or a space"),
        ("{date}" + "x" * 41, "more than 40 bytes beside its fields"),
        ("{date}" * 40, "at most 200 characters"),
        ("/".join(["{date}"] * 9), "9 folders deep"),
    ],
)
def test_a_layout_that_could_not_hold_a_card_is_refused(layout: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        Template.parse(layout)


@pytest.mark.parametrize("value", NASTY)
def test_whatever_a_field_says_becomes_one_safe_component(value: str) -> None:
    stem = value.encode("utf-8", "surrogateescape").replace(b"/", b"_")
    for layout in ("{card}/{clip}", "{date}_{card}/x {card} {clip}", "{card}/{card}-{clip}"):
        place = (
            named(layout, value)
            + "/"
            + sorted_by(layout, file(stem + b".MP4"))[0].decode("utf-8", "replace")
        )
        components = place.split("/")[:-1]
        assert len(components) == 2
        for component in components[:-1]:
            assert component == unicodedata.normalize("NFC", component)
            assert stored_name(component.encode()) == component.encode(), "a picky disk changes it"
            assert component.isprintable()
            assert 0 < len(component.encode()) <= MAX_COMPONENT_BYTES + 1
            assert not component.startswith(".")
            assert not component.endswith((".", " "))
            assert component.casefold() not in ("ascmhl", "reports", "lost.dir")


# -- the job's folder ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (DEFAULT_LAYOUT, "2026-11-22_A001"),
        ("{date}/{card}", "2026-11-22/A001"),
        ("Footage/{year}/{month}/{day}/{card}", "Footage/2026/11/22/A001"),
        ("{maker} {card}/{time}", "GoPro A001/1234"),
        ("{date}/{card}/{clip}", "2026-11-22/A001"),
        ("{date}/{card}/{kind}/{date}", "2026-11-22/A001"),
    ],
)
def test_the_fields_of_a_job_name_its_folder(layout: str, name: str) -> None:
    assert named(layout) == name


@pytest.mark.parametrize(
    ("layouts", "maker"),
    [
        (("Sony XAVC",), "Sony_XAVC"),
        (("DCIM", "DJI"), "DJI"),
        (("DJI", "GoPro"), "unknown"),
        (("unknown",), "unknown"),
        ((), "unknown"),
    ],
)
def test_a_maker_is_named_where_it_is_known(layouts: tuple[str, ...], maker: str) -> None:
    assert named("{maker}", layouts=layouts) == maker


def test_a_long_label_leaves_the_day_whole() -> None:
    name = named("{card}_{date}", "x" * 255)
    assert name.endswith("x_2026-11-22")
    assert len(name.encode()) == MAX_COMPONENT_BYTES


# -- sorting -------------------------------------------------------------------------


def test_files_keep_the_card_s_folders_unless_something_sorts_them() -> None:
    for layout in (DEFAULT_LAYOUT, "{date}/{card}", "{date}/{path}"):
        clip = file(b"DCIM/\xff/GX010001.MP4")
        assert sorted_by(layout, clip) == [clip.path]
        template = Template.parse(layout)
        assert template.sorting(job_values(NOON, "A001", ()), ()) == AS_ON_THE_CARD


def test_files_are_sorted_as_the_layout_says() -> None:
    clip = file("DCIM/100GOPRO/GX010001.MP4")
    proxy = file("DCIM/100GOPRO/GL010001.LRV", "DCIM/100GOPRO/GX010001.MP4", FileKind.PROXY)
    assert sorted_by("{date}/{clip}", clip, proxy) == [
        b"GX010001/GX010001.MP4",
        b"GX010001/GL010001.LRV",
    ]
    assert sorted_by("{date}/{card}_{kind}/{path}", clip, proxy) == [
        b"A001_media/DCIM/100GOPRO/GX010001.MP4",
        b"A001_proxy/DCIM/100GOPRO/GL010001.LRV",
    ]
    assert sorted_by("{date}/{clip}/{kind}", proxy) == [b"GX010001/proxy/GL010001.LRV"]
    assert sorted_by("{card}/{clip_date}", clip) == [b"2026-11-22/GX010001.MP4"]


def test_a_clip_s_day_is_that_of_its_first_file_in_the_job_s_zone() -> None:
    first = file("A.MP4")
    later = CardFile(b"B.MP4", FileKind.MEDIA, 1, SHOT_NS + 86_400_000_000_000, b"A.MP4")
    for offset_s, day in ((0, b"2026-11-22"), (-3600, b"2026-11-21"), (50_400, b"2026-11-22")):
        places = Places("{clip_date}", offset_s, [first, later])
        assert [places.of(each) for each in (first, later)] == [day + b"/A.MP4", day + b"/B.MP4"]


def test_a_time_that_no_calendar_has_is_said_to_be_none() -> None:
    for mtime_ns in (2**70, -(2**66)):
        odd = CardFile(b"A.MP4", FileKind.MEDIA, 1, mtime_ns, b"A.MP4")
        assert Places("{clip_date}", 0, [odd]).of(odd) == b"undated/A.MP4"


def test_what_belongs_to_no_clip_stays_where_it_was_on_the_card() -> None:
    loose = file("MISC/version.txt", None, FileKind.METADATA)
    assert sorted_by("{date}/{clip}", loose) == [b"MISC/version.txt"]
    assert sorted_by("{date}/{kind}", loose) == [b"metadata/version.txt"]


@pytest.mark.parametrize("layout", ["Panasonic P2", "AVCHD", "Sony XDCAM", "Sony XAVC", "RED"])
def test_a_card_that_makes_sense_only_whole_is_never_sorted(layout: str) -> None:
    clip = file("CONTENTS/VIDEO/0001AB.MXF")
    assert sorted_by("{date}/{clip}/{kind}", clip, layouts=(layout, "DCIM")) == [clip.path]


def test_every_layout_of_a_maker_is_either_whole_or_may_be_sorted() -> None:
    """A new one is whole until somebody knows better."""
    clip = file("A/B.MP4")
    for layout in Layout:
        (place,) = sorted_by("{date}/{clip}", clip, layouts=(layout.value,))
        assert place in (b"B/B.MP4", b"A/B.MP4")


def test_two_clips_of_one_name_come_to_one_folder_and_keep_their_names() -> None:
    """What tells them apart there is the rule for a second name."""
    places = sorted_by("{date}/{clip}", file("100/A.MP4"), file("101/A.MP4"), file("102/a.mp4"))
    assert places == [b"A/A.MP4", b"A/A.MP4", b"a/a.mp4"]
    assert len({folded(place) for place in places}) == 1
