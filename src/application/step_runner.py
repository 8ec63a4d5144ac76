"""Runs one attempt of one step: its handler, its progress, its report.

An attempt ends in exactly one report: completed, failed, or given back because
Rushes is stopping. While the store can't take the report, it is kept and offered
again: an outcome isn't lost because a disk was full for a while. If it can't be
stored for what it says, the step fails with that reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from application.advance import Advance
from application.authoring import Handler, Interrupted, StepContext, StepError, runs_on_loop
from application.catalogue import Catalogue
from application.json_values import json_copy, json_object
from application.ports import Clock, Started, Threads
from application.progress import ProgressBoard
from domain.errors import AttemptOver, InvalidInput, RushesError, Unavailable

log = logging.getLogger(__name__)

REPORT_AGAIN_S = (0.1, 0.5, 1.0, 5.0)
"""How long to wait before a report is offered again; the last one from then on."""


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
        """Ask every running handler to come to an end; they are given back, not failed."""
        self._stopping = True

    def runs_on_loop(self, started: Started) -> bool:
        """Whether the attempt's handler is a coroutine function, which can be cancelled."""
        handler = self._catalogue.handler(started.execution.definition.type, started.step.name)
        return handler is not None and runs_on_loop(handler)

    async def work(self, started: Started) -> Callable[[], Awaitable[None]]:
        """Run the handler to its end; the report that is to be made then.

        Two halves, so that whoever runs attempts can free the slot between them: the
        report's own commit can then start what waits for it. Raises nothing.
        """
        if self._stopping:  # its commit was under way when the stop came
            return self._giving_back(started)
        return await self._work(started)

    async def _work(self, started: Started) -> Callable[[], Awaitable[None]]:
        self._progress.begin(started)
        try:
            outcome = await self._attempt(started)
        except BaseException as error:
            if self._stopping and isinstance(error, Interrupted | asyncio.CancelledError):
                return self._giving_back(started)
            reason = _reason(error)
            return lambda: self._report(started, lambda: self._advance.fail(started.ref, reason))
        output, job_id = outcome
        return lambda: self._report(
            started, lambda: self._advance.complete(started.ref, output, job_id=job_id)
        )

    def _giving_back(self, started: Started) -> Callable[[], Awaitable[None]]:
        return lambda: self._report(started, lambda: self._advance.release(started.ref))

    async def _attempt(self, started: Started) -> tuple[Mapping[str, Any], int | None]:
        execution, step = started.execution, started.step
        handler = self._catalogue.handler(execution.definition.type, step.name)
        if handler is None:
            raise InvalidInput(
                f"this server has no code for step {step.name!r} "
                f"of pipeline {execution.definition.type!r}"
            )
        context = StepContext(
            ref=started.ref,
            execution_id=execution.uuid,
            pipeline_type=execution.definition.type,
            message_id=execution.message_id,
            step_name=step.name,
            data=json_copy(execution.data),
            report=lambda fraction, detail: self._progress.note(started, fraction, detail),
            stopping=lambda: self._stopping,
        )
        returned = await self._call(handler, context)
        output = json_object(
            {} if returned is None else returned, f"the output of step {step.name!r}"
        )
        return output, context.job_id

    async def _call(self, handler: Handler, context: StepContext) -> object:
        if runs_on_loop(handler):
            returned = handler(context)
        else:
            returned = await self._threads.run(lambda: handler(context))
        if isinstance(returned, Awaitable):
            return await returned
        return returned

    async def _report(self, started: Started, report: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._offer(started, report)
        finally:
            self._progress.end(started.ref)

    async def _offer(self, started: Started, report: Callable[[], Awaitable[None]]) -> None:
        tries = 0
        refused = False
        while True:
            try:
                await report()
                return
            except AttemptOver as error:
                log.info("a late report is dropped: %s", error)
                return
            except Unavailable as error:
                if self._stopping:
                    log.warning("stopping before an outcome was stored: %s", error)
                    return
                pause = REPORT_AGAIN_S[min(tries, len(REPORT_AGAIN_S) - 1)]
                tries += 1
                log.warning("the outcome of %s is not stored yet: %s", started.ref, error)
                await self._clock.sleep(pause)
            except Exception as error:
                # What the attempt said can't be stored; that it said so can. Were it left
                # at that, the step would be running for ever with nobody at work on it.
                reason = f"its outcome can't be stored: {_reason(error)}"
                log.error("step %s: %s", started.ref, reason)
                if refused:
                    return
                refused = True
                report = partial(self._advance.fail, started.ref, reason)


def _reason(error: BaseException) -> str:
    """What a person is told: the text of an error made for people, else with its type."""
    try:
        text = str(error)
    except Exception:  # somebody else's __str__: no reason to lose the outcome
        text = ""
    if isinstance(error, RushesError | StepError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
