"""What the last lines say of a card: nobody formats one on the strength of a wrong word."""

from __future__ import annotations

from typing import Any

from adapters.cli.display import summary


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
