"""Executions that older versions have stored are resumed and finished by this one."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.persistence.database import SCHEMA
from adapters.persistence.tables import metadata
from adapters.testkit.world import VirtualClock
from application.catalogue import Catalogue
from application.views import ExecutionView
from bootstrap import Container, running
from tests.fakes.world import until
from tests.golden.make import container_on
from tests.golden.pipelines import LEFT, PIPELINES, called

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "database.sql").exists())
ENDED = ("completed", "failed", "cancelled")


class Golden:
    """The engine on a database that an older version has left behind."""

    def __init__(self, container: Container, clock: VirtualClock, stored: dict[str, Any]) -> None:
        self.container = container
        self.clock = clock
        self.stored = stored

    async def named(self, name: str) -> ExecutionView:
        reference = self.stored[name]["uuid"] if name in self.stored else name
        return await self.container.status().get(reference)

    async def ended(self, name: str) -> ExecutionView:
        async with asyncio.timeout(20):
            while True:
                view = await self.named(name)
                if view.status in ENDED and not any(s.status == "running" for s in view.steps):
                    return view
                await asyncio.sleep(0.005)

    async def do(self, name: str, action: Any) -> None:
        uuid = (await self.named(name)).uuid
        if action == "retry":
            await self.container.retry()(uuid)
        elif action == "resume":
            await self.container.pause().resume(uuid)
        elif action == "advance":
            await self.clock.advance(7200)
        else:
            await self.container.advance().complete_external(
                uuid, action["answer"], 1, action["output"]
            )


@asynccontextmanager
async def golden(version: str, place: Path, *, go_on: bool = True) -> AsyncIterator[Golden]:
    """Opened as at any start: the schema is brought up to date, and what is unfinished goes on.

    ``go_on``: also if the engine was held.
    """
    expected = json.loads((HERE / version / "expected.json").read_text())
    with sqlite3.connect(place / "rushes.db") as connection:
        connection.executescript((HERE / version / "database.sql").read_text())
    connection.close()
    called.clear()
    clock = VirtualClock(datetime.fromisoformat(expected["stored_at"]))
    container = container_on(
        place, clock, Catalogue([*PIPELINES, *LEFT], pools=["default", "narrow"])
    )
    async with running(container):
        if go_on and container.hold().held_at is not None:
            await container.hold().resume()
        yield Golden(container, clock, expected["executions"])


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_was_stored_is_what_it_says(version: str, tmp_path: Path) -> None:
    expected = json.loads((HERE / version / "expected.json").read_text())["executions"]
    connection = sqlite3.connect(":memory:")
    connection.executescript((HERE / version / "database.sql").read_text())
    statuses: dict[str, str] = dict(
        connection.execute("SELECT uuid, status FROM pipeline_execution").fetchall()
    )
    originals = connection.execute(
        "SELECT uuid FROM pipeline_execution WHERE id IN (SELECT rerun_of FROM pipeline_execution)"
    ).fetchall()
    connection.close()
    # Some were run to their end and then again, as executions of their own.
    assert originals
    for (original,) in originals:
        assert statuses.pop(original) == "completed"
    assert statuses == {each["uuid"]: each["status"] for each in expected.values()}
    assert {"running", "failed", "cancelled", "completed"} <= set(statuses.values())


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_execution_is_resumed_and_finished(version: str, tmp_path: Path) -> None:
    async with golden(version, tmp_path) as engine:
        _, last_stored = await engine.container.executions().fact_bounds()
        waiting = [name for name, each in engine.stored.items() if each["then"]]
        for name in engine.stored:
            if name not in waiting:
                await engine.ended(name)
        # Nothing that waits for a person, for a time or for somebody outside went on by itself.
        for name in waiting:
            view = await engine.named(name)
            assert view.status == engine.stored[name]["status"], name
        for name in waiting:
            for action in engine.stored[name]["then"]:
                await engine.do(name, action)
        for name, each in engine.stored.items():
            view = await engine.ended(name)
            assert view.status == each["ends"], (name, view.error_message)
            assert each["error"] in (view.error_message or ""), name
            found = {key: view.execution_data.get(key) for key in each["data"]}
            assert found == each["data"], name
            again = {key for who, key, _ in called if who == each["uuid"]}
            assert not again & set(each["not_again"]), name
        facts = await engine.container.executions().facts(0, 10_000)
    ids = [fact.id for fact in facts]
    assert ids == sorted(set(ids))
    assert last_stored < ids[-1]
    completed = Counter(
        (fact.execution_id, fact.step_key) for fact in facts if fact.type.endswith("step_completed")
    )
    assert set(completed.values()) == {1}


HELD = [version for version in VERSIONS if version > "0001"]
"""The engine's pause is stored since then."""


@pytest.mark.parametrize("version", HELD)
async def test_an_engine_that_was_held_is_held_until_somebody_lets_it_go_on(
    version: str, tmp_path: Path
) -> None:
    async with golden(version, tmp_path, go_on=False) as engine:
        pending = [name for name, each in engine.stored.items() if each["status"] == "pending"]
        assert len(pending) >= 2
        for name in (*pending, "running"):
            view = await engine.named(name)
            assert view.engine_paused_at is not None
            assert view.status == engine.stored[name]["status"]
            assert all(step.status != "running" for step in view.steps)
        assert called == []
        await engine.container.hold().resume()
        for name in (*pending, "running"):
            assert (await engine.ended(name)).status == "completed"


@pytest.mark.parametrize("version", VERSIONS)
async def test_attempts_go_on_where_they_were(version: str, tmp_path: Path) -> None:
    async with golden(version, tmp_path) as engine:
        view = await engine.ended("running")
        attempts = {step.step_key: step.attempt for step in view.steps}
        assert attempts == {"first": 1, "second": 2, "third": 1}
        half_done = engine.stored["family half done"]["uuid"]
        await until(lambda: (half_done, "probe:B", 2) in called)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_has_no_code_any_more_fails_clearly(version: str, tmp_path: Path) -> None:
    async with golden(version, tmp_path) as engine:
        for name in ("its code is gone", "a step's code is gone"):
            view = await engine.ended(name)
            assert view.status == "failed"
            assert engine.stored[name]["error"] in str(view.error_message)
            (failed,) = (step for step in view.steps if step.status == "failed")
            assert failed.step_key == "forgotten"
        # A new one of the type that is there goes its way.
        answer = await engine.container.trigger()("shrunk", {"text": "new"}, message_id="new one")
        assert answer.duplicate is None
        assert (await engine.ended(answer.execution.uuid)).status == "completed"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_message_that_was_known_still_is(version: str, tmp_path: Path) -> None:
    async with golden(version, tmp_path) as engine:
        before = await engine.named("completed")
        stored = {"text": "take"}
        answer = await engine.container.trigger()("chain", stored, message_id="completed")
        assert answer.duplicate == "message"
        assert answer.execution.uuid == before.uuid


def test_the_set_of_this_schema_was_made_with_it() -> None:
    """A schema that changes before its release has its set made again."""
    if SCHEMA not in VERSIONS:
        return  # nothing was stored in another way since
    connection = sqlite3.connect(":memory:")
    connection.executescript((HERE / SCHEMA / "database.sql").read_text())
    for table in metadata.sorted_tables:
        there = {row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")}
        # In any order: a migration adds its columns at the end.
        assert there == {column.name for column in table.columns}, (
            f"python -m tests.golden.make {SCHEMA}"
        )
    connection.close()
