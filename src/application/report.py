"""A job's report: what came of every file of a card, to print, to send, or for a spreadsheet.

It is made of what is stored (the job with its verdict, the scan's inventory, the ledger as
it was then), so it can be made at any time, also when neither the card nor a disk is there,
and says the same each time. A page holds
everything that it shows: nothing is loaded from anywhere, and whatever a name is made of, it
is text. A table has no cell that a spreadsheet would take for a formula.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

from application.ports import CardFiles, Jobs, Ledger
from domain.footage import COPIED_KINDS, CardFile, FileKind, Job, VerifiedCopy, shown
from domain.verdict import Doubt, Verdict, copies_of

PAGE_FILES = 1_000
"""Files of the inventory that are read, and asked about, at once."""

MAX_REASONS = 1_000
"""Reasons that a stored verdict names; there may be one for each file of a card."""

NO_VERDICT = "NOT safe to format: this job has not come to its verdict"

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula, at least in some language."""

COLUMNS = (
    "path",
    "kind",
    "clip",
    "size_bytes",
    "modified_at",
    "hash_name",
    "hash",
    "further_hashes",
    "copies",
    "verified_at",
    "state",
    "note",
    "job",
    "card",
    "safe_to_format",
)


def verdict_record(verdict: Verdict, **more: Any) -> dict[str, Any]:
    """A verdict as it is stored with its job: JSON. ``more``: what was known when it came."""
    return {
        "safe_to_format": verdict.safe_to_format,
        "words": verdict.words,
        "destinations": list(verdict.destinations),
        "files": verdict.files,
        "size_bytes": verdict.size_bytes,
        "safe_files": verdict.safe_files,
        "maybe_cached": verdict.maybe_cached,
        "remarked": verdict.remarked,
        "left_out": {kind.value: count for kind, count in verdict.left_out},
        "reason_count": len(verdict.reasons),
        "reasons": [
            {
                "doubt": reason.doubt.value,
                "path": None if reason.path is None else shown(reason.path),
                "detail": reason.detail,
            }
            for reason in verdict.reasons[:MAX_REASONS]
        ],
        **more,
    }


@dataclass(frozen=True, slots=True)
class Line:
    """One entry of the card. hashes: with their names, the ledger's first.

    standing: at how many destinations the verdict found a copy; None if it doesn't say.
    """

    file: CardFile
    hashes: Sequence[tuple[str, str]]
    copies: Sequence[VerifiedCopy]
    state: str
    is_good: bool
    standing: int | None = None

    @property
    def verified_at(self) -> datetime | None:
        """Of its latest copy."""
        return max((copy.verified_at for copy in self.copies), default=None)


class Report:
    """Of one job. Blocking: for threads. Each call reads what is stored then."""

    def __init__(self, jobs: Jobs, card_files: CardFiles, ledger: Ledger) -> None:
        self._jobs = jobs
        self._card_files = card_files
        self._ledger = ledger

    def as_html(self, job_id: int) -> Iterator[str]:
        """A whole page, in pieces. Raises ``JobNotFound``, at once."""
        return _page(self._jobs.get(job_id), self)

    def as_csv(self, job_id: int) -> Iterator[str]:
        """A line each (RFC 4180, with a byte order mark). Raises ``JobNotFound``, at once."""
        return _table(self._jobs.get(job_id), self)

    def lines(self, job: Job) -> Iterator[Line]:
        """Everything that the scan found, in the order of the paths' bytes."""
        record = job.verdict or {}
        against: dict[str, list[tuple[str, bool]]] = {}
        for reason in record.get("reasons", ()):
            if reason["path"] is not None:
                is_of_copy = reason["doubt"] in _OF_A_COPY
                against.setdefault(reason["path"], []).append((reason["detail"], is_of_copy))
        for path in record.get("not_on_card", ()):
            against.setdefault(path, []).append(("was no longer on the card", False))
        all_named = record.get("reason_count", 0) <= MAX_REASONS
        until = _until(record)
        for page in self._pages(job):
            copies: dict[bytes, list[VerifiedCopy]] = {}
            for destination in record.get("destinations", ()):
                for path, known in self._ledger.known(page, destination).items():
                    places = {c.path: c for c in reversed(known) if c.verified_at < until}
                    copies.setdefault(path, []).extend(reversed(places.values()))
            for file in page:
                yield _line(file, job, record, copies.get(file.path, []), against, all_named)

    def exceptions(self, job: Job) -> Iterator[CardFile]:
        """What isn't simply a file that was to be copied."""
        for page in self._pages(job):
            yield from (each for each in page if each.kind not in COPIED_KINDS or each.problem)

    def _pages(self, job: Job) -> Iterator[Sequence[CardFile]]:
        after: bytes | None = None
        while page := self._card_files.of(job.execution_id, after=after, limit=PAGE_FILES):
            yield page
            after = page[-1].path


def _until(record: Mapping[str, Any]) -> datetime:
    """Before when a copy was there for the verdict to look at, which says it to a millisecond."""
    until = record.get("copies_until", record.get("judged_at"))
    if until is None:
        return datetime.max.replace(tzinfo=UTC)
    return datetime.fromisoformat(until) + timedelta(milliseconds=1)


def _line(
    file: CardFile,
    job: Job,
    record: Mapping[str, Any],
    copies: Sequence[VerifiedCopy],
    against: Mapping[str, Sequence[tuple[str, bool]]],
    all_named: bool,
) -> Line:
    if file.kind not in COPIED_KINDS:
        return Line(file, (), (), _LEFT_OUT.get(file.kind, "left out"), True)
    found = copies_of(
        file,
        copies,
        card=job.card,
        job_folder=job.name.encode("utf-8", "surrogateescape"),
        is_settled=True,
    )
    if found is None:
        read = record.get("read", {}).get(shown(file.path), ())
        hashes_read = dict(zip(read[::2], read[1::2], strict=True))
        found = [c for c in copies if hashes_read.get(c.file.hash_name) == c.file.hash]
    hashes: list[tuple[str, str]] = []
    for copy in found:
        hashes += [(copy.file.hash_name, copy.file.hash), *copy.file.further]
    hashes = list(dict.fromkeys(hashes))
    reasons = against.get(shown(file.path))
    wanted = len(record.get("destinations", ()))
    if reasons:
        # A destination without a good copy has one reason; the file itself speaks for them all.
        standing = wanted - len(reasons) if all(of_copy for _, of_copy in reasons) else None
        said = "; ".join(detail for detail, _ in reasons)
        return Line(file, hashes, found, said, False, standing)
    if not record:
        return Line(file, hashes, found, "not judged", False)
    if not all_named or not found:
        return Line(file, hashes, found, "not shown to be safe", False)
    cold = {copy.destination for copy in found if copy.cold}
    is_cold = cold >= set(record["destinations"])
    state = "verified" if is_cold else "verified, maybe cached"
    return Line(file, hashes, found, state, True, wanted)


_OF_A_COPY = frozenset({Doubt.UNFINISHED, Doubt.GONE, Doubt.ALTERED, Doubt.DESTINATION})

_LEFT_OUT = {
    FileKind.JUNK: "left out: an operating system's own",
    FileKind.LINK: "left out: a link",
    FileKind.SPECIAL: "left out: no file",
    FileKind.FOLDER: "an empty folder",
}


# -- the table -----------------------------------------------------------------------


def _table(job: Job, report: Report) -> Iterator[str]:
    yield "\ufeff" + _row(COLUMNS)
    record = job.verdict or {}
    whose = (job.name, job.card.label, "yes" if record.get("safe_to_format") else "no")
    for line in report.lines(job):
        file = line.file
        yield _row(
            (
                shown(file.path),
                file.kind.value,
                "" if file.clip is None else shown(file.clip),
                str(file.size_bytes),
                _moment_of(file.mtime_ns),
                *(line.hashes[0] if line.hashes else ("", "")),
                " | ".join(map(" ".join, line.hashes[1:])),
                " | ".join(_place(copy) for copy in line.copies),
                "" if line.verified_at is None else _iso(line.verified_at),
                line.state,
                file.problem or "",
                *whose,
            )
        )


def _row(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(
        "'" + cell if cell.startswith(_FORMULA) else cell for cell in cells
    )
    return line.getvalue()


def _place(copy: VerifiedCopy) -> str:
    return shown(copy.destination.encode("utf-8", "surrogateescape") + b"/" + copy.path)


# -- the page ------------------------------------------------------------------------

_STYLE = """
@page { size: A4; margin: 14mm 12mm 16mm;
  @bottom-right { content: counter(page) " / " counter(pages); font: 9px sans-serif } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1080px; padding: 32px 28px; background: #fff; color: #1b1f24;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
header { display: flex; justify-content: space-between; align-items: baseline; gap: 24px }
h1 { font-size: 26px; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 15px; margin: 34px 0 8px; break-after: avoid }
header p, footer { color: #656d76; margin: 0; font-size: 12px }
dl > div { break-inside: avoid }
.verdict { break-inside: avoid; margin: 18px 0 24px; padding: 16px 20px;
  border-left: 6px solid; border-radius: 4px; font-size: 19px; font-weight: 650;
  overflow-wrap: anywhere; print-color-adjust: exact;
  -webkit-print-color-adjust: exact }
.safe { background: #e7f6ec; border-color: #1a7f37; color: #0d5224 }
.unsafe { background: #ffebe9; border-color: #cf222e; color: #82071e }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 14px 24px;
  margin: 0 }
dl .wide { grid-column: 1 / -1 }
dt { color: #656d76; font-size: 11px; letter-spacing: .04em; text-transform: uppercase }
dd { margin: 1px 0 0; overflow-wrap: anywhere }
table { border-collapse: collapse; table-layout: fixed; width: 100%; font-size: 12px }
thead { display: table-header-group }
/* One long name mustn't take all of a page's width. */
.files th { width: 9% } .files th:first-child { width: 36% } .files th:nth-child(4) { width: 18% }
.files th:nth-child(5) { width: 7% } .files th:last-child { width: 21% }
.reasons th { width: 55% } .reasons th:first-child { width: 45% }
.exceptions th { width: 10% } .exceptions th:first-child { width: 45% }
.exceptions th:last-child { width: 35% }
tr { break-inside: avoid }
th { text-align: left; color: #656d76; font-weight: 600; border-bottom: 1.5px solid #1b1f24 }
th, td { padding: 4px 12px 4px 0; vertical-align: top }
th:last-child, td:last-child { padding-right: 0 }
td { border-bottom: 1px solid #e4e7eb; overflow-wrap: anywhere }
td.size { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
th.size { text-align: right }
code { font: 11px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace }
.bad { color: #b3121f; font-weight: 600 }
.note { color: #656d76; font-size: 11px }
footer { margin-top: 36px; padding-top: 10px; border-top: 1px solid #e4e7eb }
@media print { body { padding: 0; max-width: none; font-size: 11px } table { font-size: 9.5px }
  code { font-size: 8.5px } h1 { font-size: 20px } .verdict { font-size: 15px } }
"""


def _page(job: Job, report: Report) -> Iterator[str]:
    record: Mapping[str, Any] = job.verdict or {}
    yield _opening(job, record)
    yield f"<h2>The card and the copies</h2>\n<dl>{''.join(_facts(job, record))}</dl>\n"
    yield from _reasons(record)
    yield from _exceptions(job, report, record)
    yield "<h2>Files</h2>\n" + _head("files", ("File", "Kind", "Size", "Hash", "Copies", "State"))
    wanted = len(record.get("destinations", ()))
    for line in report.lines(job):
        if line.file.kind in COPIED_KINDS:
            yield _file_row(line, job, wanted)
    yield "</tbody></table>\n"
    made = record.get("judged_at")
    yield (
        f"<footer>{_text(record.get('software', 'Rushes'))}"
        + (f" on {_text(record['host'])}" if record.get("host") else "")
        + (f". As it was on {_when(datetime.fromisoformat(made))}" if made else "")
        + ". The verdict looks at sizes and times; <code>rushes verify</code> reads every byte "
        "again.</footer>\n</body></html>\n"
    )


def _opening(job: Job, record: Mapping[str, Any]) -> str:
    title = _text(job.name)
    words = _text(record.get("words", NO_VERDICT))
    kind = "safe" if record.get("safe_to_format") else "unsafe"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<header><h1><bdi>{title}</bdi></h1><p>Offload report, job {job.id}</p></header>\n"
        f'<p class="verdict {kind}">{words}</p>\n'
    )


def _facts(job: Job, record: Mapping[str, Any]) -> Iterator[str]:
    yield _fact("Card", job.card.label)
    yield _fact("Card's identity", job.card.identity)
    if job.card.generation > 1:
        yield _fact("Card's generation", f"{job.card.generation}, counting how often it was filled")
    if record.get("card_path"):
        yield _fact("Read from", str(record["card_path"]))
    for number, place in enumerate(record.get("destinations", ()), start=1):
        title = "Destination" if len(record["destinations"]) == 1 else f"Destination {number}"
        yield _fact(title, place)
    files = record.get("files", job.file_count)
    size_bytes = record.get("size_bytes", job.total_bytes)
    yield _fact("On the card", f"{_files(files)}, {size_text(size_bytes)}")
    if job.intake is not None:
        yield _fact("Against the ledger", _intake(job.intake))
    copied = record.get("copied", {})
    if copied:
        yield _fact("Copied", f"{_files(copied['files'])}, {size_text(copied['bytes'])}")
        if copied.get("known"):
            yield _fact("Known from earlier", _files(copied["known"]))
    yield _fact("Begun", _when(job.created_at))
    if job.completed_at is not None:
        yield _fact("Copied and verified", _when(job.completed_at))
        took_s = (job.completed_at - job.created_at).total_seconds()
        yield _fact("Time taken", _duration(took_s))
        if copied and took_s >= 1:
            yield _fact("Speed", f"{size_text(copied['bytes'] / took_s)}/s, verifying included")
    for manifest in record.get("manifests", ()):
        left = manifest["left_out_files"]
        path = manifest["path"] or "none: nothing could be listed"
        yield _fact("Manifest", path + (f" (left out: {left})" if left else ""), wide=True)
    for note in record.get("notes", ()):
        yield _fact("Note", note, wide=True)


def _intake(intake: Mapping[str, Any]) -> str:
    """``3 files new, 120 known``."""
    words = (("new", "new"), ("known", "known"), ("to_hash", "compared by their bytes"))
    said = [f"{intake[key]['files']} {word}" for key, word in words if intake[key]["files"]]
    return ", ".join(said) or "nothing to copy"


def _fact(title: str, value: object, *, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<div{kind}><dt>{_text(title)}</dt><dd><bdi>{_text(value)}</bdi></dd></div>"


def _reasons(record: Mapping[str, Any]) -> Iterator[str]:
    reasons = record.get("reasons", ())
    if not reasons:
        return
    yield "<h2>What stands against formatting</h2>\n" + _head("reasons", ("What", "Why"))
    for reason in reasons:
        what = reason["path"]
        yield _cells(
            f"<code><bdi>{_text(what)}</bdi></code>" if what else "the card as a whole",
            f'<span class="bad">{_text(reason["detail"])}</span>',
        )
    more = record["reason_count"] - len(reasons)
    if more > 0:
        yield _cells("", f"and {more} more")
    yield "</tbody></table>\n"


def _exceptions(job: Job, report: Report, record: Mapping[str, Any]) -> Iterator[str]:
    """What isn't simply a file that was copied: left out, flawed, or in no manifest."""
    yield "<h2>Exceptions</h2>\n"
    none = True
    for file in report.exceptions(job):
        if none:
            yield _head("exceptions", ("Entry", "Kind", "Size", "What there is to know"))
            none = False
        yield _cells(
            _name(file.path),
            _text(file.kind.value),
            size_text(file.size_bytes),
            _text(file.problem or _LEFT_OUT.get(file.kind, "left out")),
        )
    yield "<p>None.</p>\n" if none else "</tbody></table>\n"
    for manifest in record.get("manifests", ()):
        for left in manifest["left_out"]:
            yield f'<p class="note">Not in the manifest: <bdi>{_text(left)}</bdi></p>\n'
        more = manifest["left_out_files"] - len(manifest["left_out"])
        if more:
            yield f'<p class="note">and {more} more</p>\n'


def _file_row(line: Line, job: Job, wanted: int) -> str:
    hashes = "<br>".join(f"<code>{_text(' '.join(each))}</code>" for each in line.hashes)
    state = _text(line.state) if line.is_good else f'<span class="bad">{_text(line.state)}</span>'
    own = f"{job.name}/".encode("utf-8", "surrogateescape")
    elsewhere = [copy for copy in line.copies if copy.path != own + copy.file.path]
    if elsewhere:
        is_known = not any(copy.path.startswith(own) for copy in line.copies)
        what = "known from earlier" if is_known else "also, or renamed"
        places = _text(" | ".join(map(_folder_or_place, elsewhere)))
        state += f'<br><span class="note">{what}: <bdi>{places}</bdi></span>'
    return _cells(
        _name(line.file.path),
        _text(line.file.kind.value),
        size_text(line.file.size_bytes),
        hashes,
        "" if line.standing is None else f"{line.standing} of {wanted}",
        state,
    )


def _folder_or_place(copy: VerifiedCopy) -> str:
    """The job's folder where it lies below that as on the card, whose path the row has."""
    place = _place(copy)
    return place.removesuffix("/" + shown(copy.file.path))


def _head(kind: str, titles: Sequence[str]) -> str:
    """``kind``: the style has its columns' widths."""
    cells = "".join(
        f'<th class="size">{title}</th>' if title == "Size" else f"<th>{title}</th>"
        for title in titles
    )
    return f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>\n'


def _cells(*cells: str) -> str:
    """``cells``: HTML already; where there are more than two, the third is a size."""
    row = "".join(
        f'<td class="size">{cell}</td>' if number == 2 else f"<td>{cell}</td>"
        for number, cell in enumerate(cells)
    )
    return f"<tr>{row}</tr>\n"


def _name(path: bytes) -> str:
    return f"<bdi>{_text(shown(path))}</bdi>"


def _text(said: object) -> str:
    """As HTML, with nothing in it that can't be seen: others may have chosen the characters."""
    text = str(said)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escape(text)


def size_text(size_bytes: float) -> str:
    """``12.3 GB``, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _when(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _moment_of(mtime_ns: int) -> str:
    """Empty for times that no calendar has; file systems hold what they were given."""
    try:
        return _iso(datetime.fromtimestamp(mtime_ns // 1_000_000_000, UTC))
    except (ValueError, OverflowError, OSError):
        return ""
