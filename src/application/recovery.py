"""At start: go on with everything that the last process left unfinished."""

from __future__ import annotations

import asyncio

from application.hold import Hold, begin_if_pending
from application.ports import Clock, Executions
from domain.execution import Execution

AT_ONCE = 64
"""How many executions are recovered together; they share commits."""


class Recovery:
    def __init__(self, *, executions: Executions, clock: Clock, hold: Hold) -> None:
        self._executions = executions
        self._clock = clock
        self._hold = hold

    async def __call__(self) -> int:
        """Take over every step that was running and start what is ready; how many executions.

        What is pending begins, unless the engine is held: the last process may have died
        between storing that it goes on and beginning it.
        """
        unfinished = await self._executions.unfinished()
        for start in range(0, len(unfinished), AT_ONCE):
            group = unfinished[start : start + AT_ONCE]
            await asyncio.gather(*(self._recover(execution_id) for execution_id in group))
        return len(unfinished)

    async def _recover(self, execution_id: int) -> None:
        now = self._clock.now()
        held = self._hold.held_at is not None

        def change(execution: Execution) -> None:
            execution.recover(at=now)
            if not held:
                begin_if_pending(execution, at=now)

        await self._executions.apply(execution_id, change)
