"""Steps that are spawned while an execution runs, and who waits for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain.definition import PipelineDefinition, StepSpec
from domain.errors import AttemptOver, IllegalTransition, InvalidDefinition, InvalidInput
from domain.execution import MAX_WARNINGS, Execution, ExecutionStatus
from domain.step import StepStatus
from domain.steps import CHUNK, Steps

NOW = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)
PROBE = StepSpec("probe", dynamic=True)
SCAN = StepSpec("scan", spawns=("probe",))
REPORT = StepSpec("report", depends_on=("probe:*",))


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def triggered(*steps: StepSpec, data: dict[str, Any] | None = None) -> Execution:
    definition = PipelineDefinition("p", steps)
    return Execution.trigger(definition, uuid="u", data=data or {}, at=NOW)


def scanning(*steps: StepSpec) -> Execution:
    """An execution whose ``scan`` runs."""
    execution = triggered(*(steps or (SCAN, PROBE, REPORT)))
    execution.start("scan", at=at(1))
    execution.recorded.clear()
    return execution


def spawn(execution: Execution, parameter: str, **more: Any) -> None:
    execution.spawn("scan", 1, more.pop("name", "probe"), parameter, at=at(2), **more)


def run(execution: Execution, key: str, output: dict[str, Any] | None = None) -> None:
    attempt = execution.start(key, at=at(3)).attempt
    execution.complete(key, attempt, output or {}, at=at(4))


def ready(execution: Execution) -> list[str]:
    return [step.key for step in execution.ready()]


def test_a_family_has_no_step_until_one_is_spawned() -> None:
    execution = triggered(SCAN, PROBE, REPORT)
    assert list(execution.steps) == ["scan", "report"]


def test_a_spawned_step_is_visible_and_may_run_at_once() -> None:
    execution = scanning()
    spawn(execution, "A001", params={"clip": "A001.MP4"})
    assert ready(execution) == ["probe:A001"]
    step = execution.step("probe:A001")
    assert (step.name, step.parameter, step.params) == ("probe", "A001", {"clip": "A001.MP4"})
    assert execution.recorded[-1].type == "pipeline:step_spawned"
    assert execution.recorded[-1].data() == {
        "step_name": "probe",
        "step_key": "probe:A001",
        "attempt": 0,
        "spawned_by": "scan",
    }


def test_who_waits_for_a_family_waits_until_it_is_closed_and_done() -> None:
    execution = scanning()
    spawn(execution, "A001")
    run(execution, "probe:A001")
    assert ready(execution) == [], "scan may still spawn another one"
    spawn(execution, "A002")
    execution.complete("scan", 1, {}, at=at(5))
    assert ready(execution) == ["probe:A002"]
    run(execution, "probe:A002")
    assert ready(execution) == ["report"]
    run(execution, "report")
    assert execution.status is ExecutionStatus.COMPLETED


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who has gone through all steps, or all of a family."""
    seen: list[str] = []
    for name in ("keys", "values", "items", "of_family"):
        original = getattr(Steps, name)

        def walk(steps: Steps, *of: str, name: str = name, original: Any = original) -> Any:
            seen.append(name)
            return original(steps, *of)

        monkeypatch.setattr(Steps, name, walk)
    return seen


def test_no_transition_of_a_large_family_goes_through_all_of_it(walks: list[str]) -> None:
    later = StepSpec("later", dynamic=True, depends_on=("probe:*",))
    last = StepSpec("last", depends_on=("later:*",))
    execution = scanning(StepSpec("scan", spawns=("probe", "later")), PROBE, later, last)
    walks.clear()  # to begin says which steps there are
    members = 3 * CHUNK
    for number in range(members):
        spawn(execution, str(number), params={"clip": number})
        spawn(execution, str(number), name="later")
    execution.complete("scan", 1, {}, at=at(3))
    drafts = [execution]
    for name in ("probe", "later"):
        waiting = ready(drafts[-1])
        assert waiting == [f"{name}:{number}" for number in range(members)]
        for key in waiting:
            drafts.append(drafts[-1].copy())
            drafts[-1].queue(key, at=at(3))
            assert drafts[-1].differs_from(drafts[-2])
        for key in waiting:
            drafts.append(drafts[-1].copy())
            drafts[-1].tick(at=at(3))
            drafts[-1].ask_again(key)
            assert ready(drafts[-1]) == [key]
            run(drafts[-1], key, {"seen": 1})
            assert drafts[-1].next_look_at() is None
    run(drafts[-1], "last")
    assert walks == []
    assert drafts[-1].status is ExecutionStatus.COMPLETED


@pytest.mark.parametrize("verb", ["queue", "start", "complete", "spawn"])
def test_a_draft_shares_with_its_original_what_it_does_not_change(verb: str) -> None:
    execution = scanning()
    for number in range(3 * CHUNK):
        spawn(execution, str(number))
    draft = execution.copy()
    match verb:
        case "queue":
            draft.queue("probe:100", at=at(3))
        case "start":
            draft.start("probe:100", at=at(3))
        case "complete":
            draft.complete("scan", 1, {}, at=at(3))
        case "spawn":
            spawn(draft, "new")
    changed = list(draft.steps.changed_since(execution.steps))
    assert len(changed) == 1
    assert draft.differs_from(execution)
    assert not execution.copy().differs_from(execution)
    assert ("probe:new" in execution.steps, "probe:new" in draft.steps) == (False, verb == "spawn")
    assert execution.step("probe:100") == execution.copy().step("probe:100")


def test_what_a_dropped_draft_had_spawned_is_not_there() -> None:
    execution = scanning()
    spawn(execution, "A")
    dropped = execution.copy()
    for parameter in ("B", "C"):
        spawn(dropped, parameter, after=("probe:A",))
    draft = execution.copy()
    spawn(draft, "C")
    spawn(draft, "B")
    assert list(draft.steps) == ["scan", "report", "probe:A", "probe:C", "probe:B"]
    assert list(dropped.steps) == ["scan", "report", "probe:A", "probe:B", "probe:C"]
    assert ready(draft) == ["probe:A", "probe:C", "probe:B"]
    assert ready(dropped) == ["probe:A"]
    for each in (draft, dropped):
        assert [each.step(key).key for key in each.steps] == list(each.steps)


def test_who_depends_on_a_family_is_skipped_with_the_first_that_is_also_if_all_are_at_once() -> (
    None
):
    later = StepSpec("later", dynamic=True, depends_on=("probe:*",))
    last = StepSpec("last", depends_on=("later:*",))
    execution = scanning(StepSpec("scan", spawns=("probe", "later")), PROBE, later, last)
    for parameter in "AB":
        spawn(execution, parameter)
        spawn(execution, parameter, name="later")
    execution.start("probe:A", at=at(3))
    execution.fail("probe:A", 1, "broken", at=at(4))
    skipped = [step.key for step in execution.steps.values() if step.status is StepStatus.SKIPPED]
    assert skipped == ["last", "later:A", "later:B"]


def test_an_empty_family_is_satisfied_once_it_is_closed() -> None:
    execution = scanning()
    assert ready(execution) == []
    execution.complete("scan", 1, {}, at=at(2))
    assert ready(execution) == ["report"]


def test_a_family_spawned_by_a_family_closes_after_it() -> None:
    execution = scanning(
        SCAN,
        StepSpec("probe", dynamic=True, spawns=("proxy",)),
        StepSpec("proxy", dynamic=True),
        StepSpec("report", depends_on=("proxy:*",)),
    )
    spawn(execution, "A")
    execution.complete("scan", 1, {}, at=at(2))
    assert ready(execution) == ["probe:A"]
    execution.start("probe:A", at=at(3))
    execution.spawn("probe:A", 1, "proxy", "A", at=at(3))
    execution.complete("probe:A", 1, {}, at=at(4))
    assert ready(execution) == ["proxy:A"]
    run(execution, "proxy:A")
    assert ready(execution) == ["report"]


def test_spawning_the_same_again_changes_nothing_and_another_is_refused() -> None:
    execution = scanning()
    spawn(execution, "A", params={"n": 1})
    facts = len(execution.recorded)
    spawn(execution, "A", params={"n": 1})
    assert len(execution.recorded) == facts
    with pytest.raises(InvalidInput, match="other params"):
        spawn(execution, "A", params={"n": 2})
    with pytest.raises(InvalidInput, match="other params or dependencies"):
        spawn(execution, "A", params={"n": 1}, depends_on=["scan"])


def test_only_a_running_attempt_spawns_and_only_what_its_step_declares() -> None:
    execution = scanning()
    with pytest.raises(AttemptOver):
        execution.spawn("scan", 2, "probe", "A", at=at(2))
    with pytest.raises(InvalidInput, match="doesn't declare"):
        spawn(execution, "A", name="report")
    for parameter in ("", "a/b", "a b", "x" * 201, "a\n"):
        with pytest.raises(InvalidInput, match="parameter"):
            spawn(execution, parameter)
    execution.complete("scan", 1, {}, at=at(3))
    with pytest.raises(AttemptOver):
        spawn(execution, "late")


def test_a_spawned_step_may_wait_for_others_that_are_there() -> None:
    execution = scanning()
    spawn(execution, "A")
    spawn(execution, "B", depends_on=["probe:A"])
    assert ready(execution) == ["probe:A"]
    run(execution, "probe:A")
    assert ready(execution) == ["probe:B"]
    with pytest.raises(InvalidInput, match="isn't there"):
        spawn(execution, "C", depends_on=["probe:Z"])


def test_a_spawned_step_may_not_wait_for_what_waits_for_its_family() -> None:
    execution = scanning()
    for depends_on in (["report"], ["probe:*"]):
        with pytest.raises(InvalidInput, match="wait for itself"):
            spawn(execution, "A", depends_on=depends_on)


@pytest.mark.parametrize(
    "after",
    [
        ["frame:*"],  # which the step's own family spawns
        ["late:*"],  # whose only spawner waits for the step's family
        ["later:*"],  # whose members to come would wait for it
    ],
)
def test_a_spawned_step_may_not_wait_for_a_family_that_is_open_until_it_has_ended(
    after: list[str],
) -> None:
    execution = scanning(
        StepSpec("scan", spawns=("probe", "later")),
        StepSpec("probe", dynamic=True, spawns=("frame",)),
        StepSpec("frame", dynamic=True),
        StepSpec("index", after=("probe:*",), spawns=("late",)),
        StepSpec("late", dynamic=True),
        StepSpec("later", dynamic=True, after=("index",)),
    )
    with pytest.raises(InvalidInput, match="wait for itself"):
        spawn(execution, "A", after=after)
    spawn(execution, "A")


def test_a_required_spawned_step_may_not_depend_on_an_optional_one() -> None:
    execution = scanning(SCAN, PROBE, StepSpec("poster", required=False))
    with pytest.raises(InvalidInput, match="optional step 'poster'"):
        spawn(execution, "A", depends_on=["poster"])
    spawn(execution, "A", after=["poster"])


def test_a_failed_member_skips_what_waits_for_the_family() -> None:
    execution = scanning()
    spawn(execution, "A")
    spawn(execution, "B", depends_on=["probe:A"])
    execution.start("probe:A", at=at(3))
    execution.fail("probe:A", 1, "no", at=at(4))
    assert execution.status is ExecutionStatus.FAILED
    assert execution.step("report").status is StepStatus.SKIPPED
    assert execution.step("probe:B").status is StepStatus.SKIPPED
    spawn(execution, "C", depends_on=["probe:A"])
    assert execution.step("probe:C").status is StepStatus.SKIPPED


def test_a_retry_keeps_the_family_and_spawning_it_again_changes_nothing() -> None:
    execution = scanning()
    for parameter in ("A", "B"):
        spawn(execution, parameter)
    run(execution, "probe:A", {"codec": "h264"})
    execution.fail("scan", 1, "card lost", at=at(5))
    execution.retry(at=at(7))
    assert sorted(ready(execution)) == ["probe:B", "scan"]
    execution.start("scan", at=at(8))
    for parameter in ("A", "B", "C"):
        execution.spawn("scan", 2, "probe", parameter, at=at(9))
    assert execution.step("probe:A").status is StepStatus.COMPLETED
    assert sorted(ready(execution)) == ["probe:B", "probe:C"]


def test_the_outputs_of_a_family_stand_under_its_name_by_parameter() -> None:
    execution = scanning()
    for parameter in ("A", "B"):
        spawn(execution, parameter)
        run(execution, f"probe:{parameter}", {"codec": parameter})
    assert execution.data == {"probe": {"A": {"codec": "A"}, "B": {"codec": "B"}}}


def test_a_family_s_name_in_the_data_belongs_to_nobody_else() -> None:
    execution = triggered(SCAN, PROBE, data={"probe": "mine"})
    execution.start("scan", at=at(1))
    spawn(execution, "A")
    execution.start("probe:A", at=at(3))
    execution.complete("probe:A", 1, {"codec": "h264"}, at=at(4))
    assert execution.status is ExecutionStatus.FAILED
    assert "'probe'" in str(execution.error_message)
    assert execution.data == {"probe": "mine"}


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((PROBE,), "no steps"),
        ((StepSpec("a"), PROBE), "nobody spawns the dynamic step 'probe'"),
        ((StepSpec("a", spawns=("b",)), StepSpec("b")), "no such dynamic step"),
        ((StepSpec("a", spawns=("x",)),), "no such dynamic step"),
        ((SCAN, PROBE, StepSpec("c", depends_on=("probe",))), "waited for as 'probe:*'"),
        ((StepSpec("a"), StepSpec("c", depends_on=("a:*",))), "waited for as 'a'"),
        ((SCAN, PROBE, StepSpec("c", after=("x:*",))), "no such step"),
        (
            (StepSpec("scan", spawns=("probe",), depends_on=("probe:*",)), PROBE),
            "in a circle: scan -> ",
        ),
        (
            (SCAN, StepSpec("probe", dynamic=True, spawns=("probe",))),
            "spawn each other in a circle: probe -> probe",
        ),
        (
            (
                StepSpec("scan", spawns=("probe",), required=False),
                StepSpec("probe", dynamic=True, required=False),
                StepSpec("c", depends_on=("probe:*",)),
            ),
            "optional step 'probe:*'",
        ),
    ],
)
def test_a_family_that_makes_no_sense_is_refused(steps: tuple[StepSpec, ...], says: str) -> None:
    with pytest.raises(InvalidDefinition) as refused:
        PipelineDefinition("p", steps)
    assert says in str(refused.value)


# -- lost attempts and what they leave -------------------------------------------


def test_what_was_left_for_another_attempt_goes_when_there_will_be_none() -> None:
    def left(number: int) -> Execution:
        execution = triggered(StepSpec("a"))
        for attempt in range(1, number + 1):
            execution.start("a", at=at(1))
            execution.leave("a", attempt, {"bytes": attempt}, at=at(2))
            if attempt < number:
                execution.fail("a", attempt, "no", at=at(3))
                execution.retry(at=at(3))
        return execution

    again = left(2)
    assert again.step("a").checkpoint == {"bytes": 2}
    again.complete("a", 2, {}, at=at(4))
    assert again.step("a").checkpoint is None
    cancelled = left(1)
    cancelled.cancel(at=at(4))
    assert cancelled.step("a").checkpoint is None
    settled = left(1)
    settled.fail("a", 1, "no", at=at(4))
    assert settled.step("a").checkpoint == {"bytes": 1}
    settled.settle("a", {}, at=at(5))
    assert settled.step("a").checkpoint is None


def test_a_lost_attempt_is_taken_over_and_its_result_is_refused() -> None:
    execution = triggered(StepSpec("a"))
    execution.start("a", at=at(1))
    execution.leave("a", 1, {"bytes": 10}, at=at(2))
    execution.lose("a", 1, at=at(3))
    assert ready(execution) == ["a"]
    assert execution.start("a", at=at(4)).attempt == 2
    assert execution.step("a").checkpoint == {"bytes": 10}
    for late in (
        lambda: execution.complete("a", 1, {}, at=at(5)),
        lambda: execution.leave("a", 1, {"bytes": 11}, at=at(5)),
        lambda: execution.lose("a", 1, at=at(5)),
    ):
        with pytest.raises(AttemptOver):
            late()


def test_a_step_that_keeps_losing_its_worker_fails() -> None:
    execution = triggered(StepSpec("a"))
    for attempt in range(1, 12):
        execution.start("a", at=at(attempt))
        execution.lose("a", attempt, at=at(attempt))
    assert execution.status is ExecutionStatus.FAILED
    assert "lost its worker 11 times" in str(execution.error_message)


# -- running a part again --------------------------------------------------------


def test_running_again_from_a_step_keeps_what_doesn_t_come_of_it() -> None:
    execution = triggered(
        StepSpec("a"),
        StepSpec("b", depends_on=("a",)),
        StepSpec("c", depends_on=("b",)),
        StepSpec("d"),
        data={"take": 1},
    )
    for key in ("a", "b", "c", "d"):
        run(execution, key, {key: execution.step(key).attempt})
    assert execution.status is ExecutionStatus.COMPLETED
    execution.id = 7
    again = Execution.rerun(execution, "b", uuid="v", at=at(9))
    assert (again.status, again.rerun_of, again.uuid) == (ExecutionStatus.RUNNING, 7, "v")
    assert {key: step.status for key, step in again.steps.items()} == {
        "a": StepStatus.COMPLETED,
        "b": StepStatus.PENDING,
        "c": StepStatus.PENDING,
        "d": StepStatus.COMPLETED,
    }
    assert again.data == {"take": 1, "a": 0, "d": 0}
    assert ready(again) == ["b"]
    assert again.progress == 50
    assert execution.status is ExecutionStatus.COMPLETED, "the original is as it was"


def test_running_again_from_a_spawner_spawns_its_family_anew() -> None:
    execution = scanning()
    spawn(execution, "A")
    execution.complete("scan", 1, {"found": 1}, at=at(5))
    run(execution, "probe:A", {"codec": "h264"})
    run(execution, "report")
    execution.id = 7
    again = Execution.rerun(execution, "scan", uuid="v", at=at(9))
    assert list(again.steps) == ["scan", "report"]
    assert again.data == {}
    only = Execution.rerun(execution, "report", uuid="w", at=at(9))
    assert only.step("probe:A").status is StepStatus.COMPLETED
    assert only.data == {"found": 1, "probe": {"A": {"codec": "h264"}}}
    assert ready(only) == ["report"]


def test_what_still_runs_is_not_run_again() -> None:
    execution = triggered(StepSpec("a"))
    with pytest.raises(IllegalTransition, match="be run again"):
        Execution.rerun(execution, "a", uuid="v", at=at(1))


def test_a_member_is_run_again_without_its_spawner() -> None:
    execution = scanning()
    for parameter in ("A", "B"):
        spawn(execution, parameter, params={"clip": parameter})
        run(execution, f"probe:{parameter}", {"codec": parameter})
    execution.complete("scan", 1, {"found": 2}, at=at(5))
    run(execution, "report")
    execution.id = 7
    again = Execution.rerun(execution, "probe:A", uuid="v", at=at(9))
    assert {key: step.status for key, step in again.steps.items()} == {
        "scan": StepStatus.COMPLETED,
        "probe:A": StepStatus.PENDING,
        "probe:B": StepStatus.COMPLETED,
        "report": StepStatus.PENDING,
    }
    assert again.step("probe:A").params == {"clip": "A"}
    assert ready(again) == ["probe:A"]
    run(again, "probe:A", {"codec": "again"})
    run(again, "report")
    assert again.status is ExecutionStatus.COMPLETED
    assert again.data["probe"] == {"A": {"codec": "again"}, "B": {"codec": "B"}}


def test_a_spawner_that_runs_again_takes_only_its_own_members_with_it() -> None:
    execution = triggered(
        StepSpec("left", spawns=("probe",)),
        StepSpec("right", spawns=("probe",)),
        StepSpec("probe", dynamic=True),
        StepSpec("report", depends_on=("probe:*",)),
    )
    for key, parameter in (("left", "A"), ("right", "B")):
        execution.start(key, at=at(1))
        execution.spawn(key, 1, "probe", parameter, at=at(2))
        execution.complete(key, 1, {}, at=at(3))
        run(execution, f"probe:{parameter}", {"codec": parameter})
    run(execution, "report")
    execution.id = 7
    again = Execution.rerun(execution, "left", uuid="v", at=at(9))
    assert {key: step.status for key, step in again.steps.items()} == {
        "left": StepStatus.PENDING,
        "right": StepStatus.COMPLETED,
        "report": StepStatus.PENDING,
        "probe:B": StepStatus.COMPLETED,
    }
    member = Execution.rerun(execution, "probe:B", uuid="w", at=at(9))
    assert {key for key, step in member.steps.items() if not step.ended} == {"probe:B", "report"}
    (started,) = member.recorded
    assert started.data()["kept"] == ["left", "right", "probe:A"]


@pytest.mark.parametrize("spawned_again", [True, False])
def test_what_waited_for_a_member_that_is_to_be_spawned_again_waits_for_its_spawner(
    spawned_again: bool,
) -> None:
    execution = scanning(
        StepSpec("scan", spawns=("probe",)),
        StepSpec("index", spawns=("page",)),
        PROBE,
        StepSpec("page", dynamic=True),
    )
    execution.start("index", at=at(1))
    execution.spawn("index", 1, "page", "1", at=at(2))
    execution.complete("index", 1, {}, at=at(2))
    run(execution, "page:1")
    spawn(execution, "A", after=["page:1"])
    run(execution, "probe:A")
    execution.complete("scan", 1, {}, at=at(5))
    again = Execution.rerun(execution, "index", uuid="v", at=at(9))
    assert again.step("scan").status is StepStatus.COMPLETED
    assert ready(again) == ["index"]
    again.start("index", at=at(10))
    if spawned_again:
        again.spawn("index", 1, "page", "1", at=at(10))
        assert ready(again) == ["page:1"]
        run(again, "page:1")
    again.complete("index", 1, {}, at=at(11))
    run(again, "probe:A")
    assert again.status is ExecutionStatus.COMPLETED


def test_what_waits_for_a_family_runs_again_with_whoever_may_spawn_its_spawners() -> None:
    execution = scanning(
        SCAN,
        StepSpec("probe", dynamic=True, spawns=("frame",)),
        StepSpec("frame", dynamic=True),
        StepSpec("reel", after=("frame:*",)),
    )
    execution.complete("scan", 1, {}, at=at(2))
    run(execution, "reel")
    again = Execution.rerun(execution, "scan", uuid="v", at=at(9))
    assert again.step("reel").status is StepStatus.PENDING


def test_a_held_execution_begins_when_it_is_told_to() -> None:
    definition = PipelineDefinition("test", (StepSpec("a"),))
    execution = Execution.trigger(definition, uuid="u", data={}, at=at(0), held=True)
    assert (execution.status, execution.started_at) == (ExecutionStatus.PENDING, None)
    assert not execution.ready()
    assert not execution.recorded
    execution.begin(at=at(5))
    assert (execution.status, execution.started_at) == (ExecutionStatus.RUNNING, at(5))
    assert ready(execution) == ["a"]
    with pytest.raises(IllegalTransition, match="start"):
        execution.begin(at=at(6))


def test_no_more_warnings_are_kept_than_anybody_reads() -> None:
    optional = StepSpec("probe", dynamic=True, required=False)
    execution = scanning(SCAN, optional)
    count = MAX_WARNINGS + 5
    for number in range(count):
        spawn(execution, str(number))
        execution.start(f"probe:{number}", at=at(3))
        execution.fail(f"probe:{number}", 1, "x" * 2000, at=at(4))
    assert len(execution.warnings) == MAX_WARNINGS
    assert execution.warnings[0].startswith("optional step probe:0 failed: xxx")
    assert execution.warnings[-1] == "6 more steps have failed"
