"""Runs one attempt of one step: its handler, its progress, its report.

An attempt ends in exactly one report: completed, failed, or given back because
Rushes is stopping. While the store can't take the report, it is kept and offered
again: an outcome isn't lost because a disk was full for a while. If it can't be
stored for what it says, the step fails with that reason.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from application.advance import Advance
from application.authoring import (
    Handler,
    Interrupted,
    PermanentError,
    StepContext,
    StepError,
    runs_on_loop,
)
from application.catalogue import Catalogue
from application.json_values import Snapshot, json_copy, json_object
from application.ports import AttemptRef, Clock, Started, Threads
from application.progress import ProgressBoard
from domain.errors import AttemptOver, ExecutionNotFound, InvalidInput, RushesError, Unavailable

log = logging.getLogger(__name__)

REPORT_AGAIN_S = (0.1, 0.5, 1.0, 5.0)
"""How long to wait before a report is offered again; the last one from then on."""

LOOK_EVERY_S = 0.5
"""How often it is asked, for a handler that wants to know, whether its execution is paused."""


@dataclass(frozen=True, slots=True)
class _Completed:
    output: Mapping[str, Any]
    job_id: int | None
    announced: Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Failed:
    """interrupted: it was asked to end, and did."""

    reason: str
    permanent: bool = False
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class _Lost:
    """It has been silent for longer than its lease."""


_Outcome = _Completed | _Failed | _Lost


class Attempt:
    """One attempt at work. Its handler may outlive its outcome, if it doesn't heed a timeout.

    began_at and beat_at: monotonic seconds; of the begin, and of the last sign of life.
    ended: done once its handler has come to an end.
    waits_for_us: how many of its calls aren't answered yet: as long as that takes, it is alive.
    given_back: whether its handler ends only because the execution is paused.
    """

    def __init__(self, started: Started, handler: Handler | None, *, now: float) -> None:
        self.started = started
        self.ref = started.ref
        self.handler = handler
        self.on_loop = handler is not None and runs_on_loop(handler)
        self.began_at = self.beat_at = now
        self.waits_for_us = 0
        self.given_back = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[Any] | None = None
        self._told = False

    @property
    def told(self) -> bool:
        """Whether its handler has been asked to end."""
        return self._told

    def tell(self) -> None:
        """Ask its handler to come to an end. A blocking one finds out when it next looks."""
        self._told = True
        if self.on_loop and self._task is not None and not self.ended.done():
            self._task.cancel()

    def is_in_its_task(self) -> bool:
        """Whether whoever asks is run by the loop; not, if what is left over is thrown away."""
        try:
            return asyncio.current_task() is self._task
        except RuntimeError:  # no loop
            return False

    async def go_on_loop(self, returned: Awaitable[object]) -> object:
        """A function without ``async`` has returned a coroutine: a decorated one, mostly."""
        self.on_loop = True
        if self._told:
            self.tell()  # which was in vain so far
        return await returned

    def enter(self) -> None:
        """Its handler runs in this task from now on."""
        self._task = asyncio.current_task()

    async def leave(self) -> None:
        """Its handler has ended. A cancel that was meant for it doesn't hit what follows."""
        self.ended.set_result(None)
        assert self._task is not None
        while self._task.cancelling():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            self._task.uncancel()


class _Reports:
    """What a handler says through its context (``authoring.Reports``)."""

    def __init__(
        self,
        attempt: Attempt,
        advance: Advance,
        progress: ProgressBoard,
        clock: Clock,
        threads: Threads,
    ) -> None:
        self._attempt = attempt
        self._advance = advance
        self._progress = progress
        self._clock = clock
        self._threads = threads
        self._looked_at = -math.inf
        self._is_paused = False

    def progress(self, fraction: float, detail: dict[str, Any]) -> None:
        self.beat()
        self._progress.note(self._attempt.started, fraction, detail)

    def beat(self) -> None:
        self._attempt.beat_at = self._clock.monotonic()

    def told(self) -> bool:
        return self._attempt.told

    def paused(self) -> bool:
        now = self._clock.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self.wait(self._look)
        return self._is_paused

    async def _look(self) -> None:
        try:
            self._is_paused = await self._advance.is_paused(self._attempt.ref)
        except Unavailable as error:
            log.warning("whether %s is paused can't be seen: %s", self._attempt.ref, error)

    def rest(self) -> None:
        self.wait(partial(self._clock.sleep, LOOK_EVERY_S))

    def give_back(self) -> None:
        self._attempt.given_back = True

    def wait(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with self._kept_waiting():
            self._threads.await_result(make)

    @contextmanager
    def _kept_waiting(self) -> Iterator[None]:
        """Its silence is ours: the store may take its time, and the lease isn't for that."""
        self._attempt.waits_for_us += 1
        try:
            yield
        finally:
            self.beat()
            self._attempt.waits_for_us -= 1

    async def _stored(self, say: Callable[[], Awaitable[None]]) -> None:
        """As with an outcome: that a disk is full for a while is no reason to fail."""
        tries = 0
        with self._kept_waiting():
            while True:
                try:
                    return await say()
                except Unavailable as error:
                    if self._attempt.told:
                        raise
                    log.warning("what %s says is not stored yet: %s", self._attempt.ref, error)
                await self._clock.sleep(_pause_s(tries))
                tries += 1

    async def leave(self, checkpoint: Mapping[str, Any]) -> None:
        await self._stored(partial(self._advance.leave, self._attempt.ref, checkpoint))

    async def spawn(
        self,
        name: str,
        parameter: str,
        params: Mapping[str, Any],
        depends_on: Sequence[str],
        after: Sequence[str],
    ) -> None:
        await self._stored(
            partial(
                self._advance.spawn,
                self._attempt.ref,
                name,
                parameter,
                params=params,
                depends_on=depends_on,
                after=after,
            )
        )


class StepRunner:
    def __init__(
        self,
        *,
        catalogue: Catalogue,
        advance: Advance,
        progress: ProgressBoard,
        clock: Clock,
        threads: Threads,
    ) -> None:
        self._catalogue = catalogue
        self._advance = advance
        self._progress = progress
        self._clock = clock
        self._threads = threads
        self._stopping = False

    def stop(self) -> None:
        """What is interrupted from now on is given back, not failed; nothing begins any more."""
        self._stopping = True

    def begin(self, started: Started) -> Attempt:
        """The attempt is at work from now on; ``decided`` runs its handler."""
        handler = self._catalogue.handler(started.execution.definition.type, started.step.name)
        attempt = Attempt(started, handler, now=self._clock.monotonic())
        if not self._stopping:  # otherwise its commit was under way when the stop came
            self._progress.begin(attempt.ref)
        return attempt

    async def decided(self, attempt: Attempt) -> Callable[[], Awaitable[None]]:
        """Run its handler until the outcome is known; the report that is to be made then.

        Two halves, so that whoever runs attempts can free the slot between them: the
        report's own commit can then start what waits for it. Raises nothing. If the time
        is over before the handler has ended, the handler is told, and may go on for a while.
        """
        spec = attempt.started.step.spec
        if spec.run_timeout_s is None and spec.lease_s is None:
            return self._report_of(attempt, await self._outcome(attempt))
        # A task of its own, so that its outcome can be decided without it.
        handler = asyncio.create_task(self._outcome(attempt))
        over = await self._time_over(attempt, spec.run_timeout_s, spec.lease_s)
        if over is not None:
            attempt.tell()
            return self._report_of(attempt, over)
        return self._report_of(attempt, await handler)

    async def _time_over(
        self, attempt: Attempt, limit_s: float | None, lease_s: float | None
    ) -> _Outcome | None:
        """Wait for the handler to end (None), or for the time that it has to be over."""
        while not attempt.ended.done():
            now = self._clock.monotonic()
            left = []
            if limit_s is not None:
                left.append(attempt.began_at + limit_s - now)
                if left[-1] <= 0:
                    return _Failed(f"ran longer than {limit_s:g} s")
            if lease_s is not None:
                silent_since = now if attempt.waits_for_us else attempt.beat_at
                left.append(silent_since + lease_s - now)
                if left[-1] <= 0:
                    return _Lost()
            timer = asyncio.create_task(self._clock.sleep(min(left)))
            await asyncio.wait({attempt.ended, timer}, return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
        return None

    def _report_of(self, attempt: Attempt, outcome: _Outcome) -> Callable[[], Awaitable[None]]:
        if isinstance(outcome, _Completed):
            report = partial(
                self._advance.complete,
                attempt.ref,
                outcome.output,
                job_id=outcome.job_id,
                announced=outcome.announced,
            )
        elif isinstance(outcome, _Lost):
            report = partial(self._advance.lose, attempt.ref)
        elif outcome.interrupted and (self._stopping or attempt.given_back):
            report = partial(self._advance.release, attempt.ref)
        else:
            report = partial(
                self._advance.fail, attempt.ref, outcome.reason, permanent=outcome.permanent
            )
        return partial(self._report, attempt.ref, report)

    async def _outcome(self, attempt: Attempt) -> _Outcome:
        """Whatever a handler does, also to the interpreter, is an outcome."""
        attempt.enter()
        try:
            if self._stopping or attempt.told:
                return _Failed("was told to end before it had begun", interrupted=True)
            return await self._call(attempt)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not attempt.is_in_its_task():
                raise  # the loop is gone, and nobody wants an outcome
            told = isinstance(error, RushesError | StepError | Interrupted | asyncio.CancelledError)
            if not told:  # a bug in the handler: whoever wrote it wants to know where
                log.warning("step %s raised", attempt.ref, exc_info=error)
            return _Failed(
                _reason(error),
                permanent=isinstance(error, PermanentError | InvalidInput),
                interrupted=isinstance(error, Interrupted | asyncio.CancelledError),
            )
        finally:
            await attempt.leave()

    async def _call(self, attempt: Attempt) -> _Completed:
        execution, step = attempt.started.execution, attempt.started.step
        handler = attempt.handler
        if handler is None:
            raise InvalidInput(
                f"this server has no code for step {step.name!r} "
                f"of pipeline {execution.definition.type!r}"
            )
        context = StepContext(
            ref=attempt.ref,
            execution_id=execution.uuid,
            pipeline_type=execution.definition.type,
            message_id=execution.message_id,
            step_name=step.name,
            data=Snapshot(execution.data),
            reports=_Reports(attempt, self._advance, self._progress, self._clock, self._threads),
            parameter=step.parameter,
            params=json_copy(step.params) if step.params else {},
            checkpoint=None if step.checkpoint is None else json_copy(step.checkpoint),
        )
        returned: object
        if attempt.on_loop:
            returned = handler(context)
        else:
            returned = await self._threads.run(lambda: handler(context), long=True)
        if isinstance(returned, Awaitable):
            returned = await attempt.go_on_loop(returned)
        output: Mapping[str, Any] = {}
        if returned is not None:
            output = json_object(returned, f"the output of step {step.name!r}")
        return _Completed(output, context.job_id, context.announced)

    async def _report(self, ref: AttemptRef, report: Callable[[], Awaitable[None]]) -> None:
        try:
            while True:
                try:
                    return await self._offer(ref, report)
                except asyncio.CancelledError:
                    if self._stopping:
                        raise
                    # What a handler has left behind (a watchdog) still cancels its task. Were
                    # it heeded, the step would be running for ever with nobody at work on it;
                    # and what has been stored meanwhile may be said again.
                    task = asyncio.current_task()
                    assert task is not None
                    task.uncancel()
        finally:
            self._progress.end(ref)

    async def _offer(self, ref: AttemptRef, report: Callable[[], Awaitable[None]]) -> None:
        tries = 0
        refused = False
        while True:
            try:
                await report()
                return
            except (AttemptOver, ExecutionNotFound) as error:
                # Not there: it was over for so long that it is forgotten.
                log.info("a late report is dropped: %s", error)
                return
            except Unavailable as error:
                if self._stopping:
                    log.warning("stopping before an outcome was stored: %s", error)
                    return
                pause = _pause_s(tries)
                tries += 1
                log.warning("the outcome of %s is not stored yet: %s", ref, error)
                await self._clock.sleep(pause)
            except Exception as error:
                # What the attempt said can't be stored; that it said so can. Were it left
                # at that, the step would be running for ever with nobody at work on it.
                reason = f"its outcome can't be stored: {_reason(error)}"
                log.error("step %s: %s", ref, reason)
                if refused:
                    return
                refused = True
                report = partial(self._advance.fail, ref, reason)


def _pause_s(tries: int) -> float:
    return REPORT_AGAIN_S[min(tries, len(REPORT_AGAIN_S) - 1)]


def _reason(error: BaseException) -> str:
    """What a person is told: the text of an error made for people, else with its type."""
    try:
        text = str(error)
    except Exception:  # somebody else's __str__: no reason to lose the outcome
        text = ""
    if isinstance(error, RushesError | StepError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
