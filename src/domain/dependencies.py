"""What a step waits for: named steps, and whole families of steps that are still being made.

A *family* is all steps that are spawned from one dynamic specification while an
execution runs: ``probe:A001``, ``probe:A002``. Who waits for ``probe:*`` waits for
all of them, and nobody can know that they are all there before those that may
spawn them have ended. So a family is *closed* once every step that declares to
spawn it has ended (and, if those are a family themselves, once that one is
closed); only then can ``probe:*`` be satisfied, empty or not.

These are questions about an execution's steps; nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from domain.definition import PipelineDefinition, family_of
from domain.step import Step
from domain.steps import Steps


def is_satisfied(steps: Steps, step: Step) -> bool:
    """Whether everything that the step depends on, and comes after, lets it start."""
    for name in step.depends_on:
        other = steps.get(name)
        if other is None:
            family = steps.family(family_of(name) or "")
            if family.satisfying < family.members or not _is_closed(steps, name):
                return False
        elif not other.satisfies:
            return False
    for name in step.after:
        other = steps.get(name)
        if other is None:
            family = steps.family(family_of(name) or "")
            if family.ended < family.members or not _is_closed(steps, name):
                return False
        elif not other.ended:
            return False
    return True


def _is_closed(steps: Steps, name: str) -> bool:
    """Of a family; or of a member that, run again, isn't spawned again so far, and may never be."""
    return steps.is_closed(name.partition(":")[0])


def members(steps: Steps, name: str) -> Sequence[Step]:
    """The steps of that name: one, or a family."""
    one = steps.get(name)
    return steps.of_family(name) if one is None else [one]


def waited_for(steps: Steps, names: tuple[str, ...]) -> Iterator[Step]:
    """The steps that these names stand for, as far as they are there."""
    for name in names:
        family = family_of(name)
        if family is None:
            if name in steps:
                yield steps[name]
        else:
            yield from members(steps, family)


def let_down_by(steps: Steps, culprit: Step) -> Sequence[str]:
    """What stands in ``depends_on`` of whoever can't start, now that this one has given up.

    To be asked before another one gives up: only the first of a family ends the wait of
    those that depend on all of it.
    """
    names = [culprit.key]
    if culprit.spec.dynamic:
        family = steps.family(culprit.name)
        if family.ended - family.satisfying == 1:
            names.append(f"{culprit.name}:*")
    return names


def dependents(steps: Steps, names: Sequence[str]) -> Sequence[Step]:
    """The steps that can't start without the success of one of these, in their order."""
    return [
        step for step in steps.waiting_for(*names) if any(name in step.depends_on for name in names)
    ]


def culprit_above(steps: Steps, step: Step) -> Step | None:
    """A step that has ended and without which this one can't start."""
    for name in step.depends_on:
        family = family_of(name)
        if family is not None:
            counted = steps.family(family)
            if counted.ended == counted.satisfying:
                continue
        for other in waited_for(steps, (name,)):
            if other.ended and not other.satisfies:
                return other
    return None


def held_up_by(steps: Steps, failed: Iterable[Step]) -> set[str]:
    """The keys of the steps that can't start because of these, or of others that can't."""
    found: set[str] = set()
    told: set[str] = set()
    above = list(failed)
    while above:
        step = above.pop()
        names = {step.key, f"{step.name}:*"} if step.spec.dynamic else {step.key}
        for other in dependents(steps, [*(names - told)]):
            if other.key not in found and not other.satisfies:
                found.add(other.key)
                above.append(other)
        told |= names
    return found


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
        others: Iterable[Step]
        if family is None:
            one = steps.get(name)
            others = () if one is None else (one,)
        else:
            spec = definition.spec(family)
            others = steps.special_of(family)  # the others wait for what their family does
            if spec is not None:
                above.extend((*spec.depends_on, *spec.after))
                above.extend(
                    f"{spawner.name}:*" if spawner.dynamic else spawner.name
                    for spawner in definition.spawners(spec.name)
                )
        for other in others:
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
