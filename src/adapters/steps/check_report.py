"""What ``verify_folder`` found, as a file: a table of every file, or a page of what was wrong.

A ``.csv`` has a row for each file that the manifests list, and for each that none lists.
An ``.html`` has the outcome and what was wrong, to print or to send; it loads nothing from
elsewhere. It is written beside and gets its name when it is whole; what has the name
already keeps it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from html import escape
from typing import BinaryIO, NamedTuple

from adapters.steps import kernel
from adapters.steps.faults import FileFault, LibraryFault, reason
from adapters.steps.library import MAX_OWN_NAMES, Folder
from domain.footage import shown
from domain.names import stored_name

MAX_ROWS = 10_000
"""Of a page, which nobody reads to its end; a table has them all."""

COLUMNS = ("path", "finding", "detail", "size_bytes", "hashes")

GOOD, REPAIRED, UNLISTED = "good", "repaired", "in no manifest"

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would run if a cell began with it."""

_STYLE = (
    "body{font:11pt/1.4 sans-serif;margin:2em auto;max-width:60em;color:#111}"
    "table{border-collapse:collapse;width:100%}thead{display:table-header-group}"
    "tr{break-inside:avoid}th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0;"
    "border-bottom:1px solid #ccc;overflow-wrap:anywhere}"
    ".yes,.no{font-size:1.3em;font-weight:bold;padding:.5em}"
    ".yes{background:#dff3e0}.no{background:#fbdcdc}dt{float:left;width:14em;color:#555}"
)


class Checked(NamedTuple):
    """A file, and what was found. finding: a ``Finding``, or one of the three words above."""

    path: bytes
    finding: str
    detail: str
    size_bytes: int | None
    hashes: Mapping[str, str]


class CheckReport:
    """Open from the first file to the last; unless it is finished, nothing stays of it."""

    def __init__(self, path: str) -> None:
        """Raises ``LibraryFault`` if it couldn't be written there."""
        above, self._name = os.path.split(os.fsencode(path))
        self._is_table = self._name.endswith(b".csv")
        self._rows: list[Checked] = []
        self._more = 0
        place = shown(above)
        try:
            fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LibraryFault(f"no report can be written at {place}: {reason(error)}") from error
        self._folder = Folder(fd, place)
        try:
            self._folder.remove_leftovers({self._name})
            self._part, part = self._folder.new_part(self._name, self._name)
        except BaseException:
            kernel.close(fd)
            raise
        self._file: BinaryIO = open(part, "wb")  # noqa: SIM115
        if self._is_table:
            self._write("\ufeff" + _row(COLUMNS))

    def __enter__(self) -> CheckReport:
        return self

    def __exit__(self, *of_the_block: object) -> None:
        with suppress(OSError):  # a disk that is gone keeps it until the next report
            self._file.close()
        with suppress(OSError):
            self._folder.remove(self._part)
        kernel.close(self._folder.fd)

    def add(self, checked: Checked) -> None:
        """Raises ``LibraryFault``."""
        if self._is_table:
            hashes = " ".join(f"{name}:{value}" for name, value in sorted(checked.hashes.items()))
            size = "" if checked.size_bytes is None else str(checked.size_bytes)
            path, finding, detail, *_ = checked
            self._write(_row((shown(path), finding, detail, size, hashes)))
        elif checked.finding != GOOD and len(self._rows) < MAX_ROWS:
            self._rows.append(checked)
        elif checked.finding != GOOD:
            self._more += 1

    def finish(self, title: str, facts: Mapping[str, str], *, is_intact: bool) -> str:
        """Under its name, or the next one that is free; its place. Raises ``LibraryFault``."""
        if not self._is_table:
            for piece in self._page(title, facts, is_intact=is_intact):
                self._write(piece)
        with self._folder.faults():
            self._file.flush()
            kernel.sync_file(self._file.fileno())
        for number in range(1, MAX_OWN_NAMES + 1):
            name = self._name if number == 1 else stored_name(self._name, number)
            with suppress(FileFault):
                self._folder.publish(self._part, name, name)
                with self._folder.faults():
                    kernel.sync_folder(self._folder.fd)
                return self._folder.name_text(name)
        raise LibraryFault(f"no name is free for the report at {self._folder.text}")

    def _write(self, text: str) -> None:
        with self._folder.faults():
            self._file.write(text.encode("utf-8", "backslashreplace"))

    def _page(self, title: str, facts: Mapping[str, str], *, is_intact: bool) -> Iterator[str]:
        yield (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="referrer" content="no-referrer">'
            f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
            f"<h1><bdi>{_text(title)}</bdi></h1>\n"
            f'<p class="{"yes" if is_intact else "no"}">{"Intact" if is_intact else "NOT intact"}'
            "</p>\n<dl>"
        )
        for name, value in facts.items():
            yield f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>\n"
        yield "</dl>\n"
        if self._rows:
            yield "<table><thead><tr><th>File</th><th>Finding</th><th>Why</th></tr></thead><tbody>"
        for path, finding, detail, *_ in self._rows:
            yield (
                f"<tr><td><bdi>{_text(shown(path))}</bdi></td><td>{_text(finding)}</td>"
                f"<td>{_text(detail)}</td></tr>\n"
            )
        if self._rows:
            yield "</tbody></table>\n"
        if self._more:
            yield f"<p>and {self._more} more: a report as .csv has them all</p>\n"
        yield "</body></html>\n"


def _row(cells: tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(
        "'" + cell if cell.startswith(_FORMULA) else cell for cell in cells
    )
    return line.getvalue()


def _text(said: str) -> str:
    """As HTML, with nothing in it that can't be seen: others may have chosen the characters."""
    visible = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)
    return escape("".join(visible))
