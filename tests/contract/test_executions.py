"""What ``Executions`` promises, sentence by sentence, of the fake and of SQLite alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from application.ports import Executions, Query
from domain.definition import PipelineDefinition, StepSpec
from domain.errors import (
    AttemptOver,
    CardBusy,
    ExecutionNotFound,
    IllegalTransition,
    MessageConflict,
    Unavailable,
)
from domain.execution import Execution, ExecutionStatus
from domain.step import StepStatus
from tests.contract.conftest import AB, PAIR, SqlStore, Store
from tests.fakes.world import EPOCH, until

MANY = 64


def same(one: Execution, other: Execution) -> bool:
    """Whether they are the same state of the same execution."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in Execution.__slots__
        if name not in ("recorded", "data_bytes", "params_bytes")
    )


def retry(execution: Execution) -> None:
    execution.retry(at=EPOCH)


# -- trigger ---------------------------------------------------------------------


async def test_a_new_execution_is_stored_with_its_first_steps_started(store: Store) -> None:
    made = await store.trigger(data={"sd_path": "/x"}, message_id="m", card_key="path:/x")
    execution = made.execution
    assert made.duplicate is None
    assert execution.id is not None
    assert execution.status is ExecutionStatus.RUNNING
    assert execution.step("a").status is StepStatus.RUNNING
    assert execution.step("b").status is StepStatus.PENDING
    assert same(await store.executions.get(execution.id), execution)
    assert store.dispatcher.keys == ["a"]
    assert store.dispatcher.launched[0].execution.data == {"sd_path": "/x"}
    assert [fact.type for fact in store.published] == ["pipeline:started", "pipeline:step_started"]


async def test_everything_an_execution_is_comes_back_as_it_was_stored(store: Store) -> None:
    definition = PipelineDefinition(
        "wide",
        (
            StepSpec("a", weight=7, pool="io"),
            StepSpec("extra", required=False, after=("a",)),
            StepSpec("render", external=True, depends_on=("a",)),
        ),
    )
    data = {"ünï": ["✓", 1, 2.5, True, None, {"deep": {}}], "big": 2**70, "nul": "\0", "e": ""}
    given = store.new(definition, data=data, message_id="m ü", card_key="path:/x")
    made = (await store.executions.trigger(given, "h")).execution
    found = await store.executions.get(given.uuid)
    assert same(found, made)
    assert found.definition == definition
    assert found.data == data
    assert list(found.data) == list(data)
    assert (found.uuid, found.message_id, found.card_key) == (given.uuid, "m ü", "path:/x")
    assert found.given == tuple(data)
    assert found.payload() == data
    assert (found.created_at, found.started_at) == (EPOCH, EPOCH)
    assert found.created_at.utcoffset() is not None
    assert list(found.steps) == ["a", "extra", "render"]


async def test_the_same_message_again_is_answered_with_the_same_execution(store: Store) -> None:
    first = await store.trigger(message_id="m")
    again = await store.trigger(message_id="m")
    assert again.duplicate == "message"
    assert same(again.execution, first.execution)
    assert len(await store.executions.list(Query())) == 1
    assert len(store.published) == 2


async def test_a_message_is_remembered_when_its_execution_has_long_ended(store: Store) -> None:
    made = await store.make(message_id="m")
    await store.complete(made, "a")
    await store.complete(made, "b")
    again = await store.trigger(message_id="m")
    assert (again.duplicate, again.execution.id) == ("message", made)
    assert again.execution.status is ExecutionStatus.COMPLETED


async def test_a_message_with_other_contents_is_a_conflict(store: Store) -> None:
    await store.make(message_id="m")
    with pytest.raises(MessageConflict, match="'m'"):
        await store.trigger(message_id="m", contents="other")
    assert len(await store.executions.list(Query())) == 1


async def test_apply_changes_what_update_changes_and_answers_nothing(store: Store) -> None:
    made = await store.make()
    answer = await store.executions.apply(
        made, lambda execution: execution.complete("a", 1, {"n": 1}, at=EPOCH)
    )
    assert answer is None
    assert (await store.executions.get(made)).data == {"n": 1}
    assert store.dispatcher.keys == ["a", "b"]
    with pytest.raises(AttemptOver):
        await store.executions.apply(
            made, lambda execution: execution.complete("a", 2, {}, at=EPOCH)
        )
    with pytest.raises(ExecutionNotFound):
        await store.executions.apply(999, retry)


async def test_executions_without_a_message_are_never_the_same(store: Store) -> None:
    assert await store.make() != await store.make()


async def test_one_message_many_times_at_once_makes_one_execution(store: Store) -> None:
    answers = await store.together(*(store.trigger(message_id="m") for _ in range(MANY)))
    assert sorted(str(answer.duplicate) for answer in answers) == ["None"] + ["message"] * (
        MANY - 1
    )
    assert {answer.execution.id for answer in answers} == {answers[0].execution.id}
    assert store.dispatcher.keys == ["a"]


async def test_one_message_with_many_contents_at_once_makes_one_execution(store: Store) -> None:
    answers = await store.together(
        *(store.trigger(message_id="m", contents=f"h{n}") for n in range(20))
    )
    conflicts = [answer for answer in answers if isinstance(answer, MessageConflict)]
    assert len(conflicts) == 19
    assert len(await store.executions.list(Query())) == 1


async def test_a_card_under_way_is_answered_with_the_execution_at_work_on_it(
    store: Store,
) -> None:
    first = await store.trigger(message_id="m1", card_key="path:/x")
    again = await store.trigger(message_id="m2", card_key="path:/x")
    assert again.duplicate == "card"
    assert same(again.execution, first.execution)
    assert len(store.published) == 2


async def test_the_message_of_a_card_under_way_is_remembered_as_the_executions(
    store: Store,
) -> None:
    made = await store.make(message_id="m1", card_key="path:/x")
    await store.trigger(message_id="m2", card_key="path:/x")
    await store.fail(made, "a")
    again = await store.trigger(message_id="m2", card_key="path:/x")
    assert (again.duplicate, again.execution.id) == ("message", made)
    with pytest.raises(MessageConflict):
        await store.trigger(message_id="m2", contents="other")
    assert [e.id for e in await store.executions.list(Query(message_id="m2"))] == [made]


async def test_one_card_many_times_at_once_makes_one_execution(store: Store) -> None:
    answers = await store.together(
        *(store.trigger(message_id=f"m{n}", card_key="path:/x") for n in range(MANY))
    )
    assert sorted(str(answer.duplicate) for answer in answers) == ["None"] + ["card"] * (MANY - 1)
    assert len({answer.execution.id for answer in answers}) == 1
    for number in range(MANY):
        (found,) = await store.executions.list(Query(message_id=f"m{number}"))
        assert found.id == answers[0].execution.id


@pytest.mark.parametrize(
    ("key", "other"),
    [("path:/x", "path:/y"), ("volume:A path:/x", "volume:B path:/x")],
)
async def test_other_cards_are_no_duplicates(store: Store, key: str, other: str) -> None:
    first, second = await store.make(card_key=key), await store.make(card_key=other)
    assert first != second
    for execution in (first, second):
        await store.fail(execution, "a")
    answers = await store.together(
        *(store.executions.update(each, retry) for each in (first, second))
    )
    assert [type(answer).__name__ for answer in answers] == ["Execution", "Execution"]


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("path:/x", "volume:A path:/x"),
        ("volume:A path:/x", "path:/x"),
        ("volume:A path:/x", "volume:A path:/y"),
    ],
)
async def test_what_may_be_the_card_under_way_is_taken_for_it(
    store: Store, key: str, other: str
) -> None:
    first = await store.make(card_key=key)
    assert (await store.trigger(card_key=other)).execution.id == first
    await store.fail(first, "a")
    second = await store.trigger(card_key=other)
    assert second.duplicate is None
    with pytest.raises(CardBusy, match=second.execution.uuid):
        await store.executions.update(first, retry)


async def test_of_two_cards_that_may_be_the_one_the_last_is_taken_for_it(store: Store) -> None:
    first = await store.make(card_key="volume:A path:/x")
    second = await store.make(card_key="volume:B path:/x")
    assert (await store.trigger(card_key="path:/x")).execution.id == second
    await store.fail(second, "a")
    assert (await store.trigger(card_key="path:/x")).execution.id == first


@pytest.mark.parametrize("ends", ["completes", "fails"])
async def test_a_card_is_free_again_when_its_execution_has_ended(store: Store, ends: str) -> None:
    first = await store.make(card_key="path:/x")
    if ends == "fails":
        await store.fail(first, "a")
    else:
        await store.complete(first, "a")
        await store.complete(first, "b")
    second = await store.trigger(card_key="path:/x")
    assert second.duplicate is None
    assert second.execution.id != first


async def test_a_card_can_be_left_and_taken_in_one_commit(store: Store) -> None:
    first = await store.make(card_key="path:/x")
    _, second = await store.together(store.fail(first, "a"), store.trigger(card_key="path:/x"))
    assert second.duplicate is None


# -- update ----------------------------------------------------------------------


async def test_a_change_is_adopted_and_what_became_ready_is_started_with_it(
    store: Store,
) -> None:
    made = await store.make()
    updated = await store.complete(made, "a", files=3)
    assert updated.data == {"files": 3}
    assert updated.step("b").status is StepStatus.RUNNING
    assert same(await store.executions.get(made), updated)
    assert store.dispatcher.keys == ["a", "b"]
    assert store.dispatcher.launched[1].execution.data == {"files": 3}
    assert store.dispatcher.launched[1].ref.attempt == 1


async def test_a_change_that_raises_is_dropped_whole(store: Store) -> None:
    made = await store.make(PAIR)
    before = await store.executions.get(made)
    facts = len(store.published)

    def change(execution: Execution) -> None:
        execution.complete("x", 1, {"files": 3}, at=EPOCH)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await store.executions.update(made, change)
    assert same(await store.executions.get(made), before)
    assert len(store.published) == facts
    assert len(await store.executions.facts(0, 100)) == facts


async def test_only_its_caller_sees_what_a_change_raised(store: Store) -> None:
    made = await store.make(PAIR)
    others = [await store.make(PAIR) for _ in range(3)]

    def broken(execution: Execution) -> None:
        execution.fail("x", 1, "never", at=EPOCH)
        raise LookupError("mine")

    answers = await store.together(
        store.complete(others[0], "x"),
        store.executions.update(made, broken),
        store.complete(made, "x"),
        store.complete(others[1], "x", attempt=9),
        store.complete(others[2], "x"),
    )
    assert isinstance(answers[1], LookupError)
    assert isinstance(answers[3], AttemptOver)
    for answer in (answers[0], answers[2], answers[4]):
        assert isinstance(answer, Execution)
        assert answer.step("x").status is StepStatus.COMPLETED
    assert (await store.executions.get(others[1])).step("x").status is StepStatus.RUNNING


@pytest.mark.parametrize("error", [StopIteration("s"), KeyError("k"), AssertionError("a")])
async def test_whatever_a_change_raises_nobody_waits_for_ever(
    store: Store, error: Exception
) -> None:
    made = await store.make(PAIR)

    def broken(execution: Execution) -> None:
        raise error

    first, second, third = await asyncio.wait_for(
        store.together(
            store.complete(made, "x"),
            store.executions.update(made, broken),
            store.complete(made, "y"),
        ),
        timeout=10,
    )
    assert isinstance(first, Execution)
    assert isinstance(second, Exception)
    assert isinstance(third, Execution)


async def test_changes_of_one_execution_each_see_what_the_one_before_left(store: Store) -> None:
    definition = PipelineDefinition("wide", tuple(StepSpec(f"s{n}") for n in range(MANY)))
    made = await store.make(definition)
    seen = []

    def complete(number: int) -> Callable[[Execution], None]:
        def change(execution: Execution) -> None:
            done = sum(step.ended for step in execution.steps.values())
            execution.complete(f"s{number}", 1, {f"k{number}": done}, at=EPOCH)
            seen.append(done)

        return change

    await store.together(*(store.executions.update(made, complete(n)) for n in range(MANY)))
    final = await store.executions.get(made)
    assert final.status is ExecutionStatus.COMPLETED
    assert sorted(final.data.values()) == list(range(MANY)), "none is lost, none saw another's past"
    assert [fact.type for fact in store.published].count("pipeline:completed") == 1


async def test_a_change_that_changes_nothing_writes_nothing(store: Store) -> None:
    made = await store.make()
    before = await store.executions.get(made)
    after = await store.executions.update(made, lambda e: e.tick(at=e.updated_at))
    assert same(after, before)
    assert (await store.executions.get(made)).version == before.version
    assert len(store.published) == 2


async def test_an_outcome_reported_twice_is_answered_with_the_state_and_writes_nothing(
    store: Store,
) -> None:
    made = await store.make()
    first = await store.complete(made, "a", files=3)
    facts = len(store.published)
    assert same(await store.complete(made, "a", files=3), first)
    assert len(store.published) == facts
    assert store.dispatcher.keys == ["a", "b"]


async def test_an_outcome_reported_many_times_at_once_counts_once(store: Store) -> None:
    made = await store.make()
    answers = await store.together(*(store.complete(made, "a", files=3) for _ in range(20)))
    assert all(isinstance(answer, Execution) for answer in answers)
    assert [fact.type for fact in store.published].count("pipeline:step_completed") == 1
    assert store.dispatcher.keys == ["a", "b"]


async def test_opposite_outcomes_at_once_are_one_outcome_and_one_refusal(store: Store) -> None:
    made = await store.make()
    answers = await store.together(store.complete(made, "a"), store.fail(made, "a"))
    assert sorted(type(answer).__name__ for answer in answers) == ["AttemptOver", "Execution"]


async def test_an_execution_is_changed_by_uuid_as_by_id(store: Store) -> None:
    running = (await store.trigger()).execution
    changed = await store.executions.update(running.uuid, lambda e: e.pause(at=EPOCH))
    assert (changed.id, changed.paused_at) == (running.id, EPOCH)
    ended = await store.make()
    await store.fail(ended, "a")
    uuid = (await store.executions.get(ended)).uuid
    store.dispatcher.free(ended, "a")
    # Each on what the one before it left, however it was named.
    answers = await store.together(
        store.executions.update(uuid, retry),
        store.executions.update(ended, lambda e: e.complete("a", 2, {}, at=EPOCH)),
        store.executions.update(uuid, lambda e: e.complete("b", 1, {}, at=EPOCH)),
    )
    assert answers[-1].status is ExecutionStatus.COMPLETED


async def test_updating_what_isnt_there_is_refused_by_name(store: Store) -> None:
    with pytest.raises(ExecutionNotFound, match="999"):
        await store.executions.update(999, lambda e: None)


async def test_a_retry_is_refused_while_another_execution_holds_the_card(store: Store) -> None:
    first = await store.make(card_key="path:/x")
    await store.fail(first, "a")
    store.dispatcher.free(first, "a")
    second = (await store.trigger(card_key="path:/x")).execution
    held = set(store.dispatcher.held)
    with pytest.raises(CardBusy, match=second.uuid):
        await store.executions.update(first, retry)
    assert (await store.executions.get(first)).status is ExecutionStatus.FAILED
    assert store.dispatcher.held == held, "the slot of the refused start is free again"
    assert second.id is not None
    await store.fail(second.id, "a")
    retried = await store.executions.update(first, retry)
    assert retried.step("a").attempt == 2
    assert (await store.trigger(card_key="path:/x")).execution.id == first


async def test_of_two_retries_for_one_card_at_once_one_is_refused(store: Store) -> None:
    failed = []
    for _ in range(2):
        failed.append(await store.make(card_key="path:/x"))
        await store.fail(failed[-1], "a")
    answers = await store.together(*(store.executions.update(each, retry) for each in failed))
    assert sorted(type(answer).__name__ for answer in answers) == ["CardBusy", "Execution"]


async def test_a_failed_execution_without_a_card_is_retried_whoever_runs(store: Store) -> None:
    first = await store.make()
    await store.fail(first, "a")
    await store.make()
    assert (await store.executions.update(first, retry)).status is ExecutionStatus.RUNNING
    with pytest.raises(IllegalTransition):
        await store.executions.update(first, retry)


# -- a commit that fails ---------------------------------------------------------


async def test_when_the_commit_of_a_trigger_fails_nothing_of_it_happened(store: Store) -> None:
    store.fail_commits(1)
    with pytest.raises(Unavailable):
        await store.trigger(message_id="m", card_key="path:/x")
    assert store.published == []
    assert store.dispatcher.launched == []
    assert store.dispatcher.held == set()
    assert len(store.dispatcher.withdrawn) == 1
    assert await store.executions.list(Query()) == []
    assert await store.executions.fact_bounds() == (0, 0)
    again = await store.trigger(message_id="m", card_key="path:/x", contents="other")
    assert again.duplicate is None


async def test_when_the_commit_of_an_update_fails_nothing_of_it_happened(store: Store) -> None:
    made = await store.make()
    before = await store.executions.get(made)
    facts = list(store.published)
    store.fail_commits(1)
    with pytest.raises(Unavailable):
        await store.complete(made, "a", files=3)
    assert same(await store.executions.get(made), before)
    assert store.published == facts
    assert store.dispatcher.held == {(made, "a")}
    assert store.dispatcher.withdrawn == [(made, "b")]
    after = await store.complete(made, "a", files=3)
    assert (after.data, after.step("b").attempt) == ({"files": 3}, 1)
    assert store.dispatcher.keys == ["a", "b"]


async def test_a_card_that_a_failed_commit_would_have_freed_is_still_held(store: Store) -> None:
    made = await store.make(card_key="path:/x")
    store.fail_commits(1)
    with pytest.raises(Unavailable):
        await store.fail(made, "a")
    assert (await store.trigger(card_key="path:/x")).duplicate == "card"


# -- slots -----------------------------------------------------------------------


async def test_a_step_without_a_slot_waits_and_is_asked_about_again(store: Store) -> None:
    store.dispatcher.slots = 1
    made = await store.make(PAIR)
    waiting = await store.executions.get(made)
    assert waiting.step("y").status is StepStatus.PENDING
    assert waiting.step("y").queued_at == EPOCH
    store.dispatcher.free(made, "x")
    started = await store.executions.update(made, lambda e: e.ask_again())
    assert started.step("y").status is StepStatus.RUNNING
    assert store.dispatcher.keys == ["x", "y"]


async def test_every_admitted_step_is_launched_or_withdrawn(store: Store) -> None:
    made = [await store.make() for _ in range(20)]
    store.dispatcher.slots = len(made) + 9
    store.fail_commits(3)
    await store.together(*(store.complete(each, "a") for each in made))
    running = {
        (each, step.key)
        for each in made
        for step in (await store.executions.get(each)).steps.values()
        if step.status is StepStatus.RUNNING
    }
    handlers = [(s.ref.execution_id, s.ref.step_key) for s in store.dispatcher.launched]
    assert len(handlers) == len(set(handlers)), "none is launched twice"
    assert store.dispatcher.held == set(handlers)
    assert running <= set(handlers)
    assert store.dispatcher.withdrawn


OUTSIDE = PipelineDefinition("outside", (StepSpec("render", external=True), StepSpec("a")))


async def test_external_steps_start_without_a_slot_and_nobody_here_runs_them(
    store: Store,
) -> None:
    store.dispatcher.slots = 0
    made = (await store.trigger(OUTSIDE)).execution
    assert made.step("render").status is StepStatus.RUNNING
    assert made.waits_for() == ["render"]
    assert made.step("a").status is StepStatus.PENDING
    assert store.dispatcher.launched == []
    store.fail_commits(1)
    with pytest.raises(Unavailable):
        await store.trigger(OUTSIDE)
    assert store.dispatcher.withdrawn == []


async def test_while_the_dispatcher_holds_external_steps_wait_as_all_others_do(
    store: Store,
) -> None:
    store.dispatcher.hold()
    made = await store.make(OUTSIDE)
    held = await store.executions.get(made)
    for key in ("render", "a"):
        assert held.step(key).status is StepStatus.PENDING
        assert held.step(key).queued_at == EPOCH
    store.dispatcher.go_on()
    started = await store.executions.update(made, lambda e: e.ask_again())
    assert started.waits_for() == ["render"]
    assert store.dispatcher.keys == ["a"]


# -- reading ---------------------------------------------------------------------


async def test_an_execution_is_found_by_uuid_and_by_id(store: Store) -> None:
    made = (await store.trigger()).execution
    assert same(await store.executions.get(made.uuid), made)
    assert same(await store.executions.get(made.id), made)


@pytest.mark.parametrize(
    "reference", [0, -1, 999, 2**63 - 1, 2**63, 2**200, "", "ghost", "1", "\ud800", "ü", "\0"]
)
async def test_what_isnt_there_is_not_found(store: Store, reference: str | int) -> None:
    await store.make()
    with pytest.raises(ExecutionNotFound):
        await store.executions.get(reference)
    with pytest.raises(ExecutionNotFound):
        await store.executions.update(reference, lambda e: None)


async def test_an_execution_that_has_ended_is_found_as_it_ended(store: Store) -> None:
    made = await store.make()
    await store.complete(made, "a", x=1)
    final = await store.complete(made, "b", y=[1])
    assert same(await store.executions.get(made), final)
    assert same(await store.executions.get(final.uuid), final)


async def test_the_list_is_newest_first_and_bounded(store: Store) -> None:
    made = [await store.make() for _ in range(7)]
    listed = await store.executions.list(Query(limit=3))
    assert [execution.id for execution in listed] == made[:-4:-1]
    assert [e.id for e in await store.executions.list(Query())] == made[::-1]


async def test_pages_of_the_list_follow_each_other_without_a_gap(store: Store) -> None:
    made = [await store.make() for _ in range(7)]
    paged: list[int] = []
    before = None
    while page := await store.executions.list(Query(limit=2, before=before)):
        paged.extend(execution.id for execution in page)
        before = paged[-1]
    assert paged == made[::-1]
    assert await store.executions.list(Query(before=2**70)) != []
    assert await store.executions.list(Query(before=0)) == []


async def test_the_list_filters_by_status_type_and_message_alone_and_together(
    store: Store,
) -> None:
    running = await store.make(AB, message_id="m1")
    failed = await store.make(AB, message_id="m2")
    await store.fail(failed, "a")
    pair = await store.make(PAIR, message_id="m3")

    async def listed(**query: Any) -> list[int]:
        return [execution.id for execution in await store.executions.list(Query(**query))]

    assert await listed(status=ExecutionStatus.FAILED) == [failed]
    assert await listed(status=ExecutionStatus.RUNNING) == [pair, running]
    assert await listed(status=ExecutionStatus.CANCELLED) == []
    assert await listed(pipeline_type="ab") == [failed, running]
    assert await listed(pipeline_type="ghost") == []
    assert await listed(message_id="m1") == [running]
    assert await listed(message_id="ghost") == []
    assert await listed(pipeline_type="ab", status=ExecutionStatus.RUNNING) == [running]
    assert await listed(pipeline_type="ab", message_id="m3") == []


async def test_the_list_shows_the_steps_in_the_order_of_the_definition(store: Store) -> None:
    made = await store.make()
    updated = await store.complete(made, "a", x=1)
    (listed,) = await store.executions.list(Query())
    assert same(listed, updated)
    assert list(listed.steps) == ["a", "b"]


async def test_unfinished_are_those_with_anything_left_to_go_on_with_oldest_first(
    store: Store,
) -> None:
    assert list(await store.executions.unfinished()) == []
    running = await store.make()
    completed = await store.make()
    await store.complete(completed, "a")
    await store.complete(completed, "b")
    failed = await store.make()
    await store.fail(failed, "a")
    still_running = await store.make(PAIR)
    await store.fail(still_running, "x")
    last = await store.make()
    assert list(await store.executions.unfinished()) == [running, still_running, last]
    await store.complete(still_running, "y")
    assert list(await store.executions.unfinished()) == [running, last]


# -- facts -----------------------------------------------------------------------


async def test_nothing_recorded_has_no_bounds(store: Store) -> None:
    assert await store.executions.fact_bounds() == (0, 0)
    assert list(await store.executions.facts(0, 10)) == []


async def test_what_is_let_out_is_what_the_log_says(store: Store) -> None:
    made = await store.make(message_id="m")
    await store.fail(made, "a")
    await store.executions.update(made, retry)
    await store.complete(made, "a", attempt=2)
    await store.complete(made, "b")
    logged = await store.executions.facts(0, 100)
    assert list(logged) == store.published
    assert [fact.type.removeprefix("pipeline:") for fact in logged] == [
        "started", "step_started", "step_failed", "step_skipped", "failed", "retried",
        "step_started", "step_completed", "step_started", "step_completed", "completed",
    ]  # fmt: skip
    uuid = (await store.executions.get(made)).uuid
    for fact in logged:
        assert fact.execution_id == made
        assert fact.data["execution_id"] == uuid
        assert fact.data["message_id"] == "m"
        assert fact.step_key == fact.data.get("step_key")
        assert fact.occurred_at == EPOCH


async def test_facts_without_a_message_name_none(store: Store) -> None:
    await store.make()
    assert "message_id" not in (await store.executions.facts(0, 1))[0].data


async def test_fact_ids_rise_in_the_order_in_which_they_are_let_out(store: Store) -> None:
    made = await store.together(*(store.make(PAIR) for _ in range(MANY)))
    await store.together(
        *(store.complete(each, "x") for each in made), *(store.fail(each, "y") for each in made)
    )
    ids = [fact.id for fact in store.published]
    assert ids == sorted(set(ids))
    assert [fact.id for fact in await store.executions.facts(0, 10_000)] == ids
    for each in made:
        own = [fact.type for fact in store.published if fact.execution_id == each]
        assert own[0] == "pipeline:started"
        assert own.index("pipeline:step_completed") > own.index("pipeline:step_started")


async def test_no_fact_with_a_smaller_id_becomes_visible_later(store: Store) -> None:
    made = [await store.make(PAIR) for _ in range(20)]
    seen: list[int] = []
    done = asyncio.Event()

    async def read() -> None:
        while True:
            ended = done.is_set()
            for fact in await store.executions.facts(seen[-1] if seen else 0, 7):
                seen.append(fact.id)
            if ended and (await store.executions.fact_bounds())[1] == seen[-1]:
                return

    reading = asyncio.ensure_future(read())
    await asyncio.gather(*(store.complete(each, "x") for each in made))
    await asyncio.gather(*(store.complete(each, "y") for each in made))
    done.set()
    await asyncio.wait_for(reading, 10)
    assert seen == [fact.id for fact in store.published]


async def test_a_fact_is_in_the_log_before_it_is_let_out(store: Store) -> None:
    pages: list[asyncio.Task[Any]] = []
    publish = store.published.extend

    def look(facts: Any) -> None:
        publish(facts)
        pages.append(asyncio.ensure_future(store.executions.facts(facts[0].id - 1, len(facts))))

    store.publish = look  # type: ignore[method-assign, assignment]
    await store.close()
    await store.open()
    await store.make()
    (page,) = await asyncio.gather(*pages)
    assert list(page) == store.published


async def test_facts_are_let_out_before_the_caller_is_answered(store: Store) -> None:
    made = await store.make()
    assert len(store.published) == 2
    await store.complete(made, "a")
    assert len(store.published) == 4


async def test_facts_are_paged_by_the_last_id_that_was_seen(store: Store) -> None:
    for _ in range(4):
        await store.make()
    every = [fact.id for fact in await store.executions.facts(0, 100)]
    paged: list[int] = []
    while page := await store.executions.facts(paged[-1] if paged else 0, 3):
        assert len(page) <= 3
        paged.extend(fact.id for fact in page)
    assert paged == every
    assert list(await store.executions.facts(2**70, 3)) == []
    assert [fact.id for fact in await store.executions.facts(-5, 100)] == every


async def test_facts_of_one_execution_are_paged_alone(store: Store) -> None:
    one, _, _ = [await store.make() for _ in range(3)]
    await store.complete(one, "a")
    facts = await store.executions.facts(0, 100, one)
    assert len(facts) == 4
    assert {fact.execution_id for fact in facts} == {one}
    assert list(await store.executions.facts(facts[1].id, 1, one)) == [facts[2]]
    assert list(await store.executions.facts(0, 10, 999)) == []


async def test_every_place_within_the_bounds_can_be_resumed_from(store: Store) -> None:
    for _ in range(3):
        await store.make()
    oldest, last = await store.executions.fact_bounds()
    ids = [fact.id for fact in store.published]
    assert last == ids[-1]
    assert [fact.id for fact in await store.executions.facts(oldest, 100)] == ids
    assert list(await store.executions.facts(last, 100)) == []


# -- whose it is -----------------------------------------------------------------


def spoil(execution: Execution) -> None:
    """Change everything in it that can be changed."""
    execution.status = ExecutionStatus.CANCELLED
    execution.error_message = "spoilt"
    if isinstance(execution.data, dict):
        for value in execution.data.values():
            if isinstance(value, dict):
                value["spoilt"] = True
        execution.data["spoilt"] = True
    for key, step in list(execution.steps.items()):
        if isinstance(step.output, dict):
            for value in step.output.values():
                if isinstance(value, dict):
                    value["spoilt"] = True
            step.output["spoilt"] = True
        execution.steps[key] = step._replace(status=StepStatus.CANCELLED)
    execution.recorded.clear()


@pytest.mark.parametrize("output", [{}, {"deep": {"x": 1}}])
async def test_whatever_is_handed_out_is_the_callers_own(
    store: Store, output: dict[str, Any]
) -> None:
    given = store.new(data={"deep_given": {"x": 1}}, message_id="m", card_key="path:/x")
    made = await store.executions.trigger(given, "h")
    reference = made.execution.id

    async def expect() -> None:
        found = await store.executions.get(reference)
        assert "spoilt" not in str(found)
        assert found.status is ExecutionStatus.RUNNING
        assert list(found.steps) == ["a", "b"]

    spoil(given)
    await expect()
    spoil(made.execution)
    await expect()
    spoil((await store.trigger(message_id="m")).execution)
    await expect()
    spoil((await store.trigger(message_id="m2", card_key="path:/x")).execution)
    await expect()
    spoil(await store.complete(reference, "a", **output))
    await expect()
    spoil(await store.executions.update(reference, lambda e: None))
    await expect()
    spoil(await store.executions.get(reference))
    await expect()
    spoil((await store.executions.list(Query()))[0])
    await expect()
    assert (await store.complete(reference, "b")).status is ExecutionStatus.COMPLETED
    spoil(await store.executions.get(reference))
    assert "spoilt" not in str(await store.executions.get(reference))


async def test_facts_that_are_handed_out_are_the_callers_own(store: Store) -> None:
    await store.make()
    (fact, *_) = await store.executions.facts(0, 1)
    fact.data["steps"].append("spoilt")
    assert (await store.executions.facts(0, 1))[0].data["steps"] == ["a", "b"]


# -- holding ---------------------------------------------------------------------


async def test_since_when_the_engine_is_held_is_remembered_for_whoever_opens_it_next(
    store: Store,
) -> None:
    assert await store.executions.held_at() is None
    await store.executions.hold(None)
    assert await store.executions.held_at() is None
    await store.executions.hold(EPOCH)
    await store.executions.hold(EPOCH + timedelta(seconds=5))
    if isinstance(store, SqlStore):
        await store.reopen()
    assert await store.executions.held_at() == EPOCH + timedelta(seconds=5)
    await store.executions.hold(None)
    assert await store.executions.held_at() is None


async def test_a_hold_whose_commit_fails_is_not_remembered(store: Store) -> None:
    store.fail_commits(1)
    with pytest.raises(Unavailable):
        await store.executions.hold(EPOCH)
    assert await store.executions.held_at() is None
    assert await store.make() == 1, "the store goes on"


async def test_what_was_asked_before_a_hold_is_there_after_it(store: Store) -> None:
    """Also where nobody waits for it any more, and the commit that it shares fails."""
    definition = PipelineDefinition("one", (StepSpec("a"),))
    held = [
        Execution.trigger(definition, uuid=store.ids.new(), data={}, at=EPOCH, held=True)
        for _ in range(20)
    ]

    async def gone() -> None:
        asked = asyncio.ensure_future(store.executions.trigger(held[0], "h"))
        await asyncio.sleep(0)
        if isinstance(store, SqlStore):  # in memory, what nobody waits for doesn't happen
            asked.cancel()
        store.fail_commits(1 if isinstance(store, SqlStore) else 0)

    async def hold() -> int:
        await asyncio.sleep(0)  # now all of them have asked
        await store.executions.hold(None)
        return len(await store.executions.unfinished())

    *_, found = await store.together(
        gone(), *(store.executions.trigger(each, "h") for each in held[1:]), hold()
    )
    assert found == len(held)


async def test_a_pending_execution_holds_its_card_and_starts_nothing_until_it_begins(
    store: Store,
) -> None:
    given = Execution.trigger(
        AB, uuid="u", data={}, at=EPOCH, card_key="path:/x", message_id="m", held=True
    )
    stored = await store.executions.trigger(given, "h")
    assert stored.execution.status is ExecutionStatus.PENDING
    assert store.published == []
    assert store.dispatcher.asked == []
    again = await store.trigger(card_key="path:/x", message_id="n")
    assert (again.duplicate, again.execution.status) == ("card", ExecutionStatus.PENDING)
    assert (await store.trigger(message_id="m", card_key="path:/x")).duplicate == "message"
    made = stored.execution.id
    assert made is not None
    assert await store.executions.unfinished() == [made]
    if isinstance(store, SqlStore):
        await store.reopen()
    begun = await store.executions.update(made, lambda e: e.begin(at=EPOCH))
    assert begun.step("a").status is StepStatus.RUNNING
    assert store.dispatcher.keys == ["a"]
    assert [fact.type for fact in store.published] == ["pipeline:started", "pipeline:step_started"]


# -- closed ----------------------------------------------------------------------

CALLS: dict[str, Callable[[Executions, Execution], Any]] = {
    "trigger": lambda executions, execution: executions.trigger(execution, "h"),
    "update": lambda executions, execution: executions.update(1, lambda e: None),
    "get by id": lambda executions, execution: executions.get(1),
    "get by uuid": lambda executions, execution: executions.get(execution.uuid),
    "list": lambda executions, execution: executions.list(Query()),
    "unfinished": lambda executions, execution: executions.unfinished(),
    "facts": lambda executions, execution: executions.facts(0, 1),
    "fact_bounds": lambda executions, execution: executions.fact_bounds(),
    "forget": lambda executions, execution: executions.forget(EPOCH, 1),
    "hold": lambda executions, execution: executions.hold(EPOCH),
    "held_at": lambda executions, execution: executions.held_at(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
async def test_every_method_of_a_closed_store_raises_unavailable(
    store: Store, call: Callable[[Executions, Execution], Any]
) -> None:
    given = store.new()
    await store.executions.trigger(given, "h")
    await store.close()
    with pytest.raises(Unavailable):
        await call(store.executions, given)


async def test_closing_twice_is_closing_once(store: Store) -> None:
    await store.close()
    await store.close()


async def test_what_was_under_way_at_the_close_is_answered(store: Store) -> None:
    made = await store.make(PAIR)
    calls = [asyncio.ensure_future(store.complete(made, key)) for key in ("x", "y")]
    await asyncio.sleep(0)
    await store.close()
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert all(isinstance(answer, Execution | Unavailable) for answer in answers)
    answered = sum(isinstance(answer, Execution) for answer in answers)
    completed = [fact for fact in store.published if fact.type == "pipeline:step_completed"]
    assert len(completed) == answered


async def test_a_caller_that_goes_away_disturbs_nobody(store: Store) -> None:
    made = await store.make(PAIR)
    leaving = asyncio.ensure_future(store.complete(made, "x"))
    staying = asyncio.ensure_future(store.complete(made, "y"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).step("y").status is StepStatus.COMPLETED
    assert (await asyncio.gather(leaving, return_exceptions=True))[0] is not None


async def test_a_step_that_has_to_queue_at_the_trigger_is_looked_at_when_its_wait_is_over(
    store: Store,
) -> None:
    store.dispatcher.slots = 0
    definition = PipelineDefinition("queued", (StepSpec("a", queue_timeout_s=5),))
    triggered = await store.executions.trigger(
        Execution.trigger(definition, uuid="q-1", data={}, at=EPOCH), "hash"
    )
    await until(lambda: store.dispatcher.looks)
    assert store.dispatcher.looks == [(triggered.execution.id, EPOCH + timedelta(seconds=5))]


@pytest.mark.parametrize("status", [None, *ExecutionStatus])
async def test_executions_of_one_type_are_listed_without_going_through_all(
    sql: SqlStore, status: ExecutionStatus | None
) -> None:
    plans: list[str] = []

    def explain(
        connection: Any, cursor: Any, statement: str, parameters: Any, *more: object
    ) -> None:
        if statement.startswith("SELECT pipeline_execution"):
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[-1] for row in plan)

    await sql.make()
    event.listen(sql.database.reader, "before_cursor_execute", explain)
    listed = await sql.executions.list(Query(pipeline_type="ab", status=status))
    assert len(listed) == (status in (None, ExecutionStatus.RUNNING))
    column = "pipeline_type" if status in (None, ExecutionStatus.COMPLETED) else "status"
    assert [plan.split("(")[1] for plan in plans] == [f"{column}=?)"]


# -- external steps --------------------------------------------------------------

RENDERED = PipelineDefinition(
    "outside",
    (StepSpec("render", external=True, lease_s=60), StepSpec("b", depends_on=("render",))),
)
OWN = PipelineDefinition("own", (StepSpec("render"),))


async def test_steps_that_wait_for_a_worker_are_found_the_longest_waiting_first(
    store: Store,
) -> None:
    first = await store.make(RENDERED)
    second = await store.make(replace(RENDERED, type="other"))
    await store.make(OWN)  # the same name, and no business of workers outside
    claimed, paused, failed = [await store.make(RENDERED) for _ in range(3)]
    await store.executions.update(claimed, lambda e: e.claim("render", "w", at=EPOCH))
    await store.executions.update(paused, lambda e: e.pause(at=EPOCH))
    await store.executions.update(failed, lambda e: e.cancel(at=EPOCH))
    # The first one's worker was lost: its second attempt has waited less long than others.
    await store.executions.update(
        first, lambda e: e.release("render", 1, at=EPOCH + timedelta(seconds=5))
    )
    unclaimed = store.executions.unclaimed
    assert list(await unclaimed("render", None, 10)) == [(second, "render"), (first, "render")]
    assert list(await unclaimed("render", None, 1)) == [(second, "render")]
    assert list(await unclaimed("render", "outside", 10)) == [(first, "render")]
    assert list(await unclaimed("b", None, 10)) == []


async def test_who_has_claimed_a_step_and_until_when_is_stored(store: Store) -> None:
    made = await store.make(RENDERED)
    await store.executions.update(made, lambda e: e.claim("render", "wörker", at=EPOCH))
    if isinstance(store, SqlStore):
        await store.reopen()
    step = (await store.executions.get(made)).step("render")
    assert (step.worker, step.lease_ends_at) == ("wörker", EPOCH + timedelta(seconds=60))


async def test_the_dispatcher_is_asked_to_look_when_a_lease_is_over(store: Store) -> None:
    made = await store.make(RENDERED)
    await store.executions.update(made, lambda e: e.claim("render", "w", at=EPOCH))
    await until(lambda: store.dispatcher.looks)
    assert store.dispatcher.looks[-1] == (made, EPOCH + timedelta(seconds=60))
