"""JSON at the borders of the engine: what comes in is checked, copied and bounded.

Triggers and step outputs are stored as JSON, merged and handed to others. What
is no JSON is refused where it comes in, with the name of what it was, and what
is accepted is a copy, so that nobody can change it afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from domain.errors import InvalidInput

MAX_OBJECT_BYTES = 1024 * 1024
"""Execution data tells steps what they need of each other; inventories belong in tables."""

MAX_DEPTH = 100
"""How many objects and lists may stand in each other: copying and comparing are recursive."""


def json_object(value: object, what: str) -> dict[str, Any]:
    """A copy of ``value`` as a JSON object.

    Raises ``InvalidInput``, naming ``what``, unless it is a mapping with text keys of
    what JSON (RFC 8259) knows, in valid Unicode, of at most ``MAX_OBJECT_BYTES``.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{what} must be an object, not {_kind(value)}", field=what)
    if not value:
        return {}
    try:
        _check(value, what, MAX_DEPTH)
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} holds text that is not valid Unicode", field=what) from None
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} can't be written as JSON: {error}", field=what) from None
    if len(text) > MAX_OBJECT_BYTES:
        raise InvalidInput(
            f"{what} has {len(text)} bytes as JSON, more than {MAX_OBJECT_BYTES}", field=what
        )
    copied: dict[str, Any] = json.loads(text)
    return copied


def _check(value: Any, what: str, depth: int) -> None:
    """What ``json.dumps`` would let pass: it makes text of other keys, and knows no depth."""
    if isinstance(value, Mapping | list | tuple):
        if depth == 0:
            raise InvalidInput(f"{what} is nested too deeply (over {MAX_DEPTH})", field=what)
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise InvalidInput(f"{what} must have text keys", field=what)
            value = value.values()
        for each in value:
            _check(each, what, depth - 1)


def json_copy(value: Any) -> Any:
    """A deep copy of what is JSON already; a plain dict or list, whatever mapping it was."""
    if isinstance(value, Mapping):
        return {key: json_copy(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_copy(each) for each in value]
    return value


def contents_hash(*parts: object) -> str:
    """A fingerprint that is equal exactly for equal JSON, however its keys are ordered."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "a list"
    return type(value).__name__
