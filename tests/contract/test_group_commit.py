"""What only SQLite has: one writer, many changes in a commit, and a file that outlives it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from adapters.persistence.batch import Batch
from adapters.persistence.statements import Statement
from adapters.persistence.writer import GROUP, STALE_TRIES
from application.ports import Query
from domain.definition import PipelineDefinition, StepSpec
from domain.errors import Conflict, ExecutionNotFound, StaleExecution, Unavailable
from domain.execution import Execution, ExecutionStatus
from domain.step import Step, StepStatus
from tests.contract.conftest import PAIR, SqlStore
from tests.contract.test_executions import same, spoil
from tests.fakes.world import EPOCH, ManualDispatcher, until


async def test_what_waits_shares_one_commit(sql: SqlStore) -> None:
    made = [await sql.make() for _ in range(GROUP)]
    before = sql.commits
    answers = await sql.together(*(sql.complete(each, "a") for each in made))
    assert all(isinstance(answer, Execution) for answer in answers)
    assert sql.commits == before + 1


async def test_a_group_is_bounded(sql: SqlStore) -> None:
    made = [await sql.make() for _ in range(GROUP + 1)]
    before = sql.commits
    await sql.together(*(sql.complete(each, "a") for each in made))
    assert sql.commits == before + 2


async def test_a_change_that_raises_leaves_the_others_their_commit(sql: SqlStore) -> None:
    made = [await sql.make(PAIR) for _ in range(3)]

    def broken(execution: Execution) -> None:
        execution.complete("x", 1, {"lost": True}, at=EPOCH)
        raise LookupError("mine")

    before = sql.commits
    first, second, third = await sql.together(
        sql.complete(made[0], "x"),
        sql.executions.update(made[1], broken),
        sql.complete(made[2], "x"),
    )
    assert sql.commits == before + 1
    assert isinstance(second, LookupError)
    assert isinstance(first, Execution)
    assert isinstance(third, Execution)
    assert "lost" not in sql.query("SELECT group_concat(execution_data) FROM pipeline_execution")


async def test_a_card_is_left_and_taken_in_one_commit(sql: SqlStore) -> None:
    first = await sql.make(card_key="path:/x")
    before = sql.commits
    await sql.together(sql.fail(first, "a"), sql.trigger(card_key="path:/x"))
    assert sql.commits == before + 1


async def test_a_group_with_one_poisoned_piece_fails_only_that(sql: SqlStore) -> None:
    made = [await sql.make(PAIR) for _ in range(5)]

    def poisoned(execution: Execution) -> None:
        execution.complete("x", 1, {}, at=EPOCH, job_id=999)  # no such job: the row is refused

    answers = await sql.together(
        *(sql.complete(each, "x") for each in made[:2]),
        sql.executions.update(made[2], poisoned),
        *(sql.complete(each, "x") for each in made[3:]),
    )
    assert isinstance(answers.pop(2), Conflict)
    assert all(isinstance(answer, Execution) for answer in answers)
    assert (await sql.executions.get(made[2])).step("x").status is StepStatus.RUNNING
    assert list(await sql.executions.facts(0, 1000)) == sql.published
    again = await sql.complete(made[2], "x")
    assert again.step("x").status is StepStatus.COMPLETED


async def test_a_group_whose_commit_fails_is_tried_again_one_by_one(sql: SqlStore) -> None:
    made = [await sql.make() for _ in range(5)]
    sql.fail_commits(1)
    answers = await sql.together(*(sql.complete(each, "a", n=each) for each in made))
    assert [answer.data for answer in answers] == [{"n": each} for each in made]
    assert len(sql.dispatcher.withdrawn) == 5
    assert sql.dispatcher.keys == ["a"] * 5 + ["b"] * 5
    assert list(await sql.executions.facts(0, 1000)) == sql.published
    ids = [fact.id for fact in sql.published]
    assert ids == sorted(set(ids))


async def test_a_group_of_triggers_whose_commit_fails_makes_each_once(sql: SqlStore) -> None:
    sql.fail_commits(1)
    answers = await sql.together(
        *(sql.trigger(message_id=f"m{n % 4}", card_key=f"c{n % 2}") for n in range(8))
    )
    assert len({answer.execution.id for answer in answers}) == 2
    assert len(await sql.executions.list(Query())) == 2
    assert [fact.type for fact in sql.published].count("pipeline:started") == 2


async def test_while_nothing_can_be_written_everybody_is_told_and_then_it_goes_on(
    sql: SqlStore,
) -> None:
    made = await sql.make()
    sql.fail_commits(1000)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await sql.complete(made, "a")
    answers = await sql.together(sql.complete(made, "a"), sql.trigger(), sql.trigger())
    assert all(isinstance(answer, Unavailable) for answer in answers)
    sql.fail_commits(0)
    assert (await sql.complete(made, "a")).step("b").status is StepStatus.RUNNING
    assert sql.dispatcher.held == {(made, "a"), (made, "b")}


async def test_a_full_disk_is_survived(sql: SqlStore) -> None:
    made = await sql.make()
    with sql.database.writer.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.rollback()
    big = {"text": "x" * 200_000}
    with pytest.raises(Unavailable, match="full"):
        await sql.trigger(data=big)
    with pytest.raises(Unavailable, match="full"):
        await sql.complete(made, "a", **big)
    assert len(sql.published) == 2
    with sql.database.writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        connection.rollback()
    assert (await sql.complete(made, "a", **big)).data == big
    assert (await sql.trigger(data=big)).duplicate is None
    assert list(await sql.executions.facts(0, 100)) == sql.published


async def test_after_a_commit_that_failed_the_next_transaction_begins_clean(
    sql: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite leaves its transaction open when COMMIT itself is what fails."""
    made = await sql.make()

    def refused_at_the_commit(batch: Batch) -> None:
        batch.connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        batch.connection.exec_driver_sql("INSERT INTO trigger_message VALUES ('x', 999, 'h')")

    with pytest.raises(Conflict):
        await asyncio.to_thread(sql.executions.writer.run_blocking, refused_at_the_commit)
    assert "transaction within a transaction" not in caplog.text
    await sql.complete(made, "a")
    assert sql.query("SELECT * FROM trigger_message") == []


# -- another writer --------------------------------------------------------------


async def test_a_row_that_another_writer_changed_is_read_anew_and_changed_again(
    sql: SqlStore,
) -> None:
    made = await sql.make()
    sql.query(
        "UPDATE pipeline_execution SET version = version + 1, execution_data = '{\"theirs\": 1}'"
    )
    runs = []

    def change(execution: Execution) -> None:
        runs.append(dict(execution.data))
        execution.complete("a", 1, {"ours": 1}, at=EPOCH)

    updated = await sql.executions.update(made, change)
    assert runs == [{}, {"theirs": 1}]
    assert updated.data == {"theirs": 1, "ours": 1}
    assert sql.dispatcher.keys == ["a", "b"]
    assert sql.dispatcher.held == {(made, "a"), (made, "b")}


async def test_a_change_that_is_always_too_late_is_stale(
    sql: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await sql.make()
    tries = []
    execute = Statement.execute

    def overtaken(statement: Statement, connection: Connection, rows: Sequence[Any]) -> int:
        if statement.sql.startswith("UPDATE pipeline_execution"):
            tries.append(1)
            connection.exec_driver_sql("UPDATE pipeline_execution SET version = version + 1")
        return execute(statement, connection, rows)

    with monkeypatch.context() as late:
        late.setattr(Statement, "execute", overtaken)
        with pytest.raises(StaleExecution):
            await sql.complete(made, "a")
    assert len(tries) == STALE_TRIES
    assert (await sql.complete(made, "a")).step("b").attempt == 1


async def test_two_stores_on_one_file_lose_nothing(sql: SqlStore) -> None:
    """The lock forbids it; the versions and the keys would still keep it right."""
    other = SqlStore(sql.path)
    other.ids.new = sql.ids.new  # type: ignore[method-assign]
    await other.open()
    try:
        made = await sql.make(PAIR)
        assert (await other.complete(made, "x", theirs=1)).data == {"theirs": 1}
        assert (await sql.complete(made, "y", ours=1)).data == {"theirs": 1, "ours": 1}
        first, second = await sql.make(), await other.make()
        assert first != second
        await sql.trigger(message_id="m")
        assert (await other.trigger(message_id="m")).duplicate == "message"
        facts = [fact.id for fact in await other.executions.facts(0, 1000)]
        assert facts == sorted(facts)
        assert set(facts) == {f.id for f in sql.published} | {f.id for f in other.published}
    finally:
        await other.close()


# -- the dispatcher --------------------------------------------------------------


class Refusing(ManualDispatcher):
    """Raises instead of answering, so many times."""

    refusals = 0

    def admit(self, execution: Execution, ready: Sequence[Step]) -> Collection[str]:
        if self.refusals:
            self.refusals -= 1
            raise LookupError("no answer")
        return super().admit(execution, ready)


async def test_a_trigger_that_raises_on_its_way_leaves_no_trace_in_the_commit(
    sql: SqlStore,
) -> None:
    sql.dispatcher = Refusing()
    await sql.reopen()
    sql.dispatcher.refusals = 1
    refused, made = await sql.together(
        sql.trigger(message_id="m", card_key="c"),
        sql.trigger(message_id="m", card_key="c", contents="other"),
    )
    assert isinstance(refused, LookupError)
    assert made.duplicate is None
    assert len(await sql.executions.list(Query())) == 1


async def test_a_step_that_another_change_of_the_same_commit_ends_is_withdrawn(
    sql: SqlStore,
) -> None:
    made = await sql.make()
    sql.dispatcher.free(made, "a")
    await sql.together(
        sql.complete(made, "a"),
        sql.executions.update(made, lambda e: e.fail("b", 1, "given up", at=EPOCH)),
    )
    assert sql.dispatcher.keys == ["a"]
    assert sql.dispatcher.withdrawn == [(made, "b")]
    assert sql.dispatcher.held == set()


# -- the file --------------------------------------------------------------------


async def test_everything_survives_a_reopening(sql: SqlStore) -> None:
    definition = PipelineDefinition(
        "wide",
        (
            StepSpec("a", weight=3, pool="io"),
            StepSpec("extra", required=False),
            StepSpec("render", external=True, depends_on=("a",)),
            StepSpec("z", after=("extra",)),
        ),
    )
    made = await sql.make(definition, data={"ü": [1, None]}, message_id="m", card_key="path:/x")
    await sql.complete(made, "a", big=2**70)
    await sql.fail(made, "extra")
    before = await sql.executions.update(made, lambda e: e.note({"z": (1, 0.25)}, at=EPOCH))
    ended = await sql.make()
    await sql.fail(ended, "a")
    facts = list(sql.published)
    await sql.reopen()
    after = await sql.executions.get(made)
    assert same(after, before)
    assert list(await sql.executions.facts(0, 1000)) == facts
    assert list(await sql.executions.unfinished()) == [made]
    assert (await sql.trigger(message_id="m")).duplicate == "message"
    assert (await sql.trigger(card_key="path:/x")).duplicate == "card"
    assert (await sql.executions.get(ended)).status is ExecutionStatus.FAILED
    recovered = await sql.executions.update(made, lambda e: e.recover(at=EPOCH))
    assert recovered.step("render").status is StepStatus.RUNNING
    assert (recovered.step("z").attempt, recovered.step("z").takeovers) == (2, 1)
    assert sql.published[-1].id > facts[-1].id


async def test_ids_are_never_given_twice_even_if_the_rows_are_gone(sql: SqlStore) -> None:
    made = await sql.make()
    last = sql.published[-1].id
    await sql.close()
    for table in ("pipeline_event", "pipeline_step", "trigger_message", "pipeline_execution"):
        sql.query(f"DELETE FROM {table}")
    await sql.reopen()
    assert await sql.make() > made
    assert sql.published[-2].id > last


async def test_what_is_answered_is_on_the_disk_already(sql: SqlStore) -> None:
    made = await sql.make()
    await sql.complete(made, "a", files=3)
    assert sql.query("SELECT execution_data, version FROM pipeline_execution") == [
        ('{"files":3}', 2)
    ]
    assert sql.query("SELECT count(*) FROM pipeline_event") == [(4,)]
    assert sql.query("SELECT step_key, status, attempt FROM pipeline_step ORDER BY id") == [
        ("a", "completed", 1),
        ("b", "running", 1),
    ]
    with sql.database.writer.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


async def test_readers_see_the_last_committed_state_while_the_writer_works(
    sql: SqlStore,
) -> None:
    made = await sql.make()
    async with sql.held():
        completing = asyncio.ensure_future(sql.complete(made, "a"))
        assert (await sql.executions.get(made)).step("a").status is StepStatus.RUNNING
        assert len(await sql.executions.facts(0, 100)) == 2
        (listed,) = await sql.executions.list(Query())
        assert listed.step("a").status is StepStatus.RUNNING
    assert (await completing).step("a").status is StepStatus.COMPLETED


async def test_a_draft_that_a_change_kept_for_itself_is_no_way_in_after_a_reload(
    sql: SqlStore,
) -> None:
    made = await sql.make()
    before = await sql.executions.get(made)
    spoil(before)
    await sql.reopen()
    assert "spoilt" not in str(await sql.executions.get(made))


async def test_work_from_threads_waits_for_its_commit_and_sees_its_own_error(
    sql: SqlStore,
) -> None:
    await sql.make()
    names: list[str] = []

    def work(batch: Batch) -> str:
        names.append(threading.current_thread().name)
        return "done"

    def broken(batch: Batch) -> None:
        batch.connection.exec_driver_sql("DELETE FROM pipeline_event")
        raise ExecutionNotFound("mine")

    writer = sql.executions.writer
    assert await asyncio.to_thread(writer.run_blocking, work) == "done"
    assert names == ["rushes-writer"]
    with pytest.raises(ExecutionNotFound):
        await asyncio.to_thread(writer.run_blocking, broken)
    assert len(await sql.executions.facts(0, 10)) == 2, "what it wrote is gone with it"


async def test_nobody_is_left_unanswered_by_a_close(sql: SqlStore) -> None:
    """Threads that go on writing while the store closes are answered or refused, all of them."""
    writer = sql.executions.writer
    answers: list[object] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            try:
                answers.append(writer.run_blocking(lambda batch: 1))
            except Unavailable:
                answers.append(Unavailable)
                return

    threads = [threading.Thread(target=hammer, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    await until(lambda: len(answers) > 50)
    await sql.close()
    await until(lambda: answers.count(Unavailable) == len(threads))
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


class Overtaken:
    """A queue on whose way in a piece is held up until the end has overtaken it, if it can."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.entered, self.ended = threading.Event(), threading.Event()

    def put(self, item: Any) -> None:
        if item is None:
            self.real.put(None)
            self.ended.set()
        else:
            self.entered.set()
            self.ended.wait(0.2)
            self.real.put(item)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


async def test_nothing_comes_to_stand_behind_the_end_of_the_queue(sql: SqlStore) -> None:
    writer = sql.executions.writer
    overtaken = Overtaken(writer._queue)
    writer._queue = overtaken  # type: ignore[assignment]
    answers: list[object] = []
    thread = threading.Thread(
        target=lambda: answers.append(writer.run_blocking(lambda batch: 1)), daemon=True
    )
    thread.start()
    await until(overtaken.entered.is_set)
    await asyncio.to_thread(writer.close)
    await until(lambda: answers == [1])
    thread.join(5)


async def test_while_another_tool_writes_all_that_waits_is_refused_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each alone would wait for the lock once more, and a stop would wait for them all."""
    monkeypatch.setattr("adapters.persistence.database.BUSY_TIMEOUT_S", 0.05)
    store = SqlStore(tmp_path / "locked.db")
    await store.open()
    made = [await store.make() for _ in range(20)]
    other = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answers = await asyncio.gather(
        *(store.complete(each, "a") for each in made), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {Unavailable}
    other.execute("ROLLBACK")
    other.close()
    again = await store.together(*(store.complete(each, "a") for each in made))
    assert all(isinstance(answer, Execution) for answer in again)
    await store.close()


async def test_what_is_unfinished_is_read_together_and_not_once_more_each(sql: SqlStore) -> None:
    made = [await sql.make() for _ in range(3)]
    ended = await sql.make(PAIR)
    await sql.complete(ended, "x")
    await sql.complete(ended, "y")
    before = [await sql.executions.get(each) for each in made]
    await sql.reopen()
    reads: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if statement.startswith("SELECT"):
            reads.append(statement)

    event.listen(sql.database.writer, "before_cursor_execute", note)
    assert await sql.executions.unfinished() == made
    assert len(reads) == 2, "executions, and their steps"
    for execution_id, was in zip(made, before, strict=True):
        assert same(await sql.executions.get(execution_id), was)
        after = await sql.complete(execution_id, "a")
        assert after.step("a").status is StepStatus.COMPLETED
    assert len(reads) == 2


async def test_what_is_read_together_is_what_the_changes_beside_it_leave(sql: SqlStore) -> None:
    made = await sql.make(PAIR)
    await sql.reopen()
    _, answer = await sql.together(sql.executions.unfinished(), sql.complete(made, "x"))
    assert isinstance(answer, Execution)
    assert same(await sql.executions.get(made), answer)
    await sql.complete(made, "y")
    assert (await sql.executions.get(made)).status is ExecutionStatus.COMPLETED
