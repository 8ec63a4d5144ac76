"""Steps of all executions, in this process, bounded by named pools.

A pool is a number of slots and a queue. A step is admitted if its pool has a
free slot and nobody has waited longer; otherwise it queues. When a handler has
ended, its slot goes to who has waited longest: it is reserved for that step, and
the step's execution is asked to start it (a commit of its own, shared with
whatever else is being written). Where nobody waits, the slot is simply free, and
the commit that reports the outcome can start what follows with it.

``admit`` is called on the store's thread and everything else on the loop, so the
pools are kept under a lock that is never held across anything slow.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial

from application.ports import Clock, Executions, Started
from application.step_runner import Attempt, StepRunner
from domain.errors import RushesError, Unavailable
from domain.execution import Execution
from domain.step import Step

log = logging.getLogger(__name__)

StepId = tuple[int, str]

GRACE_S = 10.0
"""How long running handlers have to come to an end when Rushes stops."""

START_AGAIN_S = 0.5
"""How long to wait before a start that the store couldn't take is tried again."""


class _Pool:
    def __init__(self, size: int) -> None:
        self.free = size
        self.waiting: OrderedDict[StepId, None] = OrderedDict()
        self.reserved: set[StepId] = set()


class LocalDispatcher:
    """Implements ``application.ports.Dispatcher``. ``pools``: how many at once, by name."""

    def __init__(self, pools: Mapping[str, int]) -> None:
        self._pools = {name: _Pool(size) for name, size in pools.items()}
        self._lock = threading.Lock()
        self._held: dict[StepId, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._working: dict[asyncio.Task[None], Attempt] = {}
        self._looks: dict[int, tuple[datetime, asyncio.Task[None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._runner: StepRunner | None = None
        self._executions: Executions | None = None
        self._clock: Clock | None = None

    def open(self, runner: StepRunner, executions: Executions, clock: Clock) -> None:
        """From now on steps can be launched, on the running event loop."""
        self._runner, self._executions, self._clock = runner, executions, clock
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Start nothing more, ask what runs to end, and give it ``GRACE_S`` to do so."""
        assert self._runner is not None
        with self._lock:
            self._stopping = True
        self._runner.stop()
        for attempt in self._working.values():
            attempt.tell()
        for _, look in self._looks.values():
            look.cancel()
        deadline = asyncio.get_running_loop().time() + GRACE_S
        # Commits that were under way may launch some more; the runner gives them back.
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks.copy(), timeout=left)
        for attempt in self._working.values():
            log.warning("step %s did not end in time", attempt.started.ref)

    @property
    def running(self) -> int:
        """How many handlers are at work."""
        return len(self._working)

    # -- the port ----------------------------------------------------------------

    def admit(self, execution: Execution, ready: Sequence[Step]) -> Collection[str]:
        assert execution.id is not None
        admitted = set()
        with self._lock:
            if self._stopping:
                return ()
            for step in ready:
                step_id = (execution.id, step.key)
                pool_name = step.spec.pool if step.spec.pool in self._pools else "default"
                pool = self._pools[pool_name]
                if step_id in pool.reserved:
                    pool.reserved.discard(step_id)
                elif pool.free > 0 and not pool.waiting:
                    pool.free -= 1
                else:
                    pool.waiting.setdefault(step_id, None)
                    continue
                self._held[step_id] = pool_name
                admitted.add(step.key)
        return admitted

    def launch(self, started: Sequence[Started]) -> None:
        assert self._runner is not None
        for each in started:
            attempt = self._runner.begin(each)
            task = asyncio.create_task(self._run(attempt), name=f"attempt {each.ref}")
            self._working[task] = attempt
            self._keep(task)

    def cancel(self, execution_id: int) -> None:
        for attempt in self._working.values():
            if attempt.started.ref.execution_id == execution_id:
                attempt.tell()

    def look_again(self, execution_id: int, at: datetime) -> None:
        if self._stopping:
            return
        if execution_id in self._looks:
            planned, look = self._looks[execution_id]
            if planned == at:
                return
            look.cancel()
        look = asyncio.create_task(self._look(execution_id, at))
        self._looks[execution_id] = (at, look)
        self._keep(look)

    def withdraw(self, execution_id: int, keys: Collection[str]) -> None:
        for key in keys:
            self._release((execution_id, key))

    # -- inside ------------------------------------------------------------------

    async def _run(self, attempt: Attempt) -> None:
        """The slot is free once the handler has ended, which may be after its outcome is known."""
        assert self._runner is not None
        ref = attempt.started.ref
        task = asyncio.current_task()
        assert task is not None
        report = await self._runner.decided(attempt)
        late = not attempt.handler.done()
        if late:
            log.warning("step %s goes on after its time; its slot stays taken", ref)
            await report()
            await asyncio.wait({attempt.handler})
        del self._working[task]
        self._release((ref.execution_id, ref.step_key))
        if not late:
            await report()

    async def _look(self, execution_id: int, at: datetime) -> None:
        """Have the execution looked at, at that time."""
        assert self._clock is not None
        while (left := (at - self._clock.now()).total_seconds()) > 0:
            await self._clock.sleep(left)
        del self._looks[execution_id]
        await self._tick(execution_id)

    def _release(self, step_id: StepId) -> None:
        """Give the slot to who has waited longest, or have it free. From any thread."""
        with self._lock:
            pool_name = self._held.pop(step_id, None)
            if pool_name is None:
                return
            following = self._hand_on(self._pools[pool_name])
        if following is not None:
            self._wake(following, pool_name)

    def _hand_on(self, pool: _Pool) -> StepId | None:
        if pool.waiting and not self._stopping:
            following, _ = pool.waiting.popitem(last=False)
            pool.reserved.add(following)
            return following
        pool.free += 1
        return None

    def _wake(self, step_id: StepId, pool_name: str) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(
                lambda: self._keep(asyncio.create_task(self._start(step_id, pool_name)))
            )

    async def _start(self, step_id: StepId, pool_name: str) -> None:
        """Have the step's execution start it, with the slot that is reserved for it."""
        execution_id, _ = step_id
        try:
            await self._tick(execution_id)
        finally:
            self._give_back(step_id, pool_name)

    async def _tick(self, execution_id: int) -> None:
        """Whatever may start or is over by now does so, or is; nobody else would ask again."""
        assert self._executions is not None
        assert self._clock is not None
        while not self._stopping:
            try:
                await self._executions.update(execution_id, partial(_tick, self._clock.now()))
                return
            except Unavailable as error:
                log.warning("execution %s can't go on yet: %s", execution_id, error)
                await self._clock.sleep(START_AGAIN_S)
            except RushesError as error:
                log.warning("execution %s is not looked at: %s", execution_id, error)
                return

    def _give_back(self, step_id: StepId, pool_name: str) -> None:
        """If the reservation wasn't used, because the step is no longer ready, pass it on."""
        with self._lock:
            pool = self._pools[pool_name]
            if step_id not in pool.reserved:
                return
            pool.reserved.discard(step_id)
            following = self._hand_on(pool)
        if following is not None:
            self._wake(following, pool_name)

    def _keep(self, task: asyncio.Task[None]) -> None:
        """The loop itself holds tasks only weakly."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tick(now: datetime, execution: Execution) -> None:
    execution.tick(at=now)
