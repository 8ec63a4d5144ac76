"""Calls whose message doesn't come are given up, and take nobody's place meanwhile.

gRPC waits for the one message of a request for ever, and each call that waits is one of
those that may be open at a time. So the message is read here: until it has come, a call
can be ended with a status like any other.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from domain.errors import InvalidInput, Unavailable

LOOK_EVERY_S = 1.0
"""How often it is looked for calls without a message. They are given up by the number of looks,
not by the time: a server that is late itself has not been kept waiting."""

LOOKS = 10
"""That a message may miss. Who behaves sends it together with the headers."""

CROWD = 1_000
CROWDED_LOOKS = 2
"""That it may miss when there are more such calls than this."""

MOST_FREE = 200
"""Calls without a message that nobody needs a token for. One more, and the oldest goes at once:
who isn't let in can't keep out who is."""


class Patience:
    def __init__(self) -> None:
        self._waiting: dict[asyncio.Task[Any], int] = {}
        self._free: dict[asyncio.Task[Any], None] = {}
        self._looks = 0

    async def run(self, look_every_s: float = LOOK_EVERY_S) -> None:
        """Until it is cancelled: look for calls without a message."""
        while True:
            await asyncio.sleep(look_every_s)
            self._looks += 1
            looks = LOOKS if len(self._waiting) <= CROWD else CROWDED_LOOKS
            for task, came in tuple(self._waiting.items()):
                if self._looks - came < looks:
                    break  # they stand in the order in which they came
                self._give_up(task)

    def _give_up(self, task: asyncio.Task[Any]) -> None:
        del self._waiting[task]
        self._free.pop(task, None)
        task.cancel()

    async def message(self, context: aio.ServicerContext[Any, Any], *, free: bool = False) -> Any:
        """The one message of this task's call. free: nobody needed a token to come so far.

        Raises ``Unavailable`` if it doesn't come; ``InvalidInput`` if there is none.
        """
        task = asyncio.current_task()
        assert task is not None
        if free:
            if len(self._free) >= MOST_FREE:
                self._give_up(next(iter(self._free)))
            self._free[task] = None
        self._waiting[task] = self._looks
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if task in self._waiting:
                raise  # the client has gone away, or the server stops
            task.uncancel()
            raise Unavailable("the message of the request didn't come") from None
        finally:
            self._waiting.pop(task, None)
            if free:
                self._free.pop(task, None)
        if message is aio.EOF:
            raise InvalidInput("the request has no message")
        return message
