"""A copy that is cancelled: what has its final name by then is whole, and is known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from application.authoring import Interrupted
from tests.adapters.steps.finishing import Finishing
from tests.cards import contents

FOOTAGE = {f"DCIM/100GOPRO/GX01000{n}.MP4": contents(str(n), 2_000_000) for n in range(6)}


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    rig = Finishing(tmp_path)
    for path, data in FOOTAGE.items():
        rig.put(path, data)
    return rig


def cancel_at_the_first_row(rig: Finishing, data: dict[str, Any]) -> None:
    """Files have their names then, and others are on their way to theirs."""
    real = rig.ledger.record

    def record(attempt: Any, *more: Any) -> None:
        if attempt in rig.live:
            rig.live.discard(attempt)
            rig.cancelled.add(attempt)
            rig.stopping = lambda: True
        real(attempt, *more)

    rig.ledger.record = record  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        rig.copy(1, data)
    rig.ledger.record = real  # type: ignore[method-assign]
    rig.stopping = lambda: False


def footage_in(rig: Finishing) -> dict[bytes, bytes]:
    return {path: data for path, data in rig.arrived().items() if path.endswith(b".MP4")}


def test_what_has_its_name_when_a_copy_is_cancelled_is_in_the_ledger(rig: Finishing) -> None:
    cancel_at_the_first_row(rig, rig.ready(1))
    there = rig.arrived()
    assert 0 < len(there) < len(FOOTAGE)
    assert {copy.path for copy in rig.ledger.copies} == set(there)
    for path, data in there.items():
        assert data == FOOTAGE[os.fsdecode(path).removeprefix("2026-11-22_A001/")]


def test_the_card_put_in_again_brings_only_what_is_missing(rig: Finishing) -> None:
    cancel_at_the_first_row(rig, rig.ready(1))
    arrived = len(rig.arrived())
    data = rig.taken_in(2)
    assert (data["copied_files"], data["known_files"]) == (len(FOOTAGE) - arrived, arrived)
    assert data["safe_to_format"]
    assert sorted(footage_in(rig).values()) == sorted(FOOTAGE.values())


def test_the_same_job_gone_on_with_is_whole_in_its_folder(rig: Finishing) -> None:
    data = rig.ready(1)
    cancel_at_the_first_row(rig, data)
    again = rig.copy(2, data)  # as a later execution does that is to run this step again
    assert (again["copied_files"], again["known_files"]) == (len(FOOTAGE), 0)
    assert footage_in(rig) == {
        f"2026-11-22_A001/{path}".encode(): content for path, content in FOOTAGE.items()
    }
