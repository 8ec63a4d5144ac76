"""Steps for clips: when they are made, of what, and that a copy never fails because of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.steps import clip_steps
from adapters.steps.clip_steps import as_family
from adapters.steps.copying import SMALL_BYTES
from adapters.steps.faults import FilesMissing
from application.authoring import StepContext, external_step, step
from domain.errors import InvalidDefinition
from domain.execution import PARAMETER
from domain.footage import Card
from tests.adapters.steps.conftest import Rig

JOB = "2026-11-22_A001"
DEADLINE_S = 20.0


@pytest.fixture
def clips(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A card that is known again, in a pipeline with one family for clips."""
    rig.settings = {"clip_families": ["clip"]}
    monkeypatch.setattr(
        "adapters.steps.cards.identify",
        lambda fd, path, **where: Card("volume:0001:512", "A001", volume=True),
    )
    return rig


def shoot(rig: Rig, number: int, size: int = 100) -> None:
    rig.put(f"DCIM/100GOPRO/GX01{number:04}.MP4", os.urandom(size))
    rig.put(f"DCIM/100GOPRO/GX01{number:04}.THM", b"small")


def names(rig: Rig) -> list[str]:
    return sorted(clip["name"] for params in rig.spawned.values() for clip in params["clips"])


@pytest.mark.parametrize(
    "wrong", [{"depends_on": ["copy_files"]}, {"after": ["verdict"]}, {"spawns": ["other"]}]
)
def test_a_step_for_clips_that_waits_for_others_is_refused(wrong: dict[str, Any]) -> None:
    @step(**wrong)
    def proxy(context: StepContext) -> None:
        pass

    with pytest.raises(InvalidDefinition, match=r"step 'proxy' is to process clips.*stands alone"):
        as_family(proxy)


def test_a_step_for_clips_is_an_optional_family_also_where_a_service_does_it() -> None:
    spec = as_family(external_step("proxy", lease_s=30)).spec
    assert (spec.dynamic, spec.required, spec.external, spec.lease_s) == (True, False, True, 30)


def test_the_first_clip_is_processed_while_the_second_is_still_being_copied(
    clips: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shoot(clips, 1, SMALL_BYTES)
    shoot(clips, 2, SMALL_BYTES)
    processed = threading.Event()
    content: list[bytes] = []

    def process(key: str) -> None:
        """What the engine does with the step, at once and to its end."""
        (clip,) = clips.spawned[key]["clips"]
        content.extend(Path(file["path"]).read_bytes() for file in clip["files"])
        processed.set()

    real = os.readv

    def readv(fd: int, buffers: Sequence[bytearray]) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("GX010002.MP4"):
            assert processed.wait(DEADLINE_S), "the first clip waits for the second"
        return real(fd, buffers)

    data = clips.ready()
    clips.on_spawn = process
    monkeypatch.setattr(os, "readv", readv)
    output = clips.copy(1, data)
    assert content[1] == b"small"
    assert content[0] == (clips.card / "DCIM/100GOPRO/GX010001.MP4").read_bytes()
    assert output["clip_steps"] == {"clips": 2, "made": 2}


def test_what_a_step_is_told_of_its_clip(clips: Rig) -> None:
    shoot(clips, 42)
    clips.put("DCIM/100GOPRO/GX020042.MP4", b"second chapter")
    clips.put("MISC/version.txt", b"of no clip")
    clips.ingest()
    ((key, params),) = clips.spawned.items()
    family, _, parameter = key.partition(":")
    assert family == "clip"
    assert parameter.startswith("GX010042.MP4-")
    assert PARAMETER.match(parameter)
    folder = f"{clips.library}/{JOB}/DCIM/100GOPRO"
    assert params == {
        "clips": [
            {
                "name": "GX010042",
                "format": "mp4",
                "size_bytes": 119,
                "file_count": 3,
                "files": [
                    {"path": f"{folder}/GX010042.MP4", "kind": "media", "size_bytes": 100},
                    {"path": f"{folder}/GX020042.MP4", "kind": "media", "size_bytes": 14},
                    {"path": f"{folder}/GX010042.THM", "kind": "thumbnail", "size_bytes": 5},
                ],
            }
        ]
    }


def test_a_name_that_is_no_text_comes_as_bytes_too(clips: Rig) -> None:
    clips.put(b"\xff.mp4")
    clips.ingest()
    ((key, params),) = clips.spawned.items()
    assert PARAMETER.match(key.partition(":")[2])
    (file,) = params["clips"][0]["files"]
    assert bytes.fromhex(file["path_hex"]) == os.fsencode(clips.library / JOB) + b"/\xff.mp4"
    assert file["path"].endswith(r"/\xff.mp4")


def test_each_family_has_a_step_for_each_clip(clips: Rig) -> None:
    clips.settings = {"clip_families": ["proxy", "sums"]}
    shoot(clips, 1)
    shoot(clips, 2)
    assert clips.ingest()["clip_steps"] == {"clips": 2, "made": 4}
    assert sorted(key.partition("-")[0] for key in clips.spawned) == [
        "proxy:GX010001.MP4",
        "proxy:GX010002.MP4",
        "sums:GX010001.MP4",
        "sums:GX010002.MP4",
    ]


def test_a_known_clip_is_not_processed_again_unless_it_has_grown(clips: Rig) -> None:
    shoot(clips, 1)
    shoot(clips, 2)
    clips.ingest()
    clips.spawned.clear()
    assert clips.ingest(2)["clip_steps"] == {"clips": 0, "made": 0}
    clips.put("DCIM/100GOPRO/GX020002.MP4", b"second chapter")
    shoot(clips, 3)
    clips.ingest(3)
    assert names(clips) == ["GX010002", "GX010003"]
    (grown,) = [params["clips"][0] for key, params in clips.spawned.items() if "GX010002" in key]
    assert [Path(file["path"]).is_file() for file in grown["files"]] == [True] * 3


def test_a_copy_that_is_tried_again_makes_the_same_steps_with_the_same_params(
    clips: Rig,
) -> None:
    for number in range(4):
        shoot(clips, number, SMALL_BYTES)
    data = clips.ready()
    broken = clips.card / "DCIM/100GOPRO/GX010002.MP4"
    whole = broken.read_bytes()
    broken.write_bytes(whole + b"longer than the scan saw it")
    with pytest.raises(FilesMissing):
        clips.copy(1, data)
    assert names(clips) == ["GX010000", "GX010001", "GX010003"]
    clips.put("DCIM/100GOPRO/GX010002.MP4", whole)
    assert clips.copy(1, data)["clip_steps"] == {"clips": 4, "made": 4}
    assert names(clips) == ["GX010000", "GX010001", "GX010002", "GX010003"]


def test_more_clips_than_steps_share_them_and_a_retry_shares_them_alike(
    clips: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_steps, "MAX_STEPS", 4)
    for number in range(10):
        shoot(clips, number)
    data = clips.ready()
    assert clips.copy(1, data)["clip_steps"] == {"clips": 10, "made": 4}
    assert [len(params["clips"]) for params in clips.spawned.values()] == [3, 3, 3, 1]
    assert len(set(names(clips))) == 10
    assert clips.copy(1, data)["clip_steps"] == {"clips": 10, "made": 4}


def test_frames_are_counted_and_some_of_them_named(
    clips: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_steps, "MAX_FILES", 3)
    for frame in range(8):
        clips.put(f"A001C001_210101_R0AB.{frame:07}.ari", b"frame")
    clips.ingest()
    (params,) = clips.spawned.values()
    (clip,) = params["clips"]
    assert (clip["file_count"], len(clip["files"]), clip["size_bytes"]) == (8, 3, 40)


def test_a_copy_does_not_fail_because_the_engine_takes_no_more_steps(clips: Rig) -> None:
    clips.most_spawned = 1
    for number in range(3):
        shoot(clips, number)
    assert clips.ingest()["clip_steps"] == {
        "clips": 3,
        "made": 1,
        "refused": 2,
        "why": "an execution has at most 1 steps",
    }


def test_a_second_destination_that_fails_keeps_no_clip_waiting(clips: Rig, tmp_path: Path) -> None:
    shoot(clips, 1)
    clips.further = [tmp_path / "backup"]
    data = clips.ready()
    (tmp_path / "backup" / JOB).mkdir(parents=True)
    (tmp_path / "backup" / JOB / "DCIM").write_bytes(b"somebody's")
    with pytest.raises(FilesMissing):
        clips.copy(1, data)
    assert names(clips) == ["GX010001"]


def test_without_families_nothing_is_said_of_clips(rig: Rig) -> None:
    shoot(rig, 1)
    assert "clip_steps" not in rig.ingest()
    assert rig.spawned == {}
