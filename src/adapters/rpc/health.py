"""The standard health service (grpc.health.v1): serving, until the stop.

grpcio-health-checking's own servicer would keep its watchers open through the
stop: they are told, but don't end, and whoever stops waits for them in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from domain.errors import NotFound

SERVER = ""
"""What a client names that asks about no service in particular."""

Context = aio.ServicerContext[Any, Any]


class Health(HealthServicer):  # type: ignore[misc]  # it has no types
    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset((SERVER, *services))
        self._stopping = False

    def stop(self) -> None:
        """From now on nothing is serving. Watchers are told when their stream is ended."""
        self._stopping = True

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        if request.service not in self._services:
            raise NotFound(f"there is no service {request.service!r}")
        return self._response(request)

    async def Watch(
        self, request: HealthCheckRequest, context: Context
    ) -> AsyncGenerator[HealthCheckResponse, None]:
        yield self._response(request)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            yield self._response(request)

    def _response(self, request: HealthCheckRequest) -> HealthCheckResponse:
        if request.service not in self._services:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        if self._stopping:
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)
