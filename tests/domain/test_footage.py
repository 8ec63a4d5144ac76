"""Names that cards really carry, and how they are shown, told apart and recognised."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.footage import (
    COPIED_KINDS,
    DAY_NS,
    FILE_KINDS,
    LAST_TIME_NS,
    QUARTER_HOUR_NS,
    FileKind,
    is_junk,
    is_time_kept,
    kept_time,
    kind_of,
    same_moment,
    same_time,
    shown,
)

NASTY = [
    b"",
    b"C0001.MP4",
    "Klappe 3 – Tür.mov".encode(),
    "日本語.mp4".encode(),
    b"tab\there",
    b"line\nbreak",
    b"line\\nbreak",
    b"esc\x1b[2J",
    b"\\x1b[2J",
    b"\xff\xfe",
    b"\\xff\\xfe",
    b"\xc3\x28",
    b"\xc2\x80",
    b"\x80",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x8e\xac",
    "left\u202eright".encode(),
    "zero\u200bwidth".encode(),
    "no\u00a0break".encode(),
    "line\u2028separator".encode(),
    b"back\\slash",
    b"back\\\\slash",
    b"nul\x00",
    b"del\x7f",
    b"trailing ",
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"C0001.MP4", "C0001.MP4"),
        ("Tür 3.mov".encode(), "Tür 3.mov"),
        (b"a\nb", r"a\x0ab"),
        (b"\x1b[2J", r"\x1b[2J"),
        (b"\xff.mp4", r"\xff.mp4"),
        (b"a\\b", r"a\\b"),
        ("a\u202eb".encode(), r"a\xe2\x80\xaeb"),
        ("a\u2028b".encode(), r"a\xe2\x80\xa8b"),
    ],
)
def test_a_name_is_shown_as_text_with_what_cant_be_shown_as_bytes(name: bytes, text: str) -> None:
    assert shown(name) == text


def test_different_names_are_shown_differently() -> None:
    assert len({shown(name) for name in NASTY}) == len(NASTY)


names = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from([b"\\", b"x", b"5", b"c", b"\x5c", b"\xc2", b"\x80", b" "])).map(
        b"".join
    ),
)


@given(names)
@example(b"\xed\xa0\x80")
def test_whatever_its_bytes_a_name_is_shown_printable_and_encodable(name: bytes) -> None:
    text = shown(name)
    assert text.isprintable()
    text.encode("utf-8")


@given(names, names)
@example(b"\\x80", b"\x80")
@example(b"\xc2\x80", b"\x80")
def test_two_different_names_never_show_the_same(one: bytes, other: bytes) -> None:
    assert (shown(one) == shown(other)) == (one == other)


@given(names)
def test_the_bytes_can_be_read_back_from_what_is_shown(name: bytes) -> None:
    read, rest = bytearray(), shown(name)
    while rest:
        if rest.startswith("\\x"):
            read.append(int(rest[2:4], 16))
            rest = rest[4:]
        elif rest.startswith("\\\\"):
            read += b"\\"
            rest = rest[2:]
        else:
            read += rest[0].encode()
            rest = rest[1:]
    assert bytes(read) == name


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"PRIVATE/M4ROOT/CLIP/C0001.MP4", FileKind.MEDIA),
        (b"DCIM/100GOPRO/GX010001.mp4", FileKind.MEDIA),
        (b"A001_C001.R3D", FileKind.MEDIA),
        (b"IMG_0001.CR3", FileKind.MEDIA),
        (b"sound.WaV", FileKind.MEDIA),
        (b"clip.insv", FileKind.MEDIA),
        (b"DCIM/100GOPRO/GX010001.THM", FileKind.THUMBNAIL),
        (b"DCIM/100GOPRO/GL010001.lrv", FileKind.PROXY),
        (b"DCIM/DJI_001/DJI_0001.LRF", FileKind.PROXY),
        (b"PRIVATE/M4ROOT/CLIP/C0001M01.XML", FileKind.SIDECAR),
        (b"README", FileKind.OTHER),
        (b"archive.zip", FileKind.OTHER),
        (b"folder.mp4/README", FileKind.OTHER),
        (b"name.", FileKind.OTHER),
        (b"", FileKind.OTHER),
        (b"._C0001.MP4", FileKind.JUNK),
        (b"DCIM/.DS_Store", FileKind.JUNK),
        (b"Thumbs.db", FileKind.JUNK),
        (b"THUMBS.DB", FileKind.JUNK),
        (b"\xff\xfe.mov", FileKind.MEDIA),
    ],
)
def test_a_file_is_recognised_by_its_name(path: bytes, kind: FileKind) -> None:
    assert kind_of(path) is kind


def test_only_litter_and_what_is_no_file_stays_on_the_card() -> None:
    left = {FileKind.JUNK, FileKind.LINK, FileKind.SPECIAL, FileKind.FOLDER}
    assert set(FileKind) - COPIED_KINDS == left


def test_what_cant_be_read_has_to_arrive_all_the_same() -> None:
    no_files = COPIED_KINDS - FILE_KINDS
    assert no_files == {FileKind.UNREADABLE}


@pytest.mark.parametrize("name", [b".Trashes", b".trashes", b"System Volume Information", b"._x"])
def test_what_operating_systems_leave_is_junk(name: bytes) -> None:
    assert is_junk(name)


@pytest.mark.parametrize("name", [b"C0001.MP4", b".hidden", b"_._x", b"DCIM"])
def test_what_people_and_cameras_leave_is_not(name: bytes) -> None:
    assert not is_junk(name)


SECOND_NS = 1_000_000_000
SHOT_NS = 1_700_000_000 * SECOND_NS


@pytest.mark.parametrize(
    ("apart_ns", "time", "moment"),
    [
        (0, True, True),
        (2 * SECOND_NS, True, True),
        (2 * SECOND_NS + 1, False, False),
        (60 * SECOND_NS, False, False),
        (QUARTER_HOUR_NS, False, True),
        (QUARTER_HOUR_NS - 2 * SECOND_NS, False, True),
        (QUARTER_HOUR_NS + 2 * SECOND_NS, False, True),
        (QUARTER_HOUR_NS + 2 * SECOND_NS + 1, False, False),
        (QUARTER_HOUR_NS - 2 * SECOND_NS - 1, False, False),
        (5 * QUARTER_HOUR_NS // 2, False, False),
        (23 * QUARTER_HOUR_NS, False, True),
        (DAY_NS, False, True),
        (DAY_NS + 2 * SECOND_NS, False, True),
        (DAY_NS + 2 * SECOND_NS + 1, False, False),
        (DAY_NS + QUARTER_HOUR_NS, False, False),
        (365 * DAY_NS, False, False),
    ],
)
def test_a_time_is_the_same_within_fat_s_steps_and_a_moment_in_any_zone(
    apart_ns: int, time: bool, moment: bool
) -> None:
    for one, other in ((SHOT_NS, SHOT_NS + apart_ns), (SHOT_NS + apart_ns, SHOT_NS)):
        assert same_time(one, other) is time
        assert same_moment(one, other) is moment


def test_a_moment_before_the_epoch_counts_like_any_other() -> None:
    assert same_moment(-QUARTER_HOUR_NS, QUARTER_HOUR_NS)
    assert not same_moment(-SHOT_NS, SHOT_NS)


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
def test_one_time_is_always_one_moment(one: int, other: int) -> None:
    assert same_moment(one, one)
    assert same_moment(one, other) == same_moment(other, one)
    if same_time(one, other):
        assert same_moment(one, other)


@given(st.integers(-(2**70), 2**70))
def test_a_file_s_time_is_the_one_that_is_kept_of_it(mtime_ns: int) -> None:
    kept = kept_time(mtime_ns)
    assert -(2**63) < kept < 2**63
    assert kept == mtime_ns or not is_time_kept(kept)
    assert same_time(mtime_ns, kept)
    assert same_moment(kept, mtime_ns)


def test_times_near_the_last_one_are_told_apart() -> None:
    assert not same_time(LAST_TIME_NS, LAST_TIME_NS - 3 * 10**9)
    assert not same_time(2**70, -(2**70))
    assert not same_moment(2**70, -(2**70))
