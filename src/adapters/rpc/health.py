"""The standard health service (grpc.health.v1): serving while the store answers, until the stop.

grpcio-health-checking's own servicer would keep its watchers open through the
stop: they are told, but don't end, and whoever stops waits for them in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from domain.errors import NotFound, TooManyRequests, Unavailable

SERVER = ""
"""What a client names that asks about no service in particular."""

WATCH_EVERY_S = 5.0
"""How often it is looked for a watcher whether anything has changed: load balancers' own pace."""

MAX_WATCHERS = 100
"""Nobody needs a token for it, so they must not take everybody's place."""

Context = aio.ServicerContext[Any, Any]


class Health(HealthServicer):  # type: ignore[misc]  # it has no types
    """ready: raises ``Unavailable`` if no request could be served now."""

    def __init__(self, services: Iterable[str], ready: Callable[[], Awaitable[None]]) -> None:
        self._services = frozenset((SERVER, *services))
        self._ready = ready
        self._stopping = False
        self._watchers = 0

    def stop(self) -> None:
        """From now on nothing is serving. Watchers are told when their stream is ended."""
        self._stopping = True

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        if request.service not in self._services:
            raise NotFound(f"there is no service {request.service!r}")
        return await self._response(request)

    async def Watch(
        self, request: HealthCheckRequest, context: Context
    ) -> AsyncGenerator[HealthCheckResponse, None]:
        if self._watchers >= MAX_WATCHERS:
            raise TooManyRequests(f"{MAX_WATCHERS} clients watch already", 60)
        self._watchers += 1
        try:
            last = await self._response(request)
            yield last
            while True:
                await asyncio.sleep(WATCH_EVERY_S)
                response = await self._response(request)
                if response != last:
                    last = response
                    yield last
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            yield await self._response(request)
        finally:
            self._watchers -= 1

    async def _response(self, request: HealthCheckRequest) -> HealthCheckResponse:
        if request.service not in self._services:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        if self._stopping:
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        try:
            await self._ready()
        except Unavailable:
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)
