"""Card folders for tests: small, and in the layouts that cameras write."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SHOT_AT = 1_795_363_510


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
            footage[f"DCIM/100GOPRO/{name}"] = contents(f"{folder.name}/{name}", size)
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


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
