"""Who is let in over HTTP and WebSocket, and what is written down of it.

``Door`` asks who it is, before any route is looked for: without a token nobody learns what
there is. ``with_needs`` puts before each route the permission that it takes. ``Audited`` is
around all of it, the guard included, and writes the audit.

Who was let in stands in the scope, for the routes and for the audit; so does the status of
a refusal (``problems.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import TypeVar

from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.audit import Audit
from adapters.rest.problems import problem
from adapters.scope import OUTCOME, PRINCIPAL, address_of, principal_of
from application.access import Access
from domain.access import ANYBODY, Permission, Principal
from domain.errors import NotPermitted, Unauthenticated

FREE = frozenset({"/healthz", "/readyz"})
"""For who watches whether the server lives, and needs to know nothing else."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""

REFUSED = frozenset({401, 403, 429})
"""What of a safe request is worth a line, too."""

NEEDS: Mapping[str, Permission | None] = {
    # By the name of the method that serves it, as in the contract.
    "list_executions": Permission.READ,
    "trigger_pipeline": Permission.TRIGGER,
    "get_execution": Permission.READ,
    "retry_execution": Permission.CONTROL,
    "cancel_execution": Permission.CONTROL,
    "pause_execution": Permission.CONTROL,
    "resume_execution": Permission.CONTROL,
    "skip_step": Permission.CONTROL,
    "complete_step": Permission.CONTROL,
    "rerun_execution": Permission.CONTROL,
    "claim_step": Permission.WORK,
    "heartbeat_step": Permission.WORK,
    "report_completed": Permission.WORK,
    "report_failed": Permission.WORK,
    "report_released": Permission.WORK,
    "get_engine": Permission.READ,
    "pause_engine": Permission.CONTROL,
    "resume_engine": Permission.CONTROL,
    "events_of_execution": Permission.READ,
    "events": Permission.READ,
    "list_pipelines": Permission.READ,
    "list_jobs": Permission.READ,
    "get_job": Permission.READ,
    "get_report": Permission.READ,
    "get_report_table": Permission.READ,
    "list_job_files": Permission.READ,
    "new_ticket": Permission.FOLLOW,
    "list_tokens": Permission.TOKENS,
    "new_token": Permission.TOKENS,
    "revoke_token": Permission.TOKENS,
    "openapi": Permission.READ,
    "asyncapi": Permission.READ,
    "reference": Permission.READ,
    "metrics": Permission.READ,
    "health": None,
    "ready": None,
    "connect": Permission.FOLLOW,
}

_TICKET = b"ticket="

R = TypeVar("R", Route, WebSocketRoute)


def with_needs(routes: Iterable[R]) -> Sequence[R]:
    """The same routes, each behind what it needs.

    Raises ``LookupError`` for one that isn't in the table: what nobody has thought of is
    open to nobody.
    """
    guarded = []
    for route in routes:
        if route.name not in NEEDS:
            raise LookupError(f"route {route.path} ({route.name}) has no line in NEEDS")
        needed = NEEDS[route.name]
        if needed is not None:
            route = copy(route)
            route.app = _Needs(route.app, needed)
        guarded.append(route)
    return guarded


class _Needs:
    def __init__(self, app: ASGIApp, permission: Permission) -> None:
        self._app = app
        self._permission = permission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            principal_of(scope).check(self._permission)
        except (NotPermitted, Unauthenticated) as error:
            await problem(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Door:
    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                scope[PRINCIPAL] = self._who(scope)
            except Unauthenticated as error:
                await problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _who(self, scope: Scope) -> Principal:
        if scope["path"] in FREE:
            return ANYBODY
        authorization = key = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"x-rushes-key":
                key = value.decode("latin-1")
        ticket = _take_ticket(scope) if _TICKET in scope["query_string"] else None
        if ticket is not None and authorization is None and self._access.locked:
            return self._access.redeem(ticket)
        return self._access.who(authorization, key)


def _take_ticket(scope: Scope) -> str | None:
    """Out of the address, so that whoever logs that has no ticket; None where none is taken."""
    parts: list[bytes] = scope["query_string"].split(b"&")
    tickets = [part for part in parts if part.startswith(_TICKET)]
    scope["query_string"] = b"&".join(part for part in parts if part not in tickets)
    if not tickets or not _is_stream(scope):
        return None
    return tickets[0].removeprefix(_TICKET).decode("latin-1")


def _is_stream(scope: Scope) -> bool:
    """What a browser opens without being able to send a header with it."""
    if scope["type"] == "websocket":
        return True
    return scope["method"] == "GET" and any(
        name == b"accept" and b"text/event-stream" in value for name, value in scope["headers"]
    )


class Audited:
    def __init__(self, app: ASGIApp, audit: Audit) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http" and scope["method"] not in SAFE:
            await self._changing(scope, receive, send)
        elif kind in ("http", "websocket"):
            await self._app(scope, receive, send)
            outcome = scope.get(OUTCOME)
            if outcome in REFUSED:
                self._note(scope, outcome, None)

    async def _changing(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered: list[Message] = []

        async def noticed(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(message)
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        finally:
            execution = scope.get("path_params", {}).get("reference")
            status: object = "gone"  # its client, or the server itself
            if answered:
                status = answered[0]["status"]
                for name, value in answered[0].get("headers", ()):
                    if name == b"location":  # of an execution that was just made
                        execution = value.decode("latin-1").rpartition("/")[2]
            self._note(scope, status, execution)

    def _note(self, scope: Scope, outcome: object, execution: str | None) -> None:
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        self._audit.note(
            scope.get(PRINCIPAL),
            address_of(scope),
            f"{method} {scope['path']}",
            outcome,
            refused=not isinstance(outcome, int) or outcome >= 400,
            execution=execution,
        )
