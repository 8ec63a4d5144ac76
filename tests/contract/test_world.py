"""What ``Clock``, ``Ids`` and ``Threads`` promise, of the fakes and of the machine alike."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, timedelta

import pytest

from adapters.system import LoopThreads, SystemClock, Uuid7
from application.ports import Clock, Ids, Threads
from tests.fakes.world import FakeClock, InlineThreads, SequentialIds, settle, until


@pytest.fixture(params=[SystemClock, FakeClock])
def clock(request: pytest.FixtureRequest) -> Clock:
    made: Clock = request.param()
    return made


@pytest.fixture(params=[Uuid7, SequentialIds])
def ids(request: pytest.FixtureRequest) -> Ids:
    made: Ids = request.param()
    return made


@pytest.fixture(params=["loop", "inline"])
async def threads(request: pytest.FixtureRequest) -> AsyncIterator[Threads]:
    if request.param == "inline":
        yield InlineThreads()
        return
    made = LoopThreads()
    made.open()
    yield made
    made.close()


def test_the_time_of_day_is_in_utc_and_says_so(clock: Clock) -> None:
    now = clock.now()
    assert now.tzinfo is not None
    assert now.utcoffset() == timedelta(0)
    assert now.astimezone(UTC) == now


def test_the_monotonic_time_never_goes_back(clock: Clock) -> None:
    times = [clock.monotonic() for _ in range(1000)]
    assert times == sorted(times)


async def test_who_sleeps_for_no_time_lets_others_run(clock: Clock) -> None:
    ran = []
    asyncio.get_running_loop().call_soon(lambda: ran.append(1))
    await clock.sleep(0)
    assert ran == [1]


async def test_virtual_sleepers_wake_in_order_at_their_moment() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    tasks = [asyncio.ensure_future(sleeper(n, s)) for n, s in [("c", 3), ("a", 1), ("b", 2)]]
    await settle()
    assert clock.sleeping == 3
    await clock.advance(2.5)
    assert woken == [("a", 1), ("b", 2)]
    await clock.advance(1)
    assert woken[2:] == [("c", 3)]
    assert clock.monotonic() == 3.5
    await asyncio.gather(*tasks)


def test_ids_are_fresh_uuids_of_version_7_and_later_ones_sort_after(ids: Ids) -> None:
    made = [ids.new() for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert made == sorted(made)
    for each in made[:100]:
        parsed = uuid.UUID(each)
        assert str(parsed) == each
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


async def test_a_blocking_call_is_answered_with_what_it_returns(threads: Threads) -> None:
    assert await threads.run(lambda: 42) == 42


async def test_a_blocking_call_is_answered_with_what_it_raises(threads: Threads) -> None:
    def broken() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await threads.run(broken)


async def test_a_callback_reaches_the_loop(threads: Threads) -> None:
    called: list[threading.Thread] = []
    await threads.run(lambda: threads.on_loop(lambda: called.append(threading.current_thread())))
    await until(lambda: called)
    assert called == [threading.main_thread()]


async def test_blocking_calls_do_not_hold_up_the_loop() -> None:
    threads = LoopThreads()
    threads.open()
    go_on = threading.Event()
    waiting = asyncio.ensure_future(threads.run(lambda: go_on.wait(10)))
    await settle()
    assert not waiting.done()
    go_on.set()
    assert await waiting
    threads.close()
    threads.on_loop(lambda: None)


async def test_who_is_on_the_loop_may_not_block_it_for_a_result(threads: Threads) -> None:
    async def never() -> None:
        raise AssertionError("nobody waits for this")

    with pytest.raises(RuntimeError, match=r"async variant|await the other"):
        threads.await_result(never)


async def test_a_thread_may_wait_for_what_the_loop_does() -> None:
    threads = LoopThreads()
    threads.open()

    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    assert await threads.run(lambda: threads.await_result(answer)) == 42
    threads.close()


def test_a_callback_to_a_loop_that_is_gone_is_dropped() -> None:
    threads = LoopThreads()

    async def use() -> None:
        threads.open()

    asyncio.run(use())
    threads.on_loop(lambda: None)
    threads.close()
