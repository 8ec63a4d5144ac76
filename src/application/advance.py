"""A step has ended: tell its execution, and let what follows begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from application.json_values import json_object
from application.ports import AttemptRef, Chance, Clock, Executions
from application.progress import ProgressBoard
from application.views import ExecutionView
from domain.errors import InvalidInput
from domain.execution import Execution

MAX_ERROR = 2_000
"""Characters of a step's error that are kept; the rest belongs in a log."""


class Advance:
    """The outcomes of attempts, from the step runner and from services outside.

    Every report carries its attempt: the same report twice changes nothing, and one
    from an attempt that is over raises ``AttemptOver``.
    """

    def __init__(
        self, *, executions: Executions, clock: Clock, chance: Chance, progress: ProgressBoard
    ) -> None:
        self._executions = executions
        self._clock = clock
        self._chance = chance
        self._progress = progress

    async def complete(
        self, ref: AttemptRef, output: Mapping[str, Any], *, job_id: int | None = None
    ) -> None:
        """``output`` is JSON already, and nobody else's."""
        now = self._clock.now()
        live = self._progress.of(ref.execution_id)

        def change(execution: Execution) -> None:
            execution.note(live, at=now)
            execution.complete(ref.step_key, ref.attempt, output, at=now, job_id=job_id)

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
        given = json_object(params, "params")
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

        return await self._report(reference, change)

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

        return await self._report(reference, change)

    async def _report(self, reference: str | int, change: Any) -> ExecutionView:
        found = await self._executions.get(reference)
        assert found.id is not None
        updated = await self._executions.update(found.id, change)
        return ExecutionView.of(updated, self._progress.of(found.id))


def _bounded(error: str) -> str:
    """One line of text that can be shown and stored, of bounded length."""
    encodable = error.encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else " " for c in encodable).strip()
    if not text:
        return "no reason was given"
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 1] + "…"
