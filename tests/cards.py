"""Card folders for tests: small, and in the layouts that cameras write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from domain.footage import FileKind
from domain.layouts import Layout

SHOT_AT = 1_700_000_000
"""Long ago: nobody is still writing it, in whichever zone a camera keeps its clock."""

FILMS = (".mp4", ".mov", ".m4v", ".360", ".insv", ".3gp")


@dataclass(frozen=True)
class Take:
    """What is to be found as one clip, by paths on the card."""

    media: tuple[str, ...]
    proxies: tuple[str, ...] = ()
    thumbnails: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return self.media + self.proxies + self.thumbnails + self.sidecars


@dataclass(frozen=True)
class CardExample:
    """A card as a maker's cameras leave it, and what has to be seen in it.

    loose: what belongs to no clip, with its kind. folders: those that are empty.
    """

    layouts: tuple[Layout, ...]
    takes: tuple[Take, ...]
    loose: Mapping[str, FileKind] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for take in self.takes for path in take.paths) + tuple(self.loose)

    def build(self, folder: Path) -> dict[str, bytes]:
        """Write it; what is to arrive in the library."""
        for empty in self.folders:
            (folder / empty).mkdir(parents=True)
        written = {path: shot(f"{folder.name}/{path}", path, 400) for path in self.paths}
        written |= {path: data for path, data in _INDEXES.items() if path in written}
        for path, data in written.items():
            put(folder / path, data)
        return {
            path: data
            for path, data in written.items()
            if self.loose.get(path) is not FileKind.JUNK
        }


_INDEXES = {
    # As cameras write it: no JSON that a parser would take.
    "MISC/version.txt": b'{"info version":"2.0",\n"firmware version":"H23.01.02.32.00",\n}\n',
    **{
        f"{root}/MEDIAPRO.XML": b'<?xml version="1.0" encoding="UTF-8"?>\n'
        b'<MediaProfile xmlns="http://xmlns.sony.net/pro/metadata/mediaprofile"><Contents>'
        b'<Material uri="./CLIP/C0001.MP4" type="MP4"><Proxy uri="./SUB/C0001S03.MP4"/>'
        b'<RelevantInfo uri="./CLIP/C0001M01.XML" type="XML"/></Material>'
        b'<Material uri="./CLIP/C0007.MP4"/></Contents></MediaProfile>'
        for root in ("M4ROOT", "PRIVATE/M4ROOT")
    },
}
"""What cameras keep besides; the second is stale, and knows of a clip that was deleted."""


def gopro() -> CardExample:
    """HERO6 and later, with a clip of three chapters, a loop, and a counter that started anew."""
    one, two = "DCIM/100GOPRO", "DCIM/101GOPRO"
    return CardExample(
        (Layout.GOPRO,),
        (
            Take(
                (f"{one}/GX010042.MP4", f"{one}/GX020042.MP4", f"{one}/GX030042.MP4"),
                (f"{one}/GL010042.LRV", f"{one}/GL020042.LRV", f"{one}/GL030042.LRV"),
                (f"{one}/GX010042.THM", f"{one}/GX020042.THM", f"{one}/GX030042.THM"),
            ),
            Take((f"{one}/GH010043.MP4",), (f"{one}/GL010043.LRV",), (f"{one}/GH010043.THM",)),
            Take((f"{one}/GXAA0044.MP4",), (f"{one}/GLAA0044.LRV",), (f"{one}/GXAA0044.THM",)),
            Take((f"{one}/GXAA0045.MP4",), (f"{one}/GLAA0045.LRV",), (f"{one}/GXAA0045.THM",)),
            Take((f"{one}/GOPR0046.GPR", f"{one}/GOPR0046.JPG")),
            Take((f"{two}/GX010042.MP4",), (f"{two}/GL010042.LRV",), (f"{two}/GX010042.THM",)),
        ),
        {"MISC/version.txt": FileKind.METADATA, "DCIM/100GOPRO/._GX010042.MP4": FileKind.JUNK},
    )


def gopro_old() -> CardExample:
    """Up to the HERO5: the first chapter has no number of its own."""
    folder = "DCIM/100GOPRO"
    return CardExample(
        (Layout.GOPRO,),
        (
            Take(
                (f"{folder}/GOPR0007.MP4", f"{folder}/GP010007.MP4", f"{folder}/GP020007.MP4"),
                (f"{folder}/GOPR0007.LRV", f"{folder}/GP010007.LRV"),
                (f"{folder}/GOPR0007.THM", f"{folder}/GP010007.THM"),
            ),
            Take((f"{folder}/GOPR0008.MP4",), thumbnails=(f"{folder}/GOPR0008.THM",)),
            Take((f"{folder}/GOPR0009.JPG",)),
            Take((f"{folder}/G0010010.JPG",)),
        ),
    )


def gopro_360() -> CardExample:
    folder = "DCIM/100GOPRO"
    return CardExample(
        (Layout.GOPRO_360,),
        (
            Take(
                (f"{folder}/GS010099.360", f"{folder}/GS020099.360"),
                (f"{folder}/GS010099.LRV", f"{folder}/GS020099.LRV"),
                (f"{folder}/GS010099.THM", f"{folder}/GS020099.THM"),
            ),
        ),
    )


def dji() -> CardExample:
    new, old = "DCIM/DJI_001", "DCIM/100MEDIA"
    name = "DJI_20240511164405_0094_D"
    return CardExample(
        (Layout.DJI,),
        (
            Take((f"{new}/{name}.MP4",), (f"{new}/{name}.LRF",), sidecars=(f"{new}/{name}.SRT",)),
            Take((f"{new}/DJI_20240511164512_0095_D.DNG", f"{new}/DJI_20240511164512_0095_D.JPG")),
            Take(
                (f"{old}/DJI_0001.MOV",),
                thumbnails=("MISC/THM/100/DJI_0001.SCR", "MISC/THM/100/DJI_0001.THM"),
                sidecars=(f"{old}/DJI_0001.SRT",),
            ),
        ),
        {
            "MISC/THM/100/DJI_0002.THM": FileKind.THUMBNAIL,
            "MISC/IDX/0.dat": FileKind.METADATA,
        },
    )


def insta360() -> CardExample:
    folder = "DCIM/Camera01"
    return CardExample(
        (Layout.INSTA360,),
        (
            Take(
                (
                    f"{folder}/VID_20220110_121609_00_657.insv",
                    f"{folder}/VID_20220110_121609_10_657.insv",
                ),
                (f"{folder}/LRV_20220110_121609_11_657.insv",),
            ),
            Take(
                (f"{folder}/VID_20231224_080000_00_658.insv",),
                (f"{folder}/LRV_20231224_080000_01_658.lrv",),
            ),
            Take((f"{folder}/VID_20231225_143000_001.mp4",)),
            Take((f"{folder}/IMG_20220110_130000_00_660.insp",)),
        ),
        {"DCIM/fileinfo_list.list": FileKind.OTHER},
    )


def sony_xavc(root: str = "PRIVATE/M4ROOT") -> CardExample:
    """``MEDIAPRO.XML`` knows nothing of the second clip: it is a clip all the same."""
    return CardExample(
        (Layout.SONY_XAVC, Layout.DCIM) if root.startswith("PRIVATE") else (Layout.SONY_XAVC,),
        (
            Take(
                (f"{root}/CLIP/C0001.MP4",),
                (f"{root}/SUB/C0001S03.MP4",),
                (f"{root}/THMBNL/C0001T01.JPG",),
                (f"{root}/CLIP/C0001M01.XML",),
            ),
            Take((f"{root}/CLIP/C0002.MP4",), sidecars=(f"{root}/CLIP/C0002M01.XML",)),
            *(
                [Take(("DCIM/100MSDCF/DSC00001.ARW", "DCIM/100MSDCF/DSC00001.JPG"))]
                if root.startswith("PRIVATE")
                else []
            ),
        ),
        {
            f"{root}/MEDIAPRO.XML": FileKind.METADATA,
            f"{root}/STATUS.BIN": FileKind.METADATA,
            f"{root}/CLIP/C0009M01.XML": FileKind.SIDECAR,
        },
        folders=(f"{root}/GENERAL",),
    )


def sony_cfexpress() -> CardExample:
    return sony_xavc("M4ROOT")


def sony_xdcam() -> CardExample:
    root = "PRIVATE/XDROOT"
    return CardExample(
        (Layout.SONY_XDCAM,),
        (
            Take(
                (f"{root}/Clip/A001C001_2301011B.MXF",),
                (f"{root}/Sub/A001C001_2301011BS03.MP4",),
                (f"{root}/Thmbnl/A001C001_2301011BT01.JPG",),
                (
                    f"{root}/Clip/A001C001_2301011BM01.XML",
                    f"{root}/Clip/A001C001_2301011BR01.BIM",
                ),
            ),
        ),
        {
            f"{root}/MEDIAPRO.XML": FileKind.METADATA,
            f"{root}/DISCMETA.XML": FileKind.METADATA,
            f"{root}/CUEUP.XML": FileKind.METADATA,
        },
        folders=(f"{root}/Edit", f"{root}/General"),
    )


def p2_index(name: str, previous: str | None = None, next: str | None = None) -> bytes:
    """A clip's own XML, as P2 cameras write it, cut down to what tells clips apart."""

    def neighbour(tag: str, of: str | None) -> str:
        if of is None:
            return ""
        return (
            f"<{tag}><GlobalClipID>ID-{of}</GlobalClipID><ClipName>{of}</ClipName>"
            f"<P2SerialNo.>ABD06C0058</P2SerialNo.></{tag}>"
        )

    connection = neighbour("Previous", previous) + neighbour("Next", next)
    relation = (
        "<Relation><OffsetInShot>0</OffsetInShot><GlobalShotID>SHOT</GlobalShotID>"
        f"<Connection>{neighbour('Top', name)}{connection}</Connection></Relation>"
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
        '<P2Main xmlns="urn:schemas-Professional-Plug-in:P2:ClipMetadata:v3.1" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n'
        f"<ClipContent><ClipName>{name}</ClipName><GlobalClipID>ID-{name}</GlobalClipID>"
        "<Duration>14472</Duration><EditUnit>1/25</EditUnit>"
        f"{relation if connection else ''}"
        "<EssenceList><Video><VideoFormat>MXF</VideoFormat><FrameRate>50i</FrameRate></Video>"
        "</EssenceList></ClipContent></P2Main>\n"
    ).encode()


def p2() -> CardExample:
    """With a clip of a newer camera's, whose sound is in it."""

    def take(name: str, *beside: str) -> Take:
        return Take(
            (
                f"CONTENTS/VIDEO/{name}.MXF",
                *(f"CONTENTS/AUDIO/{name}{channel:02}.MXF" for channel in range(4)),
            ),
            (f"CONTENTS/PROXY/{name}.MP4",),
            (f"CONTENTS/ICON/{name}.BMP",),
            (f"CONTENTS/CLIP/{name}.XML", *beside),
        )

    return CardExample(
        (Layout.P2,),
        (
            take("0001AB", "CONTENTS/PROXY/0001AB.BIN"),
            take("0002CD"),
            Take(("CONTENTS/AVCLIP/0003EF.MXF",), sidecars=("CONTENTS/CLIP/0003EF.XML",)),
        ),
        {"CONTENTS/LASTCLIP.TXT": FileKind.METADATA},
        folders=("CONTENTS/VOICE",),
    )


def avchd() -> CardExample:
    root = "PRIVATE/AVCHD"
    return CardExample(
        (Layout.AVCHD,),
        tuple(
            Take(
                (f"{root}/BDMV/STREAM/{name}.MTS",),
                sidecars=(f"{root}/BDMV/CLIPINF/{name}.CPI",),
            )
            for name in ("00000", "00001")
        ),
        {
            f"{root}/BDMV/PLAYLIST/00000.MPL": FileKind.METADATA,
            f"{root}/BDMV/INDEX.BDM": FileKind.METADATA,
            f"{root}/BDMV/MOVIEOBJ.BDM": FileKind.METADATA,
            f"{root}/AVCHDTN/THUMB.TDT": FileKind.METADATA,
            f"{root}/AVCHDTN/THUMB.TID": FileKind.METADATA,
        },
        folders=(f"{root}/CANON",),
    )


def canon() -> CardExample:
    one, two = "DCIM/100CANON", "DCIM/101EOSR5"
    return CardExample(
        (Layout.CANON,),
        (
            Take((f"{one}/MVI_0001.MP4",), thumbnails=(f"{one}/MVI_0001.THM",)),
            Take((f"{one}/IMG_0002.CR3", f"{one}/IMG_0002.JPG")),
            Take((f"{two}/MVI_0001.MP4",)),
        ),
        {"DCIM/CANONMSC/M0100.CTG": FileKind.METADATA},
    )


def rolled_over() -> CardExample:
    """The counter went from 9999 to 1 in one folder, and was set back in the next."""
    one, two = "DCIM/100CANON", "DCIM/101CANON"
    return CardExample(
        (Layout.CANON,),
        (
            Take((f"{one}/MVI_0001.MP4",), thumbnails=(f"{one}/MVI_0001.THM",)),
            Take((f"{one}/MVI_9998.MP4",), thumbnails=(f"{one}/MVI_9998.THM",)),
            Take((f"{one}/MVI_9999.MP4",), thumbnails=(f"{one}/MVI_9999.THM",)),
            Take((f"{two}/MVI_0001.MP4",), thumbnails=(f"{two}/MVI_0001.THM",)),
            Take((f"{two}/MVI_9999.MP4",)),
        ),
    )


def canon_cinema() -> CardExample:
    folder = "CONTENTS/CLIPS001"
    long, short = "A_0001C001X250101_120000AB_CANON", "A_0001C002X250101_121000CD_CANON"
    return CardExample(
        (Layout.CANON_CINEMA, Layout.CANON_XF),
        (
            Take(
                (f"{folder}/{long}_001.MXF", f"{folder}/{long}_002.MXF"),
                sidecars=(f"{folder}/{long}_001.CPF", f"{folder}/{long}_001.XML"),
            ),
            Take((f"DCIM/100CANON/{short}_001.MP4",), (f"DCIM/100CANON/{short}_001_Proxy.MP4",)),
        ),
        folders=("CONTENTS/CLIPS002",),
    )


def canon_xf() -> CardExample:
    clip = "CONTENTS/CLIPS001/AA0001"
    return CardExample(
        (Layout.CANON_XF,),
        (
            Take(
                (f"{clip}/AA000101.MXF", f"{clip}/AA000102.MXF"),
                sidecars=(
                    f"{clip}/AA0001.CIF",
                    f"{clip}/AA0001.XML",
                    f"{clip}/AA000101.CPF",
                    f"{clip}/AA000102.CPF",
                ),
            ),
        ),
        {"CONTENTS/JOURNAL/J0001.JRN": FileKind.METADATA},
    )


def red() -> CardExample:
    clip = "A001_1234.RDM/A001_C001_0101AB.RDC/A001_C001_0101AB"
    prores = "A001_1234.RDM/A001_C002_0101CD.RDC/A001_C002_0101CD"
    return CardExample(
        (Layout.RED,),
        (
            Take(
                (f"{clip}_001.R3D", f"{clip}_002.R3D", f"{clip}_003.R3D"),
                (f"{clip}_001.MOV",),
                sidecars=(f"{clip}.RMD",),
            ),
            Take((f"{prores}_001.MOV", f"{prores}_002.MOV")),
        ),
        {"A001_1234.RDM/digital_magazine.bin": FileKind.METADATA},
    )


def arri() -> CardExample:
    frames = "A001R1AB/A001C002_220101_R1AB"
    return CardExample(
        (Layout.ARRI,),
        (
            Take(("A001R1AB/A001C001_220101_R1AB.mov",)),
            Take(tuple(f"{frames}/A001C002_220101_R1AB.{n:07}.ari" for n in (8, 9, 10))),
            Take(("A_0001_1ABC/A_0001C001_240101_120000_a1ABC.mxf",)),
        ),
        {"A001R1AB/A001R1AB_AVID.ale": FileKind.SIDECAR, "A001R1AB.xml": FileKind.SIDECAR},
    )


def blackmagic() -> CardExample:
    name = "A001_01011200_C001"
    return CardExample(
        (Layout.BLACKMAGIC,),
        (
            Take((f"{name}.braw",), (f"Proxy/{name}.mp4",), sidecars=(f"{name}.sidecar",)),
            Take(("A001_01011300_C002.braw",)),
        ),
    )


def dcim() -> CardExample:
    return CardExample(
        (Layout.DCIM,),
        (
            Take(("DCIM/100_PANA/P1000001.MP4",)),
            Take(
                ("DCIM/100NIKON/DSC_0001.JPG", "DCIM/100NIKON/DSC_0001.NEF"),
                sidecars=("DCIM/100NIKON/DSC_0001.XMP",),
            ),
            Take(("DCIM/101NIKON/DSC_0001.JPG",)),
            Take(("DCIM/Camera/20240101_120000.mp4",)),
        ),
    )


def unknown() -> CardExample:
    return CardExample(
        (Layout.UNKNOWN,),
        (
            Take(("take.mov",)),
            Take(("take.mp4",)),
            Take(("sound/take.wav",), sidecars=("sound/take.txt",)),
            Take(("Proxy/nothing beside it.mp4",)),
            Take(("IMG_20230101_123456.dng",)),
            Take(("IMG_20230101_123457.dng",)),
            Take(("scan/scan_000001.dpx", "scan/scan_000002.dpx")),
        ),
        {
            "take.xml": FileKind.SIDECAR,
            "README": FileKind.OTHER,
            "archive/all.zip": FileKind.OTHER,
            ".DS_Store": FileKind.JUNK,
        },
        folders=("empty/within",),
    )


EXAMPLES = (
    gopro,
    gopro_old,
    gopro_360,
    dji,
    insta360,
    sony_xavc,
    sony_cfexpress,
    sony_xdcam,
    p2,
    avchd,
    canon,
    rolled_over,
    canon_cinema,
    canon_xf,
    red,
    arri,
    blackmagic,
    dcim,
    unknown,
)
"""One builder for each layout that is recognised."""


def gopro_card(folder: Path, *, clips: int = 2, clip_bytes: int = 100_000) -> dict[str, bytes]:
    """A card with clips, proxies, thumbnails and junk; what is to arrive in the library."""
    # As a camera's own number does, the name tells this card's files from another's.
    version = f'{{"info version": "2.0",\n"camera serial number": "{folder.name}",\n}}\n'
    footage: dict[str, bytes] = {"MISC/version.txt": version.encode()}
    for number in range(1, clips + 1):
        for name, size in (
            (f"GX0100{number:02}.MP4", clip_bytes),
            (f"GL0100{number:02}.LRV", 5_000),
            (f"GX0100{number:02}.THM", 900),
        ):
            footage[f"DCIM/100GOPRO/{name}"] = shot(f"{folder.name}/{name}", name, size)
    for path, data in footage.items():
        put(folder / path, data)
    put(folder / ".Trashes" / "._501", b"junk")
    return footage


def put(path: Path, data: bytes, *, mtime: int = SHOT_AT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))


def contents(seed: str, size: int) -> bytes:
    """Bytes that are the same each time, and other ones for another seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def shot(seed: str, path: str, size: int) -> bytes:
    """What a camera would write under that name: a film's boxes are those of a whole film."""
    return film(seed, size) if path.lower().endswith(FILMS) else contents(seed, size)


def film(seed: str, size: int) -> bytes:
    """An MP4 as far as its boxes go: they are there, but nothing in them is of any use."""
    head, index = box(b"ftyp", b"isom" + bytes(4)), box(b"moov", b"")
    return head + box(b"mdat", contents(seed, size - len(head) - len(index) - 8)) + index


def box(kind: bytes, data: bytes) -> bytes:
    return (8 + len(data)).to_bytes(4) + kind + data


OWN = {"ascmhl", "reports"}
"""Folders of ours in a library, beside what came from cards."""


def files_below(folder: Path) -> dict[str, bytes]:
    """What came from cards: manifests and reports aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not OWN & set(path.relative_to(folder).parts)
    }


def job_folders(library: Path) -> list[Path]:
    return [path for path in sorted(library.iterdir()) if path.name not in OWN]
