"""Who may run in a test bed: everybody, or as many as its pools and key limits allow.

The rules are those of the real dispatcher, without its threads and without its fairness:
whenever a slot comes free, all that wait are asked again, those with a higher priority
first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

from application.ports import Clock, Executions, Load, Started
from application.step_runner import Attempt, StepRunner
from domain.errors import RushesError
from domain.execution import Execution
from domain.step import Step

AttemptId = tuple[int, str, int]

Reserved = tuple[tuple[str, int], ...]
"""What a step holds, each with how many there may be of it."""

ABANDON_AFTER_S = 300.0
"""As on a server where nobody has set it."""


class BedDispatcher:
    """Implements ``application.ports.Dispatcher``, on the loop alone.

    pools: how many steps run at once, by name; a pool that isn't there has no bound.
    ended: how many attempts have come to an end, for whoever waits for something to happen.
    """

    def __init__(self, pools: Mapping[str, int]) -> None:
        self.ended = 0
        self._pools = dict(pools)
        self._held: Counter[str] = Counter()
        self._claims: dict[AttemptId, Reserved] = {}
        self._kept: dict[AttemptId, Reserved] = {}  # by abandoned attempts
        self._overdue: set[Attempt] = set()
        self._abandoned: set[Attempt] = set()
        self._waiting: dict[int, int] = {}  # the highest priority that waits, by execution
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work: dict[asyncio.Task[None], Attempt] = {}
        self._holding = False
        self._closed = False

    def open(self, runner: StepRunner, executions: Executions, clock: Clock) -> None:
        self._runner, self._executions, self._clock = runner, executions, clock

    def at_work(self) -> Sequence[Attempt]:
        """The attempts whose handlers haven't ended."""
        return [attempt for attempt in self._at_work.values() if not attempt.ended.done()]

    def kill(self) -> None:
        """The process is gone: nothing is reported, and nothing begins any more."""
        self._closed = True
        self._runner.stop()
        for attempt in self.at_work():
            attempt.tell()
        for task in self._tasks:
            task.cancel()

    # -- the port ----------------------------------------------------------------

    def admit(self, execution: Execution, ready: Sequence[Step]) -> Collection[str]:
        assert execution.id is not None
        admitted: list[str] = []
        if self._closed:
            return admitted
        if self._holding:
            self._waiting.setdefault(execution.id, 0)
            return admitted
        for step in sorted(ready, key=lambda step: -step.spec.priority):
            claim = () if step.spec.external else self._claim(execution, step)
            if all(self._held[name] < most for name, most in claim):
                self._held.update(name for name, _ in claim)
                if not step.spec.external:
                    self._claims[execution.id, step.key, step.attempt + 1] = claim
                admitted.append(step.key)
            else:
                before = self._waiting.get(execution.id, step.spec.priority)
                self._waiting[execution.id] = max(before, step.spec.priority)
        return admitted

    def launch(self, started: Sequence[Started]) -> None:
        for each in started:
            attempt = self._runner.begin(each)
            task = asyncio.create_task(self._run(attempt))
            self._at_work[task] = attempt
            self._keep(task)

    def hold(self) -> None:
        self._holding = True

    def go_on(self) -> None:
        self._holding = False
        self._ask_again()

    def load(self) -> Load:
        at_work = self.at_work()
        return Load(
            held=self._holding,
            running=len(at_work),
            waiting=len(self._waiting),
            overdue=tuple(
                attempt.ref
                for attempt in at_work
                if attempt.told and attempt not in self._abandoned
            ),
            abandoned=tuple(attempt.ref for attempt in at_work if attempt in self._abandoned),
        )

    def look_again(self, execution_id: int, at: datetime) -> None:
        if not self._closed:
            self._keep(asyncio.create_task(self._look(execution_id, at)))

    def cancel(self, execution_id: int) -> None:
        for attempt in self.at_work():
            if attempt.ref.execution_id == execution_id:
                attempt.tell()
                self._bound(attempt)

    def withdraw(self, execution_id: int, started: Iterable[Step]) -> None:
        for step in started:
            self._free(self._claims, (execution_id, step.key, step.attempt))

    # -- inside ------------------------------------------------------------------

    async def _run(self, attempt: Attempt) -> None:
        task = asyncio.current_task()
        assert task is not None
        ref = attempt.ref
        report = await self._runner.decided(attempt)
        if self._closed:
            return
        late = not attempt.ended.done()
        if late:
            self._bound(attempt)
            await report()
            await asyncio.wait({attempt.ended})
        del self._at_work[task]
        self.ended += 1
        if attempt in self._abandoned:
            self._abandoned.remove(attempt)
            self._free(self._kept, ref)
        else:
            self._free(self._claims, ref)
        if not late:
            await report()

    def _bound(self, attempt: Attempt) -> None:
        if attempt not in self._overdue and attempt not in self._abandoned:
            self._overdue.add(attempt)
            self._keep(asyncio.create_task(self._outwait(attempt)))

    async def _outwait(self, attempt: Attempt) -> None:
        """Others get its slot if it doesn't end; its key limits stay taken."""
        timer = asyncio.create_task(self._clock.sleep(ABANDON_AFTER_S))
        try:
            await asyncio.wait({attempt.ended, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        self._overdue.remove(attempt)
        pool = attempt.started.step.spec.pool
        before = sum(other.started.step.spec.pool == pool for other in self._abandoned)
        if attempt.ended.done() or before >= self._pools.get(pool, before + 1):
            return
        ref = attempt.ref
        slot = f"pool {pool}"
        claim = self._claims[ref]
        self._claims[ref] = tuple(each for each in claim if each[0] == slot)
        self._kept[ref] = tuple(each for each in claim if each[0] != slot)
        self._abandoned.add(attempt)
        self._free(self._claims, ref)

    async def _look(self, execution_id: int, at: datetime) -> None:
        while (left := (at - self._clock.now()).total_seconds()) > 0:
            await self._clock.sleep(left)
        await self._tick(execution_id)

    async def _tick(self, execution_id: int) -> None:
        now = self._clock.now()
        with suppress(RushesError):
            await self._executions.update(execution_id, partial(_look, now))

    def _claim(self, execution: Execution, step: Step) -> Reserved:
        claim = []
        if step.spec.pool in self._pools:
            claim.append((f"pool {step.spec.pool}", self._pools[step.spec.pool]))
        for limit in step.spec.limits:
            found: object = execution.data
            for name in limit.by.split("."):
                found = found.get(name) if isinstance(found, Mapping) else None
            if found is not None:
                claim.append((f"{limit.by}={found!r}", limit.at_once))
        return tuple(claim)

    def _free(self, claims: dict[AttemptId, Reserved], attempt: AttemptId) -> None:
        self._held.subtract(name for name, _ in claims.pop(attempt))
        self._ask_again()

    def _ask_again(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for execution_id in sorted(waiting, key=lambda key: -waiting[key]):
            self._keep(asyncio.create_task(self._tick(execution_id)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        """The loop itself holds tasks only weakly."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _look(now: datetime, execution: Execution) -> None:
    execution.tick(at=now)
    execution.ask_again()
