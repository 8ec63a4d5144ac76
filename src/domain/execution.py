"""The aggregate: one run of a pipeline, its steps and its data.

Verbs come in, facts are recorded, and every rule about when something may
happen is here, so that no service has to know one. A verb either happens whole
or raises; a store works on a ``copy()`` and drops it when a verb raised.

How an execution moves:

* A step is *ready* when it is pending, every step that it depends on has
  completed, and every step that it comes after has ended. Nothing starts unless
  the execution is running.
* A required step that fails fails the execution, at once. What runs may finish
  and is kept. Everything that depends on a failed or skipped step is skipped.
* When every step has ended, and no required one failed, it has completed.
* ``retry`` reopens the failed steps and those skipped because of them, and
  keeps what completed.

Progress is the weighted share of the steps that are done, plus the fractions of
those that run, rounded down. It never falls within a run (a run begins with the
trigger, a retry or a recovery) and reaches 100 only at the end. A required step
that failed isn't done: a failed execution shows how far it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from domain.definition import PipelineDefinition
from domain.errors import (
    AttemptOver,
    IllegalTransition,
    InvalidInput,
    NotExternal,
    StepNotFound,
)
from domain.events import (
    Fact,
    PipelineCancelled,
    PipelineCompleted,
    PipelineFailed,
    PipelinePaused,
    PipelineResumed,
    PipelineRetried,
    PipelineStarted,
    StepCompleted,
    StepFailed,
    StepRetrying,
    StepSkipped,
    StepStarted,
)
from domain.step import Step, StepStatus

MAX_TAKEOVERS = 10
"""How often a step may lose its worker before it counts as the one that kills it."""


class ExecutionStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ExecutionVerb(StrEnum):
    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"


EXECUTION_TRANSITIONS: Mapping[ExecutionStatus, Mapping[ExecutionVerb, ExecutionStatus]] = {
    ExecutionStatus.PENDING: {
        ExecutionVerb.START: ExecutionStatus.RUNNING,
        ExecutionVerb.CANCEL: ExecutionStatus.CANCELLED,
    },
    ExecutionStatus.RUNNING: {
        ExecutionVerb.COMPLETE: ExecutionStatus.COMPLETED,
        ExecutionVerb.FAIL: ExecutionStatus.FAILED,
        ExecutionVerb.CANCEL: ExecutionStatus.CANCELLED,
    },
    ExecutionStatus.COMPLETED: {},
    ExecutionStatus.FAILED: {ExecutionVerb.RETRY: ExecutionStatus.RUNNING},
    ExecutionStatus.CANCELLED: {},
}

ACTIVE = frozenset({ExecutionStatus.PENDING, ExecutionStatus.RUNNING})
"""The states in which an execution holds its card."""


@dataclass(slots=True, eq=False)
class Execution:
    """One run of a pipeline.

    id: the store's, None until it is stored. uuid: the one that clients see.
    message_id: what the detector called its signal; at most one execution has it.
    card_key: which card it works on, if any; at most one active execution has it.
    data: the trigger's payload with every step's output merged in. Never changed
        in place: a merge makes a new mapping.
    version: how often it has been stored.
    """

    uuid: str
    definition: PipelineDefinition
    created_at: datetime
    updated_at: datetime
    id: int | None = None
    message_id: str | None = None
    card_key: str | None = None
    status: ExecutionStatus = ExecutionStatus.PENDING
    job_id: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    error_message: str | None = None
    warnings: tuple[str, ...] = ()
    progress: int = 0
    paused_at: datetime | None = None
    version: int = 0
    started_at: datetime | None = None
    completed_at: datetime | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    recorded: list[Fact] = field(default_factory=list)

    # -- beginning ---------------------------------------------------------------

    @classmethod
    def trigger(
        cls,
        definition: PipelineDefinition,
        *,
        uuid: str,
        data: Mapping[str, Any],
        at: datetime,
        message_id: str | None = None,
        card_key: str | None = None,
    ) -> Execution:
        """A running execution with its first steps, none of them started yet."""
        execution = cls(
            uuid=uuid,
            definition=definition,
            message_id=message_id,
            card_key=card_key,
            data=data,
            created_at=at,
            updated_at=at,
            steps={spec.name: Step(spec, spec.name, created_at=at) for spec in definition.steps},
        )
        execution.status = execution._fire(ExecutionVerb.START)
        execution.started_at = at
        execution._record(
            PipelineStarted(at, pipeline_type=definition.type, steps=tuple(execution.steps))
        )
        return execution

    def copy(self) -> Execution:
        """A draft: verbs on it leave this one as it is. Nothing is recorded in it yet."""
        return replace(self, steps=dict(self.steps), recorded=[])

    def differs_from(self, other: Execution) -> bool:
        """Whether there is anything to store that ``other``, its original, doesn't have."""
        return (
            bool(self.recorded)
            or any(step is not other.steps.get(key) for key, step in self.steps.items())
            or self.status is not other.status
            or self.progress != other.progress
            or self.data is not other.data
            or self.job_id != other.job_id
            or self.error_message != other.error_message
            or self.warnings != other.warnings
            or self.paused_at != other.paused_at
        )

    # -- questions ---------------------------------------------------------------

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def unfinished(self) -> bool:
        """Whether there is anything to go on with after a restart."""
        return self.active or any(step.status is StepStatus.RUNNING for step in self.steps.values())

    def step(self, key: str) -> Step:
        """Raises ``StepNotFound``."""
        try:
            return self.steps[key]
        except KeyError:
            raise StepNotFound(self.uuid, key) from None

    def ready(self) -> Sequence[Step]:
        """The steps that may start at ``updated_at``, in the order of the definition."""
        if self.status is not ExecutionStatus.RUNNING or self.paused_at is not None:
            return ()
        return [step for step in self.steps.values() if self._may_start(step)]

    def next_look_at(self) -> datetime | None:
        """When something may be due by itself: an attempt to start, a wait to give up."""
        if self.status is not ExecutionStatus.RUNNING or self.paused_at is not None:
            return None
        due = [
            time
            for step in self.steps.values()
            if step.status is StepStatus.PENDING
            for time in (step.not_before, step.queue_ends_at)
            if time is not None and time > self.updated_at
        ]
        return min(due, default=None)

    def waits_for(self) -> Sequence[str]:
        """The steps that somebody outside Rushes has to report on."""
        return [
            step.key
            for step in self.steps.values()
            if step.spec.external and step.status is StepStatus.RUNNING
        ]

    # -- verbs of the engine -----------------------------------------------------

    def start(self, key: str, *, at: datetime) -> Step:
        """Raises ``IllegalTransition`` unless the step is ready."""
        step = self.step(key)
        running = self.status is ExecutionStatus.RUNNING and self.paused_at is None
        if not running or not self._may_start(step):
            raise IllegalTransition(f"step {key}", "start", f"{step.status} and not ready")
        started = self._put(step.start(at=at), at)
        self._record(StepStarted(at, started.name, key, started.attempt))
        return started

    def queue(self, key: str, *, at: datetime) -> None:
        """Ready, but there is no slot for it yet."""
        self._put(self.step(key).queue(at=at), at)

    def note(self, fractions: Mapping[str, tuple[int, float]], *, at: datetime) -> None:
        """How far the running attempts have come: ``{step_key: (attempt, 0.0 to 1.0)}``.

        What comes from another attempt, or from a step that doesn't run, is dropped.
        """
        for key, (attempt, fraction) in fractions.items():
            step = self.steps.get(key)
            if step is not None and step.attempt == attempt:
                self._put(step.note(fraction), at)
        self._advance_progress()

    def complete(
        self,
        key: str,
        attempt: int,
        output: Mapping[str, Any],
        *,
        at: datetime,
        job_id: int | None = None,
    ) -> None:
        """The attempt has done its work: merge its output, and see what follows.

        The same report twice is a no-op. An output that contradicts what the
        trigger or another step said fails the step instead, naming both.
        Raises ``StepNotFound``; ``AttemptOver`` for an attempt that doesn't run.
        """
        step = self.step(key)
        contradictions = self._contradictions(step, output)
        if contradictions:
            repeated = step.status is StepStatus.FAILED and step.error in contradictions
            reason = step.error if repeated and step.error else contradictions[0]
            self.fail(key, attempt, reason, at=at)
            return
        if step.status is StepStatus.COMPLETED and step.attempt == attempt:
            if _same(step.output, output):
                return
            raise AttemptOver(f"step {key}, attempt {attempt} has completed with another output")
        self._believe(step, attempt)
        self._put(step.complete(output, at=at), at)
        if output:
            self.data = {**self.data, **output}
        if job_id is not None:
            self.job_id = job_id
        last = all(other.ended for other in self.steps.values())
        finishes = last and self.status is ExecutionStatus.RUNNING
        self._advance_progress(complete=finishes)
        self._record(StepCompleted(at, step.name, key, attempt, self.progress))
        self._finish_if_done(at)

    def fail(
        self,
        key: str,
        attempt: int,
        error: str,
        *,
        at: datetime,
        permanent: bool = False,
        chance: float = 0.5,
    ) -> None:
        """The attempt has failed. Reporting it twice is a no-op.

        Unless the failure is ``permanent``, another attempt follows by itself while the
        step's policy allows one; ``chance`` (0 to 1) makes its pause longer or shorter.
        Raises ``StepNotFound``; ``AttemptOver`` for an attempt that doesn't run.
        """
        step = self.step(key)
        told = step.status in (StepStatus.FAILED, StepStatus.PENDING) and step.error == error
        if told and step.attempt == attempt:
            return
        self._believe(step, attempt)
        policy = step.spec.retry
        again = not permanent and step.failures < policy.retries
        if again and self.status is ExecutionStatus.RUNNING:
            pause = timedelta(seconds=policy.pause_s(step.failures + 1, chance))
            self._put(step.retry_later(error, not_before=at + pause), at)
            self._record(StepRetrying(at, step.name, key, attempt, error, at + pause))
        else:
            self._fail_for_good(step, error, at)

    def tick(self, *, at: datetime) -> None:
        """Time has passed: give up what has waited too long; what is due is ready by now."""
        self.updated_at = max(self.updated_at, at)
        for step in list(self.steps.values()):
            waits = self.status is ExecutionStatus.RUNNING and step.status is StepStatus.PENDING
            ends_at = step.queue_ends_at
            if waits and ends_at is not None and ends_at <= at:
                waited = step.spec.queue_timeout_s
                self._fail_for_good(step, f"waited more than {waited:g} s for a slot", at)

    def recover(self, *, at: datetime) -> None:
        """The process that ran the steps is gone: take over what it was doing.

        Steps that run outside Rushes haven't lost their worker and go on.
        """
        for step in list(self.steps.values()):
            if step.status is not StepStatus.RUNNING or step.spec.external:
                continue
            if step.takeovers >= MAX_TAKEOVERS:
                self._fail_for_good(
                    step, f"lost its worker {step.takeovers + 1} times; it may be what ends it", at
                )
            else:
                self._put(step.take_over(), at)
        self.updated_at = at
        self.progress = 0
        self._advance_progress()

    def release(self, key: str, attempt: int, *, at: datetime) -> None:
        """Rushes is stopping: give the attempt back, to be started again later.

        No fault of the step's, so it isn't counted as a lost worker.
        """
        step = self.step(key)
        self._believe(step, attempt)
        self._put(replace(step.take_over(), takeovers=step.takeovers), at)

    # -- verbs of people and services --------------------------------------------

    def retry(self, *, at: datetime) -> None:
        """Run again what failed, and what was skipped because of it.

        Raises ``IllegalTransition`` unless the execution has failed.
        """
        self.status = self._fire(ExecutionVerb.RETRY)
        reopened = [
            self._put(step.reopen(), at).key
            for step in list(self.steps.values())
            if step.status is StepStatus.FAILED
            or (step.status is StepStatus.SKIPPED and not step.waived)
        ]
        self.error_message = None
        self.warnings = ()
        self.completed_at = None
        self.progress = 0
        self._advance_progress()
        self._record(PipelineRetried(at, reopened=tuple(reopened)))

    def cancel(self, *, at: datetime) -> None:
        """Nothing more starts, and what runs is no longer waited for. Twice is a no-op.

        Raises ``IllegalTransition`` once the execution has ended otherwise.
        """
        if self.status is ExecutionStatus.CANCELLED:
            return
        self.status = self._fire(ExecutionVerb.CANCEL)
        cancelled = [
            self._put(step.cancel(at=at), at).key
            for step in list(self.steps.values())
            if not step.ended
        ]
        self.paused_at = None
        self.completed_at = at
        self._record(PipelineCancelled(at, cancelled=tuple(cancelled)))

    def pause(self, *, at: datetime) -> None:
        """Nothing more starts; what runs goes on to its end. Twice is a no-op.

        Raises ``IllegalTransition`` once the execution has ended.
        """
        if not self.active:
            raise IllegalTransition(f"execution {self.uuid}", "pause", self.status)
        if self.paused_at is None:
            self.paused_at = at
            for step in list(self.steps.values()):
                self._put(step.leave_queue(), at)
            self._record(PipelinePaused(at))

    def resume(self, *, at: datetime) -> None:
        """Go on after ``pause``; a no-op if it isn't paused.

        Raises ``IllegalTransition`` once the execution has ended.
        """
        if not self.active:
            raise IllegalTransition(f"execution {self.uuid}", "resume", self.status)
        if self.paused_at is not None:
            self.paused_at = None
            self._record(PipelineResumed(at))

    def waive(self, key: str, *, at: datetime) -> None:
        """A person says that a failed step may be missing; what depends on it goes on.

        Resumes the execution once no required step is failed. Twice is a no-op.
        Raises ``StepNotFound``; ``IllegalTransition`` unless step and execution have failed.
        """
        step = self.step(key)
        if step.waived and step.status is StepStatus.SKIPPED:
            return
        self._require_failed("skip", step)
        reason = "skipped by hand"
        waived = self._put(step.waive(reason, at=at), at)
        self._record(StepSkipped(at, waived.name, key, waived.attempt, reason))
        self._resume_if_settled(at)

    def settle(self, key: str, output: Mapping[str, Any], *, at: datetime) -> None:
        """A person has done a failed step's work, and says what came of it.

        Resumes the execution once no required step is failed. The same again is a no-op.
        Raises ``StepNotFound``; ``IllegalTransition`` unless step and execution have
        failed; ``InvalidInput`` for an output that contradicts what is there.
        """
        step = self.step(key)
        if step.status is StepStatus.COMPLETED and _same(step.output, output):
            return
        self._require_failed("complete", step)
        contradictions = self._contradictions(step, output)
        if contradictions:
            raise InvalidInput(f"step {key}: {contradictions[0]}", field="output")
        settled = self._put(step.settle(output, at=at), at)
        if output:
            self.data = {**self.data, **output}
        self._advance_progress()
        self._record(StepCompleted(at, settled.name, key, settled.attempt, self.progress))
        self._resume_if_settled(at)

    def require_external(self, key: str) -> Step:
        """Raises ``NotExternal`` if the step is Rushes' own business."""
        step = self.step(key)
        if not step.spec.external:
            raise NotExternal(key)
        return step

    # -- inside ------------------------------------------------------------------

    def _fire(self, verb: ExecutionVerb) -> ExecutionStatus:
        try:
            return EXECUTION_TRANSITIONS[self.status][verb]
        except KeyError:
            raise IllegalTransition(f"execution {self.uuid}", verb, self.status) from None

    def _may_start(self, step: Step) -> bool:
        steps = self.steps
        return (
            step.status is StepStatus.PENDING
            and (step.not_before is None or step.not_before <= self.updated_at)
            and all(steps[name].satisfies for name in step.spec.depends_on)
            and all(steps[name].ended for name in step.spec.after)
        )

    def _record(self, fact: Fact) -> None:
        self.recorded.append(fact)
        self.updated_at = fact.at

    def _put(self, step: Step, at: datetime) -> Step:
        if self.steps[step.key] is not step:
            self.steps[step.key] = step
            self.updated_at = at
        return step

    def _believe(self, step: Step, attempt: int) -> None:
        if attempt < 1:
            raise InvalidInput(f"attempts count from 1, not {attempt}", field="attempt")
        if step.attempt != attempt or step.status is not StepStatus.RUNNING:
            raise AttemptOver(
                f"step {step.key}: attempt {attempt} is over "
                f"(the step is {step.status}, at attempt {step.attempt})"
            )

    def _contradictions(self, step: Step, output: Mapping[str, Any]) -> list[str]:
        """Why this output can't be merged, naming both sides; empty if it can."""
        found = []
        # In order, so that the same report is refused with the same words.
        for name in sorted(output.keys() & self.data.keys()):
            if _same(self.data[name], output[name]):
                continue
            owner = next(
                (
                    f"step {other.key}"
                    for other in self.steps.values()
                    if other.output is not None and name in other.output and other.key != step.key
                ),
                "the trigger",
            )
            if owner == "the trigger" and step.output is not None and name in step.output:
                continue
            found.append(
                f"its output says {name!r}, which belongs to {owner} and has another value there"
            )
        return found

    def _fail_for_good(self, step: Step, error: str, at: datetime) -> None:
        failed = self._put(step.fail(error, at=at), at)
        self._record(StepFailed(at, step.name, step.key, step.attempt, error))
        self._skip_dependents(failed, at)
        if not step.spec.required:
            self.warnings = (*self.warnings, f"optional step {step.key} failed: {error}")
            self._advance_progress()
            self._finish_if_done(at)
        elif self.status is ExecutionStatus.RUNNING:
            self.status = self._fire(ExecutionVerb.FAIL)
            self.error_message = f"step {step.key} failed (attempt {step.attempt}): {error}"
            self.completed_at = at
            self._record(PipelineFailed(at, step.name, step.key, step.attempt, error))

    def _require_failed(self, verb: str, step: Step) -> None:
        if self.status is not ExecutionStatus.FAILED:
            raise IllegalTransition(f"step {step.key} of an execution", verb, self.status)
        if step.status is not StepStatus.FAILED:
            raise IllegalTransition(f"step {step.key}", f"be settled ({verb})", step.status)

    def _resume_if_settled(self, at: datetime) -> None:
        """Once no required step is failed, go on with what was skipped only because of it."""
        if any(s.status is StepStatus.FAILED and s.spec.required for s in self.steps.values()):
            return
        self.status = self._fire(ExecutionVerb.RETRY)
        reopened = []
        for spec in self.definition.steps:  # in any order: what it depends on is looked through
            step = self.steps[spec.name]
            if step.status is StepStatus.SKIPPED and not step.waived and self._unblocked(step):
                reopened.append(self._put(step.reopen(), at).key)
        self.error_message = None
        self.completed_at = None
        self.progress = 0
        self._advance_progress()
        self._record(PipelineRetried(at, reopened=tuple(reopened)))
        self._finish_if_done(at)

    def _unblocked(self, step: Step) -> bool:
        """Whether nothing that it depends on, however far up, has failed."""
        seen: set[str] = set()
        above = list(step.spec.depends_on)
        while above:
            name = above.pop()
            if name in seen:
                continue
            seen.add(name)
            other = self.steps[name]
            if other.status is StepStatus.FAILED:
                return False
            if not other.satisfies:
                above.extend(other.spec.depends_on)
        return True

    def _skip_dependents(self, culprit: Step, at: datetime) -> None:
        """Transitively, and without recursion: a chain may be longer than the stack."""
        culprits = [culprit]
        while culprits:
            because = culprits.pop()
            for step in list(self.steps.values()):
                if step.status is StepStatus.PENDING and because.key in step.spec.depends_on:
                    reason = f"step {because.key} {because.status}"
                    skipped = self._put(step.skip(reason, at=at), at)
                    self._record(StepSkipped(at, step.name, step.key, step.attempt, reason))
                    culprits.append(skipped)

    def _finish_if_done(self, at: datetime) -> None:
        if self.status is not ExecutionStatus.RUNNING:
            return
        if not all(step.ended for step in self.steps.values()):
            return
        self.status = self._fire(ExecutionVerb.COMPLETE)
        self.completed_at = at
        self.progress = 100
        self._record(PipelineCompleted(at, warnings=self.warnings))

    def _advance_progress(self, *, complete: bool = False) -> None:
        """``complete``: the last step has just ended, and the execution with it."""
        if complete or self.status is ExecutionStatus.COMPLETED:
            self.progress = 100
            return
        total = done = 0.0
        for step in self.steps.values():
            weight = step.spec.weight
            total += weight
            if step.satisfies or (step.ended and not step.spec.required):
                done += weight
            elif step.status is StepStatus.RUNNING:
                done += weight * step.progress
        self.progress = max(self.progress, min(99, int(100 * done / total)))


def _same(one: object, other: object) -> bool:
    """Equal as JSON. To Python ``True`` is 1; to whoever reads the data it isn't."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other
