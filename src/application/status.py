"""What there is, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence

from application.hold import Hold
from application.ports import Executions, Query
from application.progress import ProgressBoard
from application.views import ExecutionView
from domain.execution import Execution


class Status:
    def __init__(self, *, executions: Executions, progress: ProgressBoard, hold: Hold) -> None:
        self._executions = executions
        self._progress = progress
        self._hold = hold

    async def get(self, reference: str | int) -> ExecutionView:
        """By uuid or by id. Raises ``ExecutionNotFound``."""
        execution = await self._executions.get(reference)
        return self._view(execution)

    async def list(self, query: Query) -> Sequence[ExecutionView]:
        """Newest first."""
        return [self._view(execution) for execution in await self._executions.list(query)]

    def _view(self, execution: Execution) -> ExecutionView:
        live = self._progress.of(execution.id or 0)
        return ExecutionView.of(execution, live, held_at=self._hold.held_at)
