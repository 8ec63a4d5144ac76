"""write_report: a page and a table beside the jobs' folders, whole or not there."""

from __future__ import annotations

import csv
import os
import resource
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters.steps.write_report import ReportsMissing
from application.authoring import PermanentError
from tests.adapters.steps.conftest import NOON, NoonClock, snapshot
from tests.adapters.steps.finishing import Finishing

STEM = "2026-11-22_A001_2026-11-22_120000Z"


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    return Finishing(tmp_path)


@pytest.fixture
def judged(rig: Finishing) -> dict[str, Any]:
    rig.put("DCIM/A.LRV", b"footage")
    return rig.judge(rig.manifest(rig.copied()))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "reports"))


def test_there_is_no_report_without_a_verdict(rig: Finishing) -> None:
    rig.put("A.LRV", b"footage")
    with pytest.raises(PermanentError, match="job 1 has no verdict"):
        rig.report(rig.copied())


def test_a_library_that_is_away_is_not_made_anew(rig: Finishing, judged: dict[str, Any]) -> None:
    rig.library.rename(str(rig.library) + ".unplugged")
    with pytest.raises(ReportsMissing, match="is not there any more"):
        rig.report(judged)
    assert not rig.library.exists()


def test_a_destination_that_can_t_be_written_doesn_t_keep_the_other_from_its_report(
    rig: Finishing, tmp_path: Path
) -> None:
    rig.put("A.LRV", b"footage")
    second = tmp_path / "second"
    judged = rig.judge(rig.copied(destinations=[str(second)]))
    (rig.library / "reports").write_text("somebody else's file")
    with pytest.raises(ReportsMissing, match="exists and is no folder"):
        rig.report(judged)
    assert names(second) == [f"{STEM}.csv", f"{STEM}.html"]
    stored = rig.jobs.get(1).verdict
    assert stored is not None
    assert stored["reports"] == [f"{second}/reports/{STEM}{end}" for end in (".html", ".csv")]


def test_what_a_killed_attempt_left_goes_away(rig: Finishing, judged: dict[str, Any]) -> None:
    (rig.library / "reports").mkdir()
    (rig.library / "reports" / f"{STEM}.html.0123abcd.part").write_text("half a report")
    rig.report(judged)
    assert names(rig.library) == [f"{STEM}.csv", f"{STEM}.html"]


def test_what_has_the_name_is_left_as_it_is(rig: Finishing, judged: dict[str, Any]) -> None:
    (rig.library / "reports").mkdir()
    taken = rig.library / "reports" / f"{STEM}.html"
    taken.write_text("somebody else's")
    told = rig.report(judged)["reports"]
    assert taken.read_text() == "somebody else's"
    assert [os.path.basename(each) for each in told] == [f"{STEM}-2.html", f"{STEM}.csv"]


def test_a_step_that_runs_again_finds_what_it_wrote(rig: Finishing, judged: dict[str, Any]) -> None:
    first = rig.report(judged)
    before = {path: each.get("content") for path, each in snapshot(rig.library).items()}
    assert rig.report(judged) == first
    after = {path: each.get("content") for path, each in snapshot(rig.library).items()}
    assert after == before
    assert names(rig.library) == [f"{STEM}.csv", f"{STEM}.html"]


def test_another_verdict_has_a_report_of_its_own(rig: Finishing, judged: dict[str, Any]) -> None:
    rig.report(judged)
    os.unlink(rig.arrived_as("DCIM/A.LRV"))
    rig.report(rig.judge(judged))
    assert names(rig.library) == [
        f"{STEM}-2.csv",
        f"{STEM}-2.html",
        f"{STEM}.csv",
        f"{STEM}.html",
    ]
    assert "NOT safe to format" in (rig.library / "reports" / f"{STEM}-2.html").read_text()


def test_a_clock_that_was_set_back_since_the_copy_makes_no_file_doubtful(
    rig: Finishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict has seen these copies, whatever the time that they were verified at."""
    rig.put("DCIM/A.LRV", b"footage")
    with monkeypatch.context() as ahead:
        ahead.setattr(NoonClock, "now", lambda clock: NOON + timedelta(hours=1))
        data = rig.copied()
    report = rig.report(rig.judge(data))
    assert report["safe_to_format"]
    with open(report["reports"][1], encoding="utf-8-sig", newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["state"] == "verified"
    assert row["verified_at"] == "2026-11-22T13:00:00Z"


def test_nothing_of_it_lies_where_the_manifest_lists_files(
    rig: Finishing, judged: dict[str, Any]
) -> None:
    told = rig.report(judged)["reports"]
    assert sorted(os.listdir(rig.job)) == ["DCIM", "ascmhl"]
    for path in told:
        assert Path(path).parent == rig.library / "reports"
    with open(told[1], encoding="utf-8-sig", newline="") as table:
        (row,) = csv.DictReader(table)
    assert (row["path"], row["state"], row["safe_to_format"]) == ("DCIM/A.LRV", "verified", "yes")


def test_a_disk_that_takes_no_more_leaves_no_half_report(
    rig: Finishing, judged: dict[str, Any]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(ReportsMissing, match="file too large"):
            rig.report(judged)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(rig.library) == []
    rig.report(judged)
    assert len(names(rig.library)) == 2
