"""Virtual time, and event loops whose order of events is drawn from the seed.

``Schedule`` holds everything that is going to happen: what is ready now and what is
due later. It is the only thing that runs anything, so a run is a function of its
seed: no thread, no wall clock, no selector. Several loops share one schedule, a loop
for each life of the process and one for the world outside, and killing a process is
closing its loop: nothing that was ready on it ever runs.

What is ready is taken in any order. asyncio itself promises first come, first served
only to callbacks that somebody schedules in a row, and the engine leans on that in one
way: what other threads hand to the loop arrives in the order in which it was handed
over. So ``call_soon_threadsafe`` keeps its order, and everything else is shuffled.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

MAX_TURNS = 400_000
"""More than a hundred times what a run takes: something goes round in circles."""


class Circles(Exception):
    """The run didn't come to an end."""


class Handle:
    """A callback that is to run; what asyncio wants of its Handle and TimerHandle."""

    __slots__ = ("args", "callback", "context", "dropped", "loop", "moment")

    def __init__(
        self,
        loop: SimulatedLoop | None,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        moment: float = 0.0,
    ) -> None:
        self.loop = loop
        self.callback = callback
        self.args = args
        self.context = context
        self.moment = moment
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        return self.moment


class Schedule:
    """``shuffle``: how often what is ready is taken out of turn, from 0 to 1."""

    def __init__(self, random: Random, shuffle: float) -> None:
        self.now = 0.0
        self.turns = 0
        self.interrupt_at = -1
        self.interrupt: Callable[[], None] = lambda: None
        self._chance = random.random
        self._shuffle = shuffle
        self._ready: list[Handle] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._order = itertools.count()

    def told_next(self, loop: SimulatedLoop) -> list[object]:
        """What the callbacks of this loop that are ready would be given."""
        return [given for handle in self._ready if handle.loop is loop for given in handle.args]

    def soon(self, handle: Handle) -> None:
        self._ready.append(handle)

    def later(self, delay_s: float, handle: Handle) -> Handle:
        handle.moment = self.now + max(delay_s, 0.0)
        heapq.heappush(self._timers, (handle.moment, next(self._order), handle))
        return handle

    def after(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Outside every loop: what a thread, a disk or fate does."""
        return self.later(delay_s, Handle(None, callback, args, None))

    def run(self, until: Callable[[], bool], before: float) -> bool:
        """Let things happen until it is so (looked at whenever time moves), or until then."""
        ready, timers, chance, shuffle = self._ready, self._timers, self._chance, self._shuffle
        running: SimulatedLoop | None = None
        try:
            while True:
                if not ready:
                    if until():
                        return True
                    if not timers or timers[0][0] > before:
                        return False
                    self.now = max(self.now, timers[0][0])
                    while timers and timers[0][0] <= self.now:
                        ready.append(heapq.heappop(timers)[2])
                self.turns += 1
                if self.turns == self.interrupt_at:
                    self.interrupt()
                if self.turns > MAX_TURNS:
                    raise Circles(f"still going on after {MAX_TURNS} turns, at {self.now:.3f} s")
                index = 0
                if len(ready) > 1 and chance() < shuffle:
                    index = int(chance() * len(ready))
                handle = ready.pop(index)
                loop = handle.loop
                if handle.dropped or (loop is not None and loop.closed):
                    continue
                if loop is not running:
                    asyncio._set_running_loop(loop)
                    running = loop
                try:
                    if handle.context is None:
                        handle.callback(*handle.args)
                    else:
                        handle.context.run(handle.callback, *handle.args)
                except Exception as error:
                    if loop is None:
                        raise
                    loop.call_exception_handler({"message": "a callback", "exception": error})
        finally:
            asyncio._set_running_loop(None)


class SimulatedLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as asyncio's own classes and the engine use.

    ``on_error`` is told of what nobody caught.
    """

    def __init__(self, schedule: Schedule, random: Random, on_error: Callable[[str], None]) -> None:
        self.closed = False
        self.tasks: list[asyncio.Task[Any]] = []
        self._schedule = schedule
        self._random = random
        self._on_error = on_error
        self._in_order: deque[Handle] = deque()

    def time(self) -> float:
        return self._schedule.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        handle = Handle(self, callback, args, context or contextvars.copy_context())
        if not self.closed:
            self._schedule.soon(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        handle = Handle(self, callback, args, context or contextvars.copy_context())
        if not self.closed:
            self._in_order.append(handle)
            self._schedule.soon(Handle(self, self._next_in_order, (), None))
        return handle

    def _next_in_order(self) -> None:
        handle = self._in_order.popleft()
        if not handle.dropped:
            assert handle.context is not None
            handle.context.run(handle.callback, *handle.args)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        handle = Handle(self, callback, args, context or contextvars.copy_context())
        return handle if self.closed else self._schedule.later(delay, handle)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Any:
        return self.call_later(when - self._schedule.now, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self.tasks.append(task)
        return task

    def run_in_executor(
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """A thread that takes a moment, and hands its result to the loop in order."""
        future = self.create_future()

        def work() -> None:
            if self.closed:
                return
            try:
                result = func(*args)
            except BaseException as error:
                self.call_soon_threadsafe(_fail, future, error)
            else:
                self.call_soon_threadsafe(_succeed, future, result)

        self._schedule.after(self._random.random() * 0.002, work)
        return future

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return self.closed

    def is_running(self) -> bool:
        return not self.closed

    def close(self) -> None:
        """Whatever was to happen here doesn't."""
        self.closed = True
        self._in_order.clear()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.closed:
            self._on_error(f"{context.get('message')}: {context.get('exception')!r}")

    def uncaught(self) -> list[str]:
        """What ended a task here, and nobody looked at, nor is about to."""
        found = []
        told = self._schedule.told_next(self)
        for task in self.tasks:
            if task.done() and not task.cancelled() and task._log_traceback and task not in told:
                found.append(f"{task.get_name()}: {task.exception()!r}")
        return found

    def bury(self) -> None:
        """After the run: end what hangs here, so that nothing of it wakes up later."""
        self.close()
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False
                coroutine = task.get_coro()
                try:
                    coroutine.close()
                except BaseException:  # its clean-up has no world any more
                    continue
        self.tasks.clear()


def _succeed(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
