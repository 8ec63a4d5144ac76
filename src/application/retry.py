"""Run a failed execution again, from the step that failed."""

from __future__ import annotations

from application.ports import Clock, Executions
from application.status import Status
from application.views import ExecutionView


class Retry:
    def __init__(self, *, executions: Executions, clock: Clock, status: Status) -> None:
        self._executions = executions
        self._clock = clock
        self._status = status

    async def __call__(self, reference: str | int) -> ExecutionView:
        """Raises ``ExecutionNotFound``; ``IllegalTransition`` unless it has failed;
        ``CardBusy`` if another execution is at work on its card."""
        now = self._clock.now()
        updated = await self._executions.update(reference, lambda e: e.retry(at=now))
        return self._status.view(updated)
