"""The benchmarks run, in small, and what they measure is what they say; nothing is timed."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from adapters.persistence.database import Database
from benchmarks import scale, surfaces
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


def test_who_asks_the_surfaces_counts_whole_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surfaces, "SECONDS", 0.05)
    monkeypatch.setattr(surfaces, "WARM_S", 0.0)
    monkeypatch.setattr(surfaces, "CONNECTIONS", 2)
    monkeypatch.setattr(surfaces, "ASKED_PER_S", 200)
    with surfaces.a_process("bare") as server:
        at = server.read()
        server.ask(answer=[7] * 1_000)
        by_http = surfaces.ask_http(at["http"], "/api/pipeline/x")
        assert by_http["answers"] > 0
        assert by_http["size"] > len('{"status":"ok","reference":"x"}')
        with pytest.raises(RuntimeError, match="no answer"):
            surfaces.ask_http(at["http"], "/elsewhere")
        took = surfaces.ask_http_at_times(at["http"], "/api/pipeline/x", 0.1)["took"]
        assert len(took) == 20
        by_grpc = surfaces.ask_grpc(at["grpc"], "/bare.Bare/Get", "0a01")
        assert by_grpc["size"] == 1_000 + surfaces.GRPC_PREFIX_BYTES
        with pytest.raises(RuntimeError, match="sizes"):
            surfaces.ask_grpc(at["grpc"], "/bare.Bare/Elsewhere", "0a01")
        with surfaces.a_process("frontends", at["http"], COUNT) as frontends:
            assert frontends.read() == {"connected": COUNT}
            began = server.ask(tell=[10, 100])["began"]
            found = frontends.read()
        assert found["ended"] > began
        assert found["size"] == COUNT * 10 * (100 + 2)  # a frame's head has two bytes


async def test_a_large_execution_is_done_to_its_end(tmp_path: Path) -> None:
    measured = await scale.large(tmp_path / "large.db", COUNT, 2, 10)
    assert set(measured) == {"seconds", "step", "step_cpu"}
    connection = sqlite3.connect(tmp_path / "large.db")
    done = "SELECT count(*) FROM pipeline_step WHERE step_name = 'work' AND status = 'completed'"
    assert connection.execute(done).fetchone() == (COUNT,)
    connection.close()
