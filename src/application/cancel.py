"""Stop an execution for good."""

from __future__ import annotations

import asyncio

from application.ports import Clock, Dispatcher, Executions
from application.progress import ProgressBoard
from application.status import Status
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
        status: Status,
    ) -> None:
        self._executions = executions
        self._dispatcher = dispatcher
        self._clock = clock
        self._progress = progress
        self._status = status

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

        execution_id = found.id

        def tell(stored: asyncio.Future[Execution]) -> None:
            if not stored.cancelled() and stored.exception() is None:
                self._dispatcher.cancel(execution_id)

        # What runs is told as soon as that is stored, whether anybody still waits for it or not.
        storing = asyncio.ensure_future(self._executions.update(execution_id, change))
        storing.add_done_callback(tell)
        updated = await asyncio.shield(storing)
        return self._status.view(updated)
