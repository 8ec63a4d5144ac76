"""The detector at work: mounts are watched, cards that are ready go into the outbox, and
the courier takes them from there.

A card may hang whoever touches it, so each look at one has a thread of its own that
nobody waits for, not even the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from adapters.detector.courier import Courier, Headers
from adapters.detector.mounts import CardPlaces, Mount, MountTable, mount_table
from adapters.detector.outbox import Outbox, OutboxFull
from adapters.detector.volume import Look, look
from adapters.detector.watch import (
    Appeared,
    Event,
    Ready,
    Removed,
    Stayed,
    Vanished,
    Waiting,
    Watch,
)
from adapters.settings import Settings
from domain.events import timestamp
from domain.footage import shown

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_LOOKS = 16
"""Under way at once: a thread each. More would only make a slow hub of readers slower."""

ONCE_S = 60.0
"""How long ``once`` waits for cards to settle and for the server to take them."""


class Detector:
    """``say`` is given a line for everything that the user wants to know."""

    def __init__(
        self,
        *,
        table: MountTable,
        outbox: Outbox,
        url: str,
        trust: ssl.SSLContext | None = None,
        headers: Headers = dict,
        say: Callable[[str], None],
        look: Callable[[Mount], Look] = look,
    ) -> None:
        self._table = table
        self._outbox = outbox
        self._say = say
        self._look = look
        self._courier = Courier(url, outbox, say, trust=trust, headers=headers)
        self._watch = Watch(outbox.announced())
        self._looks: dict[Mount, asyncio.Future[Look]] = {}
        self._waiting: list[Mount] = []
        self._blind = False
        self._seen = False
        self._unannounced = 0
        self._stays = True

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._courier.run())
            tasks.create_task(self._look_after())

    async def once(self) -> bool:
        """Announce what is there now; whether a server has taken all of it.

        What became of a card is heard by who stays, so it isn't asked of those that were
        announced before.
        """
        self._stays = False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ONCE_S
        working = asyncio.create_task(self.run())
        try:
            while loop.time() < deadline and not working.done():
                told = self._outbox.idle and not self._outbox.waiting
                if self._seen and self._watch.settled and told:
                    return not (self._courier.refused or self._unannounced)
                await asyncio.wait({working}, timeout=0.05)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        for mount, problem in self._watch.unsettled:
            log.error("%s: not announced: %s", _name(mount), problem)
        for insertion in self._outbox.waiting:
            log.error(
                "%s: the server is still at work on an earlier insertion of this card; it is "
                "announced again the next time",
                shown(os.fsencode(insertion.sd_path)),
            )
        for message in self._outbox.unsent():
            log.error(
                "%s: the server has not taken it (%s); it is kept for the next time",
                shown(os.fsencode(message.insertion.sd_path)),
                self._courier.offline or "it doesn't take it now",
            )
        return False

    # -- mounts ------------------------------------------------------------------------

    async def _look_after(self) -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        changed.set()
        read_at = loop.time()
        with _told_of_changes(self._table, loop, changed), contextlib.ExitStack() as stack:
            stack.callback(lambda: [found.cancel() for found in self._looks.values()])
            while True:
                if changed.is_set() or loop.time() >= read_at:
                    changed.clear()
                    read_at = loop.time() + self._table.read_every_s
                    await self._read()
                await self._handle(self._watch.overdue(loop.time()))
                self._waiting += self._watch.due(loop.time())
                while self._waiting and len(self._looks) < MAX_LOOKS:
                    mount = self._waiting.pop(0)
                    self._looks[mount] = _in_a_thread(partial(self._look, mount))
                told: asyncio.Future[Any] = asyncio.create_task(changed.wait())
                next_at = min(read_at, self._watch.next_at() or read_at)
                try:
                    await asyncio.wait(
                        {told, *self._looks.values()},
                        timeout=max(0.0, next_at - loop.time()),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    told.cancel()
                for mount in [mount for mount, found in self._looks.items() if found.done()]:
                    await self._looked(mount, self._looks.pop(mount))

    async def _read(self) -> None:
        try:
            mounts = await _in_a_thread(self._table.mounts)
        except OSError as error:
            if not self._blind:
                log.error("the mount table can't be read: %s; trying again", error)
            self._blind = True
            return
        self._blind = False
        self._seen = True
        await self._handle(self._watch.see(mounts, asyncio.get_running_loop().time()))

    async def _looked(self, mount: Mount, looked: asyncio.Future[Look]) -> None:
        error = looked.exception()
        found: Look | str
        if error is None:
            found = looked.result()
        elif isinstance(error, OSError):
            found = f"it can't be read: {error.strerror or error}"
        else:
            raise error
        now = asyncio.get_running_loop().time()
        await self._handle(self._watch.looked(mount, found, now))

    async def _handle(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Appeared(mount):
                    self._say(f"{_name(mount)}: mounted ({mount.fs_type})")
                case Ready(mount, found, None):
                    await self._announce(mount, found)
                case Ready(mount, found, str(before)):
                    if await self._outbox.recognise(before, mount.key, found.state):
                        self._say(f"{_name(mount)}: the card that was there before")
                        await self._resume(mount)
                    else:
                        await self._handle([Removed(before, mount.path)])
                        await self._announce(mount, found)
                case Stayed(mount):
                    await self._resume(mount)
                case Waiting(mount, why):
                    log.warning("%s: not announced yet: %s", _name(mount), why)
                case Vanished(mount):
                    self._say(f"{_name(mount)}: gone before it was announced")
                case Removed(_, path):
                    self._say(f"{shown(os.fsencode(path))}: removed")
                    await self._outbox.remove(event)

    async def _resume(self, mount: Mount) -> None:
        if await self._outbox.resume(mount.key, unheard=self._stays):
            self._say(f"{_name(mount)}: announced again: what became of it was not heard")

    async def _announce(self, mount: Mount, found: Look) -> None:
        try:
            mount.path.encode()
        except UnicodeEncodeError:
            self._unannounced += 1
            log.error(
                "%s: NOT announced: the path of a mount must be valid UTF-8 (names on the "
                "card need not be); mount it elsewhere",
                _name(mount),
            )
            return
        facts = {**found.facts, "inserted_at": timestamp(datetime.now(UTC))}
        try:
            data = {"sd_path": mount.path, "volume": facts}
            await self._outbox.insert(mount.key, data, found.state)
        except OutboxFull as error:
            self._unannounced += 1
            log.error("%s: NOT announced: %s", _name(mount), error)
            return
        self._say(
            f"{_name(mount)}: a card, {found.facts['label']}, {_size(found.facts['size_bytes'])}"
        )


def card_places(settings: Settings, database: Path) -> CardPlaces:
    return CardPlaces(
        card_roots=settings.card_roots,
        watch_roots=settings.watch_roots,
        kept_out=(str(settings.library), *settings.destinations, str(database)),
    )


@contextlib.contextmanager
def detecting(
    settings: Settings,
    *,
    url: str,
    trust: ssl.SSLContext | None = None,
    headers: Headers | None = None,
    database: Path,
    say: Callable[[str], None],
) -> Iterator[Detector]:
    """A detector that remembers what it does beside the database, whether that is there or not.

    ``trust``: for a URL that says ``wss``, whose certificates are good. ``headers``: makes
    what is shown there, to be let in; else that is the token that the settings have.

    Raises ``Unavailable`` if another one is at work there.
    """
    outbox = Outbox(database.with_name(f"{database.name}.detector"))
    with contextlib.ExitStack() as stack:
        stack.callback(outbox.close)
        outbox.open()
        table = mount_table(card_places(settings, database))
        stack.callback(table.close)
        if headers is None:
            token = {"authorization": f"Bearer {settings.token}"} if settings.token else {}
            headers = partial(dict, token)
        yield Detector(table=table, outbox=outbox, url=url, trust=trust, headers=headers, say=say)


@contextlib.contextmanager
def _told_of_changes(
    table: MountTable, loop: asyncio.AbstractEventLoop, changed: asyncio.Event
) -> Iterator[None]:
    fd = table.fileno()
    if fd is not None:
        loop.add_reader(fd, changed.set)
    try:
        yield
    finally:
        if fd is not None:
            loop.remove_reader(fd)


def _in_a_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.done():  # nobody waits any more
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="rushes-look", daemon=True).start()
    return outcome


def _name(mount: Mount) -> str:
    return shown(os.fsencode(mount.path))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
