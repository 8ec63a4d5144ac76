"""The audit: a line in the log for whatever is refused, and whatever changes something.

Who, from where, what, of which execution, and what came of it; the same on every surface.
No secret, ticket or query string ever comes here, and what clients choose is quoted, so
that a line is a line. Who is refused again and again fills no disk: after a while there
is a count in place of the lines.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass

from application.ports import Clock
from domain.access import Principal

log = logging.getLogger("rushes.audit")

REFUSALS = 20
"""Lines about one client in one window: a person's slips are all there, a program's are not."""

WINDOW_S = 60.0

MAX_CLIENTS = 1_000
"""That are told apart in one window. More share one count: they are an attack, not a house."""

MAX_SHOWN = 200
"""Characters of anything that a client chooses."""

_Client = tuple[str, str]
"""Who, and from where: what nobody does hides nothing that somebody does at the same address."""

_OTHERS: _Client = ("who=others", "others")

_PLAIN = re.compile(r"[\w.:/-]+", re.ASCII)


@dataclass(slots=True)
class _Window:
    began_s: float
    count: int = 0


class Audit:
    """Lives on one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[_Client, _Window] = {}

    def note(
        self,
        who: Principal | None,
        where: str,
        what: str,
        outcome: object,
        *,
        refused: bool,
        execution: object = None,
    ) -> None:
        """``who``: None for somebody who isn't known. ``where``: an address, without its port.

        what: a method with its path, a method of gRPC, or a message's type.
        """
        if not log.isEnabledFor(logging.INFO):
            return
        client = (_named(who), where)
        self.count_up()
        if refused and self._is_one_too_many(client):
            return
        said = [client[0], f"from={_shown(where)}", f"what={_shown(what)}"]
        if execution is not None:
            said.append(f"execution={_shown(execution)}")
        said.append(f"outcome={_shown(outcome)}")
        log.info(" ".join(said))

    async def run(self) -> None:
        """Until it is cancelled: no count is told later than a minute after its window."""
        try:
            while True:
                await self._clock.sleep(WINDOW_S)
                self.count_up()
        finally:
            self.count_up(all_of_them=True)

    def count_up(self, *, all_of_them: bool = False) -> None:
        """Say what was not said, of the windows that are over."""
        now = self._clock.monotonic()
        while self._windows:  # they stand in the order in which they began
            (who, where), window = next(iter(self._windows.items()))
            if now - window.began_s < WINDOW_S and not all_of_them:
                return
            del self._windows[who, where]
            if window.count > REFUSALS:
                times = window.count - REFUSALS
                log.info("%s from=%s outcome=refused more_times=%d", who, _shown(where), times)

    def _is_one_too_many(self, client: _Client) -> bool:
        if client not in self._windows and len(self._windows) >= MAX_CLIENTS:
            client = _OTHERS
        window = self._windows.setdefault(client, _Window(self._clock.monotonic()))
        window.count += 1
        return window.count > REFUSALS


def _named(who: Principal | None) -> str:
    if who is None:
        return "who=nobody"
    token = "" if who.token_id is None else f" token={who.token_id}"
    role = "" if who.role is None else f" role={who.role}"
    return f"who={_shown(who.name)}{token}{role}"


def _shown(value: object) -> str:
    text = str(value)[:MAX_SHOWN]
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
