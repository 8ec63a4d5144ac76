"""What a server says about itself: its contracts, the page that shows them, its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from adapters.rest.metrics import Metrics
from adapters.rest.openapi import openapi
from adapters.rest.reference import STYLE_HASH, page

PAGE_HEADERS = {
    # A page of text: it runs nothing, loads nothing and sends nothing anywhere.
    "content-security-policy": f"default-src 'none'; style-src '{STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


class Pages:
    """``routes``: the others. ``asyncapi``: makes the WebSocket's contract.

    The documents are made when somebody asks for the first time.
    """

    def __init__(
        self,
        *,
        routes: Sequence[Route],
        asyncapi: Callable[[str], dict[str, Any]],
        metrics: Metrics,
        version: str,
    ) -> None:
        self._metrics = metrics
        self._own = [
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/asyncapi.json", self.asyncapi, methods=["GET"]),
            Route("/docs", self.reference, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]
        self.openapi_document = cache(lambda: openapi([*routes, *self._own], version))
        self.asyncapi_document = cache(lambda: asyncapi(version))
        self._page = cache(lambda: page(self.openapi_document(), self.asyncapi_document()))

    def routes(self) -> list[Route]:
        return self._own

    async def openapi(self, request: Request) -> Response:
        return _document(self.openapi_document())

    async def asyncapi(self, request: Request) -> Response:
        return _document(self.asyncapi_document())

    async def reference(self, request: Request) -> Response:
        return Response(self._page(), media_type="text/html", headers=PAGE_HEADERS)

    async def metrics(self, request: Request) -> Response:
        return Response(await self._metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})


def _document(contract: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(contract), media_type="application/json")
