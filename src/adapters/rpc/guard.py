"""Around every method: errors become statuses, and streams and long polls end at the stop.

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

import grpc
from grpc import aio

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

    def __init__(self, long_polls: Collection[str] = ()) -> None:
        self._long_polls = frozenset(long_polls)
        self._stopping = asyncio.Event()
        self._waiting: set[asyncio.Task[Any]] = set()

    def end_streams(self) -> None:
        """Every stream or long poll, also yet to come, ends with UNAVAILABLE: go on elsewhere."""
        self._stopping.set()
        for task in self._waiting:
            task.cancel()

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
            "response_serializer": handler.response_serializer,
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
            status, details, rich = INTERNAL, "internal error", b""
            try:
                if isinstance(request, _Malformed):
                    raise InvalidInput("the request is not of the type that this method takes")
                return await method(request, context)
            except (aio.AbortError, aio.InternalError):
                raise  # gRPC's own: already answered, or nobody is there to be answered
            except RushesError as error:
                status, details = status_of(error), bounded(error.message, MAX_DETAILS_BYTES)
                rich = rich_status(error, status, details)
            except Exception:
                log.exception("a bug in %s", name)
            more = ((RICH, rich),) if rich else ()
            return await context.abort(status.grpc, details, ((CODE, status.code), *more))

        return answering

    def _polling(self, method: Method) -> Method:
        async def polling(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            if self._stopping.is_set():
                raise Unavailable("the server is stopping")
            task = asyncio.current_task()
            assert task is not None
            self._waiting.add(task)
            try:
                return await method(request, context)
            except asyncio.CancelledError:
                if not self._stopping.is_set():
                    raise  # the client has gone away, or its deadline is over
                task.uncancel()
                raise Unavailable("the server is stopping") from None
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
                while not self._stopping.is_set():
                    # What is cancelled while gRPC writes can't be given a status any more.
                    self._waiting.add(task)
                    try:
                        response = await anext(responses)
                    except StopAsyncIteration:
                        break
                    except asyncio.CancelledError:
                        if not self._stopping.is_set():
                            raise  # the client has gone away
                        task.uncancel()
                        break
                    finally:
                        self._waiting.discard(task)
                    await context.write(response)
            if self._stopping.is_set():
                raise Unavailable("the server is stopping")

        return streaming


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Otherwise gRPC would tell the client UNKNOWN, and our log a traceback."""

    def lenient(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except Exception:
            return _Malformed()

    return lenient
