"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from adapters.status_codes import INTERNAL, status_of
from domain.errors import FactsGone, InvalidInput, RushesError

log = logging.getLogger(__name__)


def problem(error: RushesError) -> Response:
    """``code`` is the word for programs, ``detail`` the sentence for people."""
    status = status_of(error)
    more: dict[str, Any] = {}
    if isinstance(error, InvalidInput) and error.field is not None:
        more["field"] = error.field
    if isinstance(error, FactsGone):
        more["last_event_id"] = error.last
    return _document(status.http, status.code, error.message, more)


async def on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RushesError)
    return problem(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "_")
    document = _document(
        error.status_code, code, f"{request.method} {request.url.path}: {error.detail}", {}
    )
    document.headers.update(error.headers or {})
    return document


async def on_bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _document(INTERNAL.http, INTERNAL.code, "internal error", {})


def _document(status: int, code: str, detail: str, more: dict[str, Any]) -> Response:
    body = {
        "type": f"urn:rushes:problem:{code}",
        "title": code.replace("_", " "),
        "status": int(status),
        "code": code,
        "detail": detail,
        **more,
    }
    return Response(
        msgspec.json.encode(body), status_code=status, media_type="application/problem+json"
    )
