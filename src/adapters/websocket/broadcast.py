"""One walk along the feed for all who are up to date.

A thousand clients that each walked by themselves would be a thousand tasks to wake for
every event. Here one task takes what there is, makes one piece of bytes of it, and hands
that to one transport after the other. It waits for nobody: a client whose buffer is full
leaves the walk at the place it has come to, and goes on by itself from there
(``Hub``); once it has caught up, it joins again. So each has every message once, in
order, whichever way it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from adapters.websocket.frames import FrameWriter, text_frame
from application.feed import Feed, Message
from application.views import message_view

log = logging.getLogger(__name__)

TOGETHER = 256
"""Messages in one piece: what has gathered while the last one went round."""

TOGETHER_BYTES = 64 * 1024
"""As much as a transport's buffer holds before it counts as full."""

IN_A_ROW = 128
"""Clients between two looks at the loop's other work: about a millisecond."""


class Follower(Protocol):
    """Who walks along.

    frames: to the client. since: the newest fact that it was sent. position: what it is
    sent next.
    """

    @property
    def frames(self) -> FrameWriter: ...

    since: int
    position: int


class Broadcast:
    """``behind`` is called with a follower that doesn't take what it is given: it has left."""

    def __init__(self, feed: Feed, behind: Callable[[Follower], None]) -> None:
        self._feed = feed
        self._behind = behind
        self._live: dict[Follower, Callable[[bytes], bool]] = {}
        self._position = 0  # what the walk takes next
        self._walk: asyncio.Task[None] | None = None
        self._sending = False

    def join(self, follower: Follower) -> bool:
        """Take it along from its position; False if the walk is past that."""
        if self._walk is None:
            self._position = follower.position
            self._walk = asyncio.create_task(self._walk_along())
        elif follower.position < self._position:
            return False
        self._live[follower] = follower.frames.write
        self._feed.count(1)
        return True

    @property
    def busy(self) -> bool:
        """Whether there is something that not everybody has been sent who walks along."""
        return self._sending or (bool(self._live) and self._position != self._feed.end)

    def leave(self, follower: Follower) -> None:
        if self._live.pop(follower, None) is not None:
            self._feed.count(-1)

    async def _walk_along(self) -> None:
        try:
            while self._live:
                entries = await self._feed.tail(self._position, TOGETHER)
                if not entries:
                    break  # the feed is closed, or has been quicker than all of us
                frames: list[bytes] = []
                size_bytes = 0
                since = 0
                for entry in entries:
                    frame = entry.encoded(encode_frame)
                    size_bytes += len(frame)
                    if frames and size_bytes > TOGETHER_BYTES:
                        break
                    frames.append(frame)
                    since = entry.message.id or since
                start, self._position = self._position, self._position + len(frames)
                self._sending = True
                await self._send(frames, start, since)
                self._sending = False
        except Exception:
            log.exception("the walk along the feed broke")
        finally:
            self._walk, self._sending = None, False
            for follower in tuple(self._live):
                self.leave(follower)
                self._behind(follower)

    async def _send(self, frames: list[bytes], start: int, since: int) -> None:
        together = b"".join(frames)
        end = start + len(frames)
        in_a_row = 0
        for follower, write in tuple(self._live.items()):
            if in_a_row == IN_A_ROW:
                in_a_row = 0
                await asyncio.sleep(0)
            in_a_row += 1
            position = follower.position
            if position >= end or follower not in self._live:
                continue  # it has joined, or left, meanwhile
            piece = together if position == start else b"".join(frames[position - start :])
            if write(piece):
                follower.position = end
                follower.since = since or follower.since
            else:
                self.leave(follower)
                self._behind(follower)


def encode(message: Message) -> str:
    return msgspec.json.encode(message_view(message)).decode()


def encode_frame(message: Message) -> bytes:
    return text_frame(msgspec.json.encode(message_view(message)))
