"""Hold the whole engine, and let it go on; also the next process knows that it is held.

While it is held, nothing starts. What is triggered meanwhile is stored as pending, and
begins when the engine goes on.

Nothing stays pending behind a resume: from the moment in which that is asked, triggers
store what runs; those asked before are in the store once its own change is, and only then
does it look for what is pending. If the process dies in between, recovery finds an engine
that isn't held, and begins what is pending.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from application.ports import Clock, Dispatcher, Executions
from domain.execution import Execution, ExecutionStatus

AT_ONCE = 64
"""How many executions begin together; they share commits."""


class Hold:
    def __init__(self, *, executions: Executions, dispatcher: Dispatcher, clock: Clock) -> None:
        self._executions = executions
        self._dispatcher = dispatcher
        self._clock = clock
        self._held_at: datetime | None = None
        self._turn = asyncio.Lock()

    @property
    def held_at(self) -> datetime | None:
        """Since when the engine is held; None if it isn't."""
        return self._held_at

    async def open(self) -> None:
        """At start, before anything is recovered: hold it if the last process did."""
        self._held_at = await self._executions.held_at()
        if self._held_at is not None:
            self._dispatcher.hold()

    async def pause(self) -> None:
        """Nothing more starts; what runs goes on to its end. Twice is the same as once.

        Raises ``Unavailable`` if that can't be stored; then nothing is held.
        """
        async with self._turn:
            if self._held_at is None:
                now = self._clock.now()
                await self._executions.hold(now)
                self._held_at = now
            self._dispatcher.hold()

    async def resume(self) -> None:
        """What waits goes on, and what is pending begins, the oldest first. Twice is the same.

        Raises ``Unavailable`` if that can't be stored; then the engine is held as before,
        and can be resumed again.
        """
        async with self._turn:
            held_at, self._held_at = self._held_at, None
            try:
                await self._executions.hold(None)
                unfinished = await self._executions.unfinished()
                for start in range(0, len(unfinished), AT_ONCE):
                    group = unfinished[start : start + AT_ONCE]
                    await asyncio.gather(*(self._begin(execution_id) for execution_id in group))
            except BaseException:
                self._held_at = held_at
                raise
            self._dispatcher.go_on()

    async def _begin(self, execution_id: int) -> None:
        now = self._clock.now()
        await self._executions.apply(execution_id, lambda e: begin_if_pending(e, at=now))


def begin_if_pending(execution: Execution, *, at: datetime) -> None:
    """It may have begun, or have been cancelled, since it was looked for."""
    if execution.status is ExecutionStatus.PENDING:
        execution.begin(at=at)
