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
class StepSpec:
    """One step of a definition.

    name: unique within the pipeline.
    depends_on: names of steps that must have completed before this one starts;
        if one of them fails or is skipped, so is this one.
    after: names of steps that must have ended, however they ended.
    required: whether its failure fails the execution; an optional step's
        failure leaves a warning.
    weight: its share of the execution's progress, relative to the others'.
    pool: the named concurrency limit under which it runs.
    external: run by a service outside Rushes, which reports over gRPC.
    retry: whether it is tried again by itself.
    run_timeout_s: how long an attempt may take; None for as long as it likes.
    queue_timeout_s: how long it may wait for a slot once it is ready.
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
        )


@dataclass(frozen=True, slots=True)
class PipelineDefinition:
    """A named graph of steps.

    Raises ``InvalidDefinition``, naming the culprit, when it could never run.
    """

    type: str
    steps: tuple[StepSpec, ...]
    _by_name: Mapping[str, StepSpec] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or not PIPELINE_TYPE.match(self.type):
            raise InvalidDefinition(
                f"pipeline type {self.type!r} must match {PIPELINE_TYPE.pattern}", field="type"
            )
        _check_steps(self.type, self.steps)
        object.__setattr__(self, "_by_name", {spec.name: spec for spec in self.steps})
        cycle = self._find_cycle()
        if cycle:
            raise InvalidDefinition(
                f"pipeline {self.type!r}: the steps wait for each other in a circle: "
                + " -> ".join(cycle)
            )

    def spec(self, name: str) -> StepSpec | None:
        return self._by_name.get(name)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, "steps": [spec.to_dict() for spec in self.steps]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> PipelineDefinition:
        """Read back what ``to_dict`` wrote, in this version or an older one."""
        return cls(
            type=stored["type"],
            steps=tuple(StepSpec.from_dict(spec) for spec in stored["steps"]),
        )

    def _find_cycle(self) -> list[str]:
        """A circle of names with its first repeated at the end, or nothing."""
        finished: set[str] = set()
        for start in self._by_name:
            # Depth-first with the path at hand; iterative, since a chain may be long.
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
                spec = self._by_name[name]
                stack.extend((other, False) for other in (*spec.depends_on, *spec.after))
        return []


def _check_steps(pipeline_type: str, steps: Sequence[StepSpec]) -> None:
    where = f"pipeline {pipeline_type!r}"
    if not steps:
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
                if name not in by_name:
                    raise InvalidDefinition(
                        f"{where}: step {spec.name!r} names {name!r} in {relation}, "
                        "and there is no such step"
                    )
        for name in spec.depends_on:
            if spec.required and not by_name[name].required:
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
    )
    for name, value, least, most in bounds:
        if value is None and name.endswith("timeout_s"):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= float(value) <= most:  # type: ignore[arg-type]
            raise InvalidDefinition(
                f"{where}: {name} must be from {least} to {most}, not {value!r}"
            )
    if spec.external and spec.queue_timeout_s is not None:
        raise InvalidDefinition(
            f"{where}: an external step waits for no slot, so no queue_timeout_s"
        )
