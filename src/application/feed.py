"""What happened, to everybody who follows: history first, then live.

A follower is a cursor, nothing more. It pages the log until it has reached what
the feed holds in memory, then walks along that, and waits at its end. So nobody
has a queue of their own that could overflow: who is slow only falls back to
the log, and who reconnects with the last id they saw goes on after it. Each
fact reaches each follower once, in the order of its id.

Progress of running steps travels along the same tail but isn't in the log: it
has no id, and who falls back misses it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from application.ports import Clock, Executions
from domain.errors import ExecutionNotFound, FactsGone
from domain.events import RecordedFact

TAIL = 4_096
"""How many messages are held in memory: a few seconds at full speed."""

PAGE = 500
"""How many facts a catching-up follower reads at a time."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How far a running attempt has come. Nobody has to remember it, so it has no id."""

    type: ClassVar[str] = "pipeline:step_progress"
    id: ClassVar[None] = None
    execution_id: int
    data: Mapping[str, Any]
    occurred_at: datetime


Message = RecordedFact | StepProgress

E = TypeVar("E", str, bytes)


class Entry:
    """A message in the feed.

    published_at: the clock's monotonic seconds when it was let out; None if it
        comes from the log, and its age says nothing about the follower.
    position: its place in the tail, which counts on for ever; None if it comes from the log.
    """

    __slots__ = ("_encoded", "message", "position", "published_at")

    def __init__(
        self, message: Message, published_at: float | None, position: int | None = None
    ) -> None:
        self.message = message
        self.published_at = published_at
        self.position = position
        self._encoded: dict[Callable[[Message], Any], Any] = {}

    def encoded(self, encode: Callable[[Message], E]) -> E:
        """The message as ``encode`` writes it, made once for all followers that use it."""
        made: E | None = self._encoded.get(encode)
        if made is None:
            made = self._encoded[encode] = encode(self.message)
        return made


class Feed:
    """The log with a live end. Lives on one event loop."""

    def __init__(self, executions: Executions, clock: Clock) -> None:
        self._executions = executions
        self._clock = clock
        self._tail: deque[Entry] = deque(maxlen=TAIL)
        self._end = 0  # the position after the newest entry of the tail
        self._floor = 0  # every fact with a greater id is in the tail
        self._last = 0  # the id of the newest fact that was let out
        self._grown = asyncio.Event()
        self._followers = 0
        self._closed = False

    async def open(self) -> None:
        """Begin after what is in the log. To be called before anything is published."""
        _, last = await self._executions.fact_bounds()
        self._floor = self._last = last

    def close(self) -> None:
        """Every follower comes to its end."""
        self._closed = True
        self._grown.set()

    @property
    def last_id(self) -> int:
        """The id of the newest fact that anybody may have seen."""
        return self._last

    @property
    def end(self) -> int:
        """The position that the next message will have."""
        return self._end

    @property
    def followers(self) -> int:
        """How many follow at present."""
        return self._followers

    def count(self, followers: int) -> None:
        """So many more (below zero: fewer) are told of what somebody has by ``tail``."""
        self._followers += followers

    def publish(self, facts: Iterable[RecordedFact]) -> None:
        """Let committed facts out; in the order of their ids."""
        now = self._clock.monotonic()
        for fact in facts:
            self._append(Entry(fact, now, self._end))
            self._last = fact.id
        self._wake()

    def tell(self, progress: StepProgress) -> None:
        self._append(Entry(progress, self._clock.monotonic(), self._end))
        self._wake()

    async def oldest(self) -> int:
        """The earliest place in the log of all executions that there is."""
        return (await self._executions.fact_bounds())[0]

    async def check(self, since: int, execution_id: int | None = None) -> None:
        """Raises ``FactsGone`` if ``since`` is no place in the log.

        What is kept of one execution begins with its first fact, however old that is.
        """
        oldest, last = await self._executions.fact_bounds()
        if execution_id is not None:
            oldest = 0
        if not oldest <= since <= max(last, self._last):
            raise FactsGone(since, oldest, last)

    async def tail(self, position: int, limit: int) -> Sequence[Entry]:
        """What the tail holds from ``position`` on, at most ``limit``, once there is anything.

        Nothing at ``close``, or if the tail begins later: what is missed there is in the log.
        """
        while not self._closed and position == self._end:
            await self._grown.wait()
        first = position - (self._end - len(self._tail))
        if self._closed or first < 0:
            return ()
        return [self._tail[index] for index in range(first, min(first + limit, len(self._tail)))]

    async def follow(
        self,
        since: int | None = None,
        execution_id: int | None = None,
        *,
        position: int | None = None,
    ) -> AsyncGenerator[Entry, None]:
        """Everything after ``since`` (None: from now on), as it comes, until ``close``.

        ``position``: who has had the tail up to there goes on in it, as far as it still
        reaches back; ``since`` is then the newest fact among what they have had.

        Raises ``FactsGone`` if ``since`` is no place in the log, or if what follows is
        forgotten before the follower has come to it.
        """
        # "From now on" is the moment of the call that is awaited first, so a caller
        # who needs a certain place reads ``last_id`` and passes that.
        cursor = self._last if since is None else since
        if since is not None and position is None:
            await self.check(since, execution_id)
        self._followers += 1
        try:
            while not self._closed:
                if position is None:
                    position = self._enter(cursor)
                if position is None:
                    bound = self._last
                    page = await self._executions.facts(cursor, PAGE, execution_id)
                    for fact in page:
                        cursor = fact.id
                        yield Entry(fact, None)
                    if len(page) < PAGE:
                        cursor = max(cursor, bound)
                        if execution_id is not None and not await self._has(execution_id):
                            # What was read may be less than there was, and no more will come.
                            raise FactsGone(cursor, *await self._executions.fact_bounds())
                    continue
                entry = self._at(position)
                if entry is None:
                    grown = self._grown
                    if position < self._end:  # fallen off the tail while waiting for the reader
                        position = None
                        continue
                    await grown.wait()
                    continue
                position += 1
                message = entry.message
                if message.id is not None:
                    if message.id <= cursor:
                        continue
                    cursor = message.id
                if execution_id is None or message.execution_id == execution_id:
                    yield entry
        finally:
            self._followers -= 1

    async def page(
        self, since: int, limit: int, execution_id: int | None = None
    ) -> Sequence[RecordedFact]:
        """A page of the log. Raises ``FactsGone`` if ``since`` is no place in it."""
        await self.check(since, execution_id)
        return await self._executions.facts(since, limit, execution_id)

    async def _has(self, execution_id: int) -> bool:
        """Whether the execution isn't forgotten; one that has begun is told by its first fact."""
        if await self._executions.facts(0, 1, execution_id):
            return True
        try:
            await self._executions.get(execution_id)
        except ExecutionNotFound:
            return False
        return True

    def _append(self, entry: Entry) -> None:
        if len(self._tail) == TAIL:
            lost = self._tail[0].message.id
            if lost is not None:
                self._floor = lost
        self._tail.append(entry)
        self._end += 1

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def _at(self, position: int) -> Entry | None:
        index = position - (self._end - len(self._tail))
        return self._tail[index] if 0 <= index < len(self._tail) else None

    def _enter(self, cursor: int) -> int | None:
        """The tail's position after ``cursor``, or None if the tail begins later."""
        if cursor < self._floor:
            return None
        position = self._end
        for entry in reversed(self._tail):
            if entry.message.id is not None and entry.message.id <= cursor:
                break
            position -= 1
        return position
