"""The test bed: the whole engine in memory, on a clock that jumps.

Everything between a trigger and an end is the real thing: the rules, the step runner,
retries, timeouts, leases, families. Only the world is made up: the store is in memory,
and time stands still while anything is being done. As soon as nothing can go on except
by waiting (a back-off pause, a timeout, a lease), the clock jumps to the moment when it
does. So hours pass in milliseconds, and always in the same order.

A handler of your own that is at work is waited for in real time, since nobody can know
what it will do; a scripted one that hangs is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from adapters.testkit.dispatcher import BedDispatcher
from adapters.testkit.executions import MemoryExecutions
from adapters.testkit.scripts import Script, Turn, script
from adapters.testkit.world import (
    AllCards,
    DaemonThreads,
    FixedChance,
    SequentialIds,
    VirtualClock,
)
from application.advance import Advance
from application.authoring import AuthoredStep, Handler, Pipeline
from application.cancel import Cancel
from application.catalogue import Catalogue
from application.feed import Feed
from application.hold import Hold
from application.pause import Pause
from application.progress import ProgressBoard
from application.recovery import Recovery
from application.rerun import Rerun
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.step_runner import StepRunner
from application.trigger import Trigger
from application.views import ExecutionView, StepView, message_view
from domain.errors import InvalidDefinition
from domain.execution import Execution, ExecutionStatus

QUIET_TURNS = 30
"""Turns of the loop without anything happening, after which only time can bring things on."""

Stand = Script | Turn | Handler
"""What may stand in for a step: a script, one turn of one, or any handler."""


class Stuck(AssertionError):
    """What the test waits for can't happen any more, or takes far too long."""


@dataclass(slots=True)
class Result(ExecutionView):
    """An execution as clients see it, with what was told of it: ``events``, oldest first."""

    events: Sequence[Mapping[str, Any]]

    def step(self, key: str) -> StepView:
        """The step ``probe``, or ``probe:A001`` of a family."""
        for step in self.steps:
            if step.step_key == key:
                return step
        raise KeyError(f"there is no step {key!r}, only {[step.step_key for step in self.steps]}")

    @property
    def statuses(self) -> dict[str, str]:
        """How each step stands, by its key."""
        return {step.step_key: step.status for step in self.steps}

    @property
    def event_types(self) -> list[str]:
        return [event["type"] for event in self.events]


class Testbed:
    """An engine for pipelines under test.

        async with Testbed(pipeline, handlers={"probe": script(fails(), returns({}))}) as bed:
            result = await bed.run({"take": 1})
        assert result.status == "completed"

    handlers: what stands in for steps of these names; the others run as they are.
    pools: how many steps run at once, by name; the others have no bound.
    chance: from 0 to 1, what the jitter of pauses is drawn from.
    patience_s: for how many real seconds nothing may happen while a handler is at work.

    ``execution`` is, wherever it can be given, the uuid or number of an execution; without
    it the one is meant that was started last.
    """

    __test__ = False  # for pytest, which takes every Test... for a test

    def __init__(
        self,
        *pipelines: Pipeline,
        handlers: Mapping[str, Stand] | None = None,
        pools: Mapping[str, int] | None = None,
        chance: float = 0.5,
        patience_s: float = 10.0,
    ) -> None:
        self.clock = VirtualClock()
        self.executions = MemoryExecutions()
        self._patience_s = patience_s
        self._pools = dict(pools or {})
        self._chance = FixedChance(chance)
        self._ids = SequentialIds()
        self._threads = DaemonThreads()
        self._scripts: list[Script] = []
        self._feed = Feed(self.executions, self.clock)
        replaced = _with(pipelines, self._stand_ins(handlers or {}))
        self._catalogue = Catalogue(
            replaced,
            pools={spec.pool for each in replaced for spec in each.definition.steps},
        )
        self._first_type = pipelines[0].type if pipelines else None
        self._last: int | None = None

    async def __aenter__(self) -> Testbed:
        self._threads.open()
        await self._wire()
        await self._feed.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._kill()
        self._feed.close()
        await self.executions.close()

    # -- an execution's way ------------------------------------------------------

    async def run(
        self,
        data: object = None,
        *,
        pipeline_type: str | None = None,
        message_id: str | None = None,
    ) -> Result:
        """Start an execution, and let everything happen until it has ended."""
        await self.start(data, pipeline_type=pipeline_type, message_id=message_id)
        return await self.finish()

    async def start(
        self,
        data: object = None,
        *,
        pipeline_type: str | None = None,
        message_id: str | None = None,
    ) -> str:
        """Start an execution of the first pipeline, or of this type; its uuid.

        Raises what a trigger raises: ``InvalidInput``, ``MessageConflict``.
        """
        named = pipeline_type or self._first_type
        if named is None:
            raise ValueError("the bed has no pipeline")
        trigger = Trigger(
            catalogue=self._catalogue,
            executions=self.executions,
            cards=AllCards(),
            clock=self.clock,
            ids=self._ids,
            threads=self._threads,
            hold=self._hold,
            library="/library",
        )
        answer = await trigger(named, {} if data is None else data, message_id=message_id)
        self._last = answer.execution.id
        return answer.execution.uuid

    async def finish(self, execution: str | int | None = None) -> Result:
        """Let everything happen until it has ended.

        Raises ``Stuck`` if it can't end by itself: it is paused, or waits for somebody outside.
        """
        found = self._find(execution)
        await self._until(found, lambda e: not e.unfinished, "has ended")
        return await self.look(found)

    async def until(
        self, step_key: str, status: str = "running", execution: str | int | None = None
    ) -> Result:
        """Let everything happen until the step has this status.

        Raises ``Stuck`` if the execution ends before it has.
        """
        found = self._find(execution)

        def there(now: Execution) -> bool:
            return step_key in now.steps and now.steps[step_key].status == status

        await self._until(found, there, f"has step {step_key} {status}")
        return await self.look(found)

    async def rest(self) -> None:
        """Let everything happen for which no time has to pass; handlers at work are waited for."""
        last, deadline = self._happened(), time.monotonic() + self._patience_s
        while True:
            await self._quiet()
            working = self._working()
            if not working:
                return
            if self._happened() != last:
                last, deadline = self._happened(), time.monotonic() + self._patience_s
            if time.monotonic() > deadline:
                raise Stuck(
                    f"{', '.join(working)} at work for {self._patience_s:g} real seconds. "
                    "Let a script stand in for it, or move the time yourself with advance()"
                )
            await asyncio.sleep(0.0005)

    async def advance(self, seconds: float) -> None:
        """Let this much time pass, and what happens in it happen; handlers aren't waited for."""
        target = self.clock.monotonic() + seconds
        await self._quiet()
        while (due := self.clock.next_due) is not None and due <= target:
            self.clock.wake_next()
            await self._quiet()
        self.clock.tick(max(0.0, target - self.clock.monotonic()))
        await self._quiet()

    async def look(self, execution: str | int | None = None) -> Result:
        """How it stands, and what was told of it."""
        found = self.executions.committed(self._find(execution))
        assert found.id is not None
        view = self._status.view(found)
        facts = await self.executions.facts(0, 1_000_000, found.id)
        shown = {each.name: getattr(view, each.name) for each in fields(ExecutionView)}
        return Result(**shown, events=[message_view(fact) for fact in facts])

    # -- what people do ----------------------------------------------------------

    async def retry(self, execution: str | int | None = None) -> Result:
        """Run a failed one again from what failed, to its end."""
        found = self._find(execution)
        retry = Retry(executions=self.executions, clock=self.clock, status=self._status)
        await retry(found)
        return await self.finish(found)

    async def rerun(self, from_step: str, execution: str | int | None = None) -> Result:
        """Do a part of one that has ended again, as a new execution, to its end."""
        rerun = Rerun(executions=self.executions, clock=self.clock, ids=self._ids, hold=self._hold)
        self._last = (await rerun(self._find(execution), from_step)).id
        return await self.finish()

    async def cancel(self, execution: str | int | None = None) -> Result:
        found = self._find(execution)
        cancel = Cancel(
            executions=self.executions,
            dispatcher=self._dispatcher,
            clock=self.clock,
            progress=self._board,
            status=self._status,
        )
        await cancel(found)
        await self._quiet()
        return await self.look(found)

    async def pause(self, execution: str | int | None = None) -> Result:
        found = self._find(execution)
        await self._pausing().pause(found)
        return await self.look(found)

    async def resume(self, execution: str | int | None = None) -> Result:
        """Go on after ``pause``; ``finish`` lets it come to its end."""
        found = self._find(execution)
        await self._pausing().resume(found)
        return await self.look(found)

    async def hold(self) -> None:
        """Pause the whole engine: nothing starts until ``go_on``, also after a ``crash``."""
        await self._hold.pause()

    async def go_on(self) -> None:
        await self._hold.resume()

    async def skip(self, step_key: str, execution: str | int | None = None) -> Result:
        """Settle a failed step: it may be missing. ``finish`` lets the rest happen."""
        found = self._find(execution)
        await self._settling().skip(found, step_key)
        return await self.look(found)

    async def settle(
        self, step_key: str, output: Mapping[str, Any], execution: str | int | None = None
    ) -> Result:
        """Settle a failed step: somebody has done it. ``finish`` lets the rest happen."""
        found = self._find(execution)
        await self._settling().complete(found, step_key, output)
        return await self.look(found)

    def _pausing(self) -> Pause:
        return Pause(executions=self.executions, clock=self.clock, status=self._status)

    def _settling(self) -> Settle:
        return Settle(executions=self.executions, clock=self.clock, status=self._status)

    # -- what the world does -----------------------------------------------------

    async def answer(
        self,
        step_key: str,
        output: Mapping[str, Any] | None = None,
        *,
        attempt: int | None = None,
        execution: str | int | None = None,
    ) -> Result:
        """The service outside that an external step waits for has done it."""
        found, attempt = await self._asked(step_key, attempt, execution)
        await self._advance.complete_external(found, step_key, attempt, output or {})
        return await self.look(found)

    async def refuse(
        self,
        step_key: str,
        error: str,
        *,
        permanent: bool = False,
        attempt: int | None = None,
        execution: str | int | None = None,
    ) -> Result:
        """The service outside that an external step waits for can't do it."""
        found, attempt = await self._asked(step_key, attempt, execution)
        await self._advance.fail_external(found, step_key, attempt, error, permanent=permanent)
        return await self.look(found)

    async def crash(self) -> None:
        """The process is killed and started again: what ran is taken over.

        Coroutines end where they wait. A thread can't be killed: a blocking handler is told
        to end and waited for, and whatever it says until then is refused or makes no
        difference, as after a real crash.
        """
        await self._kill()
        await self._wire()
        await Recovery(executions=self.executions, clock=self.clock, hold=self._hold)()

    # -- inside ------------------------------------------------------------------

    def _stand_ins(self, handlers: Mapping[str, Stand]) -> Mapping[str, Handler]:
        found: dict[str, Handler] = {}
        for name, stand in handlers.items():
            if isinstance(stand, Script):
                self._scripts.append(stand)
                found[name] = stand
            elif callable(stand):
                found[name] = stand
            else:
                self._scripts.append(script(stand))
                found[name] = self._scripts[-1]
        for each in self._scripts:
            each.rewind()
        return found

    async def _wire(self) -> None:
        """A process: what is lost in a crash, around the store that stays."""
        self._dispatcher = BedDispatcher(self._pools)
        self._board = ProgressBoard(self._feed, self.clock, self._threads)
        self._hold = Hold(executions=self.executions, dispatcher=self._dispatcher, clock=self.clock)
        self._status = Status(executions=self.executions, progress=self._board, hold=self._hold)
        self._advance = Advance(
            executions=self.executions,
            clock=self.clock,
            chance=self._chance,
            progress=self._board,
            status=self._status,
        )
        self._runner = StepRunner(
            catalogue=self._catalogue,
            advance=self._advance,
            progress=self._board,
            clock=self.clock,
            threads=self._threads,
        )
        self._dispatcher.open(self._runner, self.executions, self.clock)
        await self.executions.open(self._dispatcher, self._feed.publish)
        await self._hold.open()

    async def _kill(self) -> None:
        attempts = self._dispatcher.at_work()
        for attempt in attempts:
            for each in self._scripts:
                if each.hangs_in(attempt.ref):
                    attempt.tell()
        self._dispatcher.kill()
        await self._quiet()
        for each in self._scripts:
            if any(each.hangs_in(attempt.ref) for attempt in attempts):
                each.let_go()  # it was deaf
        deadline = time.monotonic() + self._patience_s
        while any(not attempt.ended.done() for attempt in attempts):
            if time.monotonic() > deadline:
                names = sorted(str(a.ref) for a in attempts if not a.ended.done())
                raise Stuck(f"these handlers don't end when they are told: {', '.join(names)}")
            await asyncio.sleep(0.001)

    def _find(self, execution: str | int | None) -> int:
        reference = self._last if execution is None else execution
        if reference is None:
            raise ValueError("nothing was started yet")
        found = self.executions.committed(reference)
        assert found.id is not None
        return found.id

    async def _asked(
        self, step_key: str, attempt: int | None, execution: str | int | None
    ) -> tuple[int, int]:
        """Once the external step waits for its answer: whose, and of which attempt."""
        found = self._find(execution)
        if attempt is None:
            await self.until(step_key, "running", found)
            attempt = self.executions.committed(found).step(step_key).attempt
        return found, attempt

    async def _until(
        self, execution: int, condition: Callable[[Execution], bool], what: str
    ) -> None:
        """Time jumps whenever nothing else can bring it about."""

        def there() -> bool:
            return condition(self.executions.committed(execution))

        last = self._happened()
        deadline = time.monotonic() + self._patience_s
        while not await self._quiet(there):
            if self._happened() != last:
                last = self._happened()
                deadline = time.monotonic() + self._patience_s
            now = self.executions.committed(execution)
            if now.status is not ExecutionStatus.RUNNING and not now.unfinished:
                raise Stuck(f"it never {what}: {_described(now)}")
            working = self._working()
            if working:
                if time.monotonic() > deadline:
                    raise Stuck(
                        f"it never {what}: {', '.join(working)} at work for "
                        f"{self._patience_s:g} real seconds. Let a script stand in for it, or "
                        "move the time yourself with advance()"
                    )
                await asyncio.sleep(0.0005)
            elif self.clock.next_due is not None:
                self.clock.wake_next()
            else:
                raise Stuck(f"it never {what}, and nothing more will happen: {_described(now)}")

    async def _quiet(self, there: Callable[[], bool] = lambda: False) -> bool:
        """Whether it has come about before there was nothing left to do at once."""
        quiet, seen = 0, self._happened()
        while quiet < QUIET_TURNS:
            if there():
                return True
            await asyncio.sleep(0)
            happened = self._happened()
            quiet = quiet + 1 if happened == seen else 0
            seen = happened
        return there()

    def _happened(self) -> tuple[int, int, int]:
        dispatcher = self._dispatcher
        return self.executions.commits, dispatcher.ended, len(dispatcher.at_work())

    def _working(self) -> list[str]:
        """The attempts that are waited for in real time: for their outcome, or their slot."""
        slots = self._dispatcher.load().waiting > 0
        return [
            f"{attempt.started.step.key} (attempt {attempt.ref.attempt})"
            for attempt in self._dispatcher.at_work()
            if not any(each.hangs_in(attempt.ref) for each in self._scripts)
            and (slots or self.executions.runs(attempt.ref))
        ]


def _with(pipelines: Sequence[Pipeline], stand_ins: Mapping[str, Handler]) -> list[Pipeline]:
    """The pipelines with other handlers. Raises ``InvalidDefinition`` for a name that fits none."""
    specs = {spec.name: spec for each in pipelines for spec in each.definition.steps}
    for name in stand_ins:
        if name not in specs:
            raise InvalidDefinition(f"there is no step {name!r}, only {', '.join(specs)}")
        if specs[name].external:
            raise InvalidDefinition(
                f"step {name!r} is external and has no handler; answer it with Testbed.answer"
            )
    return [
        Pipeline(
            each.type,
            [
                AuthoredStep(spec, stand_ins.get(spec.name, each.handler(spec.name)))
                for spec in each.definition.steps
            ],
            card=each.card,
        )
        for each in pipelines
    ]


def _described(execution: Execution) -> str:
    steps = ", ".join(f"{key} {step.status}" for key, step in execution.steps.items())
    paused = ", paused" if execution.paused_at is not None else ""
    outside = "".join(f", waits for {key} outside" for key in execution.waits_for())
    error = f" ({execution.error_message})" if execution.error_message else ""
    return f"the execution is {execution.status}{paused}{outside}{error}; {steps}"
