"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

import logging
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from adapters.rest.documents import Problem
from adapters.scope import OUTCOME
from adapters.status_codes import INTERNAL, status_of
from domain.errors import FactsGone, InvalidInput, RushesError, TooManyRequests, Unauthenticated

log = logging.getLogger(__name__)


def document(error: RushesError) -> Problem:
    """``code`` is the word for programs, ``detail`` the sentence for people."""
    status = status_of(error)
    problem = _document(status.http, status.code, error.message)
    if isinstance(error, InvalidInput) and error.field is not None:
        problem = msgspec.structs.replace(problem, field=error.field)
    if isinstance(error, FactsGone):
        problem = msgspec.structs.replace(problem, last_event_id=error.last)
    return problem


def http_document(status: int, detail: str, request: str) -> Problem:
    """Of what HTTP itself refuses.

    ``detail``: its phrase; after a colon what more there is to say. ``request``: what was asked.
    """
    code = detail.partition(":")[0].lower().replace(" ", "_")
    return _document(status, code, f"{request}: {detail}")


def problem(error: RushesError) -> Response:
    response = _response(document(error))
    if isinstance(error, TooManyRequests):
        response.headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        response.headers["www-authenticate"] = 'Bearer realm="rushes"'
    return response


async def on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RushesError)
    return problem(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    request_line = f"{request.method} {request.url.path}"
    response = _response(http_document(error.status_code, error.detail, request_line))
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["allow"] = ", ".join(sorted(_allowed(request)))
    return response


def _allowed(request: Request) -> set[str]:
    """What the path takes. Starlette names the methods of its first route alone."""
    return {
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


async def on_bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _response(_document(INTERNAL.http, INTERNAL.code, "internal error"))


def _document(status: int, code: str, detail: str) -> Problem:
    return Problem(
        type=f"urn:rushes:problem:{code}",
        title=code.replace("_", " "),
        status=int(status),
        code=code,
        detail=detail,
    )


class _Refusal(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[OUTCOME] = self.status_code
        await super().__call__(scope, receive, send)


def _response(problem: Problem) -> Response:
    return _Refusal(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type="application/problem+json",
    )
