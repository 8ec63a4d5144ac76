"""Stop an execution for good."""

from __future__ import annotations

from application.ports import Clock, Dispatcher, Executions
from application.views import ExecutionView


class Cancel:
    def __init__(self, *, executions: Executions, dispatcher: Dispatcher, clock: Clock) -> None:
        self._executions = executions
        self._dispatcher = dispatcher
        self._clock = clock

    async def __call__(self, reference: str | int) -> ExecutionView:
        """Nothing more of it starts, and what runs is told to end; its results are refused.

        Twice is the same as once. Raises ``ExecutionNotFound``; ``IllegalTransition``
        once it has completed or failed.
        """
        now = self._clock.now()
        found = await self._executions.get(reference)
        assert found.id is not None
        updated = await self._executions.update(found.id, lambda e: e.cancel(at=now))
        self._dispatcher.cancel(found.id)
        return ExecutionView.of(updated)
