"""``Executions`` as a disk and a writer that can die between any two things they do.

``Disk`` is what survives: executions, messages and facts, each commit whole or not at
all. ``SimulatedExecutions`` is what a process has of it: a queue of changes, a writer
that runs a group of them on drafts, a sync that takes time, and a hand-over to the
loop. It does what ``adapters/persistence/writer.py`` does, and between any two of
these steps the process may die, or the commit fail, as ``Fate`` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from application.ports import Change, Changed, Dispatcher, Query, Started, Triggered
from application.transition import Transition, recorded, start_ready, transition
from domain.card_keys import may_be_one_card
from domain.errors import CardBusy, ExecutionNotFound, FactsGone, MessageConflict, Unavailable
from domain.events import RecordedFact
from domain.execution import Execution, ExecutionStatus
from domain.step import Step, StepStatus
from tests.simulation.loop import SimulatedLoop

Publish = Callable[[Sequence[RecordedFact]], None]

GROUP = 64


class Fate(StrEnum):
    """What becomes of a commit."""

    DONE = "done"
    FAILS = "fails"
    UNCLEAR = "done, and reported as failed: found out by reading"
    DIES_BEFORE = "the process dies before it is durable"
    DIES_AFTER = "the process dies after it is durable, before anybody hears"


class Doom(Protocol):
    """Who decides: the world of this run."""

    def moment(self, longest_s: float) -> float: ...

    def after(self, delay_s: float, callback: Callable[..., object], *args: Any) -> object: ...

    def commit_fate(self) -> Fate: ...

    def read_fails(self) -> bool: ...

    def skips_an_id(self) -> bool: ...

    def die(self, why: str) -> None: ...

    def committed(self, before: dict[int, Execution], batch: Batch) -> None: ...


def last_holder(executions: Mapping[int, Execution], card_key: str) -> int | None:
    """The active one that works on this card, or may."""
    holders = (
        execution_id
        for execution_id, execution in executions.items()
        if execution.active
        and execution.card_key is not None
        and may_be_one_card(execution.card_key, card_key)
    )
    return max(holders, default=None)


class Disk:
    """What is durable."""

    def __init__(self) -> None:
        self.executions: dict[int, Execution] = {}
        self.ids: dict[str, int] = {}
        self.messages: dict[str, tuple[int, str]] = {}
        self.facts: list[RecordedFact] = []
        self.last_execution_id = 0
        self.last_fact_id = 0
        self.floor = 0  # the highest id of a fact that is forgotten
        self.held_at: datetime | None = None
        self.forgets_failed = 0  # in a row

    def holder(self, card_key: str) -> int | None:
        return last_holder(self.executions, card_key)

    def take(self, batch: Batch) -> dict[int, Execution]:
        """The commit. What the changed executions were before it."""
        before = {
            execution_id: self.executions[execution_id]
            for execution_id in batch.drafts
            if execution_id in self.executions
        }
        for execution_id, draft in batch.drafts.items():
            self.executions[execution_id] = draft
            self.ids[draft.uuid] = execution_id
        self._forget(batch.gone)
        self.messages.update(batch.messages)
        self.facts.extend(batch.facts)
        self.last_execution_id = batch.last_execution_id
        self.last_fact_id = batch.last_fact_id
        if batch.held:
            self.held_at = batch.held[-1]
        return before

    def _forget(self, gone: set[int]) -> None:
        if not gone:
            return
        for execution_id in gone:
            del self.ids[self.executions.pop(execution_id).uuid]
        self.messages = {m: of for m, of in self.messages.items() if of[0] not in gone}
        lost = [fact.id for fact in self.facts if fact.execution_id in gone]
        self.facts = [fact for fact in self.facts if fact.execution_id not in gone]
        self.floor = max([self.floor, *lost])


@dataclass(slots=True)
class Piece:
    work: Callable[[Batch], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class Batch:
    """One transaction: drafts laid over what is durable."""

    disk: Disk
    dispatcher: Dispatcher
    skip_an_id: Callable[[], bool]
    drafts: dict[int, Execution] = field(default_factory=dict)
    facts: list[RecordedFact] = field(default_factory=list)
    admitted: list[tuple[int, Step]] = field(default_factory=list)
    messages: dict[str, tuple[int, str]] = field(default_factory=dict)
    looked_at: dict[int, Execution] = field(default_factory=dict)
    held: list[datetime | None] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    while_held: bool = False
    last_fact_id: int = 0
    last_execution_id: int = 0

    def __post_init__(self) -> None:
        self.last_fact_id = self.disk.last_fact_id
        self.last_execution_id = self.disk.last_execution_id
        self.while_held = self.dispatcher.load().held

    def id_of(self, reference: str | int) -> int:
        if isinstance(reference, int):
            return reference
        if reference not in self.disk.ids:
            raise ExecutionNotFound(reference)
        return self.disk.ids[reference]

    def current(self, execution_id: int) -> Execution:
        found = self.drafts.get(execution_id) or self.disk.executions.get(execution_id)
        if found is None or execution_id in self.gone:
            raise ExecutionNotFound(execution_id)
        return found

    def message(self, message_id: str) -> tuple[int, str] | None:
        known = self.messages.get(message_id) or self.disk.messages.get(message_id)
        return None if known is None or known[0] in self.gone else known

    def holder(self, card_key: str) -> int | None:
        return last_holder(self.disk.executions | self.drafts, card_key)

    def change(self, execution_id: int, change: Change) -> Execution:
        before = self.current(execution_id)
        moved = transition(before, change, self.dispatcher)
        card_key = moved.draft.card_key
        if card_key is not None and moved.draft.active and not before.active:
            holder = self.holder(card_key)
            if holder is not None and holder != execution_id:
                self.withdraw(execution_id, moved.admitted)
                raise CardBusy(card_key, self.current(holder).uuid)
        self.looked_at[execution_id] = moved.draft
        return self.adopt(moved) if moved.draft.differs_from(before) else before

    def insert(self, execution: Execution, contents_hash: str) -> Execution:
        draft = execution.copy()
        draft.recorded = list(execution.recorded)
        draft.id = self.last_execution_id = self.last_execution_id + 1
        if draft.message_id is not None:
            self.messages[draft.message_id] = (draft.id, contents_hash)
        return self.adopt(Transition(draft, start_ready(draft, self.dispatcher)))

    def adopt(self, moved: Transition) -> Execution:
        draft = moved.draft
        assert draft.id is not None
        for fact in draft.recorded:
            self.last_fact_id += 2 if self.skip_an_id() else 1
            self.facts.append(recorded(draft, fact, self.last_fact_id))
        draft.recorded = []
        draft.version += 1
        self.drafts[draft.id] = draft
        self.admitted.extend((draft.id, step) for step in moved.admitted)
        self.looked_at[draft.id] = draft
        return draft

    def withdraw(self, execution_id: int, steps: Sequence[Step]) -> None:
        if steps:
            self.dispatcher.withdraw(execution_id, steps)

    def withdraw_all(self) -> None:
        for execution_id, step in self.admitted:
            self.withdraw(execution_id, [step])

    def launched(self) -> list[Started]:
        started = []
        for execution_id, step in self.admitted:
            draft = self.drafts[execution_id]
            final = draft.steps[step.key]
            if final.status is StepStatus.RUNNING and final.attempt == step.attempt:
                started.append(Started(draft, final))
            else:  # a later change in this very commit has ended it again
                self.withdraw(execution_id, [step])
        return started

    def due(self) -> list[tuple[int, datetime]]:
        """When executions want to be looked at again by themselves."""
        looks = ((key, execution.next_look_at()) for key, execution in self.looked_at.items())
        return [(key, at) for key, at in looks if at is not None]


class SimulatedExecutions:
    def __init__(self, disk: Disk, doom: Doom, loop: SimulatedLoop) -> None:
        self._disk = disk
        self._doom = doom
        self._loop = loop
        self._queue: list[Piece] = []
        self._busy = False
        self._opened = False
        self._dispatcher: Dispatcher | None = None
        self._publish: Publish = lambda facts: None
        self._watchers: list[Changed] = []

    async def open(self, dispatcher: Dispatcher, publish: Publish) -> None:
        self._dispatcher, self._publish, self._opened = dispatcher, publish, True

    async def close(self) -> None:
        self._opened = False
        while self._busy:
            await asyncio.sleep(0.001)
        # What the last commit let out stands in the loop's order, before this.
        turn = self._loop.create_future()
        self._loop.call_soon_threadsafe(turn.set_result, None)
        await turn

    # -- the port ----------------------------------------------------------------

    async def trigger(self, execution: Execution, contents_hash: str) -> Triggered:
        def work(batch: Batch) -> Triggered:
            message_id, card_key = execution.message_id, execution.card_key
            if message_id is not None:
                known = batch.message(message_id)
                if known is not None:
                    if known[1] != contents_hash:
                        raise MessageConflict(message_id)
                    return Triggered(batch.current(known[0]), "message")
            holder = None if card_key is None else batch.holder(card_key)
            if holder is not None:
                if message_id is not None:
                    batch.messages[message_id] = (holder, contents_hash)
                return Triggered(batch.current(holder), "card")
            return Triggered(batch.insert(execution, contents_hash), None)

        triggered = await self._run(work)
        return Triggered(triggered.execution.copy(), triggered.duplicate)

    async def update(self, reference: str | int, change: Change) -> Execution:
        changed: Execution = await self._run(
            lambda batch: batch.change(batch.id_of(reference), change)
        )
        return changed.copy()

    async def apply(self, execution_id: int, change: Change) -> None:
        await self._run(lambda batch: batch.change(execution_id, change))

    async def get(self, reference: str | int) -> Execution:
        await self._look()
        if isinstance(reference, str):
            reference = self._disk.ids.get(reference, 0)
        if reference not in self._disk.executions:
            raise ExecutionNotFound(reference)
        return self._disk.executions[reference].copy()

    def watch(self, changed: Changed) -> None:
        self._watchers.append(changed)

    async def list(self, query: Query) -> Sequence[Execution]:
        await self._look()
        owner = None
        if query.message_id is not None:
            owner, _ = self._disk.messages.get(query.message_id, (0, ""))
        found = [
            execution.copy()
            for execution_id, execution in sorted(self._disk.executions.items(), reverse=True)
            if (query.status is None or execution.status is query.status)
            and (query.pipeline_type is None or execution.definition.type == query.pipeline_type)
            and owner in (None, execution_id)
            and (query.before is None or execution_id < query.before)
        ]
        return found[: query.limit]

    async def unfinished(self) -> Sequence[int]:
        await self._look()
        return [key for key, each in self._disk.executions.items() if each.unfinished]

    async def unclaimed(
        self, step_name: str, pipeline_type: str | None, limit: int
    ) -> Sequence[tuple[int, str]]:
        await self._look()
        waiting = [
            (step.started_at, execution_id, step.key)
            for execution_id, execution in self._disk.executions.items()
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
        await self._run(lambda batch: batch.held.append(at))

    async def held_at(self) -> datetime | None:
        await self._look()
        return self._disk.held_at

    async def forget(self, before: datetime, limit: int) -> int:
        self._disk.forgets_failed += 1
        forgotten = await self._forget(before, limit)
        self._disk.forgets_failed = 0
        return forgotten

    async def _forget(self, before: datetime, limit: int) -> int:
        await self._look()
        stored = self._disk.executions
        found = [key for key, each in stored.items() if self.may_go(each, before)][:limit]
        if not found:
            return 0

        def work(batch: Batch) -> int:
            # What another change of this commit has touched stays.
            going = {
                key
                for key in found
                if key not in batch.drafts and key in stored and self.may_go(stored[key], before)
            }
            batch.gone |= going
            return len(going)

        forgotten: int = await self._run(work)
        return forgotten

    def may_go(self, execution: Execution, before: datetime) -> bool:
        return not execution.unfinished and execution.updated_at < before

    async def facts(
        self, since: int, limit: int, execution_id: int | None = None
    ) -> Sequence[RecordedFact]:
        await self._look()
        if execution_id is None and since < self._disk.floor:
            raise FactsGone(since, self._disk.floor, self._disk.last_fact_id)
        facts = self._disk.facts
        start = len(facts)
        while start and facts[start - 1].id > since:
            start -= 1
        found = facts[start:]
        if execution_id is not None:
            found = [fact for fact in found if fact.execution_id == execution_id]
        return found[:limit]

    async def fact_bounds(self) -> tuple[int, int]:
        await self._look()
        return (self._disk.floor, self._disk.last_fact_id)

    # -- inside ------------------------------------------------------------------

    async def _look(self) -> None:
        self._require_open()
        await asyncio.sleep(self._doom.moment(0.002))
        self._require_open()
        if self._doom.read_fails():
            raise Unavailable("the database can't be read")

    def _require_open(self) -> None:
        if not self._opened:
            raise Unavailable("the database is closed")

    async def _run(self, work: Callable[[Batch], Any]) -> Any:
        self._require_open()
        piece = Piece(work, self._loop.create_future())
        self._queue.append(piece)
        if not self._busy:
            self._busy = True
            self._doom.after(self._doom.moment(0.001), self._gather)
        return await piece.future

    # What follows happens on the writer's thread: the loop goes on meanwhile.

    def _gather(self) -> None:
        if self._loop.closed:
            return
        group, self._queue = self._queue[:GROUP], self._queue[GROUP:]
        self._commit([group])

    def _commit(self, groups: list[list[Piece]]) -> None:
        """Run the first group's changes, and have them synced."""
        if self._loop.closed:
            return
        assert self._dispatcher is not None
        batch = Batch(self._disk, self._dispatcher, self._doom.skips_an_id)
        for piece in groups[0]:
            piece.result = piece.error = None
            try:
                piece.result = piece.work(batch)
            except Exception as error:
                piece.error = error
        self.prepared(batch)
        self._doom.after(self._doom.moment(0.004), self._synced, groups, batch)

    def prepared(self, batch: Batch) -> None:
        """Everything is written, and nothing durable: nobody may hear of it."""

    def _synced(self, groups: list[list[Piece]], batch: Batch) -> None:
        if self._loop.closed:
            return
        group, following = groups[0], groups[1:]
        writes = bool(batch.drafts or batch.messages or batch.held or batch.gone)
        fate = self._doom.commit_fate() if writes else Fate.DONE
        if fate is Fate.DIES_BEFORE:
            self._doom.die(fate)
            return
        if fate is Fate.FAILS:
            batch.withdraw_all()
            if len(group) > 1:
                self._go_on([[piece] for piece in group] + following)
                return
            group[0].error = Unavailable("the commit failed")
            self._loop.call_soon_threadsafe(self._deliver, group, [], [], [], [])
            self._go_on(following)
            return
        if writes:
            self._doom.committed(self._disk.take(batch), batch)
        if fate is Fate.DIES_AFTER:
            self._doom.die(fate)
            return
        delay = 0.05 if fate is Fate.UNCLEAR else 0.0
        self._doom.after(delay, self._known, group, batch, following)

    def _known(self, group: list[Piece], batch: Batch, following: list[list[Piece]]) -> None:
        if self._loop.closed:
            return
        started = batch.launched()
        due = batch.due()
        changed = [*batch.drafts, *batch.gone]
        self._loop.call_soon_threadsafe(self._deliver, group, batch.facts, started, due, changed)
        self._go_on(following)

    def _go_on(self, groups: list[list[Piece]]) -> None:
        if groups:
            self._doom.after(self._doom.moment(0.001), self._commit, groups)
        elif self._queue:
            self._doom.after(self._doom.moment(0.001), self._gather)
        else:
            self._busy = False

    # And this on the loop.

    def _deliver(
        self,
        group: Sequence[Piece],
        facts: Sequence[RecordedFact],
        started: Sequence[Started],
        due: Sequence[tuple[int, datetime]],
        changed: Collection[int],
    ) -> None:
        assert self._dispatcher is not None
        for watcher in self._watchers:
            watcher(changed)
        if facts:
            self._publish(facts)
        if started:
            self._dispatcher.launch(started)
        for execution_id, at in due:
            self._dispatcher.look_again(execution_id, at)
        for piece in group:
            if piece.future.done():
                continue
            if piece.error is not None:
                piece.future.set_exception(piece.error)
            else:
                piece.future.set_result(piece.result)
