"""write_report: the job's report, as a page and as a table, on each destination.

They go into a folder ``reports`` beside the jobs' folders, where no manifest lists them
and no ``verify`` of a job's folder comes upon them. Their names have the time of the
verdict in them, so that a later verdict has a report of its own; nothing is replaced. A
step that runs again after a crash finds what it wrote.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from adapters.steps import kernel
from adapters.steps.faults import FileFault, LibraryFault, OffloadFault
from adapters.steps.library import Folder, Library
from application.authoring import PermanentError, StepContext
from application.ports import Jobs, Ledger
from application.report import Report

REPORTS = b"reports"
"""No job is called so: a layout gives no such name."""

BUFFER_BYTES = 1024 * 1024


class ReportsMissing(OffloadFault):
    """Some destinations got none. The copies are none the worse for it."""


class WriteReport:
    """The step."""

    def __init__(self, jobs: Jobs, ledger: Ledger, report: Report, library: str) -> None:
        self._jobs = jobs
        self._ledger = ledger
        self._report = report
        self._library = library

    def __call__(self, context: StepContext) -> dict[str, Any]:
        job = self._jobs.get(context.data["job_id"])
        if job.verdict is None:
            raise PermanentError(f"job {job.id} has no verdict to report")
        judged_at = datetime.fromisoformat(job.verdict["judged_at"]).astimezone(UTC)
        stem = os.fsencode(f"{job.name.replace('/', '_')}_{judged_at:%Y-%m-%d_%H%M%S}Z")
        written: list[str] = []
        faults: list[str] = []
        for library in Library.all_of(context, self._library, self._ledger):
            try:
                with _reports(library) as folder:
                    for suffix, make in (
                        (b".html", self._report.as_html),
                        (b".csv", self._report.as_csv),
                    ):
                        context.check()
                        written.append(_write(folder, stem, suffix, make(job.id)))
            except OffloadFault as fault:
                faults.append(str(fault))
        self._jobs.judged(context.ref, job.id, {**job.verdict, "reports": written})
        if faults:
            raise ReportsMissing(f"no report was written: {'; '.join(faults)}")
        return {"reports": written}


def _reports(library: Library) -> Folder:
    root = library.look()
    if root is None:
        raise LibraryFault(f"the library {library.text} is not there any more")
    with root:
        return root.make(REPORTS)


def _write(folder: Folder, stem: bytes, suffix: bytes, pieces: Iterable[str]) -> str:
    """Under the first name that nobody has; its place."""
    folder.remove_leftovers({stem + suffix})
    part, fd = folder.new_part(stem + suffix, stem + suffix)
    try:
        with folder.faults():
            with open(fd, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.writelines(pieces)
                file.flush()
                kernel.sync_file(fd)
            for name in _names(stem, suffix):
                if _is_same(folder, part, name):
                    folder.remove(part)
                    return folder.name_text(name)
                with suppress(FileFault):
                    folder.publish(part, name, name)
                    kernel.sync_folder(folder.fd)
                    return folder.name_text(name)
        raise LibraryFault(f"no name is free at {folder.text}")
    except BaseException:
        with suppress(OSError):
            folder.remove(part)
        raise


MAX_NAMES = 100
"""More reports of one job and second are nobody's."""


def _names(stem: bytes, suffix: bytes) -> Iterator[bytes]:
    yield stem + suffix
    for number in range(2, MAX_NAMES):
        yield b"%s-%d%s" % (stem, number, suffix)


def _is_same(folder: Folder, part: bytes, name: bytes) -> bool:
    try:
        fd = folder.open_file(name)
    except OSError:
        return False
    with open(fd, "rb") as other, open(folder.open_file(part), "rb") as ours:
        while True:
            piece = ours.read(BUFFER_BYTES)
            if piece != other.read(BUFFER_BYTES):
                return False
            if not piece:
                return True
