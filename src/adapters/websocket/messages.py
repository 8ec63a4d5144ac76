"""What clients say on the WebSocket, normalised once.

A message is a JSON object with ``type`` (or ``command``), and its fields under
``data`` or beside it. From here on there is one form: a type, a message_id if
there is one, and the other fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from domain.errors import InvalidInput

MAX_MESSAGE_BYTES = 64 * 1024
"""What anybody has to say fits; more is answered with an error."""

MAX_FRAME_BYTES = 1024 * 1024
"""Beyond this the transport itself closes the connection (1009)."""


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
