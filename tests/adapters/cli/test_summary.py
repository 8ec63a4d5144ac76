"""What the last lines say of a card: nobody formats one on the strength of a wrong word."""

from __future__ import annotations

from typing import Any

from adapters.cli.display import detail, summary


def said(**data: Any) -> list[str]:
    execution = {
        "execution_id": "u",
        "status": "completed",
        "warnings": [],
        "execution_data": {"copied_bytes": 5_000, "job_folder": "/lib/job", **data},
    }
    first, *more = summary(execution)
    assert first == "completed: execution u"
    return more


def test_one_file_and_several_are_said_rightly() -> None:
    assert said(copied_files=1, known_files=1) == [
        "1 file (5.0 kB) copied and verified to /lib/job",
        "1 file was in the library already",
    ]
    assert said(copied_files=2, known_files=3, missing_files=0) == [
        "2 files (5.0 kB) copied and verified to /lib/job",
        "3 files were in the library already",
    ]


def test_what_is_no_longer_in_the_library_has_a_line_of_its_own() -> None:
    note = "2 files were imported earlier and are no longer in the library: a.mp4, b.mp4"
    assert said(
        copied_files=0,
        copied_bytes=0,
        known_files=0,
        missing_files=2,
        missing=["a.mp4", "b.mp4"],
        library_note=note,
        note="no media found on the card",
    ) == [
        "0 files (0 B) copied and verified",
        f"Note: {note}",
        "Note: no media found on the card",
    ]


def test_another_pipelines_idea_of_these_words_is_shown_as_it_is() -> None:
    assert said(copied_files="many") == ["many files (5.0 kB) copied and verified to /lib/job"]


def test_every_destination_and_every_other_name_is_said() -> None:
    assert said(
        copied_files=2,
        copies=[{"job_folder": "/lib/job"}, {"job_folder": "/bak/job"}, {"job_folder": None}],
        renamed={
            "total": 1,
            "named": [{"path": "a:b", "destination": "/bak", "stored_as": "a%3Ab"}],
        },
        bad_copies=["/lib/job/x.0.bad"],
    ) == [
        "2 files (5.0 kB) copied and verified to /lib/job and /bak/job",
        "Stored as a%3Ab at /bak: a:b",
        "Bad copy put aside: /lib/job/x.0.bad",
    ]


def test_progress_says_the_rate_and_the_time_that_is_left() -> None:
    assert (
        detail(
            {"bytes_done": 1_000, "bytes_total": 2_000, "bytes_per_s": 500, "seconds_left": 3725}
        )
        == "1.0 kB of 2.0 kB, 500 B/s, 1:02:05 left"
    )
    assert detail({"seconds_left": 61, "file": "a"}) == "1:01 left, a"


def test_the_verdict_is_the_last_word_after_the_names() -> None:
    verdict = {"words": "NOT safe to format: ...", "reasons": ["a: gone"], "reason_count": 3}
    assert said(safe_to_format=False, verdict=verdict, job_id=7, reports=["/lib/r.html"]) == [
        "Report: /lib/r.html",
        "Not safe: a: gone",
        "and 2 more: rushes report 7",
        "NOT safe to format: ...",
    ]
    good = {"words": "Safe to format: ...", "reasons": [], "reason_count": 0}
    assert said(safe_to_format=True, verdict=good) == ["Safe to format: ..."]


def test_a_card_that_was_not_taken_in_to_the_end_is_not_safe() -> None:
    execution = {
        "execution_id": "u",
        "status": "failed",
        "error_message": "step copy_files failed",
        "execution_data": {},
        "steps": [{"step_name": "copy_files"}, {"step_name": "verdict"}],
    }
    assert summary(execution)[-1].startswith("NOT safe to format")
    assert len(summary({**execution, "steps": []})) == 2
