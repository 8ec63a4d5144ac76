"""What a server has still to be told, and which cards it has been told of: a small file.

A message is made once and kept whole. It is sent with the same message_id and the same
contents until a server has taken or refused it, over lost connections, crashes and
restarts, so a server that has heard it before answers with the execution that there is.

Cards that are in and announced stay in the file until they have gone. That is how a
detector that is started again knows which it has announced, and notices those that were
taken out while it was away.

A card is announced again, as a new message, where the old one may have brought nothing:

* It was answered with the execution of another message, mostly because the card was out
  for a moment. That execution saw what was on the card before, so when it has ended, or
  may have (the connection was lost), the card's own turn has come.
* What became of it was never heard, and this is a new start. The execution may have failed
  because the card was away as well.

In both cases only while the card is in. If all on it is in the library by then, that costs
a scan.

The file is written beside and renamed, and synced before the new one counts. One
detector has it: the lock is the operating system's and goes with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from adapters.detector.watch import Removed
from domain.errors import Unavailable

log = logging.getLogger(__name__)

MAX_INSERTIONS = 1_000
"""In the file: more unsent cards than anybody inserts before asking why nothing happens."""

INSERTED = "detector:sd_inserted"
REMOVED = "detector:sd_removed"


class OutboxFull(Exception):
    """No server has been there for so long that no more messages are kept."""


class Insertion(msgspec.Struct):
    """One card, put in once.

    key: of its mounting. data: of the message that announces it, word for word.
    look: what tells it from other cards, and from itself with more on it.
    state: of that message; waiting: it was answered with the execution of another one, and
    that has not ended; ended: so has its execution, however. removed: whether the card has
    gone since. known_as: the message_id under which a server has taken it, if possible the
    one that it made an execution for; another than the message's if that came later.
    """

    key: str
    data: dict[str, Any]
    look: str
    state: Literal["unsent", "accepted", "waiting", "ended", "refused"] = "unsent"
    removed: bool = False
    known_as: str | None = None

    @property
    def message_id(self) -> str:
        return str(self.data["message_id"])

    @property
    def sd_path(self) -> str:
        return str(self.data["sd_path"])


class _Stored(msgspec.Struct):
    version: Literal[1]
    insertions: list[Insertion]


class Message(msgspec.Struct, frozen=True):
    type: str
    insertion: Insertion

    @property
    def message_id(self) -> str:
        return self.insertion.message_id

    def encode(self) -> str:
        data = self.insertion.data
        if self.type == REMOVED:
            known_as = self.insertion.known_as or self.message_id
            data = {"message_id": known_as, "sd_path": self.insertion.sd_path}
        return msgspec.json.encode({"type": self.type, "data": data}).decode()


class Outbox:
    """Lives on one event loop, between ``open`` and ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.grown = asyncio.Event()
        self._insertions: dict[str, Insertion] = {}
        self._unheard: frozenset[str] = frozenset()
        self._sent_before: frozenset[str] = frozenset()
        self._others: dict[str, str] = {}
        self._unwritten: set[str] = set()
        self._writing = asyncio.Lock()
        self._written = b""
        self._failing = False
        self._lock: int | None = None

    def open(self) -> None:
        """Raises ``Unavailable`` if another detector has it, or it can't be had at all."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise Unavailable(f"the lock file {lock} can't be opened: {error}") from None
        if not _locked(fd):
            os.close(fd)
            raise Unavailable(
                f"another detector is at work with {self.path} (rushes detect, or a server "
                "that watches for cards itself)"
            )
        self._lock = fd
        try:
            self._insertions = self._read()
            self._unheard = self._those("accepted", "waiting")
            self._sent_before = self._those("unsent")
        except OSError as error:
            self.close()
            raise Unavailable(f"{self.path} can't be read: {error}") from None

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- what there is ---------------------------------------------------------------

    def announced(self) -> Mapping[str, str]:
        """The cards that are known and haven't gone, by key, with their paths."""
        return {each.key: each.sd_path for each in self._insertions.values() if not each.removed}

    def unsent(self) -> list[Message]:
        """In the order in which they are to be sent; a card's removal after its insertion."""
        return [
            Message(INSERTED if each.state == "unsent" else REMOVED, each)
            for each in self._insertions.values()
            if each.key not in self._unwritten and (each.state == "unsent" or each.removed)
        ]

    @property
    def waiting(self) -> list[Insertion]:
        """Those that are to be announced again when another message's execution has ended."""
        return [
            each
            for each in self._insertions.values()
            if each.state == "waiting" and not each.removed
        ]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to be told, and that is written down."""
        return not self._writing.locked() and not any(
            each.state == "unsent" or each.removed for each in self._insertions.values()
        )

    # -- what happens ----------------------------------------------------------------

    async def insert(self, key: str, data: Mapping[str, Any], look: str) -> Insertion:
        """Give it a message_id and keep it; sent once it is durable. Raises ``OutboxFull``."""
        if len(self._insertions) >= MAX_INSERTIONS:
            raise OutboxFull(
                f"{self.path} holds {MAX_INSERTIONS} cards already; once a server has taken "
                "them, put the card in again"
            )
        insertion = Insertion(key, {"message_id": _new_message_id(), **data}, look)
        self._insertions[key] = insertion
        self._unwritten.add(key)
        await self._write()
        self._unwritten.discard(key)
        self.grown.set()
        return insertion

    async def recognise(self, key: str, now: str, look: str) -> bool:
        """Whether the card with that key is the one that has this key now; then it gets it."""
        insertion = self._insertions.get(key)
        if insertion is None or insertion.look != look:
            return False
        self._insertions = {
            now if known == key else known: each for known, each in self._insertions.items()
        }
        insertion.key = now
        await self._write()
        return True

    async def resume(self, key: str, *, unheard: bool) -> bool:
        """The card with this key, announced before this start, is in; whether to announce it
        again, which is then done.

        unheard: also if only its end was not heard before this start. One that is heard
        since then counts for nothing: it may have failed because the card was not in yet.
        """
        insertion = self._insertions.get(key)
        if insertion is None or insertion.message_id not in self._unheard:
            return False
        if not unheard and insertion.state != "waiting":
            return False
        await self.announce_again([insertion])
        return True

    async def ended(
        self, execution_id: str, message_id: str | None, *, completed: bool
    ) -> Sequence[Insertion]:
        """An execution has ended; the cards that are therefore announced again.

        message_id: the one that it was made for, if any. completed: rather than failed or
        cancelled.
        """
        again = []
        for each in self._insertions.values():
            if each.state not in ("accepted", "waiting"):
                continue
            own = message_id is not None and message_id == (each.known_as or each.message_id)
            # Whoever waits for its own execution asked again after a restart. If that has
            # failed it may have been for want of the card.
            if own and (each.state == "accepted" or completed):
                each.state = "ended"
                self._others.pop(each.message_id, None)
            elif self._others.get(each.message_id) == execution_id and not each.removed:
                again.append(each)
        await self.announce_again(again)
        return again

    def may_be_over(self, insertion: Insertion) -> bool:
        """Whether its message may have been sent, and its execution have ended, before this
        start."""
        return insertion.message_id in self._sent_before

    def _those(self, *states: str) -> frozenset[str]:
        insertions = self._insertions.values()
        return frozenset(each.message_id for each in insertions if each.state in states)

    async def missed_ends(self) -> Sequence[Insertion]:
        """Ends may have been told while nobody listened; the cards that are announced again."""
        again = [each for each in self.waiting if each.message_id in self._others]
        await self.announce_again(again)
        return again

    async def announce_again(self, insertions: Sequence[Insertion]) -> None:
        """As new messages, but for cards that have gone. Whatever has changed is made durable."""
        staying = [each for each in insertions if not each.removed]
        for each in staying:
            self._others.pop(each.message_id, None)
            each.known_as = each.known_as or each.message_id
            each.data = {**each.data, "message_id": _new_message_id()}
            each.state = "unsent"
        keys = {each.key for each in staying}
        self._unwritten |= keys
        await self._write()
        self._unwritten -= keys
        self.grown.set()

    async def remove(self, removed: Removed) -> None:
        insertion = self._insertions.get(removed.key)
        if insertion is None:
            return
        insertion.removed = True
        if insertion.state == "refused":  # nobody waits for it to go
            del self._insertions[removed.key]
        elif insertion.state == "unsent" and insertion.known_as is not None:
            insertion.state = "accepted"  # it was to be announced again
        await self._write()
        self.grown.set()

    async def settle(
        self, message: Message, *, accepted: bool, by: str | None = None, waits: bool = False
    ) -> None:
        """A server has taken the message, or will never take it.

        by: the execution that it was answered with, if that may be another message's: as its
        end tells, and as is known already of one that ``waits`` for it.
        """
        insertion = message.insertion
        if message.type == INSERTED:
            if not accepted:
                insertion.state = "refused"
            elif waits:
                insertion.state = "waiting"
                insertion.known_as = insertion.known_as or insertion.message_id
            else:
                insertion.state, insertion.known_as = "accepted", insertion.message_id
            if accepted and by is not None:
                self._others[insertion.message_id] = by
        if message.type == REMOVED or (insertion.removed and not accepted):
            self._insertions.pop(insertion.key, None)
            self._others.pop(insertion.message_id, None)
        await self._write()

    # -- the file --------------------------------------------------------------------

    def _read(self) -> dict[str, Insertion]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            stored = msgspec.json.decode(content, type=_Stored)
            for each in stored.insertions:
                if not isinstance(each.data["message_id"], str) or not isinstance(
                    each.data["sd_path"], str
                ):
                    raise ValueError("a message without message_id or sd_path")
        except (msgspec.DecodeError, KeyError, ValueError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{uuid.uuid4().hex[:8]}")
            os.replace(self.path, aside)
            log.error(
                "%s can't be understood (%s); it is kept as %s, and cards that are in are "
                "announced anew",
                self.path,
                error,
                aside.name,
            )
            return {}
        return {each.key: each for each in stored.insertions}

    async def _write(self) -> None:
        """Make it durable. A disk that is full must not keep a card from being announced."""
        async with self._writing:
            content = msgspec.json.encode(_Stored(1, list(self._insertions.values())))
            if content == self._written:  # whoever waited before us has written it
                return
            try:
                await asyncio.to_thread(self._replace, content)
            except OSError as error:
                if not self._failing:
                    log.error(
                        "%s can't be written: %s; what is unsent is lost if this ends",
                        self.path,
                        error,
                    )
                self._failing = True
            else:
                self._written, self._failing = content, False

    def _replace(self, content: bytes) -> None:
        beside = self.path.with_name(f"{self.path.name}.new")
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        with contextlib.suppress(OSError):  # Windows opens no folders
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _new_message_id() -> str:
    return f"detector:{uuid.uuid4()}"


def _locked(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
