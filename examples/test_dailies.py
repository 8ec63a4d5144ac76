"""How a pipeline is tested: in memory, on a clock that jumps. Copy what you need."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from dailies import hash_clips, parameter_of, pipeline

from adapters.testkit import Testbed, does, fails, hangs, returns, script
from application.authoring import StepContext


@pytest.fixture
def day(tmp_path: Path) -> Path:
    for name in ("A001.mov", "A002.mov", "b/A001.mov"):
        clip = tmp_path / name
        clip.parent.mkdir(exist_ok=True)
        clip.write_bytes(b"\0\0\0\x18ftypqt  " + name.encode() * 100)
    return tmp_path


async def test_a_day_is_summed_up(day: Path) -> None:
    (day / "notes.txt").write_text("Scene 12, take 3 is the one")
    async with Testbed(pipeline) as bed:
        result = await bed.run({"folder": str(day)})
    assert result.status == "completed"
    assert result.step("probe:A001.mov").status == "completed"
    summary = json.loads((day / "dailies.json").read_text())
    assert summary["clips"] == ["A001.mov", "A002.mov", "b/A001.mov"]
    assert summary["notes"] == "Scene 12, take 3 is the one"
    assert len(summary["sha256"]) == 3


async def test_without_notes_there_is_a_warning(day: Path) -> None:
    async with Testbed(pipeline) as bed:
        result = await bed.run({"folder": str(day)})
    assert result.status == "completed"
    assert result.warnings == ("optional step notes failed: there are no notes.txt",)


async def test_a_volume_that_comes_late_is_waited_for() -> None:
    scanning = script(fails("not there"), fails("not there"), returns({"clips": 0, "volume": 1}))
    began = time.monotonic()
    async with Testbed(
        pipeline,
        handlers={"scan": scanning, "hash_clips": returns({"sha256": {}}), "report": returns()},
    ) as bed:
        result = await bed.run({"folder": "/mnt/day-12"})
        assert 5 < bed.clock.monotonic() < 7  # two pauses, of about 2 and 4 seconds
    assert time.monotonic() - began < 2
    assert result.status == "completed"
    assert result.event_types.count("pipeline:step_retrying") == 2


async def test_one_clip_that_hangs_is_probed_again(day: Path) -> None:
    probing = script(hangs(), returns({"clip": "A001.mov", "size_bytes": 1}))
    async with Testbed(pipeline, handlers={"probe": probing}) as bed:
        result = await bed.run({"folder": str(day)})
        assert bed.clock.monotonic() > 60  # its run_timeout_s, and a pause
    assert result.status == "completed"
    assert result.step("probe:A001.mov").attempt == 2
    assert result.execution_data["size_bytes"] == 3


async def test_an_empty_clip_fails_and_is_retried_by_a_person(day: Path) -> None:
    (day / "A002.mov").write_bytes(b"")
    async with Testbed(pipeline) as bed:
        failed = await bed.run({"folder": str(day)})
        assert failed.status == "failed"
        assert "A002.mov is empty: copy it again" in str(failed.error_message)
        (day / "A002.mov").write_bytes(b"\0\0\0\x18ftypqt  ")
        result = await bed.retry()
    assert result.status == "completed"
    assert result.step("scan").attempt == 1  # what has completed isn't repeated


async def test_after_a_crash_hashing_goes_on_where_it_was(day: Path) -> None:
    async def one_clip(context: StepContext) -> None:
        await context.aheartbeat({"done": {"A001.mov": "hashed before the crash"}})

    hashing = script(hangs(first=does(one_clip)), does(hash_clips))
    async with Testbed(pipeline, handlers={"hash_clips": hashing}) as bed:
        await bed.start({"folder": str(day)})
        await bed.rest()  # until nothing more can happen but by waiting
        await bed.crash()
        result = await bed.finish()
    assert result.status == "completed"
    assert hashing.attempts == [1, 2]
    assert result.execution_data["sha256"]["A001.mov"] == "hashed before the crash"
    assert len(result.execution_data["sha256"]["A002.mov"]) == 64


def test_every_clip_has_a_key_of_its_own() -> None:
    names = ["A001.mov", "b/A001.mov", "b_A001.mov", "ä.mov", "é.mov", "x" * 300 + ".mov"]
    keys = [parameter_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 200 for key in keys)
