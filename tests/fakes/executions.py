"""``Executions`` in memory: the port's contract and nothing else. Every change is a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

from application.ports import Change, Dispatcher, Query, Started, Triggered
from application.transition import Transition, fact_data, start_ready, transition
from domain.errors import CardBusy, ExecutionNotFound, MessageConflict, Unavailable
from domain.events import RecordedFact
from domain.execution import Execution
from domain.step import Step

Publish = Callable[[Sequence[RecordedFact]], None]


class MemoryExecutions:
    """``refuse_commits``: so many of the next commits fail."""

    def __init__(self) -> None:
        self.refuse_commits = 0
        self.commits = 0
        self._executions: dict[int, Execution] = {}
        self._messages: dict[str, tuple[int, str]] = {}
        self._facts: list[RecordedFact] = []
        self._dispatcher: Dispatcher | None = None
        self._publish: Publish | None = None

    async def open(self, dispatcher: Dispatcher, publish: Publish) -> None:
        self._dispatcher, self._publish = dispatcher, publish

    async def close(self) -> None:
        self._dispatcher = self._publish = None

    async def trigger(self, execution: Execution, contents_hash: str) -> Triggered:
        await self._turn()
        message_id, card_key = execution.message_id, execution.card_key
        if message_id is not None and message_id in self._messages:
            owner, digest = self._messages[message_id]
            if digest != contents_hash:
                raise MessageConflict(message_id)
            return Triggered(own(self._executions[owner]), "message")
        holder = None if card_key is None else self._card_holder(card_key)
        if holder is not None:
            if message_id is not None:
                self._commit()
                self._messages[message_id] = (holder, contents_hash)
            return Triggered(own(self._executions[holder]), "card")
        draft = own(execution)
        draft.id = len(self._executions) + 1
        moved = Transition(draft, start_ready(draft, self._open()))
        self._adopt(moved)
        if message_id is not None:
            self._messages[message_id] = (draft.id, contents_hash)
        self._let_out(moved, [*execution.recorded, *draft.recorded])
        return Triggered(own(draft), None)

    async def update(self, execution_id: int, change: Change) -> Execution:
        await self._turn()
        before = self._find(execution_id)
        moved = transition(own(before), change, self._open())
        draft = own(moved.draft)
        if draft.card_key is not None and draft.active and not before.active:
            holder = self._card_holder(draft.card_key)
            if holder is not None:
                self._withdraw(execution_id, moved.admitted)
                raise CardBusy(draft.card_key, self._executions[holder].uuid)
        if moved.draft.recorded or _state(draft) != _state(before):
            moved = Transition(draft, moved.admitted)
            facts = list(moved.draft.recorded) or list(moved.draft.recorded)
            self._adopt(moved)
            self._let_out(moved, facts)
        return own(self._executions[execution_id])

    async def get(self, reference: str | int) -> Execution:
        await self._turn()
        if isinstance(reference, int):
            return own(self._find(reference))
        for execution in self._executions.values():
            if execution.uuid == reference:
                return own(execution)
        raise ExecutionNotFound(reference)

    async def list(self, query: Query) -> Sequence[Execution]:
        await self._turn()
        owner = None
        if query.message_id is not None:
            owner, _ = self._messages.get(query.message_id, (0, ""))
        found = [
            own(execution)
            for execution_id, execution in sorted(self._executions.items(), reverse=True)
            if (query.status is None or execution.status is query.status)
            and (query.pipeline_type is None or execution.definition.type == query.pipeline_type)
            and (owner is None or execution_id == owner)
            and (query.before is None or execution_id < query.before)
        ]
        return found[: query.limit]

    async def unfinished(self) -> Sequence[int]:
        await self._turn()
        return [key for key, execution in self._executions.items() if execution.unfinished]

    async def facts(
        self, since: int, limit: int, execution_id: int | None = None
    ) -> Sequence[RecordedFact]:
        await self._turn()
        found = [
            deepcopy(fact)
            for fact in self._facts
            if fact.id > since and execution_id in (None, fact.execution_id)
        ]
        return found[:limit]

    async def fact_bounds(self) -> tuple[int, int]:
        await self._turn()
        return (0, self._facts[-1].id) if self._facts else (0, 0)

    def runs(self, execution_id: int, step_key: str, attempt: int) -> bool:
        """Whether that attempt is the one that runs: the fence, for the ports about footage."""
        execution = self._executions.get(execution_id)
        step = None if execution is None else execution.steps.get(step_key)
        return step is not None and step.status == "running" and step.attempt == attempt

    # -- inside ------------------------------------------------------------------

    async def _turn(self) -> None:
        self._open()
        await asyncio.sleep(0)
        self._open()

    def _open(self) -> Dispatcher:
        if self._dispatcher is None:
            raise Unavailable("the store is closed")
        return self._dispatcher

    def _find(self, execution_id: int) -> Execution:
        if execution_id not in self._executions:
            raise ExecutionNotFound(execution_id)
        return self._executions[execution_id]

    def _card_holder(self, card_key: str) -> int | None:
        for execution_id, execution in self._executions.items():
            if execution.active and execution.card_key == card_key:
                return execution_id
        return None

    def _commit(self) -> None:
        if self.refuse_commits:
            self.refuse_commits -= 1
            raise Unavailable("the commit failed")
        self.commits += 1

    def _adopt(self, moved: Transition) -> None:
        draft = moved.draft
        assert draft.id is not None
        try:
            self._commit()
        except Unavailable:
            self._withdraw(draft.id, moved.admitted)
            raise
        draft.version += 1
        self._executions[draft.id] = draft

    def _withdraw(self, execution_id: int, admitted: Sequence[Step]) -> None:
        if admitted:
            self._open().withdraw(execution_id, [step.key for step in admitted])

    def _let_out(self, moved: Transition, recorded: Sequence[object]) -> None:
        raise NotImplementedError
