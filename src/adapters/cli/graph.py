"""A pipeline's graph: for a terminal in layers, and as Mermaid for a page.

A step stands in the layer below everything that it waits for, or that spawns it, so
steps of one layer may run at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Step = Mapping[str, Any]
"""A step of a definition, as ``GET /api/pipelines`` shows it."""


def as_text(pipeline: Mapping[str, Any]) -> str:
    steps: Sequence[Step] = pipeline["steps"]
    layers = _layers(steps)
    width = max(len(title(step)) for step in steps)
    digits = len(str(max(layers.values())))
    lines = [heading(pipeline)]
    for layer in range(1, max(layers.values()) + 1):
        number = str(layer)
        for step in steps:
            if layers[step["name"]] == layer:
                line = (
                    f"  {number:>{digits}}  {title(step):<{width}}  {'; '.join(notes(step, steps))}"
                )
                lines.append(line.rstrip())
                number = ""
    return "\n".join(lines)


def as_mermaid(pipeline: Mapping[str, Any]) -> str:
    steps: Sequence[Step] = pipeline["steps"]
    # Ids of our own: a step may be called "end", which means something to Mermaid.
    ids = {step["name"]: f"s{number}" for number, step in enumerate(steps, start=1)}
    lines = ["flowchart TD"]
    lines += [f"    {ids[step['name']]}{_box(step)}" for step in steps]
    for step in steps:
        own = ids[step["name"]]
        lines += [f"    {ids[_name(other)]} --> {own}" for other in step["depends_on"]]
        lines += [f"    {ids[_name(other)]} -. after .-> {own}" for other in step["after"]]
        lines += [f"    {own} -. spawns .-> {ids[other]}" for other in step.get("spawns", ())]
    optional = [ids[step["name"]] for step in steps if not step["required"]]
    if optional:
        lines.append("    classDef optional stroke-dasharray: 5 5")
        lines.append(f"    class {','.join(optional)} optional")
    return "\n".join(lines)


def heading(pipeline: Mapping[str, Any]) -> str:
    return f"{pipeline['type']}{'  (works on a card)' if pipeline['card'] else ''}"


def title(step: Step) -> str:
    """``scan``, or ``probe:*`` for a family."""
    return f"{step['name']}:*" if step.get("dynamic") else str(step["name"])


def notes(step: Step, steps: Sequence[Step]) -> list[str]:
    """What there is to say of a step, beside its name."""
    said = []
    if step["depends_on"]:
        said.append(f"depends on {', '.join(step['depends_on'])}")
    if step["after"]:
        said.append(f"after {', '.join(step['after'])}")
    if step.get("dynamic"):
        spawners = [title(other) for other in steps if step["name"] in other.get("spawns", ())]
        said.append(f"a family, spawned by {', '.join(spawners)}")
    if not step["required"]:
        said.append("optional")
    if step["external"]:
        said.append("external")
    return said


def _box(step: Step) -> str:
    label = title(step) + ("" if step["required"] else " (optional)")
    if step["external"]:
        return f'[/"{label} (external)"/]'
    if step.get("dynamic"):
        return f'[["{label}"]]'
    return f'["{label}"]'


def _name(waited_for: str) -> str:
    return waited_for.removesuffix(":*")


def _layers(steps: Sequence[Step]) -> dict[str, int]:
    """From 1. Definitions have no circles, so this comes to an end; chains may be long."""
    above: dict[str, set[str]] = {step["name"]: set() for step in steps}
    for step in steps:
        above[step["name"]].update(map(_name, (*step["depends_on"], *step["after"])))
        for family in step.get("spawns", ()):
            above[family].add(step["name"])
    # Who waits for a family waits for those who may spawn it, and they stand above it.
    layers: dict[str, int] = {}
    while len(layers) < len(above):
        ready = [name for name in above if name not in layers and above[name] <= layers.keys()]
        assert ready, "a definition has no circles"
        for name in ready:
            layers[name] = 1 + max((layers[other] for other in above[name]), default=0)
    return layers
