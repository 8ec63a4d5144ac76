"""Around every method: errors become statuses, streams and long polls end at the stop, and
who asks too often is told so.

An interceptor only sees handlers, not what they raise, and a stream raises long
after the interceptor has returned. So each handler is replaced by one that runs
it to its end and looks at how it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import grpc
from grpc import aio

from adapters.limits import Rates
from adapters.rpc.details import bounded, rich_status
from adapters.status_codes import INTERNAL, status_of
from domain.errors import InvalidInput, RushesError, Unavailable

log = logging.getLogger(__name__)

CODE = "rushes-code"
"""The key of the trailing metadata that has the error's word for programs."""

RICH = "grpc-status-details-bin"
"""The key under which clients' libraries look for google.rpc.Status."""

MAX_DETAILS_BYTES = 1_000
"""Details travel as metadata, once percent-encoded and once in Base64: peers take 8 KiB in all."""

Method = Callable[[Any, aio.ServicerContext[Any, Any]], Any]


class _Malformed:
    """In the place of a request that could not be read."""


class Guard(aio.ServerInterceptor):
    """long_polls: names of methods with one answer that may be long in coming."""

    def __init__(self, long_polls: Collection[str] = (), rates: Rates | None = None) -> None:
        self._rates = rates
        self._long_polls = frozenset(long_polls)
        self._stopping = asyncio.Event()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._told: WeakKeyDictionary[asyncio.Task[Any], RushesError] = WeakKeyDictionary()

    def end_streams(self) -> None:
        """Every stream or long poll, also yet to come, ends with UNAVAILABLE: go on elsewhere."""
        self._stopping.set()
        for task in self._waiting:
            task.cancel()

    def end_call(self, task: asyncio.Task[Any], error: RushesError) -> None:
        """The stream or long poll that this task serves ends with this error."""
        self._told[task] = error
        if task in self._waiting:
            task.cancel()

    def refusal(self, error: RushesError, context: aio.ServicerContext[Any, Any]) -> RushesError:
        """What is answered to who isn't let in because of ``error``."""
        if self._rates is None:
            return error
        return self._rates.refused(error, address_of(context.peer()))

    def _ending(self, task: asyncio.Task[Any]) -> RushesError | None:
        if self._stopping.is_set():
            return Unavailable("the server is stopping")
        return self._told.get(task)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        name = handler_call_details.method
        deserializer = handler.request_deserializer
        if deserializer is not None and not handler.request_streaming:
            deserializer = _lenient(deserializer)
        coders = {
            "request_deserializer": deserializer,
            "response_serializer": _as_it_is(handler.response_serializer),
        }
        if handler.unary_unary is not None:
            polls = name in self._long_polls
            inner = self._polling(handler.unary_unary) if polls else handler.unary_unary
            method = self._answering(name, inner)
            return grpc.unary_unary_rpc_method_handler(method, **coders)
        if handler.stream_unary is not None:
            method = self._answering(name, handler.stream_unary)
            return grpc.stream_unary_rpc_method_handler(method, **coders)
        if handler.unary_stream is not None:
            method = self._answering(name, self._streaming(handler.unary_stream))
            return grpc.unary_stream_rpc_method_handler(method, **coders)
        method = self._answering(name, self._streaming(handler.stream_stream))
        return grpc.stream_stream_rpc_method_handler(method, **coders)

    def _answering(self, name: str, method: Method) -> Method:
        async def answering(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            try:
                if self._rates is not None and self._rates.apply:
                    self._rates.ask(address_of(context.peer()))
                if isinstance(request, _Malformed):
                    raise InvalidInput("the request is not of the type that this method takes")
                return await method(request, context)
            except (aio.AbortError, aio.InternalError):
                raise  # gRPC's own: already answered, or nobody is there to be answered
            except RushesError as error:
                await refuse(context, error)
            except Exception:
                log.exception("a bug in %s", name)
                await context.abort(INTERNAL.grpc, "internal error", ((CODE, INTERNAL.code),))

        return answering

    def _polling(self, method: Method) -> Method:
        async def polling(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            task = asyncio.current_task()
            assert task is not None
            if (ending := self._ending(task)) is not None:
                raise ending
            self._waiting.add(task)
            try:
                return await method(request, context)
            except asyncio.CancelledError:
                if (ending := self._ending(task)) is None:
                    raise  # the client has gone away, or its deadline is over
                task.uncancel()
                raise ending from None
            finally:
                self._waiting.discard(task)

        return polling

    def _streaming(self, method: Method) -> Method:
        """``method`` answers with an async generator.

        It has begun, as far as its client can tell, once it was called: metadata says so.
        """

        async def streaming(request: Any, context: aio.ServicerContext[Any, Any]) -> None:
            task = asyncio.current_task()
            assert task is not None
            async with aclosing(method(request, context)) as responses:
                await context.send_initial_metadata(())
                while self._ending(task) is None:
                    # What is cancelled while gRPC writes can't be given a status any more.
                    self._waiting.add(task)
                    try:
                        response = await anext(responses)
                    except StopAsyncIteration:
                        break
                    except asyncio.CancelledError:
                        if self._ending(task) is None:
                            raise  # the client has gone away
                        task.uncancel()
                        break
                    finally:
                        self._waiting.discard(task)
                    await context.write(response)
            if (ending := self._ending(task)) is not None:
                raise ending

        return streaming


def address_of(peer: str) -> str:
    """``ipv4:127.0.0.1:50312`` or ``ipv6:%5B::1%5D:50312``, without kind and port."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return rest.rpartition(":")[0].strip("[]")


async def refuse(context: aio.ServicerContext[Any, Any], error: RushesError) -> None:
    """End a call with what the error is called outside. Raises what gRPC ends it by."""
    status, details = status_of(error), bounded(error.message, MAX_DETAILS_BYTES)
    rich = rich_status(error, status, details)
    await context.abort(status.grpc, details, ((CODE, status.code), (RICH, rich)))


def _as_it_is(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """What is kept as bytes goes out as it is."""
    if serialize is None:
        return None
    return lambda message: message if isinstance(message, bytes) else serialize(message)


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Otherwise gRPC would tell the client UNKNOWN, and our log a traceback."""

    def lenient(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except Exception:
            return _Malformed()

    return lenient
