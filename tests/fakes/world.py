"""The world for tests: time that is moved by hand, ids that count, threads that are none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from adapters.testkit.world import (
    EPOCH,
    AllCards,
    FixedChance,
    SequentialIds,
    VirtualClock,
    settle,
)
from application.ports import Load, Started
from application.step_runner import StepRunner
from domain.execution import Execution
from domain.step import Step

__all__ = [
    "EPOCH",
    "AllCards",
    "FakeClock",
    "FixedChance",
    "InlineDispatcher",
    "InlineThreads",
    "ManualDispatcher",
    "SequentialIds",
    "settle",
    "until",
]

T = TypeVar("T")

FakeClock = VirtualClock


async def until(condition: Callable[[], object], *, within_s: float = 30.0) -> None:
    """Let the loop run until it is so; fails when it isn't within ``within_s`` real seconds."""
    deadline = time.monotonic() + within_s
    turns = 0
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {condition}"
        turns += 1
        # Other threads need the interpreter too, but most waits are over within the loop.
        await asyncio.sleep(0 if turns < 200 else 0.001)


class InlineThreads:
    """No threads: blocking calls run on the loop, after one turn of it."""

    async def run(self, blocking: Callable[[], T], *, long: bool = False) -> T:
        await asyncio.sleep(0)
        return blocking()

    def await_result(self, make: Callable[[], Any]) -> Any:
        raise RuntimeError("inline threads have no loop beside them: use the async variant")

    def on_loop(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)


class ManualDispatcher:
    """Slots that are given by hand, and a record of who was admitted, launched, withdrawn.

    slots: how many steps may hold one at a time.
    """

    def __init__(self, slots: int = 1_000_000) -> None:
        self.slots = slots
        self.held: set[tuple[int, str]] = set()
        self.asked: list[tuple[int, str]] = []
        self.launched: list[Started] = []
        self.withdrawn: list[tuple[int, str]] = []
        self.looks: list[tuple[int, datetime]] = []
        self.cancelled: list[int] = []
        self.holding = False
        self._lock = threading.Lock()

    def admit(self, execution: Execution, ready: Sequence[Step]) -> Collection[str]:
        assert execution.id is not None
        admitted = []
        with self._lock:
            for step in ready:
                self.asked.append((execution.id, step.key))
                external = step.spec.external
                if self.holding or (len(self.held) >= self.slots and not external):
                    continue
                admitted.append(step.key)
                if not external:
                    self.held.add((execution.id, step.key))
        return admitted

    def launch(self, started: Sequence[Started]) -> None:
        self.launched.extend(started)

    def withdraw(self, execution_id: int, started: Iterable[Step]) -> None:
        with self._lock:
            for step in started:
                self.withdrawn.append((execution_id, step.key))
                self.held.discard((execution_id, step.key))

    def look_again(self, execution_id: int, at: datetime) -> None:
        self.looks.append((execution_id, at))

    def cancel(self, execution_id: int) -> None:
        self.cancelled.append(execution_id)

    def hold(self) -> None:
        self.holding = True

    def go_on(self) -> None:
        self.holding = False

    def load(self) -> Load:
        return Load(self.holding, len(self.held), 0, ())

    def free(self, execution_id: int, key: str) -> None:
        """Its handler has ended."""
        with self._lock:
            self.held.remove((execution_id, key))

    @property
    def keys(self) -> list[str]:
        """Of the steps that were launched, in order."""
        return [each.ref.step_key for each in self.launched]


class InlineDispatcher:
    """Everything that is ready runs at once, on the loop."""

    def __init__(self) -> None:
        self._runner: StepRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, runner: StepRunner) -> None:
        self._runner = runner

    def admit(self, execution: Execution, ready: Sequence[Step]) -> Collection[str]:
        return [step.key for step in ready]

    def launch(self, started: Sequence[Started]) -> None:
        for each in started:
            task = asyncio.get_running_loop().create_task(self._run(each))
            self._tasks.add(task)

    def withdraw(self, execution_id: int, started: Iterable[Step]) -> None:
        pass

    def look_again(self, execution_id: int, at: datetime) -> None:
        pass

    def cancel(self, execution_id: int) -> None:
        pass

    def hold(self) -> None:
        raise NotImplementedError("inline steps run at once; hold a real dispatcher")

    def go_on(self) -> None:
        pass

    def load(self) -> Load:
        return Load(False, len(self._tasks), 0, ())

    async def idle(self) -> None:
        """Wait until nothing runs. Raises what a run has raised."""
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            self._tasks -= done
            for task in done:
                task.result()

    async def _run(self, started: Started) -> None:
        assert self._runner is not None
        report = await self._runner.decided(self._runner.begin(started))
        await report()
