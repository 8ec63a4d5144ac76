"""How any store changes an execution: a change, and what becomes possible by it.

A transition is a pure function of the last committed state. Stores differ in
how they make it durable; what happens to the execution is said here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from application.ports import Change, Dispatcher
from domain.events import Fact, RecordedFact
from domain.execution import Execution
from domain.step import Step


@dataclass(frozen=True, slots=True)
class Transition:
    """``draft`` is to be committed; ``admitted`` to be launched then, or withdrawn."""

    draft: Execution
    admitted: Sequence[Step]


def transition(execution: Execution, change: Change, dispatcher: Dispatcher) -> Transition:
    """Run ``change`` on a draft and start what has become ready. Raises what ``change`` raises."""
    draft = execution.copy()
    change(draft)
    return Transition(draft, start_ready(draft, dispatcher))


def start_ready(draft: Execution, dispatcher: Dispatcher) -> Sequence[Step]:
    """Start the ready steps that may go, queue the others; the started ones to launch.

    External ones are started and not launched: somebody else does them, and reports.
    """
    ready = draft.ready()
    if not ready:
        return ()
    at = draft.updated_at
    admitted = dispatcher.admit(draft, ready)
    started = []
    for step in ready:
        if step.key not in admitted:
            draft.queue(step.key, at=at)
            continue
        begun = draft.start(step.key, at=at)
        if not step.spec.external:
            started.append(begun)
    return started


def recorded(execution: Execution, fact: Fact, fact_id: int) -> RecordedFact:
    """A fact as the log keeps it, with what clients are told: whose it is, and what it says."""
    assert execution.id is not None, "only what is stored has a log"
    data: dict[str, Any] = {"execution_id": execution.uuid}
    if execution.message_id is not None:
        data["message_id"] = execution.message_id
    data.update(fact.data())
    return RecordedFact(fact_id, execution.id, fact.type, fact.subject, data, fact.at)
