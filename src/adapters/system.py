"""Clock, ids, threads, and disks and mounts, as the machine has them."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import random
import re
import secrets
import stat
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

from domain.errors import Unavailable

T = TypeVar("T")

SHORT_THREADS = 8
"""For calls that take milliseconds: looking a path up, reading a page."""

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_BYTES = 256
_STX_MNT_ID = 144


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


class SystemSecrets:
    def new(self) -> str:
        return secrets.token_urlsafe(32)


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
    """Threads beside the running event loop.

    size: how many handlers may block at once, those included that nobody waits for any
    more; a thread is made when it is needed. Short calls of the application itself have
    threads of their own, so that they never wait for a step to end.
    """

    def __init__(self, size: int = 64) -> None:
        self._steps = ThreadPoolExecutor(size, thread_name_prefix="rushes-step")
        self._short = ThreadPoolExecutor(SHORT_THREADS, thread_name_prefix="rushes-call")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._closed = False

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    def close(self) -> None:
        """Doesn't wait for what still runs: who stops has asked it to end before."""
        self._closed = True
        for pool in (self._steps, self._short):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, blocking: Callable[[], T], *, long: bool = False) -> T:
        if self._closed:
            raise Unavailable("the server is stopping")
        pool = self._steps if long else self._short
        outcome = await asyncio.get_running_loop().run_in_executor(pool, _caught, blocking)
        if isinstance(outcome, _Raised):
            raise outcome.error
        return outcome

    def await_result(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._loop is None or self._loop.is_closed():
            raise Unavailable("the server is stopping")
        if threading.get_ident() == self._loop_thread:
            # It would wait for itself, and everything else with it, for ever.
            raise RuntimeError("this blocks, and a coroutine may not: await the other form of it")
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result()

    def on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is None or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # closed just now
            return


class _Raised:
    """Carries an exception as a value: some kinds can't be raised through a future."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _caught(blocking: Callable[[], T]) -> T | _Raised:
    try:
        return blocking()
    except (StopIteration, GeneratorExit) as error:
        # Raised in a coroutine, these would mean something else.
        return _Raised(RuntimeError(f"{type(error).__name__}: {error}"))
    except BaseException as error:
        return _Raised(error)


def name_of_device(folder: str, device: int) -> bytes | None:
    """The entry of a /dev/disk folder that leads to this device, unescaped as udev escapes it."""
    try:
        names = sorted(os.listdir(os.fsencode(folder)))
    except OSError:
        return None
    for name in names:
        try:
            found = os.stat(os.path.join(os.fsencode(folder), name))
        except OSError:
            continue
        if stat.S_ISBLK(found.st_mode) and found.st_rdev == device:
            return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda escape: bytes([int(escape[1], 16)]), name)
    return None


def mount_id_of(path: str | bytes, folder: int = _AT_FDCWD, *, unique: bool = False) -> int | None:
    """Of the mount that a path is on, as the mount table numbers it; the next one may get it.

    path: from ``folder`` on, no link followed; empty: ``folder`` itself, which may be a file.
    unique: what the kernel gives to no mount twice. None where the system doesn't say: before
    Linux 5.8, unique ones before 6.8, elsewhere never.
    """
    statx = getattr(_libc(), "statx", None) if sys.platform == "linux" else None
    if statx is None:
        return None
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    # What is known already: a card that doesn't answer must not hold us up.
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    wanted = _STATX_MNT_ID_UNIQUE if unique else _STATX_MNT_ID
    if statx(folder, os.fsencode(path), flags, wanted, answer) != 0:
        return None
    (mask,) = struct.unpack_from("=I", answer.raw, 0)
    (mount_id,) = struct.unpack_from("=Q", answer.raw, _STX_MNT_ID)
    return int(mount_id) if mask & wanted else None


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
