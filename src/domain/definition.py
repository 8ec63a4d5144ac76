"""What a pipeline is made of, before anything runs.

A definition is a value: validated when it is built, immutable afterwards, and
serialisable, because every execution carries the definition that it started
with. What is checked here never has to be checked again at run time: names are
unique, every dependency exists, there is no cycle, and no required step waits
for the success of an optional one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from domain.errors import InvalidDefinition

STEP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
"""Step and pool names: they appear in URLs, metrics and log lines."""

PIPELINE_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")

MAX_STEPS = 1_000
"""More static steps than this is a generator gone wrong, not a pipeline."""

DEFAULT_POOL = "default"

MAX_RETRIES = 100
"""More than anybody waits for; a step that still fails then needs a person."""

MAX_PRIORITY = 100

MAX_SECONDS = 31_536_000
"""A year: longer pauses and timeouts are slips of a unit."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a failed attempt is followed by another one by itself, and after how long.

    retries: further attempts after the first; 0 means that a person has to ask.
    delay_s: before the second attempt; each later pause is ``factor`` times the one
        before it, up to ``max_delay_s``.
    jitter: by which share a pause is made longer or shorter by chance, so that what
        failed together isn't tried again together.
    """

    retries: int = 0
    delay_s: float = 1.0
    factor: float = 2.0
    max_delay_s: float = 300.0
    jitter: float = 0.1

    def pause_s(self, failures: int, chance: float) -> float:
        """Seconds until the next attempt, after so many failures; ``chance`` from 0 to 1."""
        try:
            pause = self.delay_s * self.factor ** (failures - 1)
        except OverflowError:
            pause = self.max_delay_s
        return min(pause, self.max_delay_s) * (1 + self.jitter * (2 * chance - 1))

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__match_args__}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RetryPolicy:
        return cls(**{name: stored[name] for name in cls.__match_args__ if name in stored})


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """At most ``at_once`` steps run whose execution data has the same value at ``by``.

    ``by`` is a path of keys with dots between them (``card.identity``). So one copy
    runs per card reader, or two per volume, whichever executions they belong to. Where
    the data has nothing there, the limit doesn't apply.
    """

    by: str
    at_once: int = 1


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step of a definition.

    name: unique within the pipeline.
    depends_on: names of steps that must have completed before this one starts;
        if one of them fails or is skipped, so is this one. ``probe:*`` is the whole
        family of the dynamic step ``probe``.
    after: names of steps that must have ended, however they ended.
    required: whether its failure fails the execution; an optional step's
        failure leaves a warning.
    weight: its share of the execution's progress, relative to the others'.
    pool: the named concurrency limit under which it runs.
    external: run by a service outside Rushes, which reports over gRPC.
    retry: whether it is tried again by itself.
    run_timeout_s: how long an attempt may take; None for as long as it likes.
    queue_timeout_s: how long it may wait for a slot once it is ready.
    lease_s: how long an attempt may be silent (no progress, no heartbeat) before it
        counts as lost and is taken over; None for as long as it likes.
    priority: who waits for a slot with a higher one is served earlier, within bounds.
    limits: further limits beside the pool's; see ``KeyLimit``.
    dynamic: a family: its steps are spawned while an execution runs, one a parameter.
    spawns: the names of the dynamic steps that this one may spawn.
    """

    name: str
    depends_on: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    required: bool = True
    weight: int = 1
    pool: str = DEFAULT_POOL
    external: bool = False
    retry: RetryPolicy = RetryPolicy()
    run_timeout_s: float | None = None
    queue_timeout_s: float | None = None
    lease_s: float | None = None
    priority: int = 0
    limits: tuple[KeyLimit, ...] = ()
    dynamic: bool = False
    spawns: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "depends_on": list(self.depends_on),
            "after": list(self.after),
            "required": self.required,
            "weight": self.weight,
            "pool": self.pool,
            "external": self.external,
            "retry": self.retry.to_dict(),
            "run_timeout_s": self.run_timeout_s,
            "queue_timeout_s": self.queue_timeout_s,
            "lease_s": self.lease_s,
            "priority": self.priority,
            "limits": [{"by": limit.by, "at_once": limit.at_once} for limit in self.limits],
            "dynamic": self.dynamic,
            "spawns": list(self.spawns),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> StepSpec:
        return cls(
            name=stored["name"],
            depends_on=tuple(stored.get("depends_on", ())),
            after=tuple(stored.get("after", ())),
            required=stored.get("required", True),
            weight=stored.get("weight", 1),
            pool=stored.get("pool", DEFAULT_POOL),
            external=stored.get("external", False),
            retry=RetryPolicy.from_dict(stored.get("retry", {})),
            run_timeout_s=stored.get("run_timeout_s"),
            queue_timeout_s=stored.get("queue_timeout_s"),
            lease_s=stored.get("lease_s"),
            priority=stored.get("priority", 0),
            limits=tuple(KeyLimit(**limit) for limit in stored.get("limits", ())),
            dynamic=stored.get("dynamic", False),
            spawns=tuple(stored.get("spawns", ())),
        )


@dataclass(frozen=True, slots=True)
class PipelineDefinition:
    """A named graph of steps.

    places: of the steps that every execution has, the how-manieth each is. waiters: for each
    name, which of them wait for it. Nobody changes either.

    Raises ``InvalidDefinition``, naming the culprit, when it could never run.
    """

    type: str
    steps: tuple[StepSpec, ...]
    _by_name: Mapping[str, StepSpec] = field(init=False, repr=False, compare=False, hash=False)
    _spawners: Mapping[str, tuple[StepSpec, ...]] = field(
        init=False, repr=False, compare=False, hash=False
    )
    places: dict[str, int] = field(init=False, repr=False, compare=False, hash=False)
    waiters: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or not PIPELINE_TYPE.match(self.type):
            raise InvalidDefinition(
                f"pipeline type {self.type!r} must match {PIPELINE_TYPE.pattern}", field="type"
            )
        _check_steps(self.type, self.steps)
        self._index()
        circle = find_circle({spec.name: spec.spawns for spec in self.steps})
        if circle:
            raise InvalidDefinition(
                f"pipeline {self.type!r}: the steps spawn each other in a circle: "
                + " -> ".join(circle)
            )
        circle = find_circle({spec.name: self._waits_for(spec) for spec in self.steps})
        if circle:
            raise InvalidDefinition(
                f"pipeline {self.type!r}: the steps wait for each other in a circle: "
                + " -> ".join(circle)
            )

    def spec(self, name: str) -> StepSpec | None:
        return self._by_name.get(name)

    def spawners(self, family: str) -> tuple[StepSpec, ...]:
        """The steps that declare to spawn the family."""
        return self._spawners.get(family, ())

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, "steps": [spec.to_dict() for spec in self.steps]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> PipelineDefinition:
        """Read back what ``to_dict`` wrote, in this version or an older one.

        What was valid then isn't asked again: a rule that is new must not keep an
        execution from going on that began without it.
        """
        definition = object.__new__(cls)
        object.__setattr__(definition, "type", stored["type"])
        specs = tuple(StepSpec.from_dict(spec) for spec in stored["steps"])
        object.__setattr__(definition, "steps", specs)
        definition._index()
        return definition

    def _index(self) -> None:
        object.__setattr__(self, "_by_name", {spec.name: spec for spec in self.steps})
        spawners = {
            family: tuple(spec for spec in self.steps if family in spec.spawns)
            for family in {name for spec in self.steps for name in spec.spawns}
        }
        object.__setattr__(self, "_spawners", spawners)
        static = [spec for spec in self.steps if not spec.dynamic]
        object.__setattr__(self, "places", {spec.name: n for n, spec in enumerate(static)})
        waiters: dict[str, list[str]] = {}
        for spec in static:
            for name in dict.fromkeys((*spec.depends_on, *spec.after)):
                waiters.setdefault(name, []).append(spec.name)
        object.__setattr__(self, "waiters", {name: tuple(of) for name, of in waiters.items()})

    def _waits_for(self, spec: StepSpec) -> tuple[str, ...]:
        """Names; who waits for a family waits for those who may spawn it as well."""
        names: list[str] = []
        for name in (*spec.depends_on, *spec.after):
            family = family_of(name)
            if family is None:
                names.append(name)
                continue
            above = [family]
            while above:  # spawning has no circles: that is checked before
                member = above.pop()
                names.append(member)
                above.extend(spawner.name for spawner in self.spawners(member))
        return tuple(names)


def family_of(name: str) -> str | None:
    """``probe`` for ``probe:*``; None for a name that stands for one step."""
    return name[:-2] if name.endswith(":*") else None


def find_circle(edges: Mapping[str, Sequence[str]]) -> list[str]:
    """A circle of names with its first repeated at the end, or nothing.

    Depth-first with the path at hand; iterative, since a chain may be long.
    """
    finished: set[str] = set()
    for start in edges:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(name)
                finished.add(name)
                continue
            if name in on_path:
                return [*path[path.index(name) :], name]
            if name in finished:
                continue
            path.append(name)
            on_path.add(name)
            stack.append((name, True))
            stack.extend((other, False) for other in edges[name])
    return []


def _check_steps(pipeline_type: str, steps: Sequence[StepSpec]) -> None:
    where = f"pipeline {pipeline_type!r}"
    if all(spec.dynamic for spec in steps):
        raise InvalidDefinition(f"{where} has no steps", field="steps")
    if len(steps) > MAX_STEPS:
        raise InvalidDefinition(f"{where} has {len(steps)} steps, more than {MAX_STEPS}")
    by_name: dict[str, StepSpec] = {}
    for spec in steps:
        if not isinstance(spec.name, str) or not STEP_NAME.match(spec.name):
            raise InvalidDefinition(
                f"{where}: step name {spec.name!r} must match {STEP_NAME.pattern}"
            )
        if spec.name in by_name:
            raise InvalidDefinition(f"{where} has two steps named {spec.name!r}")
        if not isinstance(spec.pool, str) or not STEP_NAME.match(spec.pool):
            raise InvalidDefinition(
                f"{where}: step {spec.name!r}: pool {spec.pool!r} must match {STEP_NAME.pattern}"
            )
        if type(spec.weight) is not int or not 0 < spec.weight <= 1_000_000:
            raise InvalidDefinition(
                f"{where}: step {spec.name!r}: weight must be a whole number from 1 to 1000000, "
                f"not {spec.weight!r}"
            )
        _check_policy(f"{where}: step {spec.name!r}", spec)
        by_name[spec.name] = spec
    for spec in steps:
        for relation, names in (("depends_on", spec.depends_on), ("after", spec.after)):
            for name in names:
                family = family_of(name)
                found = by_name.get(name if family is None else family)
                if found is None:
                    raise InvalidDefinition(
                        f"{where}: step {spec.name!r} names {name!r} in {relation}, "
                        "and there is no such step"
                    )
                if found.dynamic != (family is not None):
                    meant = f"{found.name}:*" if found.dynamic else found.name
                    raise InvalidDefinition(
                        f"{where}: step {spec.name!r} names {name!r} in {relation}; "
                        f"{'a dynamic' if found.dynamic else 'an ordinary'} step is "
                        f"waited for as {meant!r}"
                    )
        for name in spec.spawns:
            if name not in by_name or not by_name[name].dynamic:
                raise InvalidDefinition(
                    f"{where}: step {spec.name!r} spawns {name!r}, "
                    "and there is no such dynamic step"
                )
        if spec.dynamic and not any(spec.name in other.spawns for other in steps):
            raise InvalidDefinition(f"{where}: nobody spawns the dynamic step {spec.name!r}")
        for name in spec.depends_on:
            if spec.required and not by_name[family_of(name) or name].required:
                raise InvalidDefinition(
                    f"{where}: required step {spec.name!r} depends on optional step {name!r}; "
                    "it may come after it, or be optional too"
                )


def _check_policy(where: str, spec: StepSpec) -> None:
    policy = spec.retry
    if type(policy.retries) is not int or not 0 <= policy.retries <= MAX_RETRIES:
        raise InvalidDefinition(
            f"{where}: retries must be a whole number from 0 to {MAX_RETRIES}, "
            f"not {policy.retries!r}"
        )
    bounds: tuple[tuple[str, object, float, float], ...] = (
        ("delay_s", policy.delay_s, 0, MAX_SECONDS),
        ("factor", policy.factor, 1, 100),
        ("max_delay_s", policy.max_delay_s, 0, MAX_SECONDS),
        ("jitter", policy.jitter, 0, 1),
        ("run_timeout_s", spec.run_timeout_s, 0.001, MAX_SECONDS),
        ("queue_timeout_s", spec.queue_timeout_s, 0.001, MAX_SECONDS),
        ("lease_s", spec.lease_s, 0.001, MAX_SECONDS),
        ("priority", spec.priority, -MAX_PRIORITY, MAX_PRIORITY),
    )
    for name, value, least, most in bounds:
        if value is None and name.endswith(("timeout_s", "lease_s")):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= float(value) <= most:  # type: ignore[arg-type]
            raise InvalidDefinition(
                f"{where}: {name} must be from {least} to {most}, not {value!r}"
            )
    for limit in spec.limits:
        if not limit.by or type(limit.at_once) is not int or limit.at_once < 1:
            raise InvalidDefinition(f"{where}: {limit!r} needs a path and a number above 0")
    if spec.external and spec.queue_timeout_s is not None:
        raise InvalidDefinition(
            f"{where}: an external step waits for no slot, so no queue_timeout_s"
        )
