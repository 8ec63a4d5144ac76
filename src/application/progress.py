"""How far the running attempts have come: the one place that knows it between commits.

Progress isn't worth a commit. It is noted here, told to followers a few times a
second, given to the execution with the next commit that happens anyway, and
laid over the committed state when somebody asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count
from typing import Any

from application.feed import Feed, StepProgress
from application.json_values import json_object
from application.ports import AttemptRef, Clock, Live, Started, Threads
from domain.errors import InvalidInput

MAX_DETAIL_BYTES = 16 * 1024
"""As JSON: every follower gets it four times a second, of every step that runs."""

TELL_EVERY_S = 0.25
"""Four times a second a step: as often as an eye follows a bar."""


class ProgressBoard:
    def __init__(self, feed: Feed, clock: Clock, threads: Threads) -> None:
        self._feed = feed
        self._clock = clock
        self._threads = threads
        self._running: dict[int, dict[str, tuple[int, float]]] = {}
        self._details: dict[AttemptRef, dict[str, Any]] = {}
        self._told_at: dict[AttemptRef, float] = {}
        self._stamps: dict[int, int] = {}
        self._next_stamp = count(1)

    def begin(self, ref: AttemptRef) -> None:
        """From now on this attempt is known to run, and an earlier one isn't any more."""
        attempt, _ = self._running.get(ref.execution_id, {}).get(ref.step_key, (ref.attempt, 0.0))
        if attempt != ref.attempt:
            self.end(ref._replace(attempt=attempt))
        self._running.setdefault(ref.execution_id, {}).setdefault(ref.step_key, (ref.attempt, 0.0))
        self._stamps[ref.execution_id] = next(self._next_stamp)

    def end(self, ref: AttemptRef) -> None:
        """What it still says is dropped. An attempt that has been replaced ends nothing."""
        self._details.pop(ref, None)
        self._told_at.pop(ref, None)
        steps = self._running.get(ref.execution_id, {})
        if ref.step_key in steps and steps[ref.step_key][0] == ref.attempt:
            del steps[ref.step_key]
            self._stamps[ref.execution_id] = next(self._next_stamp)
            if not steps:
                del self._running[ref.execution_id]
                del self._stamps[ref.execution_id]

    def note(
        self,
        started: Started,
        fraction: float,
        detail: Mapping[str, Any],
        *,
        at_once: bool = False,
    ) -> None:
        """Note it, and tell the followers if it is time, or ``at_once``. From any thread.

        Raises ``InvalidInput`` for a fraction that is no number, or a detail that is no
        JSON; a fraction outside 0 to 1 is brought inside, and it never goes back within
        an attempt.
        """
        try:
            fraction = float(fraction)
        except (TypeError, ValueError, OverflowError):
            raise InvalidInput("progress must be a number", field="fraction") from None
        ref = started.ref
        steps = self._running.get(ref.execution_id, {})
        attempt, before = steps.get(ref.step_key, (0, 0.0))
        if attempt != ref.attempt or not math.isfinite(fraction):
            return
        noted = max(before, min(max(fraction, 0.0), 1.0))
        steps[ref.step_key] = (attempt, noted)
        now = self._clock.monotonic()
        if at_once or now - self._told_at.get(ref, -math.inf) >= TELL_EVERY_S:
            self._told_at[ref] = now
            told = json_object(detail, "progress detail", limit_bytes=MAX_DETAIL_BYTES)
            self._details[ref] = told
            self._threads.on_loop(lambda: self._tell(started, noted, told))
        # After what it stands for: whoever reads the stamp first has shown too little at worst.
        if ref.execution_id in self._stamps:
            self._stamps[ref.execution_id] = next(self._next_stamp)

    def of(self, execution_id: int) -> Live:
        return dict(self._running.get(execution_id, {}))

    def stamp(self, execution_id: int) -> int:
        """Another number after each change of ``of`` or ``detail``; 0 where nothing runs."""
        return self._stamps.get(execution_id, 0)

    def detail(self, ref: AttemptRef) -> Mapping[str, Any]:
        """What the attempt said last, beside its fraction."""
        return self._details.get(ref, {})

    def _runs(self, ref: AttemptRef) -> bool:
        noted = self._running.get(ref.execution_id, {}).get(ref.step_key)
        return noted is not None and noted[0] == ref.attempt

    def _tell(self, started: Started, fraction: float, detail: dict[str, Any]) -> None:
        ref = started.ref
        if not self._runs(ref):
            return
        data: dict[str, Any] = {"execution_id": started.execution.uuid}
        if started.execution.message_id is not None:
            data["message_id"] = started.execution.message_id
        data["step_name"] = started.step.name
        data["step_key"] = ref.step_key
        data["attempt"] = ref.attempt
        data["progress"] = round(100 * fraction, 1)
        data["detail"] = detail
        self._feed.tell(StepProgress(ref.execution_id, data, self._clock.now()))
