"""What is said on the WebSocket: by clients, normalised once, and by the hub.

A client's message is a JSON object with ``type`` (or ``command``), and its fields under
``data`` or beside it. From here on there is one form: a type, a message_id if
there is one, and the other fields.

What the hub says by itself, beside what it tells of executions, is a class here. The
contract (``contract.py``) is made from them: of a class's docstring, and of what stands
behind a field's name in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from application.trigger import MAX_MESSAGE_ID
from domain.errors import InvalidInput

INSERTED = "detector:sd_inserted"
REMOVED = "detector:sd_removed"

MAX_PATH = 4_096
"""Characters of a path that everybody is told."""

MAX_MESSAGE_BYTES = 64 * 1024
"""What anybody has to say fits; more is answered with an error."""

MAX_FRAME_BYTES = 1024 * 1024
"""Beyond this the transport itself closes the connection (1009)."""


MessageId = Annotated[str, Meta(min_length=1, max_length=MAX_MESSAGE_ID)]


class CardInserted(msgspec.Struct, frozen=True):
    """A card is there, and is to be taken in. Further fields go into the execution's data.

    message_id: the detector's own; the same one again is answered with the same execution.
        No character in it may be invisible.
    sd_path: where the card is, below one of the server's card roots.
    """

    type: ClassVar[str] = INSERTED
    message_id: MessageId
    sd_path: str


class CardGone(msgspec.Struct, frozen=True):
    """A card was taken out. Everybody who is connected is told; it changes no execution."""

    type: ClassVar[str] = REMOVED
    sd_path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
    message_id: MessageId | None = None


class Said(msgspec.Struct, frozen=True):
    """The ``data`` of a message from the hub itself."""

    type: ClassVar[str]


class Welcome(Said, frozen=True):
    """The first message of every connection.

    last_event_id: the newest event that there is; what follows is newer.
    """

    type: ClassVar[str] = "hub:welcome"
    last_event_id: int


class Reset(Said, frozen=True):
    """What came after `since` isn't kept: read the state anew, and go on from here.

    last_event_id: the newest event that there is; what follows is newer.
    """

    type: ClassVar[str] = "hub:reset"
    since: int
    last_event_id: int
    message: str


class Accepted(Said, frozen=True):
    """The answer to a detector.

    execution_id: what works on the card; null where a card was taken out.
    duplicate: `message` if this message_id was known, `card` if the card is under way
        already; null otherwise.
    """

    type: ClassVar[str] = "detector:accepted"
    message_id: str | None
    execution_id: str | None
    duplicate: Literal["message", "card"] | None


class Refused(Said, frozen=True):
    """A message that could not be served. The connection stays.

    message_id: the refused message's, if that much of it can be read.
    code: the word for programs; it never changes.
    message: the sentence for people.
    """

    type: ClassVar[str] = "error"
    message_id: str | None
    code: str
    message: str


class CardRemoved(Said, frozen=True):
    """A detector has noticed that a card is gone.

    message_id: the detector's, if it gave one.
    """

    type: ClassVar[str] = "card:removed"
    message_id: str | None
    sd_path: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """message_id: as it came, checked by nobody yet; None if there was none."""

    type: str
    message_id: object
    fields: dict[str, Any]


def parse(text: str) -> Incoming:
    """Raises ``InvalidInput`` for what is no message of ours."""
    size = len(text.encode())
    if size > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"the message has {size} bytes, more than {MAX_MESSAGE_BYTES}")
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"the message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidInput("the message must be a JSON object with a type")
    kind = message.get("type")
    if kind is None:
        kind = message.get("command")
    if kind is None:
        raise InvalidInput("the message has no type", field="type")
    if not isinstance(kind, str):
        raise InvalidInput("type must be text", field="type")
    nested = message.get("data", {})
    if not isinstance(nested, dict):
        raise InvalidInput("data must be an object", field="data")
    fields = {k: v for k, v in message.items() if k not in ("type", "command", "data")} | nested
    return Incoming(kind, fields.pop("message_id", None), fields)


def claimed_message_id(text: str) -> str | None:
    """What a refused message called itself, if that much can be read, for the answer."""
    try:
        message = msgspec.json.decode(text[:MAX_FRAME_BYTES])
    except (msgspec.DecodeError, RecursionError):
        return None
    for holder in (message.get("data") if isinstance(message, dict) else None, message):
        if isinstance(holder, dict) and isinstance(holder.get("message_id"), str):
            claimed: str = holder["message_id"]
            return claimed[:200]
    return None
