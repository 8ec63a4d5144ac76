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

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from operator import attrgetter
from typing import Any

from domain import data as merging
from domain import dependencies
from domain.data import MAX_DATA_BYTES, PLACES, same, size_bytes
from domain.definition import PipelineDefinition, family_of
from domain.errors import (
    AttemptOver,
    IllegalTransition,
    InvalidInput,
    NotExternal,
    StepNotFound,
)
from domain.events import (
    Announced,
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
    StepSpawned,
    StepStarted,
)
from domain.step import Step, StepStatus
from domain.steps import Steps

MAX_TAKEOVERS = 10
"""How often a step may lose its worker before it counts as the one that kills it."""


MAX_STEPS_AT_ALL = 20_000
"""Spawned ones included; a card with more clips than this is worked on in several runs."""

MAX_PARAMS_BYTES = 4 * 1024 * 1024
"""Of all spawned steps together, as JSON: whoever asks about the execution is given them."""

MAX_WARNINGS = 100
"""More than anybody reads; each is the error of an optional step, which has it too."""

PARAMETER = re.compile(r"[A-Za-z0-9._-]{1,200}\Z")


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
    card_key: which card it works on, if any (see ``card_keys``); at most one active
        execution works on one card.
    data: the trigger's payload with every step's output merged in. Never changed
        in place: a merge makes a new mapping.
    given: the names in it that the trigger said; None for one from before that was kept.
    rerun_of: the id of the execution that it does again, in part.
    version: how often it has been stored.
    data_bytes and params_bytes: how large the data is as JSON, and what spawned steps were
        given; None until somebody needs to know.
    asked_again: keys of steps that wait for a slot and may have one now.
    """

    uuid: str
    definition: PipelineDefinition
    created_at: datetime
    updated_at: datetime
    steps: Steps
    id: int | None = None
    message_id: str | None = None
    card_key: str | None = None
    given: Sequence[str] | None = None
    status: ExecutionStatus = ExecutionStatus.PENDING
    job_id: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    error_message: str | None = None
    warnings: tuple[str, ...] = ()
    progress: int = 0
    paused_at: datetime | None = None
    rerun_of: int | None = None
    version: int = 0
    started_at: datetime | None = None
    completed_at: datetime | None = None
    data_bytes: int | None = None
    params_bytes: int | None = None
    recorded: list[Fact] = field(default_factory=list)
    asked_again: Sequence[str] = ()

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
        held: bool = False,
    ) -> Execution:
        """A running execution with its first steps, none of them started yet.

        ``held``: a pending one, that only ``begin`` sets going.
        Raises ``InvalidInput`` for more data than an execution may have.
        """
        data_bytes = size_bytes(data)
        if data_bytes > MAX_DATA_BYTES:
            raise InvalidInput(
                f"data has {data_bytes} bytes as JSON, more than {MAX_DATA_BYTES}", field="data"
            )
        execution = cls(
            uuid=uuid,
            definition=definition,
            message_id=message_id,
            card_key=card_key,
            given=tuple(data),
            data=data,
            data_bytes=data_bytes,
            params_bytes=0,
            created_at=at,
            updated_at=at,
            steps=Steps.first(definition, at=at),
        )
        if not held:
            execution.begin(at=at)
        return execution

    @classmethod
    def rerun(
        cls, original: Execution, from_key: str, *, uuid: str, at: datetime, held: bool = False
    ) -> Execution:
        """A new execution that does a step and all that comes of it again.

        What had completed beside that is kept with its output, and isn't done again.
        ``held`` as for ``trigger``.
        Raises ``StepNotFound``; ``IllegalTransition`` while the original is active.
        """
        original.step(from_key)
        if original.active:
            raise IllegalTransition(f"execution {original.uuid}", "be run again", original.status)
        again = dependencies.downstream(original.definition, original.steps, from_key)
        kept = {
            key: step for key, step in original.steps.items() if key not in again and step.satisfies
        }
        execution = cls.trigger(
            original.definition,
            uuid=uuid,
            data=original.payload(),
            card_key=original.card_key,
            at=at,
            held=True,
        )
        execution.rerun_of = original.id
        execution.job_id = original.job_id
        for key, step in kept.items():
            execution.steps[key] = step
        rest = {key: step for key, step in original.steps.items() if key not in kept}
        spawning = {family for step in rest.values() for family in step.spec.spawns}
        for key, step in rest.items():
            if step.spec.dynamic and not dependencies.was_spawned_by(step, rest, spawning):
                # Who spawned it doesn't run again, so nobody else would make it.
                execution.steps[key] = Step(
                    step.spec,
                    key,
                    created_at=at,
                    params=step.params,
                    depends_on=step.depends_on,
                    after=step.after,
                    spawned_by=step.spawned_by,
                )
        for step in kept.values():
            if step.output:
                growth = merging.growth_bytes(execution.data, step, step.output)
                execution._merge(step, step.output, growth)
        execution._advance_progress()
        if not held:
            execution.begin(at=at)
        return execution

    def payload(self) -> dict[str, Any]:
        """What the trigger said, whether or not a step has said the same."""
        if self.given is not None:
            return {name: self.data[name] for name in self.given}
        made = {
            name
            for step in self.steps.values()
            if step.output
            for name in ((step.name,) if step.spec.dynamic else step.output)
        }
        return {name: value for name, value in self.data.items() if name not in made}

    def copy(self) -> Execution:
        """A draft: verbs on it leave this one as it is. Nothing is recorded in it yet."""
        draft = Execution(*_fields(self))
        draft.steps = self.steps.copy()
        draft.recorded = []
        draft.asked_again = ()
        return draft

    def differs_from(self, other: Execution) -> bool:
        """Whether there is anything to store that ``other``, its original, doesn't have."""
        return (
            bool(self.recorded)
            or bool(self.steps.changed_since(other.steps))
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
        # Of one that is over, only what still runs is open to be looked through.
        return self.active or (
            self.steps.open > 0
            and any(step.status is StepStatus.RUNNING for step in self.steps.values())
        )

    def step(self, key: str) -> Step:
        """Raises ``StepNotFound``."""
        step = self.steps.get(key)
        if step is None:
            raise StepNotFound(self.uuid, key)
        return step

    def ready(self) -> Sequence[Step]:
        """The steps that may start at ``updated_at``, in the order in which they were made.

        Of those that wait for a slot already, only those that are asked about again.
        """
        if self.status is not ExecutionStatus.RUNNING or self.paused_at is not None:
            return ()
        ready = []
        # The members of a family mostly wait for the same: that is looked at once for them all.
        satisfied: dict[tuple[tuple[str, ...], tuple[str, ...]], bool] = {}
        for step in self.steps.to_look_at(self.updated_at, self.asked_again):
            if step.status is not StepStatus.PENDING:
                continue
            waits_for = (step.depends_on, step.after)
            if waits_for not in satisfied:
                satisfied[waits_for] = dependencies.is_satisfied(self.steps, step)
            if satisfied[waits_for]:
                ready.append(step)
            else:
                self.steps.waits(step.key)
        return ready

    def next_look_at(self) -> datetime | None:
        """When something may be due by itself: an attempt to start, a wait to give up, or
        the time of a worker outside, which runs whatever the execution does.

        What is over by now counts: who is looked at for it may be looking elsewhere.
        """
        starts = self.status is ExecutionStatus.RUNNING and self.paused_at is None
        return self.steps.next_due(self.updated_at, pending=starts)

    def waits_for(self) -> Sequence[str]:
        """The steps that somebody outside Rushes has to report on."""
        return [
            step.key
            for step in self.steps.values()
            if step.spec.external and step.status is StepStatus.RUNNING
        ]

    # -- verbs of the engine -----------------------------------------------------

    def begin(self, *, at: datetime) -> None:
        """What was held goes. Raises ``IllegalTransition`` unless it is pending."""
        self.status = self._fire(ExecutionVerb.START)
        self.started_at = at
        kept = tuple(key for key, step in self.steps.items() if step.ended)
        self._record(PipelineStarted(at, self.definition.type, tuple(self.steps), kept))

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

    def ask_again(self, *keys: str) -> None:
        """There may be a slot for these steps now, or for any that waits if none is named."""
        if not keys:
            waiting = (step for step in self.steps.values() if step.queued_at is not None)
            keys = tuple(step.key for step in waiting)
        self.asked_again = keys

    def note(self, fractions: Mapping[str, tuple[int, float]], *, at: datetime) -> None:
        """How far the running attempts have come: ``{step_key: (attempt, 0.0 to 1.0)}``.

        What comes from another attempt, or from a step that doesn't run, is dropped.
        """
        moved = False
        for key, (attempt, fraction) in fractions.items():
            step = self.steps.get(key)
            if step is not None and step.attempt == attempt:
                noted = step.note(fraction)
                if noted is not step:
                    moved = True
                    self._put(noted, at)
        if moved:
            self._advance_progress()

    def complete(
        self,
        key: str,
        attempt: int,
        output: Mapping[str, Any],
        *,
        at: datetime,
        job_id: int | None = None,
        announced: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> None:
        """The attempt has done its work: merge its output, and see what follows.

        ``announced``: words of its own that it has to say, and what is said with each.
        The same report twice is a no-op. An output that contradicts what the
        trigger or another step said fails the step instead, naming both; so does one
        for which the data has no room.
        Raises ``StepNotFound``; ``AttemptOver`` for an attempt that doesn't run.
        """
        step = self.step(key)
        contradictions = self._contradictions(step, output)
        if contradictions:
            repeated = step.status is StepStatus.FAILED and step.error in contradictions
            reason = step.error if repeated and step.error else contradictions[0]
            self.fail(key, attempt, reason, at=at, permanent=True)
            return
        if step.status is StepStatus.COMPLETED and step.attempt == attempt:
            if same(step.output, output):
                return
            raise AttemptOver(f"step {key}, attempt {attempt} has completed with another output")
        growth = merging.growth_bytes(self.data, step, output)
        if not self._has_room_for(growth):
            self.fail(key, attempt, _too_large(output), at=at, permanent=True)
            return
        self._believe(step, attempt)
        self._put(step.complete(output, at=at), at)
        self._merge(step, output, growth)
        if job_id is not None:
            self.job_id = job_id
        finishes = self._is_done()
        self._advance_progress(complete=finishes)
        for word, said in announced:
            self._record(Announced(at, step.name, step.key, attempt, word, said))
        self._record(StepCompleted(at, step.name, key, attempt, self.progress))
        if finishes:
            self._finish(at)

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

    def spawn(
        self,
        by: str,
        attempt: int,
        name: str,
        parameter: str,
        *,
        at: datetime,
        params: Mapping[str, Any] | None = None,
        depends_on: Sequence[str] = (),
        after: Sequence[str] = (),
    ) -> Step:
        """A running attempt adds a step of a family that its step declares to spawn.

        The same again changes nothing. Raises ``StepNotFound``; ``AttemptOver``;
        ``InvalidInput`` for a family that isn't declared, a parameter that is no word,
        the same key with other params or dependencies, a dependency that isn't there,
        one that is optional while the step is required, or one that would make it wait
        for itself.
        """
        spawner = self.step(by)
        self._believe(spawner, attempt)
        spec = self.definition.spec(name)
        if spec is None or name not in spawner.spec.spawns:
            raise InvalidInput(f"step {by} doesn't declare to spawn {name!r}", field="name")
        if not PARAMETER.match(parameter):
            raise InvalidInput(
                f"parameter {parameter!r} must match {PARAMETER.pattern}", field="parameter"
            )
        spawned = Step(
            spec,
            f"{name}:{parameter}",
            created_at=at,
            params=params or {},
            depends_on=(*spec.depends_on, *depends_on),
            after=(*spec.after, *after),
            spawned_by=by,
        )
        present = self.steps.get(spawned.key)
        if present is not None:
            alike = (present.depends_on, present.after) == (spawned.depends_on, spawned.after)
            if not alike or not same(present.params, spawned.params):
                raise InvalidInput(
                    f"step {spawned.key} is there already, with other params or dependencies"
                )
            return present
        if len(self.steps) >= MAX_STEPS_AT_ALL:
            raise InvalidInput(f"an execution has at most {MAX_STEPS_AT_ALL} steps")
        for each in (*depends_on, *after):
            family = family_of(each)
            if each not in self.steps and (family is None or self.definition.spec(family) is None):
                raise InvalidInput(f"step {spawned.key} waits for {each!r}, which isn't there")
        for each in depends_on:
            other = self.definition.spec(each.partition(":")[0])
            if spec.required and other is not None and not other.required:
                raise InvalidInput(
                    f"required step {spawned.key} depends on optional step {each!r}; "
                    "it may come after it"
                )
        if dependencies.would_wait_for_itself(self.definition, self.steps, spawned):
            raise InvalidInput(f"step {spawned.key} would wait for itself")
        self._make_room_for(spawned)
        self._add(spawned, by, at)
        return self.steps[spawned.key]

    def claim(self, key: str, worker: str, *, at: datetime) -> Step:
        """A worker outside begins with the running attempt of an external step.

        From now on its lease and its time count. Raises ``StepNotFound``; ``NotExternal``;
        ``IllegalTransition`` unless the execution goes on and the step runs and waits for
        a worker.
        """
        step = self.require_external(key)
        if self.status is not ExecutionStatus.RUNNING:
            raise IllegalTransition(f"step {key} of an execution", "be claimed", self.status)
        if self.paused_at is not None:
            raise IllegalTransition(f"step {key} of an execution", "be claimed", "paused")
        if step.status is not StepStatus.RUNNING:
            raise IllegalTransition(f"step {key}", "be claimed", step.status)
        if step.claimed:
            raise IllegalTransition(f"step {key}", "be claimed", f"done by {step.worker}")
        return self._put(step.claim(worker, at=at), at)

    def beat(self, key: str, attempt: int, *, at: datetime) -> None:
        """The worker outside that does the attempt is alive: its lease begins anew.

        Raises ``StepNotFound``; ``AttemptOver`` for an attempt that doesn't run.
        """
        step = self.step(key)
        self._believe(step, attempt)
        self._put(step.beat(at=at), at)

    def leave(self, key: str, attempt: int, checkpoint: Mapping[str, Any], *, at: datetime) -> None:
        """A running attempt leaves something for the next one. Raises ``AttemptOver``."""
        step = self.step(key)
        self._believe(step, attempt)
        self._put(step.leave(checkpoint), at)

    def lose(self, key: str, attempt: int, *, at: datetime) -> None:
        """The attempt's lease is over: take it over, or fail it if that goes on and on.

        Raises ``StepNotFound``; ``AttemptOver`` for an attempt that doesn't run.
        """
        step = self.step(key)
        self._believe(step, attempt)
        self._take_over(step, at)

    def tick(self, *, at: datetime, held: bool = False) -> None:
        """Time has passed: give up what has waited or run too long outside, and take over
        what its worker has lost; what is due is ready by now.

        ``held``: nobody gets a slot, so who has waited too long waits anew.
        """
        self.updated_at = max(self.updated_at, at)
        for step in self.steps.due(at):
            if step.claimed:
                self._watch(step, at)
            elif self.status is ExecutionStatus.RUNNING and step.queued_at is not None:
                if held:
                    self._put(step.leave_queue(), at)
                    continue
                waited = step.spec.queue_timeout_s
                self._fail_for_good(step, f"waited more than {waited:g} s for a slot", at)

    def recover(self, *, at: datetime) -> None:
        """The process that ran the steps is gone: take over what it was doing.

        Steps that run outside Rushes haven't lost their worker and go on. Who waited for a
        slot waits anew, and so does a lease: that there was nobody to give one, or to hear
        that a worker lives, is no fault of theirs.
        """
        self._leave_queues(at)
        for step in list(self.steps.values()):
            if step.status is not StepStatus.RUNNING:
                continue
            if step.spec.external:
                self._put(step.beat(at=at), at)
            else:
                self._take_over(step, at)
        self.updated_at = at
        self.progress = 0
        self._advance_progress()

    def release(self, key: str, attempt: int, *, at: datetime) -> None:
        """Rushes is stopping: give the attempt back, to be started again later.

        No fault of the step's, so it isn't counted as a lost worker.
        """
        step = self.step(key)
        self._believe(step, attempt)
        self._put(step.release(), at)

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
        self._end(ExecutionVerb.CANCEL, at)
        cancelled = [
            self._put(step.cancel(at=at), at).key
            for step in list(self.steps.values())
            if not step.ended
        ]
        self._record(PipelineCancelled(at, cancelled=tuple(cancelled)))

    def pause(self, *, at: datetime) -> None:
        """Nothing more starts; what runs goes on to its end. Twice is a no-op.

        Raises ``IllegalTransition`` once the execution has ended.
        """
        if not self.active:
            raise IllegalTransition(f"execution {self.uuid}", "pause", self.status)
        if self.paused_at is None:
            self.paused_at = at
            self._leave_queues(at)
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
        failed; ``InvalidInput`` for an output that contradicts what is there, or for which
        the data has no room.
        """
        step = self.step(key)
        if step.status is StepStatus.COMPLETED and same(step.output, output):
            return
        self._require_failed("complete", step)
        contradictions = self._contradictions(step, output)
        if contradictions:
            raise InvalidInput(f"step {key}: {contradictions[0]}", field="output")
        growth = merging.growth_bytes(self.data, step, output)
        if not self._has_room_for(growth):
            raise InvalidInput(f"step {key}: {_too_large(output)}", field="output")
        settled = self._put(step.settle(output, at=at), at)
        self._merge(step, output, growth)
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
        return (
            step.status is StepStatus.PENDING
            and self._is_due(step)
            and dependencies.is_satisfied(self.steps, step)
        )

    def _is_due(self, step: Step) -> bool:
        return step.not_before is None or step.not_before <= self.updated_at

    def _record(self, fact: Fact) -> None:
        self.recorded.append(fact)
        self.updated_at = fact.at

    def _put(self, step: Step, at: datetime) -> Step:
        if self.steps.put(step):
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
        """Why this output can't be merged; empty if it can."""
        reserved = frozenset() if self.card_key is None else PLACES
        return merging.contradictions(self.data, self.steps, step, output, reserved=reserved)

    def _fail_for_good(self, step: Step, error: str, at: datetime) -> None:
        failed = self._put(step.fail(error, at=at), at)
        self._record(StepFailed(at, step.name, step.key, step.attempt, error))
        self._skip_dependents(failed, at)
        if not step.spec.required:
            self._warn(f"optional step {step.key} failed: {error}")
            self._advance_progress()
            self._finish_if_done(at)
        elif self.status is ExecutionStatus.RUNNING:
            self._end(ExecutionVerb.FAIL, at)
            self._leave_queues(at)
            self.error_message = f"step {step.key} failed (attempt {step.attempt}): {error}"
            self._record(PipelineFailed(at, step.name, step.key, step.attempt, error))

    def _leave_queues(self, at: datetime) -> None:
        """Nothing starts from now on, so nobody waits for a slot."""
        for step in list(self.steps.values()):
            self._put(step.leave_queue(), at)

    def _watch(self, step: Step, at: datetime) -> None:
        """A worker outside has the attempt: see whether its time or its lease is over."""
        if step.run_ends_at is not None and step.run_ends_at <= at:
            limit_s = step.spec.run_timeout_s
            self.fail(step.key, step.attempt, f"ran longer than {limit_s:g} s", at=at)
        elif step.lease_ends_at is not None and step.lease_ends_at <= at:
            self._take_over(step, at)

    def _take_over(self, step: Step, at: datetime) -> None:
        if step.takeovers >= MAX_TAKEOVERS:
            self._fail_for_good(
                step, f"lost its worker {step.takeovers + 1} times; it may be what ends it", at
            )
        else:
            self._put(step.take_over(), at)

    def _add(self, step: Step, by: str, at: datetime) -> None:
        self.steps[step.key] = step
        self._record(StepSpawned(at, step.name, step.key, step.attempt, by))
        culprit = dependencies.culprit_above(self.steps, step)
        if culprit is not None:
            self._skip_dependents(self._skip(step, culprit, at), at)

    def _merge(self, step: Step, output: Mapping[str, Any], growth_bytes: int) -> None:
        if output:
            self.data_bytes = self._data_bytes() + growth_bytes
            self.data = merging.merged(self.data, step, output)

    def _data_bytes(self) -> int:
        if self.data_bytes is None:
            self.data_bytes = size_bytes(self.data)
        return self.data_bytes

    def _has_room_for(self, growth_bytes: int) -> bool:
        return growth_bytes <= 0 or self._data_bytes() + growth_bytes <= MAX_DATA_BYTES

    def _make_room_for(self, spawned: Step) -> None:
        if not spawned.params:
            return
        if self.params_bytes is None:
            dynamic = (step for step in self.steps.values() if step.params)
            self.params_bytes = sum(size_bytes(step.params) for step in dynamic)
        self.params_bytes += size_bytes(spawned.params)
        if self.params_bytes > MAX_PARAMS_BYTES:
            raise InvalidInput(
                f"step {spawned.key}: with its params ({size_bytes(spawned.params)} bytes as "
                f"JSON) those of all spawned steps have {self.params_bytes}, more than "
                f"{MAX_PARAMS_BYTES}",
                field="params",
            )

    def _warn(self, warning: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings = (*self.warnings, warning)
        else:
            failed = StepStatus.FAILED
            more = sum(step.status is failed for step in self.steps.values()) - MAX_WARNINGS + 1
            self.warnings = (*self.warnings[: MAX_WARNINGS - 1], f"{more} more steps have failed")

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
        failed = [step for step in self.steps.values() if step.status is StepStatus.FAILED]
        held_up = dependencies.held_up_by(self.steps, failed)
        for step in self.steps.values():
            skipped = step.status is StepStatus.SKIPPED and not step.waived
            if skipped and step.key not in held_up:
                reopened.append(self._put(step.reopen(), at).key)
        self.error_message = None
        self.completed_at = None
        self.progress = 0
        self._advance_progress()
        self._record(PipelineRetried(at, reopened=tuple(reopened)))
        self._finish_if_done(at)

    def _skip_dependents(self, culprit: Step, at: datetime) -> None:
        """Transitively, and without recursion: a chain may be longer than the stack."""
        culprits = [(culprit, dependencies.let_down_by(self.steps, culprit))]
        while culprits:
            because, names = culprits.pop()
            for step in dependencies.dependents(self.steps, names):
                if step.status is StepStatus.PENDING:
                    skipped = self._skip(step, because, at)
                    culprits.append((skipped, dependencies.let_down_by(self.steps, skipped)))

    def _skip(self, step: Step, because: Step, at: datetime) -> Step:
        reason = f"step {because.key} {because.status}"
        skipped = self._put(step.skip(reason, at=at), at)
        self._record(StepSkipped(at, step.name, step.key, step.attempt, reason))
        return skipped

    def _is_done(self) -> bool:
        """Whether it runs, and nothing of it is left to do."""
        return self.status is ExecutionStatus.RUNNING and not self.steps.open

    def _finish_if_done(self, at: datetime) -> None:
        if self._is_done():
            self._finish(at)

    def _finish(self, at: datetime) -> None:
        self._end(ExecutionVerb.COMPLETE, at)
        self.progress = 100
        self._record(PipelineCompleted(at, warnings=self.warnings))

    def _end(self, verb: ExecutionVerb, at: datetime) -> None:
        """Raises ``IllegalTransition`` if the verb isn't possible."""
        self.status = self._fire(verb)
        self.paused_at = None
        self.completed_at = at

    def _advance_progress(self, *, complete: bool = False) -> None:
        """``complete``: the last step has just ended, and the execution with it."""
        if complete or self.status is ExecutionStatus.COMPLETED:
            self.progress = 100
            return
        self.progress = max(self.progress, min(99, self.steps.percent_done))


_fields = attrgetter(*Execution.__match_args__)
"""All fields, in the constructor's order: with them a copy takes a third of ``replace``."""


def _too_large(output: Mapping[str, Any]) -> str:
    # The same whatever else there is in the data: a report that is repeated is known by it.
    return (
        f"its output has {size_bytes(output)} bytes as JSON, more than the execution's data has "
        f"room for: it may have {MAX_DATA_BYTES} in all"
    )
