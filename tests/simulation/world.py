"""One run: pipelines, people, detectors, followers and faults, all drawn from one seed.

A run has two parts. In the first, everything goes wrong that can: commits fail, the
process dies and starts again, handlers raise, hang, lie and come late, messages come
twice and out of order, people retry and cancel at odd times, followers are slow and
drop; in some runs what has ended is forgotten within seconds. Then it grows calm: no
more faults, what hangs dies with one last kill, people retry what has failed. Now
everything has to come to its end, and ``invariants`` looks at what happened.

The application is wired by ``bootstrap.Container`` and opened and closed by
``bootstrap.running``: what is simulated is what is served.

To add a verb, add a method to ``People`` and a line to ``VERBS``. To add a fact, say
in ``invariants.REPLAY`` what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Generator
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from dependency_injector import providers

import application.feed
import application.retention
from adapters.settings import Settings
from application.authoring import AuthoredStep, PermanentError, Pipeline, StepContext, StepError
from application.catalogue import Catalogue
from application.feed import Entry
from application.ports import AttemptRef, Query
from bootstrap import Container, running
from domain.definition import KeyLimit, RetryPolicy, StepSpec
from domain.errors import (
    AttemptOver,
    CardBusy,
    ExecutionNotFound,
    FactsGone,
    IllegalTransition,
    InvalidInput,
    MessageConflict,
    RushesError,
    Unavailable,
)
from domain.execution import Execution, ExecutionStatus
from domain.step import StepStatus
from tests.fakes.access import MemoryTokens
from tests.fakes.world import EPOCH, AllCards, SequentialIds
from tests.simulation import invariants
from tests.simulation.loop import Circles, Schedule, SimulatedLoop
from tests.simulation.store import Batch, Disk, Fate, SimulatedExecutions

T = TypeVar("T")

SETTINGS = Settings.load(
    {"library": "/nowhere/library", "card_roots": "/nowhere/cards", "keep_days": "0"}, {}
)
ABANDON_AFTER_S = 5.0

CONTAINER = Container()
"""Emptied and filled again for each process: making one costs more than using it."""

CALM_S = 600.0
"""Virtual seconds in which everything has to come to its end once nothing goes wrong."""

POLICIES = {field.name for field in fields(StepSpec)} & {
    "retry",
    "run_timeout_s",
    "queue_timeout_s",
    "lease_s",
    "priority",
    "limits",
    "spawns",
}
"""What this version's steps can be told about trying again and giving up."""

FAMILY = "fam"
"""The name of a run's dynamic step, where it has one."""

PROBE = "probe"
"""A pipeline that is triggered when all is over."""

ENDED = (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED)


class Lost(Exception):
    """The process died, or isn't there, before it had answered."""


class World:
    """``tracing``: keep a readable trace. Raises nothing: see ``violations``."""

    def __init__(
        self,
        seed: int,
        *,
        tracing: bool = False,
        store: type[SimulatedExecutions] = SimulatedExecutions,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.trace_lines: list[str] | None = [] if tracing else None
        self.violations: list[str] = []
        self.calm = False
        self.store = store
        chance = self.random
        self.schedule = Schedule(chance, chance.choice((0.0, 0.3, 1.0, 1.0)))
        self.outside = SimulatedLoop(self.schedule, chance, self._bug)
        self.disk = Disk()
        self.ids = SequentialIds()
        self.process: Process | None = None
        self.processes: list[Process] = []
        self.pools = {"default": chance.randint(1, 4), "narrow": 1}
        self.catalogue = self._catalogue()
        self.faults = Faults(chance)
        self.keep_s: float | None = chance.choice((None, None, 2.0, 6.0, 15.0))
        self.forgets_every_s = chance.choice((0.5, 3.0, 10.0))
        self.met: dict[str, int] = {}
        self.announcing = 0
        self.hung: list[Callable[[], None]] = []
        self.zombies: list[tuple[AttemptRef, dict[str, Any]]] = []
        self.followers: list[Follower] = []
        self.settled: set[tuple[str, str]] = set()
        self.history = invariants.History(self)

    # -- the run -----------------------------------------------------------------

    def run(self) -> list[str]:
        """What is wrong with this run, if anything."""
        tail, page = application.feed.TAIL, application.feed.PAGE
        every_s, batch = application.retention.EVERY_S, application.retention.BATCH
        # So small that a short run falls off the tail and needs many pages.
        application.feed.TAIL = self.random.choice((2, 5, 20, 4_096))
        application.feed.PAGE = self.random.choice((1, 3, 500))
        application.retention.EVERY_S = self.forgets_every_s
        application.retention.BATCH = self.random.choice((1, 2, 100))
        try:
            self._live()
        except Circles as error:
            self.violate("liveness", str(error))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._bug(f"{error!r} in {where.name}, {Path(where.filename).name}:{where.lineno}")
        finally:
            application.feed.TAIL, application.feed.PAGE = tail, page
            application.retention.EVERY_S, application.retention.BATCH = every_s, batch
            for process in self.processes:
                process.loop.bury()
            self.outside.bury()
        return self.violations

    def _live(self) -> None:
        self.start()
        people = People(self)
        until = self.random.uniform(2.0, 40.0)
        people.begin(until)
        self.faults.plan(self, until)
        if self.schedule.run(lambda: bool(self.violations), until):
            return
        self._grow_calm()
        people.put_right()
        deadline = self.schedule.now + CALM_S
        if not self.schedule.run(self._over, deadline):
            self.history.stuck()
        if self.violations:
            return
        probe = self.outside.create_task(people.probe())
        if not self.schedule.run(probe.done, deadline + CALM_S):
            self.violate("pools", "a slot is lost: a pool's worth of steps can't run together")
            return
        self.history.ended()
        for uncaught in self.outside.uncaught():
            self._bug(uncaught)
        if self.process is not None:
            for uncaught in self.process.loop.uncaught():
                self._bug(uncaught)

    def _grow_calm(self) -> None:
        self.trace("--- calm: nothing goes wrong any more")
        self.calm = True
        self.schedule.interrupt_at = -1
        if self.random.random() < 0.5:
            self.die("what hangs has to go")
        for go_on in self.hung:
            go_on()

    def _over(self) -> bool:
        if self.violations:
            return True
        if self.announcing:
            return False
        last = self.disk.last_fact_id
        return all(each.status in ENDED for each in self.disk.executions.values()) and all(
            follower.caught_up(last) for follower in self.followers
        )

    # -- the process -------------------------------------------------------------

    def start(self) -> None:
        if self.process is None:
            self.process = Process(self, len(self.processes) + 1)
            self.processes.append(self.process)
            self.process.start()

    def die(self, why: str) -> None:
        """``kill -9``: whatever was in memory is gone, and it is started again a little later."""
        process = self.process
        if process is None:
            return
        self.trace("process %d dies: %s", process.number, why)
        self._bury(process)

    def ended(self, process: Process) -> None:
        """It has come to its end by itself."""
        if process is self.process:
            self.trace("process %d has ended", process.number)
            self._bury(process)

    def _bury(self, process: Process) -> None:
        for uncaught in process.loop.uncaught():
            self._bug(uncaught)
        process.loop.close()
        self.process = None
        for waiting in process.waiting:
            if not waiting.done():
                waiting.set_exception(Lost())
        self.zombies.extend(process.at_work.values())
        self.schedule.after(self.random.uniform(0.05, 2.0), self.start)

    async def ask(self, question: Callable[[Container], Awaitable[T]]) -> T:
        """From outside: have the process answer. Raises ``Lost``, and what it refuses with."""
        process = self.process
        if process is None or not process.ready:
            raise Lost
        return await process.answer(question(process.container))

    # -- what the store asks of fate ---------------------------------------------

    def moment(self, longest_s: float) -> float:
        return self.random.random() * longest_s

    def after(self, delay_s: float, callback: Callable[..., object], *args: Any) -> object:
        return self.schedule.after(delay_s, callback, *args)

    def commit_fate(self) -> Fate:
        return Fate.DONE if self.calm else self.faults.commit_fate()

    def read_fails(self) -> bool:
        return not self.calm and self.random.random() < self.faults.reads

    def skips_an_id(self) -> bool:
        return bool(self.disk.facts) and self.random.random() < 0.02

    def committed(self, before: dict[int, Execution], batch: Batch) -> None:
        if self.trace_lines is not None:
            for fact in batch.facts:
                told = {k: v for k, v in fact.data.items() if k not in ("execution_id", "steps")}
                self.trace("commit: #%d %d %s %s", fact.id, fact.execution_id, fact.type, told)
            for execution_id in sorted(batch.gone):
                self.trace("commit: execution %d is forgotten", execution_id)
        self.history.committed(before, batch)

    # -- handlers ----------------------------------------------------------------

    def perform(
        self, context: StepContext
    ) -> Generator[float | Spawn | None, None, dict[str, Any]]:
        """What a handler does: it pauses for what it yields (None: for ever), and ends."""
        process = self.process
        assert process is not None
        ref, name = context.ref, context.step_name
        if context.pipeline_type == PROBE:
            yield from self._meet(context)
            return {}
        self.history.began(context, process)
        output: dict[str, Any] = {name: [context.execution_id, ref.step_key, ref.attempt]}
        process.at_work[ref] = (ref, output)
        self.trace("  %s begins (%s)", ref, "calm" if self.calm else "storm")
        try:
            yield from self._toil(context, process, output)
        finally:
            if not process.loop.closed:
                process.at_work.pop(ref, None)
                self.trace("  %s ends", ref)
        return output

    def _meet(self, context: StepContext) -> Generator[float | Spawn | None, None, None]:
        """It ends once its whole pool is at work on steps like this."""
        pool = context.step_name.rsplit("_", 1)[0]
        self.met[pool] = self.met.get(pool, 0) + 1
        while self.met[pool] < self.pools[pool]:
            yield 1.0

    def _toil(
        self, context: StepContext, process: Process, output: dict[str, Any]
    ) -> Generator[float | Spawn | None, None, None]:
        random, faults = self.random, self.faults
        rounds = random.randint(0, 3)
        pause = random.choice((0.0, 0.001, 0.02, 0.5))
        if not self.calm and random.random() < faults.slow:
            pause = random.uniform(1, 20)
        definition = self.catalogue.get(context.pipeline_type).definition
        spec = definition.spec(context.step_name)
        if spec is not None and spec.spawns:
            # Another attempt may spawn more, or less, of the same.
            for number in range(random.randint(0, 3)):
                yield Spawn(context, f"p{number}", {"number": number})
        polite = random.random() < 0.7
        for done in range(1, rounds + 1):
            yield pause * random.random()
            context.progress(random.choice((done / rounds, 0.2, -1.0)), done=done)
            if polite:
                context.check()
        if self.calm:
            return
        kind = faults.outcome()
        if kind == "hang":
            yield None
        elif kind == "raise":
            raise random.choice(
                (StepError("the card is gone"), ValueError("a bug"), OSError(28, "disk full"))
            )
        elif kind == "permanent":
            raise PermanentError("this will never work")
        elif kind == "die":
            self.die(f"{context.ref} kills it")
            yield None
        elif kind == "no json":
            output["bad"] = object()
        elif kind == "usurp":
            output["payload"] = "mine"

    async def _on_loop(self, context: StepContext) -> dict[str, Any]:
        work = self.perform(context)
        patient = self.random.random() < 0.3
        while True:
            try:
                pause = next(work)
            except StopIteration as end:
                result: dict[str, Any] = end.value
                return result
            try:
                if isinstance(pause, Spawn):
                    await pause()
                elif pause is None:
                    hanging = asyncio.get_running_loop().create_future()
                    self.hung.append(partial(_let_go, hanging))
                    await hanging
                else:
                    await asyncio.sleep(pause)
            except asyncio.CancelledError:
                if not patient or pause is None:
                    work.close()
                    raise
            except BaseException:
                work.close()
                raise

    def _in_thread(self, context: StepContext) -> dict[str, Any]:
        raise Blocks(self.perform(context))

    # -- what there is -----------------------------------------------------------

    def _catalogue(self) -> Catalogue:
        random = self.random
        pipelines = []
        for number in range(random.randint(1, 3)):
            card = random.random() < 0.4
            pipelines.append(Pipeline(f"p{number}", self._steps(), card=card))
        probes = [
            AuthoredStep(StepSpec(f"{pool}_{number}", pool=pool), self._on_loop)
            for pool, size in self.pools.items()
            for number in range(size)
        ]
        return Catalogue([*pipelines, Pipeline(PROBE, probes)], pools=self.pools)

    def _steps(self) -> list[AuthoredStep]:
        random = self.random
        count = random.randint(1, 6)
        shape = random.choice(("chain", "wide", "any", "any", "any"))
        specs: list[StepSpec] = []
        for number in range(count):
            before = [spec.name for spec in specs]
            required = random.random() < 0.8
            depends: list[str] = []
            after: list[str] = []
            if shape == "chain":
                depends = before[-1:]
            elif shape == "wide":
                depends = before[:1] if number < count - 1 else before
            else:
                for name in before:
                    draw = random.random()
                    if draw < 0.4:
                        depends.append(name)
                    elif draw < 0.55:
                        after.append(name)
            optional = {spec.name for spec in specs if not spec.required}
            if required:
                after += [name for name in depends if name in optional]
                depends = [name for name in depends if name not in optional]
            external = random.random() < 0.12
            specs.append(
                StepSpec(
                    f"s{number}",
                    depends_on=tuple(depends),
                    after=tuple(after),
                    required=required,
                    weight=random.randint(1, 5),
                    pool="narrow" if random.random() < 0.25 else "default",
                    external=external,
                    **self._policy(external),
                )
            )
        specs = self._family(specs)
        return [
            AuthoredStep(
                spec,
                None
                if spec.external
                else (self._on_loop if random.random() < 0.5 else self._in_thread),
            )
            for spec in specs
        ]

    def _family(self, specs: list[StepSpec]) -> list[StepSpec]:
        """Sometimes a family, one or two steps that spawn it, and later ones that wait for it."""
        random = self.random
        spawners = [i for i, spec in enumerate(specs) if not spec.external][: random.randint(1, 2)]
        if "spawns" not in POLICIES or not spawners or random.random() > 0.35:
            return specs
        family = StepSpec(
            FAMILY,
            dynamic=True,
            required=random.random() < 0.7,
            pool="narrow" if random.random() < 0.25 else "default",
            **self._policy(False),
        )
        changed = list(specs)
        for index, spec in enumerate(specs):
            if index in spawners:
                changed[index] = replace(spec, spawns=(FAMILY,))
            elif index > spawners[-1] and random.random() < 0.5:
                if (spec.required and not family.required) or random.random() < 0.3:
                    changed[index] = replace(spec, after=(*spec.after, f"{FAMILY}:*"))
                else:
                    changed[index] = replace(spec, depends_on=(*spec.depends_on, f"{FAMILY}:*"))
        return [*changed, family]

    def _policy(self, external: bool) -> dict[str, Any]:
        random = self.random
        policy: dict[str, Any] = {}
        if "retry" in POLICIES and random.random() < 0.4:
            policy["retry"] = RetryPolicy(
                retries=random.randint(1, 4),
                delay_s=random.choice((0.0, 0.01, 1.0)),
                factor=random.choice((1.0, 2.0)),
                max_delay_s=5.0,
                jitter=random.choice((0.0, 0.5)),
            )
        if "run_timeout_s" in POLICIES and not external and random.random() < 0.3:
            policy["run_timeout_s"] = random.choice((2.0, 8.0))
        if "queue_timeout_s" in POLICIES and not external and random.random() < 0.15:
            policy["queue_timeout_s"] = random.choice((1.0, 10.0))
        if "lease_s" in POLICIES and not external and random.random() < 0.2:
            policy["lease_s"] = 4.0
        if "priority" in POLICIES and random.random() < 0.2:
            policy["priority"] = random.choice((-3, 5))
        if "limits" in POLICIES and not external and random.random() < 0.15:
            policy["limits"] = (KeyLimit("where", random.choice((1, 2))),)
        return policy

    # -- reporting ---------------------------------------------------------------

    def violate(self, name: str, text: str) -> None:
        """``name`` is one of ``invariants.INVARIANTS``."""
        assert name in invariants.INVARIANTS, name
        self.trace("VIOLATED %s: %s", name, text)
        self.violations.append(f"{name}: {text}")

    def _bug(self, text: str) -> None:
        self.violate("no surprises", text)

    def missing(self, execution_id: int | None) -> None:
        """Somebody was told that it isn't there."""
        if execution_id in self.disk.executions:
            self.violate("forgetting", f"execution {execution_id} is there, and not found")

    def trace(self, text: str, *args: object) -> None:
        if self.trace_lines is not None:
            said = text % args if args else text
            self.trace_lines.append(f"{self.schedule.now:10.4f}  {said}")


class Faults:
    """How much goes wrong in this run, and what next. Rates differ from run to run."""

    def __init__(self, random: Random) -> None:
        self._random = random
        rate = random.choice((0.0, 0.3, 1.0, 1.0, 2.0))
        self.reads = 0.01 * rate * random.random()
        self.slow = 0.1 * rate
        self._commits = (
            (Fate.FAILS, 0.10 * rate * random.random()),
            (Fate.UNCLEAR, 0.06 * rate * random.random()),
            (Fate.DIES_BEFORE, 0.04 * rate * random.random()),
            (Fate.DIES_AFTER, 0.04 * rate * random.random()),
        )
        self._outcomes = (
            ("raise", 0.15 * rate),
            ("permanent", 0.03 * rate),
            ("hang", 0.06 * rate * random.random()),
            ("die", 0.02 * rate),
            ("no json", 0.02 * rate),
            ("usurp", 0.03 * rate),
        )
        self.kills = random.choice((0, 1, 2, 3)) if rate else 0
        self.stops = random.choice((0, 0, 1)) if rate else 0

    def plan(self, world: World, until: float) -> None:
        for _ in range(self.kills):
            world.after(self._random.uniform(0, until), world.die, "killed at some time")
        for _ in range(self.stops):
            world.after(self._random.uniform(0, until), self._stop, world)
        if self.kills:
            # And at one place between two callbacks, however little time lies between them.
            world.schedule.interrupt_at = self._random.randint(50, 3_000)
            world.schedule.interrupt = lambda: world.die("killed between two callbacks")

    def _stop(self, world: World) -> None:
        if world.process is not None:
            world.trace("process %d is asked to stop", world.process.number)
            world.process.stop()

    def commit_fate(self) -> Fate:
        return self._draw(self._commits, Fate.DONE)

    def outcome(self) -> str:
        return self._draw(self._outcomes, "done")

    def _draw(self, rates: tuple[tuple[T, float], ...], otherwise: T) -> T:
        draw = self._random.random()
        for what, rate in rates:
            if draw < rate:
                return what
            draw -= rate
        return otherwise


class Spawn:
    """What a handler's work yields to have another step spawned before it goes on."""

    def __init__(self, context: StepContext, parameter: str, params: dict[str, Any]) -> None:
        self._context, self._parameter, self._params = context, parameter, params

    async def __call__(self) -> None:
        await self._context.aspawn(FAMILY, self._parameter, self._params)


class Blocks(BaseException):
    """A handler in a thread blocks: ``SimulatedThreads`` lets its work go on in time."""

    def __init__(self, work: Generator[float | Spawn | None, None, dict[str, Any]]) -> None:
        self.work = work


class SimulatedThreads:
    """What blocks goes on at times of its own, and hands its result to the loop."""

    def __init__(self, world: World, loop: SimulatedLoop) -> None:
        self._world = world
        self._loop = loop
        self._closed = False

    def open(self) -> None:
        pass

    def close(self) -> None:
        self._closed = True

    async def run(self, blocking: Callable[[], Any], *, long: bool = False) -> Any:
        if self._closed:
            raise Unavailable("the server is stopping")
        future = self._loop.create_future()
        self._world.after(self._world.moment(0.001), self._call, blocking, future)
        return await future

    def on_loop(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(callback)

    def _call(self, blocking: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        if self._loop.closed:
            return
        try:
            result = blocking()
        except Blocks as blocks:
            self._go_on(blocks.work, future)
        except BaseException as error:
            self._settle(future, error=error)
        else:
            self._settle(future, result=result)

    def _go_on(self, work: Generator[float | Spawn | None, None, Any], future: Any) -> None:
        if self._loop.closed:
            return
        try:
            pause = next(work)
        except StopIteration as end:
            self._settle(future, result=end.value)
        except BaseException as error:
            self._settle(future, error=error)
        else:
            if isinstance(pause, Spawn):
                self._loop.call_soon_threadsafe(
                    lambda: self._loop.create_task(self._spawn(pause, work, future))
                )
                return
            go_on = partial(self._world.after, pause or 0.0, self._go_on, work, future)
            if pause is None:
                self._world.hung.append(go_on)
            else:
                go_on()

    async def _spawn(self, spawn: Spawn, work: Generator[Any, None, Any], future: Any) -> None:
        try:
            await spawn()
        except BaseException as error:
            work.close()
            self._settle(future, error=error)
        else:
            self._world.after(0.0, self._go_on, work, future)

    def _settle(
        self, future: asyncio.Future[Any], *, result: Any = None, error: Any = None
    ) -> None:
        def settle() -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._loop.call_soon_threadsafe(settle)


def _let_go(hanging: asyncio.Future[None]) -> None:
    if not hanging.done():
        hanging.set_result(None)


class SimulatedClock:
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._began = schedule.now

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._schedule.now)

    def monotonic(self) -> float:
        return self._schedule.now - self._began

    async def sleep(self, seconds: float) -> None:
        # Time always goes on a little, also where a float is too coarse to show it.
        await asyncio.sleep(seconds + 1e-6)


class SeededChance:
    def __init__(self, random: Random) -> None:
        self.fraction = random.random


class NoDatabase:
    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


class Process:
    """One life of the server, from its start to its end."""

    def __init__(self, world: World, number: int) -> None:
        self.number = number
        self.ready = False
        self.loop = SimulatedLoop(world.schedule, world.random, world._bug)
        self.waiting: list[asyncio.Future[Any]] = []
        self.at_work: dict[AttemptRef, tuple[AttemptRef, dict[str, Any]]] = {}
        self.container = CONTAINER
        self._world = world
        self._began = world.schedule.now
        self._stop = asyncio.Event()
        fakes = {
            "settings": replace(
                SETTINGS,
                pools=world.pools,
                abandon_after_s=ABANDON_AFTER_S,
                keep_days=(world.keep_s or 0.0) / 86_400,
            ),
            "clock": SimulatedClock(world.schedule),
            "ids": world.ids,
            "chance": SeededChance(world.random),
            "threads": SimulatedThreads(world, self.loop),
            "cards": AllCards(),
            "database": NoDatabase(),
            "tokens": MemoryTokens(),
            "executions": world.store(world.disk, world, self.loop),
            "catalogue": world.catalogue,
        }
        for name, fake in fakes.items():
            provider = getattr(self.container, name)
            provider.reset_override()
            provider.override(providers.Object(fake))
        self.container.reset_singletons()

    @property
    def age_s(self) -> float:
        return self._world.schedule.now - self._began

    def start(self) -> None:
        self._world.trace("process %d starts", self.number)
        self.loop.create_task(self._run())

    def stop(self) -> None:
        """SIGTERM."""
        self.loop.call_soon_threadsafe(self._stop.set)

    async def answer(self, question: Awaitable[T]) -> T:
        """For the world outside: what the process says to it."""
        answer: asyncio.Future[T] = self._world.outside.create_future()

        async def ask() -> None:
            try:
                result = await question
            except Exception as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(result)

        self.waiting.append(answer)
        self.loop.create_task(ask())
        return await answer

    async def _run(self) -> None:
        try:
            async with running(self.container):
                self.ready = True
                self._world.trace("process %d is ready", self.number)
                await self._stop.wait()
                self.ready = False
        except Unavailable as error:
            self._world.trace("process %d: %s", self.number, error)
        # Its loop can't bury itself while it runs.
        self._world.after(0.0, self._world.ended, self)


class Follower:
    """Somebody who wants to see everything after ``since``, and keeps coming back for it."""

    def __init__(self, world: World, number: int, since: int, execution_id: int | None) -> None:
        self.number = number
        self.since = since
        self.execution_id = execution_id
        self.seen: list[int] = []
        self.last = since
        self._world = world
        self._slow = world.random.random() < 0.3
        self._flighty = world.random.random() < 0.5

    def caught_up(self, last: int) -> bool:
        if self.execution_id is None:
            return self.last >= last
        facts = self._world.disk.facts
        own = (fact.id for fact in reversed(facts) if fact.execution_id == self.execution_id)
        return self.last >= next(own, 0)

    async def follow(self) -> None:
        world, random = self._world, self._world.random
        while True:
            process = world.process
            if process is None or not process.ready:
                await asyncio.sleep(0.05)
                continue
            gone: asyncio.Future[None] = world.outside.create_future()
            process.waiting.append(gone)
            connection = process.loop.create_task(self._connection(process, gone))
            if self._flighty and not world.calm:
                world.after(random.uniform(0.01, 8.0), self._drop, process, connection, gone)
            with contextlib.suppress(Lost):
                await gone
            await asyncio.sleep(random.random() * 0.5)

    def _drop(
        self, process: Process, connection: asyncio.Task[None], gone: asyncio.Future[None]
    ) -> None:
        if not gone.done():
            self._world.trace("follower %d drops", self.number)
            if not process.loop.closed:
                process.loop.call_soon_threadsafe(connection.cancel)
            gone.set_result(None)

    async def _connection(self, process: Process, gone: asyncio.Future[None]) -> None:
        world = self._world
        try:
            feed = process.container.feed()
            world.trace("follower %d comes, since %d", self.number, self.last)
            async for entry in feed.follow(self.last, self.execution_id):
                if self._slow and not world.calm:
                    await asyncio.sleep(world.random.choice((0.0, 0.1, 1.0)))
                if gone.done():  # what was under way to who has dropped is lost
                    return
                self._receive(entry)
        except Unavailable:
            pass  # the process is stopping, or can't read just now
        except FactsGone as error:
            world.history.reset(self, error)
            # It reads the state anew, as of this place.
            self.last = process.container.feed().last_id
            world.trace("follower %d has to begin anew, at %d", self.number, self.last)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            world.violate("followers", f"follower {self.number} is refused: {error!r}")
        finally:
            if not gone.done() and not process.loop.closed:
                gone.set_result(None)

    def _receive(self, entry: Entry) -> None:
        message = entry.message
        if message.id is None:
            self._world.history.progress_told(message.data)
            return
        self._world.history.heard(self, message)
        self.seen.append(message.id)
        self.last = message.id


class People:
    """Detectors, persons and services outside, all of them restless."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random

    def begin(self, until: float) -> None:
        world, random = self._world, self._random
        outside = world.outside
        types = [pipeline for pipeline in world.catalogue.all() if pipeline.type != PROBE]
        for number in range(random.randint(1, 5)):
            pipeline = random.choice(types)
            data: dict[str, Any] = {"payload": number, "where": random.choice(("here", "there"))}
            if pipeline.card:
                data["sd_path"] = f"/nowhere/cards/{random.choice('AB')}"
            message_id = None if random.random() < 0.15 else f"m{number}"
            times = 1 if message_id is None else random.choice((1, 1, 2, 4))
            for _ in range(times):
                sent = dict(data)
                if random.random() < 0.05:
                    sent["payload"] = "other contents"
                when = random.uniform(0, until * 0.7)
                outside.create_task(self._detector(when, pipeline.type, sent, message_id))
        for number in range(random.randint(1, 3)):
            world.after(random.uniform(0, until), self._follower, number)
        for _ in range(random.randint(0, 8)):
            verb = random.choice(VERBS)
            outside.create_task(self._at_odd_times(random.uniform(0, until), verb))
        outside.create_task(self._serve_outside())
        outside.create_task(self._look_on())
        outside.create_task(self._zombies())

    def put_right(self) -> None:
        """Calm: whatever has failed is retried, and what is paused goes on."""
        self._world.outside.create_task(self._put_right())

    async def probe(self) -> None:
        """When all is over, every pool must be able to run as much at once as it has slots."""
        world = self._world
        while True:
            with contextlib.suppress(Lost):
                answer = await world.ask(lambda c: c.trigger()(PROBE, {}))
                break
            await asyncio.sleep(0.1)
        while True:
            execution = world.disk.executions.get(answer.execution.id)
            if execution is None or execution.status is ExecutionStatus.COMPLETED:
                return
            await asyncio.sleep(0.5)

    def _follower(self, number: int) -> None:
        world = self._world
        since = self._random.choice((0, world.disk.last_fact_id))
        execution_id = None
        if world.disk.executions and self._random.random() < 0.3:
            execution_id = self._random.choice(list(world.disk.executions))
        follower = Follower(world, number, since, execution_id)
        world.followers.append(follower)
        world.outside.create_task(follower.follow())

    async def _detector(
        self, when: float, pipeline_type: str, data: dict[str, Any], message_id: str | None
    ) -> None:
        self._world.announcing += 1
        await asyncio.sleep(when)
        await self._announce(pipeline_type, data, message_id)
        self._world.announcing -= 1

    async def _announce(
        self, pipeline_type: str, data: dict[str, Any], message_id: str | None
    ) -> None:
        """It repeats itself until it is answered; one without an id can't."""
        world = self._world
        while True:
            try:
                answer = await world.ask(
                    lambda c: c.trigger()(pipeline_type, data, message_id=message_id)
                )
            except (Lost, Unavailable):
                if message_id is None:
                    return
                await asyncio.sleep(self._random.uniform(0.1, 1.0))
                continue
            except MessageConflict:
                return
            world.trace("%s is answered %s", message_id, answer.duplicate or "new")
            world.history.answered(message_id, answer)
            return

    async def _at_odd_times(self, when: float, verb: Verb) -> None:
        world = self._world
        await asyncio.sleep(when)
        for _ in range(self._random.randint(1, 3)):
            if world.disk.executions and not world.calm:
                execution = world.disk.executions[self._random.choice(list(world.disk.executions))]
                try:
                    await verb(self, execution)
                    world.trace("%s %s: done", verb.__name__, execution.id)
                except (Lost, Unavailable, IllegalTransition, CardBusy, InvalidInput) as refusal:
                    world.trace("%s %s: %r", verb.__name__, execution.id, refusal)
                except ExecutionNotFound:
                    world.missing(execution.id)
            await asyncio.sleep(self._random.choice((0.0, 0.001, 1.0, 5.0)))

    # -- verbs; each raises what the use case refuses with ------------------------

    async def retry(self, execution: Execution) -> None:
        await self._world.ask(lambda c: c.retry()(execution.uuid))

    async def cancel(self, execution: Execution) -> None:
        await self._world.ask(lambda c: c.cancel()(execution.uuid))

    async def pause(self, execution: Execution) -> None:
        await self._world.ask(lambda c: c.pause().pause(execution.uuid))

    async def resume(self, execution: Execution) -> None:
        await self._world.ask(lambda c: c.pause().resume(execution.uuid))

    async def skip(self, execution: Execution) -> None:
        key = self._some_step(execution)
        await self._world.ask(lambda c: c.settle().skip(execution.uuid, key))

    async def complete(self, execution: Execution) -> None:
        key = self._some_step(execution)
        step = execution.steps[key]
        self._world.settled.add((execution.uuid, key))
        output = {step.name: [execution.uuid, key, step.attempt, "by hand"]}
        await self._world.ask(lambda c: c.settle().complete(execution.uuid, key, output))

    async def rerun(self, execution: Execution) -> None:
        key = self._random.choice(list(execution.steps))
        await self._world.ask(lambda c: c.rerun()(execution.uuid, key))

    async def hold(self, execution: Execution) -> None:
        """The whole engine, whatever the execution."""
        await self._world.ask(lambda c: c.hold().pause())

    async def go_on(self, execution: Execution) -> None:
        await self._world.ask(lambda c: c.hold().resume())

    def _some_step(self, execution: Execution) -> str:
        failed = [s.key for s in execution.steps.values() if s.status is StepStatus.FAILED]
        return self._random.choice(failed or list(execution.steps))

    # -- others ------------------------------------------------------------------

    async def _serve_outside(self) -> None:
        """A service that does the external steps: late, twice, or for an attempt that is over."""
        world, random = self._world, self._random
        while True:
            await asyncio.sleep(random.uniform(0.05, 1.0) if not world.calm else 0.5)
            waiting = [
                (execution, step)
                for execution in world.disk.executions.values()
                for step in execution.steps.values()
                if (step.spec.external and step.attempt > 0 and not world.calm)
                or (step.spec.external and step.status is StepStatus.RUNNING)
            ]
            if not waiting:
                continue
            execution, step = random.choice(waiting)
            attempt = step.attempt
            if not world.calm and random.random() < 0.3:
                await asyncio.sleep(random.uniform(0, 5))
                attempt = max(1, attempt - random.randint(0, 1))
            try:
                await self._report(execution, step.key, attempt)
            except (Lost, Unavailable, AttemptOver):
                pass
            except ExecutionNotFound:
                world.missing(execution.id)
            except RushesError as refusal:
                world.violate("attempts", f"{step.key}, attempt {attempt}: {refusal!r}")

    async def _report(self, execution: Execution, key: str, attempt: int) -> None:
        world, uuid = self._world, execution.uuid
        if world.calm or self._random.random() < 0.7:
            output = {execution.steps[key].name: [uuid, key, attempt]}
            await world.ask(lambda c: c.advance().complete_external(uuid, key, attempt, output))
        else:
            await world.ask(lambda c: c.advance().fail_external(uuid, key, attempt, "it said no"))

    async def _zombies(self) -> None:
        """Work of a process that is dead, and whose result comes all the same."""
        world, random = self._world, self._random
        while True:
            await asyncio.sleep(random.uniform(0.1, 3.0))
            if not world.zombies or random.random() < 0.3:
                continue
            ref, output = world.zombies.pop(random.randrange(len(world.zombies)))
            if any(not isinstance(value, list | str) for value in output.values()):
                continue
            world.trace("the dead speak: %s", ref)
            try:
                await world.ask(lambda c, ref=ref, output=output: c.advance().complete(ref, output))
            except (Lost, Unavailable, AttemptOver):
                pass
            except ExecutionNotFound:
                world.missing(ref.execution_id)
            except RushesError as error:
                world.violate("attempts", f"{ref} is dead, and is answered {error!r}")

    async def _look_on(self) -> None:
        """A frontend that asks for the state again and again."""
        world, random = self._world, self._random
        while True:
            await asyncio.sleep(random.uniform(0.1, 4.0))
            if not world.disk.executions:
                continue
            execution_id = random.choice(list(world.disk.executions))
            run = world.history.run_of(execution_id)
            try:
                view = await world.ask(
                    lambda c, execution_id=execution_id: c.status().get(execution_id)
                )
                if run == world.history.run_of(execution_id):
                    world.history.shown(run, view)
                await world.ask(lambda c: c.status().list(Query(limit=random.randint(1, 3))))
            except (Lost, Unavailable):
                pass
            except ExecutionNotFound:
                world.missing(execution_id)

    async def _put_right(self) -> None:
        world = self._world
        while True:
            await asyncio.sleep(1.0)
            with contextlib.suppress(Lost, Unavailable):
                await world.ask(_go_on)
            for execution in list(world.disk.executions.values()):
                verb: Verb | None = None
                if execution.status is ExecutionStatus.FAILED:
                    verb = People.retry
                elif getattr(execution, "paused_at", None) is not None and execution.active:
                    verb = People.resume
                if verb is not None:
                    try:
                        await verb(self, execution)
                    except (Lost, CardBusy, IllegalTransition):
                        pass
                    except ExecutionNotFound:
                        world.missing(execution.id)


async def _go_on(container: Container) -> None:
    if container.hold().held_at is not None:
        await container.hold().resume()


Verb = Callable[[People, Execution], Awaitable[None]]

_WANTED: tuple[tuple[Verb, str], ...] = (
    (People.retry, "retry"),
    (People.retry, "retry"),
    (People.retry, "retry"),
    (People.cancel, "cancel"),
    (People.pause, "pause"),
    (People.resume, "pause"),
    (People.skip, "settle"),
    (People.complete, "settle"),
    (People.rerun, "rerun"),
    (People.hold, "rerun"),
    (People.go_on, "rerun"),
)

VERBS: list[Verb] = [verb for verb, provider in _WANTED if hasattr(Container, provider)]
"""What people do to executions at odd times; the more often named, the more often done."""
