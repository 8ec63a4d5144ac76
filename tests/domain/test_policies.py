"""Attempts that follow by themselves, waits that end, and what a person may do to an execution."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domain.definition import PipelineDefinition, RetryPolicy, StepSpec
from domain.errors import AttemptOver, IllegalTransition, InvalidDefinition, InvalidInput
from domain.events import Fact
from domain.execution import Execution, ExecutionStatus
from domain.step import StepStatus

NOW = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def triggered(*steps: StepSpec) -> Execution:
    execution = Execution.trigger(PipelineDefinition("p", steps), uuid="u-1", data={}, at=NOW)
    execution.recorded.clear()
    return execution


def told(execution: Execution) -> list[str]:
    facts: list[Fact] = execution.recorded
    return [fact.type.removeprefix("pipeline:") for fact in facts]


def statuses(execution: Execution) -> dict[str, StepStatus]:
    return {key: step.status for key, step in execution.steps.items()}


def failed(*steps: StepSpec, key: str = "a") -> Execution:
    execution = triggered(*steps)
    execution.start(key, at=at(1))
    execution.fail(key, 1, "no", at=at(2), permanent=True)
    execution.recorded.clear()
    return execution


# -- attempts that follow by themselves ------------------------------------------


def test_a_failed_attempt_is_followed_by_another_one_after_a_pause() -> None:
    execution = triggered(StepSpec("a", retry=RetryPolicy(retries=1, delay_s=10)))
    execution.start("a", at=at(0))
    execution.fail("a", 1, "no", at=at(1))
    assert execution.status is ExecutionStatus.RUNNING
    step = execution.step("a")
    assert (step.status, step.failures, step.not_before) == (StepStatus.PENDING, 1, at(11))
    assert execution.ready() == []
    assert execution.next_look_at() == at(11)
    assert execution.recorded[-1].data() == {
        "step_name": "a",
        "step_key": "a",
        "attempt": 1,
        "error": "no",
        "next_attempt_at": "2026-11-22T08:29:11.000Z",
    }

    execution.tick(at=at(10.9))
    assert execution.ready() == []
    execution.tick(at=at(11))
    assert execution.start("a", at=at(11)).attempt == 2
    execution.fail("a", 2, "no again", at=at(12))
    assert execution.status is ExecutionStatus.FAILED
    assert told(execution)[-3:] == ["step_started", "step_failed", "failed"]


def test_the_pauses_grow_up_to_their_cap_and_chance_spreads_them() -> None:
    policy = RetryPolicy(retries=9, delay_s=1, factor=2, max_delay_s=5, jitter=0.2)
    assert [policy.pause_s(n, 0.5) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]
    assert policy.pause_s(1, 0.0) == pytest.approx(0.8)
    assert policy.pause_s(1, 1.0) == pytest.approx(1.2)
    assert RetryPolicy(retries=1, factor=100).pause_s(10_000, 0.5) == 300


def test_a_permanent_failure_is_not_tried_again() -> None:
    execution = triggered(StepSpec("a", retry=RetryPolicy(retries=5)))
    execution.start("a", at=at(0))
    execution.fail("a", 1, "no use", at=at(1), permanent=True)
    assert execution.status is ExecutionStatus.FAILED
    assert execution.error_message == "step a failed (attempt 1): no use"


def test_an_output_that_contradicts_the_data_is_not_tried_again() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b", retry=RetryPolicy(retries=3)))
    for key in ("a", "b"):
        execution.start(key, at=at(1))
    execution.complete("a", 1, {"files": 3}, at=at(2))
    execution.complete("b", 1, {"files": 4}, at=at(3))
    assert execution.step("b").status is StepStatus.FAILED
    assert execution.status is ExecutionStatus.FAILED


def test_nothing_is_tried_again_by_itself_once_the_execution_has_failed() -> None:
    execution = triggered(StepSpec("a", retry=RetryPolicy(retries=5)), StepSpec("b"))
    execution.start("a", at=at(0))
    execution.start("b", at=at(0))
    execution.fail("b", 1, "no", at=at(1))
    execution.fail("a", 1, "no", at=at(2))
    assert statuses(execution) == {"a": StepStatus.FAILED, "b": StepStatus.FAILED}


def test_an_attempt_that_was_due_does_not_start_after_a_failure_elsewhere() -> None:
    execution = triggered(StepSpec("a", retry=RetryPolicy(retries=5)), StepSpec("b"))
    execution.start("a", at=at(0))
    execution.start("b", at=at(0))
    execution.fail("a", 1, "no", at=at(1))
    execution.fail("b", 1, "no", at=at(2))
    assert execution.next_look_at() is None
    execution.tick(at=at(1_000))
    assert execution.ready() == ()
    execution.retry(at=at(1_001))
    assert {step.key for step in execution.ready()} == {"a", "b"}


def test_the_same_failure_told_twice_counts_once() -> None:
    execution = triggered(StepSpec("a", retry=RetryPolicy(retries=5)))
    execution.start("a", at=at(0))
    execution.fail("a", 1, "no", at=at(1))
    execution.fail("a", 1, "no", at=at(2))
    assert execution.step("a").failures == 1
    assert told(execution) == ["step_started", "step_retrying"]
    with pytest.raises(AttemptOver):
        execution.complete("a", 1, {}, at=at(3))


def test_a_person_s_retry_renews_the_budget_and_attempts_go_on_rising() -> None:
    execution = triggered(StepSpec("a", retry=RetryPolicy(retries=1, delay_s=0)))
    for attempt in (1, 2):
        execution.start("a", at=at(attempt))
        execution.fail("a", attempt, "no", at=at(attempt))
    assert execution.status is ExecutionStatus.FAILED
    execution.retry(at=at(3))
    assert execution.start("a", at=at(3)).attempt == 3
    execution.fail("a", 3, "no", at=at(4))
    assert execution.status is ExecutionStatus.RUNNING, "the budget is new"


@pytest.mark.parametrize(
    "bad",
    [
        {"retry": RetryPolicy(retries=-1)},
        {"retry": RetryPolicy(retries=101)},
        {"retry": RetryPolicy(retries=1.5)},  # type: ignore[arg-type]
        {"retry": RetryPolicy(delay_s=-1)},
        {"retry": RetryPolicy(factor=0.5)},
        {"retry": RetryPolicy(jitter=2)},
        {"retry": RetryPolicy(max_delay_s=float("nan"))},
        {"run_timeout_s": 0},
        {"run_timeout_s": "5"},
        {"queue_timeout_s": True},
        {"external": True, "queue_timeout_s": 5},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidDefinition, match="step 'a'"):
        PipelineDefinition("p", (StepSpec("a", **bad),))  # type: ignore[arg-type]


def test_a_policy_survives_being_stored() -> None:
    spec = StepSpec(
        "a", retry=RetryPolicy(3, 0.5, 3.0, 60, 0.0), run_timeout_s=9, queue_timeout_s=8
    )
    assert StepSpec.from_dict(spec.to_dict()) == spec
    assert StepSpec.from_dict({"name": "a"}) == StepSpec("a")


# -- waiting for a slot ----------------------------------------------------------


def test_who_waits_too_long_for_a_slot_fails() -> None:
    execution = triggered(StepSpec("a", queue_timeout_s=5))
    execution.queue("a", at=at(1))
    assert execution.next_look_at() == at(6)
    execution.tick(at=at(5))
    assert execution.status is ExecutionStatus.RUNNING
    execution.tick(at=at(6))
    assert execution.status is ExecutionStatus.FAILED
    assert execution.error_message == ("step a failed (attempt 0): waited more than 5 s for a slot")


def test_a_wait_that_is_over_is_looked_at_whatever_has_happened_meanwhile() -> None:
    execution = triggered(StepSpec("a", queue_timeout_s=5), StepSpec("b"))
    execution.queue("a", at=at(1))
    execution.start("b", at=at(1))
    execution.complete("b", 1, {}, at=at(7))
    assert execution.next_look_at() == at(6)
    execution.tick(at=at(7))
    assert execution.status is ExecutionStatus.FAILED


def test_a_pause_is_no_wait_for_a_slot() -> None:
    execution = triggered(StepSpec("a", queue_timeout_s=5))
    execution.queue("a", at=at(1))
    execution.pause(at=at(2))
    assert execution.next_look_at() is None
    execution.tick(at=at(100))
    execution.resume(at=at(101))
    execution.queue("a", at=at(101))
    execution.tick(at=at(105))
    assert execution.status is ExecutionStatus.RUNNING


def test_the_time_that_an_execution_was_failed_is_no_wait_for_a_slot() -> None:
    execution = triggered(StepSpec("a", queue_timeout_s=5), StepSpec("b"))
    execution.queue("a", at=at(1))
    execution.start("b", at=at(1))
    execution.fail("b", 1, "no", at=at(2))
    execution.retry(at=at(100))
    execution.tick(at=at(101))
    assert execution.status is ExecutionStatus.RUNNING
    execution.queue("a", at=at(101))
    assert execution.next_look_at() == at(106)


# -- cancel ----------------------------------------------------------------------


def test_the_time_that_rushes_was_down_is_no_wait_for_a_slot() -> None:
    execution = triggered(StepSpec("a", queue_timeout_s=10))
    execution.queue("a", at=at(0))
    execution.recover(at=at(1000))
    execution.tick(at=at(1001))
    assert statuses(execution) == {"a": StepStatus.PENDING}
    execution.queue("a", at=at(1001))
    execution.tick(at=at(1011))
    assert statuses(execution) == {"a": StepStatus.FAILED}


def test_cancel_ends_what_runs_and_what_waits_at_once() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"), StepSpec("c", depends_on=("a",)))
    execution.start("a", at=at(1))
    execution.complete("a", 1, {}, at=at(2))
    execution.start("b", at=at(2))
    execution.cancel(at=at(3))
    assert execution.status is ExecutionStatus.CANCELLED
    assert execution.completed_at == at(3)
    assert statuses(execution) == {
        "a": StepStatus.COMPLETED,
        "b": StepStatus.CANCELLED,
        "c": StepStatus.CANCELLED,
    }
    assert execution.ready() == ()
    assert execution.recorded[-1].data() == {"cancelled": ["b", "c"]}
    with pytest.raises(AttemptOver):
        execution.complete("b", 1, {"late": True}, at=at(4))
    assert execution.data == {}
    execution.cancel(at=at(5))
    assert told(execution).count("cancelled") == 1


def test_the_first_of_cancel_and_completion_wins() -> None:
    execution = triggered(StepSpec("a"))
    execution.start("a", at=at(1))
    execution.complete("a", 1, {}, at=at(2))
    for verb in (execution.cancel, execution.pause, execution.resume):
        with pytest.raises(IllegalTransition, match="while it is completed"):
            verb(at=at(3))


# -- pause -----------------------------------------------------------------------


def test_while_paused_nothing_starts_and_what_runs_goes_on() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b", depends_on=("a",)))
    execution.start("a", at=at(1))
    execution.pause(at=at(2))
    execution.pause(at=at(3))
    execution.complete("a", 1, {}, at=at(4))
    assert execution.ready() == ()
    with pytest.raises(IllegalTransition):
        execution.start("b", at=at(5))
    execution.resume(at=at(6))
    execution.resume(at=at(7))
    assert [step.key for step in execution.ready()] == ["b"]
    assert told(execution) == ["step_started", "paused", "step_completed", "resumed"]


def test_a_paused_execution_whose_last_step_completes_has_completed() -> None:
    execution = triggered(StepSpec("a"))
    execution.start("a", at=at(1))
    execution.pause(at=at(2))
    execution.complete("a", 1, {}, at=at(3))
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.paused_at is None


def test_what_failed_while_it_was_paused_is_paused_no_more_and_a_retry_goes_on() -> None:
    execution = triggered(StepSpec("a"))
    execution.start("a", at=at(1))
    execution.pause(at=at(2))
    execution.fail("a", 1, "card lost", at=at(3))
    assert (execution.status, execution.paused_at) == (ExecutionStatus.FAILED, None)
    execution.retry(at=at(4))
    assert [step.key for step in execution.ready()] == ["a"]


# -- settling --------------------------------------------------------------------


def test_a_skipped_step_satisfies_what_depends_on_it() -> None:
    execution = failed(
        StepSpec("a"), StepSpec("b", depends_on=("a",)), StepSpec("c", depends_on=("b",))
    )
    assert statuses(execution)["c"] is StepStatus.SKIPPED
    execution.waive("a", at=at(3))
    assert execution.status is ExecutionStatus.RUNNING
    assert execution.error_message is None
    assert told(execution) == ["step_skipped", "retried"]
    assert execution.recorded[-1].data() == {"reopened": ["b", "c"]}
    assert [step.key for step in execution.ready()] == ["b"]
    for key in ("b", "c"):
        execution.start(key, at=at(4))
        execution.complete(key, 1, {}, at=at(5))
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.progress == 100


def test_a_step_completed_by_hand_gives_its_output_to_the_others() -> None:
    execution = failed(StepSpec("a"), StepSpec("b", depends_on=("a",)))
    execution.settle("a", {"by": "hand"}, at=at(3))
    assert execution.data == {"by": "hand"}
    assert told(execution) == ["step_completed", "retried"]
    assert [step.key for step in execution.ready()] == ["b"]
    execution.settle("a", {"by": "hand"}, at=at(4))
    assert told(execution) == ["step_completed", "retried"]


def test_settling_the_last_failed_step_completes_the_execution() -> None:
    execution = failed(StepSpec("a"))
    execution.waive("a", at=at(3))
    assert execution.status is ExecutionStatus.COMPLETED
    assert told(execution) == ["step_skipped", "retried", "completed"]


def test_settling_goes_on_only_when_no_required_step_is_failed() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"), StepSpec("c", depends_on=("a", "b")))
    for key in ("a", "b"):
        execution.start(key, at=at(1))
    for key in ("a", "b"):
        execution.fail(key, 1, "no", at=at(2))
    execution.waive("a", at=at(3))
    assert execution.status is ExecutionStatus.FAILED
    assert statuses(execution)["c"] is StepStatus.SKIPPED
    execution.waive("b", at=at(4))
    assert execution.status is ExecutionStatus.RUNNING
    assert [step.key for step in execution.ready()] == ["c"]


def test_settling_leaves_skipped_what_another_failed_step_holds_up() -> None:
    execution = triggered(
        StepSpec("a"),
        StepSpec("proxy", required=False, spawns=("thumb",)),
        StepSpec("thumb", dynamic=True, required=False),
        StepSpec("sheet", depends_on=("thumb:*",), required=False),
        StepSpec("mail", depends_on=("sheet",), required=False),
        StepSpec("end", depends_on=("a",)),
    )
    for key in ("a", "proxy"):
        execution.start(key, at=at(1))
    for parameter in ("1", "2"):
        execution.spawn("proxy", 1, "thumb", parameter, at=at(1))
    execution.complete("proxy", 1, {}, at=at(1))
    execution.start("thumb:1", at=at(1))
    execution.fail("thumb:1", 1, "no", at=at(2))
    execution.fail("a", 1, "no", at=at(2))
    execution.waive("a", at=at(3))
    assert execution.recorded[-1].data() == {"reopened": ["end"]}
    assert statuses(execution)["sheet"] is StepStatus.SKIPPED
    assert statuses(execution)["mail"] is StepStatus.SKIPPED
    assert [step.key for step in execution.ready()] == ["end", "thumb:2"]


def test_a_retry_keeps_what_a_person_has_waived() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    for key in ("a", "b"):
        execution.start(key, at=at(1))
    for key in ("a", "b"):
        execution.fail(key, 1, "no", at=at(2))
    execution.waive("a", at=at(3))
    execution.retry(at=at(4))
    assert [step.key for step in execution.ready()] == ["b"]


def test_only_a_failed_step_of_a_failed_execution_is_settled() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    with pytest.raises(IllegalTransition):
        execution.waive("a", at=at(1))
    execution.start("a", at=at(1))
    execution.fail("a", 1, "no", at=at(2))
    for refused in (
        lambda: execution.waive("b", at=at(3)),
        lambda: execution.settle("b", {}, at=at(3)),
    ):
        with pytest.raises(IllegalTransition, match="step b"):
            refused()
    assert statuses(execution)["b"] is StepStatus.PENDING


def test_an_output_by_hand_may_not_contradict_the_data() -> None:
    execution = Execution.trigger(
        PipelineDefinition("p", (StepSpec("a"),)), uuid="u", data={"take": 1}, at=NOW
    )
    execution.start("a", at=at(1))
    execution.fail("a", 1, "no", at=at(2))
    with pytest.raises(InvalidInput, match="'take'"):
        execution.settle("a", {"take": 2}, at=at(3))
    assert execution.status is ExecutionStatus.FAILED
