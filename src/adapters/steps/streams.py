"""Bytes on their way: read ahead by one thread, used by several.

A few buffers go round. Whoever reads fills one that nobody uses any more, so nobody gets
far ahead, and memory doesn't grow with the file. Of small files it is the system that
reads ahead: they are opened before their turn.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import NamedTuple

from adapters.steps import kernel
from adapters.steps.faults import OffloadFault

FILES_AHEAD = 16
"""Enough for a device to have something to do at all times; each is a descriptor."""

Chunks = Callable[[int, Sequence[bytearray]], Generator[memoryview, None, None]]
"""What a file has, a buffer at a time, in these buffers."""


class Fan:
    """Gives every chunk to several users, each in a thread of its own."""

    def __init__(
        self, uses: Sequence[Callable[[memoryview], object]], ring: Sequence[bytearray]
    ) -> None:
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for buffer in ring:
            self._free.put(buffer)
        self._users = [_User(use, self._done_with) for use in uses]
        self._lock = threading.Lock()
        self._uses_left: dict[int, int] = {}

    def __enter__(self) -> Fan:
        for user in self._users:
            user.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for user in self._users:
            user.chunks.put(None)
        for user in self._users:
            user.join()
        for user in self._users:
            if user.error is not None and kind is None:
                raise user.error

    def chunks(self, fd: int, buffers: Sequence[bytearray]) -> Generator[memoryview, None, None]:
        """What the file has, in the next buffer that nobody uses any more."""
        while True:
            buffer = self._free.get()
            count = os.readv(fd, [buffer])
            if not count:
                return
            yield memoryview(buffer)[:count]

    def hand_out(self, chunk: memoryview) -> None:
        with self._lock:
            self._uses_left[id(chunk.obj)] = len(self._users)
        for user in self._users:
            if user.error is not None:
                raise user.error
        for user in self._users:
            user.chunks.put(chunk)

    def _done_with(self, chunk: memoryview) -> None:
        buffer = chunk.obj
        assert isinstance(buffer, bytearray)
        with self._lock:
            self._uses_left[id(buffer)] -= 1
            is_free = not self._uses_left[id(buffer)]
        if is_free:
            self._free.put(buffer)


class _User(threading.Thread):
    """Uses one chunk after the other. After an error it only hands them back."""

    def __init__(
        self, use: Callable[[memoryview], object], done_with: Callable[[memoryview], None]
    ) -> None:
        super().__init__(name="rushes-copy", daemon=True)
        self.chunks: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._use = use
        self._done_with = done_with

    def run(self) -> None:
        while (chunk := self.chunks.get()) is not None:
            if self.error is None:
                try:
                    self._use(chunk)
                except BaseException as error:  # raised again in the thread that reads
                    self.error = error
            self._done_with(chunk)


def chunks_ahead(fd: int, buffers: Sequence[bytearray]) -> Generator[memoryview, None, None]:
    """What a file has, with the next read under way in a thread while this chunk is used."""
    free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[memoryview | OSError | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def read() -> None:
        try:
            while (buffer := free.get()) is not None and not stopped.is_set():
                count = os.readv(fd, [buffer])
                if not count:
                    break
                full.put(memoryview(buffer)[:count])
            full.put(None)
        except OSError as error:
            full.put(error)

    for buffer in buffers:
        free.put(buffer)
    reader = threading.Thread(target=read, name="rushes-read-ahead", daemon=True)
    reader.start()
    try:
        while (chunk := full.get()) is not None:
            if isinstance(chunk, OSError):
                raise chunk
            yield chunk
            assert isinstance(chunk.obj, bytearray)
            free.put(chunk.obj)
    finally:
        # The descriptor is the caller's to close, so nobody may be reading from it any more.
        stopped.set()
        free.put(None)
        reader.join()


class Opened(NamedTuple):
    """``is_cold``: whether nothing of it was in memory then, as far as was asked.

    ``status``: what a file of the card was then.
    """

    fd: int
    is_cold: bool = False
    status: os.stat_result | None = None


Coming = Callable[[], Opened]
"""Gives out a file that was opened before its turn, for the caller to close; or raises."""


def opened_ahead(count: int, open_one: Callable[[int], Opened]) -> Generator[Coming, None, None]:
    """Each of so many files, opened some time before it is given out.

    Whatever fault opening one has raised is raised when its turn has come.
    """
    waiting: deque[_Waiting] = deque()
    try:
        for number in range(count):
            waiting.append(_Waiting(number, open_one))
            if len(waiting) > FILES_AHEAD:
                yield waiting[0].take
                waiting.popleft().close()
        while waiting:
            yield waiting[0].take
            waiting.popleft().close()
    finally:
        for each in waiting:
            each.close()


class _Waiting:
    def __init__(self, number: int, open_one: Callable[[int], Opened]) -> None:
        self._opened: Opened | None = None
        self._fault: OffloadFault | None = None
        try:
            self._opened = open_one(number)
        except OffloadFault as fault:
            self._fault = fault

    def take(self) -> Opened:
        if self._fault is not None:
            raise self._fault
        opened, self._opened = self._opened, None
        assert opened is not None
        return opened

    def close(self) -> None:
        """Unless it was taken."""
        if self._opened is not None:
            kernel.close(self._opened.fd)
