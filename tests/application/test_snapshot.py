"""What a handler is given: its own, though it is copied only as far as somebody looks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from application.json_values import Snapshot

DATA = {"number": 1, "list": [{"a": 1}], "object": {"b": {"c": 2}}, "null": None}

READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "item": lambda data: {name: data[name] for name in data},
    "get": lambda data: {name: data.get(name) for name in data.keys()},  # noqa: SIM118
    "items": lambda data: {name: value for name, value in data.items()},  # noqa: C416
    "values": lambda data: dict(zip(data, data.values(), strict=True)),
    "dict": dict,
    "unpacked": lambda data: {**data},
    "as arguments": lambda data: (lambda **more: more)(**data),
    "copy": lambda data: data.copy(),
    "or": lambda data: data | {},
    "or, on the right": lambda data: {} | data,
    "updated": lambda data: _updated(data),
    "deep copy": copy.deepcopy,
    "pop": lambda data: {name: data.pop(name) for name in list(data)},
    "pop item": lambda data: dict(data.popitem() for _ in range(len(data))),
    "set default": lambda data: {name: data.setdefault(name, 7) for name in list(data)},
    "json": lambda data: json.loads(json.dumps(data)),
    "msgspec": lambda data: msgspec.json.decode(msgspec.json.encode(data)),
}


def _updated(data: dict[str, Any]) -> dict[str, Any]:
    into: dict[str, Any] = {}
    into.update(data)
    return into


@pytest.mark.parametrize("how", READERS)
def test_however_it_is_read_it_is_all_there_and_changing_it_changes_nothing_else(how: str) -> None:
    original = copy.deepcopy(DATA)
    read = READERS[how](Snapshot(original))
    assert read == DATA
    read["list"][0]["a"] = 9
    read["object"]["b"]["c"] = 9
    read["new"] = 1
    assert original == DATA


def test_it_is_changed_as_any_other() -> None:
    data = Snapshot(DATA)
    data["list"].append(1)
    assert data["list"] == [{"a": 1}, 1]
    data["object"] = {}
    assert data["object"] == {}
    del data["object"]
    assert data.get("object", 5) == 5
    assert data.pop("object", 6) == 6
    with pytest.raises(KeyError):
        data["object"]
    assert data == {"number": 1, "list": [{"a": 1}, 1], "null": None}
    assert DATA["list"] == [{"a": 1}]
