"""The steps of an execution, in their order, and what is counted about them.

A card with thousands of clips makes thousands of steps, and each of them takes a few
transitions. So no transition may go through all of them, neither to make its draft nor
to find out what follows. Hence:

* **Drafts share what they don't change.** The steps stand in chunks. A copy has the
  chunks of its original, and makes a chunk its own before it changes it. What differs
  between two versions is found by comparing chunks, so nobody has to keep account of it.
* **What is asked of all of them is counted as they change**: how many are open, how much
  is done, how many of a family have ended.
* **Who may be ready is known.** A step is *fresh* while it is pending and nobody has said
  yet that it waits: for a slot, or for another step. Who waits for another step is fresh
  again when that has ended; who waits for a slot, when it is asked about again.
* **What is due** is known by chunk: the earliest time in it, until the chunk changes.

All of it follows from the steps alone, so it is made anew when they are read, and not stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from domain.definition import PipelineDefinition, StepSpec
from domain.step import GAVE_UP, Step, StepStatus

CHUNK = 64
"""Of ten thousand steps, as many chunks as a chunk has steps, nearly: both are copied."""

_WHOLE = 10**12
"""Done, as a whole number: sums of fractions would depend on their order."""

_PENDING, _RUNNING, _COMPLETED = StepStatus.PENDING, StepStatus.RUNNING, StepStatus.COMPLETED


class Family(NamedTuple):
    """How many steps of a family there are, have ended, and let on who depends on them."""

    members: int = 0
    ended: int = 0
    satisfying: int = 0


class _Due(NamedTuple):
    """Of a chunk, the earliest times: of what is pending, and of what somebody outside does."""

    pending: datetime | None
    outside: datetime | None


class _Spawned:
    """Where steps stand and who waits for whom, shared by all versions of an execution.

    It only grows, and it may know of steps that a dropped draft had: who looks something up
    sees whether it is there. places never change; a version that needs another place for a
    step makes its own.
    """

    __slots__ = ("places", "special", "waiters")

    def __init__(self, definition: PipelineDefinition) -> None:
        self.places = dict(definition.places)
        self.waiters = {name: list(keys) for name, keys in definition.waiters.items()}
        self.special: dict[str, list[str]] = {}

    def add(self, step: Step) -> None:
        """Note whom it waits for."""
        for name in dict.fromkeys((*step.depends_on, *step.after)):
            self.waiters.setdefault(name, []).append(step.key)
            family, _, parameter = name.partition(":")
            if parameter not in ("", "*"):  # it may never be there, and then its family counts
                self.waiters.setdefault(f"{family}:*", []).append(step.key)
        if (step.depends_on, step.after) != (step.spec.depends_on, step.spec.after):
            self.special.setdefault(step.name, []).append(step.key)


class Steps:
    """By key, in the order in which they were made.

    open: how many haven't ended. fresh: the keys of those that may be ready (see above).
    """

    __slots__ = (
        "_chunks",
        "_definition",
        "_done",
        "_due",
        "_families",
        "_length",
        "_own",
        "_places",
        "_soonest",
        "_spawned",
        "_weight",
        "fresh",
        "open",
    )

    def __init__(self, definition: PipelineDefinition, steps: Iterable[Step] = ()) -> None:
        self._definition = definition
        self._spawned: _Spawned | None = None  # as long as the definition's own will do
        self._places = definition.places
        self._chunks: list[list[Step]] = []
        self._due: list[_Due | None] = []
        self._own = 0  # a bit for each chunk that no other version has
        self._soonest: datetime | None = None  # nothing is due before this; None: nothing is at all
        self._length = 0
        self._weight = 0
        self._done = 0
        self._families: dict[str, Family] = {}
        self.fresh: dict[str, None] = {}
        self.open = 0
        for step in steps:
            self.put(step)

    @classmethod
    def first(cls, definition: PipelineDefinition, *, at: datetime) -> Steps:
        """Those that every execution begins with."""
        steps = cls(definition)
        first = [Step.of(spec, at=at) for spec in definition.steps if not spec.dynamic]
        steps._chunks = [first[start : start + CHUNK] for start in range(0, len(first), CHUNK)]
        steps._due = [_NEVER] * len(steps._chunks)
        steps._length = steps.open = len(first)
        steps._weight = sum([step.spec.weight for step in first])
        # Whoever waits for a step is woken when that has ended.
        steps.fresh = {
            step.key: None
            for step in first
            if not any(name in definition.places for name in (*step.depends_on, *step.after))
        }
        return steps

    def copy(self) -> Steps:
        """Another version: what is changed in one isn't in the other."""
        copied = object.__new__(Steps)
        copied._definition = self._definition
        copied._spawned = self._spawned
        copied._places = self._places
        copied._chunks = self._chunks.copy()
        copied._due = self._due.copy()
        copied._own = self._own = 0
        copied._soonest = self._soonest
        copied._length = self._length
        copied._weight = self._weight
        copied._done = self._done
        copied._families = self._families.copy()
        copied.fresh = self.fresh.copy()
        copied.open = self.open
        return copied

    # -- as a mapping ------------------------------------------------------------

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __getitem__(self, key: str) -> Step:
        step = self.get(key)
        if step is None:
            raise KeyError(key)
        return step

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and self.values() == other.values()

    def get(self, key: str) -> Step | None:
        place = self._places.get(key, -1)
        if not -1 < place < self._length:
            return None
        step = self._chunks[place // CHUNK][place % CHUNK]
        return step if step.key == key else None

    def keys(self) -> Sequence[str]:
        return [step.key for chunk in self._chunks for step in chunk]

    def values(self) -> Sequence[Step]:
        return [step for chunk in self._chunks for step in chunk]

    def items(self) -> Sequence[tuple[str, Step]]:
        return [(step.key, step) for chunk in self._chunks for step in chunk]

    def __setitem__(self, key: str, step: Step) -> None:
        self.put(step)

    def put(self, step: Step) -> bool:
        """Whether it is another one than was there, or wasn't there."""
        place = self._places.get(step.key, self._length)
        if place >= self._length:
            self._append(step.key, step)
            return True
        number = place // CHUNK
        before = self._chunks[number][place % CHUNK]
        if before is step:
            return False
        if before.key != step.key:
            self._append(step.key, step)
            return True
        self._chunk(number)[place % CHUNK] = step
        if step.depends_on is not before.depends_on or step.after is not before.after:
            self._note_waiting(step)
        self._recount(before, step)
        return True

    def _append(self, key: str, step: Step) -> None:
        place = self._length
        if self._places.get(key) != place:
            if self._spawned is None:
                self._spawned = _Spawned(self._definition)
            if self._spawned.places.setdefault(key, place) != place:
                # A draft that was dropped, or another version, has it elsewhere.
                self._spawned = _Spawned(self._definition)
                self._spawned.places = {k: n for n, k in enumerate((*self.keys(), key))}
                for each in self.values():
                    self._note_waiting(each)
            self._places = self._spawned.places
        number = place // CHUNK
        if number == len(self._chunks):
            self._chunks.append([])
            self._due.append(None)
            self._own |= 1 << number
        self._chunk(number).append(step)
        self._length += 1
        self._note_waiting(step)
        self._weight += step.spec.weight
        self._done += _done(step)
        self.open += not step.ended
        if step.spec.dynamic:
            self._tally(step.name, 1, step.ended, step.satisfies)
        self._ask(step)

    def _chunk(self, number: int) -> list[Step]:
        """That chunk, to be changed."""
        self._due[number] = None
        if not self._own >> number & 1:
            self._own |= 1 << number
            self._chunks[number] = self._chunks[number].copy()
        return self._chunks[number]

    def _note_waiting(self, step: Step) -> None:
        as_defined = self._definition.spec(step.key)
        if (
            as_defined is None
            or step.depends_on != as_defined.depends_on
            or step.after != as_defined.after
        ):
            if self._spawned is None:
                self._spawned = _Spawned(self._definition)
                self._places = self._spawned.places
            self._spawned.add(step)

    # -- what is counted ---------------------------------------------------------

    @property
    def percent_done(self) -> int:
        """Of all their weight, rounded down."""
        return 100 * self._done // (self._weight * _WHOLE)

    def family(self, name: str) -> Family:
        return self._families.get(name, _NOBODY)

    def is_closed(self, family: str) -> bool:
        """Whether nobody can spawn another step of the family."""
        for spec in self._definition.spawners(family):
            if spec.dynamic:
                spawners = self.family(spec.name)
                if spawners.ended < spawners.members or not self.is_closed(spec.name):
                    return False
            else:
                spawner = self.get(spec.name)
                if spawner is not None and not spawner.ended:
                    return False
        return True

    def of_family(self, name: str) -> Sequence[Step]:
        """The members of a family; to be asked for rarely, it goes through all steps."""
        return [step for chunk in self._chunks for step in chunk if step.spec.name == name]

    def special_of(self, family: str) -> Iterator[Step]:
        """The members that wait for more than their specification says."""
        keys = () if self._spawned is None else self._spawned.special.get(family, ())
        return filter(None, map(self.get, dict.fromkeys(keys)))

    def waiting_for(self, *names: str) -> Sequence[Step]:
        """The steps that name one of these in what they wait for, in their order."""
        return self._in_order(key for name in names for key in self._waiters(name))

    def changed_since(self, base: Steps) -> Sequence[tuple[Step | None, Step]]:
        """What ``base`` has otherwise, or not at all: its step, or None, and this one's.

        Quick if one of the two is a version of the other.
        """
        theirs = base._chunks
        changed: list[tuple[Step | None, Step]] = []
        for number, chunk in enumerate(self._chunks):
            before = theirs[number] if number < len(theirs) else []
            if before is chunk:
                continue
            for offset, step in enumerate(chunk):
                there = before[offset] if offset < len(before) else None
                if there is step:
                    continue
                if there is None or there.key != step.key:
                    there = base.get(step.key)  # another version, that has it elsewhere
                if there is not step:
                    changed.append((there, step))
        return changed

    def _recount(self, before: Step, step: Step) -> None:
        spec, status, was = step.spec, step.status, before.status
        if status is not _PENDING or was is not _PENDING:
            self._done += _done(step) - _done(before)
            ended = status is not _PENDING and status is not _RUNNING
            had_ended = was is not _PENDING and was is not _RUNNING
            satisfies = step.waived or status is _COMPLETED
            had_satisfied = before.waived or was is _COMPLETED
            if ended is not had_ended or satisfies is not had_satisfied:
                self.open += had_ended - ended
                if spec.dynamic:
                    self._tally(spec.name, 0, ended - had_ended, satisfies - had_satisfied)
                if ended:
                    self._ask_who_waits_for(step)
        if spec is not before.spec:
            self._weight += spec.weight - before.spec.weight
        self._ask(step)

    def _tally(self, family: str, members: int, ended: int, satisfying: int) -> None:
        counted = self.family(family)
        self._families[family] = Family(
            counted.members + members, counted.ended + ended, counted.satisfying + satisfying
        )

    # -- who may be ready --------------------------------------------------------

    def to_look_at(self, at: datetime, also: Iterable[str] = ()) -> Sequence[Step]:
        """Those that may be ready by then, in their order: fresh ones, those whose next
        attempt is due, and ``also``."""
        due: list[str] = []
        if self._soonest is not None:
            due += (s.key for s in self.due(at) if s.queued_at is None and not s.claimed)
        if not (due or also) and len(self.fresh) < 2:
            return [self[key] for key in self.fresh]
        return self._in_order((*self.fresh, *due, *also))

    def waits(self, key: str) -> None:
        """It has turned out to wait for another step: it is fresh again when that has ended."""
        self.fresh.pop(key, None)

    def _in_order(self, keys: Iterable[str]) -> Sequence[Step]:
        found = [step for key in dict.fromkeys(keys) if (step := self.get(key)) is not None]
        if len(found) > 1:
            places = self._places
            found.sort(key=lambda step: places[step.key])
        return found

    def _waiters(self, name: str) -> Sequence[str]:
        if self._spawned is None:
            return self._definition.waiters.get(name, ())
        return self._spawned.waiters.get(name, ())

    def _ask(self, step: Step) -> None:
        """Whether it is fresh, now that it has changed."""
        if step.status is _PENDING and step.queued_at is None and step.not_before is None:
            self.fresh[step.key] = None
            return
        if self.fresh:
            self.fresh.pop(step.key, None)
        due_at = step.due_at
        if due_at is not None and (self._soonest is None or due_at < self._soonest):
            self._soonest = due_at

    def _ask_who_waits_for(self, step: Step) -> None:
        self._wake(step.key)
        spec = step.spec
        if spec.dynamic:
            family = self.family(spec.name)
            if family.ended < family.members:
                return
            if self.is_closed(spec.name):
                self._wake(f"{spec.name}:*")
        self._wake_what_closes_with(spec)

    def _wake_what_closes_with(self, spec: StepSpec) -> None:
        """All that step or family could have spawned others, and has ended."""
        for name in spec.spawns:
            if self.is_closed(name):
                self._wake(f"{name}:*")
                family, spawned = self.family(name), self._definition.spec(name)
                if family.ended == family.members and spawned is not None:
                    self._wake_what_closes_with(spawned)

    def _wake(self, name: str) -> None:
        for key in self._waiters(name):
            step = self.get(key)
            if step is not None:
                self._ask(step)

    # -- what is due -------------------------------------------------------------

    def due(self, at: datetime) -> Sequence[Step]:
        """Those whose time has come by then, whatever they wait for."""
        found: list[Step] = []
        if self._soonest is None or self._soonest > at:
            return found
        self._soonest = None
        for number in range(len(self._chunks)):
            for time in self._due_of(number):
                if time is not None and (self._soonest is None or time < self._soonest):
                    self._soonest = time
            if any(time is not None and time <= at for time in self._due_of(number)):
                found += (
                    step
                    for step in self._chunks[number]
                    if (time := step.due_at) is not None and time <= at
                )
        return found

    def next_due(self, now: datetime, *, pending: bool) -> datetime | None:
        """The earliest time at which something is due; ``pending``: also of what is pending.

        An attempt that may start by ``now`` isn't waited for any more; what is over counts.
        """
        earliest: datetime | None = None
        if self._soonest is None:
            return earliest
        for number in range(len(self._chunks)):
            waits, outside = self._due_of(number)
            if not pending:
                waits = None
            elif waits is not None and waits <= now:
                waits = min(
                    (
                        time
                        for step in self._chunks[number]
                        if step.status is _PENDING and (time := step.due_at) is not None
                        if step.queued_at is not None or time > now
                    ),
                    default=None,
                )
            for time in (waits, outside):
                if time is not None and (earliest is None or time < earliest):
                    earliest = time
        return earliest

    def _due_of(self, number: int) -> _Due:
        known = self._due[number]
        if known is None:
            pending = outside = None
            for step in self._chunks[number]:
                time = step.due_at
                if time is None:
                    continue
                if step.status is _RUNNING:
                    outside = time if outside is None else min(outside, time)
                else:
                    pending = time if pending is None else min(pending, time)
            nothing = pending is None and outside is None
            known = self._due[number] = _NEVER if nothing else _Due(pending, outside)
        return known


_NOBODY = Family()
_NEVER = _Due(None, None)


def _done(step: Step) -> int:
    """Its part of what is done, in parts of ``_WHOLE`` of its weight."""
    status = step.status
    if status is _PENDING:
        return 0
    if status is _RUNNING:
        return step.spec.weight * round(step.progress * _WHOLE) if step.progress else 0
    gave_up_for_good = status in GAVE_UP and not step.spec.required
    if status is _COMPLETED or step.waived or gave_up_for_good:
        return step.spec.weight * _WHOLE
    return 0
