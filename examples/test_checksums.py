"""A step for clips is tried out with any step that spawns it."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

from checksums import checksums

from adapters.testkit import Result, Testbed
from application.authoring import Pipeline, StepContext, step


@step(spawns=["checksums"])
def copied(context: StepContext) -> dict[str, Any]:
    """In the place of the copy: says that a clip has come."""
    files = [{"path": path} for path in context.data["paths"]]
    context.spawn("checksums", "A001.mp4-1", {"clips": [{"name": "A001", "files": files}]})
    return {}


async def run(folder: Path, *names: str) -> Result:
    async with Testbed(Pipeline("clips", [copied, checksums])) as bed:
        return await bed.run({"library": str(folder), "paths": [f"{folder}/{n}" for n in names]})


def test_the_list_is_one_that_sha256sum_takes(tmp_path: Path) -> None:
    for name in ("A001.mp4", "A001.thm"):
        (tmp_path / name).write_bytes(name.encode() * 1_000)
    result = asyncio.run(run(tmp_path, "A001.mp4", "A001.thm"))
    assert result.status == "completed"
    written = result.step("checksums:A001.mp4-1").output_data["checksums"]
    checked = subprocess.run(
        ["sha256sum", "--check", written], capture_output=True, text=True, check=True
    )
    assert checked.stdout.count(": OK") == 2


def test_a_file_that_is_gone_fails_its_own_clip(tmp_path: Path) -> None:
    result = asyncio.run(run(tmp_path, "gone"))
    assert result.step("checksums:A001.mp4-1").status == "failed"
    assert not list(tmp_path.glob("checksums/*"))
