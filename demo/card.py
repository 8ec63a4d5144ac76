"""Makes a small card in GoPro's layout, with real H.264 clips that play."""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import av

RATE = 25
SHOT_AT = datetime(2026, 11, 22, 16, 5, 10, tzinfo=UTC)

# Clip 0012 in two chapters, then clip 0013: name, seconds, brightness.
CLIPS = (("010012", 3, 60), ("020012", 2, 90), ("010013", 3, 130))


def make_card(folder: Path) -> int:
    """Fill ``folder`` with a card's content; how many files of footage are on it."""
    footage = folder / "DCIM" / "100GOPRO"
    footage.mkdir(parents=True)
    made = 0
    for number, (name, seconds, brightness) in enumerate(CLIPS):
        for path, size in (
            (footage / f"GX{name}.MP4", (1280, 720)),
            (footage / f"GL{name}.LRV", (320, 180)),
        ):
            encode_clip(path, seconds=seconds, size=size, brightness=brightness)
            made += 1
        encode_still(footage / f"GX{name}.THM", brightness=brightness)
        made += 1
        shot_at = SHOT_AT.timestamp() + 60 * number
        for path in footage.glob(f"*{name}.*"):
            os.utime(path, (shot_at, shot_at))
    (folder / "MISC").mkdir()
    # The trailing comma is the camera's own.
    version = json.dumps({"info version": "2.0", "firmware version": "H23.01.02.32.00"}, indent=1)
    (folder / "MISC" / "version.txt").write_text(version.removesuffix("\n}") + ",\n}\n")
    (folder / ".Trashes").mkdir()
    (folder / ".Trashes" / "._501").write_bytes(b"left by a laptop")
    return made + 1


def encode_clip(path: Path, *, seconds: int, size: tuple[int, int], brightness: int) -> None:
    """H.264 in MP4: a bar that moves over a plain ground."""
    width, height = size
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "12"}
        for number in range(seconds * RATE):
            frame = _frame(width, height, number, brightness)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def encode_still(path: Path, *, brightness: int) -> None:
    """A JPEG thumbnail."""
    with av.open(str(path), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuvj420p"
        container.mux(stream.encode(_frame(160, 90, 0, brightness, "yuvj420p")))
        container.mux(stream.encode(None))


def count_frames(path: Path) -> int:
    """Decode a clip from beginning to end."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _frame(
    width: int, height: int, number: int, brightness: int, pixels: str = "yuv420p"
) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, pixels)
    bar = int((width - 80) * (0.5 + 0.5 * math.sin(number / 10)))
    # A grain that changes with every line and frame, so that a clip has some weight.
    grain = bytes(brightness + (x * 7 + number * 13) % 23 for x in range(width))
    for index, plane in enumerate(frame.planes):
        rows = bytearray(b"\x80" * plane.buffer_size)
        if index == 0:
            for y in range(height):
                start = y * plane.line_size
                shift = (y * 5 + number) % width
                rows[start : start + width] = grain[shift:] + grain[:shift]
                rows[start + bar : start + bar + 80] = b"\xeb" * 80
        plane.update(bytes(rows))
    return frame
