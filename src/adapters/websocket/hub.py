"""The hub at ``/ws``: facts go out to everybody, detectors' signals come in.

A connection is two tasks: one walks the feed and sends, one receives and
answers. Neither waits for the other, and a connection that doesn't take what it
is sent is let go (1013) to come back with ``since``: it holds up nobody and
nothing is kept for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from adapters.status_codes import INTERNAL, status_of
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
from application.feed import Feed, Message
from application.ports import Clock
from application.trigger import CARD_PATH, Trigger, check_message_id
from application.views import message_view
from domain.errors import FactsGone, Forbidden, InvalidInput, RushesError
from domain.events import timestamp
from domain.footage import shown

log = logging.getLogger(__name__)

CLIENT_TYPES = ("frontend", "detector")

MAX_LAG_S = 5.0
"""How old a message may get before its follower counts as one that doesn't read."""

FRESH_S = 1.0
"""A follower that is sent something younger than this has caught up."""

TRY_AGAIN_LATER = 1013
GOING_AWAY = 1001
POLICY_VIOLATION = 1008


class Hub:
    """``card_pipeline``: the type of pipeline that an inserted card starts."""

    def __init__(self, *, feed: Feed, trigger: Trigger, clock: Clock, card_pipeline: str) -> None:
        self._feed = feed
        self._trigger = trigger
        self._clock = clock
        self._card_pipeline = card_pipeline
        self._welcomed: set[_Connection] = set()

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
        sending = asyncio.create_task(self._send(connection, since))
        receiving = asyncio.create_task(self._receive(connection, client_type))
        try:
            done, _ = await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._welcomed.discard(connection)
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
        for task in done:
            broken = task.exception()
            if broken is not None and not isinstance(broken, _Gone):
                log.error("a WebSocket connection broke", exc_info=broken)

    # -- out ---------------------------------------------------------------------

    async def _send(self, connection: _Connection, since: int | None) -> None:
        last = self._feed.last_id
        await connection.send(Welcome(last))
        self._welcomed.add(connection)
        start = last if since is None else since
        while True:
            try:
                await self._follow(connection, start)
                return
            except FactsGone as error:
                start = self._feed.last_id
                await connection.send(Reset(error.since, start, error.message))

    async def _follow(self, connection: _Connection, since: int) -> None:
        caught_up = False
        async with contextlib.aclosing(self._feed.follow(since)) as entries:
            async for entry in entries:
                now = self._clock.monotonic()
                age_s = 0.0 if entry.published_at is None else now - entry.published_at
                # Who comes back after a while begins with old messages; only who has been
                # up to date and fallen behind since then is slow.
                if caught_up and age_s > MAX_LAG_S:
                    await connection.close(TRY_AGAIN_LATER, "too slow; reconnect with since")
                    return
                caught_up = caught_up or (entry.published_at is not None and age_s < FRESH_S)
                await connection.send_text(entry.encoded(encode))
        await connection.close(GOING_AWAY, "the server is stopping")

    # -- in ----------------------------------------------------------------------

    async def _receive(self, connection: _Connection, client_type: str) -> None:
        while True:
            text = await connection.receive()
            await connection.send(await self._answer(text, client_type))

    async def _answer(self, text: str | None, client_type: str) -> Said:
        message_id = None
        try:
            if text is None:
                raise InvalidInput("messages are text, and this one was binary")
            message_id = claimed_message_id(text)
            return await self._handle(parse(text), client_type)
        except RushesError as error:
            return _refused(error, message_id)
        except Exception:
            log.exception("a message could not be handled")
            return Refused(message_id, INTERNAL.code, "internal error")

    async def _handle(self, message: Incoming, client_type: str) -> Said:
        if message.type not in (INSERTED, REMOVED):
            raise InvalidInput(
                f"there is no message of type {message.type!r}; detectors say "
                f"{INSERTED} and {REMOVED}",
                field="type",
            )
        if client_type != "detector":
            raise Forbidden(
                f"a {client_type} can't announce cards: connect with client_type=detector"
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


class _Gone(Exception):
    """The other side has left, or doesn't take what it is sent."""


class _Connection:
    """One client's socket: one frame at a time, and never waited for longer than bearable."""

    def __init__(self, websocket: WebSocket, clock: Clock) -> None:
        self._websocket = websocket
        self._clock = clock
        self._sending = asyncio.Lock()

    async def send(self, said: Said) -> None:
        message = {"type": said.type, "timestamp": timestamp(self._clock.now()), "data": said}
        await self.send_text(msgspec.json.encode(message).decode())

    async def send_text(self, text: str) -> None:
        try:
            async with asyncio.timeout(MAX_LAG_S), self._sending:
                await self._websocket.send_text(text)
        except TimeoutError:
            await self.close(TRY_AGAIN_LATER, "too slow; reconnect with since")
            raise _Gone from None
        except (WebSocketDisconnect, RuntimeError, OSError):
            raise _Gone from None

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


def encode(message: Message) -> str:
    return msgspec.json.encode(message_view(message)).decode()


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
