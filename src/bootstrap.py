"""Where everything meets: the one container, and the life of a server.

The container only builds. What has to be opened, in which order, and closed
again is ``Runtime``'s; what listens is ``serve``'s; who runs that in this process,
or finds another that does, is ``Attachment``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import resource
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

# gRPC's core writes lines of its own to stderr, beside the errors that we report.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import uvicorn
from dependency_injector import containers, providers
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapters import tls
from adapters.audit import Audit
from adapters.dispatch.local import LocalDispatcher
from adapters.dispatch.pools import most_at_work
from adapters.limits import Rates
from adapters.persistence.database import Database
from adapters.persistence.executions import SqlExecutions
from adapters.persistence.footage import SqlCardFiles, SqlJobs, SqlLedger
from adapters.persistence.lock import DatabaseLock
from adapters.persistence.tokens import SqlTokens
from adapters.rest.access import Audited, Door, with_needs
from adapters.rest.api import Api
from adapters.rest.guard import Guard
from adapters.rest.limits import Connections, Limits
from adapters.rest.metrics import Metrics
from adapters.rest.pages import Pages
from adapters.rest.problems import on_bug, on_http_error, on_refusal
from adapters.rpc.server import MAX_CONNECTIONS as GRPC_CONNECTIONS
from adapters.rpc.server import RpcServer
from adapters.settings import Settings, address
from adapters.steps.cards import FsCards
from adapters.steps.mhl.documents import Creator
from adapters.steps.sd_ingest import sd_ingest
from adapters.steps.verify_folder import verify_folder
from adapters.system import LoopThreads, SystemChance, SystemClock, SystemSecrets, Uuid7
from adapters.websocket.contract import asyncapi
from adapters.websocket.frames import WebSocketProtocol
from adapters.websocket.hub import Hub
from adapters.websocket.messages import MAX_FRAME_BYTES
from application.access import Access
from application.advance import Advance
from application.authoring import AuthoredStep, Pipeline
from application.cancel import Cancel
from application.catalogue import Catalogue
from application.claims import Claims
from application.feed import Feed
from application.hold import Hold
from application.pause import Pause
from application.ports import Clock
from application.progress import ProgressBoard
from application.recovery import Recovery
from application.report import Report
from application.rerun import Rerun
from application.retention import Retention
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.step_runner import StepRunner
from application.trigger import Trigger
from domain.errors import InvalidInput, RushesError, Unavailable

if TYPE_CHECKING:
    from adapters.detector.detector import Detector

log = logging.getLogger("rushes")

T = TypeVar("T")

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


def load_pipeline(name: str) -> Pipeline:
    """``module:attribute``. Raises ``InvalidInput``, naming what is wrong with it."""
    return _load(name, Pipeline, "pipeline", "RUSHES_PIPELINES")


def load_clip_steps(names: Sequence[str]) -> Sequence[AuthoredStep]:
    """Each as ``module:attribute``. Raises as ``load_pipeline`` does."""
    return [_load(name, AuthoredStep, "clip step", "RUSHES_CLIP_STEPS") for name in names]


def _load(name: str, kind: type[T], what: str, setting: str) -> T:
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except RushesError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"{what} {name!r} can't be loaded: {type(error).__name__}: {error}", field=setting
        ) from error
    if not isinstance(found, kind):
        wanted = "a Pipeline" if kind is Pipeline else "a step made by @step()"
        is_kind = type(found).__name__
        raise InvalidInput(f"{what} {name!r} is {is_kind}, not {wanted}", field=setting)
    return found


def prepare_library(library: Path) -> None:
    """Make a library in the user's home. Elsewhere its disk may just not be mounted."""
    if library.is_relative_to(Path.home()):
        with contextlib.suppress(OSError):  # the first copy says what is wrong, and can be retried
            library.mkdir(parents=True, exist_ok=True)


def creator() -> Creator:
    """Who the manifests of this machine say has written them."""
    return Creator(socket.gethostname(), "Rushes", metadata.version("rushes"))


def footage_roots(settings: Settings) -> tuple[str, ...]:
    """Where footage may be repaired, and manifests added: never on a card."""
    return (str(settings.library), *settings.destinations, *settings.verify_roots)


def build_catalogue(settings: Settings, *built_in: Pipeline) -> Catalogue:
    catalogue = Catalogue(
        [*built_in, *(load_pipeline(name) for name in settings.pipelines)],
        pools=settings.pools.keys(),
    )
    if not catalogue.get(settings.card_pipeline).card:
        raise InvalidInput(
            f"pipeline {settings.card_pipeline!r} doesn't work on cards",
            field="RUSHES_CARD_PIPELINE",
        )
    return catalogue


class Container(containers.DeclarativeContainer):
    """Everything, and what it is made of. Tests override single providers with fakes."""

    settings: providers.Dependency[Settings] = providers.Dependency(instance_of=Settings)

    clock = providers.Singleton(SystemClock)
    ids = providers.Singleton(Uuid7)
    threads = providers.Singleton(
        LoopThreads, providers.Callable(most_at_work, settings.provided.pools)
    )
    cards = providers.Singleton(FsCards, settings.provided.card_roots)

    database = providers.Singleton(Database, settings.provided.database_url)
    executions = providers.Singleton(SqlExecutions, database)
    jobs = providers.Singleton(SqlJobs, database, executions, clock, ids)
    card_files = providers.Singleton(SqlCardFiles, database, executions)
    ledger = providers.Singleton(SqlLedger, database, executions)
    tokens = providers.Singleton(SqlTokens, database, executions)
    report = providers.Singleton(Report, jobs, card_files, ledger)

    catalogue = providers.Singleton(
        build_catalogue,
        settings,
        providers.Factory(
            sd_ingest,
            clip_steps=providers.Callable(load_clip_steps, settings.provided.clip_steps),
            executions=executions,
            cards=cards,
            card_files=card_files,
            jobs=jobs,
            ledger=ledger,
            clock=clock,
            library=providers.Factory(str, settings.provided.library),
            hash_names=settings.provided.hashes,
            verify_source=settings.provided.verify_source,
            layout=settings.provided.layout,
            report=report,
            creator=providers.Callable(creator),
        ),
        providers.Factory(
            verify_folder,
            clock=clock,
            roots=providers.Callable(footage_roots, settings),
            card_roots=settings.provided.card_roots,
            creator=providers.Callable(creator),
        ),
    )

    dispatcher = providers.Singleton(
        LocalDispatcher,
        settings.provided.pools,
        grace_s=settings.provided.stop_grace_s,
        abandon_after_s=settings.provided.abandon_after_s,
    )
    hold = providers.Singleton(Hold, executions=executions, dispatcher=dispatcher, clock=clock)
    feed = providers.Singleton(Feed, executions, clock)
    progress = providers.Singleton(ProgressBoard, feed, clock, threads)
    trigger = providers.Singleton(
        Trigger,
        catalogue=catalogue,
        executions=executions,
        cards=cards,
        clock=clock,
        ids=ids,
        threads=threads,
        hold=hold,
        library=providers.Factory(str, settings.provided.library),
        destinations=settings.provided.destinations,
    )
    status = providers.Singleton(Status, executions=executions, progress=progress, hold=hold)
    chance = providers.Singleton(SystemChance)
    advance = providers.Singleton(
        Advance,
        executions=executions,
        clock=clock,
        chance=chance,
        progress=progress,
        status=status,
    )
    retry = providers.Singleton(Retry, executions=executions, clock=clock, status=status)
    recovery = providers.Singleton(Recovery, executions=executions, clock=clock, hold=hold)
    retention = providers.Singleton(
        Retention, executions=executions, clock=clock, keep_days=settings.provided.keep_days
    )
    runner = providers.Singleton(
        StepRunner,
        catalogue=catalogue,
        advance=advance,
        progress=progress,
        clock=clock,
        threads=threads,
    )
    cancel = providers.Singleton(
        Cancel,
        executions=executions,
        dispatcher=dispatcher,
        clock=clock,
        progress=progress,
        status=status,
    )
    pause = providers.Singleton(Pause, executions=executions, clock=clock, status=status)
    settle = providers.Singleton(Settle, executions=executions, clock=clock, status=status)
    claims = providers.Singleton(Claims, executions=executions, clock=clock, feed=feed, hold=hold)
    rerun = providers.Singleton(Rerun, executions=executions, clock=clock, ids=ids, hold=hold)

    owner_key = providers.Object("")
    access = providers.Singleton(
        Access,
        tokens=tokens,
        clock=clock,
        secrets=providers.Singleton(SystemSecrets),
        threads=threads,
        owner_key=owner_key,
    )
    audit = providers.Singleton(Audit, clock)
    rates = providers.Singleton(Rates, settings.provided.rate, access, clock)
    hub = providers.Singleton(
        Hub,
        feed=feed,
        trigger=trigger,
        clock=clock,
        access=access,
        audit=audit,
        card_pipeline=settings.provided.card_pipeline,
    )
    command_key = providers.Object("")
    api = providers.Singleton(
        Api,
        trigger=trigger,
        status=status,
        retry=retry,
        cancel=cancel,
        pause=pause,
        settle=settle,
        rerun=rerun,
        advance=advance,
        claims=claims,
        hold=hold,
        dispatcher=dispatcher,
        feed=feed,
        catalogue=catalogue,
        jobs=jobs,
        card_files=card_files,
        report=report,
        threads=threads,
        access=access,
        owner_key=command_key,
    )
    version = providers.Callable(metadata.version, "rushes")
    metrics = providers.Singleton(
        Metrics,
        feed=feed,
        executions=executions,
        dispatcher=dispatcher,
        queues=dispatcher.provided.queues,
        catalogue=catalogue,
        clock=clock,
        version=version,
    )
    pages = providers.Singleton(
        Pages,
        routes=providers.Callable(Api.routes, api),
        asyncapi=providers.Object(asyncapi),
        metrics=metrics,
        version=version,
    )
    rpc = providers.Singleton(
        RpcServer,
        trigger=trigger,
        status=status,
        retry=retry,
        cancel=cancel,
        pause=pause,
        settle=settle,
        rerun=rerun,
        hold=hold,
        dispatcher=dispatcher,
        advance=advance,
        claims=claims,
        feed=feed,
        access=access,
        audit=audit,
        rates=rates,
    )


@contextlib.asynccontextmanager
async def running(container: Container, *, recover: bool = True) -> AsyncIterator[None]:
    """The engine, opened in order and closed again, on the running loop; nothing listens yet.

    ``recover``: go on with what the last process left unfinished, and forget what is too old.
    Else nothing starts here at all: what may go by what is asked here does at the next start.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = container.database()
        settings = container.settings()
        for place in (settings.library, *map(Path, settings.destinations)):
            await asyncio.to_thread(prepare_library, place)
        await asyncio.to_thread(database.open)
        stack.callback(database.close)
        threads = container.threads()
        threads.open()
        stack.callback(threads.close)
        executions, feed = container.executions(), container.feed()
        dispatcher, runner = container.dispatcher(), container.runner()
        await executions.open(dispatcher, feed.publish)
        stack.push_async_callback(executions.close)
        access = container.access()
        await access.open()
        _lock_for_others(access, settings)
        stack.push_async_callback(access.save)
        await stack.enter_async_context(_beside(access.run()))
        await feed.open()
        stack.callback(feed.close)
        dispatcher.open(runner, executions, container.clock())
        stack.push_async_callback(dispatcher.stop)
        if not recover:
            dispatcher.stand_by()
        await container.hold().open()
        if recover:
            taken_up = await container.recovery()()
            if taken_up:
                log.info("going on with %d unfinished executions", taken_up)
            await stack.enter_async_context(_beside(container.retention().run()))
        yield


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


def _may_listen(settings: Settings) -> None:
    """Raises ``InvalidInput`` if other machines would be served what anybody can read."""
    if settings.beyond_loopback and settings.tls_certificate is None and not settings.insecure:
        raise InvalidInput(
            f"{settings.host} can be reached from other machines, and what they say could be read "
            "on the way: set RUSHES_TLS_CERTIFICATE and RUSHES_TLS_KEY, or say --insecure "
            "(RUSHES_INSECURE=yes) for a network that you trust; it takes a token, too "
            "(rushes token new). By default only the loopback is listened on",
            field="RUSHES_HOST",
        )


def _lock_for_others(access: Access, settings: Settings) -> None:
    """Nobody comes in from elsewhere without a token, not even when the last is revoked.

    Raises ``InvalidInput`` if there are none, before anything listens or is gone on with.
    """
    if not settings.beyond_loopback:
        return
    if not access.locked:
        raise InvalidInput(
            f"{settings.host} can be reached from other machines, and there is no token to tell "
            "who may come in: make one first (rushes token new)",
            field="RUSHES_HOST",
        )
    access.keep_locked()


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Do the work on the side, until the end of the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
        await super().startup(sockets)
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
        async with _beside(connections.run()):
            await asyncio.wait({serving, accepting}, return_when=asyncio.FIRST_COMPLETED)
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
    container.command_key.override(providers.Object(owner_key))
    owner_key = owner_key or secrets.token_urlsafe(24)
    container.owner_key.override(providers.Object(owner_key))
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
                await stack.enter_async_context(_beside(container.metrics().run()))
                await stack.enter_async_context(_beside(container.audit().run()))
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
                    await stack.enter_async_context(_beside(_watched(detector)))

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
                    await stack.enter_async_context(_beside(renewing))
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
