"""Hold an execution where it is, and let it go on."""

from __future__ import annotations

from application.ports import Clock, Executions
from application.views import ExecutionView


class Pause:
    """Both raise ``ExecutionNotFound``, and ``IllegalTransition`` once it has ended."""

    def __init__(self, *, executions: Executions, clock: Clock) -> None:
        self._executions = executions
        self._clock = clock

    async def pause(self, reference: str | int) -> ExecutionView:
        """Nothing more of it starts; what runs goes on to its end."""
        now = self._clock.now()
        found = await self._executions.get(reference)
        assert found.id is not None
        return ExecutionView.of(await self._executions.update(found.id, lambda e: e.pause(at=now)))

    async def resume(self, reference: str | int) -> ExecutionView:
        now = self._clock.now()
        found = await self._executions.get(reference)
        assert found.id is not None
        return ExecutionView.of(await self._executions.update(found.id, lambda e: e.resume(at=now)))
