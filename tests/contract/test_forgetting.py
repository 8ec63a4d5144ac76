"""What ``Executions.forget`` promises: who goes, what goes with them, and what nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from adapters.persistence.forgetting import forget, forgettable
from adapters.persistence.tables import metadata, pipeline_execution
from application.ports import Query
from domain.errors import ExecutionNotFound, FactsGone, IllegalTransition, Unavailable
from domain.execution import Execution, ExecutionStatus
from tests.contract.conftest import PAIR, SqlStore, Store
from tests.contract.test_executions import retry, same
from tests.fakes.world import EPOCH, until

LATER = EPOCH + timedelta(days=1)


async def ended(store: Store, how: str = "completed", **given: Any) -> int:
    """An execution that is over, last changed at ``EPOCH``."""
    made = await store.make(**given)
    if how == "failed":
        await store.fail(made, "a")
    elif how == "cancelled":
        await store.executions.update(made, lambda e: e.cancel(at=EPOCH))
    else:
        await store.complete(made, "a")
        await store.complete(made, "b")
    return made


async def there(store: Store) -> list[int]:
    """The oldest first."""
    found = await store.executions.list(Query())
    return [execution.id for execution in reversed(found)]


# -- who goes --------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1])
async def test_of_nothing_nothing_is_forgotten(store: Store, limit: int) -> None:
    assert await store.executions.forget(LATER, limit) == 0
    assert await store.executions.fact_bounds() == (0, 0)


@pytest.mark.parametrize(
    ("before", "limit"), [(LATER, 0), (EPOCH, 10), (datetime.min.replace(tzinfo=UTC), 10)]
)
async def test_a_limit_of_none_and_a_time_that_is_too_early_forget_nothing(
    store: Store, before: datetime, limit: int
) -> None:
    made = await ended(store)
    commits = store.commits
    assert await store.executions.forget(before, limit) == 0
    assert store.commits == commits
    assert await there(store) == [made]


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
async def test_an_execution_that_is_over_goes_with_its_steps_facts_and_messages(
    store: Store, how: str
) -> None:
    made = await store.make(message_id="m", card_key="path:/x")
    await store.trigger(message_id="m2", card_key="path:/x")
    uuid = (await store.executions.get(made)).uuid
    await store.executions.update(made, lambda e: e.cancel(at=EPOCH))
    other = await ended(store, how, message_id="other")
    assert await store.executions.forget(LATER, 1) == 1
    for reference in (made, uuid):
        with pytest.raises(ExecutionNotFound):
            await store.executions.get(reference)
    assert await there(store) == [other]
    assert list(await store.executions.facts(0, 100, made)) == []
    for message in ("m", "m2"):
        assert list(await store.executions.list(Query(message_id=message))) == []
        again = await store.trigger(message_id=message, contents="other")
        assert again.duplicate is None
    assert await store.executions.forget(LATER, 1) == 1
    with pytest.raises(ExecutionNotFound):
        await store.executions.get(other)


async def test_no_row_of_a_forgotten_execution_is_left(sql: SqlStore) -> None:
    await ended(sql, message_id="m")
    referring = {
        table.name
        for table in metadata.sorted_tables
        if any(key.column.table is pipeline_execution for key in table.foreign_keys)
    }
    assert referring == {"pipeline_step", "pipeline_event", "trigger_message"}
    assert await sql.executions.forget(LATER, 10) == 1
    for table in ("pipeline_execution", *referring):
        assert sql.query(f"SELECT count(*) FROM {table}") == [(0,)], table


async def test_whatever_is_still_under_way_stays(store: Store) -> None:
    running = await store.make()
    paused = await store.make()
    await store.executions.update(paused, lambda e: e.pause(at=EPOCH))
    await store.complete(paused, "a")
    with_a_step_at_work = await store.make(PAIR)
    await store.fail(with_a_step_at_work, "x")
    store.dispatcher.slots = 0
    waiting = await store.make()
    assert await store.executions.forget(LATER, 10) == 0
    assert await there(store) == [running, paused, with_a_step_at_work, waiting]
    await store.complete(with_a_step_at_work, "y")
    assert await store.executions.forget(LATER, 10) == 1
    assert await there(store) == [running, paused, waiting]


async def test_the_age_of_an_execution_is_that_of_its_last_change(store: Store) -> None:
    young = await ended(store, "failed")
    await store.executions.update(young, lambda e: e.retry(at=LATER))
    await store.executions.update(young, lambda e: e.cancel(at=LATER))
    old = await ended(store)
    assert await store.executions.forget(LATER, 10) == 1
    assert await there(store) == [young]
    assert await store.executions.forget(LATER + timedelta(microseconds=1), 10) == 1
    assert old > young


async def test_the_oldest_go_first_and_no_more_than_asked_for(store: Store) -> None:
    made = []
    for how in ("failed", "completed", "cancelled", "completed", "failed"):
        made.append(await ended(store, how))
    assert await store.executions.forget(LATER, 2) == 2
    assert await there(store) == made[2:]
    assert await store.executions.forget(LATER, 2) == 2
    assert await there(store) == made[4:]
    assert await store.executions.forget(LATER, 2) == 1
    assert await store.executions.forget(LATER, 2) == 0


async def test_as_many_go_at_once_as_are_asked_for(sql: SqlStore) -> None:
    """More than one query names."""
    await sql.make()
    sql.query(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 1300) "
        "INSERT INTO pipeline_execution SELECT i, uuid || i, NULL, pipeline_type, definition, "
        "'completed', NULL, execution_data, NULL, warnings, 100, NULL, NULL, NULL, NULL, 1, "
        "created_at, NULL, NULL, updated_at FROM pipeline_execution, n"
    )
    assert await sql.executions.forget(LATER, 100_000) == 1_299
    assert await there(sql) == [1]


# -- one commit ------------------------------------------------------------------


async def test_they_go_in_one_commit(store: Store) -> None:
    for _ in range(5):
        await ended(store)
    commits = store.commits
    assert await store.executions.forget(LATER, 5) == 5
    assert store.commits == commits + 1
    assert await store.executions.forget(LATER, 5) == 0
    assert store.commits == commits + 1


async def test_when_the_commit_fails_nothing_is_forgotten(store: Store) -> None:
    made = await ended(store, message_id="m")
    before = await store.executions.get(made)
    bounds = await store.executions.fact_bounds()
    store.fail_commits(1)
    with pytest.raises(Unavailable):
        await store.executions.forget(LATER, 10)
    assert same(await store.executions.get(made), before)
    assert await store.executions.fact_bounds() == bounds
    assert len(await store.executions.facts(0, 100, made)) == len(store.published)
    assert (await store.trigger(message_id="m")).duplicate == "message"
    assert await store.executions.forget(LATER, 10) == 1


# -- at the same time as others --------------------------------------------------


async def in_order(store: Store, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Each in its turn, in one commit where the store can; their answers and their errors."""
    if not isinstance(store, SqlStore):
        return await store.together(*calls)
    tasks: list[asyncio.Task[Any]] = []
    async with store.held():
        queue = store.executions.writer._queue
        for call in calls:
            tasks.append(asyncio.ensure_future(call))
            await until(lambda: queue.qsize() == len(tasks))
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_a_change_that_comes_first_saves_its_execution(store: Store) -> None:
    made, other = await ended(store, "failed"), await ended(store, "failed")
    commits = store.commits
    retried, forgotten = await in_order(
        store, store.executions.update(made, retry), store.executions.forget(LATER, 10)
    )
    assert isinstance(retried, Execution)
    assert forgotten == 1
    if isinstance(store, SqlStore):
        assert store.commits == commits + 1, "the two are not in each other's way"
    assert (await store.executions.get(made)).status is ExecutionStatus.RUNNING
    assert await there(store) == [made]
    assert other not in await there(store)


async def test_what_has_changed_since_it_was_found_stays(sql: SqlStore) -> None:
    made, other = await ended(sql, "failed"), await ended(sql, "failed")
    with sql.database.reader.begin() as connection:
        found = forgettable(connection, LATER, 10)
    assert found == [made, other]
    await sql.executions.update(made, retry)
    forgotten = await asyncio.to_thread(
        sql.executions.writer.run_blocking, lambda batch: forget(batch, LATER, found)
    )
    assert forgotten == 1
    assert await there(sql) == [made]


async def test_a_change_that_comes_later_finds_it_no_more(store: Store) -> None:
    made = await ended(store, "failed")
    forgotten, retried = await in_order(
        store, store.executions.forget(LATER, 10), store.executions.update(made, retry)
    )
    assert forgotten == 1
    assert isinstance(retried, ExecutionNotFound)
    assert await there(store) == []
    assert list(await store.executions.unfinished()) == []


async def test_who_only_looked_at_it_before_saves_nobody(store: Store) -> None:
    """And who then changes it doesn't change what was read before it went."""
    made = await ended(store, "failed")
    running = await store.make()
    looked, forgotten, retried, completed = await in_order(
        store,
        store.executions.update(made, lambda e: None),
        store.executions.forget(LATER, 10),
        store.executions.update(made, retry),
        store.complete(running, "a"),
    )
    assert isinstance(looked, Execution)
    assert forgotten == 1
    assert isinstance(retried, ExecutionNotFound)
    assert isinstance(completed, Execution)
    assert await there(store) == [running]


async def test_a_message_that_comes_right_after_begins_anew(store: Store) -> None:
    made = await ended(store, message_id="m")
    forgotten, again = await in_order(
        store,
        store.executions.forget(LATER, 10),
        store.trigger(message_id="m", contents="other"),
    )
    assert forgotten == 1
    assert again.duplicate is None
    assert again.execution.id > made


async def test_a_change_that_is_refused_neither_saves_nor_disturbs(store: Store) -> None:
    made = await ended(store, "completed")
    refused, forgotten = await in_order(
        store, store.executions.update(made, retry), store.executions.forget(LATER, 10)
    )
    assert isinstance(refused, IllegalTransition)
    assert forgotten == 1


async def test_two_that_forget_at_once_count_each_once(store: Store) -> None:
    for _ in range(3):
        await ended(store)
    counts = await in_order(
        store, store.executions.forget(LATER, 10), store.executions.forget(LATER, 10)
    )
    assert sum(counts) == 3


async def test_what_does_a_forgotten_one_again_goes_on(store: Store) -> None:
    made = await ended(store)
    original = await store.executions.get(made)
    again = Execution.rerun(original, "b", uuid=store.ids.new(), at=LATER)
    first = (await store.executions.trigger(again, "h1")).execution
    assert await store.executions.forget(LATER, 10) == 1
    later = Execution.rerun(original, "b", uuid=store.ids.new(), at=LATER)
    second = (await store.executions.trigger(later, "h2")).execution
    for each in (first, second):
        completed = await store.complete(each.id or 0, "b")
        assert (completed.status, completed.rerun_of) == (ExecutionStatus.COMPLETED, made)


# -- the log ---------------------------------------------------------------------


async def test_no_id_is_ever_given_again(store: Store) -> None:
    made = [await ended(store) for _ in range(3)]
    facts = [fact.id for fact in store.published]
    assert await store.executions.forget(LATER, 10) == 3
    if isinstance(store, SqlStore):
        await store.reopen()
    store.published.clear()
    assert await store.make() > max(made)
    assert min(fact.id for fact in store.published) > max(facts)


async def test_the_last_id_is_known_when_everything_is_forgotten(store: Store) -> None:
    await ended(store)
    last = store.published[-1].id
    assert await store.executions.forget(LATER, 10) == 1
    assert await store.executions.fact_bounds() == (last, last)
    assert list(await store.executions.facts(last, 100)) == []
    if isinstance(store, SqlStore):
        await store.reopen()
        assert await store.executions.fact_bounds() == (last, last)


async def test_the_log_can_be_followed_from_the_highest_id_that_went(store: Store) -> None:
    old, young = await store.make(), await store.make()
    for key in ("a", "b"):
        await store.complete(old, key)
        await store.complete(young, key)
    await store.executions.update(young, lambda e: None)
    facts = list(store.published)
    floor = max(fact.id for fact in facts if fact.execution_id == old)
    assert await store.executions.forget(LATER, 1) == 1
    assert await store.executions.fact_bounds() == (floor, facts[-1].id)
    kept = [fact for fact in facts if fact.id > floor]
    assert kept
    assert list(await store.executions.facts(floor, 100)) == kept
    for since in (-1, 0, floor - 1):
        with pytest.raises(FactsGone) as refused:
            await store.executions.facts(since, 100)
        assert (refused.value.oldest, refused.value.last) == (floor, facts[-1].id)


async def test_an_execution_that_is_there_has_all_its_facts(store: Store) -> None:
    old, young = await store.make(), await store.make()
    for key in ("a", "b"):
        await store.complete(young, key)
        await store.complete(old, key)
    own = [fact for fact in store.published if fact.execution_id == young]
    assert await store.executions.forget(LATER, 1) == 1
    assert (await store.executions.fact_bounds())[0] > own[-1].id
    assert list(await store.executions.facts(0, 100, young)) == own


async def test_where_the_log_begins_never_goes_back(store: Store) -> None:
    late = await store.make()
    first = await ended(store)
    await store.executions.update(late, lambda e: e.pause(at=EPOCH))
    second = await ended(store)
    floors = []
    for each in (None, late, None):
        if each is not None:
            await store.executions.update(each, lambda e: e.cancel(at=LATER))
        assert await store.executions.forget(LATER + timedelta(days=1), 1) == 1
        floors.append((await store.executions.fact_bounds())[0])
    assert floors == sorted(floors)
    assert floors[0] < floors[1]
    assert floors[1] == floors[2] == store.published[-1].id
    assert first < second


# -- in time ---------------------------------------------------------------------


async def test_no_table_is_searched_from_end_to_end(sql: SqlStore) -> None:
    for _ in range(3):
        await ended(sql)
    statements: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, given: Any, *more: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            statements.append((statement, given))

    for engine in (sql.database.reader, sql.database.writer):
        event.listen(engine, "before_cursor_execute", note)
    assert await sql.executions.forget(LATER, 10) == 3
    assert len(statements) >= 8
    for statement, given in statements:
        parameters = given[0] if isinstance(given, list) else given
        for *_, plan in sql.query(f"EXPLAIN QUERY PLAN {statement}", *parameters):
            # The walk is a scan by the key, and ends at the first that is too young.
            assert plan == "SCAN pipeline_execution" or not plan.startswith("SCAN"), plan
            assert "TEMP B-TREE" not in plan


async def test_the_walk_ends_at_the_first_that_is_too_young(sql: SqlStore) -> None:
    old, young, unreadable = [await ended(sql) for _ in range(3)]
    sql.query(
        "UPDATE pipeline_execution SET created_at = ?, updated_at = ? WHERE id = ?",
        LATER.isoformat(), LATER.isoformat(), young,
    )  # fmt: skip
    sql.query("UPDATE pipeline_execution SET created_at = 'no time' WHERE id = ?", unreadable)
    assert await sql.executions.forget(LATER, 10) == 1
    assert {row[0] for row in sql.query("SELECT id FROM pipeline_execution")} == {young, unreadable}
    assert old < young
