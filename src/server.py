"""The life of a server: what it listens on, and that it ends as a server should.

It is one process with the engine: ``bootstrap`` builds and opens that.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapters import tls
from adapters.persistence.lock import DatabaseLock
from adapters.rest.access import Audited, Door, with_needs
from adapters.rest.guard import Guard
from adapters.rest.limits import Connections, Limits
from adapters.rest.problems import on_bug, on_http_error, on_refusal
from adapters.rpc.server import MAX_CONNECTIONS as GRPC_CONNECTIONS
from adapters.settings import Settings, address
from adapters.websocket.frames import WebSocketProtocol
from adapters.websocket.messages import MAX_FRAME_BYTES
from application.feed import Feed
from application.ports import Clock
from bootstrap import Container, beside, running
from domain.errors import InvalidInput, RushesError, Unavailable

if TYPE_CHECKING:
    from adapters.detector.detector import Detector

log = logging.getLogger("rushes")

BACKLOG = 1_024
"""Connections that the kernel holds until they are taken, and that are taken at once."""

ENGINE_FILES = 1_024
"""For the database, and for every file that is being copied to every destination."""

NEW_OBJECTS = 10_000
"""Made and still there before any is looked at for cycles. Those of 64 executions in flight are
fewer, and go by themselves; without cycles that is all there is to wait for."""

MIN_CONNECTIONS = 64
"""However few files there may be open."""

KEEP_ALIVE_S = 8
"""A connection without a request. Longer than clients keep theirs (5 seconds is usual), so that
none sends a request into one that is being closed."""

MAX_HEAD_BYTES = 16 * 1024
"""Of a request line and its headers; browsers send two KiB."""

PING_S = 20
"""How often a WebSocket is pinged, and how long it may take to answer."""

_GONE_AFTER = [
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", 30),  # seconds of silence until it is asked whether it is there,
        ("TCP_KEEPINTVL", 10),  # between questions,
        ("TCP_KEEPCNT", 3),  # and how many may stay without an answer
        ("TCP_USER_TIMEOUT", 45_000),  # milliseconds that what was sent may stay unconfirmed
    )
    if hasattr(socket, name)
]
"""A connection whose other end is gone ends within a minute: also an event stream, which is sent
something every 15 seconds, so that it is never silent for long enough to be asked."""

_SAFE = [("cache-control", "no-store"), ("x-content-type-options", "nosniff")]
"""With every answer: how things stand now is nothing to keep, and JSON nothing to guess about."""

_SAFE_TLS = [("strict-transport-security", "max-age=31536000")]

DRAIN_S = 3
"""How long requests that are under way may take when the server stops."""


def spare_collector() -> None:
    """Have the collector of cycles leave alone what there is by now, and be in no hurry.

    For a process of its own, once it has imported all, and again once all is started: what
    is there then stays. To go through it took as long as the engine's every fifth step, and
    now and then whoever asked for something waited 30 ms for it.
    """
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def with_room(settings: Settings) -> Settings:
    """Have the system let this process open as many files as its connections may take.

    Fewer connections, where it doesn't: who copies cards must never lack a file for them.
    """
    others = GRPC_CONNECTIONS + BACKLOG + ENGINE_FILES
    wanted = settings.connections + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS has a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == unlimited or soft >= wanted:
        return settings
    connections = max(MIN_CONNECTIONS, soft - others)
    log.warning(
        "%d open files are too few for %d connections: %d are served at once (LimitNOFILE=%d)",
        soft, settings.connections, connections, wanted,
    )  # fmt: skip
    return replace(settings, connections=connections)


def web_routes(container: Container) -> Sequence[BaseRoute]:
    """All of them, each behind the permission that it needs."""
    return [
        *with_needs([*container.api().routes(), *container.pages().routes()]),
        *with_needs([WebSocketRoute("/ws", container.hub().connect)]),
    ]


def web_app(container: Container) -> ASGIApp:
    """HTTP and WebSocket in one, behind the guard and the door."""
    settings = container.settings()
    app = Starlette(
        routes=web_routes(container),
        exception_handlers={
            RushesError: on_refusal,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "idempotency-key", "last-event-id"],
            ),
            Middleware(Door, access=container.access()),
        ],
    )
    guarded = Guard(app, hosts=[settings.near_host, *settings.hosts], origins=settings.origins)
    return Audited(Limits(guarded, container.rates()), container.audit())


@dataclass(frozen=True, slots=True)
class Addresses:
    """http: a URL. grpc: host and port; empty where gRPC isn't served. tls: whether both speak it.

    held_at: since when the engine that is to be found there has been held, if it is.
    """

    http: str
    grpc: str
    held_at: datetime | None
    tls: bool = False


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handling, and with followers that end when it does."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed
        self.accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises ``Unavailable`` if a socket can't be listened on."""
        try:
            await super().startup(sockets)
        except OSError as error:
            places = ", ".join(address(*each.getsockname()[:2]) for each in sockets or ())
            raise Unavailable(f"HTTP can't listen on {places}: {error}") from error
        self.accepting.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def _serving_http(
    container: Container, listener: socket.socket, connections: Connections
) -> AsyncIterator[None]:
    server = _HttpServer(
        uvicorn.Config(
            web_app(container),
            http=connections.http(H11Protocol),  # type: ignore[arg-type]
            ws=connections.websocket(WebSocketProtocol),
            headers=_SAFE + (_SAFE_TLS if connections.context else []),
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            ws_max_size=MAX_FRAME_BYTES,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_S,
        ),
        container.feed(),
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    accepting = asyncio.create_task(server.accepting.wait())
    try:
        async with beside(connections.run()):
            await asyncio.wait({serving, accepting}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            yield
    finally:
        accepting.cancel()
        connections.end_silent()
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def _serving_grpc(container: Container, identity: tls.Identity | None) -> AsyncIterator[str]:
    settings = container.settings()
    port = await container.rpc().start(settings.host, settings.grpc_port, identity)
    try:
        yield address(settings.host, port)
    finally:
        await container.rpc().stop(DRAIN_S)


def _may_listen(settings: Settings) -> None:
    """Raises ``InvalidInput`` if other machines would be served what anybody can read, or
    HTTP and gRPC would get one port."""
    if settings.port and settings.port == settings.grpc_port:
        raise InvalidInput(
            f"HTTP and gRPC need a port each, and both are to have {settings.port}",
            field="RUSHES_GRPC_PORT",
        )
    if settings.beyond_loopback and settings.tls_certificate is None and not settings.insecure:
        raise InvalidInput(
            f"{settings.host} can be reached from other machines, and what they say could be read "
            "on the way: set RUSHES_TLS_CERTIFICATE and RUSHES_TLS_KEY, or say --insecure "
            "(RUSHES_INSECURE=yes) for a network that you trust; it takes a token, too "
            "(rushes token new). By default only the loopback is listened on",
            field="RUSHES_HOST",
        )


async def serve(
    settings: Settings,
    *,
    stop: asyncio.Event,
    ready: Callable[[Addresses], None],
    recover: bool = True,
    grpc: bool = True,
    owner_key: str = "",
    watch: bool = False,
) -> int:
    """Serve until ``stop`` is set; how many handlers didn't end in time.

    ``owner_key``: of the command that this server runs inside; who shows it may name a card
        anywhere. Else one is made, which only says who asks. Either is written into the lock
        file, for commands of the same user to show.
    ``watch``: for cards on this machine, as ``rushes detect`` would.

    Raises ``Unavailable`` if the database is held by another server, an address can't be
    had, or another detector is at work; ``InvalidInput`` for settings that make no sense together.
    """
    _may_listen(settings)
    container = Container(settings=settings)
    stamp = _stamp(settings)
    identity = _identity(settings, container.clock())
    container.command_key.override(owner_key)
    owner_key = owner_key or secrets.token_urlsafe(24)
    container.owner_key.override(owner_key)
    database = container.database()
    lock = DatabaseLock(database.path)
    lock.acquire()
    try:
        with _listen(settings.host, settings.port) as listener:
            container.catalogue()  # what is wrong with a pipeline is said before anything runs
            port = listener.getsockname()[1]
            here = address(settings.near_host, port)
            secure = "s" if identity else ""
            trust = None if identity is None else tls.trusting(identity.own)
            async with contextlib.AsyncExitStack() as stack:
                detector = None
                if watch:
                    from adapters.detector.detector import detecting

                    own = detecting(
                        settings,
                        url=f"ws{secure}://{here}/ws",
                        trust=trust,
                        headers=lambda: {"x-rushes-key": owner_key},
                        database=database.path,
                        say=log.info,
                    )
                    detector = stack.enter_context(own)
                await stack.enter_async_context(running(container, recover=recover))
                await stack.enter_async_context(beside(container.metrics().run()))
                await stack.enter_async_context(beside(container.audit().run()))
                grpc_address = ""
                if grpc:
                    serving = _serving_grpc(container, identity)
                    grpc_address = await stack.enter_async_context(serving)
                context = None if identity is None else identity.context
                connections = Connections(settings.connections, context=context)
                await stack.enter_async_context(_serving_http(container, listener, connections))
                held_at = container.hold().held_at
                everywhere = f"http{secure}://{address(settings.host, port)}"
                addresses = Addresses(everywhere, grpc_address, held_at, identity is not None)
                if detector is not None:
                    await stack.enter_async_context(beside(_watched(detector)))

                def announce(shown: tls.Identity | None) -> None:
                    certificate = "" if shown is None else shown.own
                    lock.announce(f"http{secure}://{here}", grpc_address, owner_key, certificate)

                def show(renewed: tls.Identity) -> None:
                    connections.context = renewed.context
                    container.rpc().show(renewed)
                    if trust is not None:
                        trust.load_verify_locations(cadata=renewed.own)
                    announce(renewed)

                announce(identity)
                if identity is not None:
                    renewing = _renewing(settings, container.clock(), stamp, show)
                    await stack.enter_async_context(beside(renewing))
                ready(addresses)
                await stop.wait()
            return container.dispatcher().running
    finally:
        lock.release()


async def _watched(detector: Detector) -> None:
    try:
        await detector.run()
    except Exception:
        log.exception("the detector has broken down: cards are not noticed any more")


def _identity(settings: Settings, clock: Clock) -> tls.Identity | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return tls.identity(
        settings.tls_certificate,
        settings.tls_key,
        settings.tls_client_ca,
        now=clock.now().timestamp(),
    )


def _stamp(settings: Settings) -> object:
    return tls.stamp(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


async def _renewing(
    settings: Settings, clock: Clock, stamp: object, show: Callable[[tls.Identity], None]
) -> None:
    """Until it is cancelled: show what is in the files of TLS when that is no longer ``stamp``."""
    while True:
        await clock.sleep(tls.LOOK_EVERY_S)
        # Before they are read: what is written meanwhile is found at the next look.
        now = await asyncio.to_thread(_stamp, settings)
        if now == stamp:
            continue
        stamp = now
        try:
            renewed = await asyncio.to_thread(_identity, settings, clock)
        except (InvalidInput, OSError) as error:
            log.warning("the old certificate is still shown: %s", error)
            continue
        assert renewed is not None
        show(renewed)
        log.info("the certificate %s was renewed, and is shown", settings.tls_certificate)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, so that asyncio sees TCP and sets TCP_NODELAY: an answer that follows two events
    # would otherwise wait 40 ms for the other side's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted inherits this: who vanishes without a word is noticed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _GONE_AFTER:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"can't listen on {address(host, port)}: {error.strerror} "
            "(RUSHES_PORT chooses another port, 0 any free one)"
        ) from None
    return listener
