"""What there is, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence

from application.ports import Executions, Query
from application.progress import ProgressBoard
from application.views import ExecutionView


class Status:
    def __init__(self, *, executions: Executions, progress: ProgressBoard) -> None:
        self._executions = executions
        self._progress = progress

    async def get(self, reference: str | int) -> ExecutionView:
        """By uuid or by id. Raises ``ExecutionNotFound``."""
        execution = await self._executions.get(reference)
        assert execution.id is not None
        return ExecutionView.of(execution, self._progress.of(execution.id))

    async def list(self, query: Query) -> Sequence[ExecutionView]:
        """Newest first."""
        return [
            ExecutionView.of(execution, self._progress.of(execution.id or 0))
            for execution in await self._executions.list(query)
        ]
