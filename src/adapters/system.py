"""Clock, ids and threads, as the machine has them."""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

from domain.errors import Unavailable

T = TypeVar("T")

MAX_THREADS = 64
"""More than all pools together allow; the pools bound what runs, not this."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemChance:
    def fraction(self) -> float:
        return random.random()  # noqa: S311 - pauses, no secrets


class Uuid7:
    """Time-ordered uuids (RFC 9562, version 7): later ones sort after earlier ones."""

    def __init__(self) -> None:
        self._last = 0

    def new(self) -> str:
        milliseconds = time.time_ns() // 1_000_000
        # 48 bits of time and 12 of a counter: never the same, never smaller than before.
        self._last = max(self._last + 1, milliseconds << 12)
        high = self._last
        value = (high >> 12) << 80 | 0x7 << 76 | (high & 0xFFF) << 64
        value |= 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 2
        return str(uuid.UUID(int=value))


class LoopThreads:
    """Threads beside the running event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="rushes-step")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Doesn't wait for what still runs: who stops has asked it to end before."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, blocking: Callable[[], T]) -> T:
        if self._closed:
            raise Unavailable("the server is stopping")
        return await asyncio.get_running_loop().run_in_executor(self._pool, blocking)

    def on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is None or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # closed just now
            return
