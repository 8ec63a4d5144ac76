"""What one client may take of the HTTP side: connections, time and requests.

``Connections`` stands before the protocol. It knows every connection from its first
instant, before TLS and before a byte has come, and

* lets only so many in. When they are all taken, who has been let in and has never asked
  anything makes room for who comes: idle connections by the thousand keep nobody out.
* looks at all of them once a second, and ends those that keep the server waiting: for a
  request that drips in, or by not reading what they have asked for. A WebSocket says and
  hears something of its own accord (pings), and is let go by the hub if it doesn't read.

``Limits`` stands before the application, and counts requests (``adapters/limits.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.limits import Rates, Shares
from adapters.rest.problems import problem
from domain.errors import TooManyRequests

log = logging.getLogger(__name__)

MAX_UNREAD = 4_096
"""Messages of one WebSocket that came in one piece and aren't handled yet, a few hundred bytes
each. Who sends thousands without waiting for an answer is no client of ours."""

LOOK_EVERY_S = 1.0

TLS_BUFFER_BYTES = 32 * 1024
"""Two records of TLS. asyncio sets aside 256 KiB for each connection, a gigabyte for 4,000."""

TLS_CLOSE_S = 5.0
"""How long a client has to say goodbye."""

SAY_EVERY_S = 60.0
"""How often it is said in the log that somebody was kept out."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may keep the server waiting, in seconds.

    tls: for the handshake. head: for a request's first bytes to its last header; a phone on a
    bad network takes two. body: for all of it, one MiB at most. reader: for the client to take
    any part of an answer.
    """

    tls: float = 10.0
    head: float = 10.0
    body: float = 30.0
    reader: float = 30.0


class Connections:
    """``most`` at once. With ``context``, all of them speak TLS."""

    def __init__(
        self,
        most: int,
        *,
        context: ssl.SSLContext | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._most = most
        self._shares = Shares(most)
        self.context = context
        if context is not None:
            SSLProtocol.max_size = TLS_BUFFER_BYTES
        self.patience = patience or Patience()
        self._all: dict[_Connection, None] = {}
        self._silent: dict[_Connection, None] = {}
        self._by_transport: dict[asyncio.BaseTransport, _Connection] = {}
        self._kept_out = 0
        self._said_at = float("-inf")

    def __len__(self) -> int:
        return len(self._all)

    # -- what uvicorn is given -----------------------------------------------------

    def http(self, protocol: type[Any]) -> Callable[..., asyncio.Protocol]:
        """In the place of uvicorn's own protocol."""
        protocol = self._leaving(protocol)

        def entry(**given: Any) -> asyncio.Protocol:
            return _Connection(self, lambda: protocol(**given))

        return entry

    def websocket(self, protocol: type[Any]) -> type[Any]:
        class Bounded(self._leaving(protocol)):  # type: ignore[misc]
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if self.queue.qsize() > MAX_UNREAD:
                    self.transport.abort()

        return Bounded

    def _leaving(self, protocol: type[Any]) -> type[Any]:
        connections = self

        class Leaving(protocol):  # type: ignore[misc]
            def connection_lost(self, error: Exception | None) -> None:
                connections.lost(self.transport)
                super().connection_lost(error)

        return Leaving

    # -- in and out ----------------------------------------------------------------

    def let_in(self, connection: _Connection) -> bool:
        if not self._shares.take(connection.address):
            self._keep_out()
            return False
        if len(self._all) >= self._most and not self._make_room():
            self._shares.give_back(connection.address)
            self._keep_out()
            return False
        self._all[connection] = self._silent[connection] = None
        return True

    def left(self, connection: _Connection) -> None:
        if connection not in self._all:
            return
        del self._all[connection]
        self._silent.pop(connection, None)
        if connection.transport is not None:
            self._by_transport.pop(connection.transport, None)
        self._shares.give_back(connection.address)

    def speaks_through(self, transport: asyncio.BaseTransport, connection: _Connection) -> None:
        self._by_transport[transport] = connection

    def lost(self, transport: asyncio.BaseTransport) -> None:
        connection = self._by_transport.pop(transport, None)
        if connection is not None:
            self.left(connection)

    def end_silent(self) -> None:
        """At the stop. uvicorn ends those that it knows, and doesn't know of a handshake."""
        for connection in tuple(self._silent):
            if connection.is_silent:
                connection.end()

    def _make_room(self) -> bool:
        """End the one that has been silent for longest."""
        while self._silent:
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            if oldest.is_silent:
                oldest.end()
                return True
        return False

    def _keep_out(self) -> None:
        self._kept_out += 1
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= SAY_EVERY_S:
            log.warning(
                "%d connections kept out: there are %d (RUSHES_CONNECTIONS is %d, and %d from "
                "one address)", self._kept_out, len(self._all), self._most, self._shares.each,
            )  # fmt: skip
            self._kept_out, self._said_at = 0, now

    # -- patience ------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self.patience.head / 4))
            now = loop.time()
            for connection in tuple(self._all):
                if connection.keeps_us_waiting(now):
                    connection.end()


class _Connection(asyncio.Protocol):
    """One connection: itself the protocol until TLS stands, then a watcher of uvicorn's."""

    def __init__(self, connections: Connections, make: Callable[[], Any]) -> None:
        self._connections = connections
        self._make = make
        self._protocol: Any = None
        self._raw: asyncio.Transport | None = None
        self.transport: asyncio.Transport | None = None
        self.address = ""
        self._early = bytearray()
        self._waits_for: tuple[object, ...] = ()
        self._since = 0.0
        self._handshake: asyncio.Task[None] | None = None

    # -- as a protocol, before uvicorn's ---------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._raw = transport
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else ""
        if not self._connections.let_in(self):
            transport.abort()
        elif self._connections.context is None:
            self._go_on(transport)
        else:
            self._handshake = asyncio.create_task(self._secure(transport))

    def data_received(self, data: bytes) -> None:
        self._early += data  # it came with the last of the handshake

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.left(self)

    async def _secure(self, raw: asyncio.Transport) -> None:
        transport = None
        assert self._connections.context is not None
        with contextlib.suppress(OSError):  # no TLS, or given up: nobody's fault but theirs
            transport = await asyncio.get_running_loop().start_tls(
                raw,
                self,
                self._connections.context,
                server_side=True,
                ssl_handshake_timeout=self._connections.patience.tls,
                ssl_shutdown_timeout=TLS_CLOSE_S,
            )
        if transport is None or transport.is_closing():
            self.end()
        else:
            self._go_on(transport)

    def _go_on(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._connections.speaks_through(transport, self)
        self._protocol = self._make()
        self._protocol.connection_made(transport)
        transport.set_protocol(self._protocol)
        if self._early:
            self._protocol.data_received(bytes(self._early))
            self._early.clear()

    # -- as a watcher ----------------------------------------------------------------

    @property
    def is_silent(self) -> bool:
        """Whether it has never asked for anything."""
        return self._protocol is None or (self._protocol.cycle is None and self._is_http)

    @property
    def _is_http(self) -> bool:
        return self.transport is not None and self.transport.get_protocol() is self._protocol

    def keeps_us_waiting(self, now: float) -> bool:
        """Whether it has for too long; to be asked again and again."""
        waits_for, for_s = self._waiting()
        if waits_for != self._waits_for:
            self._waits_for, self._since = waits_for, now
        return bool(waits_for) and now - self._since > for_s

    def _waiting(self) -> tuple[tuple[object, ...], float]:
        patience = self._connections.patience
        if self._protocol is None or self.transport is None or not self._is_http:
            return (), 0.0
        cycle = self._protocol.cycle
        if cycle is None or cycle.response_complete:
            return ("head", cycle), patience.head
        if cycle.more_body:
            return ("body", cycle), patience.body
        unread = self.transport.get_write_buffer_size()
        return (("reader", cycle, unread), patience.reader) if unread else ((), 0.0)

    def end(self) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
        if self._raw is not None:
            self._raw.abort()
        self._connections.left(self)


class Limits:
    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self._app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._rates.apply:
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope["client"] else ""
        try:
            self._rates.ask(address)
        except TooManyRequests as error:
            await problem(error)(scope, receive, send)
            return
        instead: TooManyRequests | None = None

        async def looked_at(message: Message) -> None:
            nonlocal instead
            if message.get("status") == HTTPStatus.UNAUTHORIZED:
                instead = self._rates.failed(address)
                if instead is not None:
                    await problem(instead)(scope, receive, send)
                    return
            if instead is None:
                await send(message)

        await self._app(scope, receive, looked_at)
