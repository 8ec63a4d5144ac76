"""One step's life, as a table.

The table below is the whole truth about which verb is understood in which
state; an empty row is an end that nothing leaves. Everything else in this file
only says what else changes when an arrow is taken.

A step is a value: a verb returns the step as it will be and leaves the old one
as it was, so that a draft of an execution can be dropped without a trace. It is a
named tuple, because each transition makes a few of them, and a frozen dataclass of
so many fields takes ten times as long to make.

``attempt`` counts the starts, and never goes back. A result carries the attempt
that it belongs to, and is believed only while that attempt is the one that runs
(``Execution`` checks it): a worker that was given up for dead can't overwrite
the work of its successor.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from domain.definition import StepSpec
from domain.errors import IllegalTransition


class StepStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class StepVerb(StrEnum):
    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    SKIP = "skip"
    RETRY_LATER = "retry later"
    TAKE_OVER = "take over"
    CANCEL = "cancel"
    REOPEN = "reopen"
    WAIVE = "waive"
    SETTLE = "settle"


STEP_TRANSITIONS: Mapping[StepStatus, Mapping[StepVerb, StepStatus]] = {
    StepStatus.PENDING: {
        StepVerb.START: StepStatus.RUNNING,
        StepVerb.FAIL: StepStatus.FAILED,
        StepVerb.SKIP: StepStatus.SKIPPED,
        StepVerb.CANCEL: StepStatus.CANCELLED,
    },
    StepStatus.RUNNING: {
        StepVerb.COMPLETE: StepStatus.COMPLETED,
        StepVerb.FAIL: StepStatus.FAILED,
        StepVerb.RETRY_LATER: StepStatus.PENDING,
        StepVerb.TAKE_OVER: StepStatus.PENDING,
        StepVerb.CANCEL: StepStatus.CANCELLED,
    },
    StepStatus.COMPLETED: {},
    StepStatus.FAILED: {
        StepVerb.REOPEN: StepStatus.PENDING,
        StepVerb.WAIVE: StepStatus.SKIPPED,
        StepVerb.SETTLE: StepStatus.COMPLETED,
    },
    StepStatus.SKIPPED: {StepVerb.REOPEN: StepStatus.PENDING},
    StepStatus.CANCELLED: {},
}

ENDED = frozenset(
    {StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED}
)
"""The states in which nothing more happens by itself."""

GAVE_UP = frozenset({StepStatus.FAILED, StepStatus.SKIPPED})


class Step(NamedTuple):
    """A step of one execution.

    key: unique within the execution: the name, or ``name:parameter`` if it was spawned.
    depends_on and after: as its specification has them, and whatever was said when it
        was spawned.
    failures: failed attempts since a person last retried.
    takeovers: attempts lost with their worker, since a person last retried.
    progress: of the running attempt, from 0 to 1, as last noted.
    queued_at: since when it has been ready and waiting for a slot.
    started_at: when the attempt began; of one that a worker outside has claimed, when
        it did.
    worker: who outside does an external step, or was the last to try; None as long as
        nobody has claimed the attempt.
    lease_ends_at: until when the worker that has it may be silent.
    checkpoint: what an attempt has left for the next one, as long as there may be one.
    not_before: when the next attempt may start, after one that failed.
    waived: a person has said that it may be missing; what depends on it may go on.
    spawned_by: the key of the step that made it, if one did.
    """

    spec: StepSpec
    key: str
    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    failures: int = 0
    takeovers: int = 0
    progress: float = 0.0
    output: Mapping[str, Any] | None = None
    error: str | None = None
    created_at: datetime | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    params: Mapping[str, Any] = {}
    depends_on: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    checkpoint: Mapping[str, Any] | None = None
    not_before: datetime | None = None
    waived: bool = False
    spawned_by: str | None = None
    worker: str | None = None
    lease_ends_at: datetime | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @classmethod
    def of(cls, spec: StepSpec, *, at: datetime) -> Step:
        """The one step of an ordinary specification."""
        return cls(spec, spec.name, created_at=at, depends_on=spec.depends_on, after=spec.after)

    @property
    def parameter(self) -> str:
        """What tells it from the others of its family; empty for an ordinary step."""
        return self.key[len(self.spec.name) + 1 :]

    @property
    def ended(self) -> bool:
        # As ``in ENDED`` says it; but the hash of an enum's member takes ten times as long.
        return self.status is not StepStatus.PENDING and self.status is not StepStatus.RUNNING

    @property
    def satisfies(self) -> bool:
        """Whether what depends on it may start."""
        return self.waived or self.status is StepStatus.COMPLETED

    @property
    def queue_ends_at(self) -> datetime | None:
        """When it will have waited too long for a slot."""
        if self.queued_at is None or self.spec.queue_timeout_s is None:
            return None
        return self.queued_at + timedelta(seconds=self.spec.queue_timeout_s)

    @property
    def claimed(self) -> bool:
        """Whether a worker outside is at work on it."""
        return self.worker is not None and self.status is StepStatus.RUNNING

    @property
    def run_ends_at(self) -> datetime | None:
        """When the worker that has it will have taken too long."""
        if not self.claimed or self.started_at is None or self.spec.run_timeout_s is None:
            return None
        return self.started_at + timedelta(seconds=self.spec.run_timeout_s)

    @property
    def due_at(self) -> datetime | None:
        """When something is to become of it by itself: a next attempt, the end of a wait for
        a slot, or of the time of the worker that has it."""
        if self.status is StepStatus.PENDING:
            return self.not_before if self.queued_at is None else self.queue_ends_at
        if self.worker is None or self.status is not StepStatus.RUNNING:
            return None
        lease_ends_at, run_ends_at = self.lease_ends_at, self.run_ends_at
        if lease_ends_at is None or run_ends_at is None:
            return lease_ends_at or run_ends_at
        return min(lease_ends_at, run_ends_at)

    def _fire(self, verb: StepVerb) -> StepStatus:
        try:
            return STEP_TRANSITIONS[self.status][verb]
        except KeyError:
            raise IllegalTransition(f"step {self.key}", verb, self.status) from None

    def with_output(self, output: Mapping[str, Any]) -> Step:
        """The same step with an equal output that is somebody else's own."""
        return self._replace(output=output)

    def start(self, *, at: datetime) -> Step:
        return self._replace(
            status=self._fire(StepVerb.START),
            attempt=self.attempt + 1,
            progress=0.0,
            error=None,
            started_at=at,
            not_before=None,
            worker=None,
            lease_ends_at=None,
        )

    def claim(self, worker: str, *, at: datetime) -> Step:
        """A worker outside begins with the running attempt; its time counts from now."""
        return self._replace(worker=worker, started_at=at).beat(at=at)

    def beat(self, *, at: datetime) -> Step:
        """The worker that has it is alive; its lease begins anew."""
        if not self.claimed or self.spec.lease_s is None:
            return self
        return self._replace(lease_ends_at=at + timedelta(seconds=self.spec.lease_s))

    def queue(self, *, at: datetime) -> Step:
        """Ready, and waiting for a slot. Keeps its place if it waits already."""
        if self.queued_at is not None or self.status is not StepStatus.PENDING:
            return self
        return self._replace(queued_at=at)

    def leave_queue(self) -> Step:
        """It waits for something else than a slot now."""
        if self.queued_at is None or self.status is not StepStatus.PENDING:
            return self
        return self._replace(queued_at=None)

    def note(self, progress: float) -> Step:
        """Progress of the running attempt; it never goes back within one."""
        if self.status is not StepStatus.RUNNING or not progress > self.progress:
            return self
        return self._replace(progress=min(progress, 1.0))

    def leave(self, checkpoint: Mapping[str, Any]) -> Step:
        return self._replace(checkpoint=checkpoint)

    def complete(self, output: Mapping[str, Any], *, at: datetime) -> Step:
        return self._replace(
            status=self._fire(StepVerb.COMPLETE),
            output=output,
            checkpoint=None,
            progress=1.0,
            completed_at=at,
        )

    def fail(self, error: str, *, at: datetime) -> Step:
        return self._replace(
            status=self._fire(StepVerb.FAIL),
            failures=self.failures + 1,
            error=error,
            completed_at=at,
        )

    def retry_later(self, error: str, *, not_before: datetime) -> Step:
        """The attempt has failed, and another one follows by itself."""
        return self._replace(
            status=self._fire(StepVerb.RETRY_LATER),
            failures=self.failures + 1,
            error=error,
            progress=0.0,
            queued_at=None,
            started_at=None,
            not_before=not_before,
        )

    def cancel(self, *, at: datetime) -> Step:
        return self._replace(
            status=self._fire(StepVerb.CANCEL), checkpoint=None, not_before=None, completed_at=at
        )

    def waive(self, reason: str, *, at: datetime) -> Step:
        """A person says that it may be missing."""
        return self._replace(
            status=self._fire(StepVerb.WAIVE), error=reason, waived=True, completed_at=at
        )

    def settle(self, output: Mapping[str, Any], *, at: datetime) -> Step:
        """A person has done its work, and says what came of it."""
        return self._replace(
            status=self._fire(StepVerb.SETTLE),
            output=output,
            checkpoint=None,
            error=None,
            progress=1.0,
            completed_at=at,
        )

    def skip(self, reason: str, *, at: datetime) -> Step:
        return self._replace(
            status=self._fire(StepVerb.SKIP), error=reason, queued_at=None, completed_at=at
        )

    def take_over(self) -> Step:
        """Its worker is gone: the attempt is over, and the step is to be started again."""
        return self._replace(
            status=self._fire(StepVerb.TAKE_OVER),
            takeovers=self.takeovers + 1,
            progress=0.0,
            queued_at=None,
            started_at=None,
        )

    def release(self) -> Step:
        """As ``take_over``, but nobody is to blame."""
        return self.take_over()._replace(takeovers=self.takeovers)

    def reopen(self) -> Step:
        """A person asked for it again: the budgets start anew, ``attempt`` goes on."""
        return self._replace(
            status=self._fire(StepVerb.REOPEN),
            failures=0,
            takeovers=0,
            progress=0.0,
            error=None,
            queued_at=None,
            started_at=None,
            completed_at=None,
            not_before=None,
        )
