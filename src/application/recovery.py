"""At start: go on with everything that the last process left unfinished."""

from __future__ import annotations

import asyncio

from application.ports import Clock, Executions

AT_ONCE = 64
"""How many executions are recovered together; they share commits."""


class Recovery:
    def __init__(self, *, executions: Executions, clock: Clock) -> None:
        self._executions = executions
        self._clock = clock

    async def __call__(self) -> int:
        """Take over every step that was running and start what is ready; how many executions."""
        unfinished = await self._executions.unfinished()
        for start in range(0, len(unfinished), AT_ONCE):
            group = unfinished[start : start + AT_ONCE]
            await asyncio.gather(*(self._recover(execution_id) for execution_id in group))
        return len(unfinished)

    async def _recover(self, execution_id: int) -> None:
        now = self._clock.now()
        await self._executions.apply(execution_id, lambda e: e.recover(at=now))
