"""Who is let in over gRPC, and what is written down of it. Around the guard.

It decides before anything of a request is read: who isn't let in has no message parsed,
and learns the same from every method, also from reflection. Health is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import grpc
from grpc import aio

from adapters.audit import Audit
from adapters.rpc.guard import Guard, address_of, refuse
from application.access import Access
from domain.access import Permission, Principal
from domain.errors import NotPermitted, Unauthenticated

FREE = "/grpc.health.v1.Health/"

REFLECTION = "/grpc.reflection."

NEEDS: Mapping[str, Permission] = {
    # By the name of the method of our service.
    "TriggerPipeline": Permission.TRIGGER,
    "GetExecution": Permission.READ,
    "ListExecutions": Permission.READ,
    "RetryExecution": Permission.CONTROL,
    "CancelExecution": Permission.CONTROL,
    "PauseExecution": Permission.CONTROL,
    "ResumeExecution": Permission.CONTROL,
    "RerunExecution": Permission.CONTROL,
    "SkipStep": Permission.CONTROL,
    "CompleteStep": Permission.CONTROL,
    "GetEngine": Permission.READ,
    "PauseEngine": Permission.CONTROL,
    "ResumeEngine": Permission.CONTROL,
    "ClaimStep": Permission.WORK,
    "HeartbeatStep": Permission.WORK,
    "AdvanceStep": Permission.WORK,
    "WatchExecution": Permission.READ,
}

_MAKE: Mapping[str, Callable[..., Any]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class Door(aio.ServerInterceptor):
    """service: the full name of ours. long_polls: as the guard knows them."""

    def __init__(
        self,
        access: Access,
        audit: Audit,
        guard: Guard,
        *,
        service: str,
        long_polls: Collection[str] = (),
    ) -> None:
        self._access = access
        self._audit = audit
        self._guard = guard
        self._service = service
        self._long_polls = frozenset(long_polls)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        name = handler_call_details.method
        if name.startswith(FREE):
            return await continuation(handler_call_details)
        shown = dict(handler_call_details.invocation_metadata or ())
        principal = None
        try:
            principal = self._access.who(
                _text(shown, "authorization"), _text(shown, "x-rushes-key")
            )
            handler: Any = await continuation(handler_call_details)
            if handler is None:
                return None
            needed = self._needed(name)
            principal.check(needed)
        except (NotPermitted, Unauthenticated) as error:
            return self._refused(name, principal, error)
        kind = next(kind for kind in _MAKE if getattr(handler, kind) is not None)
        stays = handler.response_streaming or name in self._long_polls
        method = self._admitted(
            name, principal, getattr(handler, kind), stays=stays, changes=needed in _CHANGES
        )
        return _MAKE[kind](
            method,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _needed(self, name: str) -> Permission:
        if name.startswith(REFLECTION):
            return Permission.READ
        service, _, method = name[1:].partition("/")
        # What nobody has thought of is open to nobody.
        needed = NEEDS.get(method) if service == self._service else None
        return needed or Permission.TOKENS

    def _refused(
        self, name: str, principal: Principal | None, error: NotPermitted | Unauthenticated
    ) -> Any:
        async def refused(requests: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            try:
                await refuse(context, self._guard.refusal(error, context))
            finally:
                self._note(name, principal, context, _outcome(context))

        # Of the kind that needs no request to be there before it can answer.
        return grpc.stream_stream_rpc_method_handler(refused)

    def _admitted(
        self,
        name: str,
        principal: Principal,
        method: Callable[..., Awaitable[Any]],
        *,
        stays: bool,
        changes: bool,
    ) -> Callable[..., Awaitable[Any]]:
        async def staying(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            task = asyncio.current_task()
            assert task is not None
            over = self._access.over(principal)
            over.add_done_callback(
                lambda over: None if over.cancelled() else self._guard.end_call(task, _no_more())
            )
            try:
                return await method(request, context)
            finally:
                over.cancel()

        inner = staying if stays else method

        async def changing(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            execution = getattr(request, "execution_id", None)
            outcome = "CANCELLED"
            try:
                response = await inner(request, context)
                made = getattr(response, "execution", None) or getattr(response, "claim", None)
                execution = getattr(made, "execution_id", None) or execution
                outcome = "OK"
                return response
            except Exception:
                outcome = _outcome(context)
                raise
            finally:
                self._note(name, principal, context, outcome, execution)

        return changing if changes else inner

    def _note(
        self,
        name: str,
        principal: Principal | None,
        context: aio.ServicerContext[Any, Any],
        outcome: str,
        execution: str | None = None,
    ) -> None:
        self._audit.note(
            principal,
            address_of(context.peer()),
            name[1:],
            outcome,
            refused=outcome != "OK",
            execution=execution or None,
        )


_CHANGES = frozenset({Permission.TRIGGER, Permission.CONTROL, Permission.WORK})


def _no_more() -> Unauthenticated:
    return Unauthenticated("what was shown here is good no more")


def _text(metadata: Mapping[str, str | bytes], key: str) -> str | None:
    value = metadata.get(key)
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _outcome(context: aio.ServicerContext[Any, Any]) -> str:
    """Of a call that has failed."""
    code: Any = context.code()  # a number, whatever the types say
    names = [each.name for each in grpc.StatusCode if code and code in (each, each.value[0])]
    return names[0] if names else "UNKNOWN"
