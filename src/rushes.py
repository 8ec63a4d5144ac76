"""The program ``rushes``: its command line, and what the command line is handed.

Most commands only ask a server that runs already, and are done in the time that it
takes to import what a server is made of. So ``server`` is imported by who starts one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from adapters.cli.commands import commands
from adapters.cli.factories import Factories
from adapters.persistence.location import database_file
from adapters.persistence.lock import DatabaseLock
from adapters.settings import Settings, address
from domain.errors import InvalidInput, Unavailable
from domain.events import timestamp

if TYPE_CHECKING:
    from server import Addresses

log = logging.getLogger("rushes")

DAMPED_S, DAMPED_LINES = 60.0, 10
"""Enough to see what goes on."""

FIND_SERVER_S = 15.0
"""How long a command waits for a server that is just starting to say where it listens."""


class Attachment:
    """A server to talk to: the one that holds the database, or one of our own.

    Our own runs in a thread, on a free port of the loopback, until the ``with`` ends.
    ``recover``: whether our own goes on with what was left unfinished.
    """

    def __init__(self, settings: Settings, *, recover: bool) -> None:
        self._settings = replace(
            settings,
            host="127.0.0.1" if settings.beyond_loopback else settings.host,
            port=0,
            tls_certificate=None,
            tls_key=None,
            tls_client_ca=None,
        )
        self._recover = recover
        self._own: _OwnServer | None = None
        self._is_service = False
        self.url = ""
        self.key = ""
        self.token = settings.token
        self.certificate = ""

    def __enter__(self) -> Attachment:
        self.find()
        return self

    def __exit__(self, *of_the_block: object) -> None:
        if self._own is not None:
            self._own.stop()

    @property
    def is_own(self) -> bool:
        return self._own is not None

    @property
    def left_behind(self) -> bool:
        """Whether our own server has stopped with handlers still at work."""
        return self._own is not None and self._own.late > 0

    def find(self) -> None:
        """Find a server or start one; again, if the one that there was has gone.

        A ``rushes serve`` that was found is waited for: what takes its place meanwhile would
        keep it out, and lack its settings and its pipelines.
        """
        if self._own is not None:
            return
        lock = DatabaseLock(database_file(self._settings.database_url))
        deadline = time.monotonic() + FIND_SERVER_S
        while True:
            holder = lock.holder()
            if holder is not None and holder.address:
                self.url, self.key = holder.address, holder.key
                self.certificate = holder.certificate
                self._is_service = holder.is_service
                return
            if holder is None and self._is_service:
                return
            if holder is None:
                own = _OwnServer(self._settings, recover=self._recover)
                try:
                    self.url = own.start()
                    self.key = own.key
                    self.certificate = ""
                except Unavailable:
                    if lock.holder() is None:
                        raise  # not that somebody else was quicker
                else:
                    self._own = own
                    return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the process that holds {lock.path} doesn't say where it listens"
                )
            time.sleep(0.05)


class _OwnServer:
    """A server in a thread of this process."""

    def __init__(self, settings: Settings, *, recover: bool) -> None:
        self._settings = settings
        self._recover = recover
        self._started = threading.Event()
        self._addresses: Addresses | None = None
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rushes-server", daemon=True)
        self.key = secrets.token_urlsafe(24)
        self.late = 0

    def start(self) -> str:
        """Its URL. Raises what ``serve`` raises."""
        self._thread.start()
        self._started.wait()
        if self._addresses is None:
            assert self._error is not None
            raise self._error
        return self._addresses.http

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._stopped.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
            if self._started.is_set():
                log.exception("the server has ended")
        finally:
            self._started.set()
            self._stopped.set()

    async def _serve(self) -> None:
        with _uncollected():
            from server import serve

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

        def ready(addresses: Addresses) -> None:
            self._addresses = addresses
            self._started.set()

        self.late = await serve(
            self._settings,
            stop=self._stop,
            ready=ready,
            recover=self._recover,
            grpc=False,
            owner_key=self.key,
        )
        if self.late:  # the loop would wait for them before it ends
            self._stopped.set()


def serve_until_signalled(settings: Settings, ready: Callable[[Addresses], None]) -> None:
    """``rushes serve``: until SIGINT or SIGTERM."""
    from server import serve

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        if await serve(settings, stop=stop, ready=ready, watch=settings.watch):
            log.warning("ending with handlers still at work")
            _end_now(0)

    with asyncio.Runner() as runner:
        try:
            runner.run(run())
        except (SystemExit, KeyboardInterrupt) as error:
            # Raised in a task that a handler has made, it goes through the loop, and to close
            # the loop is to cancel everybody else's handlers: they must not report that.
            log.critical("a handler's task ended the server: %r", error)
            _end_now(1)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """For imports: what they make stays.

    To look for garbage in it takes a tenth of their time, and twice that when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end_now(exit_code: int) -> NoReturn:
    """With handlers still at work, as a crash would: the next start takes their steps over.

    Their threads can't be ended from here, and waiting for them could take for ever.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class _OneLine(logging.Formatter):
    """Log lines that no name on a card can break, colour or forge.

    What has several lines, as a traceback, shows that they are one record's.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        shown = "".join(
            c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
            for c in text.encode("utf-8", "backslashreplace").decode()
        )
        return shown.replace("\n", "\n  | ")


class _Damped(logging.Filter):
    """What clients can have a server's libraries say, again and again, fills no disk."""

    def __init__(self) -> None:
        super().__init__()
        self._began = float("-inf")
        self._said = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._began >= DAMPED_S:
            if self._said > DAMPED_LINES:
                more = self._said - DAMPED_LINES
                record.msg = f"{record.getMessage()} (and {more} more lines were left out)"
                record.args = ()
            self._began, self._said = now, 0
        self._said += 1
        return self._said <= DAMPED_LINES


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(level)


def _load_settings(flags: Mapping[str, str | None], config: Path | None) -> Settings:
    return Settings.load(flags, os.environ, config)


def _serve(settings: Settings, say: Callable[[str], None]) -> None:
    with _uncollected():
        from server import spare_collector, with_room

    _log_to_stderr(logging.INFO)
    for library in ("uvicorn.error", "asyncio"):
        logging.getLogger(library).addFilter(_Damped())
    settings = with_room(settings)

    def ready(addresses: Addresses) -> None:
        gc.collect()  # what is garbage by now would stay, too
        spare_collector()
        say(f"HTTP and WebSocket on {addresses.http}")
        say(f"gRPC{' over TLS' if addresses.tls else ''} on {addresses.grpc}")
        if addresses.held_at is not None:
            say(f"Paused since {timestamp(addresses.held_at)}: rushes engine resume lets it go on")

    spare_collector()
    serve_until_signalled(settings, ready)


def _detect(settings: Settings, once: bool, say: Callable[[str], None]) -> bool:
    """``rushes detect``: until SIGINT or SIGTERM, or just ``once``."""
    from adapters import tls
    from adapters.detector.detector import detecting

    url, trust = settings.server, None
    if url.startswith("wss:"):
        trust = tls.trusting_authority(settings.tls_ca)
    if not url:
        if settings.port == 0:
            raise InvalidInput("which server? --server URL says it", field="RUSHES_SERVER")
        scheme = "ws"
        if settings.tls_certificate is not None:
            scheme, trust = "wss", tls.trusting(tls.alone(settings.tls_certificate))
        url = f"{scheme}://{address(settings.near_host, settings.port)}/ws"
    database = database_file(settings.database_url)
    lock = DatabaseLock(database)

    def own_key() -> dict[str, str]:
        """To nobody but the server that has written it."""
        holder = lock.holder()
        own = "" if holder is None else f"ws{holder.address.removeprefix('http')}/ws"
        if holder is None or url.replace("//localhost:", "//127.0.0.1:", 1) != own:
            return {}
        return {"x-rushes-key": holder.key}

    async def run() -> bool:
        with detecting(
            settings,
            url=url,
            trust=trust,
            headers=None if settings.token else own_key,
            database=database,
            say=say,
        ) as detector:
            if once:
                return await detector.once()
            working = asyncio.create_task(detector.run())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, working.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await working
            return True

    return asyncio.run(run())


def _eject(settings: Settings, path: str) -> str:
    """``rushes eject``"""
    from adapters.detector.detector import card_places
    from adapters.detector.eject import eject
    from adapters.detector.mounts import mount_table

    places = card_places(settings, database_file(settings.database_url))
    with contextlib.closing(mount_table(places)) as table:
        return eject(table, path, places)


def main() -> None:
    """The console script ``rushes``."""
    gc.freeze()  # what has been imported above, as in ``_uncollected``
    _log_to_stderr(logging.WARNING)
    attachments: list[Attachment] = []

    def attach(settings: Settings, recover: bool) -> Attachment:
        attachments.append(Attachment(settings, recover=recover))
        return attachments[-1]

    factories = Factories(
        load_settings=_load_settings, attach=attach, serve=_serve, detect=_detect, eject=_eject
    )
    try:
        commands(factories)
    except SystemExit as end:
        if any(attachment.left_behind for attachment in attachments):
            log.warning("ending with handlers still at work")
            _end_now(end.code if isinstance(end.code, int) else 1)
        raise
