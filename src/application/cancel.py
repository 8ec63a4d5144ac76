"""Stop an execution for good."""

from __future__ import annotations

from application.ports import Clock, Dispatcher, Executions
from application.progress import ProgressBoard
from application.views import ExecutionView
from domain.execution import Execution


class Cancel:
    def __init__(
        self,
        *,
        executions: Executions,
        dispatcher: Dispatcher,
        clock: Clock,
        progress: ProgressBoard,
    ) -> None:
        self._executions = executions
        self._dispatcher = dispatcher
        self._clock = clock
        self._progress = progress

    async def __call__(self, reference: str | int) -> ExecutionView:
        """Nothing more of it starts, and what runs is told to end; its results are refused.

        Twice is the same as once. Raises ``ExecutionNotFound``; ``IllegalTransition``
        once it has completed or failed.
        """
        now = self._clock.now()
        found = await self._executions.get(reference)
        assert found.id is not None
        live = self._progress.of(found.id)

        def change(execution: Execution) -> None:
            execution.note(live, at=now)  # what was shown so far isn't taken back
            execution.cancel(at=now)

        updated = await self._executions.update(found.id, change)
        self._dispatcher.cancel(found.id)
        return ExecutionView.of(updated)
