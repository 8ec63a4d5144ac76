"""DBOS Transact at the same work: the chain and the diamond, on SQLite, every commit synced.

Run by ``benchmarks.engine`` in a process of its own; prints one JSON object. The
system database is set to WAL, and both pragmas are read back on DBOS's own
connections. DBOS is measured in several settings (blocking workflows on threads,
coroutines; one connection, its default twenty), and the best figure counts.

    python -m benchmarks.peer FOLDER MODE CONNECTIONS CHAINS DIAMONDS IDLE_RUNS
"""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

IN_FLIGHT = 64
MIDDLE = 8
SETTINGS = (("blocking", 1), ("blocking", 20), ("async", 1))
"""How DBOS is asked to work, and with how many connections to its database."""


def pragmas(connection: Any) -> dict[str, Any]:
    return {
        name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
        for name in ("journal_mode", "synchronous")
    }


def launch(path: Path, connections: int) -> Any:
    from dbos import DBOS

    # WAL belongs to the file; ``synchronous`` to each connection, and FULL (2) is its default.
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.close()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{path}",
            "sys_db_pool_size": connections,
            "log_level": "ERROR",
        }
    )
    return DBOS


def check(path: Path) -> None:
    from dbos._dbos import _get_dbos_instance

    engine = _get_dbos_instance()._sys_db.engine
    assert Path(engine.url.database) == path
    with engine.connect() as connection:
        found = pragmas(connection)
    assert found == {"journal_mode": "wal", "synchronous": 2}, found


def blocking(dbos: Any, path: Path, chains: int, diamonds: int, idle: int) -> dict[str, Any]:
    began = [0.0]

    @dbos.step()
    def no_op() -> None:
        began.append(time.perf_counter())

    @dbos.workflow()
    def chain() -> None:
        for _ in range(3):
            no_op()

    @dbos.workflow()
    def diamond() -> None:  # a blocking workflow does one step after the other
        for _ in range(MIDDLE + 2):
            no_op()

    dbos.launch()
    check(path)

    def throughput(workflow: Callable[[], None], count: int) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            for done in [threads.submit(workflow) for _ in range(count)]:
                done.result()
        return count / (time.perf_counter() - started)

    throughput(chain, IN_FLIGHT)  # warm
    to_start, to_end = [], []
    for _ in range(idle):
        began.clear()
        started = time.perf_counter()
        chain()
        to_end.append(time.perf_counter() - started)
        to_start.append(began[0] - started)
    return {
        "chain": throughput(chain, chains),
        "diamond": throughput(diamond, diamonds),
        "to_start": to_start,
        "to_end": to_end,
    }


def coroutines(dbos: Any, path: Path, chains: int, diamonds: int, idle: int) -> dict[str, Any]:
    began: list[float] = []

    @dbos.step()
    async def no_op() -> None:
        began.append(time.perf_counter())

    @dbos.workflow()
    async def chain() -> None:
        for _ in range(3):
            await no_op()

    @dbos.workflow()
    async def diamond() -> None:
        await no_op()
        await asyncio.gather(*(no_op() for _ in range(MIDDLE)))
        await no_op()

    dbos.launch()
    check(path)

    async def throughput(workflow: Callable[[], Any], count: int) -> float:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one() -> None:
            async with slots:
                await workflow()

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return count / (time.perf_counter() - started)

    async def measure() -> dict[str, Any]:
        await throughput(chain, IN_FLIGHT)  # warm
        to_start, to_end = [], []
        for _ in range(idle):
            began.clear()
            started = time.perf_counter()
            await chain()
            to_end.append(time.perf_counter() - started)
            to_start.append(began[0] - started)
        return {
            "chain": await throughput(chain, chains),
            "diamond": await throughput(diamond, diamonds),
            "to_start": to_start,
            "to_end": to_end,
        }

    return asyncio.run(measure())


def main() -> None:
    folder, mode, *numbers = sys.argv[1:]
    connections, chains, diamonds, idle = map(int, numbers)
    path = Path(folder, f"dbos-{mode}-{connections}.db")
    dbos = launch(path, connections)
    gc.freeze()  # as ``rushes serve`` does
    work = blocking if mode == "blocking" else coroutines
    print(json.dumps(work(dbos, path, chains, diamonds, idle)))
    dbos.destroy()


if __name__ == "__main__":
    main()
