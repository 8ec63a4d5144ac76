"""Every verb in every state, against the table; and what else an arrow changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from domain.definition import StepSpec
from domain.errors import IllegalTransition
from domain.step import ENDED, STEP_TRANSITIONS, Step, StepStatus, StepVerb

NOW = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)

CALLS: dict[StepVerb, Callable[[Step], Step]] = {
    StepVerb.START: lambda step: step.start(at=NOW),
    StepVerb.COMPLETE: lambda step: step.complete({}, at=NOW),
    StepVerb.FAIL: lambda step: step.fail("no", at=NOW),
    StepVerb.SKIP: lambda step: step.skip("because", at=NOW),
    StepVerb.TAKE_OVER: lambda step: step.take_over(),
    StepVerb.RETRY_LATER: lambda step: step.retry_later("no", not_before=LATER),
    StepVerb.CANCEL: lambda step: step.cancel(at=NOW),
    StepVerb.REOPEN: lambda step: step.reopen(),
    StepVerb.WAIVE: lambda step: step.waive("by hand", at=NOW),
    StepVerb.SETTLE: lambda step: step.settle({}, at=NOW),
}

EXPECTED = {
    (StepStatus.PENDING, StepVerb.START): StepStatus.RUNNING,
    (StepStatus.PENDING, StepVerb.SKIP): StepStatus.SKIPPED,
    (StepStatus.PENDING, StepVerb.FAIL): StepStatus.FAILED,
    (StepStatus.PENDING, StepVerb.CANCEL): StepStatus.CANCELLED,
    (StepStatus.RUNNING, StepVerb.COMPLETE): StepStatus.COMPLETED,
    (StepStatus.RUNNING, StepVerb.FAIL): StepStatus.FAILED,
    (StepStatus.RUNNING, StepVerb.RETRY_LATER): StepStatus.PENDING,
    (StepStatus.RUNNING, StepVerb.TAKE_OVER): StepStatus.PENDING,
    (StepStatus.RUNNING, StepVerb.CANCEL): StepStatus.CANCELLED,
    (StepStatus.FAILED, StepVerb.WAIVE): StepStatus.SKIPPED,
    (StepStatus.FAILED, StepVerb.SETTLE): StepStatus.COMPLETED,
    (StepStatus.FAILED, StepVerb.REOPEN): StepStatus.PENDING,
    (StepStatus.SKIPPED, StepVerb.REOPEN): StepStatus.PENDING,
}


def in_state(status: StepStatus) -> Step:
    return Step(StepSpec("copy"), "copy", status=status)


def test_the_table_has_a_row_for_every_state_and_says_what_is_expected() -> None:
    assert set(STEP_TRANSITIONS) == set(StepStatus)
    told = {(s, v): to for s, row in STEP_TRANSITIONS.items() for v, to in row.items()}
    assert told == EXPECTED


def test_every_verb_has_a_call() -> None:
    assert set(CALLS) == set(StepVerb)


@pytest.mark.parametrize("verb", StepVerb)
@pytest.mark.parametrize("status", StepStatus)
def test_a_verb_goes_where_the_table_says_or_is_refused(status: StepStatus, verb: StepVerb) -> None:
    step = in_state(status)
    if (status, verb) in EXPECTED:
        assert CALLS[verb](step).status is EXPECTED[status, verb]
    else:
        with pytest.raises(IllegalTransition) as refused:
            CALLS[verb](step)
        assert (refused.value.subject, refused.value.verb, refused.value.state) == (
            "step copy",
            verb,
            status,
        )
        assert str(refused.value) == f"step copy can't {verb} while it is {status}"
        assert refused.value.__cause__ is None
    assert step == in_state(status), "a verb changes no step, it makes a new one"


def test_the_ended_states_are_those_in_which_nothing_happens_by_itself() -> None:
    moving = {StepStatus.PENDING, StepStatus.RUNNING}
    assert set(StepStatus) - moving == ENDED
    assert [s for s in StepStatus if in_state(s).ended] == [s for s in StepStatus if s in ENDED]


def test_each_start_raises_the_attempt_and_nothing_resets_it() -> None:
    step = Step(StepSpec("copy"), "copy")
    step = step.start(at=NOW)
    assert step.attempt == 1
    step = step.take_over().start(at=NOW)
    assert step.attempt == 2
    step = step.fail("no", at=NOW).reopen().start(at=NOW)
    assert step.attempt == 3


def test_a_start_begins_at_zero_without_the_last_error() -> None:
    step = Step(StepSpec("copy"), "copy", progress=0.7, error="old").start(at=LATER)
    assert (step.progress, step.error, step.started_at) == (0.0, None, LATER)


def test_a_lost_worker_is_counted_apart_from_failures() -> None:
    step = Step(StepSpec("copy"), "copy").start(at=NOW).note(0.5).take_over()
    assert (step.takeovers, step.failures, step.progress) == (1, 0, 0.0)
    assert (step.started_at, step.queued_at) == (None, None)


def test_a_failure_is_counted_and_keeps_its_reason() -> None:
    step = Step(StepSpec("copy"), "copy").start(at=NOW).fail("disk full", at=LATER)
    assert (step.failures, step.takeovers, step.error) == (1, 0, "disk full")
    assert step.completed_at == LATER


def test_reopening_starts_the_budgets_anew() -> None:
    step = Step(StepSpec("copy"), "copy").start(at=NOW).take_over().start(at=NOW)
    step = step.fail("no", at=NOW).reopen()
    assert (step.failures, step.takeovers, step.error, step.progress) == (0, 0, None, 0.0)
    assert (step.queued_at, step.started_at, step.completed_at) == (None, None, None)


def test_a_completed_step_keeps_its_output_and_is_all_done() -> None:
    step = Step(StepSpec("copy"), "copy").start(at=NOW).complete({"files": 3}, at=LATER)
    assert (step.output, step.progress, step.completed_at) == ({"files": 3}, 1.0, LATER)


def test_who_waits_keeps_the_place_in_the_queue() -> None:
    step = Step(StepSpec("copy"), "copy").queue(at=NOW)
    assert step.queued_at == NOW
    assert step.queue(at=LATER) is step


@pytest.mark.parametrize("status", [s for s in StepStatus if s is not StepStatus.PENDING])
def test_only_a_pending_step_queues(status: StepStatus) -> None:
    step = in_state(status)
    assert step.queue(at=NOW) is step


@pytest.mark.parametrize("status", StepStatus)
def test_only_a_pending_step_leaves_the_queue(status: StepStatus) -> None:
    step = Step(StepSpec("copy"), "copy", status=status, queued_at=NOW)
    left = step.leave_queue()
    assert left.queued_at is (None if status is StepStatus.PENDING else NOW)
    assert left.status is status


@pytest.mark.parametrize("status", StepStatus)
def test_only_a_running_step_is_given_back(status: StepStatus) -> None:
    step = in_state(status)
    if status is StepStatus.RUNNING:
        assert step.release() == in_state(StepStatus.PENDING)
    else:
        with pytest.raises(IllegalTransition):
            step.release()


@pytest.mark.parametrize("status", [s for s in StepStatus if s is not StepStatus.RUNNING])
def test_only_a_running_step_has_progress_to_note(status: StepStatus) -> None:
    step = in_state(status)
    assert step.note(0.5) is step


def test_progress_never_goes_back_and_never_beyond_the_end() -> None:
    step = Step(StepSpec("copy"), "copy").start(at=NOW).note(0.5)
    assert step.note(0.4) is step
    assert step.note(-1.0) is step
    assert step.note(float("nan")) is step
    assert step.note(7.0).progress == 1.0
