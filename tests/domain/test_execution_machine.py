"""Any verbs in any order on any graph: what is always true stays true."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.definition import PipelineDefinition, StepSpec
from domain.errors import AttemptOver, IllegalTransition
from domain.execution import MAX_TAKEOVERS, Execution, ExecutionStatus
from domain.step import Step, StepStatus

NOW = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)

FAILED_OR_SKIPPED = (StepStatus.FAILED, StepStatus.SKIPPED)


@st.composite
def definitions(draw: st.DrawFn) -> PipelineDefinition:
    specs: list[StepSpec] = []
    for number in range(draw(st.integers(1, 7))):
        required = draw(st.booleans())
        depends_on = [
            spec.name for spec in specs if (spec.required or not required) and draw(st.booleans())
        ]
        after = [spec.name for spec in specs if draw(st.integers(0, 3)) == 0]
        specs.append(
            StepSpec(
                f"s{number}",
                depends_on=tuple(depends_on),
                after=tuple(after),
                required=required,
                weight=draw(st.integers(1, 50)),
                external=draw(st.integers(0, 4)) == 0,
            )
        )
    return PipelineDefinition("film", tuple(draw(st.permutations(specs))))


class Life(RuleBasedStateMachine):
    """One execution; ``self.now`` only goes forwards, and every verb works on a draft."""

    execution: Execution

    @initialize(definition=definitions())
    def trigger(self, definition: PipelineDefinition) -> None:
        self.ticks = 0
        self.execution = Execution.trigger(definition, uuid="u", data={"given": 1}, at=NOW)
        self.facts = list(self.execution.recorded)
        self.attempts: Counter[str] = Counter()
        self.completed: dict[str, Step] = {}
        self.reports: list[tuple[str, str, int, Any]] = []
        self.retries = 0
        self.highest = 0

    def verb(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Call it on a draft and adopt that; one that raises must leave the original alone."""
        self.ticks += 1
        before = self.execution.copy()
        draft = self.execution.copy()
        try:
            getattr(draft, name)(*args, at=NOW + timedelta(seconds=self.ticks), **kwargs)
        finally:
            assert not before.differs_from(self.execution), "a draft has changed its original"
        self.facts.extend(draft.recorded)
        self.execution = draft

    def running(self) -> list[Step]:
        return [s for s in self.execution.steps.values() if s.status is StepStatus.RUNNING]

    @precondition(lambda self: self.execution.ready())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(list(self.execution.ready())))
        steps = self.execution.steps
        assert all(steps[n].status is StepStatus.COMPLETED for n in step.spec.depends_on)
        assert all(steps[n].ended for n in step.spec.after)
        self.verb("start", step.key)

    @rule(data=st.data())
    def start_what_isnt_ready(self, data: st.DataObject) -> None:
        ready = {step.key for step in self.execution.ready()}
        others = [key for key in self.execution.steps if key not in ready]
        if others:
            with pytest.raises(IllegalTransition):
                self.verb("start", data.draw(st.sampled_from(others)))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), contradicts=st.integers(0, 5).map(lambda n: n == 0))
    def complete(self, data: st.DataObject, contradicts: bool) -> None:
        step = data.draw(st.sampled_from(self.running()))
        output: dict[str, Any] = {"given": 2} if contradicts else {f"{step.key}_out": step.attempt}
        self.verb("complete", step.key, step.attempt, output)
        self.reports.append(("complete", step.key, step.attempt, output))
        assert (self.execution.step(step.key).status is StepStatus.FAILED) == contradicts

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(self.running()))
        self.verb("fail", step.key, step.attempt, "broken")
        self.reports.append(("fail", step.key, step.attempt, "broken"))

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(self.running()))
        self.verb("release", step.key, step.attempt)
        assert self.execution.step(step.key).takeovers == step.takeovers

    @rule(data=st.data(), fraction=st.floats(allow_nan=True, allow_infinity=True))
    def note(self, data: st.DataObject, fraction: float) -> None:
        key = data.draw(st.sampled_from(list(self.execution.steps)))
        attempt = self.execution.step(key).attempt + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
        self.verb("note", {key: (attempt, fraction)})

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def report_again(self, data: st.DataObject) -> None:
        """The same report once more: nothing happens, or its attempt is over."""
        name, key, attempt, said = data.draw(st.sampled_from(self.reports))
        before, recorded = self.execution, len(self.facts)
        if self.execution.step(key).attempt == attempt:
            ended = self.execution.step(key).ended
            if ended:
                self.verb(name, key, attempt, said)
                assert not self.execution.differs_from(before)
                assert len(self.facts) == recorded
                return
        with pytest.raises(AttemptOver):
            self.verb(name, key, attempt, said)

    @rule(data=st.data(), name=st.sampled_from(["complete", "fail"]))
    def report_of_an_attempt_that_doesnt_run(self, data: st.DataObject, name: str) -> None:
        key = data.draw(st.sampled_from(list(self.execution.steps)))
        attempt = self.execution.step(key).attempt + data.draw(st.sampled_from([-1, 1, 2]))
        if attempt >= 1:
            with pytest.raises(AttemptOver):
                self.verb(name, key, attempt, {} if name == "complete" else "late")

    @rule()
    def retry(self) -> None:
        if self.execution.status is not ExecutionStatus.FAILED:
            with pytest.raises(IllegalTransition):
                self.verb("retry")
            return
        self.highest = 0
        self.verb("retry")
        self.retries += 1
        assert not any(s.status in FAILED_OR_SKIPPED for s in self.execution.steps.values())

    @rule()
    def recover(self) -> None:
        self.highest = 0
        outside = [step for step in self.running() if step.spec.external]
        self.verb("recover")
        assert self.running() == outside

    # -- what is always true -----------------------------------------------------

    @invariant()
    def an_attempt_is_a_start(self) -> None:
        starts = Counter(f.subject for f in self.facts if f.type == "pipeline:step_started")
        for key, step in self.execution.steps.items():
            assert step.attempt == starts[key]
            assert step.attempt >= self.attempts[key]
            self.attempts[key] = step.attempt
            assert step.takeovers <= MAX_TAKEOVERS
            assert 0.0 <= step.progress <= 1.0

    @invariant()
    def what_completed_stays_and_its_output_is_in_the_data(self) -> None:
        for key, step in self.completed.items():
            assert self.execution.step(key) is step
        for key, step in self.execution.steps.items():
            if step.status is StepStatus.COMPLETED:
                self.completed[key] = step
                assert step.output is not None
                assert self.execution.data.items() >= step.output.items()
        assert self.execution.data["given"] == 1

    @invariant()
    def progress_never_falls_within_a_run(self) -> None:
        progress = self.execution.progress
        assert progress >= self.highest
        self.highest = progress
        completed = self.execution.status is ExecutionStatus.COMPLETED
        assert progress == 100 if completed else 0 <= progress <= 99

    @invariant()
    def it_has_failed_exactly_if_a_required_step_has(self) -> None:
        broken = [
            step
            for step in self.execution.steps.values()
            if step.spec.required and step.status is StepStatus.FAILED
        ]
        assert bool(broken) == (self.execution.status is ExecutionStatus.FAILED)
        assert bool(broken) == (self.execution.error_message is not None)

    @invariant()
    def every_failure_is_told_once(self) -> None:
        told = sum(1 for fact in self.facts if fact.type == "pipeline:failed")
        assert told == self.retries + (self.execution.status is ExecutionStatus.FAILED)
        completed = sum(1 for fact in self.facts if fact.type == "pipeline:completed")
        assert completed == (self.execution.status is ExecutionStatus.COMPLETED)

    @invariant()
    def steps_are_skipped_exactly_because_of_what_they_depend_on(self) -> None:
        steps = self.execution.steps
        for step in steps.values():
            hopeless = any(steps[n].status in FAILED_OR_SKIPPED for n in step.spec.depends_on)
            if hopeless:
                assert step.status is StepStatus.SKIPPED
            if step.status is StepStatus.SKIPPED:
                assert hopeless
                assert step.error

    @invariant()
    def it_has_completed_exactly_if_everything_has_ended_well(self) -> None:
        well = all(
            step.status is StepStatus.COMPLETED or (step.ended and not step.spec.required)
            for step in self.execution.steps.values()
        )
        assert well == (self.execution.status is ExecutionStatus.COMPLETED)

    @invariant()
    def while_it_runs_something_runs_or_can_start(self) -> None:
        if self.execution.status is ExecutionStatus.RUNNING:
            assert self.running() or self.execution.ready()

    @invariant()
    def time_goes_forwards_in_the_facts(self) -> None:
        times = [fact.at for fact in self.facts]
        assert times == sorted(times)


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
