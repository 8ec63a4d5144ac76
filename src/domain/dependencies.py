"""What a step waits for: named steps, and whole families of steps that are still being made.

A *family* is all steps that are spawned from one dynamic specification while an
execution runs: ``probe:A001``, ``probe:A002``. Who waits for ``probe:*`` waits for
all of them, and nobody can know that they are all there before those that may
spawn them have ended. So a family is *closed* once every step that declares to
spawn it has ended (and, if those are a family themselves, once that one is
closed); only then can ``probe:*`` be satisfied, empty or not.

These are questions about a mapping of steps; nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from operator import attrgetter

from domain.definition import PipelineDefinition, family_of
from domain.step import Step

Steps = Mapping[str, Step]


def is_satisfied(definition: PipelineDefinition, steps: Steps, step: Step) -> bool:
    """Whether everything that the step depends on, and comes after, lets it start."""
    for names, lets_on in ((step.depends_on, _satisfies), (step.after, _has_ended)):
        for name in names:
            if name in steps:
                if not lets_on(steps[name]):
                    return False
            # A family; or a member that, run again, isn't spawned again so far, and may never be.
            elif not is_closed(definition, steps, name.partition(":")[0]) or not all(
                lets_on(member) for member in waited_for(steps, (name,))
            ):
                return False
    return True


_satisfies = attrgetter("satisfies")
_has_ended = attrgetter("ended")


def is_closed(definition: PipelineDefinition, steps: Steps, family: str) -> bool:
    """Whether nobody can spawn another step of the family."""
    for spec in definition.spawners(family):
        if spec.dynamic and not is_closed(definition, steps, spec.name):
            return False
        if not all(step.ended for step in members(steps, spec.name)):
            return False
    return True


def members(steps: Steps, name: str) -> Iterator[Step]:
    """The steps of that name: one, or a family."""
    return (step for step in steps.values() if step.name == name)


def waited_for(steps: Steps, names: tuple[str, ...]) -> Iterator[Step]:
    """The steps that these names stand for, as far as they are there."""
    for name in names:
        family = family_of(name)
        if family is None:
            if name in steps:
                yield steps[name]
        else:
            yield from members(steps, family)


def depends_on(step: Step, other: Step) -> bool:
    """Whether the step can't start without the other's success."""
    return other.key in step.depends_on or (
        other.spec.dynamic and f"{other.name}:*" in step.depends_on
    )


def has_failed_above(steps: Steps, step: Step, failed: frozenset[str]) -> bool:
    """Whether one of the steps in states that never satisfy is somewhere above this one."""
    seen: set[str] = set()
    above = list(waited_for(steps, step.depends_on))
    while above:
        other = above.pop()
        if other.key in seen or other.satisfies:
            continue
        if other.key in failed:
            return True
        seen.add(other.key)
        above.extend(waited_for(steps, other.depends_on))
    return False


def would_wait_for_itself(definition: PipelineDefinition, steps: Steps, step: Step) -> bool:
    """Whether a step that is to be spawned waits for something that waits for its family.

    Who waits for a family waits for those who may spawn it too, and for whatever its
    members wait for, those to come included.
    """
    own = (step.key, f"{step.name}:*")
    seen: set[str] = set()
    above = [*step.depends_on, *step.after]
    while above:
        name = above.pop()
        if name in own:
            return True
        if name in seen:
            continue
        seen.add(name)
        family = family_of(name)
        spec = None if family is None else definition.spec(family)
        if spec is not None:
            above.extend((*spec.depends_on, *spec.after))
            above.extend(
                f"{spawner.name}:*" if spawner.dynamic else spawner.name
                for spawner in definition.spawners(spec.name)
            )
        for other in waited_for(steps, (name,)):
            if not other.satisfies:  # which is for good: it waits for nothing any more
                above.extend((*other.depends_on, *other.after))
    return False


def was_spawned_by(step: Step, keys: Container[str], families: Container[str]) -> bool:
    """Whether one of these steps made it; one stored before that was noted, perhaps."""
    if step.spawned_by is None:
        return step.spec.dynamic and step.name in families
    return step.spawned_by in keys


def families_made_by(definition: PipelineDefinition, names: Iterable[str]) -> set[str]:
    """The families that steps of these names may spawn, and those that these may spawn."""
    made: set[str] = set()
    makers = list(names)
    while makers:
        spec = definition.spec(makers.pop())
        if spec is not None:
            makers.extend(family for family in spec.spawns if family not in made)
            made.update(spec.spawns)
    return made


def downstream(definition: PipelineDefinition, steps: Steps, key: str) -> frozenset[str]:
    """The keys of a step, of all that waits for it, and of all that these have spawned."""
    found = {key}
    grown = True
    while grown:
        grown = False
        families = families_made_by(definition, {steps[each].name for each in found})
        for step in steps.values():
            if step.key in found:
                continue
            waits = {other.key for other in waited_for(steps, (*step.depends_on, *step.after))}
            waits_for_family = any(
                family_of(name) in families for name in (*step.depends_on, *step.after)
            )
            if was_spawned_by(step, found, families) or waits & found or waits_for_family:
                found.add(step.key)
                grown = True
    return frozenset(found)
