"""Every maker's card is understood, and whatever lies on one stays whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.footage import FILE_KINDS, CardFile, FileKind, kind_of
from domain.layouts import (
    RULES,
    Clip,
    Contents,
    Layout,
    Link,
    Neighbour,
    Span,
    contents_of,
)
from tests.cards import EXAMPLES, CardExample, Take

DOCUMENT = Path(__file__).parents[2] / "docs" / "cards.md"


def inventory(*paths: str | bytes) -> list[CardFile]:
    encoded = [path.encode() if isinstance(path, str) else path for path in paths]
    return [CardFile(path, kind_of(path), 10, 5) for path in encoded]


def understood(*paths: str | bytes) -> Contents:
    return contents_of(inventory(*paths))


def seen(card: CardExample, spelt: Callable[[str], str] = str) -> Contents:
    folders = [CardFile(spelt(path).encode(), FileKind.FOLDER, 0, 0) for path in card.folders]
    return contents_of([*inventory(*map(spelt, card.paths)), *folders])


def take_of(clip: Clip) -> Take:
    groups = (clip.media, clip.proxies, clip.thumbnails, clip.sidecars)
    return Take(*(tuple(file.path.decode() for file in files) for files in groups))


def takes(contents: Contents) -> list[Take]:
    return [take_of(clip) for clip in contents.clips]


def spelt_takes(card: CardExample, spelt: Callable[[str], str] = str) -> list[Take]:
    """What is to be found, in the order in which it is."""
    groups = [(take.media, take.proxies, take.thumbnails, take.sidecars) for take in card.takes]
    return sorted(
        (Take(*(tuple(map(spelt, paths)) for paths in group)) for group in groups),
        key=lambda take: take.media[0],
    )


def loose(contents: Contents) -> dict[str, FileKind]:
    """Files without a clip, with their kinds."""
    return {
        file.path.decode(): file.kind for file in contents.loose if file.kind is not FileKind.FOLDER
    }


EMPTY_FOLDER = CardFile(b"CONTENTS/VOICE", FileKind.FOLDER, 0, 0)


# -- what can go wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"\xff\xfe.MP4",
        b"DCIM/100GOPRO/GX01\n0001.MP4",
        b"DCIM/100GOPRO/GX010001.MP4\n",
        b"DCIM\n/100GOPRO/GX010001.MP4",
        b"CONTENTS/VIDEO/\x00\x00\x00\x00\x00\x00.MXF",
        b"x/" * 2_000 + b"C0001.MP4",
        b"A" * 255,
        b"_CANON" * 40 + b".MP4",
        b".MP4",
        b"DCIM/.MP4",
        b"A.RDC/A",
        b".RDC/.R3D",
    ],
)
def test_a_hostile_name_is_a_clip_or_a_file_of_its_own(path: bytes) -> None:
    contents = understood(path, b"DCIM/100GOPRO/GX010001.MP4")
    assert sorted(file.path for file in contents.files()) == sorted(
        [path, b"DCIM/100GOPRO/GX010001.MP4"]
    )
    assert [len(clip.files) for clip in contents.clips] in ([1], [1, 1])


def test_nothing_is_nothing() -> None:
    assert contents_of([]) == Contents((), (), ())


@pytest.mark.parametrize("kind", sorted(set(FileKind) - FILE_KINDS))
def test_what_is_no_file_is_in_no_clip(kind: FileKind) -> None:
    odd = CardFile(b"DCIM/100GOPRO/GX020001.MP4", kind, 0, 0, None, "a socket, no file")
    contents = contents_of([*inventory("DCIM/100GOPRO/GX010001.MP4"), odd])
    assert takes(contents) == [Take(("DCIM/100GOPRO/GX010001.MP4",))]
    assert contents.loose == (odd,)


def test_a_proxy_that_two_clips_could_claim_is_nobody_s() -> None:
    folder = "DCIM/100GOPRO"
    contents = understood(
        f"{folder}/GH010001.MP4",
        f"{folder}/GX010001.MP4",
        f"{folder}/GX020001.MP4",
        f"{folder}/GL010001.LRV",
        f"{folder}/GL020001.LRV",
        f"{folder}/GX010001.THM",
    )
    assert takes(contents) == [
        Take((f"{folder}/GH010001.MP4",)),
        Take(
            (f"{folder}/GX010001.MP4", f"{folder}/GX020001.MP4"),
            (f"{folder}/GL020001.LRV",),
            (f"{folder}/GX010001.THM",),
        ),
    ]
    assert loose(contents) == {f"{folder}/GL010001.LRV": FileKind.PROXY}


def test_what_a_clip_s_media_has_left_behind_is_loose() -> None:
    contents = understood(
        "DCIM/100GOPRO/GL010001.LRV",
        "DCIM/100GOPRO/GX010001.THM",
        "PRIVATE/M4ROOT/SUB/C0001S03.MP4",
        "CONTENTS/ICON/0001AB.BMP",
    )
    assert contents.clips == ()
    assert set(loose(contents).values()) == {FileKind.PROXY, FileKind.THUMBNAIL}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("DCIM/100GOPRO/GX010001.MP4", "DCIM/101GOPRO/GX020001.MP4"),
        ("DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX010002.MP4"),
        ("DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX0001.MP4"),
        ("DCIM/100GOPRO/GOPR0001.MP4", "DCIM/100GOPRO/GX010001.MP4"),
        ("DCIM/100GOPRO/GXAA0001.MP4", "DCIM/100GOPRO/GXAA0002.MP4"),
        ("DCIM/100GOPRO/GXAA0001.MP4", "DCIM/100GOPRO/GX010001.MP4"),
        ("DCIM/100CANON/MVI_0001.MP4", "DCIM/101CANON/MVI_0001.MP4"),
        ("DCIM/100MEDIA/DJI_0001.MP4", "DCIM/101MEDIA/DJI_0001.MP4"),
        (
            "DCIM/Camera01/VID_20220110_121609_00_657.insv",
            "DCIM/Camera01/VID_20220110_121609_10_658.insv",
        ),
        (
            "DCIM/Camera01/VID_20220110_121609_00_657.insv",
            "DCIM/Camera01/IMG_20220110_121609_00_657.insp",
        ),
        ("PRIVATE/M4ROOT/CLIP/C0001.MP4", "M4ROOT/CLIP/C0001.MP4"),
        ("PRIVATE/M4ROOT/CLIP/C0001.MP4", "PRIVATE/M4ROOT/CLIP/C0001.MXF"),
        ("PRIVATE/XDROOT/Clip/C0001.MXF", "PRIVATE/XDROOT/Clip/deeper/C0001.MXF"),
        ("CONTENTS/VIDEO/0001AB.MXF", "CONTENTS/VIDEO/deeper/0001AB.MXF"),
        ("CONTENTS/VIDEO/0001AB.MXF", "CONTENTS/AUDIO/0002AB00.MXF"),
        ("CONTENTS/VIDEO/0001AB.MXF", "x/CONTENTS/AUDIO/0001AB00.MXF"),
        ("CONTENTS/CLIPS001/AA0001/AA000101.MXF", "CONTENTS/CLIPS002/AA0001/AA000102.MXF"),
        ("A.RDM/A_C001.RDC/A_C001_001.R3D", "A.RDM/A_C002.RDC/A_C002_002.R3D"),
        ("A.RDM/A_C001.RDC/A_C001_001.R3D", "A.RDM/A_C001.RDC/A_C0011_002.R3D"),
        ("A/A_0001C001X_CANON_001.MP4", "B/A_0001C001X_CANON_002.MP4"),
        ("IMG_20230101_123456.dng", "IMG_20230101_123457.dng"),
        ("a/take.mov", "a/take.mp4"),
        ("a/take.mov", "b/take.mov"),
    ],
)
def test_what_only_looks_alike_is_two_clips(one: str, other: str) -> None:
    assert len(understood(one, other).clips) == 2


def test_a_card_that_tells_capitals_apart_is_read_so() -> None:
    contents = understood("DCIM/a/IMG_1.JPG", "DCIM/a/img_1.jpg", "DCIM/a/IMG_1.xmp")
    assert takes(contents) == [
        Take(("DCIM/a/IMG_1.JPG",), sidecars=("DCIM/a/IMG_1.xmp",)),
        Take(("DCIM/a/img_1.jpg",)),
    ]


# -- what makers write ----------------------------------------------------------------


def test_every_layout_has_an_example() -> None:
    assert {layout for build in EXAMPLES for layout in build().layouts} == set(Layout)


@pytest.mark.parametrize("build", EXAMPLES)
def test_a_maker_s_card_is_seen_as_its_clips(build: Callable[[], CardExample]) -> None:
    card = build()
    contents = seen(card)
    assert takes(contents) == spelt_takes(card)
    assert loose(contents) == card.loose
    assert set(contents.layouts) == set(card.layouts)


@pytest.mark.parametrize("build", EXAMPLES)
def test_a_card_is_the_same_in_small_letters(build: Callable[[], CardExample]) -> None:
    """A FAT card's names come in whatever case the system that mounts it likes."""
    card = build()
    contents = seen(card, str.lower)
    assert takes(contents) == spelt_takes(card, str.lower)
    assert set(contents.layouts) == set(card.layouts)


@pytest.mark.parametrize("build", EXAMPLES)
def test_a_card_that_was_copied_into_a_folder_is_seen_as_itself(
    build: Callable[[], CardExample],
) -> None:
    def within(path: str) -> str:
        return f"day 1/A001/{path}"

    card = build()
    contents = seen(card, within)
    assert takes(contents) == spelt_takes(card, within)
    assert set(contents.layouts) == set(card.layouts)


@pytest.mark.parametrize(
    "names",
    [
        ("100GOPRO/GX010001.MP4", "100GOPRO/GX020001.MP4", "100GOPRO/GL010001.LRV"),
        ("100CANON/IMG_0001.CR3", "100CANON/IMG_0001.JPG"),
        (
            "Camera01/VID_20220110_121609_00_657.insv",
            "Camera01/VID_20220110_121609_10_657.insv",
        ),
        ("CLIP/C0001.MP4", "CLIP/C0001.XML"),
    ],
)
def test_a_part_of_a_card_is_understood_too(names: tuple[str, ...]) -> None:
    assert len(understood(*names).clips) == 1
    assert understood(*names).loose == ()


def test_all_makers_cards_on_one_are_seen_as_each_by_itself() -> None:
    cards = [build() for build in EXAMPLES]
    paths = {path for card in cards for path in card.paths}
    contents = understood(*paths)
    by_first = {take.media[0]: take for take in takes(contents)}
    for card in cards:
        for take in card.takes:
            assert by_first[take.media[0]] == take
    assert set(contents.layouts) == set(Layout)


def test_an_empty_structure_shows_whose_card_it_is() -> None:
    contents = contents_of([EMPTY_FOLDER])
    assert contents.layouts == (Layout.P2,)
    assert contents.loose == (EMPTY_FOLDER,)


def test_frames_of_one_clip_come_in_their_order() -> None:
    frames = [f"R/A001C001_220101_R1AB/A001C001_220101_R1AB.{n:07}.ari" for n in range(500)]
    (clip,) = understood(*reversed(frames)).clips
    assert take_of(clip).media == tuple(frames)


def test_a_clip_is_known_by_its_first_file() -> None:
    contents = understood("DCIM/100GOPRO/GX020001.MP4", "DCIM/100GOPRO/GX010001.MP4")
    (clip,) = contents.clips
    assert clip.id == b"DCIM/100GOPRO/GX010001.MP4"
    assert clip.name == b"GX010001"
    assert {file.clip for file in clip.files} == {clip.id}


def p2_clips(*names: str, unit: str = "CONTENTS") -> list[CardFile]:
    return inventory(
        *(f"{unit}/{path}" for n in names for path in (f"VIDEO/{n}.MXF", f"CLIP/{n}.XML"))
    )


def span(name: str, previous: str = "", next: str = "") -> Span:
    beside = (Neighbour(each, f"clip {each}") if each else None for each in (previous, next))
    return Span(name, *beside)


def spanned(files: list[CardFile], *spans: tuple[str, Span]) -> list[list[str]]:
    """The names of each clip's media."""
    contents = contents_of(files, spans={f"{path}.XML".encode(): said for path, said in spans})
    assert sorted(file.path for file in contents.files()) == sorted(file.path for file in files)
    return [
        [file.path.rpartition(b"/")[2][:6].decode() for file in clip.media]
        for clip in contents.clips
    ]


CLIP = "CONTENTS/CLIP/"


@pytest.mark.parametrize(
    "spans",
    [
        [("0001AB", span("1", next="2"))],  # the other one says nothing
        [("0001AB", span("1", next="2")), ("0002CD", span("2"))],
        [("0001AB", span("1")), ("0002CD", span("2", "1"))],
        [("0001AB", span("1", next="2")), ("0002CD", span("2", "3")), ("0003EF", span("3"))],
        [("0001AB", span("1", "1", "1")), ("0002CD", span("2"))],
        [("0001AB", span("1", "2", "2")), ("0002CD", span("2", "1", "1"))],  # in a circle
        [("0001AB", span("1", next="2")), *((n, span("2", "1")) for n in ("0002CD", "0003EF"))],
        [("0009ZZ", span("1", next="2")), ("0002CD", span("2", "1"))],
    ],
)
def test_what_only_one_of_two_clips_says_joins_nothing(spans: list[tuple[str, Span]]) -> None:
    files = p2_clips("0001AB", "0002CD", "0003EF")
    told = [(CLIP + name, said) for name, said in spans]
    assert spanned(files, *told) == [["0001AB"], ["0002CD"], ["0003EF"]]


def test_clips_of_one_recording_are_one_in_the_order_in_which_it_plays() -> None:
    files = p2_clips("0001AB", "0002CD", "0003EF", "0004GH")
    assert spanned(
        files,
        (CLIP + "0001AB", span("1", "4")),
        (CLIP + "0002CD", span("2", "", "4")),
        (CLIP + "0003EF", span("3")),
        (CLIP + "0004GH", span("4", "2", "1")),
    ) == [["0002CD", "0004GH", "0001AB"], ["0003EF"]]


def test_a_recording_does_not_go_on_in_another_copy_of_its_card() -> None:
    files = p2_clips("0001AB", unit="day/CONTENTS") + p2_clips("0002CD", unit="copy/CONTENTS")
    assert spanned(
        files,
        ("day/CONTENTS/CLIP/0001AB", span("1", next="2")),
        ("copy/CONTENTS/CLIP/0002CD", span("2", "1")),
    ) == [["0002CD"], ["0001AB"]]


# -- whatever there is -----------------------------------------------------------------

FOLDERS = (
    "DCIM/100GOPRO",
    "DCIM/101GOPRO",
    "DCIM/100MEDIA",
    "DCIM/DJI_001",
    "MISC/THM/100",
    "DCIM/Camera01",
    "DCIM/100CANON",
    "DCIM",
    "PRIVATE/M4ROOT/CLIP",
    "PRIVATE/M4ROOT/SUB",
    "PRIVATE/M4ROOT/THMBNL",
    "PRIVATE/M4ROOT",
    "XDROOT/Clip",
    "CONTENTS/VIDEO",
    "CONTENTS/AUDIO",
    "CONTENTS/CLIP",
    "CONTENTS/PROXY",
    "CONTENTS/CLIPS001",
    "CONTENTS/CLIPS001/AA0001",
    "PRIVATE/AVCHD/BDMV/STREAM",
    "PRIVATE/AVCHD/BDMV/CLIPINF",
    "A001.RDM/A001_C001.RDC",
    "x/DCIM/100MEDIA",
    "x/MISC/THM/100",
    "x/CONTENTS/VIDEO",
    "x/CONTENTS/AUDIO",
    "100GOPRO",
    "a",
    "a/Proxy",
    "",
)
STEMS = (
    *("GX010001", "GX020001", "GH010001", "GL010001", "GS010001", "GXAA0001", "GOPR0001"),
    *("GP010001", "DJI_0001", "VID_20220110_121609_00_657", "VID_20220110_121609_10_657"),
    *("LRV_20220110_121609_11_657", "MVI_0001", "C0001", "C0001M01", "C0001S03", "C0001T01"),
    *("0001AB", "0001AB00", "0001AB01", "AA0001", "AA000101", "AA000102", "00000"),
    *("A001_C001_001", "A001_C001_002", "A001_C001", "X_CANON_001", "X_CANON_002_Proxy"),
    *("A001C001_220101_R1AB", "A001C001_220101_R1AB.0000001", "a_000001", "take", "LASTCLIP"),
)
SUFFIXES = (
    *(".MP4", ".mp4", ".MOV", ".LRV", ".LRF", ".THM", ".SRT", ".XML", ".MXF", ".BMP", ".JPG"),
    *(".MTS", ".CPI", ".R3D", ".RMD", ".ari", ".dng", ".braw", ".sidecar", ".insv", ".360"),
    *(".WAV", ".TXT", ".odd", ""),
)
paths = st.builds(
    lambda folder, stem, suffix: f"{folder}/{stem}{suffix}".lstrip("/").encode(),
    st.sampled_from(FOLDERS),
    st.sampled_from(STEMS),
    st.sampled_from(SUFFIXES),
)
odd_paths = st.lists(
    st.binary(min_size=1, max_size=6).filter(lambda part: b"/" not in part), min_size=1, max_size=3
).map(b"/".join)
cards = st.lists(
    st.tuples(st.one_of(paths, paths, paths, odd_paths), st.sampled_from(FileKind)),
    max_size=40,
    unique_by=lambda entry: entry[0],
)


def built(entries: Sequence[tuple[bytes, FileKind]]) -> list[CardFile]:
    """Mostly files; the kinds of what is none are kept."""
    return [
        CardFile(path, kind_of(path) if kind in FILE_KINDS else kind, len(path), 5)
        for path, kind in entries
    ]


@given(cards)
@example([(b"a/take.mov", FileKind.MEDIA), (b"a/Proxy/take.mov", FileKind.MEDIA)])
def test_clips_and_loose_files_are_always_the_inventory(
    entries: list[tuple[bytes, FileKind]],
) -> None:
    files = built(entries)
    contents = contents_of(files)
    found = list(contents.files())
    assert sorted((file.path, file.size_bytes, file.mtime_ns) for file in found) == sorted(
        (file.path, file.size_bytes, file.mtime_ns) for file in files
    )
    kinds = {file.path: file.kind for file in files}
    for file in found:
        # Neither does a file become litter, nor litter a file.
        assert (file.kind in FILE_KINDS) == (kinds[file.path] in FILE_KINDS)


@given(cards, st.data())
def test_whatever_an_index_says_clips_and_loose_files_are_the_inventory(
    entries: list[tuple[bytes, FileKind]], data: st.DataObject
) -> None:
    files = built(entries)
    names = st.sampled_from([file.path for file in files] or [b"nothing.MP4"]) | odd_paths
    kinds = st.sampled_from([FileKind.PROXY, FileKind.THUMBNAIL, FileKind.SIDECAR])
    linked = data.draw(st.dictionaries(names, st.builds(Link, names, kinds), max_size=10))
    ids = st.sampled_from("123")
    beside = st.none() | st.builds(Neighbour, ids, ids)
    spans = data.draw(st.dictionaries(names, st.builds(Span, ids, beside, beside), max_size=10))
    contents, without = contents_of(files, linked, spans), contents_of(files)
    assert sorted(file.path for file in contents.files()) == sorted(file.path for file in files)
    for clip in contents.clips:
        assert clip.media
        assert {file.clip for file in clip.files} == {clip.id}
    # What is a recording with something beside it stays one, or becomes part of one.
    assert {clip.id for clip in without.clips if len(clip.files) > 1} <= {
        file.path for clip in contents.clips for file in clip.media
    }


@given(cards, st.randoms(use_true_random=False))
def test_the_order_of_the_inventory_makes_no_difference(
    entries: list[tuple[bytes, FileKind]], random: object
) -> None:
    files = built(entries)
    shuffled = list(files)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert contents_of(shuffled) == contents_of(files)


@given(cards)
def test_every_clip_has_media_and_every_file_says_its_clip(
    entries: list[tuple[bytes, FileKind]],
) -> None:
    contents = contents_of(built(entries))
    ids = [clip.id for clip in contents.clips]
    assert ids == sorted(set(ids))
    for clip in contents.clips:
        assert clip.media
        assert {file.clip for file in clip.files} == {clip.id}
        assert {file.kind for file in clip.media} == {FileKind.MEDIA}
        assert {file.kind for file in clip.proxies} <= {FileKind.PROXY}
        assert {file.kind for file in clip.thumbnails} <= {FileKind.THUMBNAIL}
    for file in contents.loose:
        assert file.clip is None
        assert file.kind is not FileKind.MEDIA


@given(cards)
def test_understanding_what_was_understood_changes_nothing(
    entries: list[tuple[bytes, FileKind]],
) -> None:
    """What the store keeps can be grouped again at any later time."""
    contents = contents_of(built(entries))
    assert contents_of(contents.files()) == contents


@given(cards)
def test_media_is_never_merged_across_folders_but_in_structures(
    entries: list[tuple[bytes, FileKind]],
) -> None:
    for clip in contents_of(built(entries)).clips:
        folders = {file.path.rpartition(b"/")[0].upper() for file in clip.media}
        assert len(folders) == 1 or folders in (
            {b"CONTENTS/VIDEO", b"CONTENTS/AUDIO"},
            {b"X/CONTENTS/VIDEO", b"X/CONTENTS/AUDIO"},
        )


def test_the_document_tells_the_same() -> None:
    table = [
        f"| {layout.value} | {place} | {grouping} |" for layout, (place, grouping) in RULES.items()
    ]
    assert set(RULES) == set(Layout)
    missing = [line for line in table if line not in DOCUMENT.read_text()]
    assert missing == []
