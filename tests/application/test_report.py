"""The report: hostile names are text in it, and a spreadsheet runs none of its cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from application.ports import AttemptRef
from application.report import COLUMNS, MAX_REASONS, NO_VERDICT, Report, verdict_record
from domain.errors import JobNotFound
from domain.footage import (
    Card,
    CardFile,
    Familiarity,
    FileKind,
    ImportedFile,
    Intake,
    VerifiedCopy,
    shown,
)
from domain.verdict import Examined, FoundCopy, State, judge
from tests.fakes.footage import MemoryCardFiles, MemoryJobs, MemoryLedger

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CARD = Card("volume:1234:64", "A001", volume=True)
ATTEMPT = AttemptRef(1, "verdict", 1)
DISK = "/disk"

HOSTILE = (
    b"<script>alert(1)</script>.MP4",
    b'" onmouseover="alert(1)',
    b"'><img src=x onerror=alert(1)>",
    b"&lt;b&gt;",
    b"]]><!-- -->",
    b"=cmd|' /C calc'!A0",
    b"+1+1",
    b"-2+3",
    b"@SUM(A1)",
    "＝1+1".encode(),
    b"\t=1",
    b"\r=1",
    b"two\nlines",
    b'quote",comma.MP4',
    b"caf\xe9 in latin-1",
    "\u202etxt.exe".encode(),
    b"\x1b[31mred",
    b"a" * 255,
)


class Stored:
    """A job with its files, copies and verdict, as the steps would have left them."""

    def __init__(
        self, *files: CardFile, card: Card = CARD, intake: dict[str, Any] | None = None
    ) -> None:
        def yes(attempt: AttemptRef) -> bool:
            return True

        times = iter([NOON, NOON + timedelta(seconds=100)])
        self.jobs = MemoryJobs(yes, now=lambda: next(times))
        self.card_files = MemoryCardFiles(yes)
        self.ledger = MemoryLedger(yes)
        self.files = files
        self.card_files.replace(ATTEMPT, files)
        self.job = self.jobs.create(
            ATTEMPT,
            name="2026-11-22_A001",
            card=card,
            file_count=len(files),
            total_bytes=0,
            intake=intake,
        )
        self.report = Report(self.jobs, self.card_files, self.ledger)

    def copied(self, *, cold: bool = True, folder: bytes = b"2026-11-22_A001/") -> Stored:
        copies = [
            VerifiedCopy(
                ImportedFile(CARD.identity, f.path, f.size_bytes, f.mtime_ns, "xxh64", "ab" * 8),
                DISK,
                folder + f.path,
                NOON,
                cold,
            )
            for f in self.files
        ]
        self.ledger.record(ATTEMPT, self.job.id, copies)
        self.jobs.copied(ATTEMPT, self.job.id)
        return self

    def judged(self, state: State = State.STANDS, **more: Any) -> Stored:
        known = self.ledger.known(self.files, DISK)
        examined = [
            Examined(f, [FoundCopy(copy, state) for copy in known.get(f.path, ())])
            for f in self.files
        ]
        record = verdict_record(judge(examined, [DISK]), **more)
        self.jobs.judged(ATTEMPT, self.job.id, record)
        return self

    @property
    def page(self) -> str:
        return "".join(self.report.as_html(self.job.id))

    @property
    def table(self) -> list[list[str]]:
        return rows("".join(self.report.as_csv(self.job.id)))


def rows(text: str) -> list[list[str]]:
    assert text.startswith("\ufeff")
    return list(csv.reader(io.StringIO(text[1:], newline="")))


def file(path: bytes, **more: Any) -> CardFile:
    return CardFile(path, FileKind.MEDIA, 1_000, 1_700_000_000_000_000_000, **more)


class Page(HTMLParser):
    """What a browser makes of it: the elements, their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


PLAIN = Page(Stored(file(b"A.MP4", problem="p")).copied().judged(notes=["n"]).page)


def test_there_is_no_report_of_a_job_that_there_isn_t() -> None:
    stored = Stored()
    for make in (stored.report.as_html, stored.report.as_csv):
        with pytest.raises(JobNotFound):
            make(99)


def test_a_job_without_a_verdict_is_not_safe_and_says_so() -> None:
    stored = Stored(file(b"A.MP4"))
    assert NO_VERDICT in stored.page
    assert stored.table[1][COLUMNS.index("state")] == "not judged"
    assert stored.table[1][COLUMNS.index("safe_to_format")] == "no"


@pytest.mark.parametrize("state", [State.STANDS, State.GONE])
def test_no_name_is_more_than_text_on_the_page(state: State) -> None:
    stored = Stored(*(file(name, problem=name.decode("latin-1")) for name in HOSTILE))
    page = stored.copied().judged(state, notes=["<script>"], card_path='"><script>').page
    page.encode()
    parsed = Page(page)
    assert parsed.tags - {"bdi", "code", "span", "br"} <= PLAIN.tags
    assert parsed.attributes <= PLAIN.attributes
    for name in HOSTILE:
        assert shown(name) in parsed.text
    assert not set(page) & {chr(c) for c in (*range(9), *range(11, 32), 0x202E)}


def test_the_card_s_own_words_are_text_too() -> None:
    evil = Card("volume:<script>alert(1)</script>", "<img src=x>\u202e", volume=True)
    page = Stored(card=evil).page
    assert Page(page).tags <= PLAIN.tags | {"p"}
    assert "\u202e" not in page


def test_the_page_loads_and_runs_nothing() -> None:
    page = Stored(file(b"A.MP4")).copied().judged().page
    assert not PLAIN.tags & {"script", "link", "img", "iframe", "object", "embed", "a", "form"}
    assert not PLAIN.attributes & {"src", "href", "style", "onload", "action"}
    for word in ("url(", "@import", "http:", "https:", "//"):
        assert word not in page


def test_no_cell_begins_as_a_formula() -> None:
    stored = Stored(*(file(name, problem="=1+1") for name in HOSTILE)).copied().judged()
    table = stored.table
    assert len(table) == len(HOSTILE) + 1
    for row in table:
        assert len(row) == len(COLUMNS)
        assert not any(cell[:1] in set("=+-@\t\r\n＝＋－＠") for cell in row)
    paths = {row[0] for row in table[1:]}
    assert "'=cmd|' /C calc'!A0" in paths
    assert 'quote",comma.MP4' in paths
    assert "two\\x0alines" in paths


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_whatever_a_remark_says_the_table_keeps_its_shape(remarks: list[str]) -> None:
    files = [file(b"%d" % number, problem=text) for number, text in enumerate(remarks)]
    text = "".join(Stored(*files).report.as_csv(1))
    table = rows(text)
    assert [len(row) for row in table] == [len(COLUMNS)] * (len(remarks) + 1)
    note = COLUMNS.index("note")
    assert [row[note].removeprefix("'") for row in table[1:]] == [
        each.removeprefix("'") for each in remarks
    ]


def test_every_line_of_the_table_ends_as_the_standard_has_it() -> None:
    text = "".join(Stored(file(b"A.MP4"), file(b"B.MP4")).copied().judged().report.as_csv(1))
    assert text.count("\r\n") == text.count("\n") == 3
    assert text.endswith("\r\n")


def test_the_verdict_stands_on_top_in_words() -> None:
    good = Page(Stored(file(b"A.MP4")).copied().judged().page)
    assert good.text.index(
        "Safe to format: its one file stands verified on 1 destination"
    ) < good.text.index("Files")
    bad = Stored(file(b"A.MP4")).copied().judged(State.GONE).page
    assert "NOT safe to format: 1 of 1 file not standing verified on 1 destination" in bad
    assert "What stands against formatting" in bad
    assert "its copy is no longer on /disk" in bad


def test_copies_are_counted_that_stand() -> None:
    assert "<td>1 of 1</td><td>verified</td>" in Stored(file(b"A.MP4")).copied().judged().page
    for state in (State.GONE, State.ALTERED, State.UNSEEN):
        assert "<td>0 of 1</td>" in Stored(file(b"A.MP4")).copied().judged(state).page
    moved = Stored(file(b"A.MP4")).copied().judged(not_on_card=["A.MP4"]).page
    assert '<td></td><td><span class="bad">was no longer on the card</span></td>' in moved


def test_a_report_made_later_says_what_was_said_then() -> None:
    stored = Stored(file(b"A.MP4"), file(b"B.MP4")).copied(folder=b"2026-11-01_A001/")
    stored.judged(judged_at="2026-11-22T12:00:00.000Z")
    then, table = stored.page, stored.table
    later = NOON + timedelta(days=1)
    for folder, more in (
        (b"2026-11-23_A001/", {}),
        (b"2026-11-01_A001/", {"card_identity": CARD.identity + "#2"}),  # the same place again
        (b"2026-11-23_B007/", {"card_identity": "volume:9:64", "hash": "cd" * 8}),
    ):
        rows = [
            VerifiedCopy(replace(copy.file, **more), DISK, folder + copy.file.path, at)
            for copy in stored.ledger.known(stored.files, DISK)[b"A.MP4"][:1]
            for at in [copy.verified_at if folder.startswith(b"2026-11-01") else later]
        ]
        stored.ledger.record(ATTEMPT, stored.job.id, rows)
    assert (stored.page, stored.table) == (then, table)
    assert "known from earlier: <bdi>/disk/2026-11-01_A001</bdi>" in then


def test_a_card_of_a_later_generation_says_so_and_what_the_ledger_knew() -> None:
    stored = Stored(file(b"A.MP4"), card=replace(CARD, generation=3))
    assert "Card&#x27;s generation" in stored.page
    assert "Card&#x27;s generation" not in Stored(file(b"A.MP4")).page
    intake = Intake(
        {
            (FileKind.MEDIA, Familiarity.NEW): (2, 20),
            (FileKind.SIDECAR, Familiarity.NEW): (1, 1),
            (FileKind.MEDIA, Familiarity.KNOWN): (5, 50),
        }
    )
    page = Stored(file(b"A.MP4"), intake=intake.as_json()).page
    assert "3 new, 5 known</bdi>" in page


def test_a_file_that_was_known_says_where_it_stands() -> None:
    stored = Stored(file(b"A.MP4")).copied(folder=b"2026-11-01_A001/").judged()
    assert "known from earlier: <bdi>/disk/2026-11-01_A001</bdi>" in stored.page
    assert stored.table[1][COLUMNS.index("copies")] == "/disk/2026-11-01_A001/A.MP4"


def test_a_copy_that_may_have_been_read_from_memory_says_so() -> None:
    state = COLUMNS.index("state")
    assert Stored(file(b"A.MP4")).copied().judged().table[1][state] == "verified"
    stored = Stored(file(b"A.MP4")).copied(cold=False).judged()
    assert stored.table[1][state] == "verified, maybe cached"
    assert "1 maybe read back from memory" in stored.page


def test_what_was_left_out_is_listed_with_the_reason() -> None:
    left = [
        CardFile(b".DS_Store", FileKind.JUNK, 6, 0),
        CardFile(b"link", FileKind.LINK, 0, 0, None, "a symbolic link, not followed"),
        CardFile(b"fifo", FileKind.SPECIAL, 0, 0, None, "a named pipe, no file"),
        CardFile(b"EMPTY", FileKind.FOLDER, 0, 0),
    ]
    page = Page(Stored(file(b"A.MP4"), *left).copied().judged().page).text
    exceptions = page[page.index("Exceptions") : page.index("Files")]
    for text in (".DS_Store", "a symbolic link, not followed", "a named pipe, no file", "EMPTY"):
        assert text in exceptions
    assert "A.MP4" not in exceptions


def test_it_tells_of_times_speed_and_manifests() -> None:
    page = Page(
        Stored(file(b"A.MP4"))
        .copied()
        .judged(
            judged_at="2026-11-22T12:02:00.000Z",
            copied={"files": 1, "bytes": 50_000_000_000, "known": 3},
            manifests=[{"path": "/disk/x.mhl", "left_out_files": 1, "left_out": ["caf\\xe9: no"]}],
            software="Rushes 0.1.0",
            host="cart-1",
        )
        .page
    ).text
    text = "\n".join(page)
    assert "500.0 MB/s, verifying included" in text
    assert "1 min 40 s" in text
    assert "/disk/x.mhl (left out: 1)" in text
    assert "caf\\xe9: no" in text
    assert "Rushes 0.1.0 on cart-1. As it was on 2026-11-22 12:02:00 UTC" in text
    assert "3 files" in text


def test_beyond_the_reasons_that_are_kept_nothing_is_called_verified() -> None:
    files = [file(b"%05d" % number) for number in range(MAX_REASONS + 5)]
    stored = Stored(*files).copied().judged(State.GONE)
    states = [row[COLUMNS.index("state")] for row in stored.table[1:]]
    assert states.count("its copy is no longer on /disk") == MAX_REASONS
    assert states.count("not shown to be safe") == 5
    assert "and 5 more" in stored.page


def test_ten_thousand_files_are_made_piece_by_piece() -> None:
    """However many there are: no piece holds more than a line, besides the head of the page."""

    def largest(pieces: Iterator[str]) -> tuple[int, int]:
        lengths = sorted(len(piece) for piece in pieces)
        return len(lengths), lengths[-2]

    files = [file(b"DCIM/100GOPRO/GX%06d.MP4" % number) for number in range(10_000)]
    stored = Stored(*files).copied().judged()
    for make in (stored.report.as_html, stored.report.as_csv):
        count, length = largest(make(stored.job.id))
        assert count > 10_000
        assert length < 2_000
