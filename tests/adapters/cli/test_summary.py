"""What the last lines say of a card: nobody formats one on the strength of a wrong word."""

from __future__ import annotations

from typing import Any

from adapters.cli.display import describe, detail, summary


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
        "To bring all of the card once more: rushes ingest --again",
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


def test_what_is_on_the_card_is_said_before_it_is_copied() -> None:
    def told(new: int, known: int, to_hash: int) -> str:
        data = {
            "label": "A001",
            "file_count": new + known + to_hash,
            "total_bytes": 61_200_000_000,
            "clip_count": 1 if known == 0 else 5,
            "intake": {
                "new": {"files": new, "bytes": 9_700_000_000},
                "known": {"files": known, "bytes": 1},
                "to_hash": {"files": to_hash, "bytes": 0},
            },
        }
        return describe({"type": "card:scanned", "data": data})

    assert told(12, 202, 1) == (
        "A001: 215 files (61.2 GB) in 5 clips; 12 new (9.7 GB), 202 known, 1 to be compared (0 B)"
    )
    assert told(1, 0, 0) == "A001: 1 file (61.2 GB) in 1 clip; 1 new (9.7 GB)"
    assert told(0, 0, 0) == "A001: 0 files (61.2 GB) in 1 clip"


def test_what_is_left_out_or_remarkable_is_counted_and_the_first_are_named() -> None:
    broken = "can't be played: it has no moov box"
    assert said(
        copied_files=9,
        job_id=7,
        left_out={"junk": 5, "link": 1},
        excluded_named={"junk": [".DS_Store", ".Trashes", "._a"], "link": ["out"]},
        exceptions={
            "total": 9,
            "remarked": 8,
            "named": [
                *({"path": f"{n}.MP4", "kind": "media", "problem": broken} for n in range(8)),
                {"path": "out", "kind": "link", "problem": "a symbolic link, not followed"},
            ],
        },
    ) == [
        "9 files (5.0 kB) copied and verified to /lib/job",
        "Left on the card: 5 files of operating systems (.DS_Store, .Trashes, ._a and 2 more)",
        "Left on the card: 1 link, never followed (out)",
        *(f"Remark: {n}.MP4: {broken}" for n in range(5)),
        "and 3 more remarks: rushes report 7",
    ]


def test_executions_of_older_versions_have_fewer_words_for_it() -> None:
    named = [{"path": "a.MP4", "kind": "media", "problem": "its name is no UTF-8"}]
    assert said(copied_files=1, left_out={"junk": 2}, exceptions={"total": 30, "named": named}) == [
        "1 file (5.0 kB) copied and verified to /lib/job",
        "Left on the card: 2 files of operating systems",
        "Remark: a.MP4: its name is no UTF-8",
    ]


def test_a_card_that_was_filled_anew_has_a_note() -> None:
    note = "this card was filled anew (generation 2): ..."
    assert said(copied_files=1, card_note=note)[1:] == [f"Note: {note}"]


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


def test_a_cancelled_card_is_not_safe_and_says_how_to_go_on() -> None:
    def told(*steps: tuple[str, str]) -> list[str]:
        return summary(
            {
                "execution_id": "u",
                "status": "cancelled",
                "progress": 40,
                "execution_data": {},
                "steps": [
                    {"step_key": key, "step_name": key, "status": status} for key, status in steps
                ],
            }
        )

    card = (("scan_sd", "completed"), ("copy_files", "cancelled"), ("verdict", "cancelled"))
    assert told(*card) == [
        "cancelled (40%)",
        "To go on where it stopped: rushes rerun u copy_files",
        "NOT safe to format: the card was not taken in to the end",
    ]
    assert told(("only", "completed")) == ["cancelled (40%)"]
