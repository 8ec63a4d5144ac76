"""How fast the engine is: chains and diamonds of steps that do nothing, on SQLite.

Every fact is synced (WAL, ``synchronous=FULL``) before anybody hears of it. Beside
the engine's figures stands what this disk and SQLAlchemy Core can do at all, in the
same run: one transaction after the other, each with the rows that one transition
of a chain writes.

    python -m benchmarks.engine [--chains 1000] [--diamonds 200] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dependency_injector import providers
from sqlalchemy import insert, update

from adapters.persistence.database import Database
from adapters.persistence.rows import (
    execution_row,
    new_execution_row,
    new_step_row,
    step_row,
)
from adapters.persistence.tables import pipeline_event, pipeline_execution, pipeline_step
from adapters.settings import Settings
from application.authoring import Pipeline, StepContext, step
from application.catalogue import Catalogue
from application.transition import fact_data
from bootstrap import Container, running
from domain.definition import PipelineDefinition
from domain.execution import Execution

IN_FLIGHT = 64
RAW_TRANSACTIONS = 2_000
IDLE_RUNS = 200


def no_op(name: str, *depends_on: str) -> Any:
    @step(name=name, depends_on=depends_on)
    async def handler(context: StepContext) -> None:
        return None

    return handler


CHAIN = Pipeline("chain", [no_op("a"), no_op("b", "a"), no_op("c", "b")])
MIDDLE = [f"m{number}" for number in range(8)]
DIAMOND = Pipeline(
    "diamond",
    [no_op("first"), *(no_op(name, "first") for name in MIDDLE), no_op("last", *MIDDLE)],
)


async def throughput(container: Container, pipeline_type: str, count: int) -> float:
    """Executions a second, ``IN_FLIGHT`` at a time, from the first trigger to the last end."""
    feed, trigger = container.feed(), container.trigger()
    slots = asyncio.Semaphore(IN_FLIGHT)
    ended = asyncio.Event()

    async def count_ends(since: int) -> None:
        left = count
        async for entry in feed.follow(since):
            if entry.message.type == "pipeline:completed":
                slots.release()
                left -= 1
                if not left:
                    ended.set()
                    return

    counting = asyncio.create_task(count_ends(feed.last_id))
    began = time.perf_counter()

    async def one() -> None:
        await trigger(pipeline_type, {})

    starting = set()
    for _ in range(count):
        await slots.acquire()
        task = asyncio.create_task(one())
        starting.add(task)
        task.add_done_callback(starting.discard)
    await ended.wait()
    seconds = time.perf_counter() - began
    await counting
    return count / seconds


async def latency(container: Container) -> tuple[list[float], list[float]]:
    """On an idle engine: seconds from the trigger to its first step's start, and to its end."""
    feed, trigger = container.feed(), container.trigger()
    to_start, to_end = [], []
    for _ in range(IDLE_RUNS):
        since = feed.last_id
        began = time.perf_counter()
        triggering = asyncio.create_task(trigger("chain", {}))
        started = False
        async for entry in feed.follow(since):
            if entry.message.type == "pipeline:step_started" and not started:
                started = True
                to_start.append(time.perf_counter() - began)
            if entry.message.type == "pipeline:completed":
                to_end.append(time.perf_counter() - began)
                break
        await triggering
    return to_start, to_end


def raw_commits(folder: Path, definition: PipelineDefinition, grouped: int) -> float:
    """Transitions a second with Core alone: ``grouped`` of them in each transaction.

    A transition here is what an engine writes when a step completes and the next
    one starts: an execution, two steps and two facts.
    """
    database = Database(f"sqlite:///{folder}/raw-{grouped}.db")
    database.open()
    now = datetime.now(UTC)
    execution = Execution.trigger(definition, uuid="u", data={}, at=now)
    execution.id = 1
    first, second, _ = (spec.name for spec in definition.steps)
    execution.start(first, at=now)
    with database.writer.begin() as connection:
        connection.execute(insert(pipeline_execution), [new_execution_row(execution)])
        connection.execute(
            insert(pipeline_step),
            [new_step_row(1, each) for each in execution.steps.values()],
        )
    execution.recorded.clear()
    execution.complete(first, 1, {}, at=now)
    execution.start(second, at=now)
    facts = [
        {
            "execution_id": 1,
            "type": fact.type,
            "step_key": fact.subject,
            "data": fact_data(execution, fact),
            "occurred_at": now,
        }
        for fact in execution.recorded
    ]
    change_execution = update(pipeline_execution).where(pipeline_execution.c.id == 1)
    changed = execution_row(execution)
    change_steps = [
        (
            update(pipeline_step).where(
                pipeline_step.c.execution_id == 1, pipeline_step.c.step_key == key
            ),
            step_row(execution.steps[key]),
        )
        for key in (first, second)
    ]
    transactions = RAW_TRANSACTIONS // grouped
    began = time.perf_counter()
    with database.writer.connect() as connection:
        for _ in range(transactions):
            with connection.begin():
                for _ in range(grouped):
                    connection.execute(change_execution, changed)
                    for statement, row in change_steps:
                        connection.execute(statement, row)
                connection.execute(insert(pipeline_event), facts * grouped)
    seconds = time.perf_counter() - began
    database.close()
    return transactions * grouped / seconds


@contextmanager
def place(folder: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rushes-bench-", dir=folder) as made:
        yield Path(made)


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[int(100 * share) - 1]


async def measure(folder: Path, chains: int, diamonds: int) -> None:
    settings = Settings.load(
        {
            "database_url": f"sqlite:///{folder}/engine.db",
            "library": str(folder),
            "pools": "default=64",
        },
        {},
    )
    container = Container(settings=settings)
    container.catalogue.override(
        providers.Object(Catalogue([CHAIN, DIAMOND], pools=settings.pools.keys()))
    )
    raw = raw_commits(folder, CHAIN.definition, grouped=1)
    async with running(container):
        await throughput(container, "chain", 100)  # warm
        to_start, to_end = await latency(container)
        chain = await throughput(container, "chain", chains)
        diamond = await throughput(container, "diamond", diamonds)
    commit_ms = 1000 / raw
    print(f"machine               {os.cpu_count()} cores; database in {folder.parent}")
    print(f"raw commits           {raw:9,.0f} /s   one transition a transaction, Core alone")
    print(f"chain of 3            {chain:9,.0f} /s   {3 * chain:9,.0f} steps/s")
    print(f"diamond 1-8-1         {diamond:9,.0f} /s   {10 * diamond:9,.0f} steps/s")
    # A chain is four transitions (a trigger and three completions), a diamond eleven.
    print(f"transitions           {4 * chain:9,.0f} /s   chain: {4 * chain / raw:.2f} of raw")
    print(
        f"                      {11 * diamond:9,.0f} /s   diamond: {11 * diamond / raw:.2f} of raw"
    )
    for name, values in (("first step started", to_start), ("chain done", to_end)):
        p50, p95 = (1000 * percentile(values, share) for share in (0.5, 0.95))
        print(
            f"{name:<21} p50 {p50:6.2f} ms  p95 {p95:6.2f} ms   "
            f"idle; p50 is {p50 / commit_ms:.1f} raw commits"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chains", type=int, default=1_000)
    parser.add_argument("--diamonds", type=int, default=200)
    parser.add_argument("--folder", help="where the databases are made (the system's default)")
    arguments = parser.parse_args()
    with place(arguments.folder) as folder:
        asyncio.run(measure(folder, arguments.chains, arguments.diamonds))


if __name__ == "__main__":
    main()
