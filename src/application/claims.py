"""Workers outside ask for external steps, and wait until there is one for them.

An external step that is ready is started: it runs, and waits for a worker. A claim hands
one such attempt to one worker; from then on its lease and its time count (``domain/step``).
What is claimed, and by whom, is stored, so it goes on when Rushes is started again, and a
worker that is lost with its lease is taken over, as a new attempt that can be claimed.

Who waits is woken by the facts that may have made something claimable. A worker that goes
away while its claim is being stored is given nothing: what it claimed is given back.
"""

from __future__ import annotations

import asyncio
import math
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from application.feed import Feed
from application.hold import Hold
from application.ports import Clock, Executions
from domain.definition import PIPELINE_TYPE, STEP_NAME
from domain.errors import Conflict, FactsGone, InvalidInput, NotFound, RushesError, Unavailable
from domain.events import PipelineResumed, PipelineRetried, StepStarted, timestamp
from domain.execution import Execution

MAX_WAIT_S = 300.0
"""Longer than that, something between the worker and us forgets the connection."""

MAX_WORKER_ID = 200
"""Characters: a host, a process and a number; the column has no more."""

CANDIDATES = 32
"""How many are looked at together: more than workers that ask at the very same moment."""

LOOK_AGAIN_S = 1.0
"""How often a worker looks while the engine is held, since no fact says that it goes on."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a worker is handed: all that a handler would be given, and until when.

    execution_id: the uuid. attempt: every report and heartbeat carries it. checkpoint: what
        the attempt before this one has left. lease_expires_at: by when it has to say that
        it lives; None where there is no lease. run_ends_at: when its time is over.
    """

    execution_id: str
    pipeline_type: str
    message_id: str | None
    step_name: str
    step_key: str
    parameter: str
    attempt: int
    worker_id: str
    data: Mapping[str, Any]
    params: Mapping[str, Any]
    checkpoint: Mapping[str, Any] | None
    lease_s: float | None
    lease_expires_at: str | None
    run_ends_at: str | None

    @classmethod
    def of(cls, execution: Execution, step_key: str) -> Claimed:
        step = execution.step(step_key)
        assert step.worker is not None
        return cls(
            execution_id=execution.uuid,
            pipeline_type=execution.definition.type,
            message_id=execution.message_id,
            step_name=step.name,
            step_key=step.key,
            parameter=step.parameter,
            attempt=step.attempt,
            worker_id=step.worker,
            data=execution.data,
            params=step.params,
            checkpoint=step.checkpoint,
            lease_s=step.spec.lease_s,
            lease_expires_at=None if step.lease_ends_at is None else timestamp(step.lease_ends_at),
            run_ends_at=None if step.run_ends_at is None else timestamp(step.run_ends_at),
        )


class Claims:
    def __init__(
        self,
        *,
        executions: Executions,
        clock: Clock,
        feed: Feed,
        hold: Hold,
    ) -> None:
        self._executions = executions
        self._clock = clock
        self._feed = feed
        self._hold = hold
        self._taking: set[tuple[int, str]] = set()
        self._waiting: dict[asyncio.Event, str] = {}
        self._listening: asyncio.Task[None] | None = None
        self._giving_back: set[asyncio.Task[None]] = set()

    async def __call__(
        self,
        step_name: str,
        worker_id: str,
        *,
        pipeline_type: str | None = None,
        wait_s: float = 0.0,
    ) -> Claimed | None:
        """The attempt that has waited longest for a worker; None if none does within ``wait_s``.

        Each is handed to one worker only. Nothing is while the engine is held. Raises
        ``InvalidInput``; ``Unavailable`` once Rushes stops.
        """
        _check(step_name, worker_id, pipeline_type, wait_s)
        ends_at = self._clock.monotonic() + wait_s
        claimed = await self._take(step_name, worker_id, pipeline_type)
        if claimed is not None or wait_s == 0:
            return claimed
        # Heard from before it is looked for again, so that nothing is missed in between.
        async with self._heard(step_name) as woken:
            while True:
                woken.clear()
                claimed = await self._take(step_name, worker_id, pipeline_type)
                left_s = ends_at - self._clock.monotonic()
                if claimed is not None or left_s <= 0:
                    return claimed
                if self._listening is None or self._listening.done():
                    raise Unavailable("the server is stopping")
                held = self._hold.held_at is not None
                await self._sleep(woken, min(left_s, LOOK_AGAIN_S) if held else left_s)

    async def _take(
        self, step_name: str, worker_id: str, pipeline_type: str | None
    ) -> Claimed | None:
        while self._hold.held_at is None:
            found = await self._executions.unclaimed(step_name, pipeline_type, CANDIDATES)
            free = [each for each in found if each not in self._taking]
            for each in free:
                if each in self._taking:
                    continue
                with suppress(Conflict, NotFound):  # somebody was first, or nobody wants it now
                    return await self._claim(*each, worker_id)
            if not free and len(found) < CANDIDATES:
                return None  # otherwise all of them are being taken, and there may be more
        return None

    async def _claim(self, execution_id: int, step_key: str, worker_id: str) -> Claimed:
        now = self._clock.now()
        self._taking.add((execution_id, step_key))
        storing = asyncio.ensure_future(
            self._executions.update(execution_id, lambda e: e.claim(step_key, worker_id, at=now))
        )
        try:
            execution = await asyncio.shield(storing)
        except asyncio.CancelledError:
            giving_back = asyncio.create_task(self._give_back(storing, execution_id, step_key))
            self._giving_back.add(giving_back)
            giving_back.add_done_callback(self._giving_back.discard)
            await asyncio.shield(giving_back)
            raise
        except Unavailable:
            self._wake(step_key.partition(":")[0])  # others have left it to this one
            raise
        finally:
            self._taking.discard((execution_id, step_key))
        return Claimed.of(execution, step_key)

    async def _give_back(
        self, storing: asyncio.Future[Execution], execution_id: int, step_key: str
    ) -> None:
        """Nobody is there any more to have it. Where that can't be stored, its lease is left."""
        with suppress(RushesError):
            attempt = (await storing).step(step_key).attempt
            now = self._clock.now()
            await self._executions.apply(
                execution_id, lambda execution: execution.release(step_key, attempt, at=now)
            )

    # -- waiting -----------------------------------------------------------------

    @asynccontextmanager
    async def _heard(self, step_name: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when a step of this name may have become claimable."""
        woken = asyncio.Event()
        self._waiting[woken] = step_name
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen(self._feed.last_id))
        try:
            yield woken
        finally:
            del self._waiting[woken]
            if not self._waiting and self._listening is not None:
                self._listening.cancel()
                self._listening = None

    async def _listen(self, since: int) -> None:
        """One follower for all that wait. When it has ended, they are told."""
        try:
            while True:
                with suppress(FactsGone):  # it has fallen behind what is kept: begin anew
                    async with aclosing(self._feed.follow(since)) as entries:
                        async for entry in entries:
                            self._tell(entry.message.type, entry.message.data)
                    return
                since = self._feed.last_id
                self._wake(None)
        except RushesError:
            return  # the store is closing
        finally:
            self._wake(None)

    def _tell(self, type: str, data: Mapping[str, Any]) -> None:
        if type == StepStarted.type:
            self._wake(str(data["step_name"]))
        elif type in (PipelineResumed.type, PipelineRetried.type):
            self._wake(None)

    def _wake(self, step_name: str | None) -> None:
        for woken, wanted in self._waiting.items():
            if step_name in (None, wanted):
                woken.set()

    async def _sleep(self, woken: asyncio.Event, seconds: float) -> None:
        waking = asyncio.create_task(woken.wait())
        timer = asyncio.create_task(self._clock.sleep(seconds))
        try:
            await asyncio.wait({waking, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
            timer.cancel()


def _check(step_name: str, worker_id: str, pipeline_type: str | None, wait_s: float) -> None:
    if not STEP_NAME.match(step_name):
        raise InvalidInput(f"{step_name!a} is no step's name", field="step_name")
    if pipeline_type is not None and not PIPELINE_TYPE.match(pipeline_type):
        raise InvalidInput(f"{pipeline_type!a} is no pipeline's type", field="pipeline_type")
    if not 0 < len(worker_id) <= MAX_WORKER_ID:
        raise InvalidInput(
            f"worker_id must have 1 to {MAX_WORKER_ID} characters, not {len(worker_id)}",
            field="worker_id",
        )
    for character in worker_id:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise InvalidInput(
                f"worker_id holds a character that can't be shown: {character!a}",
                field="worker_id",
            )
    if not math.isfinite(wait_s) or not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidInput(
            f"wait_s must be from 0 to {MAX_WAIT_S:g}, not {wait_s:g}", field="wait_s"
        )
