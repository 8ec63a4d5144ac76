"""A card, a library and the three steps between them, on a real disk."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.steps import parts
from adapters.steps.cards import FsCards, OpenCard
from adapters.steps.copy_files import CopyFiles
from adapters.steps.copying import SMALL_BYTES
from adapters.steps.create_job import CreateJob
from adapters.steps.scan_sd import ScanSd
from application.authoring import StepContext
from application.ports import AttemptRef
from domain.errors import InvalidInput
from domain.places import DEFAULT_LAYOUT
from tests.fakes.footage import MemoryCardFiles, MemoryJobs, MemoryLedger

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MTIME_NS = 1_700_000_000_123_456_789


class NoonClock:
    """Always noon; and a second more at every look at the stop-watch."""

    _seconds = 0.0

    def now(self) -> datetime:
        return NOON

    def monotonic(self) -> float:
        self._seconds += 1
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing sleeps in tests")


class Rig:
    """Runs the steps one after the other, as the engine would."""

    def __init__(self, folder: Path) -> None:
        self.mounts = folder / "mounts"
        self.card = self.mounts / "A001"
        self.card.mkdir(parents=True)
        self.library = folder / "library"
        self.further: list[Path] = []
        self.again = False
        self.layout = DEFAULT_LAYOUT
        self.settings: dict[str, Any] = {}
        self.live: set[AttemptRef] = set()
        self.busy: set[int] = set()
        self.libraries: dict[int, str] = {}
        self.jobs = MemoryJobs(
            self.live.__contains__,
            now=NoonClock().now,
            busy=self.busy.__contains__,
            library=self.libraries.get,
        )
        self.card_files = MemoryCardFiles(self.live.__contains__)
        self.cancelled: set[AttemptRef] = set()
        self.ledger = MemoryLedger(self.live.__contains__, cancelled=self.cancelled.__contains__)
        self.cards = FsCards([str(self.mounts)])
        self.waits: list[float] = []
        self.checkpoints: list[dict[str, Any]] = []
        self.reports: list[tuple[float, dict[str, Any]]] = []
        self.stopping: Callable[[], bool] = lambda: False
        self.pausing: Callable[[], bool] = lambda: False
        self.on_rest: Callable[[], object] = lambda: None
        self.given_back = 0
        self.spawned: dict[str, Any] = {}
        self.most_spawned = 10_000
        self.on_spawn: Callable[[str], object] = lambda key: None
        self._rests_until = 0.0
        self.on_report: Callable[[float, dict[str, Any]], None] = lambda fraction, detail: None
        self._attempts = 0

    def put(
        self, path: str | bytes, content: bytes = b"footage", mtime_ns: int = MTIME_NS
    ) -> bytes:
        """A file on the card."""
        place = os.path.join(os.fsencode(self.card), os.fsencode(path))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content)
        os.utime(place, ns=(mtime_ns, mtime_ns))
        return place

    def context(self, step_name: str, execution_id: int, data: dict[str, Any]) -> StepContext:
        self._attempts += 1
        ref = AttemptRef(execution_id, step_name, self._attempts)
        self.live.add(ref)

        return StepContext(
            ref=ref,
            execution_id=f"execution-{execution_id}",
            pipeline_type="sd_ingest",
            message_id=None,
            step_name=step_name,
            data=data,
            reports=self,
        )

    # -- application.authoring.Reports -----------------------------------------------

    def progress(self, fraction: float, detail: dict[str, Any]) -> None:
        self.reports.append((fraction, detail))
        self.on_report(fraction, detail)

    def beat(self) -> None:
        pass

    def told(self) -> bool:
        return self.stopping()

    def paused(self) -> bool:
        return self.pausing()

    def rest(self) -> None:
        self._rests_until = self._rests_until or time.monotonic() + 20
        assert time.monotonic() < self._rests_until, "nobody ends the pause"
        os.sched_yield()
        self.on_rest()

    def give_back(self) -> None:
        self.given_back += 1

    def wait(self, make: Any) -> None:
        make()

    def leave(self, checkpoint: Any) -> Any:
        self.checkpoints.append(json.loads(json.dumps(checkpoint)))

    def spawn(
        self, name: str, parameter: str, params: Any, depends_on: object, after: object
    ) -> Any:
        """As the engine does: the same again changes nothing, and there is an end to it."""
        key = f"{name}:{parameter}"
        if key not in self.spawned and len(self.spawned) == self.most_spawned:
            raise InvalidInput(f"an execution has at most {self.most_spawned} steps")
        if self.spawned.setdefault(key, params) != params:
            raise InvalidInput(f"step {key} is there already, with other params")
        self.on_spawn(key)

    # -- the steps -------------------------------------------------------------------

    def scan(self, execution_id: int = 1, sd_path: object = None) -> dict[str, Any]:
        data: dict[str, Any] = {
            "sd_path": str(self.card) if sd_path is None else sd_path,
            "library": str(self.library),
        }
        if self.further:
            data["destinations"] = [str(self.library), *map(str, self.further)]
        if self.again:
            data["again"] = True
        self.libraries[execution_id] = str(self.library)
        return data | self.scanner()(self.context("scan_sd", execution_id, data))

    def scanner(self, wait: Callable[[float], None] | None = None) -> ScanSd:
        ports = (self.cards, self.card_files, self.jobs, self.ledger, NoonClock())
        return ScanSd(*ports, str(self.library), wait=wait or self.waits.append)

    def create_job(self, execution_id: int, data: dict[str, Any]) -> dict[str, Any]:
        context = self.context("create_job", execution_id, data)
        step = CreateJob(self.jobs, NoonClock(), str(self.library), self.layout)
        return data | step(context)

    def copy(self, execution_id: int, data: dict[str, Any]) -> dict[str, Any]:
        step = CopyFiles(
            self.cards,
            self.card_files,
            self.jobs,
            self.ledger,
            NoonClock(),
            str(self.library),
            **self.settings,
        )
        return step(self.context("copy_files", execution_id, data))

    def ready(self, execution_id: int = 1) -> dict[str, Any]:
        """Scanned, with a job: what ``copy`` is given."""
        return self.create_job(execution_id, self.scan(execution_id))

    def ingest(self, execution_id: int = 1) -> dict[str, Any]:
        return self.copy(execution_id, self.ready(execution_id))

    @property
    def job(self) -> Path:
        """The first job's folder."""
        return self.library / "2026-11-22_A001"

    def arrived(self, library: Path | None = None) -> dict[bytes, bytes]:
        """Everything in the library, parts and all: path and content."""
        return {
            path: entry["content"]
            for path, entry in snapshot(library or self.library).items()
            if "content" in entry
        }


def snapshot(folder: Path) -> dict[bytes, dict[str, Any]]:
    """All that can be known of what is below a folder, access times too."""
    found: dict[bytes, dict[str, Any]] = {}
    for where, folders, files in os.walk(os.fsencode(folder)):
        for name in [b".", *folders, *files]:
            place = os.path.normpath(os.path.join(where, name))
            status = os.lstat(place)
            entry: dict[str, Any] = {
                "status": (
                    *status[:7],
                    status.st_atime_ns,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
            }
            if stat.S_ISREG(status.st_mode):
                fd = os.open(place, os.O_RDONLY | os.O_NOATIME)
                with open(fd, "rb") as file:
                    entry["content"] = file.read()
            found[os.path.relpath(place, os.fsencode(folder))] = entry
    return found


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def resuming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "RESUME_BYTES", SMALL_BYTES)


@pytest.fixture
def proving(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files of the card that are opened by themselves: to prove what they are."""
    opened: list[bytes] = []
    real = OpenCard.open_file

    def open_file(self: OpenCard, path: bytes) -> int:
        opened.append(path)
        return real(self, path)

    monkeypatch.setattr(OpenCard, "open_file", open_file)
    return opened


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that were written, by the part's final name."""
    counts: dict[str, int] = {}
    real = os.write

    def write(fd: int, data: Any) -> int:
        count = real(fd, data)
        place = os.readlink(f"/proc/self/fd/{fd}")
        if place.endswith(".part"):
            name = f"{Path(place).parents[1].name}/{Path(place).name.split('.')[0]}"
            counts[name] = counts.get(name, 0) + count
        return count

    monkeypatch.setattr(os, "write", write)
    return counts
