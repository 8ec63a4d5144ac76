"""JSON at the borders of the engine: what comes in is checked, copied and bounded.

Triggers and step outputs are stored as JSON, merged and handed to others. What
is no JSON is refused where it comes in, with the name of what it was, and what
is accepted is a copy, so that nobody can change it afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from domain.errors import InvalidInput

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_values

MAX_OBJECT_BYTES = 1024 * 1024
"""Execution data tells steps what they need of each other; inventories belong in tables."""

MAX_DEPTH = 100
"""How many objects and lists may stand in each other: copying and comparing are recursive."""

MAX_EXACT = 2**53
"""Up to here a double holds every whole number."""


def json_object(value: object, what: str, *, limit_bytes: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """A copy of ``value`` as a JSON object.

    Raises ``InvalidInput``, naming ``what``, unless it is a mapping with text keys of
    what JSON (RFC 8259) knows, in valid Unicode, of at most ``limit_bytes``.
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
    if len(text) > limit_bytes:
        raise InvalidInput(
            f"{what} has {len(text)} bytes as JSON, more than {limit_bytes}", field=what
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


class Snapshot(dict[str, Any]):
    """A deep copy of a JSON object, made as far as somebody looks: value by value.

    Thousands of handlers may be given data that has the outputs of thousands, and read
    three names of it. Until it is looked at, a value is the original's own.
    """

    __slots__ = ("_shared",)

    def __init__(self, original: Mapping[str, Any]) -> None:
        super().__init__(original)
        self._shared = {
            name for name, value in original.items() if isinstance(value, Mapping | list | tuple)
        }

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name in self._shared:
            value = json_copy(value)
            self[name] = value
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._shared.discard(name)

    def __iter__(self) -> Iterator[str]:
        # There, so that ``{**data}`` and ``dict(data)`` come to ask for the values, too.
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        if name in self:
            self[name]
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        self._copy_all()
        return super().popitem()

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name in self:
            return self[name]
        return super().setdefault(name, default)

    def values(self) -> dict_values[str, Any]:
        self._copy_all()
        return super().values()

    def items(self) -> dict_items[str, Any]:
        self._copy_all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def _copy_all(self) -> None:
        for name in tuple(self._shared):
            self[name]


def contents_hash(*parts: object) -> str:
    """A fingerprint that is equal exactly for equal JSON, however its keys are ordered and
    its numbers written: one that went through gRPC comes as 3 where REST has 3.0."""
    text = json.dumps(_plain(parts), sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain_number(number: float) -> int | float:
    """A whole number as an integer, as long as doubles can tell it from its neighbours."""
    return int(number) if number.is_integer() and abs(number) <= MAX_EXACT else number


def _plain(value: Any) -> Any:
    """The same, with whole numbers as integers."""
    if isinstance(value, float):
        return plain_number(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


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
