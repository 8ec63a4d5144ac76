"""Bugs that are planted one at a time, to see that the simulation finds them.

Never a flag in ``src``: a context manager puts a wrong function in the place of the
right one, for as long as it lasts, or a store that is wrong in the place of the right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from unittest import mock

from adapters.dispatch.local import LocalDispatcher
from adapters.dispatch.pools import Pools
from application.feed import Entry, Feed
from application.hold import Hold
from application.recovery import Recovery
from domain import dependencies
from domain.events import RecordedFact
from domain.execution import Execution
from domain.step import Step, StepStatus
from domain.steps import Steps
from tests.simulation.store import Batch, SimulatedExecutions


class TellsBeforeItCommits(SimulatedExecutions):
    """Facts are let out once they are written, and not only once they are durable."""

    def prepared(self, batch: Batch) -> None:
        facts = list(batch.facts)
        if facts:
            self._loop.call_soon_threadsafe(self._publish, facts)


class ForgetsWhatRuns(SimulatedExecutions):
    """Only the age of what is to be forgotten is looked at."""

    def may_go(self, execution: Execution, before: datetime) -> bool:
        return execution.updated_at < before


class SaysNothingOfWhatIsGone(SimulatedExecutions):
    """Who reads the log reads what there is, as if nothing had been before."""

    async def facts(
        self, since: int, limit: int, execution_id: int | None = None
    ) -> Sequence[RecordedFact]:
        return await super().facts(max(since, self._disk.floor), limit, execution_id)

    async def fact_bounds(self) -> tuple[int, int]:
        _, last = await super().fact_bounds()
        return (0, last)


def _believes_any_attempt(self: Execution, step: Step, attempt: int) -> None:
    pass


_is_satisfied = dependencies.is_satisfied


def _forgets_the_last_dependency(steps: Steps, step: Step) -> bool:
    return _is_satisfied(steps, step._replace(depends_on=step.depends_on[:-1]))


_retry = Execution.retry


def _retries_everything(self: Execution, *, at: datetime) -> None:
    _retry(self, at=at)
    for key, step in self.steps.items():
        if step.status is StepStatus.COMPLETED:
            self.steps[key] = step._replace(
                status=StepStatus.PENDING, output=None, progress=0.0, queued_at=None
            )


_recover = Recovery._recover


async def _recovers_only_what_ran(self: Recovery, execution_id: int) -> None:
    execution = await self._executions.get(execution_id)
    if any(step.status is StepStatus.RUNNING for step in execution.steps.values()):
        await _recover(self, execution_id)


async def _begins_nothing(self: Hold, execution_id: int) -> None:
    pass


def _forgets_the_slots(self: LocalDispatcher, execution_id: int, keys: object) -> None:
    pass


_append = Feed._append


def _forgets_what_fell_off(self: Feed, entry: Entry) -> None:
    floor = self._floor
    _append(self, entry)
    self._floor = floor


Patch = Callable[[], Any]

WRONG_STORES: Mapping[str, type[SimulatedExecutions]] = {
    "facts are broadcast before the commit": TellsBeforeItCommits,
    "what still runs is forgotten": ForgetsWhatRuns,
    "who missed what is forgotten isn't told": SaysNothingOfWhatIsGone,
}

PLANTED: Mapping[str, Patch] = {
    **dict.fromkeys(WRONG_STORES, contextlib.nullcontext),
    "no attempt check": lambda: mock.patch.object(Execution, "_believe", _believes_any_attempt),
    "dependency check off by one": lambda: mock.patch.object(
        dependencies, "is_satisfied", _forgets_the_last_dependency
    ),
    "retry resets completed steps": lambda: mock.patch.object(
        Execution, "retry", _retries_everything
    ),
    "recovery forgets queued steps": lambda: mock.patch.object(
        Recovery, "_recover", _recovers_only_what_ran
    ),
    "resume forgets what is pending": lambda: mock.patch.object(Hold, "_begin", _begins_nothing),
    "what others do starts while the engine is held": lambda: mock.patch.object(
        Pools, "lets_through", return_value=True
    ),
    "a family counts as closed while it is still spawned": lambda: mock.patch.object(
        Steps, "is_closed", return_value=True
    ),
    "a failed commit keeps the slots it took": lambda: mock.patch.object(
        LocalDispatcher, "withdraw", _forgets_the_slots
    ),
    "the feed forgets that facts fell off its tail": lambda: mock.patch.object(
        Feed, "_append", _forgets_what_fell_off
    ),
}


def store_of(bug: str | None) -> type[SimulatedExecutions]:
    return SimulatedExecutions if bug is None else WRONG_STORES.get(bug, SimulatedExecutions)


@contextlib.contextmanager
def planted(bug: str | None) -> Iterator[None]:
    with contextlib.nullcontext() if bug is None else PLANTED[bug]():
        yield
