"""The hub at ``/ws``: facts go out to everybody, detectors' signals come in.

A client that is up to date walks along with all others (``broadcast.py``); one that has
to catch up has a task of its own for as long. Neither waits for what the client says,
and a connection that doesn't take what it is sent is let go (1013) to come back with
``since``: it holds up nobody and nothing is kept for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from adapters.audit import Audit
from adapters.scope import address_of, principal_of
from adapters.status_codes import INTERNAL, status_of
from adapters.websocket.broadcast import Broadcast, Follower, encode, encode_frame
from adapters.websocket.frames import FrameWriter, frame_writer, text_frame
from adapters.websocket.messages import (
    INSERTED,
    MAX_PATH,
    REMOVED,
    Accepted,
    CardRemoved,
    Incoming,
    Refused,
    Reset,
    Said,
    Welcome,
    claimed_message_id,
    parse,
)
from application.access import Access
from application.feed import Feed
from application.ports import Clock
from application.trigger import CARD_PATH, Trigger, check_message_id
from domain.access import Permission, Principal
from domain.errors import FactsGone, Forbidden, InvalidInput, RushesError
from domain.events import timestamp
from domain.footage import shown

log = logging.getLogger(__name__)

CLIENT_TYPES = ("frontend", "detector")

MAX_LAG_S = 5.0
"""How old a message may get before its follower counts as one that doesn't read."""

FRESH_S = 1.0
"""A follower that is sent something younger than this has caught up."""

TOO_SLOW = "too slow; reconnect with since"

TRY_AGAIN_LATER = 1013
GOING_AWAY = 1001
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011


class Hub:
    """``card_pipeline``: the type of pipeline that an inserted card starts."""

    def __init__(
        self,
        *,
        feed: Feed,
        trigger: Trigger,
        clock: Clock,
        access: Access,
        audit: Audit,
        card_pipeline: str,
    ) -> None:
        self._access = access
        self._audit = audit
        self._feed = feed
        self._trigger = trigger
        self._clock = clock
        self._card_pipeline = card_pipeline
        self._welcomed: set[_Connection] = set()
        self._broadcast = Broadcast(feed, self._fallen_behind)

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        connection = _Connection(websocket, self._clock)
        try:
            client_type = _client_type(websocket.query_params.get("client_type"))
            since = _since(websocket.query_params.get("since"))
        except InvalidInput as error:
            with contextlib.suppress(_Gone):
                await connection.send(_refused(error, None))
                await connection.close(POLICY_VIOLATION, error.message)
            return
        speaker = _Speaker(client_type, principal_of(websocket.scope), address_of(websocket.scope))
        over = self._access.over(speaker.principal)
        over.add_done_callback(lambda over: None if over.cancelled() else connection.end())
        try:
            await self._welcome(connection, since)
            await self._receive(connection, speaker)
        except _Gone:
            pass
        except asyncio.CancelledError:
            if not connection.ended:
                raise
        except Exception:
            log.exception("a WebSocket connection broke")
        finally:
            self._welcomed.discard(connection)
            self._broadcast.leave(connection)
            await connection.stop()
            if not over.cancel():
                await connection.close(POLICY_VIOLATION, "what was shown here is good no more")

    # -- out ---------------------------------------------------------------------

    async def _welcome(self, connection: _Connection, since: int | None) -> None:
        last, end = self._feed.last_id, self._feed.end
        await connection.send(Welcome(last))
        self._welcomed.add(connection)
        if since is None or since == last:
            connection.since, connection.position, connection.caught_up = last, end, True
            self._take_along(connection)
        else:
            connection.since = since
            connection.catch_up(self._catch_up(connection))

    def _take_along(self, connection: _Connection) -> None:
        if not self._joined(connection):
            connection.catch_up(self._catch_up(connection))

    def _joined(self, connection: _Connection) -> bool:
        return connection.takes_frames and self._broadcast.join(connection)

    def _fallen_behind(self, follower: Follower) -> None:
        assert isinstance(follower, _Connection)
        follower.catch_up(self._catch_up(follower))

    async def _catch_up(self, connection: _Connection) -> None:
        """Send it what it is behind by, until it walks along with the others."""
        try:
            while True:
                try:
                    if not await self._follow(connection):
                        await connection.close(GOING_AWAY, "the server is stopping")
                        connection.end()
                    return
                except FactsGone as error:
                    last, end = self._feed.last_id, self._feed.end
                    await connection.send(Reset(error.since, last, error.message))
                    connection.since, connection.position = last, end
        except _Gone:
            connection.end()
        except Exception:
            log.exception("a WebSocket connection broke")
            await connection.close(INTERNAL_ERROR, "internal error")
            connection.end()

    async def _follow(self, connection: _Connection) -> bool:
        """Whether it has caught up with the others; if not, the feed is at its end."""
        since, position = connection.since, connection.position
        async with contextlib.aclosing(
            self._feed.follow(since, position=None if position < 0 else position)
        ) as entries:
            async for entry in entries:
                now = self._clock.monotonic()
                age_s = 0.0 if entry.published_at is None else now - entry.published_at
                # Who comes back after a while begins with old messages; only who has been
                # up to date and fallen behind since then is slow.
                if connection.caught_up and age_s > MAX_LAG_S:
                    await connection.let_go()
                    raise _Gone
                if entry.published_at is not None and age_s < FRESH_S:
                    connection.caught_up = True
                if connection.takes_frames:
                    await connection.send_frame(entry.encoded(encode_frame))
                else:
                    await connection.send_text(entry.encoded(encode))
                connection.since = entry.message.id or connection.since
                if entry.position is not None:
                    connection.position = entry.position + 1
                    if self._joined(connection):
                        return True
        return False

    # -- in ----------------------------------------------------------------------

    async def _receive(self, connection: _Connection, speaker: _Speaker) -> None:
        while True:
            text = await connection.receive()
            await connection.send(await self._answer(text, speaker))

    async def _answer(self, text: str | None, speaker: _Speaker) -> Said:
        message = message_id = None
        said: Said
        try:
            if text is None:
                raise InvalidInput("messages are text, and this one was binary")
            message_id = claimed_message_id(text)
            message = parse(text)
            said = await self._handle(message, speaker)
        except RushesError as error:
            said = _refused(error, message_id)
        except Exception:
            log.exception("a message could not be handled")
            said = Refused(message_id, INTERNAL.code, "internal error")
        if message is not None and message.type in (INSERTED, REMOVED):
            self._audit.note(
                speaker.principal,
                speaker.where,
                message.type,
                said.code if isinstance(said, Refused) else "accepted",
                refused=isinstance(said, Refused),
                execution=said.execution_id if isinstance(said, Accepted) else None,
            )
        return said

    async def _handle(self, message: Incoming, speaker: _Speaker) -> Said:
        if message.type not in (INSERTED, REMOVED):
            raise InvalidInput(
                f"there is no message of type {message.type!r}; detectors say "
                f"{INSERTED} and {REMOVED}",
                field="type",
            )
        speaker.principal.check(Permission.ANNOUNCE)
        if speaker.client_type != "detector":
            raise Forbidden(
                f"a {speaker.client_type} can't announce cards: connect with client_type=detector"
            )
        if message.type == REMOVED:
            return await self._removed(message)
        if message.message_id is None:
            raise InvalidInput("message_id is missing", field="message_id")
        if CARD_PATH not in message.fields:
            raise InvalidInput(f"{CARD_PATH} is missing", field=CARD_PATH)
        answer = await self._trigger(
            self._card_pipeline, message.fields, message_id=message.message_id
        )
        return Accepted(
            check_message_id(message.message_id), answer.execution.execution_id, answer.duplicate
        )

    async def _removed(self, message: Incoming) -> Said:
        """Tell everybody who is there now. It changes no execution, so nothing remembers it."""
        message_id = None if message.message_id is None else check_message_id(message.message_id)
        path = message.fields.get(CARD_PATH)
        if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH:
            raise InvalidInput(
                f"{CARD_PATH} must be text of 1 to {MAX_PATH} characters", field=CARD_PATH
            )
        removed = CardRemoved(message_id, shown(path.encode()))
        await asyncio.gather(
            *(connection.send(removed) for connection in tuple(self._welcomed)),
            return_exceptions=True,  # who doesn't take it has gone, or is let go
        )
        return Accepted(message_id, None, None)


@dataclass(frozen=True, slots=True)
class _Speaker:
    """Who says something. client_type: what it claims to be."""

    client_type: str
    principal: Principal
    where: str


class _Gone(Exception):
    """The other side has left, or doesn't take what it is sent."""


class _Connection:
    """One client's socket: one frame at a time, and never waited for longer than bearable.

    since, position: the newest fact that it was sent, and what is next in the feed's tail
    (below zero: not known). caught_up: whether it has ever been up to date. ended: it was
    let go or closed from here, and its task with it.
    """

    def __init__(self, websocket: WebSocket, clock: Clock) -> None:
        self._websocket = websocket
        self._clock = clock
        self._sending = asyncio.Lock()
        self._frames = frame_writer(websocket.scope)
        self._serving = asyncio.current_task()
        self._catching_up: asyncio.Task[None] | None = None
        self.since = 0
        self.position = -1
        self.caught_up = False
        self.ended = False

    @property
    def takes_frames(self) -> bool:
        return self._frames is not None

    @property
    def frames(self) -> FrameWriter:
        assert self._frames is not None
        return self._frames

    def catch_up(self, work: Coroutine[None, None, None]) -> None:
        self._catching_up = asyncio.create_task(work)

    def end(self) -> None:
        """The task that serves it ends, whatever it waits for."""
        if self._serving is not None and not self.ended:
            self.ended = True
            self._serving.cancel()

    async def stop(self) -> None:
        """Its task is about to end by itself."""
        serving, self._serving = self._serving, None
        if self.ended and serving is not None:
            serving.uncancel()
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.gather(self._catching_up, return_exceptions=True)

    async def send(self, said: Said) -> None:
        message = {"type": said.type, "timestamp": timestamp(self._clock.now()), "data": said}
        text = msgspec.json.encode(message)
        if self._frames is None:
            await self.send_text(text.decode())
        else:
            await self.send_frame(text_frame(text))

    async def send_frame(self, frame: bytes) -> None:
        if self.frames.write(frame):
            return
        try:
            async with asyncio.timeout(MAX_LAG_S):
                while not self.frames.write(frame):
                    await self.frames.drain()
        except TimeoutError:
            await self.let_go()
            raise _Gone from None
        except OSError:
            raise _Gone from None

    async def send_text(self, text: str) -> None:
        try:
            async with asyncio.timeout(MAX_LAG_S), self._sending:
                await self._websocket.send_text(text)
        except TimeoutError:
            await self.let_go()
            raise _Gone from None
        except (WebSocketDisconnect, RuntimeError, OSError):
            raise _Gone from None

    async def let_go(self) -> None:
        """It doesn't read, so a close that waits for room would wait for ever."""
        if self._frames is None:
            await self.close(TRY_AGAIN_LATER, TOO_SLOW)
        else:
            self._frames.let_go(TRY_AGAIN_LATER, TOO_SLOW)

    async def receive(self) -> str | None:
        """The next text, or None for a binary message."""
        try:
            message = await self._websocket.receive()
        except RuntimeError:
            raise _Gone from None
        if message["type"] == "websocket.disconnect":
            raise _Gone
        return message.get("text")

    async def close(self, code: int, reason: str) -> None:
        if self._websocket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._websocket.close(code, reason[:120])


def _client_type(claimed: str | None) -> str:
    if claimed is None:
        return "frontend"
    if claimed not in CLIENT_TYPES:
        raise InvalidInput(
            f"client_type must be {' or '.join(CLIENT_TYPES)}, not {claimed!a}", field="client_type"
        )
    return claimed


def _since(claimed: str | None) -> int | None:
    if claimed is None or claimed == "":
        return None
    if not (claimed.isascii() and claimed.isdigit() and len(claimed) < 20):
        raise InvalidInput(f"since must be an event id, not {claimed!a}", field="since")
    return int(claimed)


def _refused(error: RushesError, message_id: str | None) -> Refused:
    return Refused(message_id, status_of(error).code, error.message)
