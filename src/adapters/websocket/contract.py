"""The contract of ``/ws`` as an AsyncAPI 3 document, made from the types that are sent."""

from __future__ import annotations

from typing import Any

import msgspec

from adapters.schemas import (
    EXAMPLE_AT,
    EXAMPLE_MESSAGE,
    EXAMPLE_UUID,
    components,
    event_examples,
    event_schemas,
)
from adapters.status_codes import INTERNAL, STATUS
from adapters.websocket.messages import (
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    Accepted,
    CardGone,
    CardInserted,
    CardRemoved,
    Refused,
    Reset,
    Said,
    Welcome,
)
from domain.events import timestamp

_PATH = "/media/A001"

HEARD: tuple[CardInserted | CardGone, ...] = (
    CardInserted(EXAMPLE_MESSAGE, _PATH),
    CardGone(_PATH, EXAMPLE_MESSAGE),
)
"""An example of everything that clients say."""

SAID: tuple[Said, ...] = (
    Welcome(1041),
    Reset(12, 1041, "event 12 is outside the log that is kept (events after 900 up to 1041)"),
    Accepted(EXAMPLE_MESSAGE, EXAMPLE_UUID, None),
    Refused(EXAMPLE_MESSAGE, "invalid_input", "sd_path is missing"),
    CardRemoved(EXAMPLE_MESSAGE, _PATH),
)
"""An example of everything that the hub says by itself."""

_ABOUT = f"""\
Everyone who is connected is told what happens to executions, in order, as JSON text.
Detectors announce cards, and are answered.

A message to the server may also name its type in `command`, and may have its fields
beside the type instead of under `data`. A bad one is answered with `error` and never closes
the connection; one over {MAX_MESSAGE_BYTES} bytes neither, one over {MAX_FRAME_BYTES} closes
it with 1009.

Once the server has tokens, who connects shows one (`Authorization: Bearer`); a browser, which
can't, has a ticket in the address (`POST /api/tickets`). What a client may say is what its role
may: the others are answered with `not_permitted`. It is closed with 1008 when its token is
revoked or expires.

Who reconnects with `since`, the `id` of the last event that it has seen, misses nothing and
sees nothing twice. A client that doesn't take what it is sent is closed with 1013, and comes
back with `since`. More kinds of messages, and more fields, may come in later versions: what
you don't know, pass over.
"""


def asyncapi(version: str) -> dict[str, Any]:
    """``version``: of the server."""
    schemas = components([type(each) for each in (*HEARD, *SAID)])
    codes = sorted({status.code for status in (*STATUS.values(), INTERNAL)})
    schemas["Refused"]["properties"]["code"]["examples"] = codes
    heard = {
        type(each).__name__: _message(
            type(each).type,
            _envelope(type(each).type, type(each).__name__),
            schemas[type(each).__name__].get("description", ""),
            {"type": type(each).type, "data": msgspec.to_builtins(each)},
        )
        for each in HEARD
    }
    said = {
        type(each).__name__: _message(
            type(each).type,
            _envelope(type(each).type, type(each).__name__, stamped=True),
            schemas[type(each).__name__].get("description", ""),
            {
                "type": each.type,
                "timestamp": timestamp(EXAMPLE_AT),
                "data": msgspec.to_builtins(each),
            },
        )
        for each in SAID
    }
    examples = event_examples()
    for name, schema in event_schemas().items():
        word = schema["properties"]["type"].get("const", "a step's own word")
        description = schema.pop("description", "")
        said[name] = _message(word, schema, description, examples[name])
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Rushes over WebSocket", "version": version, "description": _ABOUT},
        "defaultContentType": "application/json",
        "channels": {
            "ws": {
                "address": "/ws",
                "title": "Everything that happens",
                "messages": {
                    name: {"$ref": f"#/components/messages/{name}"} for name in (*heard, *said)
                },
                "bindings": {
                    "ws": {
                        "method": "GET",
                        "query": {
                            "type": "object",
                            "properties": {
                                "client_type": {
                                    "type": "string",
                                    "enum": ["frontend", "detector"],
                                    "default": "frontend",
                                    "description": "what this client may say",
                                },
                                "ticket": {
                                    "type": "string",
                                    "description": "in place of a token, for a browser; good once",
                                },
                                "since": {
                                    "type": "integer",
                                    "minimum": 0,
                                    "description": "an event's id: what came after it is told "
                                    "first; without it, what happens from now on",
                                },
                            },
                        },
                    }
                },
            }
        },
        # As the server sees it: what it receives, and what it sends.
        "operations": {
            "hear": _operation("receive", "What detectors say", heard),
            "tell": _operation("send", "What clients are told", said),
        },
        "components": {"messages": {**heard, **said}, "schemas": schemas},
    }


def _operation(action: str, title: str, messages: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": action,
        "title": title,
        "channel": {"$ref": "#/channels/ws"},
        "messages": [{"$ref": f"#/channels/ws/messages/{name}"} for name in messages],
    }


def _message(
    word: str, payload: dict[str, Any], description: str, example: dict[str, Any]
) -> dict[str, Any]:
    told = {"name": word, "title": word, "payload": payload, "examples": [{"payload": example}]}
    return {**told, "description": description} if description else told


def _envelope(word: str, name: str, *, stamped: bool = False) -> dict[str, Any]:
    time: dict[str, Any] = {"timestamp": {"type": "string", "format": "date-time"}}
    return {
        "type": "object",
        "properties": {
            "type": {"const": word},
            **(time if stamped else {}),
            "data": {"$ref": f"#/components/schemas/{name}"},
        },
        "required": ["type", *(time if stamped else {}), "data"],
    }
