"""What becomes of the engine's speed when there is much of everything.

Five questions, each asked of fresh processes on new files, in turns, ``--rounds``
times; medians are printed:

* **history**: does a step cost more when many executions have finished? What they left
  is copied in the database, row by row, from one that the engine has run. The peer is
  asked the same.
* **many**: 1,000 executions in flight at once instead of 64. Is the rate kept, and is
  anyone starved? The peer again.
* **large**: one execution that spawns 1,000 steps, or 10,000. Does a step cost more in it?
* **memory**: what an execution in flight takes.
* **restart**: a process is killed that has 10,000 unfinished executions. How long
  until its successor serves, runs the first step, and has done everything?

    python -m benchmarks.scale [history] [many] [large] [memory] [restart]
        [--history 100,10000,1000000] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from application.authoring import Pipeline, StepContext, external_step, step
from application.ports import Executions, Query
from application.trigger import Trigger
from benchmarks import peer
from benchmarks.engine import (
    CHAIN,
    DIAMOND,
    IN_FLIGHT,
    OUTSIDE,
    WIDE_POOL,
    container_on,
    in_a_process,
    median,
    percentile,
    place,
    pooled,
    run_through,
)
from bootstrap import Container, running
from domain.execution import ExecutionStatus
from server import spare_collector

HISTORY = (100, 10_000, 1_000_000)
CHAINS = 960
"""Run on top of each history, once a round; the history grows by them."""
PEER_CHAINS = 200
PEER_MANY_CHAINS = 1_200
PEER_CONNECTIONS = (1, 20)
"""Blocking workflows, its quicker kind (``benchmarks.engine`` measures them all)."""
PEER_UNFINISHED = 500
PEER_PATIENCE_S = 300
READS = 40
"""Of each kind."""
ENOUGH_MS = 5_000
"""After so long no more reads of a kind: enough is known about something as slow as that."""
FORGOTTEN = 10
"""At once, of the oldest."""
COPIED_BYTES = 200_000_000
"""A smaller history is begun anew in each round; one that is larger doesn't notice the last."""
FINISHED_BYTES = 6_000
"""What a finished chain takes on the disk, at most: three steps, eight facts, their indexes."""

MANY = 1_000
MANY_CHAINS = 4_000
MANY_DIAMONDS = 2_000
MANY_POOL = f"default={MANY}"

FANS = (1_000, 10_000)
SAID_BYTES = 100
"""What each spawned step puts into the data, in the second kind."""
SPAWNED_AT_ONCE = 64
"""In the third kind: as many as share a commit."""

WAITING = 10_000
LARGE = Pipeline(
    "large",
    [
        external_step("s0"),
        *(external_step(f"s{number}", depends_on=[f"s{number - 1}"]) for number in range(1, 50)),
    ],
)
LARGE_WAITING = 1_000

UNFINISHED = 10_000
HELD = 1_000
"""How many of them have a step at work when the process is killed; the others' wait."""


# -- a history -------------------------------------------------------------------


async def fill(database: Path, count: int) -> dict[str, Any]:
    """One chain that the engine runs, and ``count - 1`` copies of what it stored."""
    container = container_on(database, [CHAIN])
    async with running(container):
        feed = container.feed()
        since = feed.last_id
        answer = await container.trigger()("chain", {}, message_id="message-0")
        async for entry in feed.follow(since):
            if entry.message.type == "pipeline:completed":
                break
    uuid = f"'{answer.execution.uuid}'"
    # The last digits count on, so the copies sort as the engine's own would.
    new_uuid = f"substr({uuid}, 1, 24) || printf('%012x', i)"
    new_message = "'message-' || i"
    with _copying(database) as connection:
        for table, new in {
            "pipeline_execution": {"uuid": new_uuid, "message_id": new_message},
            "trigger_message": {"message_id": new_message, "execution_id": "execution_id + i"},
            "pipeline_step": {"execution_id": "execution_id + i"},
            "pipeline_event": {
                "execution_id": "execution_id + i",
                "data": f"replace(replace(data, {uuid}, {new_uuid}), 'message-0', {new_message})",
            },
        }.items():
            _copy_rows(connection, table, new, count - 1)
        given_out = dict(connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    assert given_out["pipeline_execution"] == count, given_out
    assert given_out["pipeline_step"] == 3 * count, given_out
    return {"size_bytes": _settled(database)}


@contextmanager
def _copying(database: Path) -> Iterator[sqlite3.Connection]:
    """In one transaction without a journal: nobody would miss a history that is half made."""
    connection = sqlite3.connect(database, isolation_level=None)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-200000"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN")
    yield connection
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _copy_rows(
    connection: sqlite3.Connection, table: str, new: dict[str, str], copies: int
) -> None:
    """All rows of a table, ``copies`` times; ``new`` says what differs in copy ``i``."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    if "id" in columns:
        new = {"id": f"id + i * {rows}", **new}
    connection.execute(
        f"""
        WITH RECURSIVE copy(i) AS (
            SELECT 1 WHERE :copies > 0 UNION ALL SELECT i + 1 FROM copy WHERE i < :copies
        )
        INSERT INTO {table} ({", ".join(columns)})
        SELECT {", ".join(new.get(column, f"template.{column}") for column in columns)}
        FROM copy CROSS JOIN (SELECT * FROM {table} LIMIT :rows) AS template
        """,
        {"copies": copies, "rows": rows},
    )


def _settled(database: Path) -> int:
    """Its size. What is still on its way to the disk would be in the way of what is measured."""
    with database.open("rb+") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


async def on_history(database: Path, count: int, chains: int) -> dict[str, Any]:
    """What a start, a step and the reads cost with ``count`` finished executions."""
    container = container_on(database, [CHAIN, DIAMOND], pools=WIDE_POOL)
    spare_collector()  # as ``rushes serve`` does
    began = time.perf_counter()
    async with running(container):
        started = time.perf_counter() - began
        await run_through(container, "chain", IN_FLIGHT, IN_FLIGHT)  # warm
        busy = time.process_time()
        seconds, _ = await run_through(container, "chain", chains, IN_FLIGHT)
        busy = time.process_time() - busy
        measured = await _reads(container, count)
    return {
        "start": 1000 * started,
        "step": 1e6 * seconds / (3 * chains),
        "step_cpu": 1e6 * busy / (3 * chains),
        **measured,
    }


async def _reads(container: Container, count: int) -> dict[str, float]:
    """Milliseconds of each, medians; of executions spread over the younger half of the history."""
    executions: Executions = container.executions()
    trigger: Trigger = container.trigger()
    feed = container.feed()
    (newest,) = await executions.list(Query(before=count + 1, limit=1))
    uuid = newest.uuid[:24]

    completed, failed = ExecutionStatus.COMPLETED, ExecutionStatus.FAILED
    reads: dict[str, Callable[[int], Awaitable[object]]] = {
        "get": lambda i: executions.get(f"{uuid}{i:012x}"),
        "newest": lambda i: executions.list(Query()),
        "completed": lambda i: executions.list(Query(status=completed)),
        "failed": lambda i: executions.list(Query(status=failed)),
        "page": lambda i: executions.list(Query(status=completed, before=i + 2)),
        "type": lambda i: executions.list(Query(pipeline_type=DIAMOND.type)),
        "both": lambda i: executions.list(Query(pipeline_type=DIAMOND.type, status=completed)),
        "message": lambda i: executions.list(Query(message_id=f"message-{i}")),
        "facts": lambda i: executions.facts(feed.last_id - 100, 100),
        "facts_of": lambda i: executions.facts(0, 100, i + 1),
        "facts_of_last": lambda i: executions.facts(feed.last_id - 100, 100, i + 1),
        "check": lambda i: feed.check(feed.last_id),
        "unfinished": lambda i: executions.unfinished(),
        "known": lambda i: trigger("chain", {}, message_id=f"message-{i}"),
        "forget": lambda i: executions.forget(datetime.now(UTC), FORGOTTEN),
    }
    found = {}
    for name, read in reads.items():
        times = []
        for number in range(READS):
            began = time.perf_counter()
            await read(count // 2 + number * (count // 2) // READS)
            times.append(1000 * (time.perf_counter() - began))
            if sum(times) > ENOUGH_MS:
                break
        found[name] = statistics.median(times)
    return found


HISTORY_ROWS = (
    ("step, 64 in flight, µs", "step"),
    ("step, processor, µs", "step_cpu"),
    ("start until ready, ms", "start"),
    ("one finished execution, ms", "get"),
    ("list, newest, ms", "newest"),
    ("list, completed, ms", "completed"),
    ("list, failed (none), ms", "failed"),
    ("list, a page of old ones, ms", "page"),
    ("list, type without any, ms", "type"),
    ("the same and completed, ms", "both"),
    ("list, by message, ms", "message"),
    ("the last 100 facts, ms", "facts"),
    ("facts of an old one, ms", "facts_of"),
    ("its newest facts (none), ms", "facts_of_last"),
    ("a follower comes, ms", "check"),
    ("what is unfinished, ms", "unfinished"),
    ("a known message, ms", "known"),
    (f"{FORGOTTEN} are forgotten, ms", "forget"),
)


def history(folder: Path, rounds: int, counts: Sequence[int]) -> None:
    needed = FINISHED_BYTES * max(counts)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, and this history wants {needed / 1e9:.1f}: "
            "choose another --folder, or a shorter --history"
        )
    filled = {}
    for count in counts:
        database = folder / f"history-{count}.db"
        began = time.perf_counter()
        size_bytes = part("fill", database, count)["size_bytes"]
        filled[count] = database
        print(
            f"{count:>12,} finished  {size_bytes / 1e6:9,.1f} MB, "
            f"made in {time.perf_counter() - began:.0f} s"
        )
    measured: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for number in range(rounds):
        # Forth and back, so that a machine that grows slower does so for all.
        for count in counts if number % 2 == 0 else reversed(counts):
            with _begun(filled[count]) as database:
                measured[count].append(part("on_history", database, count, CHAINS))
    _show_history("", HISTORY_ROWS, measured)
    for database in filled.values():
        database.unlink()
    if not peer_version():
        return
    for count in counts:
        filled[count] = folder / f"dbos-{count}.db"
        part("fill_peer", filled[count], count)
    asked: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            with _begun(filled[count]) as database:
                asked[count].append(part("peer_on_history", database, PEER_CHAINS))
    _show_history("DBOS: ", HISTORY_ROWS[:3], asked)
    for database in filled.values():
        database.unlink()


@contextmanager
def _begun(database: Path) -> Iterator[Path]:
    """The database, or where that is cheap a copy of it, so that each round begins alike."""
    if database.stat().st_size > COPIED_BYTES:
        yield database
        return
    with place(str(database.parent)) as folder:
        copied = Path(shutil.copy(database, folder))
        _settled(copied)
        yield copied


def _show_history(
    who: str, rows: Sequence[tuple[str, str]], measured: dict[int, list[dict[str, Any]]]
) -> None:
    counts = list(measured)
    print(f"{who + 'finished executions':<29}" + "".join(f"{count:>12,}" for count in counts))
    for title, name in rows:
        values = [median(measured[count], name) for count in counts]
        ratios = "  ".join(f"x {value / values[0]:.2f}" for value in values[1:])
        print(f"{who + title:<29}" + "".join(f"{v:12,.2f}" for v in values) + f"   {ratios}")


# -- many at once ----------------------------------------------------------------


async def many(folder: Path, chains: int, diamonds: int) -> dict[str, Any]:
    """64 and then 1,000 in flight; the last with the pool that is there by default."""
    measured: dict[str, Any] = {}
    spare_collector()
    for name, in_flight, flags in (
        ("few", IN_FLIGHT, {"pools": MANY_POOL}),
        ("many", MANY, {"pools": MANY_POOL}),
        ("narrow", MANY, {}),
    ):
        container = container_on(folder / f"{name}.db", [CHAIN, DIAMOND], **flags)
        async with running(container):
            await run_through(container, "chain", 100, IN_FLIGHT)  # warm
            for kind, count in (("chain", chains), ("diamond", diamonds)):
                seconds, each = await run_through(container, kind, count, in_flight)
                measured[f"{name}_{kind}"] = count / seconds
                measured[f"{name}_{kind}_each"] = each
    return measured


def many_at_once(folder: Path, rounds: int) -> None:
    ours: list[dict[str, Any]] = []
    theirs: dict[int, list[dict[str, Any]]] = {
        connections: [] for connections in PEER_CONNECTIONS if peer_version()
    }
    for number in range(rounds):
        here = folder / f"many-{number}"
        here.mkdir()
        ours.append(part("many", here, MANY_CHAINS, MANY_DIAMONDS))
        for connections, measured in theirs.items():
            measured.append(part("peer_many", here, connections, PEER_MANY_CHAINS))
    for kind in ("chain", "diamond"):
        for name, title in (
            ("few", f"{IN_FLIGHT} in flight"),
            ("many", f"{MANY:,} in flight"),
            ("narrow", f"{MANY:,}, 32 slots"),
        ):
            _show_rate(
                kind,
                title,
                median(ours, f"{name}_{kind}"),
                median(ours, f"few_{kind}"),
                pooled(ours, f"{name}_{kind}_each"),
            )
    for connections, measured in theirs.items():
        for name, title in (("few", f"{IN_FLIGHT} in flight"), ("many", f"{MANY:,} in flight")):
            _show_rate(
                "chain",
                f"{title}, DBOS with {connections} conn.",
                median(measured, name),
                median(measured, "few"),
                pooled(measured, f"{name}_each"),
            )


def _show_rate(kind: str, title: str, rate: float, few: float, each: list[float]) -> None:
    p50, p95 = (1000 * percentile(each, share) for share in (0.5, 0.95))
    print(
        f"{kind + ', ' + title:<46} {rate:7,.0f} /s  ({rate / few:.2f})   p50 {p50:7,.0f} ms   "
        f"p95 {p95:7,.0f} ms   longest {1000 * max(each):7,.0f} ms"
    )


# -- large executions ------------------------------------------------------------


def fan(count: int, at_once: int, said_bytes: int) -> Pipeline:
    """A step that spawns ``count`` others, and one that waits for them all."""

    @step(spawns=["work"])
    async def scan(context: StepContext) -> None:
        for first in range(0, count, at_once):
            numbers = range(first, min(count, first + at_once))
            await asyncio.gather(
                *(context.aspawn("work", f"{n:05d}", {"number": n}) for n in numbers)
            )

    @step(dynamic=True)
    async def work(context: StepContext) -> dict[str, str] | None:
        return {"said": said_bytes * "x"} if said_bytes else None

    @step(depends_on=["work:*"])
    async def last(context: StepContext) -> None:
        return None

    return Pipeline("fan", [scan, work, last])


async def large(database: Path, count: int, at_once: int, said_bytes: int) -> dict[str, Any]:
    """Microseconds a step, from the trigger to the end, with the slots that there are."""
    container = container_on(database, [CHAIN, fan(count, at_once, said_bytes)])
    spare_collector()
    async with running(container):
        await run_through(container, "chain", IN_FLIGHT, IN_FLIGHT)  # warm
        busy = time.process_time()
        seconds, _ = await run_through(container, "fan", 1, 1)
        busy = time.process_time() - busy
    return {"seconds": seconds, "step": 1e6 * seconds / count, "step_cpu": 1e6 * busy / count}


def large_executions(folder: Path, rounds: int) -> None:
    for title, at_once, said_bytes in (
        ("one after the other", 1, 0),
        (f"with {SAID_BYTES} bytes of output", 1, SAID_BYTES),
        (f"spawned {SPAWNED_AT_ONCE} at a time", SPAWNED_AT_ONCE, 0),
    ):
        measured: dict[int, list[dict[str, Any]]] = {count: [] for count in FANS}
        for number in range(rounds):
            for count in FANS if number % 2 == 0 else reversed(FANS):
                database = folder / f"large-{at_once}-{said_bytes}-{count}-{number}.db"
                measured[count].append(part("large", database, count, at_once, said_bytes))
                database.unlink()
        for count, rows in measured.items():
            print(
                f"{count:>7,} steps, {title:<27} {median(rows, 'seconds'):6.2f} s   a step "
                f"{median(rows, 'step'):6,.0f} µs   processor {median(rows, 'step_cpu'):5,.0f} µs"
            )


# -- memory ----------------------------------------------------------------------


async def memory(folder: Path, pipeline_type: str, count: int) -> dict[str, Any]:
    """Bytes that the process grows by for each execution that waits for a step outside."""
    container = container_on(folder / f"{pipeline_type}.db", [CHAIN, OUTSIDE, LARGE])
    trigger = container.trigger()
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with slots:
            await trigger(pipeline_type, {})

    async with running(container):
        # Whatever grows only once has grown: the feed's tail, caches, the heap itself.
        await run_through(container, "chain", 1_000, IN_FLIGHT)
        await asyncio.gather(*(one() for _ in range(count // 10)))
        gc.collect()
        before = resident_bytes()
        await asyncio.gather(*(one() for _ in range(count)))
        gc.collect()
        return {"bytes": (resident_bytes() - before) / count, "process": before}


def resident_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        raise SystemExit("how much memory is in use is read from /proc, as Linux has it") from None
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, status
    return 1024 * int(found[1])


def memory_in_flight(folder: Path, rounds: int) -> None:
    for title, kind, count in (
        ("3 steps", OUTSIDE.type, WAITING),
        ("50 steps", LARGE.type, LARGE_WAITING),
    ):
        measured = []
        for number in range(rounds):
            here = folder / f"memory-{number}"
            here.mkdir(exist_ok=True)
            measured.append(part("memory", here, kind, count))
        print(
            f"{count:>7,} waiting, {title:<9} {median(measured, 'bytes') / 1e3:8,.1f} kB each   "
            f"beside {median(measured, 'process') / 1e6:.0f} MB of the process"
        )


# -- starting again --------------------------------------------------------------


def interrupted(middle: Callable[[], Awaitable[object]]) -> Pipeline:
    """A chain whose second step has a pool of its own, so that it can be held up there."""

    @step()
    async def a(context: StepContext) -> None:
        return None

    @step(depends_on=["a"], pool="middle")
    async def b(context: StepContext) -> None:
        await middle()

    @step(depends_on=["b"])
    async def c(context: StepContext) -> None:
        return None

    return Pipeline("interrupted", [a, b, c])


async def hold(database: Path, count: int) -> None:
    """Have ``count`` executions in their middle, say so, and wait to be killed."""
    at_work = min(count, HELD)
    pipeline = interrupted(asyncio.Event().wait)
    container = container_on(database, [pipeline], pools=f"middle={at_work}")
    trigger, feed = container.trigger(), container.feed()
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with slots:
            await trigger(pipeline.type, {})

    async with running(container):
        since = feed.last_id
        triggering = asyncio.gather(*(one() for _ in range(count)))
        left = {("pipeline:step_completed", "a"): count, ("pipeline:step_started", "b"): at_work}
        async for entry in feed.follow(since):
            seen = (entry.message.type, entry.message.data.get("step_key"))
            if seen in left:
                left[seen] -= 1
            if not any(left.values()):
                break
        await triggering
        print("held", flush=True)
        await asyncio.Event().wait()


async def start_again(database: Path, count: int) -> dict[str, Any]:
    """Seconds until the successor of ``hold`` is ready, its first handler runs, all is done."""
    began_at: list[float] = []

    async def middle() -> None:
        if not began_at:
            began_at.append(time.perf_counter())

    connection = sqlite3.connect(database)
    (since,) = connection.execute(
        "SELECT seq FROM sqlite_sequence WHERE name = 'pipeline_event'"
    ).fetchone()
    connection.close()
    container = container_on(database, [interrupted(middle)], pools="middle=32")
    spare_collector()
    left = count
    began = time.perf_counter()
    async with running(container):
        ready = time.perf_counter()
        async for entry in container.feed().follow(since):
            left -= entry.message.type == "pipeline:completed"
            if not left:
                break
        done = time.perf_counter()
    return {"ready": ready - began, "first": began_at[0] - began, "done": done - began}


def starting_again(folder: Path, rounds: int, count: int) -> None:
    measured = []
    theirs = []
    for number in range(rounds):
        database = folder / f"restart-{number}.db"
        _killed("hold", database, count)
        measured.append(part("start_again", database, count))
        if peer_version():
            database = folder / f"dbos-restart-{number}.db"
            _killed("hold_peer", database)
            part("copy_peer", database, PEER_UNFINISHED)
            theirs.append(part("start_peer_again", database, PEER_UNFINISHED))
    for title, rows, unfinished in (
        ("", measured, count),
        ("DBOS, ", theirs, PEER_UNFINISHED),
    ):
        if rows:
            print(
                f"{title + format(unfinished, ',') + ' unfinished':<24} "
                f"ready after {1000 * median(rows, 'ready'):,.0f} ms, first handler after "
                f"{1000 * median(rows, 'first'):,.0f} ms, all done after "
                f"{median(rows, 'done'):.1f} s ({unfinished / median(rows, 'done'):,.0f} /s)"
            )


def _killed(name: str, *arguments: object) -> None:
    """Run a part until it says that it holds, and kill it as ``kill -9`` does."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale", "--part", name, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.kill()
    if said != "held\n":
        raise SystemExit(f"{name} ended before it was killed; it said {said!r}")


# -- the peer --------------------------------------------------------------------


def peer_version() -> str | None:
    try:
        return version("dbos")
    except PackageNotFoundError:
        return None


def _no_matter() -> None:
    return None


def _peer(
    database: Path, connections: int = 1, middle: Callable[[], object] = _no_matter
) -> tuple[Any, Callable[[], None]]:
    """DBOS on this database, launched, and its chain; ``middle`` is what its second step does."""
    dbos = peer.launch(database, connections)

    @dbos.step()
    def no_op() -> None:
        return None

    @dbos.step()
    def in_the_middle() -> None:
        middle()

    @dbos.workflow()
    def chain() -> None:
        no_op()
        in_the_middle()
        no_op()

    dbos.launch()
    peer.check(database)
    return dbos, chain


def run_on_threads(
    chain: Callable[[], None], count: int, in_flight: int
) -> tuple[float, list[float]]:
    """As ``run_through``: seconds in all, and of each."""

    def one(called_at: float) -> float:
        chain()
        return time.perf_counter() - called_at

    slots = threading.Semaphore(in_flight)
    began = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as threads:
        running_ones = []
        for _ in range(count):
            slots.acquire()
            future = threads.submit(one, time.perf_counter())
            future.add_done_callback(lambda done: slots.release())
            running_ones.append(future)
        each = [future.result() for future in running_ones]
    return time.perf_counter() - began, each


def fill_peer(database: Path, count: int) -> dict[str, Any]:
    """A finished chain of the peer's own, and ``count - 1`` copies of what it stored."""
    dbos, chain = _peer(database)
    chain()
    dbos.destroy()
    return copy_peer(database, count)


def copy_peer(database: Path, count: int) -> dict[str, Any]:
    with _copying(database) as connection:
        # The workflow first: its steps refer to it.
        for table in ("workflow_status", "workflow_input", "workflow_output", "operation_outputs"):
            new_uuid = "substr(workflow_uuid, 1, 24) || printf('%012x', i)"
            _copy_rows(connection, table, {"workflow_uuid": new_uuid}, count - 1)
        (workflows,) = connection.execute("SELECT count(*) FROM workflow_status").fetchone()
    assert workflows == count, workflows
    return {"size_bytes": _settled(database)}


def peer_on_history(database: Path, chains: int) -> dict[str, Any]:
    began = time.perf_counter()
    dbos, chain = _peer(database)
    started = time.perf_counter() - began
    run_on_threads(chain, IN_FLIGHT, IN_FLIGHT)  # warm
    busy = time.process_time()
    seconds, _ = run_on_threads(chain, chains, IN_FLIGHT)
    busy = time.process_time() - busy
    dbos.destroy()
    return {
        "start": 1000 * started,
        "step": 1e6 * seconds / (3 * chains),
        "step_cpu": 1e6 * busy / (3 * chains),
    }


def peer_many(folder: Path, connections: int, chains: int) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    dbos, chain = _peer(folder / f"dbos-{connections}.db", connections)
    run_on_threads(chain, IN_FLIGHT, IN_FLIGHT)  # warm
    for name, in_flight in (("few", IN_FLIGHT), ("many", MANY)):
        seconds, each = run_on_threads(chain, chains, in_flight)
        measured |= {name: chains / seconds, f"{name}_each": each}
    dbos.destroy()
    return measured


def hold_peer(database: Path) -> None:
    """Have one workflow in its middle, say so, and wait to be killed."""

    def middle() -> None:
        print("held", flush=True)
        threading.Event().wait()

    _, chain = _peer(database, middle=middle)
    chain()


def start_peer_again(database: Path, count: int) -> dict[str, Any]:
    began_at: list[float] = []

    def middle() -> None:
        if not began_at:
            began_at.append(time.perf_counter())

    began = time.perf_counter()
    dbos, _ = _peer(database, middle=middle)
    ready = time.perf_counter()
    connection = sqlite3.connect(database)
    finished = "SELECT count(*) FROM workflow_status WHERE status = 'SUCCESS'"
    while connection.execute(finished).fetchone() != (count,):
        if time.perf_counter() - ready > PEER_PATIENCE_S:
            raise SystemExit(f"DBOS has not done {count} workflows in {PEER_PATIENCE_S} s")
        time.sleep(0.02)  # what is timed is tens of seconds
    done = time.perf_counter()
    connection.close()
    dbos.destroy()
    return {"ready": ready - began, "first": began_at[0] - began, "done": done - began}


# -- all of it -------------------------------------------------------------------


PARTS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        fill,
        on_history,
        many,
        large,
        memory,
        hold,
        start_again,
        fill_peer,
        copy_peer,
        peer_on_history,
        peer_many,
        hold_peer,
        start_peer_again,
    )
}
"""What runs in a process of its own: the first argument is a path, the others are numbers."""


def part(name: str, *arguments: object) -> dict[str, Any]:
    return in_a_process("benchmarks.scale", "--part", name, *arguments)


def run_part(name: str, path: str, *arguments: str) -> None:
    made = PARTS[name](Path(path), *(int(each) if each.isdigit() else each for each in arguments))
    print(json.dumps(asyncio.run(made) if asyncio.iscoroutine(made) else made))


def counts_of(text: str) -> list[int]:
    """Numbers with commas between them."""
    counts = sorted({int(each) for each in text.split(",")})
    if counts[0] < 2:
        raise argparse.ArgumentTypeError("a history has at least 2 executions")
    return counts


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        run_part(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "what", nargs="*", help="history, many, large, memory, restart (all of them)"
    )
    parser.add_argument("--history", type=counts_of, default=list(HISTORY), metavar="N,N,...")
    parser.add_argument("--unfinished", type=int, default=UNFINISHED)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the databases are made (the system's default)")
    arguments = parser.parse_args()
    with place(arguments.folder) as folder:
        print(f"machine               {os.cpu_count()} cores; databases in {folder.parent}")
        print(f"peer                  DBOS Transact {peer_version() or 'is not installed here'}")
        questions: dict[str, Callable[[], None]] = {
            "history": lambda: history(folder, arguments.rounds, arguments.history),
            "many": lambda: many_at_once(folder, arguments.rounds),
            "large": lambda: large_executions(folder, arguments.rounds),
            "memory": lambda: memory_in_flight(folder, arguments.rounds),
            "restart": lambda: starting_again(folder, arguments.rounds, arguments.unfinished),
        }
        unknown = set(arguments.what) - set(questions)
        if unknown:
            parser.error(f"no such question: {', '.join(sorted(unknown))}")
        for name, ask in questions.items():
            if not arguments.what or name in arguments.what:
                print(f"\n{name}")
                ask()


if __name__ == "__main__":
    main()
