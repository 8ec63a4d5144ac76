"""Whose card it is, and which of its files make one clip.

What decides
    Names and folders, by the makers' layouts. The indexes that cameras leave (databases,
    playlists) go stale, and a clip that one doesn't list would be lost to sight. So one
    may at most say where a file belongs that has no clip by its name (``linked``). A card
    may hold several layouts at once, so every file is looked at by itself.

How files find together
    Each file makes a *claim*: its kind, the key of the clip that it belongs to, its
    part in it and, where several clips could share a key, its *strand*. A GoPro's
    ``GX010042.MP4`` says: media of clip 0042, chapter 1, strand X; its proxy
    ``GL010042.LRV``: of clip 0042, chapter 1, and nothing of the strand. Files with
    one key are one clip as long as their media are of one strand. Otherwise each strand
    is a clip, and what doesn't say its strand goes to the one that alone has its part,
    or to none. The folder is part of every key: counters restart, and the same name in
    two folders is two clips.

What is never done
    No file is dropped, and none is merged on a guess: what isn't understood is a clip
    or a file of its own. Clips and loose files together are always the inventory,
    in whatever order it came.

FAT and exFAT don't tell capitals from small letters, so neither do we, unless the
card itself holds two names that differ in nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from domain.footage import FILE_KINDS, CardFile, FileKind, kind_of


class Layout(StrEnum):
    """What makers write. ``unknown`` is copied like all the others."""

    GOPRO = "GoPro"
    GOPRO_360 = "GoPro 360"
    DJI = "DJI"
    INSTA360 = "Insta360"
    SONY_XAVC = "Sony XAVC"
    SONY_XDCAM = "Sony XDCAM"
    P2 = "Panasonic P2"
    AVCHD = "AVCHD"
    CANON = "Canon"
    CANON_CINEMA = "Canon Cinema"
    CANON_XF = "Canon XF"
    RED = "RED"
    ARRI = "ARRI"
    BLACKMAGIC = "Blackmagic"
    DCIM = "DCIM"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Clip:
    """What was recorded between one start and stop, with what the camera wrote beside it.

    media: in the order in which it plays; at least one file.
    """

    layout: Layout
    media: tuple[CardFile, ...]
    proxies: tuple[CardFile, ...] = ()
    thumbnails: tuple[CardFile, ...] = ()
    sidecars: tuple[CardFile, ...] = ()

    @property
    def id(self) -> bytes:
        """Unique on its card, and the same at every scan: the path of its first media file."""
        return self.media[0].path

    @property
    def name(self) -> bytes:
        """What people call it: the first media file's name without its suffix."""
        return _stem(self.id.rpartition(b"/")[2])

    @property
    def files(self) -> tuple[CardFile, ...]:
        return self.media + self.proxies + self.thumbnails + self.sidecars


@dataclass(frozen=True, slots=True)
class Contents:
    """A card's inventory, understood as far as it can be.

    clips: in the order of their ids. loose: all that belongs to no clip, by path.
    """

    layouts: tuple[Layout, ...]
    clips: tuple[Clip, ...]
    loose: tuple[CardFile, ...]

    def files(self) -> Iterator[CardFile]:
        """The inventory again, each file with its kind and its clip."""
        for clip in self.clips:
            yield from clip.files
        yield from self.loose


class Link(NamedTuple):
    """What an index on the card says of a file: its recording, by its path, and its kind."""

    media: bytes
    kind: FileKind


class Neighbour(NamedTuple):
    """The clip that a recording came from or goes on in. called: so that people find it."""

    id: str
    called: str


class Span(NamedTuple):
    """What a clip's own index says of the recording that it may be only a part of."""

    id: str
    previous: Neighbour | None
    next: Neighbour | None


def contents_of(
    files: Iterable[CardFile],
    linked: Mapping[bytes, Link] | None = None,
    spans: Mapping[bytes, Span] | None = None,
) -> Contents:
    """Understand an inventory: whole, with each path once, in any order.

    linked: by path, what indexes say; perhaps wrongly, perhaps of files that aren't there.
    spans: by their paths, what clips' own indexes do.
    """
    inventory = sorted(files, key=lambda file: file.path)
    fold = _fold(inventory)
    layouts: set[Layout] = set()
    groups: dict[_Key, list[_Claimed]] = {}
    loose: list[CardFile] = []
    places: dict[bytes, _Place] = {}
    for file in inventory:
        path = fold(file.path)
        if file.kind not in FILE_KINDS:
            if file.kind is FileKind.FOLDER:
                layouts.update(filter(None, [_place(path).layout]))
            loose.append(file)
            continue
        folder, _, name = path.rpartition(b"/")
        place = places.get(folder)
        if place is None:
            place = places[folder] = _place(folder)
        claim = place.claim(name)
        if claim.layout is not None:
            layouts.add(claim.layout)
        if claim.key is None:
            loose.append(_as(file, claim.kind, None))
        else:
            group = groups.get(claim.key)
            if group is None:
                groups[claim.key] = [_Claimed(claim, file)]
            else:
                group.append(_Claimed(claim, file))
    clips: list[Clip] = []
    # Of a large card there is no room to hold it all twice: what has become a clip can go.
    divided = [*groups.values()]
    del inventory, groups
    divided.reverse()
    while divided:
        _divide(divided.pop(), clips, loose)
    if linked:
        clips, loose = _joined(clips, loose, {fold(path): to for path, to in linked.items()}, fold)
    if spans:
        clips = _spanned(clips, spans)
    clips.sort(key=lambda clip: clip.id)
    loose.sort(key=lambda file: file.path)
    layouts.update(clip.layout for clip in clips)
    return Contents(tuple(sorted(layouts)), tuple(clips), tuple(loose))


# -- claims ----------------------------------------------------------------------

_Key = tuple[bytes, ...]


class _Claim(NamedTuple):
    """What a file says of itself.

    layout: whose card it shows; None for what any card may have.
    key: the clip's; None for what belongs to none. part: its place in the order of the
    clip's media. guessed: it is a proxy only if there is something that it stands for.
    """

    layout: Layout | None
    kind: FileKind
    key: _Key | None = None
    part: tuple[int, ...] = ()
    strand: bytes | None = None
    guessed: bool = False


class _Claimed(NamedTuple):
    claim: _Claim
    file: CardFile


def _divide(group: Sequence[_Claimed], clips: list[Clip], loose: list[CardFile]) -> None:
    """Make clips of what has one key; what finds none of them stays loose."""
    if len(group) == 1:  # as most stills are
        claim, file = group[0]
        if claim.kind is FileKind.MEDIA or claim.guessed:
            alone = _as(file, FileKind.MEDIA, file.path)
            clips.append(Clip(claim.layout or Layout.UNKNOWN, (alone,)))
        else:
            loose.append(_as(file, claim.kind, None))
        return
    media = [each for each in group if each.claim.kind is FileKind.MEDIA]
    if not media:
        media = [each for each in group if each.claim.guessed]
    strands: dict[bytes | None, list[_Claimed]] = {}
    parts: dict[tuple[int, ...], set[bytes | None]] = {}
    for each in media:
        strands.setdefault(each.claim.strand, []).append(each)
        parts.setdefault(each.claim.part, set()).add(each.claim.strand)
    beside: dict[bytes | None, list[_Claimed]] = {strand: [] for strand in strands}
    taken = {id(each) for each in media}
    for each in group:
        if id(each) in taken:
            continue
        claim = each.claim
        owners: Collection[bytes | None]
        if claim.strand is not None:
            owners = [claim.strand] if claim.strand in strands else []
        elif len(strands) == 1:
            owners = strands
        else:
            owners = parts.get(claim.part, ())
        if len(owners) == 1:
            beside[next(iter(owners))].append(each)
        else:
            loose.append(_as(each.file, claim.kind, None))
    for strand, found in strands.items():
        clips.append(_clip(found, beside[strand]))


def _clip(media: list[_Claimed], beside: list[_Claimed]) -> Clip:
    media.sort(key=lambda each: (each.claim.part, each.file.path))
    first = media[0]
    name = first.file.path
    of_kind: dict[FileKind, list[CardFile]] = {}
    for each in beside:
        kind = each.claim.kind
        of_kind.setdefault(kind, []).append(_as(each.file, kind, name))
    return Clip(
        first.claim.layout or Layout.UNKNOWN,
        tuple(_as(each.file, FileKind.MEDIA, name) for each in media),
        tuple(of_kind.pop(FileKind.PROXY, ())),
        tuple(of_kind.pop(FileKind.THUMBNAIL, ())),
        tuple(file for files in of_kind.values() for file in files),
    )


def _joined(
    clips: Sequence[Clip],
    loose: Sequence[CardFile],
    linked: Mapping[bytes, Link],
    fold: Callable[[bytes], bytes],
) -> tuple[list[Clip], list[CardFile]]:
    """Files that nobody had by their names, with the clips that an index gives them to.

    That is what is loose, and what is a clip by itself in another folder than its recording:
    an index isn't believed that calls one recording another's proxy.
    """
    owners = {fold(clip.id): clip for clip in clips}
    joining: dict[bytes, list[CardFile]] = {}

    def join(file: CardFile) -> bool:
        link = linked.get(fold(file.path))
        if link is None or fold(link.media) in linked:  # what goes itself takes nobody along
            return False
        owner = owners.get(fold(link.media))
        if owner is None:
            return False
        joining.setdefault(owner.id, []).append(_as(file, link.kind, owner.id))
        return True

    left = [file for file in loose if file.kind not in FILE_KINDS or not join(file)]
    stay = []
    for clip in clips:
        link = linked.get(fold(clip.id)) if len(clip.files) == 1 else None
        is_elsewhere = link is not None and _folder(link.media, fold) != _folder(clip.id, fold)
        if not (is_elsewhere and join(clip.media[0])):
            stay.append(clip)
    return [_with(clip, joining.get(clip.id, ())) for clip in stay], left


def _folder(path: bytes, fold: Callable[[bytes], bytes]) -> bytes:
    return fold(path).rpartition(b"/")[0]


def _spanned(clips: Sequence[Clip], spans: Mapping[bytes, Span]) -> list[Clip]:
    """With the clips that one recording goes on through as one.

    Both neighbours have to say so, each of the other, in one folder of indexes: what a stale
    index, or one that was copied there, says of a clip by itself joins nothing.
    """
    parts: dict[tuple[bytes, str], tuple[Clip, Span]] = {}
    twice: set[tuple[bytes, str]] = set()
    for clip in clips:
        indexes = [file.path for file in clip.sidecars if file.path in spans]
        if len(indexes) == 1:
            span = spans[indexes[0]]
            part = indexes[0].rpartition(b"/")[0], span.id
            twice.update({part} & parts.keys())
            parts[part] = clip, span
    after: dict[bytes, Clip] = {}
    remarks: dict[bytes, list[str]] = {}
    for part, (clip, span) in parts.items():
        if part in twice:
            continue
        for neighbour, how in ((span.previous, "began"), (span.next, "goes on")):
            if neighbour is not None and (part[0], neighbour.id) not in parts:
                said = f"its recording {how} in {neighbour.called}, not found on this card"
                remarks.setdefault(clip.id, []).append(said)
        following = (part[0], span.next.id) if span.next is not None else part
        if following != part and following in parts and following not in twice:
            other, back = parts[following]
            if back.previous is not None and back.previous.id == span.id:
                after[clip.id] = other
    of_others = {clip.id for clip in after.values()}
    joined: list[Clip] = []
    taken: set[bytes] = set()
    for clip in clips:
        if clip.id in of_others:
            continue
        chain = [clip]
        while (following_clip := after.get(chain[-1].id)) is not None:
            chain.append(following_clip)
        taken.update(each.id for each in chain)
        joined.append(_as_one([_remarked(each, remarks.get(each.id, ())) for each in chain]))
    # What goes round in a circle has no beginning: each of it stays as it was.
    return joined + [clip for clip in clips if clip.id not in taken]


def _as_one(chain: Sequence[Clip]) -> Clip:
    if len(chain) == 1:
        return chain[0]
    id = chain[0].id
    groups = zip(*((c.media, c.proxies, c.thumbnails, c.sidecars) for c in chain), strict=True)
    return Clip(
        chain[0].layout,
        *(tuple(_as(file, file.kind, id) for of in group for file in of) for group in groups),
    )


def _remarked(clip: Clip, remarks: Sequence[str]) -> Clip:
    """With what there is to know of it said of its first file."""
    if not remarks:
        return clip
    first, *more = clip.media
    problem = "; ".join(filter(None, (first.problem, *remarks)))
    return replace(clip, media=(replace(first, problem=problem), *more))


def _with(clip: Clip, more: Sequence[CardFile]) -> Clip:
    if not more:
        return clip
    of_kind = {
        kind: tuple(sorted((f for f in more if f.kind is kind), key=lambda file: file.path))
        for kind in (FileKind.PROXY, FileKind.THUMBNAIL, FileKind.SIDECAR)
    }
    return Clip(
        clip.layout,
        clip.media,
        clip.proxies + of_kind[FileKind.PROXY],
        clip.thumbnails + of_kind[FileKind.THUMBNAIL],
        clip.sidecars + of_kind[FileKind.SIDECAR],
    )


def _as(file: CardFile, kind: FileKind, clip: bytes | None) -> CardFile:
    return CardFile(file.path, kind, file.size_bytes, file.mtime_ns, clip, file.problem)


def _fold(inventory: Sequence[CardFile]) -> Callable[[bytes], bytes]:
    """How this card compares names."""
    if len({file.path.lower() for file in inventory}) == len(inventory):
        return bytes.lower
    return bytes


def _stem(name: bytes) -> bytes:
    dot = name.rfind(b".")
    return name[:dot] if dot > 0 else name


def _suffix(name: bytes) -> bytes:
    dot = name.rfind(b".")
    return name[dot:].lower() if dot > 0 else b""


def _regex(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


# -- what names say wherever they are -----------------------------------------------

_CANON_CINEMA = _regex(rb"(.+_CANON)(?:_(\d{2,3}))?(_Proxy)?\.\w+")
_R3D = _regex(rb"(.+)_(\d{3})\.R3D")
_FRAME = _regex(rb"(.+?)[._](\d{6,8})\.(?:ARI|ARX|DNG|DPX)")
_ARRI = _regex(
    rb"[A-Z]\d{3}[CD]\d{3}_\d{6}(?:\d\d)?_[RL][0-9A-Z]{3}(?:[._].*)?"
    rb"|[A-Z][A-Z_]\d{4}[CD]\d{3}_\d{6}_\d{6}_[0-9A-Z]+(?:[._].*)?"
)
_PROXIES = _regex(rb"(?:(.*)/)?Proxy")


def _by_name(folder: bytes, name: bytes, layout: Layout | None) -> _Claim:
    """``layout``: the folder's, if it has one that files with other names may be in."""
    kind = kind_of(name)
    suffix = _suffix(name)
    if found := _CANON_CINEMA.fullmatch(name):
        if kind is FileKind.MEDIA and found[3]:
            kind = FileKind.PROXY
        elif kind is FileKind.OTHER:
            kind = FileKind.SIDECAR
        return _Claim(
            Layout.CANON_CINEMA,
            kind,
            (b"canon", folder, found[1]),
            (int(found[2] or 0),),
            suffix if kind is FileKind.MEDIA else None,
        )
    if suffix == b".r3d" and (found := _R3D.fullmatch(name)):
        return _Claim(Layout.RED, kind, (b"r3d", folder, found[1]), (int(found[2]),))
    if suffix == b".rmd":
        return _Claim(Layout.RED, kind, (b"r3d", folder, _stem(name)))
    if suffix in (b".ari", b".arx", b".dng", b".dpx") and (found := _FRAME.fullmatch(name)):
        is_arri = suffix in (b".ari", b".arx")
        # A phone's IMG_20230101_123456.dng ends in six digits too, and is no frame.
        if is_arri or folder.rpartition(b"/")[2] == found[1]:
            return _Claim(
                Layout.ARRI if is_arri else layout,
                kind,
                (b"frames", folder, found[1], suffix),
                (int(found[2]),),
            )
    if _ARRI.fullmatch(name):
        layout = Layout.ARRI
    elif suffix in (b".braw", b".sidecar"):
        layout = Layout.BLACKMAGIC
    if kind is FileKind.MEDIA:
        proxies = _PROXIES.fullmatch(folder)
        if proxies is not None:
            key = (b"stem", proxies[1] or b"", _stem(name))
            return _Claim(layout, FileKind.PROXY, key, guessed=True)
        return _Claim(layout, kind, (b"stem", folder, _stem(name)), strand=suffix)
    if kind is FileKind.OTHER:
        return _Claim(None, kind)
    return _Claim(None, kind, (b"stem", folder, _stem(name)))


# -- what makers' folders say -------------------------------------------------------
#
# Each reader is given the match of its folder and a name in it, both folded, and answers
# None for a name that isn't of its maker's.

_Reader = Callable[[Layout, re.Match[bytes], bytes], _Claim | None]

_GOPRO = _regex(rb"G([HXSL])(\d\d|[A-Z]{2})(\d{4})\.(MP4|360|LRV|THM|WAV)")
_GOPRO_OLD = _regex(rb"G(?:OPR|P(\d\d))(\d{4})\.(MP4|LRV|THM|WAV)")
_GOPRO_KINDS = {b"lrv": FileKind.PROXY, b"thm": FileKind.THUMBNAIL}


def _gopro(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """Chapters GX01nnnn, GX02nnnn; GL is the proxy's prefix; looped GXAAnnnn stand alone.

    Before the HERO6 the first chapter is GOPRnnnn, and GP01nnnn the second.
    """
    folder = place[0]
    if found := _GOPRO.fullmatch(name):
        camera, chapter, number, suffix = found[1].lower(), found[2], found[3], found[4].lower()
        kind = _GOPRO_KINDS.get(suffix, FileKind.MEDIA)
        if camera == b"l":
            if kind is FileKind.MEDIA:
                return None
            strand = None
        else:
            strand = camera
        looped = not chapter.isdigit()
        key = (b"gopro", folder, chapter if looped else b"", number)
        part = (int(suffix == b"wav"), 0 if looped else int(chapter))
        return _Claim(Layout.GOPRO_360 if camera == b"s" else layout, kind, key, part, strand)
    if found := _GOPRO_OLD.fullmatch(name):
        suffix = found[3].lower()
        part = (int(suffix == b"wav"), int(found[1] or 0))
        kind = _GOPRO_KINDS.get(suffix, FileKind.MEDIA)
        return _Claim(layout, kind, (b"gopro old", folder, found[2]), part)
    return _dcf(layout, place, name)


def _dcf(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """Files of one name are one object: that is DCF's own rule (raw and JPEG, film and THM)."""
    if b"_canon" in name.lower() and _CANON_CINEMA.fullmatch(name):
        return None  # cinema cameras write their own names into DCIM as well
    kind = kind_of(name)
    if kind is FileKind.OTHER:
        return _Claim(None, kind)
    return _Claim(layout, kind, (b"dcf", place[0], _stem(name)))


def _dji(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """As DCF, but thumbnails may lie in MISC/THM under the folder's number."""
    kind = kind_of(name)
    if place[2] is None or kind is FileKind.OTHER:
        return _dcf(layout, place, name)
    return _Claim(layout, kind, (b"dji", place[1], place[2], _stem(name)), strand=place[0])


def _dji_thumbnail(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    if kind_of(name) is FileKind.THUMBNAIL:
        key = (b"dji", place[1], place[2], _stem(name))
        return _Claim(None, FileKind.THUMBNAIL, key)
    return _metadata(layout, place, name)


_INSTA360 = _regex(rb"(VID|IMG|LRV)_(\d{8}_\d{6})_(?:(\d\d)_)?(\d{3,})\.\w+")


def _insta360(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """VID_date_time_00_nnn and _10_nnn are two lenses of one clip, LRV_ is its proxy."""
    found = _INSTA360.fullmatch(name)
    kind = kind_of(name)
    if found is None or kind is FileKind.OTHER:
        return _dcf(layout, place, name)
    prefix = found[1].upper()
    if prefix == b"LRV":
        kind = FileKind.PROXY
    what = b"still" if prefix == b"IMG" else b"film"
    key = (b"insta360", place[0], what, found[2], found[4])
    return _Claim(layout, kind, key, (int(found[3] or 0),))


_SONY_SIDECAR = _regex(rb"(.+)[MR]\d\d\.(?:XML|BIM|KLV)")
_SONY_PROXY = _regex(rb"(.+)S\d\d\.(?:MP4|MXF)")
_SONY_THUMBNAIL = _regex(rb"(.+)T\d\d\.(?:JPG|BMP)")


def _sony(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """CLIP/C0001.MP4 and C0001M01.XML, SUB/C0001S03.MP4, THMBNL/C0001T01.JPG."""
    unit, room = place[1], (place[2] or b"").lower()
    kind = kind_of(name)
    if room == b"clip":
        if kind is FileKind.MEDIA:
            return _Claim(layout, kind, (b"sony", unit, _stem(name)), strand=_suffix(name))
        found = _SONY_SIDECAR.fullmatch(name)
        if found or kind is not FileKind.OTHER:
            key = (b"sony", unit, found[1] if found else _stem(name))
            return _Claim(layout, FileKind.SIDECAR, key)
    if room == b"sub" and (found := _SONY_PROXY.fullmatch(name)):
        return _Claim(layout, FileKind.PROXY, (b"sony", unit, found[1]))
    if room == b"thmbnl" and (found := _SONY_THUMBNAIL.fullmatch(name)):
        return _Claim(layout, FileKind.THUMBNAIL, (b"sony", unit, found[1]))
    return _metadata(layout, place, name)


_P2 = _regex(rb"(.{6})(\d\d)?\.(\w+)")


def _p2(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """VIDEO/0001AB.MXF, its sound AUDIO/0001AB00.MXF to 15, and the other folders' 0001AB."""
    room = place[2].lower()
    found = _P2.fullmatch(name)
    if found is None:
        return _metadata(layout, place, name)
    key = (b"p2", place[1], found[1])
    is_media = kind_of(name) is FileKind.MEDIA
    if room == b"video" and is_media and not found[2]:
        return _Claim(layout, FileKind.MEDIA, key, (0,), strand=_suffix(name))
    if room == b"avclip" and is_media and not found[2]:  # with its sound in it
        return _Claim(layout, FileKind.MEDIA, key, (0,), strand=_suffix(name))
    if room == b"audio" and is_media and found[2]:
        return _Claim(layout, FileKind.MEDIA, key, (1, int(found[2])), strand=_suffix(name))
    if room == b"proxy" and is_media:
        return _Claim(layout, FileKind.PROXY, key)
    if room == b"icon":
        return _Claim(layout, FileKind.THUMBNAIL, key)
    if room in (b"clip", b"proxy", b"voice"):
        return _Claim(layout, FileKind.SIDECAR, key)
    return _metadata(layout, place, name)


_AVCHD = _regex(rb"(.+)\.(MTS|M2TS|CPI)")


def _avchd(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """STREAM/00000.MTS with CLIPINF/00000.CPI. A playlist joins clips, so it is of none."""
    found = _AVCHD.fullmatch(name)
    room = (place[2] or b"").lower()
    if found is not None:
        key = (b"avchd", place[1], found[1])
        suffix = found[2].lower()
        if room == b"stream" and suffix != b"cpi":
            return _Claim(layout, FileKind.MEDIA, key, strand=suffix)
        if room == b"clipinf" and suffix == b"cpi":
            return _Claim(layout, FileKind.SIDECAR, key)
    return _metadata(layout, place, name)


def _canon_xf(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """CLIPS001/AA0001/AA000101.MXF, AA000102.MXF..., with AA0001's other files."""
    clip = place[1]
    if clip is None or not name.startswith(clip):
        return None
    key = (b"canon xf", place[0])
    kind = kind_of(name)
    if kind is FileKind.MEDIA:
        part = _stem(name)[len(clip) :]
        if not re.fullmatch(rb"\d\d", part):
            return None
        return _Claim(layout, kind, key, (int(part),), strand=_suffix(name))
    if kind is not FileKind.THUMBNAIL:
        kind = FileKind.SIDECAR
    return _Claim(layout, kind, key)


def _red(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """A001_C001_0101AB.RDC is a clip: its R3D in parts of 4 GB, sound, and QuickTime proxies.

    A camera that was told to write no R3D leaves the QuickTime files alone there.
    """
    clip = place[1]
    if not name.startswith((clip + b"_", clip + b".")):
        return None
    key = (b"red", place[0])
    kind = kind_of(name)
    suffix = _suffix(name)
    number = re.search(rb"_(\d{3})\.", name)
    part = int(number[1]) if number else 0
    if suffix in (b".r3d", b".wav"):
        return _Claim(layout, kind, key, (int(suffix == b".wav"), part))
    if suffix in (b".mov", b".mp4", b".mxf"):
        return _Claim(layout, FileKind.PROXY, key, (0, part), guessed=True)
    if kind is FileKind.MEDIA:
        return None
    return _Claim(layout, kind if kind is FileKind.THUMBNAIL else FileKind.SIDECAR, key)


def _metadata(layout: Layout, place: re.Match[bytes], name: bytes) -> _Claim | None:
    """What a maker keeps for the whole card; but no media is taken for that."""
    return _unless_media(layout, name)


def _unless_media(layout: Layout | None, name: bytes) -> _Claim | None:
    if kind_of(name) is FileKind.MEDIA:
        return None
    return _Claim(layout, FileKind.METADATA)


_PLACES: tuple[tuple[Layout, re.Pattern[bytes], _Reader], ...] = tuple(
    (layout, _regex(pattern), reader)
    for layout, pattern, reader in (
        (Layout.GOPRO, rb"(?:(?:.*/)?DCIM/)?\d{3}GOPRO", _gopro),
        (Layout.DJI, rb"((?:.*/)?)DCIM/(?:(\d{3})MEDIA|DJI_[^/]*)", _dji),
        (Layout.DJI, rb"((?:.*/)?)MISC/THM/(\d{3})", _dji_thumbnail),
        (Layout.INSTA360, rb"(?:(?:.*/)?DCIM/)?Camera\d\d", _insta360),
        (Layout.CANON, rb"(?:.*/)?DCIM/CANONMSC(?:/.*)?", _metadata),
        (Layout.CANON, rb"(?:(?:.*/)?DCIM/)?\d{3}(?:CANON|EOS[^/]*)", _dcf),
        (Layout.DCIM, rb"(?:.*/)?DCIM(?:/.*)?", _dcf),
        (Layout.SONY_XAVC, rb"((?:.*/)?M4ROOT)(?:/(.*))?", _sony),
        (Layout.SONY_XDCAM, rb"((?:.*/)?XDROOT)(?:/(.*))?", _sony),
        (Layout.AVCHD, rb"((?:(?:.*/)?(?:PRIVATE|AVCHD)/)?BDMV)(?:/(.*))?", _avchd),
        (Layout.AVCHD, rb"(?:.*/)?AVCHD(?:/.*)?", _metadata),
        (Layout.CANON_XF, rb"(?:.*/)?CONTENTS/CLIPS\d{3}(?:/([^/]+))?", _canon_xf),
        (Layout.P2, rb"((?:.*/)?CONTENTS)/(AUDIO|AVCLIP|CLIP|ICON|PROXY|VIDEO|VOICE)", _p2),
        (Layout.RED, rb"(?:.*/)?([^/]+)\.RDC", _red),
        (Layout.RED, rb"(?:.*/)?[^/]+\.RDM", _metadata),
    )
)
"""Folders and how their files are read; the first that fits. At whatever depth: people also
name the folder that they once copied a whole card into, or the DCIM of a card."""

_OF_ANY_CARD = _regex(rb"(?:MISC|AVF_INFO|PRIVATE|CONTENTS)(?:/.*)?")
"""Where makers keep what isn't footage, whosever the card is."""


class _Place(NamedTuple):
    """A folder: whose it is, and what a name means in it."""

    layout: Layout | None
    claim: Callable[[bytes], _Claim]


def _place(folder: bytes) -> _Place:
    for layout, pattern, reader in _PLACES:
        if (match := pattern.fullmatch(folder)) is not None:
            return _Place(layout, partial(_read, folder, layout, match, reader))
    if _OF_ANY_CARD.fullmatch(folder):
        return _Place(None, lambda name: _unless_media(None, name) or _by_name(folder, name, None))
    return _Place(None, lambda name: _by_name(folder, name, None))


def _read(
    folder: bytes, layout: Layout, place: re.Match[bytes], reader: _Reader, name: bytes
) -> _Claim:
    return reader(layout, place, name) or _by_name(folder, name, layout)


RULES: Mapping[Layout, tuple[str, str]] = {
    Layout.GOPRO: (
        "`DCIM/1xxGOPRO`",
        "chapters `GX01nnnn`, `GX02nnnn` (`GH` likewise), before the HERO6 `GOPRnnnn`, `GP01nnnn`; "
        "proxy `GL01nnnn.LRV`; `.THM`; looped `GXAAnnnn` each by itself",
    ),
    Layout.GOPRO_360: ("`DCIM/1xxGOPRO`", "chapters `GS01nnnn.360`, `GS02nnnn.360`"),
    Layout.DJI: (
        "`DCIM/DJI_*`, `DCIM/1xxMEDIA`",
        "one name: film, `.LRF` proxy, `.SRT`; thumbnails in `MISC/THM/1xx`",
    ),
    Layout.INSTA360: (
        "`DCIM/Camera01`",
        "`VID_date_time_00_nnn` and `_10_nnn` (two lenses), proxy `LRV_date_time_11_nnn`",
    ),
    Layout.SONY_XAVC: (
        "`PRIVATE/M4ROOT`, `M4ROOT`",
        "`CLIP/C0001`, `C0001M01.XML`, `SUB/C0001S03`, `THMBNL/C0001T01`",
    ),
    Layout.SONY_XDCAM: ("`PRIVATE/XDROOT`, `XDROOT`", "the same, with `C0001R01.BIM`"),
    Layout.P2: (
        "`CONTENTS/VIDEO` and its neighbours",
        "`VIDEO/0001AB`, `AUDIO/0001AB00` to `15`, or `AVCLIP/0001AB`, and `0001AB` of the other "
        "folders; what a recording goes on in, as `CLIP/0001AB.XML` says",
    ),
    Layout.AVCHD: ("`PRIVATE/AVCHD/BDMV`", "`STREAM/00000.MTS`, `CLIPINF/00000.CPI`"),
    Layout.CANON: (
        "`DCIM/1xxCANON`, `DCIM/1xxEOS*`",
        "one name: `MVI_nnnn` with `.THM`, raw with JPEG",
    ),
    Layout.CANON_CINEMA: (
        "anywhere, by name",
        "`A_0001C001X..._CANON_001`, `_002`..., its `_Proxy` and whatever else has that name",
    ),
    Layout.CANON_XF: (
        "`CONTENTS/CLIPS001/AA0001`",
        "the folder: `AA000101.MXF`, `AA000102.MXF`..., with its other files",
    ),
    Layout.RED: (
        "`*.RDM/*.RDC`",
        "the `.RDC` folder: `_001.R3D`, `_002.R3D`..., sound, QuickTime proxies, `.RMD`",
    ),
    Layout.ARRI: (
        "anywhere, by name",
        "`A001C001_date_R1AB`, `A_0001C001_date_time_id`; frames `.ari` and `.arx` of one name",
    ),
    Layout.BLACKMAGIC: ("anywhere: `.braw`", "one name: `.sidecar`, and the proxy in `Proxy/`"),
    Layout.DCIM: ("`DCIM`, whatever is below", "one name in one folder is one clip, as DCF has it"),
    Layout.UNKNOWN: (
        "anything else",
        "every media file by itself, with the sidecars that have its name if no other has it; "
        "numbered `.dng` and `.dpx` frames together in a folder of their name",
    ),
}
"""Where each layout is found and what makes a clip in it, as docs/cards.md tells it."""
