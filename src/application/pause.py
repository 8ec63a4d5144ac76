"""Hold an execution where it is, and let it go on."""

from __future__ import annotations

from application.ports import Clock, Executions
from application.status import Status
from application.views import ExecutionView


class Pause:
    """Both raise ``ExecutionNotFound``, and ``IllegalTransition`` once it has ended."""

    def __init__(self, *, executions: Executions, clock: Clock, status: Status) -> None:
        self._executions = executions
        self._clock = clock
        self._status = status

    async def pause(self, reference: str | int) -> ExecutionView:
        """Nothing more of it starts; what runs goes on to its end, or stands still by itself."""
        now = self._clock.now()
        updated = await self._executions.update(reference, lambda e: e.pause(at=now))
        return self._status.view(updated)

    async def resume(self, reference: str | int) -> ExecutionView:
        now = self._clock.now()
        updated = await self._executions.update(reference, lambda e: e.resume(at=now))
        return self._status.view(updated)
