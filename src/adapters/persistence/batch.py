"""What one transaction sees and writes: drafts of executions, the facts, the started steps.

Executions that are under way are kept in memory (``Committed``), since nobody
else writes this database; a change reads nothing. A batch lays drafts over them,
and writes what differs with one statement a table. Only after the commit do the
drafts become what is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, text

from adapters.persistence.rows import (
    EXECUTION,
    EXECUTION_DATA,
    EXECUTION_STATE,
    FACT,
    STEP,
    STEP_STATE,
    data_waits,
    detached,
    execution_data,
    execution_state,
    execution_values,
    fact_values,
    load_execution,
    load_executions_by_id,
    step_state,
    step_values,
)
from adapters.persistence.statements import Statement
from adapters.persistence.tables import (
    pipeline_event,
    pipeline_execution,
    pipeline_step,
    trigger_message,
)
from application.ports import Change, Dispatcher, Started
from application.transition import Transition, recorded, start_ready, transition
from domain.card_keys import may_be_one_card
from domain.errors import CardBusy, ExecutionNotFound
from domain.events import RecordedFact
from domain.execution import ACTIVE, Execution
from domain.step import Step, StepStatus

_insert_execution = Statement.insert(pipeline_execution, EXECUTION)
_insert_step = Statement.insert(pipeline_step, STEP)
_insert_fact = Statement.insert(pipeline_event, FACT)
_insert_message = Statement.insert(trigger_message, ("message_id", "execution_id", "contents_hash"))
_update_execution = Statement.update(pipeline_execution, EXECUTION_STATE, where=("id", "version"))
_update_execution_data = Statement.update(
    pipeline_execution, EXECUTION_DATA, where=("id", "version")
)
_update_step = Statement.update(pipeline_step, STEP_STATE, where=("execution_id", "step_key"))


class StaleRow(Exception):
    """A row wasn't what this process knew of it: another writer has been here."""


@dataclass(slots=True)
class Committed:
    """What is in the database, as far as it matters to the next change.

    cards: the active execution of each card.
    """

    executions: dict[int, Execution] = field(default_factory=dict)
    ids_by_uuid: dict[str, int] = field(default_factory=dict)
    cards: dict[str, int] = field(default_factory=dict)
    last_execution_id: int = 0
    last_fact_id: int = 0


class Batch:
    """One transaction: what the work in it sees, and what it will write."""

    def __init__(self, connection: Connection, committed: Committed, dispatcher: Dispatcher):
        self.connection = connection
        self.drafts: dict[int, Execution] = {}
        self.facts: list[RecordedFact] = []
        self.admitted: list[tuple[int, Step]] = []
        self.gone: list[int] = []
        self.last_execution_id = committed.last_execution_id
        self.last_fact_id = committed.last_fact_id
        self._committed = committed
        self._dispatcher = dispatcher
        self._loaded: dict[int, Execution] = {}
        self._messages: dict[str, tuple[int, str]] = {}
        self._cards: dict[str, int | None] = {}
        self._looked_at: dict[int, Execution] = {}

    def current(self, execution_id: int) -> Execution:
        """The execution as the work before this left it. Raises ``ExecutionNotFound``."""
        draft = self.drafts.get(execution_id)
        return draft if draft is not None else self._base(execution_id)

    def id_of(self, reference: str | int) -> int:
        """By uuid, or the id itself. Raises ``ExecutionNotFound``."""
        if isinstance(reference, int):
            return reference
        execution_id = self._committed.ids_by_uuid.get(reference)
        if execution_id is None:
            found = load_execution(self.connection, reference)
            if found is None:
                raise ExecutionNotFound(reference)
            assert found.id is not None
            execution_id = found.id
            self._loaded.setdefault(execution_id, found)
        return execution_id

    def load(self, execution_ids: Sequence[int]) -> None:
        """Read at once, since they are many, what will be changed soon; what is there of it."""
        unknown = [each for each in execution_ids if self._known(each) is None]
        for execution in load_executions_by_id(self.connection, unknown):
            assert execution.id is not None
            self._loaded[execution.id] = execution

    def change(self, execution_id: int, change: Change) -> Execution:
        """Adopt a change into the transaction. Raises what it raises, and ``CardBusy``."""
        current = self.current(execution_id)
        moved = transition(current, change, self._dispatcher)
        try:
            self._check_card(execution_id, current, moved.draft)
        except BaseException:
            self._dispatcher.withdraw(execution_id, moved.admitted)
            raise
        self._looked_at[execution_id] = moved.draft
        if moved.draft.differs_from(current):
            self._adopt(moved)
            return moved.draft
        return current

    def insert(self, execution: Execution, contents_hash: str) -> Execution:
        """A new execution, with an id and its first steps started."""
        draft = detached(execution)
        draft.recorded.extend(execution.recorded)
        draft.id = self.last_execution_id + 1
        moved = Transition(draft, start_ready(draft, self._dispatcher))
        self.last_execution_id = draft.id
        if draft.message_id is not None:
            self.remember(draft.message_id, draft.id, contents_hash)
        if draft.card_key is not None:
            self._cards[draft.card_key] = draft.id
        self._looked_at[draft.id] = draft
        self._adopt(moved)
        return draft

    def remember(self, message_id: str, execution_id: int, contents_hash: str) -> None:
        self._messages[message_id] = (execution_id, contents_hash)

    def message(self, message_id: str) -> tuple[int, str] | None:
        """Which execution a message belongs to, and the hash of what it said."""
        if message_id in self._messages:
            return self._messages[message_id]
        row = self.connection.execute(
            select(trigger_message.c.execution_id, trigger_message.c.contents_hash).where(
                trigger_message.c.message_id == message_id
            )
        ).first()
        return None if row is None else (row.execution_id, row.contents_hash)

    def card_holder(self, card_key: str) -> int | None:
        """The active execution that works on the card, or may: the last one of several."""
        holders = (
            holder
            for key, holder in (self._committed.cards | self._cards).items()
            if holder is not None and may_be_one_card(key, card_key)
        )
        return max(holders, default=None)

    def flush(self) -> None:
        """Write what has changed, one statement a table."""
        new: list[tuple[Any, ...]] = []
        changed: list[tuple[Any, ...]] = []
        changed_data: list[tuple[Any, ...]] = []
        new_steps: list[tuple[Any, ...]] = []
        changed_steps: list[tuple[Any, ...]] = []
        for execution_id, draft in self.drafts.items():
            base = self._known(execution_id)
            draft.version = (base.version if base else 0) + 1
            if base is None:
                new.append(execution_values(draft))
                new_steps.extend(step_values(execution_id, step) for step in draft.steps.values())
                continue
            if data_waits(base, draft):
                changed.append((*execution_state(draft), execution_id, base.version))
            else:
                changed_data.append((*execution_data(draft), execution_id, base.version))
            for before, step in draft.steps.changed_since(base.steps):
                if before is None:
                    new_steps.append(step_values(execution_id, step))
                else:
                    changed_steps.append((*step_state(step), execution_id, step.key))
        connection = self.connection
        # Changed ones first: one of them may have left a card that a new one takes.
        for update, rows in ((_update_execution, changed), (_update_execution_data, changed_data)):
            if rows and update.execute(connection, rows) != len(rows):
                raise StaleRow
        if new:
            _insert_execution.execute(connection, new)
        if new_steps:
            _insert_step.execute(connection, new_steps)
        if changed_steps and _update_step.execute(connection, changed_steps) != len(changed_steps):
            raise StaleRow
        if self._messages:
            _insert_message.execute(
                connection,
                [(message, *told) for message, told in self._messages.items()],
            )
        if self.facts:
            _insert_fact.execute(connection, [fact_values(fact) for fact in self.facts])

    def commit_into(self, committed: Committed) -> list[Started]:
        """After the commit: the drafts are the state now. What is to be launched."""
        committed.last_execution_id = self.last_execution_id
        committed.last_fact_id = self.last_fact_id
        for execution_id, execution in self._loaded.items():
            if execution.unfinished:
                committed.executions[execution_id] = execution
                committed.ids_by_uuid[execution.uuid] = execution_id
        for execution_id, execution in self.drafts.items():
            card_key = execution.card_key
            if card_key is not None and execution.status in ACTIVE:
                committed.cards[card_key] = execution_id
            elif card_key is not None and committed.cards.get(card_key) == execution_id:
                del committed.cards[card_key]
            if execution.unfinished:
                committed.executions[execution_id] = execution
                committed.ids_by_uuid[execution.uuid] = execution_id
            else:
                committed.executions.pop(execution_id, None)
                committed.ids_by_uuid.pop(execution.uuid, None)
        started = []
        for execution_id, step in self.admitted:
            final = self.drafts[execution_id].steps[step.key]
            if final.status is StepStatus.RUNNING and final.attempt == step.attempt:
                started.append(Started(self.drafts[execution_id], final))
            else:  # a later change in this very commit has ended it again
                self._dispatcher.withdraw(execution_id, [step])
        return started

    def changed(self) -> list[int]:
        """What isn't any more as it was shown."""
        return [*self.drafts, *self.gone]

    def due(self) -> list[tuple[int, datetime]]:
        """When executions of this batch want to be looked at again by themselves."""
        looks = ((i, execution.next_look_at()) for i, execution in self._looked_at.items())
        return [(execution_id, at) for execution_id, at in looks if at is not None]

    def withdraw(self) -> None:
        """The transaction is gone, and the slots of what it started are free again."""
        for execution_id, step in self.admitted:
            self._dispatcher.withdraw(execution_id, [step])

    def _known(self, execution_id: int) -> Execution | None:
        return self._committed.executions.get(execution_id) or self._loaded.get(execution_id)

    def _base(self, execution_id: int) -> Execution:
        known = self._known(execution_id)
        if known is None:
            known = load_execution(self.connection, execution_id)
            if known is None:
                raise ExecutionNotFound(execution_id)
            self._loaded[execution_id] = known
        return known

    def _check_card(self, execution_id: int, before: Execution, after: Execution) -> None:
        card_key = after.card_key
        if card_key is None or before.active == after.active:
            return
        if not after.active:
            self._cards[card_key] = None
            return
        holder = self.card_holder(card_key)
        if holder is not None and holder != execution_id:
            raise CardBusy(card_key, self.current(holder).uuid)
        self._cards[card_key] = execution_id

    def _adopt(self, moved: Transition) -> None:
        draft = moved.draft
        assert draft.id is not None
        for fact in draft.recorded:
            self.last_fact_id += 1
            self.facts.append(recorded(draft, fact, self.last_fact_id))
        draft.recorded = []
        self.drafts[draft.id] = draft
        self.admitted.extend((draft.id, step) for step in moved.admitted)


def read_committed(connection: Connection) -> Committed:
    """The counters and who holds which card; executions are loaded when they are needed."""
    cards = connection.execute(
        select(pipeline_execution.c.card_key, pipeline_execution.c.id).where(
            pipeline_execution.c.card_key.is_not(None),
            pipeline_execution.c.status.in_([status.value for status in ACTIVE]),
        )
    )
    return Committed(
        cards={row.card_key: row.id for row in cards},
        last_execution_id=_sequence(connection, pipeline_execution.name),
        last_fact_id=_sequence(connection, pipeline_event.name),
    )


def _sequence(connection: Connection, table: str) -> int:
    """The highest id that a table has ever given out, also if its row is gone."""
    found = connection.execute(
        text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table}
    ).scalar()
    return 0 if found is None else int(found)
