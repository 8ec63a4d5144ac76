"""``Executions`` in memory: the port's contract and nothing else. Every change is a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any

from application.ports import AttemptRef, Change, Changed, Dispatcher, Query, Started, Triggered
from application.transition import Transition, recorded, start_ready, transition
from domain.card_keys import may_be_one_card
from domain.errors import CardBusy, ExecutionNotFound, FactsGone, MessageConflict, Unavailable
from domain.events import RecordedFact
from domain.execution import Execution, ExecutionStatus
from domain.step import Step, StepStatus
from domain.steps import Steps

Publish = Callable[[Sequence[RecordedFact]], None]


class MemoryExecutions:
    """refuse_commits: so many of the next commits fail. commits: so many did not.

    keeps: whether an execution's job was never copied.
    """

    def __init__(self) -> None:
        self.refuse_commits = 0
        self.commits = 0
        self.keeps: Callable[[int], bool] = lambda execution_id: False
        self._executions: dict[int, Execution] = {}
        self._messages: dict[str, tuple[int, str]] = {}
        self._facts: list[RecordedFact] = []
        self._last_id = 0
        self._last_fact_id = 0
        self._floor = 0
        self._held_at: datetime | None = None
        self._dispatcher: Dispatcher | None = None
        self._publish: Publish = lambda facts: None
        self._watchers: list[Changed] = []

    async def open(self, dispatcher: Dispatcher, publish: Publish) -> None:
        self._dispatcher, self._publish = dispatcher, publish

    async def close(self) -> None:
        self._dispatcher = None

    async def trigger(self, execution: Execution, contents_hash: str) -> Triggered:
        draft = own(execution)
        dispatcher = await self._turn()
        if draft.message_id is not None and draft.message_id in self._messages:
            owner, digest = self._messages[draft.message_id]
            if digest != contents_hash:
                raise MessageConflict(draft.message_id)
            return Triggered(own(self._executions[owner]), "message")
        holder = self._holder(draft.card_key)
        if holder is not None and holder.id is not None:
            if draft.message_id is not None:
                self._commit()
                self._messages[draft.message_id] = (holder.id, contents_hash)
            return Triggered(own(holder), "card")
        draft.id = self._last_id + 1
        stored = self._store(Transition(draft, start_ready(draft, dispatcher)))
        if draft.message_id is not None:
            self._messages[draft.message_id] = (draft.id, contents_hash)
        look_at = stored.next_look_at()
        if look_at is not None:
            dispatcher.look_again(draft.id, look_at)
        return Triggered(own(stored), None)

    async def update(self, reference: str | int, change: Change) -> Execution:
        return own(await self._change(reference, change))

    async def apply(self, execution_id: int, change: Change) -> None:
        await self._change(execution_id, change)

    async def _change(self, reference: str | int, change: Change) -> Execution:
        dispatcher = await self._turn()
        before = self.committed(reference)
        assert before.id is not None
        moved = transition(before, change, dispatcher)
        if moved.draft.active and not before.active:
            holder = self._holder(moved.draft.card_key)
            if holder is not None:
                self._withdraw(moved)
                raise CardBusy(str(holder.card_key), holder.uuid)
        after = self._store(moved, before) if moved.draft.differs_from(before) else before
        look_at = moved.draft.next_look_at()
        if look_at is not None:
            dispatcher.look_again(before.id, look_at)
        return after

    async def get(self, reference: str | int) -> Execution:
        await self._turn()
        return own(self.committed(reference))

    def watch(self, changed: Changed) -> None:
        self._watchers.append(changed)

    async def list(self, query: Query) -> Sequence[Execution]:
        await self._turn()
        owner = 0
        if query.message_id is not None:
            owner, _ = self._messages.get(query.message_id, (-1, ""))
        found = [
            own(execution)
            for execution_id, execution in sorted(self._executions.items(), reverse=True)
            if (query.status is None or execution.status is query.status)
            and (query.pipeline_type is None or execution.definition.type == query.pipeline_type)
            and owner in (0, execution_id)
            and (query.before is None or execution_id < query.before)
        ]
        return found[: query.limit]

    async def unfinished(self) -> Sequence[int]:
        await self._turn()
        return [key for key, execution in self._executions.items() if execution.unfinished]

    async def unclaimed(
        self, step_name: str, pipeline_type: str | None, limit: int
    ) -> Sequence[tuple[int, str]]:
        await self._turn()
        waiting = [
            (step.started_at, execution_id, step.key)
            for execution_id, execution in self._executions.items()
            if execution.status is ExecutionStatus.RUNNING and execution.paused_at is None
            if pipeline_type in (None, execution.definition.type)
            for step in execution.steps.values()
            if step.name == step_name and step.spec.external
            if step.status is StepStatus.RUNNING and not step.claimed
            if step.started_at is not None
        ]
        waiting.sort(key=lambda each: each[0])
        return [(execution_id, key) for _, execution_id, key in waiting[:limit]]

    async def hold(self, at: datetime | None) -> None:
        await self._turn()
        self._commit()
        self._held_at = at

    async def held_at(self) -> datetime | None:
        await self._turn()
        return self._held_at

    async def facts(
        self, since: int, limit: int, execution_id: int | None = None
    ) -> Sequence[RecordedFact]:
        await self._turn()
        if execution_id is None and max(0, since) < self._floor:
            raise FactsGone(since, self._floor, self._last_fact_id)
        found = [
            deepcopy(fact)
            for fact in self._facts
            if fact.id > since and execution_id in (None, fact.execution_id)
        ]
        return found[:limit]

    async def fact_bounds(self) -> tuple[int, int]:
        await self._turn()
        return (self._floor, self._last_fact_id)

    async def forget(self, before: datetime, limit: int) -> int:
        await self._turn()
        over = [
            key
            for key, each in self._executions.items()
            if not each.unfinished and each.updated_at < before and not self.keeps(key)
        ]
        going = set(over[:limit])
        if going:
            self._commit()
        for key in going:
            del self._executions[key]
        self._messages = {m: of for m, of in self._messages.items() if of[0] not in going}
        gone = [fact.id for fact in self._facts if fact.execution_id in going]
        self._facts = [fact for fact in self._facts if fact.execution_id not in going]
        self._floor = max([self._floor, *gone])
        self._tell(going)
        return len(going)

    def committed(self, reference: str | int) -> Execution:
        """The last committed state itself, which nobody may change.

        Raises ``ExecutionNotFound``.
        """
        if reference in self._executions:
            return self._executions[int(reference)]
        for execution in self._executions.values():
            if reference == execution.uuid:
                return execution
        raise ExecutionNotFound(reference)

    def runs(self, attempt: AttemptRef, status: StepStatus = StepStatus.RUNNING) -> bool:
        """The fence, for the ports about footage; ``status`` is what its step has to be in."""
        execution = self._executions.get(attempt.execution_id)
        step = None if execution is None else execution.steps.get(attempt.step_key)
        return step is not None and step.status is status and step.attempt == attempt.attempt

    def has(self, execution_id: int) -> bool:
        return execution_id in self._executions

    def busy(self, execution_id: int) -> bool:
        """Whether it is active, or any step of it still runs."""
        execution = self._find(execution_id)
        running = (step.status is StepStatus.RUNNING for step in execution.steps.values())
        return execution.active or any(running)

    def data(self, execution_id: int) -> Mapping[str, Any]:
        return self._find(execution_id).data

    # -- inside ------------------------------------------------------------------

    async def _turn(self) -> Dispatcher:
        """Others have their turn first, as they would while a real store works."""
        self._open()
        await asyncio.sleep(0)
        return self._open()

    def _open(self) -> Dispatcher:
        if self._dispatcher is None:
            raise Unavailable("the store is closed")
        return self._dispatcher

    def _find(self, execution_id: int) -> Execution:
        if execution_id not in self._executions:
            raise ExecutionNotFound(execution_id)
        return self._executions[execution_id]

    def _holder(self, card_key: str | None) -> Execution | None:
        for execution in reversed(self._executions.values()):
            if card_key is None or execution.card_key is None or not execution.active:
                continue
            if may_be_one_card(execution.card_key, card_key):
                return execution
        return None

    def _tell(self, execution_ids: Collection[int]) -> None:
        for changed in self._watchers:
            changed(execution_ids)

    def _commit(self) -> None:
        if self.refuse_commits:
            self.refuse_commits -= 1
            raise Unavailable("the commit failed")
        self.commits += 1

    def _withdraw(self, moved: Transition) -> None:
        if moved.admitted:
            assert moved.draft.id is not None
            self._open().withdraw(moved.draft.id, moved.admitted)

    def _store(self, moved: Transition, before: Execution | None = None) -> Execution:
        try:
            self._commit()
        except Unavailable:
            self._withdraw(moved)
            raise
        stored = own(moved.draft, before)
        assert stored.id is not None
        stored.version += 1
        facts = [
            recorded(stored, fact, number)
            for number, fact in enumerate(stored.recorded, start=self._last_fact_id + 1)
        ]
        stored.recorded = []
        self._executions[stored.id] = stored
        self._last_id = max(self._last_id, stored.id)
        self._facts.extend(facts)
        self._last_fact_id += len(facts)
        self._tell([stored.id])
        if facts:
            self._publish(deepcopy(facts))
        if moved.admitted:
            self._open().launch([Started(stored, step) for step in moved.admitted])
        return stored


def own(execution: Execution, before: Execution | None = None) -> Execution:
    """A copy that shares nothing with it that could be changed, but what ``before`` has too."""
    copied = execution.copy()
    copied.recorded = list(execution.recorded)
    if before is None or execution.data is not before.data:
        copied.data = deepcopy(execution.data)
    known: Steps | dict[str, Step] = {} if before is None else before.steps
    for key, step in execution.steps.items():
        holds = step.output is not None or step.params or step.checkpoint is not None
        if holds and known.get(key) is not step:
            copied.steps[key] = step._replace(
                output=deepcopy(step.output),
                params=deepcopy(step.params),
                checkpoint=deepcopy(step.checkpoint),
            )
    return copied
