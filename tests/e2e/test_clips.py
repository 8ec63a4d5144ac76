"""Clips that are processed while the card is copied, and copies that stand still in a pause."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from application.step_runner import LOOK_EVERY_S
from tests.cards import contents, put
from tests.e2e.server import Server, eventually, steps
from tests.faulty_card import HOLD, Fault, faulty_card

FIRST, SECOND = "DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX010002.MP4"
LARGE_BYTES = 70 * 1024 * 1024
"""Of a file whose part is gone on with."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("clips")
    clip_steps = "examples.checksums:checksums,tests.e2e.clips:picky"
    running = Server(place, RUSHES_CLIP_STEPS=clip_steps).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def of_clips(execution: Mapping[str, Any], family: str = "checksums") -> dict[str, Any]:
    """The steps of a family, by the clip's file name."""
    return {
        key.partition(":")[2].rpartition("-")[0]: step
        for key, step in steps(execution).items()
        if key.startswith(f"{family}:")
    }


def test_the_first_clip_is_done_while_the_second_is_still_copied(
    server: Server, tmp_path: Path
) -> None:
    card = server.cards / "A001"
    with faulty_card(tmp_path / "behind", card) as slow:
        put(slow.behind / FIRST, contents("first", 2_000_000))
        put(slow.behind / SECOND, contents("second", 9_000_000))
        slow.set(Fault("read", SECOND, HOLD, at=6_000_000))
        uuid = server.announce(card, "clips")["data"]["execution_id"]
        assert slow.wait_until_held() == SECOND
        found = eventually(
            lambda: server.execution(uuid),
            lambda found: "completed" in {step["status"] for step in of_clips(found).values()},
        )
        assert of_clips(found).keys() == {"GX010001.MP4"}
        assert steps(found)["copy_files"]["status"] == "running"
        slow.set()
        completed = server.ended(uuid)
    assert completed["status"] == "completed", completed["error_message"]
    done = of_clips(completed)
    assert done.keys() == {"GX010001.MP4", "GX010002.MP4"}
    for step in done.values():
        subprocess.run(["sha256sum", "--check", step["output_data"]["checksums"]], check=True)
    assert steps(completed)["check_clips"]["status"] == "completed"


def test_a_clip_that_fails_leaves_the_verdict_alone_and_is_all_that_a_retry_does(
    server: Server,
) -> None:
    card = server.cards / "B001"
    for number in (1, 666, 3):
        put(card / f"DCIM/100GOPRO/GX01{number:04}.MP4", contents(f"clip {number}", 5_000))
    uuid = server.trigger("sd_ingest", sd_path=str(card))
    failed = server.ended(uuid)
    assert failed["status"] == "failed"
    assert "check_clips failed" in failed["error_message"]
    assert "1 of 6 steps for clips failed: picky:GX010666.MP4-" in failed["error_message"]
    assert "GX010666 is refused" in failed["error_message"]
    assert failed["execution_data"]["safe_to_format"] is True

    (server.library / "allowed").touch()
    assert server.request("POST", f"/api/pipeline/{uuid}/retry").status_code == 202
    completed = server.ended(uuid)
    assert completed["status"] == "completed", completed["error_message"]
    again = {
        key.rpartition("-")[0] or key for key, s in steps(completed).items() if s["attempt"] > 1
    }
    assert again == {"picky:GX010666.MP4", "check_clips"}

    put(card / "DCIM/100GOPRO/GX010004.MP4", contents("clip 4", 5_000))
    once_more = server.ended(server.trigger("sd_ingest", sd_path=str(card)))
    assert of_clips(once_more).keys() <= {f"GX01{n:04}.MP4" for n in (1, 666, 3, 4)}
    assert "GX010004.MP4" in of_clips(once_more)


def test_a_paused_copy_stands_still_and_goes_on_after_a_restart(
    server: Server, tmp_path: Path
) -> None:
    card = server.cards / "C001"
    data = contents("long take", LARGE_BYTES)
    with faulty_card(tmp_path / "behind", card) as slow:
        put(slow.behind / FIRST, data)
        slow.set(Fault("read", FIRST, HOLD, at=LARGE_BYTES // 2))
        with server.client("frontend") as watching:
            uuid = server.announce(card, "paused")["data"]["execution_id"]
            assert slow.wait_until_held() == FIRST
            assert server.request("POST", f"/api/pipeline/{uuid}/pause").status_code == 200
            paused_at = time.monotonic()
            while time.monotonic() < paused_at + LOOK_EVERY_S:  # until its last look is over
                assert server.execution(uuid)["paused_at"]
            slow.set()
            standing = watching.until(
                lambda message: (
                    message["type"] == "pipeline:step_progress"
                    and message["data"]["detail"].get("paused") is True
                )
            )["data"]["detail"]
        assert standing["bytes_done"] < LARGE_BYTES
        assert "bytes_per_s" not in standing
        assert steps(server.execution(uuid))["copy_files"]["status"] == "running"
        assert server.stop() == 0
        (part,) = server.library.rglob("GX010001.MP4.*.part")
        inode = part.stat().st_ino
        server.start()
        waiting = server.execution(uuid)
        assert waiting["paused_at"]
        assert steps(waiting)["copy_files"]["status"] == "pending"
        assert server.request("POST", f"/api/pipeline/{uuid}/resume").status_code == 200
        completed = server.ended(uuid)
    assert completed["status"] == "completed", completed["error_message"]
    (copy,) = server.library.rglob("*C001/DCIM/100GOPRO/GX010001.MP4")
    assert copy.read_bytes() == data
    assert copy.stat().st_ino == inode  # what was copied was kept
