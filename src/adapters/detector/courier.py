"""Carries messages from the outbox to a server, over one WebSocket and as many lost ones.

One message is under way at a time and is answered before the next is sent, so an answer
always has its question. A server that says no for good is believed and its words are
shown; one that says "not now" is asked again. Anything else (a lost connection, no
answer) means the same message once more.

Ends of executions are heard all the time and acted on between two messages: then it is
known which execution each message has, in whatever order a server tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from adapters.detector.outbox import INSERTED, REMOVED, Message, Outbox
from domain.footage import shown

log = logging.getLogger(__name__)

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Between attempts to reach the server; the last one from then on. A local server starts in one."""

STEADY_S = 5.0
"""A connection that has held for so long was a good one: after it the pauses begin anew."""

AGAIN_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Before a message that a server couldn't take just now is offered again."""

OPEN_S = 10.0
"""For a server to take a connection and say its welcome."""

ANSWER_S = 30.0
"""For an answer; a server that takes longer is asked again over a new connection."""

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Of what a server tells everybody; the list of a long pipeline's steps is the longest."""

MAX_SHOWN = 1_000
"""Characters of what a server says that the user is shown."""

MAX_EXPECTED = 1_000
"""Executions whose end is waited for, to be told to the user; some ends are never heard."""

REFUSED_FOR_GOOD = frozenset({"invalid_input", "invalid_path", "message_conflict"})
"""What is wrong with the message itself. Anything else can be put right at the server."""

ENDS = {
    "pipeline:completed": "completed",
    "pipeline:failed": "failed",
    "pipeline:cancelled": "cancelled",
}


Headers = Callable[[], Mapping[str, str]]


class _Lost(Exception):
    """The connection is of no use any more, and why."""


class _ShutOut(_Lost):
    """It is there, and doesn't let us in: told also to who was told that it was lost."""


class Courier:
    """``say`` is given a line for everything that the user wants to know.

    ``trust``: for a URL that says ``wss``, whose certificates are good.
    ``headers``: makes what is shown, to be let in; asked for every connection anew.
    """

    def __init__(
        self,
        url: str,
        outbox: Outbox,
        say: Callable[[str], None],
        *,
        trust: ssl.SSLContext | None = None,
        headers: Headers = dict,
    ) -> None:
        self._url = url
        self._headers = headers
        self._trust = trust
        self._outbox = outbox
        self._say = say
        self._question: str | None = None
        self._answer: asyncio.Future[tuple[str, Mapping[str, Any]]] | None = None
        self._put_off: dict[tuple[str, str], tuple[int, float]] = {}
        self._expected: dict[str, str] = {}
        self._ends: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._told: set[type[Exception]] = set()
        self.offline: str | None = "it has not been reached yet"
        self.refused = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        lost = 0
        while True:
            began = loop.time()
            try:
                await self._connected()
            except* _Lost as group:
                self._went_offline(group.exceptions[0])
            if loop.time() - began > STEADY_S:
                lost = 0
            pause_s = PAUSES_S[min(lost, len(PAUSES_S) - 1)]
            lost += 1
            # A little apart from other detectors that lost the same server.
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secrets

    async def _connected(self) -> None:
        """One connection, to its end. Raises a group of ``_Lost``."""
        headers = self._headers()
        try:
            socket = await connect(
                f"{self._url}?client_type=detector",
                open_timeout=OPEN_S,
                close_timeout=1,
                max_size=MAX_EVENT_BYTES,
                compression=None,
                additional_headers=headers,
                ssl=self._trust,
                proxy=None,  # the server is near; what the environment says is for the web
            )
        except InvalidStatus as error:
            raise ExceptionGroup("", [_shut_out(error, headers)]) from None
        except (OSError, WebSocketException, UnicodeError) as error:  # of a name that is none
            raise ExceptionGroup("", [_Lost(_reason(error))]) from None
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(socket.close)
            async with asyncio.TaskGroup() as tasks:
                welcomed = asyncio.Event()
                tasks.create_task(self._listen(socket, welcomed))
                tasks.create_task(self._send(socket, welcomed))

    # -- in ----------------------------------------------------------------------------

    async def _listen(self, socket: ClientConnection, welcomed: asyncio.Event) -> None:
        try:
            async for frame in socket:
                self._hear(frame, welcomed)
        except ConnectionClosed as error:
            raise _Lost(_reason(error)) from None
        raise _Lost("it has closed the connection")

    def _hear(self, frame: str | bytes, welcomed: asyncio.Event) -> None:
        try:
            message = msgspec.json.decode(frame)
            kind, data = message["type"], message["data"]
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
            return
        if not isinstance(kind, str) or not isinstance(data, dict):
            return
        if kind == "hub:welcome":
            welcomed.set()
        elif kind in ("detector:accepted", "error"):
            # What can't be read is answered without a name; there is only one it can be.
            asked = self._answer is not None and not self._answer.done()
            if asked and data.get("message_id") in (self._question, None):
                assert self._answer is not None
                self._answer.set_result((kind, data))
        elif kind in ENDS:
            self._ends.append((ENDS[kind], data))
            self._outbox.grown.set()

    # -- out ---------------------------------------------------------------------------

    async def _send(self, socket: ClientConnection, welcomed: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(OPEN_S):
                await welcomed.wait()
        except TimeoutError:
            raise _Lost("what answers there is no Rushes server") from None
        self._say(f"connected to {self._url}")
        self.offline = None
        self._told.clear()
        for insertion in await self._outbox.missed_ends():
            self._say(f"{_shown(insertion.sd_path)}: announced again")
        while True:
            self._outbox.grown.clear()
            while self._ends:
                await self._ended(*self._ends.popleft())
            waiting = self._outbox.unsent()
            ready = [m for m in waiting if self._offered_at(m) <= loop.time()]
            if not ready:
                next_at = min(map(self._offered_at, waiting), default=None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(next_at):
                        await self._outbox.grown.wait()
                continue
            await self._settle(ready[0], *await self._ask(socket, ready[0]))

    async def _ask(
        self, socket: ClientConnection, message: Message
    ) -> tuple[str, Mapping[str, Any]]:
        self._question = message.message_id
        if message.type == INSERTED:
            # From now on: a small card may be through before we hear that it was accepted.
            self._expect(message.message_id, _shown(message.insertion.sd_path))
        self._answer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_S):
                await socket.send(message.encode())
                return await self._answer
        except ConnectionClosed as error:
            raise _Lost(_reason(error)) from None
        except TimeoutError:
            raise _Lost(f"it gave no answer within {ANSWER_S:g} seconds") from None
        finally:
            self._question = self._answer = None

    async def _settle(self, message: Message, kind: str, data: Mapping[str, Any]) -> None:
        name = _shown(message.insertion.sd_path)
        code, why = _shown(str(data.get("code"))), _shown(str(data.get("message")))
        accepted, by, duplicate = kind == "detector:accepted", None, data.get("duplicate")
        if message.type == REMOVED:
            if not accepted:
                # Only news for those who look: a server that doesn't know it misses nothing.
                log.info("%s: the server takes no word of its removal: %s", name, why)
        elif accepted:
            execution = str(data.get("execution_id"))
            if duplicate is not None:  # maybe another message's
                by = execution
                self._expect(execution, name)
            self._say(f"{name}: accepted, execution {_shown(execution)}{_duplicate(data)}")
        elif code in REFUSED_FOR_GOOD:
            self.refused += 1
            log.error("%s: REFUSED, this card is NOT copied: %s (%s)", name, why, code)
        else:
            self._put_it_off(message, f"{name}: the server doesn't take it now: {why} ({code})")
            return
        self._put_off.pop(_which(message), None)
        await self._outbox.settle(message, accepted=accepted, by=by, waits=duplicate == "card")
        is_known = message.type == INSERTED and accepted and duplicate == "message"
        if is_known and self._outbox.may_be_over(message.insertion):
            # Nobody would hear how it ended: only a new message finds out.
            await self._outbox.announce_again([message.insertion])
            self._put_off[_which(message)] = (0, asyncio.get_running_loop().time() + AGAIN_S[0])

    async def _ended(self, how: str, data: Mapping[str, Any]) -> None:
        """An execution has ended, whoever began it."""
        execution, message_id = str(data.get("execution_id")), data.get("message_id")
        again = await self._outbox.ended(
            execution,
            message_id if isinstance(message_id, str) else None,
            completed=how == "completed",
        )
        names = (message_id, execution)
        cards = [self._expected.pop(name, None) for name in names if isinstance(name, str)]
        for card in dict.fromkeys(filter(None, cards)):
            self._say(f"{card}: {how}{_why(data)}")
        for insertion in again:
            name = _shown(insertion.sd_path)
            self._say(f"{name}: announced again, now that execution {_shown(execution)} has ended")

    def _put_it_off(self, message: Message, why: str) -> None:
        times, _ = self._put_off.get(_which(message), (0, 0.0))
        pause_s = AGAIN_S[min(times, len(AGAIN_S) - 1)]
        at = asyncio.get_running_loop().time() + pause_s
        self._put_off[_which(message)] = (times + 1, at)
        if not times:
            log.warning("%s; asking again", why)

    def _offered_at(self, message: Message) -> float:
        return self._put_off.get(_which(message), (0, 0.0))[1]

    def _expect(self, name: str, card: str) -> None:
        """Its end, under the name of a message or of an execution."""
        if len(self._expected) >= MAX_EXPECTED:
            del self._expected[next(iter(self._expected))]
        self._expected[name] = card

    def _went_offline(self, lost: Exception) -> None:
        why = self.offline = str(lost)
        if type(lost) not in self._told:
            self._told.add(type(lost))
            log.warning("no connection to %s: %s; what it is to know is kept", self._url, why)


def _which(message: Message) -> tuple[str, str]:
    return message.type, message.message_id


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionClosed) and error.rcvd is not None:
        return f"it has closed the connection ({error.rcvd.code} {_shown(error.rcvd.reason)})"
    if isinstance(error, TimeoutError):
        return "it doesn't answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate isn't trusted here ({error.verify_message}); RUSHES_TLS_CA names "
            "the authority that is"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _shown(str(error)) or type(error).__name__


def _shut_out(error: InvalidStatus, headers: Mapping[str, str]) -> _Lost:
    status = error.response.status_code
    if status == HTTPStatus.UNAUTHORIZED:
        fault = "not good there" if headers else "not set"
        return _ShutOut(f"it takes a token, and RUSHES_TOKEN is {fault}")
    if status == HTTPStatus.FORBIDDEN:
        why = _detail(error.response.body)
        return _ShutOut(f"it refuses what RUSHES_TOKEN or the address says{why}")
    return _Lost(_reason(error))


def _detail(body: bytes | bytearray) -> str:
    try:
        return f": {_shown(str(msgspec.json.decode(body)['detail']))}"
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
        return ""


def _duplicate(data: Mapping[str, Any]) -> str:
    match data.get("duplicate"):
        case "message":
            return " (it knew the message already)"
        case "card":
            return " (which was at work on this card already)"
        case _:
            return ""


def _why(data: Mapping[str, Any]) -> str:
    error = data.get("error")
    if isinstance(error, dict):
        return f": {_shown(str(error.get('message')))}"
    warnings = data.get("warnings")
    return f", {len(warnings)} warnings" if isinstance(warnings, list) and warnings else ""


def _shown(text: str) -> str:
    return shown(text[:MAX_SHOWN].encode("utf-8", "surrogatepass"))
