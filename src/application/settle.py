"""Put a failed step right by hand, and let its execution go on."""

from __future__ import annotations

from application.json_values import json_object
from application.ports import Clock, Executions
from application.status import Status
from application.views import ExecutionView


class Settle:
    """The execution resumes once no required step of it is failed.

    Both raise ``ExecutionNotFound``, ``StepNotFound``, and ``IllegalTransition`` unless
    the execution and the step have failed.
    """

    def __init__(self, *, executions: Executions, clock: Clock, status: Status) -> None:
        self._executions = executions
        self._clock = clock
        self._status = status

    async def skip(self, reference: str | int, step_key: str) -> ExecutionView:
        """It may be missing: what depends on it goes on without its output."""
        now = self._clock.now()
        return self._status.view(
            await self._executions.update(reference, lambda e: e.waive(step_key, at=now))
        )

    async def complete(self, reference: str | int, step_key: str, output: object) -> ExecutionView:
        """Somebody has done its work, and says what came of it.

        Raises ``InvalidInput`` for an output that is no JSON object, or contradicts the data.
        """
        given = json_object(output, "output")
        now = self._clock.now()
        return self._status.view(
            await self._executions.update(reference, lambda e: e.settle(step_key, given, at=now))
        )
