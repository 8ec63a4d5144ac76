"""Where everything meets: the one container, and the order in which the engine is opened.

The container only builds. What has to be opened, in which order, and closed again is
``running``'s. What listens is in ``server.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from dependency_injector import containers, providers

from adapters.audit import Audit
from adapters.dispatch.local import LocalDispatcher
from adapters.dispatch.pools import most_at_work
from adapters.limits import Rates
from adapters.persistence.database import Database
from adapters.persistence.executions import SqlExecutions
from adapters.persistence.footage import SqlCardFiles, SqlJobs, SqlLedger
from adapters.persistence.tokens import SqlTokens
from adapters.rest.api import Api
from adapters.rest.metrics import Metrics
from adapters.rest.pages import Pages
from adapters.rpc.server import RpcServer
from adapters.settings import Settings
from adapters.steps.cards import FsCards
from adapters.steps.faults import LibraryFault
from adapters.steps.library import Library
from adapters.steps.mhl.documents import Creator
from adapters.steps.sd_ingest import sd_ingest
from adapters.steps.verify_folder import verify_folder
from adapters.system import LoopThreads, SystemChance, SystemClock, SystemSecrets, Uuid7
from adapters.websocket.contract import asyncapi
from adapters.websocket.hub import Hub
from application.access import Access
from application.advance import Advance
from application.authoring import AuthoredStep, Pipeline
from application.cancel import Cancel
from application.catalogue import Catalogue
from application.claims import Claims
from application.feed import Feed
from application.hold import Hold
from application.pause import Pause
from application.ports import Ledger
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
from domain.errors import InvalidInput, RushesError

log = logging.getLogger("rushes")

T = TypeVar("T")


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
    except (Exception, SystemExit) as error:
        raise InvalidInput(
            f"{what} {name!r} can't be loaded: {type(error).__name__}: {error}", field=setting
        ) from error
    if not isinstance(found, kind):
        wanted = "a Pipeline" if kind is Pipeline else "a step made by @step()"
        is_kind = type(found).__name__
        raise InvalidInput(f"{what} {name!r} is {is_kind}, not {wanted}", field=setting)
    return found


def prepare_library(library: Path, ledger: Ledger) -> None:
    """Make a library in the user's home, unless it was on a disk that is away.

    Elsewhere its disk may just not be mounted.
    """
    if library.is_relative_to(Path.home()):
        # The first copy says what is wrong, and can be retried.
        with contextlib.suppress(OSError, LibraryFault):
            Library(str(library), ledger).require_disk()
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
        await asyncio.to_thread(database.open)
        stack.callback(database.close)
        threads = container.threads()
        threads.open()
        stack.callback(threads.close)
        executions, feed = container.executions(), container.feed()
        dispatcher, runner = container.dispatcher(), container.runner()
        await executions.open(dispatcher, feed.publish)
        stack.push_async_callback(executions.close)
        for place in (settings.library, *map(Path, settings.destinations)):
            await asyncio.to_thread(prepare_library, place, container.ledger())
        access = container.access()
        await access.open()
        _lock_for_others(access, settings)
        stack.push_async_callback(access.save)
        await stack.enter_async_context(beside(access.run()))
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
            await stack.enter_async_context(beside(container.retention().run()))
        yield


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
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Do the work on the side, until the end of the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
