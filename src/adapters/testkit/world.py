"""The world for tests: time that is moved by hand, ids that count, cards anywhere, threads."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os.path
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from domain.errors import InvalidPath, Unavailable

T = TypeVar("T")

EPOCH = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)
"""When every test begins."""


async def settle(turns: int = 30) -> None:
    """Let everything that can go on at once do so."""
    for _ in range(turns):
        await asyncio.sleep(0)


class VirtualClock:
    """Time stands still until it is moved; ``sleep`` ends when it has come."""

    def __init__(self, start: datetime = EPOCH) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), waking))
        await waking

    @property
    def sleeping(self) -> int:
        """How many wait for the time to go on."""
        return sum(1 for _, _, waking in self._sleepers if not waking.done())

    @property
    def next_due(self) -> float | None:
        """When the first of them wakes, in ``monotonic`` seconds."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def tick(self, seconds: float) -> None:
        """The time goes on, and nobody is let run meanwhile."""
        self._elapsed += seconds

    def wake_next(self) -> None:
        """The time jumps to when the first sleeper wakes. To be called if there is one."""
        moment, _, waking = heapq.heappop(self._sleepers)
        self._elapsed = max(self._elapsed, moment)
        if not waking.done():
            waking.set_result(None)

    async def advance(self, seconds: float) -> None:
        """The time goes on; who sleeps wakes in order, at their moment."""
        target = self._elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            self.wake_next()
            await settle()
        self._elapsed = max(self._elapsed, target)
        await settle()


class FixedChance:
    """Chance that never is one: always ``value``."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def fraction(self) -> float:
        return self.value


class SequentialIds:
    """Uuids that count from 1."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def new(self) -> str:
        return f"00000000-0000-7000-8000-{next(self._numbers):012x}"


class AllCards:
    """A card may be anywhere: the rules of ``Cards`` that need no disk and no roots."""

    def locate(self, sd_path: object, *, anywhere: bool = False) -> str:
        if not isinstance(sd_path, str) or not sd_path.startswith("/"):
            raise InvalidPath(f"sd_path must be an absolute path, not {sd_path!r}", field="sd_path")
        if "\0" in sd_path or ".." in sd_path.split("/"):
            raise InvalidPath(f"sd_path {sd_path!r} is malformed", field="sd_path")
        return os.path.normpath(sd_path)

    def has_volume(self, serial: str) -> bool:
        return True


class DaemonThreads:
    """A thread for each handler that blocks; short calls run on the loop itself.

    Daemons, so that a handler that never comes back can't keep a test run from ending.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    async def run(self, blocking: Callable[[], T], *, long: bool = False) -> T:
        if not long:
            await asyncio.sleep(0)
            return blocking()
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        outcome: list[Callable[[], T]] = []

        def work() -> None:
            outcome.append(_caught(blocking))
            with suppress(RuntimeError):  # the test is over
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=work, name="rushes-step", daemon=True).start()
        await done.wait()
        return outcome[0]()

    def await_result(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._loop is None or self._loop.is_closed():
            raise Unavailable("the test is over")
        if threading.get_ident() == self._loop_thread:
            raise RuntimeError("this blocks, and a coroutine may not: await the other form of it")
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result()

    def on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback)


def _caught(blocking: Callable[[], T]) -> Callable[[], T]:
    """What it returns or raises, to be had later."""
    raised: BaseException
    try:
        value = blocking()
    except (StopIteration, GeneratorExit) as error:
        # Raised in a coroutine, these would mean something else.
        raised = RuntimeError(f"{type(error).__name__}: {error}")
    except BaseException as error:
        raised = error
    else:
        return lambda: value

    def again() -> T:
        raise raised

    return again
