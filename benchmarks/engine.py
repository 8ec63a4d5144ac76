"""How fast the engine is: chains and diamonds of steps that do nothing, on SQLite.

Every fact is synced (WAL, ``synchronous=FULL``) before anybody hears of it. Beside
the engine's figures stand, from the same run, what this disk and SQLAlchemy Core
can do at all (one transaction after the other, each with the rows that one
transition of a chain writes), and DBOS Transact at the same work, where it is
installed (``benchmarks.peer``). The engine and its peer take turns, ``--rounds``
times, each round on new files and in new processes, and medians are printed.

    python -m benchmarks.engine [--rounds 3] [--chains 2000] [--diamonds 500] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dependency_injector import providers
from sqlalchemy import insert, select, update

from adapters.persistence.database import Database
from adapters.persistence.rows import (
    EXECUTION,
    EXECUTION_STATE,
    STEP,
    STEP_STATE,
    execution_values,
    step_values,
)
from adapters.persistence.statements import Statement
from adapters.persistence.tables import pipeline_event, pipeline_execution, pipeline_step
from adapters.settings import Settings
from application.authoring import Pipeline, StepContext, external_step, step
from application.catalogue import Catalogue
from application.ports import Executions
from application.transition import recorded
from benchmarks import peer
from bootstrap import Container, running
from domain.definition import PipelineDefinition
from domain.execution import Execution
from server import spare_collector

IN_FLIGHT = 64
RAW_TRANSACTIONS = 2_000
IDLE_RUNS = 200
WIDE_POOL = "default=512"
"""Nobody waits for a slot, as with the peer: the middles of ``IN_FLIGHT`` diamonds."""
PEER_CHAINS = 300
PEER_DIAMONDS = 100
NOTES = 300
COMPLETED = 15


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
OUTSIDE = Pipeline(
    "outside",
    [
        external_step("a"),
        external_step("b", depends_on=["a"]),
        external_step("c", depends_on=["b"]),
    ],
)
"""Steps that nobody runs: what it takes to complete them is ``Executions.update`` alone."""


async def throughput(container: Container, pipeline_type: str, count: int) -> float:
    """Executions a second, ``IN_FLIGHT`` at a time, from the first trigger to the last end."""
    seconds, _ = await run_through(container, pipeline_type, count, IN_FLIGHT)
    return count / seconds


async def run_through(
    container: Container, pipeline_type: str, count: int, in_flight: int
) -> tuple[float, list[float]]:
    """Seconds from the first trigger to the last end, and those of each execution."""
    feed, trigger = container.feed(), container.trigger()
    slots = asyncio.Semaphore(in_flight)
    ended = asyncio.Event()
    triggered_at: dict[str, float] = {}
    ended_at: dict[str, float] = {}

    async def count_ends(since: int) -> None:
        left = count
        async for entry in feed.follow(since):
            if entry.message.type == "pipeline:completed":
                slots.release()
                ended_at[entry.message.data["execution_id"]] = time.perf_counter()
                left -= 1
                if not left:
                    ended.set()
                    return

    counting = asyncio.create_task(count_ends(feed.last_id))
    began = time.perf_counter()

    async def one() -> None:
        called_at = time.perf_counter()
        answer = await trigger(pipeline_type, {})
        triggered_at[answer.execution.uuid] = called_at

    starting = set()
    for _ in range(count):
        await slots.acquire()
        task = asyncio.create_task(one())
        starting.add(task)
        task.add_done_callback(starting.discard)
    await ended.wait()
    seconds = time.perf_counter() - began
    await counting
    await asyncio.gather(*starting)
    return seconds, [ended_at[uuid] - at for uuid, at in triggered_at.items()]


async def latency(container: Container) -> tuple[list[float], list[float]]:
    """On an idle engine: seconds from the trigger to its first step's start, and to its end."""
    feed, trigger = container.feed(), container.trigger()
    to_start, to_end = [], []
    # One follower who stays, as a frontend does: to begin to follow reads the database.
    following = feed.follow(feed.last_id)
    for _ in range(IDLE_RUNS):
        began = time.perf_counter()
        triggering = asyncio.create_task(trigger("chain", {}))
        started = False
        async for entry in following:
            if entry.message.type == "pipeline:step_started" and not started:
                started = True
                to_start.append(time.perf_counter() - began)
            if entry.message.type == "pipeline:completed":
                to_end.append(time.perf_counter() - began)
                break
        await triggering
    await following.aclose()
    return to_start, to_end


async def updates(container: Container) -> tuple[float, float]:
    """Calls of ``Executions.update`` a second, from ``IN_FLIGHT`` callers at once.

    Of two kinds: noting a running step's progress (two rows), and completing a step
    so that the next one starts (three rows, two facts).
    """
    executions: Executions = container.executions()
    trigger = container.trigger()
    now = datetime.now(UTC)
    made = [(await trigger("outside", {})).execution.id for _ in range(COMPLETED * IN_FLIGHT)]

    async def note(execution_id: int) -> None:
        for number in range(1, NOTES + 1):
            live = {"a": (1, number / (NOTES + 1))}
            await executions.update(execution_id, lambda e, live=live: e.note(live, at=now))

    async def complete(first: int) -> None:
        for execution_id in made[first::IN_FLIGHT]:
            for key in "abc":
                await executions.update(
                    execution_id, lambda e, key=key: e.complete(key, 1, {}, at=now)
                )

    began = time.perf_counter()
    await asyncio.gather(*(note(execution_id) for execution_id in made[:IN_FLIGHT]))
    noted = time.perf_counter()
    await asyncio.gather(*(complete(first) for first in range(IN_FLIGHT)))
    completed = time.perf_counter()
    return IN_FLIGHT * NOTES / (noted - began), 3 * len(made) / (completed - noted)


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
        Statement.insert(pipeline_execution, EXECUTION).execute(
            connection, [execution_values(execution)]
        )
        Statement.insert(pipeline_step, STEP).execute(
            connection, [step_values(1, each) for each in execution.steps.values()]
        )
        # What is written again and again, as Core reads it.
        executions = connection.execute(select(pipeline_execution)).mappings().one()
        steps = connection.execute(select(pipeline_step)).mappings().all()[:2]
    change_execution = update(pipeline_execution).where(pipeline_execution.c.id == 1)
    changed = {name: executions[name] for name in EXECUTION_STATE}
    change_steps = [
        (
            update(pipeline_step).where(
                pipeline_step.c.execution_id == 1, pipeline_step.c.step_key == step["step_key"]
            ),
            {name: step[name] for name in STEP_STATE},
        )
        for step in steps
    ]
    execution.recorded.clear()
    execution.complete(first, 1, {}, at=now)
    execution.start(second, at=now)
    facts = [
        {
            "execution_id": 1,
            "type": fact.type,
            "step_key": fact.subject,
            "data": recorded(execution, fact, 0).data,
            "occurred_at": now,
        }
        for fact in execution.recorded
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


def container_on(database: Path, pipelines: Sequence[Pipeline], **flags: str) -> Container:
    """The product's own container, with these pipelines."""
    settings = Settings.load(
        {"database_url": f"sqlite:///{database}", "library": str(database.parent), **flags}, {}
    )
    container = Container(settings=settings)
    container.catalogue.override(
        providers.Object(Catalogue(pipelines, pools=settings.pools.keys()))
    )
    return container


async def engine_round(folder: Path, chains: int, diamonds: int) -> dict[str, Any]:
    container = container_on(folder / "engine.db", [CHAIN, DIAMOND, OUTSIDE], pools=WIDE_POOL)
    raw = raw_commits(folder, CHAIN.definition, grouped=1)
    spare_collector()  # here and below, as ``rushes serve`` does
    async with running(container):
        gc.collect()
        spare_collector()
        await throughput(container, "chain", 100)  # warm
        to_start, to_end = await latency(container)
        chain = await throughput(container, "chain", chains)
        diamond = await throughput(container, "diamond", diamonds)
        notes, completions = await updates(container)
    return {
        "raw": raw,
        "to_start": to_start,
        "to_end": to_end,
        "chain": chain,
        "diamond": diamond,
        "notes": notes,
        "completions": completions,
    }


def in_a_process(module: str, *arguments: object) -> dict[str, Any]:
    """What a module measures in a fresh interpreter, so that nobody inherits another's heap."""
    ran = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    measured: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return measured


def median(rounds: list[dict[str, Any]], name: str) -> float:
    return statistics.median(each[name] for each in rounds)


def pooled(rounds: list[dict[str, Any]], name: str) -> list[float]:
    return [value for each in rounds for value in each[name]]


def show(engine: list[dict[str, Any]], dbos: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    raw, chain, diamond = (median(engine, name) for name in ("raw", "chain", "diamond"))
    commit_ms = 1000 / raw
    print(f"raw commits           {raw:9,.0f} /s   one transition a transaction, Core alone")
    print(f"chain of 3            {chain:9,.0f} /s   {3 * chain:9,.0f} steps/s")
    print(f"diamond 1-8-1         {diamond:9,.0f} /s   {10 * diamond:9,.0f} steps/s")
    # A chain is four transitions (a trigger and three completions), a diamond eleven.
    print(f"transitions           {4 * chain:9,.0f} /s   chain: {4 * chain / raw:.2f} of raw")
    print(
        f"                      {11 * diamond:9,.0f} /s   diamond: {11 * diamond / raw:.2f} of raw"
    )
    print(f"updates               {median(engine, 'notes'):9,.0f} /s   progress noted")
    print(f"                      {median(engine, 'completions'):9,.0f} /s   step completed")
    for title, name, commits in (
        ("first step started", "to_start", 2),
        ("chain done", "to_end", 6),
    ):
        p50, p95 = (1000 * percentile(pooled(engine, name), share) for share in (0.5, 0.95))
        bound = commits * commit_ms + 0.3
        print(
            f"{title:<21} p50 {p50:6.2f} ms  p95 {p95:6.2f} ms   idle; p50 is "
            f"{p50 / commit_ms:.1f} raw commits ({commits} of them and 0.3 ms: {bound:.2f} ms)"
        )
    if not dbos:
        return
    print()
    for (mode, connections), rounds in dbos.items():
        print(
            f"DBOS, {mode:<8} {connections:>2} conn. {median(rounds, 'chain'):6,.0f} chains/s   "
            f"{median(rounds, 'diamond'):5,.0f} diamonds/s   idle p50: first step "
            f"{1000 * percentile(pooled(rounds, 'to_start'), 0.5):.2f} ms, "
            f"chain {1000 * percentile(pooled(rounds, 'to_end'), 0.5):.2f} ms"
        )
    for name, ours in (("chain", chain), ("diamond", diamond)):
        best = max(median(rounds, name) for rounds in dbos.values())
        print(f"{name:<8} {ours / best:5.1f} times DBOS at its best ({best:,.0f}/s)")


def measure(folder: Path, rounds: int, chains: int, diamonds: int) -> None:
    print(f"machine               {os.cpu_count()} cores; database in {folder.parent}")
    try:
        print(f"peer                  DBOS Transact {version('dbos')}")
        settings = peer.SETTINGS
    except PackageNotFoundError:
        print("peer                  DBOS is not installed here (pip install -e '.[bench]')")
        settings = ()
    engine: list[dict[str, Any]] = []
    dbos: dict[tuple[str, int], list[dict[str, Any]]] = {each: [] for each in settings}
    for number in range(rounds):
        here = folder / str(number)
        here.mkdir()
        engine.append(in_a_process("benchmarks.engine", "--round", here, chains, diamonds))
        for mode, connections in settings:
            dbos[mode, connections].append(
                in_a_process(
                    "benchmarks.peer",
                    here,
                    mode,
                    connections,
                    PEER_CHAINS,
                    PEER_DIAMONDS,
                    IDLE_RUNS // 2,
                )
            )
    show(engine, dbos)


def main() -> None:
    if sys.argv[1:2] == ["--round"]:
        folder, chains, diamonds = sys.argv[2:]
        print(json.dumps(asyncio.run(engine_round(Path(folder), int(chains), int(diamonds)))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chains", type=int, default=2_000)
    parser.add_argument("--diamonds", type=int, default=500)
    parser.add_argument("--folder", help="where the databases are made (the system's default)")
    arguments = parser.parse_args()
    with place(arguments.folder) as folder:
        measure(folder, arguments.rounds, arguments.chains, arguments.diamonds)


if __name__ == "__main__":
    main()
