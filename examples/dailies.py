"""A day's footage, looked through and summed up: a pipeline with most of what there is.

Start it with ``{"folder": "/path/of/the/day"}``:

    PYTHONPATH=. RUSHES_PIPELINES=examples.dailies:pipeline rushes serve

    scan ──> probe:* (one a clip) ──┐
         └─> hash_clips ────────────┴─> report
    notes (optional) ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘

Nothing is ever written but ``dailies.json``, at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from application.authoring import (
    KeyLimit,
    PermanentError,
    Pipeline,
    RetryPolicy,
    StepContext,
    StepError,
    step,
)

CLIPS = {".mov", ".mp4", ".mxf"}
CHUNK_BYTES = 1 << 20


@step(
    retry=RetryPolicy(retries=5, delay_s=2.0, factor=2.0, max_delay_s=60.0),
    run_timeout_s=600,
    spawns=["probe"],
)
def scan(context: StepContext) -> dict[str, Any]:
    """Find the clips, and add a step for each. A network volume may need a while to be there."""
    folder = Path(context.data["folder"])
    if not folder.is_dir():
        raise StepError(f"{folder} isn't there (yet)")
    clips = clips_in(folder)
    for clip in clips:
        context.spawn("probe", parameter_of(clip), {"clip": clip})
    return {"clips": len(clips), "volume": folder.stat().st_dev}


@step(
    dynamic=True,
    weight=5,
    retry=RetryPolicy(retries=2, delay_s=5.0),
    run_timeout_s=60,
    queue_timeout_s=24 * 3600,
)
def probe(context: StepContext) -> dict[str, Any]:
    """What one clip is. It runs for many clips at once, each with its own retries."""
    clip = Path(context.data["folder"]) / context.params["clip"]
    with clip.open("rb") as file:
        head = file.read(12)
    if not head:
        raise PermanentError(f"{context.params['clip']} is empty: copy it again")
    return {
        "clip": context.params["clip"],
        "size_bytes": clip.stat().st_size,
        "format": "iso media" if head[4:8] == b"ftyp" else "unknown",
    }


@step(
    depends_on=["scan"],
    weight=20,
    lease_s=120,
    priority=-10,
    limits=[KeyLimit("volume", at_once=1)],
)
def hash_clips(context: StepContext) -> dict[str, Any]:
    """Hash every clip. A long step: it says that it lives, and leaves what it has done."""
    folder = Path(context.data["folder"])
    clips = clips_in(folder)
    done: dict[str, str] = dict((context.checkpoint or {}).get("done", {}))
    for number, clip in enumerate(clips, start=1):
        if clip not in done:
            done[clip] = sha256_of(folder / clip, context)
            context.heartbeat({"done": done})
        context.progress(number / len(clips), clip=clip)
    return {"sha256": done}


@step(required=False)
def notes(context: StepContext) -> dict[str, Any]:
    """The script supervisor's notes, if they have come. The day is summed up without, too."""
    file = Path(context.data["folder"]) / "notes.txt"
    if not file.exists():
        raise PermanentError("there are no notes.txt")
    return {"notes": file.read_text(errors="replace")}


@step(depends_on=["probe:*", "hash_clips"], after=["notes"])
def report(context: StepContext) -> dict[str, Any]:
    """Once all clips are probed: their outputs stand in the data, by family and parameter."""
    probed = context.data.get("probe", {}).values()
    summary = {
        "clips": sorted(each["clip"] for each in probed),
        "size_bytes": sum(each["size_bytes"] for each in probed),
        "sha256": context.data["sha256"],
        "notes": context.data.get("notes"),
    }
    file = Path(context.data["folder"]) / "dailies.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(summary, indent=2))
    part.replace(file)  # whole or not at all, and the same again after a crash
    return {"report": str(file), "size_bytes": summary["size_bytes"]}


pipeline = Pipeline("dailies", [scan, probe, hash_clips, notes, report])


def clips_in(folder: Path) -> list[str]:
    """Relative to the folder, in a fixed order."""
    found = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    return sorted(str(p.relative_to(folder)) for p in found if p.suffix.lower() in CLIPS)


def parameter_of(clip: str) -> str:
    """A word for the step's key: ``probe:A001.mov``. The same clip always has the same."""
    word = re.sub(r"[^A-Za-z0-9._-]", "_", clip)
    if word == clip and len(word) <= 150:
        return word
    return f"{word[-150:]}-{hashlib.sha256(os.fsencode(clip)).hexdigest()[:8]}"


def sha256_of(file: Path, context: StepContext) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            context.check()  # ends here when Rushes stops, or nobody wants it any more
            context.heartbeat()
            digest.update(chunk)
    return digest.hexdigest()
