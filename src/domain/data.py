"""What the steps of an execution tell each other: who may say what, and how much.

The data is what the trigger said, with every step's output merged in, shallowly: each
name belongs to whoever said it first, and only its owner may say something else under
it. The outputs of a family stand under the family's name, by parameter, and nobody
else's may stand there. So what a handler reads under a name comes from one source.

Data is never changed in place: a merge makes a new mapping.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from domain.step import Step
from domain.steps import Steps

MAX_DATA_BYTES = 4 * 1024 * 1024
"""As JSON. A merge writes all of it, a handler is given all of it, and so is everybody who
asks about the execution; what a client takes in one message is 4 MiB, if nobody has said
otherwise (gRPC)."""


PLACES = frozenset({"sd_path", "library", "destinations"})
"""Where footage comes from and goes to: checked when an execution is triggered that works
on a card, and opened by its steps. So none of these may say it, even where nobody has."""


def size_bytes(value: object) -> int:
    """Of a value as JSON, without spaces."""
    if value == {}:
        return 2
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def contradictions(
    data: Mapping[str, Any],
    steps: Steps,
    step: Step,
    output: Mapping[str, Any],
    *,
    reserved: frozenset[str] = frozenset(),
) -> list[str]:
    """Why this output can't be merged, naming both sides; empty if it can.

    reserved: what only the trigger may say.
    """
    found: list[str] = []
    if not output:
        return found
    said = {step.name} if step.spec.dynamic else output.keys()
    found += (
        f"its output says {name!r}, which only the trigger may say"
        for name in sorted(said & reserved)
    )
    if found:
        return found
    if step.spec.dynamic:
        return _family_contradiction(data, steps, step)
    # In order, so that the same report is refused with the same words.
    for name in sorted(output.keys() & data.keys()):
        if same(data[name], output[name]):
            continue
        owner = next(
            (
                f"step {other.key}"
                for other in steps.values()
                if other.output is not None and name in other.output and other.key != step.key
            ),
            "the trigger",
        )
        if owner == "the trigger" and step.output is not None and name in step.output:
            continue
        found.append(
            f"its output says {name!r}, which belongs to {owner} and has another value there"
        )
    return found


def _family_contradiction(data: Mapping[str, Any], steps: Steps, step: Step) -> list[str]:
    """A family's outputs stand under its name, and nobody else's may stand there."""
    there = data.get(step.name, {})
    if step.name not in data:
        return []
    if isinstance(there, Mapping):
        # Whatever is the family's own is the output of one of its members: the first is found.
        for parameter in there:
            member = steps.get(f"{step.name}:{parameter}")
            if member is not None and member.output:
                return []
    return [f"its output belongs under {step.name!r}, and something else has that name in the data"]


def merged(data: Mapping[str, Any], step: Step, output: Mapping[str, Any]) -> Mapping[str, Any]:
    """Into the data, shallowly; a family's outputs stand under its name, by parameter."""
    if not output:
        return data
    if step.spec.dynamic:
        return {**data, step.name: {**data.get(step.name, {}), step.parameter: output}}
    return {**data, **output}


def growth_bytes(data: Mapping[str, Any], step: Step, output: Mapping[str, Any]) -> int:
    """By how much ``merged`` is larger, as JSON; found without a look at all of the data."""
    if not output:
        return 0
    if not step.spec.dynamic:
        return _growth(data, output)
    if step.name in data:
        return _growth(data[step.name], {step.parameter: output})
    return _growth(data, {step.name: {step.parameter: output}})


def _growth(into: Mapping[str, Any], more: Mapping[str, Any]) -> int:
    grown = sum(_member_bytes(name, value) for name, value in more.items())
    return grown - sum(_member_bytes(name, into[name]) for name in more if name in into)


def _member_bytes(name: str, value: object) -> int:
    """With the colon after the name, and a comma."""
    return size_bytes(name) + 1 + size_bytes(value) + 1


def same(one: object, other: object) -> bool:
    """Equal as JSON. To Python ``True`` is 1; to whoever reads the data it isn't."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other
