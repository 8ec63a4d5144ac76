"""What is over for long enough is forgotten, a little at a time.

Executions go with their steps and events. Jobs and the ledger of imported files stay,
so that a card is known for ever.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from application.ports import Clock, Executions
from domain.errors import RushesError

log = logging.getLogger(__name__)

BATCH = 100
"""Executions that go in one commit: some 10 ms, for which other commits wait."""

PAUSE_S = 0.1
"""Between two commits: nine tenths of the time belong to who has work to do."""

EVERY_S = 3_600.0
"""How long what is too old may stay: nobody counts the hours of months."""


class Retention:
    """``keep_days``: how long an execution is kept after its last change; 0: for ever."""

    def __init__(self, *, executions: Executions, clock: Clock, keep_days: float) -> None:
        self._executions = executions
        self._clock = clock
        self._keep_days = keep_days

    async def __call__(self) -> int:
        """Forget everything that is too old now; how many executions. Raises ``Unavailable``."""
        if not self._keep_days:
            return 0
        before = self._clock.now() - timedelta(days=self._keep_days)
        forgotten = batch = await self._executions.forget(before, BATCH)
        while batch == BATCH:
            await self._clock.sleep(PAUSE_S)
            batch = await self._executions.forget(before, BATCH)
            forgotten += batch
        return forgotten

    async def run(self) -> None:
        """At once and then every hour, whatever fails, until it is cancelled."""
        while self._keep_days:
            try:
                forgotten = await self()
                if forgotten:
                    log.info("%d executions were over for long enough: forgotten", forgotten)
            except RushesError as error:
                log.warning("what is over for long enough stays for now: %s", error)
            except Exception:
                log.exception("what is over for long enough stays for now")
            await self._clock.sleep(EVERY_S)
