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
            now = self._clock.now()
            await asyncio.gather(
                *(
                    self._executions.update(
                        execution_id, lambda execution: execution.recover(at=now)
                    )
                    for execution_id in unfinished[start : start + AT_ONCE]
                )
            )
        return len(unfinished)
