"""Do a part of an execution that has ended again, as a new execution."""

from __future__ import annotations

from application.hold import Hold
from application.json_values import contents_hash
from application.ports import Clock, Executions, Ids
from application.views import ExecutionView
from domain.errors import CardBusy
from domain.execution import Execution


class Rerun:
    def __init__(self, *, executions: Executions, clock: Clock, ids: Ids, hold: Hold) -> None:
        self._executions = executions
        self._clock = clock
        self._ids = ids
        self._hold = hold

    async def __call__(self, reference: str | int, from_step: str) -> ExecutionView:
        """``from_step`` and all that comes of it run again; what else had completed is kept.
        While the engine is held it is pending.

        Raises ``ExecutionNotFound``, ``StepNotFound``; ``IllegalTransition`` while the
        execution is active; ``CardBusy`` if another one is at work on its card.
        """
        original = await self._executions.get(reference)
        again = Execution.rerun(
            original,
            from_step,
            uuid=self._ids.new(),
            at=self._clock.now(),
            # Nothing is awaited between this and the store (see ``hold``).
            held=self._hold.held_at is not None,
        )
        triggered = await self._executions.trigger(again, contents_hash("rerun", again.uuid))
        if triggered.duplicate is not None:
            raise CardBusy(str(again.card_key), triggered.execution.uuid)
        return ExecutionView.of(triggered.execution, held_at=self._hold.held_at)
