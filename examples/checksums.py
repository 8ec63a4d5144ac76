"""What is done with each clip while the rest of its card is still being copied.

    PYTHONPATH=. RUSHES_CLIP_STEPS=examples.checksums:checksums rushes serve

For every clip a list of SHA-256 sums comes into ``checksums`` in the library, as
``sha256sum --check`` takes it. In the place of this could stand a transcoder, an upload,
or a step that a service outside claims (``external_step("proxy")``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from application.authoring import RetryPolicy, StepContext, step

CHUNK_BYTES = 1 << 20


@step(dynamic=True, retry=RetryPolicy(retries=2, delay_s=5.0))
def checksums(context: StepContext) -> dict[str, Any]:
    """One list for each clip. On a card with very many, several clips come at once."""
    folder = Path(context.data["library"]) / "checksums"
    folder.mkdir(exist_ok=True)
    lines = []
    for clip in context.params["clips"]:
        for file in clip["files"]:
            lines.append(f"{sha256_of(Path(file['path']), context)}  {file['path']}\n")
    written = folder / f"{context.parameter}.sha256"
    part = written.with_suffix(".part")
    part.write_text("".join(lines))
    part.replace(written)  # whole or not at all, and the same again after a crash
    return {"checksums": str(written), "files": len(lines)}


def sha256_of(file: Path, context: StepContext) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            context.check()
            while context.paused:  # it goes on here, in the same attempt
                context.rest()
            digest.update(chunk)
    return digest.hexdigest()
