"""Steps of all executions, in this process, bounded by named pools.

A step that is ready is admitted if there is room for it (``pools.py``), and waits
otherwise. When a handler has ended, its slot is reserved for who has waited longest,
and that step's execution is asked to start it: a commit of its own, shared with
whatever else is being written. Where nobody waits, the slot is simply free, and the
commit that reports the outcome can start what follows with it.

A handler that is told to end and doesn't keeps its slot, for a while: then it is
abandoned, and its slot goes to others, though its thread can't be ended from here.

``admit`` and ``withdraw`` are called on the store's thread too; everything else on
the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from adapters.dispatch.pools import AttemptId, Claim, Pools
from application.ports import AttemptRef, Clock, Executions, Load, Started
from application.step_runner import Attempt, StepRunner
from domain.definition import DEFAULT_POOL
from domain.errors import RushesError, Unavailable
from domain.execution import Execution
from domain.step import Step

log = logging.getLogger(__name__)

START_AGAIN_S = 0.5
"""How long to wait before a start that the store couldn't take is tried again."""


class LocalDispatcher:
    """Implements ``application.ports.Dispatcher``.

    pools: how many steps run at once, by name. grace_s: how long running handlers have
    to come to an end when Rushes stops. abandon_after_s: how long one keeps its slot that
    doesn't end when it is told to.
    """

    def __init__(
        self, pools: Mapping[str, int], *, grace_s: float = 10.0, abandon_after_s: float = 300.0
    ) -> None:
        self._grace_s = grace_s
        self._abandon_after_s = abandon_after_s
        self._pools = Pools(pools)
        self._tasks: set[asyncio.Task[None]] = set()
        self._working: dict[Attempt, None] = {}  # a set in the order of launching
        self._overdue: set[Attempt] = set()
        self._abandoned: set[Attempt] = set()
        self._looks: dict[int, tuple[datetime, asyncio.Task[None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starts_nothing = False
        self._held = False
        self._runner: StepRunner | None = None
        self._executions: Executions | None = None
        self._clock: Clock | None = None

    def open(self, runner: StepRunner, executions: Executions, clock: Clock) -> None:
        """From now on steps can be launched, on the running event loop."""
        self._runner, self._executions, self._clock = runner, executions, clock
        self._loop = asyncio.get_running_loop()

    def stand_by(self) -> None:
        """Start nothing from now on, whoever asks: what is ready is for the next process."""
        self._starts_nothing = True
        self._pools.hold()

    async def stop(self) -> None:
        """Start nothing more, ask what runs to end, and give it ``grace_s`` to do so."""
        assert self._runner is not None
        self.stand_by()
        self._runner.stop()
        for attempt in self._working:
            attempt.tell()
        for _, look in self._looks.values():
            look.cancel()
        deadline = asyncio.get_running_loop().time() + self._grace_s
        # Commits that were under way may launch some more; the runner gives them back.
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks.copy(), timeout=left)
        for attempt in self._working:
            log.warning("step %s did not end in time", attempt.ref)

    @property
    def running(self) -> int:
        """How many handlers are at work."""
        return len(self._working)

    # -- the port: the engine as a whole -----------------------------------------

    def hold(self) -> None:
        self._held = True
        self._pools.hold()

    def go_on(self) -> None:
        if self._held and not self._starts_nothing:
            self._held = False
            for attempt in self._pools.go_on():
                self._wake(attempt)

    def load(self) -> Load:
        return Load(
            held=self._held,
            running=len(self._working),
            waiting=self._pools.waiting,
            overdue=tuple(
                attempt.ref
                for attempt in self._working
                if attempt.told and attempt not in self._abandoned
            ),
            abandoned=tuple(attempt.ref for attempt in self._working if attempt in self._abandoned),
        )

    def queues(self) -> Mapping[str, tuple[int, AttemptRef | None]]:
        """By pool: how many steps wait for a slot, and which one is served next."""
        return {
            pool: (waiting, None if following is None else AttemptRef(*following))
            for pool, (waiting, following) in self._pools.queues().items()
        }

    # -- the port ----------------------------------------------------------------

    def admit(self, execution: Execution, ready: Sequence[Step]) -> Collection[str]:
        assert execution.id is not None
        if self._starts_nothing:
            return ()
        admitted = set()
        for step in ready:
            attempt = (execution.id, step.key, step.attempt + 1)
            if step.spec.external:
                goes = self._pools.lets_through(attempt)
            else:
                goes = self._pools.admit(attempt, self._claim(execution, step))
            if goes:
                admitted.add(step.key)
        return admitted

    def launch(self, started: Sequence[Started]) -> None:
        assert self._runner is not None
        for each in started:
            attempt = self._runner.begin(each)
            self._working[attempt] = None
            self._keep(asyncio.create_task(self._run(attempt)))

    def cancel(self, execution_id: int) -> None:
        for attempt in self._working:
            if attempt.ref.execution_id == execution_id:
                attempt.tell()
                self._bound(attempt)

    def look_again(self, execution_id: int, at: datetime) -> None:
        if self._starts_nothing:
            return
        if execution_id in self._looks:
            planned, look = self._looks[execution_id]
            if planned == at:
                return
            look.cancel()
        look = asyncio.create_task(self._look(execution_id, at))
        self._looks[execution_id] = (at, look)
        self._keep(look)

    def withdraw(self, execution_id: int, started: Iterable[Step]) -> None:
        for step in started:
            self._release((execution_id, step.key, step.attempt))

    # -- inside ------------------------------------------------------------------

    async def _run(self, attempt: Attempt) -> None:
        """The slot is free once the handler has ended, which may be after its outcome is known."""
        assert self._runner is not None
        ref = attempt.ref
        report = await self._runner.decided(attempt)
        late = not attempt.ended.done()
        if late:
            log.warning("step %s goes on after its time; its slot stays taken", ref)
            self._bound(attempt)
            await report()
            await asyncio.wait({attempt.ended})
        del self._working[attempt]
        if attempt in self._abandoned:
            self._return(attempt)
        else:
            self._release(ref)
        if not late:
            await report()

    def _bound(self, attempt: Attempt) -> None:
        """It was told to end: from now on its slot is its own for ``abandon_after_s`` at most."""
        if attempt not in self._overdue and not self._starts_nothing:
            self._overdue.add(attempt)
            self._keep(asyncio.create_task(self._outwait(attempt)))

    async def _outwait(self, attempt: Attempt) -> None:
        assert self._clock is not None
        while not attempt.ended.done() and attempt not in self._abandoned:
            timer = asyncio.create_task(self._clock.sleep(self._abandon_after_s))
            await asyncio.wait({attempt.ended, timer}, return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
            if not attempt.ended.done():
                self._abandon(attempt)
        self._overdue.remove(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        """Others get its slot, unless too many of its pool are abandoned already."""
        ref = attempt.ref
        following = self._pools.abandon(ref)
        if following is None:
            log.error(
                "step %s does not end, as others before it: it keeps its slot of pool %r. "
                "Unless one of them ends, only a restart helps",
                ref,
                attempt.started.step.spec.pool,
            )
            return
        self._abandoned.add(attempt)
        log.warning("step %s is abandoned: it was told to end, and its slot goes to others", ref)
        for each in following:
            self._wake(each)

    def _return(self, attempt: Attempt) -> None:
        """It has ended after all, and with it what it had its hands on is free."""
        ref = attempt.ref
        log.info("step %s, which was abandoned, has ended", ref)
        self._abandoned.remove(attempt)
        for following in self._pools.release_abandoned(ref):
            self._wake(following)

    async def _look(self, execution_id: int, at: datetime) -> None:
        """Have the execution looked at, at that time."""
        assert self._clock is not None
        while (left := (at - self._clock.now()).total_seconds()) > 0:
            await self._clock.sleep(left)
        del self._looks[execution_id]
        await self._tick(execution_id)

    def _claim(self, execution: Execution, step: Step) -> Claim:
        spec = step.spec
        # A pool may be gone since the execution was stored.
        pool = spec.pool if spec.pool in self._pools.names() else DEFAULT_POOL
        limits = []
        for limit in spec.limits:
            value = _value_at(execution.data, limit.by)
            if value is not None:
                limits.append((f"{limit.by}={value!r}", limit.at_once))
        return Claim(pool, tuple(limits), spec.priority)

    def _release(self, attempt: AttemptId) -> None:
        """Its slot goes to who has waited longest, or is free. From any thread."""
        for following in self._pools.release(attempt):
            self._wake(following)

    def _wake(self, attempt: AttemptId) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(
                lambda: self._keep(asyncio.create_task(self._start(attempt)))
            )

    async def _start(self, attempt: AttemptId) -> None:
        """Have the step's execution start it, with the slot that is reserved for it."""
        execution_id, step_key, _ = attempt
        try:
            await self._tick(execution_id, step_key)
        finally:
            # If the step is no longer ready, what was reserved for it goes on.
            for following in self._pools.give_back(attempt):
                self._wake(following)

    async def _tick(self, execution_id: int, *waiting: str) -> None:
        """Whatever may start or is over by now does so, or is; nobody else would ask again.

        ``waiting``: steps that there may be a slot for.
        """
        assert self._executions is not None
        assert self._clock is not None
        while not self._starts_nothing:
            try:
                await self._executions.apply(
                    execution_id, partial(_tick, self._clock.now(), self._held, waiting)
                )
                return
            except Unavailable as error:
                log.warning("execution %s can't go on yet: %s", execution_id, error)
                await self._clock.sleep(START_AGAIN_S)
            except RushesError as error:
                log.warning("execution %s is not looked at: %s", execution_id, error)
                return

    def _keep(self, task: asyncio.Task[None]) -> None:
        """The loop itself holds tasks only weakly."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tick(now: datetime, held: bool, waiting: Sequence[str], execution: Execution) -> None:
    execution.tick(at=now, held=held)
    if waiting:
        execution.ask_again(*waiting)


def _value_at(data: Mapping[str, Any], path: str) -> object:
    """What stands at a path of keys with dots between them; None if nothing does."""
    found: object = data
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found
