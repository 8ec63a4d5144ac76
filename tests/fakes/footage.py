"""The ports about footage, in memory: what goes in and what comes out are copies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from application.ports import MAX_UNFINISHED, AttemptRef
from domain.errors import AttemptOver, JobNotFound
from domain.footage import Card, CardFile, FileKind, ImportedFile, Job, JobStatus, VerifiedCopy

Fence = Callable[[AttemptRef], bool]
"""Whether the attempt runs."""


def _refuse_unless_running(fence: Fence, attempt: AttemptRef) -> None:
    if not fence(attempt):
        raise AttemptOver(
            f"attempt {attempt.attempt} of step {attempt.step_key!r} "
            f"of execution {attempt.execution_id} doesn't run"
        )


class MemoryJobs:
    """busy, library: of an execution, whether anybody is at it, and the one in its data."""

    def __init__(
        self,
        fence: Fence,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        busy: Callable[[int], bool] = lambda execution_id: False,
        library: Callable[[int], str | None] = lambda execution_id: None,
    ) -> None:
        self._fence = fence
        self._now = now
        self._busy = busy
        self._library = library
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()

    def create(
        self,
        attempt: AttemptRef,
        *,
        name: str,
        card: Card,
        file_count: int,
        total_bytes: int,
        intake: Mapping[str, Any] | None = None,
        taken: Callable[[str], bool] = lambda name: False,
    ) -> Job:
        with self._lock:
            _refuse_unless_running(self._fence, attempt)
            for job in self._jobs.values():
                if job.execution_id == attempt.execution_id:
                    return job
            job = Job(
                id=len(self._jobs) + 1,
                uuid=str(uuid4()),
                execution_id=attempt.execution_id,
                name=self._free(name, taken),
                card=card,
                status=JobStatus.CREATED,
                file_count=file_count,
                total_bytes=total_bytes,
                created_at=self._now(),
                intake=None if intake is None else json.loads(json.dumps(dict(intake))),
            )
            self._jobs[job.id] = job
            return job

    def get(self, job_id: int) -> Job:
        with self._lock:
            return self._find(job_id)

    def generation(self, card_identity: str) -> int:
        with self._lock:
            found = (each.card for each in self._jobs.values())
            return max((c.generation for c in found if c.identity == card_identity), default=0)

    def named(self, name: str) -> bool:
        with self._lock:
            return any(job.name == name for job in self._jobs.values())

    def unfinished(self, card_identity: str, library: str) -> Sequence[Job]:
        with self._lock:
            found = [
                job
                for job in reversed(self._jobs.values())
                if job.card.identity == card_identity
                and job.status is JobStatus.CREATED
                and not self._busy(job.execution_id)
                and self._library(job.execution_id) == library
            ]
        return found[:MAX_UNFINISHED]

    def copied(self, attempt: AttemptRef, job_id: int) -> Job:
        with self._lock:
            _refuse_unless_running(self._fence, attempt)
            job = self._find(job_id)
            if job.status is not JobStatus.COPIED:
                job = replace(job, status=JobStatus.COPIED, completed_at=self._now())
                self._jobs[job_id] = job
            return job

    def list(self, *, before: int | None = None, limit: int = 50) -> Sequence[Job]:
        with self._lock:
            found = [job for job in reversed(self._jobs.values()) if not before or job.id < before]
        return found[:limit]

    def judged(self, attempt: AttemptRef, job_id: int, verdict: Mapping[str, Any]) -> Job:
        with self._lock:
            _refuse_unless_running(self._fence, attempt)
            told = json.loads(json.dumps(dict(verdict)))
            self._jobs[job_id] = replace(self._find(job_id), verdict=told)
            return self._jobs[job_id]

    def status_of(self, execution_id: int) -> JobStatus | None:
        """Of the execution's job, if it has one."""
        with self._lock:
            found = (job for job in self._jobs.values() if job.execution_id == execution_id)
            return next((job.status for job in found), None)

    def _find(self, job_id: int) -> Job:
        if job_id not in self._jobs:
            raise JobNotFound(job_id)
        return self._jobs[job_id]

    def _free(self, name: str, taken: Callable[[str], bool]) -> str:
        names = {job.name for job in self._jobs.values()}
        number, free = 1, name
        while free in names or taken(free) or any(each.startswith(f"{free}/") for each in names):
            number += 1
            free = f"{name}-{number}"
        return free


class MemoryCardFiles:
    """stays: whether an execution, or its job, is there."""

    def __init__(
        self, fence: Fence, *, stays: Callable[[int], bool] = lambda execution_id: True
    ) -> None:
        self._fence = fence
        self._stays = stays
        self._files: dict[int, dict[bytes, CardFile]] = {}
        self._lock = threading.Lock()

    def replace(self, attempt: AttemptRef, files: Iterable[CardFile]) -> None:
        with self._lock:
            _refuse_unless_running(self._fence, attempt)
            self._files[attempt.execution_id] = {file.path: file for file in files}

    def of(
        self, execution_id: int, *, after: bytes | None = None, limit: int | None = None
    ) -> Sequence[CardFile]:
        with self._lock:
            files = self._files.get(execution_id, {}) if self._stays(execution_id) else {}
            paths = sorted(path for path in files if after is None or path > after)
            return [files[path] for path in paths[:limit]]

    def counts(self, execution_id: int) -> Mapping[FileKind, tuple[int, int]]:
        counts: dict[FileKind, tuple[int, int]] = {}
        for file in self.of(execution_id):
            files, size_bytes = counts.get(file.kind, (0, 0))
            counts[file.kind] = (files + 1, size_bytes + file.size_bytes)
        return counts


class MemoryLedger:
    """cancelled: whether the attempt ran when it was cancelled, and none came after it."""

    def __init__(self, fence: Fence, *, cancelled: Fence = lambda attempt: False) -> None:
        self._fence: Fence = lambda attempt: fence(attempt) or cancelled(attempt)
        self._copies: dict[tuple[ImportedFile, str, bytes], tuple[int, VerifiedCopy]] = {}
        self._mount_points: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def copies(self) -> Sequence[VerifiedCopy]:
        """Everything recorded, the oldest first."""
        with self._lock:
            return [copy for _, copy in self._copies.values()]

    def known(
        self, files: Sequence[CardFile], destination: str
    ) -> Mapping[bytes, Sequence[VerifiedCopy]]:
        wanted = {(file.path, file.size_bytes) for file in files}
        found: dict[bytes, list[VerifiedCopy]] = {}
        for copy in self.copies:
            if copy.destination == destination and (copy.file.path, copy.file.size_bytes) in wanted:
                found.setdefault(copy.file.path, []).append(copy)
        return found

    def record(self, attempt: AttemptRef, job_id: int, copies: Sequence[VerifiedCopy]) -> None:
        with self._lock:
            _refuse_unless_running(self._fence, attempt)
            for copy in copies:
                self._copies.setdefault((copy.file, copy.destination, copy.path), (job_id, copy))

    def mount_point(self, destination: str) -> bytes | None:
        with self._lock:
            return self._mount_points.get(destination)

    def keep_mount_point(self, destination: str, path: bytes) -> None:
        with self._lock:
            self._mount_points[destination] = path
