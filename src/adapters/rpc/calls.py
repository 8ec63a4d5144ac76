"""Every call, from its headers to its status.

gRPC asks for a method's handler at each call, so those are made once, when the services
are registered. Who asks is looked at first: who isn't let in has no message parsed, and
learns the same from every method, also from reflection and from those that aren't there.
Health is free. Then the call's turn is looked at, its message is read, and the method runs.

What a method raises becomes a status here, and so does what a stream raises long after it
has begun. Streams and long polls end at the stop, and when who asked isn't let in any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import grpc
from grpc import aio

from adapters.audit import Audit
from adapters.limits import Rates, Shares
from adapters.rpc.access import CHANGES, is_free, needed
from adapters.rpc.details import bounded, rich_status
from adapters.rpc.patience import Patience
from adapters.status_codes import INTERNAL, status_of
from application.access import Access
from domain.access import Permission, Principal
from domain.errors import (
    InvalidInput,
    NotPermitted,
    RushesError,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)

log = logging.getLogger(__name__)

CODE = "rushes-code"
"""The key of the trailing metadata that has the error's word for programs."""

RICH = "grpc-status-details-bin"
"""The key under which clients' libraries look for google.rpc.Status."""

MAX_DETAILS_BYTES = 1_000
"""Details travel as metadata, once percent-encoded and once in Base64: peers take 8 KiB in all."""

MAX_PEERS = 4_096
"""Whose addresses are kept: twice as many as there may be connections."""

_END = object()
"""Of a stream that ends by itself."""

Context = aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Calls(grpc.GenericRpcHandler):
    """Services are registered here as they would be at a server.

    shares: of the calls that may be open at once. long_polls: names of methods with one answer
    that may be long in coming.
    """

    def __init__(
        self,
        *,
        access: Access,
        audit: Audit,
        rates: Rates,
        shares: Shares,
        patience: Patience,
        long_polls: Collection[str] = (),
    ) -> None:
        self._access = access
        self._audit = audit
        self._rates = rates
        self._shares = shares
        self._patience = patience
        self._long_polls = frozenset(long_polls)
        self._handlers: dict[str, Handler] = {}
        self._stopping = asyncio.Event()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._told: WeakKeyDictionary[asyncio.Task[Any], RushesError] = WeakKeyDictionary()

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """The methods of a service; what generated code calls."""
        for method, handler in handlers.items():
            name = f"/{service}/{method}"
            self._handlers[name] = self._served(name, handler, needed(name))

    def add_generic_rpc_handlers(self, handlers: Collection[grpc.GenericRpcHandler]) -> None:
        """What generated code calls too: the same ones, in another shape."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        name = handler_call_details.method
        return self._handlers.get(name) or self._served(name, _ABSENT, None)

    # -- how they end ----------------------------------------------------------------

    def end_streams(self) -> None:
        """Every stream or long poll, also yet to come, ends with UNAVAILABLE: go on elsewhere."""
        self._stopping.set()
        for task in self._waiting:
            task.cancel()

    def _end(self, task: asyncio.Task[Any], error: RushesError) -> None:
        """The stream or long poll that this task serves ends with this error."""
        self._told[task] = error
        if task in self._waiting:
            task.cancel()

    def _ending(self, task: asyncio.Task[Any]) -> RushesError | None:
        if self._stopping.is_set():
            return Unavailable("the server is stopping")
        return self._told.get(task)

    # -- how they go -----------------------------------------------------------------

    def _served(self, name: str, handler: Handler, needs: Permission | None) -> Handler:
        """needs: None if it is enough to be somebody."""
        free, changes = is_free(name), needs in CHANGES
        streams_in, streams_out = handler.request_streaming, handler.response_streaming
        stays = streams_out or name in self._long_polls
        method: Any = _method_of(handler)
        if stays:
            method = self._streaming(method) if streams_out else self._polling(method)

        async def serving(requests: Any, context: Context) -> Any:
            who = request = response = None
            outcome = "CANCELLED"
            address = address_of(context.peer())
            has_place = self._shares.take(address)
            try:
                if not has_place:
                    raise TooManyRequests(f"{address} has {self._shares.each} calls open", 1)
                if not free:
                    who = self._let_in(name, needs, context)
                if self._rates.apply:
                    self._rates.ask(address)
                if streams_in:
                    request = requests
                else:
                    request = await self._patience.message(context, free=free)
                if stays and who is not None:
                    response = await self._staying(who, method(request, context))
                else:
                    response = await method(request, context)
                outcome = "OK"
                return response
            except RushesError as error:
                outcome = status_of(error).grpc.name
                await refuse(context, error)
            except (aio.AbortError, aio.InternalError):
                outcome = _outcome(context)
                raise  # gRPC's own: already answered, or nobody is there to be answered
            except Exception:
                outcome = INTERNAL.grpc.name
                log.exception("a bug in %s", name)
                await context.abort(INTERNAL.grpc, "internal error", ((CODE, INTERNAL.code),))
            finally:
                if has_place:
                    self._shares.give_back(address)
                if changes and who is not None:
                    self._note(name, who, context, outcome, _execution(request, response))

        # One that reads its request itself: until it has, it can be ended like any other.
        make = (
            grpc.stream_stream_rpc_method_handler
            if streams_out
            else grpc.stream_unary_rpc_method_handler
        )
        return make(
            serving,
            request_deserializer=_parsing(handler.request_deserializer),
            response_serializer=_as_it_is(handler.response_serializer),
        )

    def _let_in(self, name: str, needs: Permission | None, context: Context) -> Principal:
        """Who asks. Raises what somebody is answered who isn't let in, and writes it down."""
        shown = dict(context.invocation_metadata() or ())
        who = None
        try:
            who = self._access.who(_text(shown, "authorization"), _text(shown, "x-rushes-key"))
            if needs is not None:
                who.check(needs)
        except (NotPermitted, Unauthenticated) as error:
            refusal = self._rates.refused(error, address_of(context.peer()))
            self._note(name, who, context, status_of(refusal).grpc.name)
            raise refusal from None
        return who

    async def _staying(self, who: Principal, answer: Awaitable[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        over = self._access.over(who)
        over.add_done_callback(
            lambda over: None if over.cancelled() else self._end(task, _no_more())
        )
        try:
            return await answer
        finally:
            over.cancel()

    def _polling(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def polling(request: Any, context: Context) -> Any:
            return await self._unless_ended(lambda: method(request, context))

        return polling

    def _streaming(
        self, method: Callable[..., AsyncGenerator[Any, None]]
    ) -> Callable[..., Awaitable[Any]]:
        """It has begun, as far as its client can tell, once it was called: metadata says so."""

        async def streaming(request: Any, context: Context) -> None:
            async with aclosing(method(request, context)) as responses:
                await context.send_initial_metadata(())
                while True:
                    response = await self._unless_ended(lambda: anext(responses, _END))
                    if response is _END:
                        return
                    # Nobody cancels it here: what is being written can't be given a status.
                    await context.write(response)

        return streaming

    async def _unless_ended(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What is asked for. Raises what this task's call ends with, if that is sooner."""
        task = asyncio.current_task()
        assert task is not None
        if (ending := self._ending(task)) is None:
            self._waiting.add(task)
            try:
                return await ask()
            except asyncio.CancelledError:
                if (ending := self._ending(task)) is None:
                    raise  # the client has gone away, or its deadline is over
                task.uncancel()
            finally:
                self._waiting.discard(task)
        raise ending

    def _note(
        self,
        name: str,
        who: Principal | None,
        context: Context,
        outcome: str,
        execution: str | None = None,
    ) -> None:
        where = address_of(context.peer())
        self._audit.note(
            who, where, name[1:], outcome, refused=outcome != "OK", execution=execution
        )


@lru_cache(maxsize=MAX_PEERS)
def address_of(peer: str) -> str:
    """``ipv4:127.0.0.1:50312`` or ``ipv6:%5B::1%5D:50312``, without kind and port."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return rest.rpartition(":")[0].strip("[]")


async def refuse(context: Context, error: RushesError) -> NoReturn:
    """End a call with what the error is called outside. Raises what gRPC ends it by."""
    status, details = status_of(error), bounded(error.message, MAX_DETAILS_BYTES)
    rich = rich_status(error, status, details)
    await context.abort(status.grpc, details, ((CODE, status.code), (RICH, rich)))


async def _absent(requests: Any, context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")


_ABSENT: Handler = grpc.stream_unary_rpc_method_handler(_absent)
"""Of the kind that needs no request to be there before it can answer."""


def _method_of(handler: Handler) -> Any:
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def _execution(request: Any, response: Any) -> str | None:
    """Which one it is about."""
    made = getattr(response, "execution", None) or getattr(response, "claim", None)
    return getattr(made, "execution_id", None) or getattr(request, "execution_id", None) or None


def _no_more() -> Unauthenticated:
    return Unauthenticated("what was shown here is good no more")


def _text(metadata: Mapping[str, str | bytes], key: str) -> str | None:
    value = metadata.get(key)
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _outcome(context: Context) -> str:
    """Of a call that gRPC has ended."""
    code: Any = context.code()  # a number, whatever the types say
    names = [each.name for each in grpc.StatusCode if code and code in (each, each.value[0])]
    return names[0] if names else "UNKNOWN"


def _as_it_is(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """What is kept as bytes goes out as it is."""
    if serialize is None:
        return None
    return lambda message: message if isinstance(message, bytes) else serialize(message)


def _parsing(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Otherwise what can't be read would look like a bug."""
    if deserialize is None:
        return None

    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except Exception:
            raise InvalidInput("the request is not of the type that this method takes") from None

    return parse
