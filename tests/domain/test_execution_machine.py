"""Any verbs in any order on any graph: what is always true stays true.

``Life`` leads one execution through any interleaving of its verbs, told twice, told
late, and told out of place. Beside it stands what an observer knows: ``Known``, made
from the definition, from what was asked for and from the facts that came of it, and
from no other code of the domain. Each invariant holds the execution against that.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from domain import events
from domain.definition import PipelineDefinition, RetryPolicy, StepSpec
from domain.errors import AttemptOver, IllegalTransition, InvalidInput, NotExternal, RushesError
from domain.events import Fact
from domain.execution import MAX_TAKEOVERS, Execution
from domain.steps import Steps

NOW = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)

STEPS = 50
"""Verbs in one life: enough to fail, be put right, fail again, and be run again."""

ENOUGH = 1_000
"""Rounds after which what hasn't come to its end never will."""

ROUNDING = 1e-9
"""Of percents, where sums of the same fractions are made in another order."""

ENDED = ("completed", "failed", "skipped", "cancelled")
GIVEN = {"given": 1}
PARAMETERS = ("A", "B", "C")
BY_HAND = "skipped by hand"

DEEDS = {
    "start_everything": 5,
    "start": 4,
    "complete": 6,
    "spawn": 9,
    "fail": 4,
    "time_passes": 5,
    "retry": 3,
    "waive": 3,
    "settle": 3,
    "run_again": 3,
    "queue": 5,
    "note": 2,
    "contradict": 1,
    "leave": 1,
    "release": 1,
    "lose": 1,
    "lose_it_again_and_again": 1,
    "recover": 1,
    "claim": 12,
    "beat": 3,
    "begin": 1,
    "pause": 1,
    "resume": 2,
    "cancel": 1,
    "report_again": 1,
    "report_of_an_attempt_that_is_over": 2,
    "start_what_isnt_ready": 1,
    "spawn_what_isnt_declared": 1,
}
"""What may happen, and how often: a draw of our own, since a machine with a rule for each
leads most lives with half of its rules switched off, and gets nowhere with families."""

PICK = st.integers(0, 59)
"""Which of what there is to choose from; 60 is a multiple of most numbers of choices."""

MORE = st.integers(0, 2**16 - 1)
"""Bits for whatever else a deed has to choose."""


@st.composite
def definitions(draw: st.DrawFn) -> PipelineDefinition:
    """Any graph: steps and families, each waiting for some that were drawn before it."""
    specs: list[StepSpec] = []
    for number in range(draw(st.integers(3, 8) | st.integers(1, 8))):
        dynamic = bool(specs) and draw(st.integers(0, 4)) > 2
        name = f"f{number}" if dynamic else f"s{number}"
        required = draw(st.integers(0, 2)) < 2
        waits: tuple[list[str], list[str]] = ([], [])
        relations = draw(st.integers(0, 4 ** len(specs) - 1))
        for spec in specs:
            relations, relation = divmod(relations, 4)
            if relation in (1, 2):
                allowed = spec.required or not required
                waits[0 if relation == 1 and allowed else 1].append(named(spec))
        external = draw(st.integers(0, 4)) > 2
        if dynamic:
            for index in draw(st.sets(st.integers(0, len(specs) - 1), min_size=1, max_size=2)):
                specs[index] = replace(specs[index], spawns=(*specs[index].spawns, name))
        specs.append(
            StepSpec(
                name,
                depends_on=tuple(waits[0]),
                after=tuple(waits[1]),
                required=required,
                weight=draw(st.integers(1, 50)),
                external=external,
                retry=RetryPolicy(retries=max(0, draw(st.integers(-1, 2))), delay_s=5, factor=3),
                lease_s=draw(st.sampled_from([15, None, 15])) if external else None,
                run_timeout_s=draw(st.sampled_from([None, 30])) if external else None,
                queue_timeout_s=None if external or draw(st.booleans()) else 20,
                dynamic=dynamic,
            )
        )
    return PipelineDefinition("film", tuple(draw(st.permutations(specs))))


def named(spec: StepSpec) -> str:
    return f"{spec.name}:*" if spec.dynamic else spec.name


@dataclass(slots=True)
class Known:
    """A step, as somebody knows it who was told what was asked for and what came of it.

    last: the report that ended its last attempt, if nothing has happened to it since.
    """

    spec: StepSpec
    depends_on: tuple[str, ...]
    after: tuple[str, ...]
    by: str | None = None
    params: Mapping[str, Any] | None = None
    status: str = "pending"
    attempt: int = 0
    failures: int = 0
    lost: int = 0
    fraction: float = 0.0
    waived: bool = False
    left: Mapping[str, Any] | None = None
    output: Mapping[str, Any] | None = None
    not_before: datetime | None = None
    queued_at: datetime | None = None
    worker: str | None = None
    claimed_at: datetime | None = None
    lease_ends_at: datetime | None = None
    last: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, spec: StepSpec) -> Known:
        return cls(spec, spec.depends_on, spec.after)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def good(self) -> bool:
        return self.status == "completed" or self.waived

    @property
    def hopeless(self) -> bool:
        """Whether it ended so that what depends on it can't run."""
        return self.status in ("failed", "skipped") and not self.waived

    @property
    def queue_ends_at(self) -> datetime | None:
        if self.queued_at is None or self.spec.queue_timeout_s is None:
            return None
        return self.queued_at + timedelta(seconds=self.spec.queue_timeout_s)

    @property
    def claimed(self) -> bool:
        return self.worker is not None and self.status == "running"

    @property
    def run_ends_at(self) -> datetime | None:
        if self.claimed_at is None or self.spec.run_timeout_s is None:
            return None
        return self.claimed_at + timedelta(seconds=self.spec.run_timeout_s)

    @property
    def ends(self) -> list[datetime]:
        """When a worker outside will have been silent, or at it, for too long."""
        times = (self.lease_ends_at, self.run_ends_at) if self.claimed else ()
        return [time for time in times if time is not None]

    def beats(self, at: datetime) -> None:
        if self.claimed and self.spec.lease_s is not None:
            self.lease_ends_at = at + timedelta(seconds=self.spec.lease_s)

    def again(self) -> None:
        """Pending again, with nothing left of the attempt before."""
        self.status, self.fraction, self.queued_at, self.last = "pending", 0.0, None, None
        self.worker = self.claimed_at = self.lease_ends_at = None


class Life(RuleBasedStateMachine):
    """One execution at a time; every verb works on a draft, and time only goes forwards."""

    execution: Execution

    @initialize(definition=definitions(), held=st.booleans())
    def trigger(self, definition: PipelineDefinition, held: bool) -> None:
        self.now = NOW
        self.spawning: Known | None = None
        self.follow(
            Execution.trigger(definition, uuid="u", data=GIVEN, at=NOW, held=held),
            {spec.name: Known.of(spec) for spec in definition.steps if not spec.dynamic},
        )

    def follow(self, execution: Execution, known: dict[str, Known]) -> None:
        """A new execution, and what is known of it before its first fact."""
        self.execution, self.known = execution, known
        self.specs = {spec.name: spec for spec in execution.definition.steps}
        self.status, self.paused = "pending", False
        self.facts: list[Fact] = []
        self.attempts: list[tuple[str, int]] = []
        self.progress = self.ceiling = 0
        for fact in execution.recorded:
            self.tell(fact)

    # -- what is asked for -------------------------------------------------------

    def verb(self, name: str, *args: Any, **more: Any) -> list[Fact]:
        """Call it on a draft and adopt that; one that raises leaves no trace."""
        self.now += timedelta(seconds=1)
        note(f"{name}{args} {more or ''}")
        before, draft = contents(self.execution), self.execution.copy()
        try:
            getattr(draft, name)(*args, at=self.now, **more)
        finally:
            assert contents(self.execution) == before, "a draft has changed its original"
        assert (contents(draft) != before) <= draft.differs_from(self.execution), "not stored"
        self.execution = draft
        for fact in draft.recorded:
            self.tell(fact)
        return draft.recorded

    def refused(self, error: type[RushesError], name: str, *args: Any, **more: Any) -> None:
        with pytest.raises(error):
            self.verb(name, *args, **more)

    def unless(self, allowed: bool, name: str, *args: Any) -> bool:
        """Do it, or see it refused; whether it was done."""
        if allowed:
            self.verb(name, *args)
        else:
            self.refused(IllegalTransition, name, *args)
        return allowed

    def those(self, *statuses: str) -> list[str]:
        return [key for key, step in self.known.items() if step.status in statuses]

    def output(self, key: str) -> dict[str, Any]:
        step = self.known[key]
        return {"made_at": step.attempt} if step.spec.dynamic else {f"{key}_out": step.attempt}

    @rule(
        deed=st.sampled_from([d for d, n in DEEDS.items() for _ in range(n)]), pick=PICK, more=MORE
    )
    def happen(self, deed: str, pick: int, more: int) -> None:
        """Mostly what makes sense now; now and then what has to be refused."""
        if more % 8 and not self.makes_sense(deed):
            deed = self.what_gets_it_on()
        getattr(self, deed)(pick, more >> 3)

    def makes_sense(self, deed: str) -> bool:
        match deed:
            case "begin":
                return self.status == "pending"
            case "start" | "start_everything" | "queue" | "lose_it_again_and_again":
                return bool(self.ready())
            case "complete" | "contradict" | "fail" | "leave" | "release" | "lose":
                return bool(self.those("running"))
            case "claim":
                running = [self.known[key] for key in self.those("running")]
                return any(step.spec.external and not step.claimed for step in running)
            case "beat":
                return any(step.claimed for step in self.known.values())
            case "spawn":
                return bool(self.spawners())
            case "retry" | "waive" | "settle":
                return self.status == "failed"
            case "resume":
                return self.paused
            case "run_again":
                return self.status not in ("pending", "running")
        return True

    def what_gets_it_on(self) -> str:
        if self.status in ("completed", "cancelled"):
            return "run_again"
        if self.status in ("pending", "failed"):
            return "begin" if self.status == "pending" else "retry"
        if self.paused:
            return "resume"
        return "start" if self.ready() else "complete" if self.those("running") else "time_passes"

    def begin(self, _: int, __: int) -> None:
        self.unless(self.status == "pending", "begin")

    def start(self, pick: int, _: int) -> None:
        for key in one_of(self.ready(), pick):
            self.verb("start", key)

    def start_everything(self, _: int, __: int) -> None:
        for key in self.ready():
            self.verb("start", key)

    def start_what_isnt_ready(self, pick: int, _: int) -> None:
        for key in one_of([key for key in self.known if key not in self.ready()], pick):
            self.refused(IllegalTransition, "start", key)

    def queue(self, _: int, __: int) -> None:
        """There is no slot for any of those that are ready and need one."""
        for key in self.ready():
            if not self.known[key].spec.external:
                self.verb("queue", key)
                if self.known[key].queued_at is None:
                    self.known[key].queued_at = self.now

    def time_passes(self, pick: int, _: int) -> None:
        self.now += timedelta(seconds=pick // 2)
        failing, lost = self.over(self.now + timedelta(seconds=1))
        told = self.verb("tick")
        assert [fact.subject for fact in told if isinstance(fact, events.StepFailed)] == failing
        for key in lost:
            self.known[key].again()
            self.known[key].lost += 1
        assert self.execution.updated_at == self.now

    def over(self, at: datetime) -> tuple[list[str], list[str]]:
        """Who fails because its time is over by then, and who is taken over."""
        failing: list[str] = []
        lost: list[str] = []
        running = self.status == "running"
        for key in self.execution.steps:
            step = self.known[key]
            if step.run_ends_at is not None and step.claimed and step.run_ends_at <= at:
                if running and step.failures < step.spec.retry.retries:
                    continue
            elif step.claimed and step.lease_ends_at is not None and step.lease_ends_at <= at:
                if step.lost < MAX_TAKEOVERS:
                    lost.append(key)
                    continue
            # The first that fails the execution ends the waiting of all others.
            elif not running or key not in self.overdue(at):
                continue
            failing.append(key)
            running = running and not step.spec.required
        return failing, lost

    def claim(self, pick: int, who: int) -> None:
        """A worker outside begins with what was started for one."""
        outside = [key for key in self.those("running") if self.known[key].spec.external]
        for key in one_of(outside or list(self.known), pick):
            step, worker = self.known[key], f"w{who % 3}"
            if not step.spec.external:
                self.refused(NotExternal, "claim", key, worker)
                continue
            goes = self.status == step.status == "running"
            if self.unless(goes and not self.paused and not step.claimed, "claim", key, worker):
                step.worker, step.claimed_at = worker, self.now
                step.beats(self.now)

    def beat(self, pick: int, _: int) -> None:
        claimed = [key for key, step in self.known.items() if step.claimed]
        for key in one_of(claimed or self.those("running"), pick):
            assert not self.verb("beat", key, self.known[key].attempt)
            self.known[key].beats(self.now)

    def complete(self, pick: int, nothing: int) -> None:
        for key in one_of(self.those("running"), pick):
            self.finish(key, {} if nothing % 8 == 7 else self.output(key))

    def finish(self, key: str, output: Mapping[str, Any]) -> None:
        step = self.known[key]
        self.verb("complete", key, step.attempt, output)
        step.output, step.last = output, ("complete", key, step.attempt, output)
        if self.status != "completed":
            self.progress_is_what_is_done()

    def contradict(self, pick: int, which: int) -> None:
        """Its output says of somebody else's key what isn't so: that won't mend by itself."""
        for key in one_of([k for k in self.those("running") if k in self.specs], pick):
            step = self.known[key]
            output = dict.fromkeys(one_of(list(self.execution.data), which), "something else")
            self.verb("complete", key, step.attempt, output)
            assert step.status == "failed"
            step.last = ("complete", key, step.attempt, output)

    def fail(self, pick: int, chance: int) -> None:
        for key in one_of(self.those("running"), pick):
            step, tries, permanent = self.known[key], self.tries_left(key), chance % 4 == 3
            said, chance_of = f"broken at {step.attempt}", (chance >> 2) / 2**13
            self.verb("fail", key, step.attempt, said, permanent=permanent, chance=chance_of)
            assert step.status == ("pending" if tries and not permanent else "failed")
            step.last = ("fail", key, step.attempt, said)

    def tries_left(self, key: str) -> bool:
        step = self.known[key]
        return self.status == "running" and step.failures < step.spec.retry.retries

    def release(self, pick: int, _: int) -> None:
        for key in one_of(self.those("running"), pick):
            assert not self.verb("release", key, self.known[key].attempt)
            self.known[key].again()

    def leave(self, pick: int, what: int) -> None:
        for key in one_of(self.those("running"), pick):
            self.known[key].left = {"done": what}
            self.verb("leave", key, self.known[key].attempt, self.known[key].left)

    def lose(self, pick: int, _: int) -> None:
        for key in one_of(self.those("running"), pick):
            self.lose_one(key)

    def lose_one(self, key: str) -> None:
        step = self.known[key]
        last = step.lost == MAX_TAKEOVERS
        self.verb("lose", key, step.attempt)
        assert (step.status == "failed") == last, "takeovers are bounded, and no fewer"
        if not last:
            step.again()
            step.lost += 1

    def lose_it_again_and_again(self, pick: int, _: int) -> None:
        for key in one_of(self.ready(), pick):
            for _ in range(MAX_TAKEOVERS + 1):
                if key in self.ready():
                    self.verb("start", key)
                    self.lose_one(key)
            assert self.known[key].status == "failed", "a step that kills its process ends"

    def recover(self, _: int, __: int) -> None:
        """The process has died; services outside haven't."""
        lost = [key for key in self.those("running") if not self.known[key].spec.external]
        last = {key for key in lost if self.known[key].lost == MAX_TAKEOVERS}
        self.progress = self.ceiling = 0
        for step in self.known.values():
            step.queued_at = None  # that nobody gave slots is no fault of theirs
        self.verb("recover")
        for step in self.known.values():
            step.beats(self.now)  # nor is it theirs that nobody heard them
        for key in lost:
            step = self.known[key]
            assert (step.status == "failed") == (key in last)
            if key not in last:
                step.again()
                step.lost += 1

    def note(self, pick: int, how: int) -> None:
        for key in one_of(list(self.known), pick):
            step, stale = self.known[key], how % 4 == 3
            fraction = math.nan if how % 8 == 0 else (how >> 2) / 2**13 * 1.2 - 0.1
            moves = step.status == "running" and not stale and fraction > step.fraction
            self.verb("note", {key: (step.attempt - stale, fraction), "nobody": (1, 0.5)})
            if moves:
                step.fraction = min(fraction, 1.0)
                self.progress_is_what_is_done()

    def spawn(self, pick: int, more: int) -> None:
        """Several at a time, and now and then one that waits for something of its own."""
        for by, name in one_of(self.spawners(), pick):
            for parameter in PARAMETERS[: 1 + more % 3]:
                self.spawn_one(by, name, parameter, more >> 2)

    def spawn_one(self, by: str, name: str, parameter: str, more: int) -> None:
        spec, key, extra = self.specs[name], f"{name}:{parameter}", more % 8
        targets = [*self.known, *(named(each) for each in self.specs.values() if each.dynamic)]
        asked = {
            "depends_on": one_of(targets, more >> 3) if extra in (1, 3) else (),
            "after": one_of(targets, more >> 6) if extra in (2, 3) else (),
            "params": {"n": 1} if extra == 4 else {},
        }
        wanted = Known(
            spec,
            (*spec.depends_on, *asked["depends_on"]),
            (*spec.after, *asked["after"]),
            by,
            asked["params"],
        )
        call = ("spawn", by, self.known[by].attempt, name, parameter)
        present = self.known.get(key)
        if present is not None:
            if all(getattr(wanted, each) == getattr(present, each) for each in asked):
                assert not self.verb(*call, **asked), "spawning the same again changes nothing"
            else:
                self.refused(InvalidInput, *call, **asked)
            return
        self.spawning = wanted
        try:
            (fact, *_) = self.verb(*call, **asked)
        except InvalidInput:
            # What it may not wait for is seen in what it comes to if it does.
            waits = (*asked["depends_on"], *asked["after"])
            harmless = all(each in self.known and self.known[each].good for each in waits)
            assert not harmless or self.depends_on_less(spec, asked["depends_on"])
        else:
            assert fact == events.StepSpawned(self.now, name, key, 0, by)
            assert not self.depends_on_less(spec, asked["depends_on"])

    def depends_on_less(self, spec: StepSpec, names: Sequence[str]) -> bool:
        """Whether a required one would depend on an optional one."""
        return spec.required and any(not self.spec(name).required for name in names)

    def spawners(self) -> list[tuple[str, str]]:
        return [(key, n) for key in self.those("running") for n in self.known[key].spec.spawns]

    def spawn_what_isnt_declared(self, pick: int, _: int) -> None:
        for key in one_of(self.those("running"), pick):
            for name in self.specs.keys() - set(self.known[key].spec.spawns):
                self.refused(InvalidInput, "spawn", key, self.known[key].attempt, name, "A")

    def report_again(self, pick: int, _: int) -> None:
        """The same outcome of the same attempt, told twice."""
        said = [step.last for step in self.known.values() if step.last is not None]
        for report in one_of(said, pick):
            before = contents(self.execution)
            assert not self.verb(*report)
            assert contents(self.execution) == before

    def report_of_an_attempt_that_is_over(self, pick: int, what: int) -> None:
        """Of any that there ever was, or of one that will be."""
        for key, attempt in one_of(self.attempts, what >> 3):
            step = self.known[key]
            late = step.attempt + 1 if what % 8 == 7 else attempt
            if step.status == "running" and step.attempt == late:
                continue
            spawned = next(iter(step.spec.spawns), "nobody")
            reports: Sequence[tuple[Any, ...]] = (
                ("complete", key, late, {"late": late}),
                ("fail", key, late, "too late"),
                ("lose", key, late),
                ("release", key, late),
                ("leave", key, late, {"late": late}),
                ("beat", key, late),
                ("spawn", key, late, spawned, "A"),
            )
            for report in one_of(reports, pick):
                self.refused(AttemptOver, *report)

    def retry(self, _: int, __: int) -> None:
        before = self.execution.steps
        lost = [key for key, step in self.known.items() if step.hopeless]
        if self.unless(self.status == "failed", "retry"):
            assert set(lost).isdisjoint(self.those("failed", "skipped"))
            for key, step in before.items():
                if step.ended and key not in lost:
                    assert self.execution.steps[key] is step, "what completed is kept"

    def cancel(self, _: int, sure: int) -> None:
        if self.status == "cancelled":
            assert not self.verb("cancel")
        elif sure % 4 == 3:
            self.unless(self.status in ("pending", "running"), "cancel")

    def pause(self, _: int, __: int) -> None:
        if self.unless(self.status in ("pending", "running"), "pause"):
            assert self.paused

    def resume(self, _: int, __: int) -> None:
        if self.unless(self.status in ("pending", "running"), "resume"):
            assert not self.paused

    def waive(self, pick: int, _: int) -> None:
        for key in one_of(self.those("failed") or list(self.known), pick):
            step = self.known[key]
            repeated = step.status == "skipped" and step.waived
            self.unless(repeated or self.status == step.status == "failed", "waive", key)

    def settle(self, pick: int, _: int) -> None:
        for key in one_of(self.those("failed") or list(self.known), pick):
            step, output = self.known[key], self.output(key)
            repeated = step.status == "completed" and step.output == output
            allowed = repeated or self.status == step.status == "failed"
            if self.unless(allowed, "settle", key, output):
                step.output = output

    def run_again(self, pick: int, held: int) -> None:
        """A part of it, as a new execution, whose life is led from here."""
        (key,) = one_of(list(self.known), pick)
        before = contents(self.execution)
        if self.status in ("pending", "running"):
            with pytest.raises(IllegalTransition):
                Execution.rerun(self.execution, key, uuid="u", at=self.now)
            return
        again = Execution.rerun(self.execution, key, uuid="u", at=self.now, held=held % 4 == 3)
        assert contents(self.execution) == before, "the original stays as it was"
        done_again = self.downstream(key)
        kept = {k: s for k, s in self.known.items() if s.good and k not in done_again}
        rest = {k: s for k, s in self.known.items() if k not in kept}
        known = {name: Known.of(spec) for name, spec in self.specs.items() if not spec.dynamic}
        known.update({k: replace(s, last=None) for k, s in kept.items()})
        for k, s in rest.items():
            if s.spec.dynamic and s.by not in rest:
                known[k] = Known(s.spec, s.depends_on, s.after, s.by, s.params)
        self.follow(again, known)

    # -- what is known -----------------------------------------------------------

    def spec(self, name: str) -> StepSpec:
        """Of a step or a family, by its name, its key or ``name:*``."""
        return self.specs[name.partition(":")[0]]

    def makers(self, family: str) -> set[str]:
        """The names of all that may spawn it, or spawn those that may."""
        found = {spec.name for spec in self.specs.values() if family in spec.spawns}
        return found.union(*(self.makers(name) for name in found))

    def waited_for(self, name: str) -> list[Known]:
        if not name.endswith(":*"):
            return [self.known[name]] if name in self.known else []
        return [step for step in self.known.values() if step.spec.name == name[:-2]]

    def is_closed(self, name: str) -> bool:
        """Whether all are there that the name stands for, and will ever be."""
        makers = set() if name in self.known else self.makers(name.partition(":")[0])
        return all(step.ended for step in self.known.values() if step.spec.name in makers)

    def is_hopeless(self, step: Known) -> bool:
        return any(other.hopeless for name in step.depends_on for other in self.waited_for(name))

    def ready(self) -> list[str]:
        """By the rules, not by the engine: what may start."""
        if self.status != "running" or self.paused:
            return []
        return [key for key, step in self.known.items() if self.may_start(step)]

    def may_start(self, step: Known) -> bool:
        return (
            step.status == "pending"
            and (step.not_before is None or step.not_before <= self.execution.updated_at)
            and all(self.is_closed(name) for name in (*step.depends_on, *step.after))
            and all(other.good for name in step.depends_on for other in self.waited_for(name))
            and all(other.ended for name in step.after for other in self.waited_for(name))
        )

    def overdue(self, at: datetime) -> list[str]:
        """Who has been ready, and waiting for a slot, for too long by then."""
        return [
            key
            for key, step in self.known.items()
            if step.queue_ends_at is not None and step.queue_ends_at <= at
        ]

    def progress_is_what_is_done(self) -> None:
        progress = self.execution.progress
        least, most = self.share(-ROUNDING), self.share(ROUNDING)
        assert max(self.progress, least) <= progress <= max(self.progress, most)

    def share(self, rounding: float) -> int:
        """The weighted share of what has ended, and of what runs; a failure isn't done."""
        done = 0.0
        for step in self.known.values():
            if step.status == "running":
                done += step.spec.weight * step.fraction
            elif step.good or (step.status in ("failed", "skipped") and not step.spec.required):
                done += step.spec.weight
        weight = sum(step.spec.weight for step in self.known.values())
        return min(99, math.floor(100 * done / weight + rounding))

    def downstream(self, key: str) -> set[str]:
        """The step, what waits for it, what these have made, and so on."""
        found: set[str] = set()
        above = [key]
        while above:
            key = above.pop()
            if key in found:
                continue
            found.add(key)
            makes = {
                s.name for s in self.specs.values() if self.spec(key).name in self.makers(s.name)
            }
            for other, step in self.known.items():
                for name in (*step.depends_on, *step.after):
                    family = name.removesuffix(":*")
                    if name == key or (family != name and family in {self.spec(key).name, *makes}):
                        above.append(other)
                if step.by == key:
                    above.append(other)
        return found

    # -- what the facts say ------------------------------------------------------

    def tell(self, fact: Fact) -> None:
        assert self.facts == [] or self.facts[-1].at <= fact.at <= self.now, "time goes forwards"
        self.facts.append(fact)
        match fact:
            case events.PipelineStarted(steps=steps, kept=kept):
                assert self.status == "pending"
                assert set(steps) == set(self.known)
                assert set(kept) == {key for key, step in self.known.items() if step.ended}
                self.status = "running"
            case events.PipelineCompleted(warnings=warnings):
                assert self.status == "running"
                assert warnings == self.execution.warnings
                self.status, self.paused = "completed", False
            case events.PipelineFailed(step_key=key, attempt=attempt):
                step = self.known[key]
                assert (self.status, step.status, step.attempt) == ("running", "failed", attempt)
                assert step.spec.required
                self.status, self.paused = "failed", False
            case events.PipelineCancelled(cancelled=cancelled):
                assert self.status in ("pending", "running")
                assert list(cancelled) == self.those("pending", "running")
                for key in cancelled:
                    self.known[key].status = "cancelled"
                    self.known[key].last = None
                self.status, self.paused = "cancelled", False
            case events.PipelineRetried(reopened=reopened):
                assert self.status == "failed"
                for key in reopened:
                    assert self.known[key].hopeless
                    self.known[key].again()
                    self.known[key].failures = self.known[key].lost = 0
                    self.known[key].not_before = None
                self.status, self.progress, self.ceiling = "running", 0, 0
            case events.PipelinePaused() | events.PipelineResumed():
                assert self.status in ("pending", "running")
                assert self.paused == isinstance(fact, events.PipelineResumed), "told once"
                self.paused = not self.paused
            case events.StepFact(step_key=key):
                self.tell_of_step(key, fact)
            case _:
                raise AssertionError(f"nobody knows what {fact.type} means")

    def tell_of_step(self, key: str, fact: events.StepFact) -> None:
        if isinstance(fact, events.StepSpawned):
            assert self.spawning is not None
            assert key not in self.known, "spawned twice"
            assert self.known[fact.spawned_by].status == "running"
            self.known[key] = self.spawning
            return
        step = self.known[key]
        was, step.last = step.status, None
        match fact:
            case events.StepStarted(attempt=attempt):
                assert was == "pending"
                assert attempt == step.attempt + 1, "attempt rises at each start"
                assert not step.good, "no completed step runs again"
                assert step.not_before is None or fact.at >= step.not_before, "not before its time"
                step.again()
                step.status, step.attempt, step.not_before = "running", attempt, None
                self.attempts.append((key, attempt))
            case events.StepCompleted(attempt=attempt, progress=progress):
                assert was == "running" or (was == self.status == "failed"), "or settled by hand"
                assert attempt == step.attempt
                assert progress == self.execution.progress or self.status == "failed"
                step.status = "completed"
            case events.StepFailed(attempt=attempt, error=error):
                assert was == "running" or (key in self.overdue(fact.at) and "for a slot" in error)
                assert attempt == step.attempt
                step.status, step.failures = "failed", step.failures + 1
            case events.StepRetrying(attempt=attempt, next_attempt_at=then):
                assert (was, step.attempt, self.status) == ("running", attempt, "running")
                assert self.tries_left(key), "only as often as its policy allows"
                pause = step.spec.retry.delay_s * step.spec.retry.factor**step.failures
                assert (
                    abs((then - fact.at).total_seconds() / pause - 1)
                    <= step.spec.retry.jitter + 1e-6
                )
                step.again()
                step.failures, step.not_before = step.failures + 1, then
            case events.StepSkipped(error=error):
                if error == BY_HAND:
                    assert was == self.status == "failed"
                    step.waived = True
                else:
                    assert was == "pending"
                    assert self.is_hopeless(step)
                step.status = "skipped"

    # -- what is always true -----------------------------------------------------

    @invariant()
    def the_state_is_what_the_facts_have_said(self) -> None:
        assert str(self.execution.status) == self.status
        assert (self.execution.paused_at is not None) == self.paused
        stored = self.execution.steps
        assert {key: str(step.status) for key, step in stored.items()} == {
            key: step.status for key, step in self.known.items()
        }
        for key, step in stored.items():
            known = self.known[key]
            assert (step.attempt, step.progress) == (known.attempt, pytest.approx(self.done(known)))
            assert (step.depends_on, step.after) == (known.depends_on, known.after)
            assert step.waived == known.waived
            assert step.claimed == known.claimed
            if known.claimed:
                assert (step.worker, step.started_at) == (known.worker, known.claimed_at)
                assert (step.lease_ends_at, step.run_ends_at) == (
                    known.lease_ends_at,
                    known.run_ends_at,
                )
            assert step.not_before == known.not_before or known.ended

    @staticmethod
    def done(step: Known) -> float:
        return {"completed": 1.0, "pending": 0.0}.get(step.status, step.fraction)

    @invariant()
    def failures_and_lost_workers_are_counted_apart_since_the_last_retry_by_a_person(self) -> None:
        for key, step in self.execution.steps.items():
            assert (step.failures, step.takeovers) == (
                self.known[key].failures,
                self.known[key].lost,
            )
            assert step.takeovers <= MAX_TAKEOVERS

    @invariant()
    def what_may_start_is_what_the_rules_let_start(self) -> None:
        queued = {key for key, step in self.known.items() if step.queued_at is not None}
        assert {step.key for step in self.execution.ready()} == set(self.ready()) - queued
        asked = self.execution.copy()
        asked.ask_again()
        assert {step.key for step in asked.ready()} == set(self.ready())
        for key, step in self.known.items():
            if key not in self.ready():
                step.queued_at = None  # it waits for something else than a slot

    @invariant()
    def what_is_counted_as_steps_change_is_what_is_counted_anew(self) -> None:
        counted = self.execution.steps
        anew = Steps(self.execution.definition, counted.values())
        assert (counted.open, counted.percent_done) == (anew.open, anew.percent_done)
        for spec in self.execution.definition.steps:
            assert counted.family(spec.name) == anew.family(spec.name)
            assert counted.is_closed(spec.name) == anew.is_closed(spec.name)
            for name in (spec.name, f"{spec.name}:*"):
                assert counted.waiting_for(name) == anew.waiting_for(name)
        assert set(counted.fresh) <= set(anew.fresh)
        assert counted.due(self.now) == anew.due(self.now)

    @invariant()
    def the_data_is_what_the_trigger_said_and_what_completed_steps_put_out(self) -> None:
        expected: dict[str, Any] = dict(GIVEN)
        for key, step in self.known.items():
            if step.status != "completed":
                continue
            if not step.spec.dynamic:
                expected |= step.output or {}
            elif step.output:
                family = expected.setdefault(step.spec.name, {})
                expected[step.spec.name] = {**family, key.partition(":")[2]: step.output}
            assert self.execution.step(key).output == step.output
        assert self.execution.data == expected

    @invariant()
    def the_next_attempt_is_given_the_last_checkpoint(self) -> None:
        for key, step in self.execution.steps.items():
            over = step.status in ("completed", "cancelled")
            assert step.checkpoint == (None if over else self.known[key].left)

    @invariant()
    def progress_never_falls_within_a_run_and_is_no_more_than_what_is_done(self) -> None:
        progress = self.execution.progress
        self.ceiling = max(self.ceiling, self.share(ROUNDING))
        if self.status == "completed":
            assert progress == 100
        else:
            assert self.progress <= progress <= self.ceiling
        self.progress = progress

    @invariant()
    def it_has_failed_exactly_if_a_required_step_has_and_says_which(self) -> None:
        broken = [key for key in self.those("failed") if self.known[key].spec.required]
        assert bool(broken) == (self.status == "failed")
        if not broken:
            assert self.execution.error_message is None
            return
        told = next(f for f in reversed(self.facts) if isinstance(f, events.PipelineFailed))
        assert self.execution.error_message == (
            f"step {told.step_key} failed (attempt {told.attempt}): {told.message}"
        )

    @invariant()
    def an_optional_failure_leaves_a_warning(self) -> None:
        for key in self.those("failed"):
            if not self.known[key].spec.required:
                assert any(f"step {key} failed" in each for each in self.execution.warnings)

    @invariant()
    def what_depends_on_a_failure_is_skipped_and_nothing_else_is(self) -> None:
        for step in self.known.values():
            if self.is_hopeless(step):
                assert step.status != "pending"
            elif self.status == "running":
                assert step.status != "skipped" or step.waived

    @invariant()
    def it_has_completed_exactly_if_everything_has_ended_well(self) -> None:
        if self.status not in ("pending", "cancelled"):
            well = all(s.good or (s.ended and not s.spec.required) for s in self.known.values())
            assert well == (self.status == "completed")

    @invariant()
    def once_cancelled_nothing_waits_and_nothing_runs(self) -> None:
        if self.status == "cancelled":
            assert not self.those("pending", "running")
            assert isinstance(self.facts[-1], events.PipelineCancelled)

    @invariant()
    def while_it_runs_something_runs_or_may_start_or_is_scheduled(self) -> None:
        goes_on = self.status == "running" and not self.paused
        due = [
            time
            for step in self.known.values()
            if step.status == "pending" and goes_on
            for time in [step.not_before if step.queued_at is None else step.queue_ends_at]
            if time is not None and (step.queued_at or time > self.execution.updated_at)
        ]
        outside = [time for step in self.known.values() for time in step.ends]
        assert self.execution.next_look_at() == min(due + outside, default=None)
        assert not goes_on or self.those("running") or self.ready() or due

    @invariant()
    def who_outside_is_waited_for_is_named(self) -> None:
        assert list(self.execution.waits_for()) == [
            key for key in self.those("running") if self.known[key].spec.external
        ]

    def teardown(self) -> None:
        """Whatever became of it: once nothing goes wrong any more, it comes to its end."""
        if sys.exc_info()[0] is not None or not hasattr(self, "execution"):
            return
        for _ in range(ENOUGH):
            if self.status in ("completed", "cancelled"):
                break
            if self.status == "pending":
                self.verb("begin")
            elif self.status == "failed":
                self.verb("retry")
            elif self.paused:
                self.verb("resume")
            elif running := self.those("running"):
                self.finish(running[0], self.output(running[0]))
            elif ready := self.ready():
                self.verb("start", ready[0])
            else:
                then = self.execution.next_look_at()
                assert then is not None, "nothing runs, and nothing is scheduled"
                self.now = then
                self.verb("tick")
            self.check_invariants_by_hand()
        assert self.status in ("completed", "cancelled"), "it never ends"

    def check_invariants_by_hand(self) -> None:
        for name, member in vars(Life).items():
            if hasattr(member, "hypothesis_stateful_invariant"):
                getattr(self, name)()


def one_of(options: Sequence[Any], pick: int) -> Sequence[Any]:
    """The one that is picked, or none if there is none."""
    return [options[pick % len(options)]] if options else []


def contents(execution: Execution) -> tuple[Any, ...]:
    """All that a store keeps of it and that tells two states apart."""
    return (
        execution.status,
        dict(execution.steps),
        execution.data,
        execution.error_message,
        execution.warnings,
        execution.progress,
        execution.paused_at,
    )


Life.TestCase.settings = settings(stateful_step_count=STEPS, deadline=None)
TestLife = Life.TestCase
