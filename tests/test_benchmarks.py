"""The benchmarks run, in small, and what they measure is what they say; nothing is timed."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from adapters.persistence.database import Database
from benchmarks import scale
from benchmarks.engine import CHAIN, container_on, run_through
from bootstrap import running

COUNT = 5


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    database = tmp_path / "history.db"
    await scale.fill(database, COUNT)
    return database


async def test_a_copied_history_is_one_that_the_engine_could_have_left(filled: Path) -> None:
    container = container_on(filled, [CHAIN])
    async with running(container):
        executions = container.executions()
        stored = [await executions.get(number) for number in range(1, COUNT + 1)]
        for number, execution in enumerate(stored):
            assert (await executions.get(execution.uuid)).id == number + 1
            again = await container.trigger()("chain", {}, message_id=f"message-{number}")
            assert (again.duplicate, again.execution.uuid) == ("message", execution.uuid)
            assert list(execution.steps) == ["a", "b", "c"]
            facts = await executions.facts(0, 100, number + 1)
            assert facts[0].type == "pipeline:started"
            assert facts[-1].type == "pipeline:completed"
            assert {fact.data["execution_id"] for fact in facts} == {execution.uuid}
        assert len({execution.uuid for execution in stored}) == COUNT
        assert await executions.unfinished() == []


async def test_the_engine_goes_on_after_a_copied_history(filled: Path) -> None:
    container = container_on(filled, [CHAIN])
    async with running(container):
        _, each = await run_through(container, "chain", 3, in_flight=2)
        assert len(each) == 3
        assert (await container.executions().get(COUNT + 3)).status == "completed"
    connection = sqlite3.connect(filled)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_every_read_finds_something_to_measure(filled: Path) -> None:
    measured = await scale.on_history(filled, COUNT, chains=2)
    assert set(measured) == {name for _, name in scale.HISTORY_ROWS}


def test_what_a_killed_process_held_is_done_by_its_successor(tmp_path: Path) -> None:
    database = tmp_path / "restart.db"
    scale._killed("hold", database, COUNT)
    held = Database(f"sqlite:///{database}")
    held.open()
    with held.reader.begin() as connection:
        left = "SELECT step_key, status, count(*) FROM pipeline_step GROUP BY 1, 2"
        assert {tuple(row) for row in connection.exec_driver_sql(left)} == {
            ("a", "completed", COUNT),
            ("b", "running", COUNT),
            ("c", "pending", COUNT),
        }
    held.close()
    measured = asyncio.run(scale.start_again(database, COUNT))
    assert set(measured) == {"ready", "first", "done"}
