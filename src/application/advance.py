"""A step has ended: tell its execution, and let what follows begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from application.json_values import json_object
from application.ports import AttemptRef, Chance, Change, Clock, Executions, Started
from application.progress import MAX_DETAIL_BYTES, ProgressBoard
from application.status import Status
from application.views import ExecutionView
from domain.errors import AttemptOver, InvalidInput
from domain.events import timestamp
from domain.execution import Execution

MAX_PARAMS_BYTES = 64 * 1024
"""Of one spawned step, as JSON; ``domain/execution.py`` says how much all may have."""

MAX_ERROR = 2_000
"""Characters of a step's error that are kept; the rest belongs in a log."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker outside is told when it says that it lives.

    running: whether its attempt still runs; if not, ``reason`` says why, and it should end.
    lease_expires_at: by when it has to say so again; None where there is no lease.
    """

    running: bool
    reason: str | None
    lease_expires_at: str | None


class Advance:
    """The outcomes of attempts, from the step runner and from services outside.

    Every report carries its attempt: the same report twice changes nothing, and one
    from an attempt that is over raises ``AttemptOver``.
    """

    def __init__(
        self,
        *,
        executions: Executions,
        clock: Clock,
        chance: Chance,
        progress: ProgressBoard,
        status: Status,
    ) -> None:
        self._executions = executions
        self._clock = clock
        self._chance = chance
        self._progress = progress
        self._status = status

    async def complete(
        self,
        ref: AttemptRef,
        output: Mapping[str, Any],
        *,
        job_id: int | None = None,
        announced: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> None:
        """``output`` and what is announced are JSON already, and nobody else's."""
        now = self._clock.now()
        live = self._progress.of(ref.execution_id)

        def change(execution: Execution) -> None:
            execution.note(live, at=now)
            execution.complete(
                ref.step_key, ref.attempt, output, at=now, job_id=job_id, announced=announced
            )

        await self._executions.apply(ref.execution_id, change)

    async def fail(self, ref: AttemptRef, error: str, *, permanent: bool = False) -> None:
        """``permanent``: to try again by itself would be no use."""
        now = self._clock.now()
        chance = self._chance.fraction()
        live = self._progress.of(ref.execution_id)
        reason = _bounded(error)

        def change(execution: Execution) -> None:
            execution.note(live, at=now)
            execution.fail(
                ref.step_key, ref.attempt, reason, at=now, permanent=permanent, chance=chance
            )

        await self._executions.apply(ref.execution_id, change)

    async def release(self, ref: AttemptRef) -> None:
        """Rushes is stopping: the step is to be started again later."""
        now = self._clock.now()
        await self._executions.apply(
            ref.execution_id, lambda execution: execution.release(ref.step_key, ref.attempt, at=now)
        )

    async def is_paused(self, ref: AttemptRef) -> bool:
        """Whether its execution, or the engine, is paused. Raises ``ExecutionNotFound``."""
        if (await self._executions.get(ref.execution_id)).paused_at is not None:
            return True
        return await self._executions.held_at() is not None

    async def spawn(
        self,
        ref: AttemptRef,
        name: str,
        parameter: str,
        *,
        params: object,
        depends_on: Sequence[str] = (),
        after: Sequence[str] = (),
    ) -> None:
        """The attempt adds a step of a family; it is there, and may run, when this returns.

        Raises ``AttemptOver``, and ``InvalidInput`` for what can't be spawned.
        """
        given = json_object(params, "params", limit_bytes=MAX_PARAMS_BYTES)
        now = self._clock.now()

        def change(execution: Execution) -> None:
            execution.spawn(
                ref.step_key,
                ref.attempt,
                name,
                parameter,
                at=now,
                params=given,
                depends_on=depends_on,
                after=after,
            )

        await self._executions.apply(ref.execution_id, change)

    async def leave(self, ref: AttemptRef, checkpoint: object) -> None:
        """Store what the next attempt is to be given. Raises ``AttemptOver``, ``InvalidInput``."""
        left = json_object(checkpoint, "checkpoint")
        now = self._clock.now()
        await self._executions.apply(
            ref.execution_id,
            lambda execution: execution.leave(ref.step_key, ref.attempt, left, at=now),
        )

    async def lose(self, ref: AttemptRef) -> None:
        """The attempt's lease is over: another one takes over."""
        now = self._clock.now()
        live = self._progress.of(ref.execution_id)

        def change(execution: Execution) -> None:
            execution.note(live, at=now)  # what was shown so far isn't taken back
            execution.lose(ref.step_key, ref.attempt, at=now)

        await self._executions.apply(ref.execution_id, change)

    async def complete_external(
        self, reference: str | int, step_key: str, attempt: int, output: object
    ) -> ExecutionView:
        """A service outside has done its step.

        Raises ``ExecutionNotFound``, ``StepNotFound``, ``NotExternal``, ``AttemptOver``,
        and ``InvalidInput`` for an output that is no JSON object.
        """
        given = json_object(output, "output")
        now = self._clock.now()

        def change(execution: Execution) -> None:
            execution.require_external(step_key)
            execution.complete(step_key, attempt, given, at=now)

        return await self._report(reference, step_key, attempt, change)

    async def fail_external(
        self,
        reference: str | int,
        step_key: str,
        attempt: int,
        error: str,
        *,
        permanent: bool = False,
    ) -> ExecutionView:
        """A service outside could not do its step. Raises as ``complete_external`` does."""
        if not error.strip():
            raise InvalidInput("error must say why the step failed", field="error")
        reason = _bounded(error)
        now = self._clock.now()
        chance = self._chance.fraction()

        def change(execution: Execution) -> None:
            execution.require_external(step_key)
            execution.fail(step_key, attempt, reason, at=now, permanent=permanent, chance=chance)

        return await self._report(reference, step_key, attempt, change)

    async def release_external(
        self, reference: str | int, step_key: str, attempt: int
    ) -> ExecutionView:
        """A service outside gives its step back: another one may have it, as a new attempt.

        That is no failure. Raises as ``complete_external`` does.
        """
        now = self._clock.now()

        def change(execution: Execution) -> None:
            execution.require_external(step_key)
            execution.release(step_key, attempt, at=now)

        return await self._report(reference, step_key, attempt, change)

    async def beat_external(
        self,
        reference: str | int,
        step_key: str,
        attempt: int,
        *,
        progress: float | None = None,
        detail: object = None,
        checkpoint: object = None,
    ) -> Beat:
        """A service outside is at work on its step: its lease begins anew.

        progress: of the step, from 0 to 100; ``detail`` is what it says beside that.
        checkpoint: what the next attempt is to be given, if there is one.

        Raises ``ExecutionNotFound``, ``StepNotFound``, ``NotExternal``, ``InvalidInput``.
        An attempt that is over is answered, not refused: there is nothing left to do.
        """
        fraction = None if progress is None else _fraction(progress)
        told = {} if detail is None else json_object(detail, "detail", limit_bytes=MAX_DETAIL_BYTES)
        left = None if checkpoint is None else json_object(checkpoint, "checkpoint")
        now = self._clock.now()
        found = await self._executions.get(reference)
        assert found.id is not None
        ref = AttemptRef(found.id, step_key, attempt)

        def change(execution: Execution) -> None:
            execution.require_external(step_key)
            if fraction is not None:
                # Stored with the lease: what was shown isn't taken back if it is lost.
                execution.note({step_key: (attempt, fraction)}, at=now)
            execution.beat(step_key, attempt, at=now)
            if left is not None:
                execution.leave(step_key, attempt, left, at=now)

        try:
            updated = await self._executions.update(found.id, change)
        except AttemptOver as error:
            self._progress.end(ref)
            return Beat(running=False, reason=error.message, lease_expires_at=None)
        step = updated.step(step_key)
        if fraction is not None or told:
            self._progress.begin(ref)  # as far as this process knows, it may begin only now
            # At once: it may be the last for a long time. And each has cost a commit anyway.
            self._progress.note(Started(updated, step), fraction or 0.0, told, at_once=True)
        lease = None if step.lease_ends_at is None else timestamp(step.lease_ends_at)
        return Beat(running=True, reason=None, lease_expires_at=lease)

    async def _report(
        self, reference: str | int, step_key: str, attempt: int, change: Change
    ) -> ExecutionView:
        updated = await self._executions.update(reference, change)
        assert updated.id is not None
        self._progress.end(AttemptRef(updated.id, step_key, attempt))
        return self._status.view(updated)


def _fraction(progress: float) -> float:
    if not 0 <= progress <= 100:  # so no NaN either
        raise InvalidInput(f"progress must be from 0 to 100, not {progress:g}", field="progress")
    return progress / 100


def _bounded(error: str) -> str:
    """One line of text that can be shown and stored, of bounded length."""
    encodable = error.encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else " " for c in encodable).strip()
    if not text:
        return "no reason was given"
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 1] + "…"
