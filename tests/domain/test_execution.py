"""The rules of an execution, one sentence of the design at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain.definition import MAX_STEPS, PipelineDefinition, StepSpec
from domain.errors import (
    AttemptOver,
    IllegalTransition,
    InvalidInput,
    NotExternal,
    StepNotFound,
)
from domain.execution import (
    ACTIVE,
    EXECUTION_TRANSITIONS,
    MAX_TAKEOVERS,
    Execution,
    ExecutionStatus,
    ExecutionVerb,
)
from domain.step import Step, StepStatus

NOW = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def triggered(*specs: StepSpec, data: Mapping[str, Any] | None = None) -> Execution:
    return Execution.trigger(
        PipelineDefinition("film", specs), uuid="u-1", data=dict(data or {}), at=NOW
    )


def chain(*names: str) -> list[StepSpec]:
    return [StepSpec(name, depends_on=(names[n - 1],) if n else ()) for n, name in enumerate(names)]


def run(execution: Execution, *keys: str) -> None:
    for key in keys:
        execution.start(key, at=NOW)


def done(execution: Execution, *keys: str, **output: Any) -> None:
    for key in keys:
        started = execution.start(key, at=NOW)
        execution.complete(key, started.attempt, output, at=NOW)


def broken(execution: Execution, key: str, error: str = "disk full") -> None:
    started = execution.start(key, at=NOW)
    execution.fail(key, started.attempt, error, at=NOW)


def types(execution: Execution) -> list[str]:
    return [fact.type.removeprefix("pipeline:") for fact in execution.recorded]


def statuses(execution: Execution) -> dict[str, str]:
    return {key: str(step.status) for key, step in execution.steps.items()}


def ready(execution: Execution) -> list[str]:
    return [step.key for step in execution.ready()]


# -- the table -------------------------------------------------------------------

CALLS: dict[ExecutionVerb, Callable[[Execution], object]] = {
    ExecutionVerb.START: lambda e: e._fire(ExecutionVerb.START),
    ExecutionVerb.COMPLETE: lambda e: e._fire(ExecutionVerb.COMPLETE),
    ExecutionVerb.FAIL: lambda e: e._fire(ExecutionVerb.FAIL),
    ExecutionVerb.CANCEL: lambda e: e._fire(ExecutionVerb.CANCEL),
    ExecutionVerb.RETRY: lambda e: e.retry(at=NOW),
}

EXPECTED = {
    (ExecutionStatus.PENDING, ExecutionVerb.START): ExecutionStatus.RUNNING,
    (ExecutionStatus.RUNNING, ExecutionVerb.COMPLETE): ExecutionStatus.COMPLETED,
    (ExecutionStatus.RUNNING, ExecutionVerb.FAIL): ExecutionStatus.FAILED,
    (ExecutionStatus.PENDING, ExecutionVerb.CANCEL): ExecutionStatus.CANCELLED,
    (ExecutionStatus.RUNNING, ExecutionVerb.CANCEL): ExecutionStatus.CANCELLED,
    (ExecutionStatus.FAILED, ExecutionVerb.RETRY): ExecutionStatus.RUNNING,
}


def test_the_table_has_a_row_for_every_state_and_says_what_is_expected() -> None:
    assert set(EXECUTION_TRANSITIONS) == set(ExecutionStatus)
    told = {(s, v): to for s, row in EXECUTION_TRANSITIONS.items() for v, to in row.items()}
    assert told == EXPECTED
    assert set(CALLS) == set(ExecutionVerb)


@pytest.mark.parametrize("verb", ExecutionVerb)
@pytest.mark.parametrize("status", ExecutionStatus)
def test_a_verb_goes_where_the_table_says_or_is_refused(
    status: ExecutionStatus, verb: ExecutionVerb
) -> None:
    execution = triggered(StepSpec("a"))
    execution.status = status
    if (status, verb) in EXPECTED:
        moved = CALLS[verb](execution)
        assert (execution.status if moved is None else moved) is EXPECTED[status, verb]
        return
    with pytest.raises(IllegalTransition) as refused:
        CALLS[verb](execution)
    assert str(refused.value) == f"execution u-1 can't {verb} while it is {status}"
    assert refused.value.__cause__ is None
    assert execution.status is status


def test_only_pending_and_running_executions_hold_their_card() -> None:
    assert {ExecutionStatus.PENDING, ExecutionStatus.RUNNING} == ACTIVE


# -- beginning -------------------------------------------------------------------


def test_a_triggered_execution_runs_with_pending_steps_and_says_so() -> None:
    execution = triggered(*chain("a", "b"), data={"sd_path": "/x"})
    assert execution.status is ExecutionStatus.RUNNING
    assert statuses(execution) == {"a": "pending", "b": "pending"}
    assert execution.data == {"sd_path": "/x"}
    assert (execution.started_at, execution.progress) == (NOW, 0)
    (fact,) = execution.recorded
    assert fact.type == "pipeline:started"
    assert fact.data() == {"pipeline_type": "film", "steps": ["a", "b"]}
    assert fact.subject is None


def test_a_draft_leaves_its_original_as_it_was_and_records_only_its_own() -> None:
    original = triggered(*chain("a", "b"))
    draft = original.copy()
    assert draft.recorded == []
    run(draft, "a")
    draft.complete("a", 1, {"x": 1}, at=NOW)
    assert statuses(original) == {"a": "pending", "b": "pending"}
    assert original.data == {}
    assert types(original) == ["started"]
    assert draft.differs_from(original)


def test_a_draft_that_was_only_looked_at_differs_in_nothing() -> None:
    original = triggered(StepSpec("a"))
    draft = original.copy()
    draft.tick(at=at(5))
    draft.note({}, at=at(5))
    assert not draft.differs_from(original)


@pytest.mark.parametrize(
    "verb",
    [
        lambda e: e.queue("b", at=NOW),
        lambda e: e.note({"a": (1, 0.3)}, at=NOW),
        lambda e: e.complete("a", 1, {}, at=NOW),
        lambda e: e.fail("a", 1, "no", at=NOW),
        lambda e: e.release("a", 1, at=NOW),
        lambda e: e.recover(at=NOW),
    ],
)
def test_every_verb_makes_a_difference_that_is_stored(verb: Callable[[Execution], None]) -> None:
    original = triggered(StepSpec("a"), StepSpec("b"))
    run(original, "a")
    draft = original.copy()
    verb(draft)
    assert draft.differs_from(original)


# -- order -----------------------------------------------------------------------


def test_a_step_is_ready_when_what_it_depends_on_has_completed() -> None:
    execution = triggered(*chain("a", "b", "c"))
    assert ready(execution) == ["a"]
    run(execution, "a")
    assert ready(execution) == []
    execution.complete("a", 1, {}, at=NOW)
    assert ready(execution) == ["b"]


def test_steps_without_dependencies_are_ready_together_in_the_order_of_the_definition() -> None:
    assert ready(triggered(StepSpec("z"), StepSpec("a"), StepSpec("m"))) == ["z", "a", "m"]


def test_after_waits_for_every_end_whatever_it_was() -> None:
    execution = triggered(
        StepSpec("good", required=False),
        StepSpec("bad", required=False),
        StepSpec("skipped", required=False, depends_on=("bad",)),
        StepSpec("last", after=("good", "bad", "skipped")),
    )
    done(execution, "good")
    assert "last" not in ready(execution)
    broken(execution, "bad")
    assert statuses(execution)["skipped"] == "skipped"
    assert ready(execution) == ["last"]


def test_a_step_that_isnt_ready_cant_be_started() -> None:
    execution = triggered(*chain("a", "b"))
    with pytest.raises(IllegalTransition, match=r"step b can't start while it is pending"):
        execution.start("b", at=NOW)
    assert statuses(execution)["b"] == "pending"


@pytest.mark.parametrize("status", [s for s in ExecutionStatus if s is not ExecutionStatus.RUNNING])
def test_nothing_starts_unless_the_execution_runs(status: ExecutionStatus) -> None:
    execution = triggered(StepSpec("a"))
    execution.status = status
    assert ready(execution) == []
    with pytest.raises(IllegalTransition):
        execution.start("a", at=NOW)


@pytest.mark.parametrize(
    "verb",
    [
        lambda e: e.step("ghost"),
        lambda e: e.start("ghost", at=NOW),
        lambda e: e.queue("ghost", at=NOW),
        lambda e: e.complete("ghost", 1, {}, at=NOW),
        lambda e: e.complete("ghost", 1, {"owned": 2}, at=NOW),
        lambda e: e.fail("ghost", 1, "no", at=NOW),
        lambda e: e.release("ghost", 1, at=NOW),
        lambda e: e.require_external("ghost"),
    ],
)
def test_a_step_that_isnt_there_is_named(verb: Callable[[Execution], object]) -> None:
    execution = triggered(StepSpec("a"), data={"owned": 1})
    with pytest.raises(StepNotFound, match="ghost"):
        verb(execution)


def test_waiting_for_a_slot_is_written_down_once() -> None:
    execution = triggered(StepSpec("a"))
    execution.queue("a", at=at(1))
    execution.queue("a", at=at(2))
    assert execution.step("a").queued_at == at(1)


# -- completing ------------------------------------------------------------------


def test_when_every_step_has_ended_the_execution_has_completed() -> None:
    execution = triggered(*chain("a", "b"))
    done(execution, "a")
    run(execution, "b")
    execution.complete("b", 1, {}, at=at(9))
    assert execution.status is ExecutionStatus.COMPLETED
    assert (execution.progress, execution.completed_at) == (100, at(9))
    assert types(execution) == [
        "started", "step_started", "step_completed", "step_started", "step_completed", "completed",
    ]  # fmt: skip
    assert [f.data()["progress"] for f in execution.recorded if "completed" in f.type] == [
        50, 100, 100,
    ]  # fmt: skip


def test_facts_name_the_step_and_its_attempt() -> None:
    execution = triggered(StepSpec("a"))
    done(execution, "a")
    started, completed = execution.recorded[1:3]
    assert started.data() == {"step_name": "a", "step_key": "a", "attempt": 1}
    assert started.subject == completed.subject == "a"


def test_the_same_completion_twice_is_a_no_op() -> None:
    execution = triggered(*chain("a", "b"))
    done(execution, "a", x=1)
    draft = execution.copy()
    draft.complete("a", 1, {"x": 1}, at=at(5))
    assert not draft.differs_from(execution)
    assert draft.updated_at == execution.updated_at


def test_the_last_completion_twice_is_a_no_op_too() -> None:
    execution = triggered(StepSpec("a"))
    done(execution, "a")
    draft = execution.copy()
    draft.complete("a", 1, {}, at=at(5))
    assert not draft.differs_from(execution)


@pytest.mark.parametrize("other", [{"x": 2}, {}, {"x": 1, "y": 1}, {"x": True}])
def test_a_second_completion_that_says_something_else_is_not_believed(
    other: dict[str, Any],
) -> None:
    execution = triggered(*chain("a", "b"))
    done(execution, "a", x=1)
    with pytest.raises(AttemptOver, match="another output"):
        execution.complete("a", 1, other, at=NOW)


def test_a_completed_step_cant_fail_and_a_failed_one_cant_complete() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b", required=False), StepSpec("c"))
    done(execution, "a")
    broken(execution, "b")
    with pytest.raises(AttemptOver):
        execution.fail("a", 1, "no", at=NOW)
    with pytest.raises(AttemptOver):
        execution.complete("b", 1, {}, at=NOW)


def test_a_job_is_attached_when_its_step_completes() -> None:
    execution = triggered(*chain("a", "b"))
    run(execution, "a")
    execution.complete("a", 1, {}, at=NOW, job_id=7)
    done(execution, "b")
    assert execution.job_id == 7


# -- attempts --------------------------------------------------------------------


def taken_over() -> Execution:
    """Attempt 1 of ``a`` was lost, attempt 2 runs."""
    execution = triggered(*chain("a", "b"), data={"owned": 1})
    run(execution, "a")
    execution.recover(at=NOW)
    run(execution, "a")
    return execution


@pytest.mark.parametrize("attempt", [1, 3])
@pytest.mark.parametrize(
    "report",
    [
        lambda e, n: e.complete("a", n, {}, at=NOW),
        lambda e, n: e.complete("a", n, {"owned": 2}, at=NOW),
        lambda e, n: e.fail("a", n, "no", at=NOW),
        lambda e, n: e.release("a", n, at=NOW),
    ],
)
def test_a_result_of_another_attempt_is_refused(
    report: Callable[[Execution, int], None], attempt: int
) -> None:
    execution = taken_over()
    draft = execution.copy()
    with pytest.raises(AttemptOver, match=rf"step a: attempt {attempt} is over .*at attempt 2"):
        report(draft, attempt)
    assert not draft.differs_from(execution)


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    execution = triggered(StepSpec("a"))
    with pytest.raises(InvalidInput, match="count from 1"):
        execution.complete("a", attempt, {}, at=NOW)


def test_a_result_of_the_attempt_before_a_retry_is_refused() -> None:
    execution = triggered(StepSpec("a"))
    broken(execution, "a")
    execution.retry(at=NOW)
    with pytest.raises(AttemptOver):
        execution.complete("a", 1, {}, at=NOW)
    assert execution.start("a", at=NOW).attempt == 2
    with pytest.raises(AttemptOver):
        execution.fail("a", 1, "disk full", at=NOW)


def test_the_same_outcome_for_an_older_attempt_is_no_repetition() -> None:
    execution = triggered(StepSpec("a"))
    broken(execution, "a", "disk full")
    execution.retry(at=NOW)
    broken(execution, "a", "disk full")
    with pytest.raises(AttemptOver):
        execution.fail("a", 1, "disk full", at=NOW)


# -- failure ---------------------------------------------------------------------


def test_a_required_failure_fails_the_execution_at_once_and_says_what_and_why() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "b")
    execution.start("a", at=NOW)
    execution.fail("a", 1, "disk full", at=at(3))
    assert execution.status is ExecutionStatus.FAILED
    assert execution.error_message == "step a failed (attempt 1): disk full"
    assert execution.completed_at == at(3)
    failed = execution.recorded[-1]
    assert failed.type == "pipeline:failed"
    assert failed.data() == {
        "error": {"step_name": "a", "step_key": "a", "attempt": 1, "message": "disk full"}
    }
    assert execution.recorded[-2].data()["error"] == "disk full"


def test_a_failure_reported_twice_is_a_no_op() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    broken(execution, "a")
    draft = execution.copy()
    draft.fail("a", 1, "disk full", at=at(5))
    assert not draft.differs_from(execution)
    with pytest.raises(AttemptOver):
        draft.fail("a", 1, "something else", at=at(5))


def test_what_runs_may_finish_after_a_failure_and_is_kept() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"), StepSpec("c", depends_on=("b",)))
    run(execution, "a", "b")
    execution.fail("a", 1, "no", at=NOW)
    execution.complete("b", 1, {"x": 1}, at=NOW)
    assert execution.status is ExecutionStatus.FAILED
    assert statuses(execution) == {"a": "failed", "b": "completed", "c": "pending"}
    assert execution.data == {"x": 1}
    assert ready(execution) == []
    assert execution.progress <= 99


def test_an_execution_fails_once_however_many_steps_do() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "a", "b")
    execution.fail("a", 1, "first", at=NOW)
    execution.fail("b", 1, "second", at=NOW)
    assert types(execution).count("failed") == 1
    assert types(execution).count("step_failed") == 2
    assert execution.error_message == "step a failed (attempt 1): first"


def test_a_failed_execution_with_a_running_step_is_unfinished() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "a", "b")
    execution.fail("a", 1, "no", at=NOW)
    assert execution.unfinished
    execution.complete("b", 1, {}, at=NOW)
    assert not execution.unfinished


def test_a_failed_step_skips_its_dependents_transitively_and_says_because_of_whom() -> None:
    execution = triggered(*chain("a", "b", "c"), StepSpec("d"))
    broken(execution, "a")
    assert statuses(execution) == {
        "a": "failed", "b": "skipped", "c": "skipped", "d": "pending",
    }  # fmt: skip
    skipped = [fact.data() for fact in execution.recorded if "skipped" in fact.type]
    assert [(f["step_key"], f["error"]) for f in skipped] == [
        ("b", "step a failed"),
        ("c", "step b skipped"),
    ]


def test_skipping_a_long_chain_needs_no_deep_stack() -> None:
    names = [f"s{n}" for n in range(MAX_STEPS)]
    execution = triggered(*chain(*names))
    broken(execution, "s0")
    assert {str(step.status) for step in list(execution.steps.values())[1:]} == {"skipped"}


def test_an_optional_failure_leaves_a_warning_and_skips_its_dependents() -> None:
    execution = triggered(
        StepSpec("extra", required=False),
        StepSpec("more", required=False, depends_on=("extra",)),
        StepSpec("most", required=False, depends_on=("more",)),
        StepSpec("main"),
    )
    broken(execution, "extra", "no proxy")
    assert execution.status is ExecutionStatus.RUNNING
    assert execution.warnings == ("optional step extra failed: no proxy",)
    assert statuses(execution) == {
        "extra": "failed", "more": "skipped", "most": "skipped", "main": "pending",
    }  # fmt: skip
    done(execution, "main")
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.recorded[-1].data() == {
        "warnings": ["optional step extra failed: no proxy"],
        "progress": 100,
    }


def test_an_optional_failure_that_comes_last_completes_the_execution() -> None:
    execution = triggered(StepSpec("main"), StepSpec("extra", required=False))
    done(execution, "main")
    broken(execution, "extra")
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.progress == 100
    assert types(execution)[-2:] == ["step_failed", "completed"]


def test_a_required_failure_after_optional_ones_still_fails() -> None:
    execution = triggered(StepSpec("extra", required=False), StepSpec("main", after=("extra",)))
    broken(execution, "extra")
    broken(execution, "main")
    assert execution.status is ExecutionStatus.FAILED


# -- data ------------------------------------------------------------------------


def test_outputs_merge_shallowly() -> None:
    execution = triggered(*chain("a", "b"), data={"sd_path": "/x"})
    done(execution, "a", card={"id": 1})
    done(execution, "b", files=3)
    assert execution.data == {"sd_path": "/x", "card": {"id": 1}, "files": 3}


def test_a_merge_never_changes_what_a_handler_was_given() -> None:
    execution = triggered(*chain("a", "b"), data={"sd_path": "/x"})
    given = execution.data
    done(execution, "a", files=3)
    assert given == {"sd_path": "/x"}


def test_saying_the_same_as_the_owner_is_no_contradiction() -> None:
    execution = triggered(*chain("a", "b"), data={"path": "/x"})
    done(execution, "a", path="/x", card={"id": [1, 2.0]})
    done(execution, "b", path="/x", card={"id": [1, 2]})
    assert execution.status is ExecutionStatus.COMPLETED


def test_a_rerun_is_given_what_the_trigger_said_though_a_step_has_said_the_same() -> None:
    execution = triggered(*chain("a", "b"), data={"path": "/x", "take": 1})
    done(execution, "a", path="/x", made="by a")
    done(execution, "b", take=1, made="by a")
    again = Execution.rerun(execution, "a", uuid="u-2", at=NOW)
    assert again.data == {"path": "/x", "take": 1}
    kept = Execution.rerun(execution, "b", uuid="u-3", at=NOW)
    assert kept.data == {"path": "/x", "take": 1, "made": "by a"}
    assert kept.payload() == {"path": "/x", "take": 1}


def test_of_one_from_before_that_was_kept_a_rerun_is_given_what_no_step_has_said() -> None:
    execution = triggered(*chain("a", "b"), data={"path": "/x", "take": 1})
    done(execution, "a", path="/x", made="by a")
    done(execution, "b")
    execution.given = None
    assert Execution.rerun(execution, "a", uuid="u-2", at=NOW).data == {"take": 1}


def test_contradicting_another_step_fails_the_step_and_names_both() -> None:
    execution = triggered(*chain("a", "b"))
    done(execution, "a", files=3)
    done(execution, "b", files=4)
    assert statuses(execution)["b"] == "failed"
    assert execution.error_message is not None
    assert "step b failed" in execution.error_message
    assert "'files'" in execution.error_message
    assert "step a" in execution.error_message
    assert execution.data == {"files": 3}


def test_contradicting_the_trigger_fails_the_step_and_names_both() -> None:
    execution = triggered(StepSpec("a"), data={"sd_path": "/x"})
    done(execution, "a", sd_path="/y")
    assert execution.error_message is not None
    assert "step a" in execution.error_message
    assert "the trigger" in execution.error_message
    assert execution.data == {"sd_path": "/x"}


@pytest.mark.parametrize("name", ["sd_path", "library", "destinations"])
@pytest.mark.parametrize("data", [{}, {"sd_path": "/x", "library": "/x", "destinations": "/x"}])
def test_no_output_says_where_footage_comes_from_or_goes_to(
    name: str, data: dict[str, object]
) -> None:
    """Not even what the trigger has said: a rerun leaves out what steps say."""
    definition = PipelineDefinition("p", (StepSpec("a"),))
    execution = Execution.trigger(definition, uuid="u", data=data, at=NOW, card_key="path:/x")
    done(execution, "a", **{name: "/x"})
    assert execution.error_message is not None
    assert f"{name!r}, which only the trigger may say" in execution.error_message
    assert execution.data == data


@pytest.mark.parametrize(
    ("owned", "said"),
    [(1, True), (0, False), (True, 1), ([1], [True]), ({"n": 0}, {"n": False}), (None, 0)],
)
def test_another_json_value_contradicts_even_if_python_calls_it_equal(
    owned: object, said: object
) -> None:
    execution = triggered(StepSpec("a"), data={"key": owned})
    done(execution, "a", key=said)
    assert statuses(execution) == {"a": "failed"}
    assert repr(execution.data["key"]) == repr(owned)


def test_a_contradiction_reported_twice_is_a_no_op_whatever_was_merged_meanwhile() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"), data={"zebra": 1})
    run(execution, "a", "b")
    said = {"zebra": 2, "ant": 2}
    execution.complete("a", 1, said, at=NOW)
    execution.complete("b", 1, {"ant": 1}, at=NOW)
    draft = execution.copy()
    draft.complete("a", 1, said, at=at(5))
    assert not draft.differs_from(execution)


def test_a_report_with_several_contradictions_is_always_refused_with_the_same_words() -> None:
    data = {f"key{n}": 1 for n in range(50)}
    execution = triggered(StepSpec("a"), data=data)
    done(execution, "a", **dict.fromkeys(reversed(data), 2))
    assert "'key0'" in str(execution.error_message)


def test_a_step_may_rewrite_its_own_keys() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "a")
    execution.complete("a", 1, {"x": 1}, at=NOW)
    execution.steps["a"] = Step(
        StepSpec("a"), "a", status=StepStatus.RUNNING, attempt=2, output={"x": 1}
    )
    execution.complete("a", 2, {"x": 2}, at=NOW)
    assert execution.data == {"x": 2}


# -- retry -----------------------------------------------------------------------


def test_retry_reopens_what_failed_and_what_was_skipped_and_keeps_what_completed() -> None:
    execution = triggered(*chain("a", "b", "c"), StepSpec("d"))
    done(execution, "a", x=1)
    done(execution, "d")
    broken(execution, "b")
    execution.retry(at=at(60))
    assert statuses(execution) == {
        "a": "completed", "b": "pending", "c": "pending", "d": "completed",
    }  # fmt: skip
    assert execution.data == {"x": 1}
    assert (execution.status, execution.error_message) == (ExecutionStatus.RUNNING, None)
    assert (execution.completed_at, execution.started_at) == (None, NOW)
    retried = execution.recorded[-1]
    assert (retried.type, retried.data()) == ("pipeline:retried", {"reopened": ["b", "c"]})
    assert ready(execution) == ["b"]
    done(execution, "b", "c")
    assert execution.status is ExecutionStatus.COMPLETED


def test_retry_reopens_several_failed_steps_and_optional_ones_and_clears_their_warnings() -> None:
    execution = triggered(
        StepSpec("a"), StepSpec("b"), StepSpec("extra", required=False), StepSpec("z")
    )
    run(execution, "a", "b", "z")
    broken(execution, "extra")
    execution.fail("a", 1, "no", at=NOW)
    execution.fail("b", 1, "no", at=NOW)
    execution.retry(at=NOW)
    assert statuses(execution) == {
        "a": "pending", "b": "pending", "extra": "pending", "z": "running",
    }  # fmt: skip
    assert execution.warnings == ()


def test_a_retried_execution_can_fail_again_and_says_so_again() -> None:
    execution = triggered(StepSpec("a"))
    broken(execution, "a", "first")
    execution.retry(at=NOW)
    broken(execution, "a", "second")
    assert types(execution).count("failed") == 2
    assert execution.error_message == "step a failed (attempt 2): second"


def test_retry_leaves_alone_what_still_runs() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "a", "b")
    execution.fail("a", 1, "no", at=NOW)
    execution.retry(at=NOW)
    assert execution.step("b").attempt == 1
    execution.complete("b", 1, {}, at=NOW)
    done(execution, "a")
    assert execution.status is ExecutionStatus.COMPLETED


# -- progress --------------------------------------------------------------------


def test_progress_is_the_weighted_share_of_what_is_done_rounded_down() -> None:
    execution = triggered(StepSpec("a", weight=1), StepSpec("b", weight=2))
    done(execution, "a")
    assert execution.progress == 33
    run(execution, "b")
    execution.note({"b": (1, 0.5)}, at=NOW)
    assert execution.progress == 66


@pytest.mark.parametrize("count", [2, 3, 7, 29, 64])
def test_equal_steps_add_up_without_a_rounding_error(count: int) -> None:
    execution = triggered(*(StepSpec(f"s{n}") for n in range(count)))
    for n in range(count - 1):
        done(execution, f"s{n}")
        assert execution.progress == 100 * (n + 1) // count


def test_progress_is_at_most_99_before_the_last_step() -> None:
    execution = triggered(StepSpec("a", weight=1_000_000), StepSpec("b", weight=1))
    done(execution, "a")
    run(execution, "b")
    execution.note({"b": (1, 1.0)}, at=NOW)
    assert execution.progress == 99
    execution.complete("b", 1, {}, at=NOW)
    assert execution.progress == 100


def test_progress_is_held_when_a_running_step_fails() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "a")
    execution.note({"a": (1, 0.9)}, at=NOW)
    execution.fail("a", 1, "no", at=NOW)
    assert execution.progress == 45


def test_progress_is_held_when_an_attempt_is_given_back() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "a")
    execution.note({"a": (1, 0.9)}, at=NOW)
    execution.release("a", 1, at=NOW)
    run(execution, "a")
    execution.note({"a": (2, 0.1)}, at=NOW)
    assert execution.progress == 45


def test_progress_of_another_attempt_or_of_no_step_is_dropped() -> None:
    execution = taken_over()
    draft = execution.copy()
    draft.note({"a": (1, 0.9), "b": (1, 0.9), "ghost": (1, 0.9)}, at=NOW)
    assert not draft.differs_from(execution)


def test_a_new_run_begins_where_the_kept_steps_stand() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    done(execution, "a")
    run(execution, "b")
    execution.note({"b": (1, 0.8)}, at=NOW)
    execution.fail("b", 1, "no", at=NOW)
    assert execution.progress == 90
    execution.retry(at=NOW)
    assert execution.progress == 50


def test_a_recovery_begins_a_run() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    done(execution, "a")
    run(execution, "b")
    execution.note({"b": (1, 0.8)}, at=NOW)
    execution.recover(at=NOW)
    assert execution.progress == 50


def test_a_failed_execution_shows_how_far_it_came() -> None:
    execution = triggered(*chain("a", "b", "c", "d"))
    done(execution, "a")
    broken(execution, "b")
    assert execution.progress == 25


def test_ended_optional_steps_are_done_however_they_ended() -> None:
    execution = triggered(
        StepSpec("extra", required=False),
        StepSpec("more", required=False, depends_on=("extra",)),
        StepSpec("a"),
        StepSpec("b"),
    )
    broken(execution, "extra")
    assert execution.progress == 50


# -- recovery and stopping -------------------------------------------------------


def test_recovery_takes_over_what_ran_and_keeps_the_rest() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"), StepSpec("c"))
    done(execution, "a")
    run(execution, "b")
    execution.recover(at=NOW)
    assert statuses(execution) == {"a": "completed", "b": "pending", "c": "pending"}
    assert (execution.step("b").takeovers, execution.step("b").failures) == (1, 0)
    assert ready(execution) == ["b", "c"]


def test_recovery_leaves_external_steps_to_their_workers() -> None:
    execution = triggered(StepSpec("render", external=True), StepSpec("b"))
    run(execution, "render", "b")
    execution.recover(at=NOW)
    assert statuses(execution) == {"render": "running", "b": "pending"}
    assert execution.waits_for() == ["render"]
    execution.complete("render", 1, {}, at=NOW)


def test_recovery_of_a_failed_execution_ends_its_attempts_and_starts_nothing() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    run(execution, "a", "b")
    execution.fail("a", 1, "no", at=NOW)
    execution.recover(at=NOW)
    assert statuses(execution) == {"a": "failed", "b": "pending"}
    assert execution.status is ExecutionStatus.FAILED
    assert not execution.unfinished


def lose_worker(execution: Execution, key: str, times: int) -> None:
    for _ in range(times):
        run(execution, key)
        execution.recover(at=NOW)


def test_a_step_that_keeps_losing_its_worker_fails_at_last() -> None:
    execution = triggered(StepSpec("a"), StepSpec("b"))
    lose_worker(execution, "a", MAX_TAKEOVERS)
    assert statuses(execution)["a"] == "pending"
    lose_worker(execution, "a", 1)
    assert statuses(execution)["a"] == "failed"
    assert execution.status is ExecutionStatus.FAILED
    assert f"lost its worker {MAX_TAKEOVERS + 1} times" in str(execution.error_message)


def test_an_optional_step_that_keeps_losing_its_worker_lets_the_execution_complete() -> None:
    execution = triggered(StepSpec("main"), StepSpec("extra", required=False))
    done(execution, "main")
    lose_worker(execution, "extra", MAX_TAKEOVERS + 1)
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.progress == 100


def test_recovering_what_has_completed_changes_nothing() -> None:
    execution = triggered(StepSpec("a"))
    done(execution, "a")
    draft = execution.copy()
    draft.recover(at=NOW)
    assert not draft.differs_from(execution)


def test_a_retry_gives_a_step_that_lost_its_workers_a_new_budget() -> None:
    execution = triggered(StepSpec("a"))
    lose_worker(execution, "a", MAX_TAKEOVERS + 1)
    execution.retry(at=NOW)
    lose_worker(execution, "a", MAX_TAKEOVERS)
    assert statuses(execution)["a"] == "pending"


def test_an_attempt_that_is_given_back_counts_against_nobody() -> None:
    execution = triggered(StepSpec("a"))
    for attempt in range(1, MAX_TAKEOVERS + 5):
        run(execution, "a")
        execution.release("a", attempt, at=NOW)
    step = execution.step("a")
    assert (step.takeovers, step.failures, str(step.status)) == (0, 0, "pending")
    assert ready(execution) == ["a"]


def test_only_the_attempt_that_runs_can_be_given_back() -> None:
    execution = triggered(StepSpec("a"))
    with pytest.raises(AttemptOver):
        execution.release("a", 1, at=NOW)


# -- steps outside ---------------------------------------------------------------


def test_only_external_steps_take_reports_from_outside() -> None:
    execution = triggered(StepSpec("a"), StepSpec("render", external=True))
    assert execution.require_external("render").key == "render"
    with pytest.raises(NotExternal, match="'a'"):
        execution.require_external("a")


def test_an_execution_says_for_whom_outside_it_waits() -> None:
    execution = triggered(StepSpec("render", external=True), StepSpec("b"))
    assert execution.waits_for() == []
    run(execution, "render", "b")
    assert execution.waits_for() == ["render"]
