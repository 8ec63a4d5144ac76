"""Calls whose message doesn't come are given up, and take nobody's place meanwhile.

gRPC waits for the one message of a request for ever, and each call that waits is one of
those that may be open at a time. So every method is registered as one that reads its
request itself: until it has, it can be ended with a status like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from adapters.rpc.guard import refuse
from domain.errors import InvalidInput, Unavailable

LOOK_EVERY_S = 1.0
"""How often it is looked for calls without a message. They are given up by the number of looks,
not by the time: a server that is late itself has not been kept waiting."""

LOOKS = 10
"""That a message may miss. Who behaves sends it together with the headers."""

CROWD = 1_000
CROWDED_LOOKS = 2
"""That it may miss when there are more such calls than this."""

FREE = "/grpc.health.v1.Health/"
MOST_FREE = 200
"""Calls without a message that nobody needs a token for. One more, and the oldest goes at once:
who isn't let in can't keep out who is."""

Method = Callable[[Any, aio.ServicerContext[Any, Any]], Awaitable[Any]]


class Patience(aio.ServerInterceptor):
    """Around all others, so that they are given what was read."""

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

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        free = handler_call_details.method.startswith(FREE)
        if handler.response_streaming:
            method = self._reading(handler.unary_stream, free=free)
            return grpc.stream_stream_rpc_method_handler(method, **coders)
        method = self._reading(handler.unary_unary, free=free)
        return grpc.stream_unary_rpc_method_handler(method, **coders)

    def _reading(self, method: Method, *, free: bool) -> Method:
        async def reading(_: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._waiting[task] = self._looks
            if free:
                if len(self._free) >= MOST_FREE:
                    self._give_up(next(iter(self._free)))
                self._free[task] = None
            try:
                request = await context.read()
            except asyncio.CancelledError:
                if task in self._waiting:
                    raise  # the client has gone away, or the server stops
                task.uncancel()
                return await refuse(context, Unavailable("the message of the request didn't come"))
            finally:
                self._waiting.pop(task, None)
                self._free.pop(task, None)
            if request is aio.EOF:
                return await refuse(context, InvalidInput("the request has no message"))
            return await method(request, context)

        return reading
