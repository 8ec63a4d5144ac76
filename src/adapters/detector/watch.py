"""Which mounts have come, have settled, and have gone: no clock, no files, only the rules.

A mount is there before its card can be read, and some are there before their files are.
So a card is ready when two looks at its root, with a while in between, find the same; an
empty root has to stay so for longer. Each mounting is ready once. One that goes before
that has never been a card to anybody; one that was ready and goes is removed, and what
comes to its place after it is a new mounting.

Only after a restart that isn't so sure. A service has a mount namespace of its own, and
in the next one every mount is another mounting. So what is found then at the place of
one that was ready before is in doubt until it is ready, and whoever knows what was on
the card at that time decides whether this is it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapters.detector.mounts import Mount
from adapters.detector.volume import Look

LOOK_EVERY_S = 0.5
"""Between two looks at a root that has not settled."""

QUIET_S = 1.0
"""How long a root has to look the same. Whoever copies on a card shows in its free room."""

EMPTY_QUIET_S = 5.0
"""How long an empty one has to: a freshly formatted card, or one whose files are still to come."""

PATIENCE_S = 15.0
"""After this the user is told what a card that isn't ready is waiting for."""


@dataclass(frozen=True, slots=True)
class Appeared:
    mount: Mount


@dataclass(frozen=True, slots=True)
class Ready:
    """before: the key of what was ready at this path before a restart; maybe the same card."""

    mount: Mount
    look: Look
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Stayed:
    """It was ready before a restart, and is there still."""

    mount: Mount


@dataclass(frozen=True, slots=True)
class Waiting:
    """It isn't ready yet, and why; said once of a mounting."""

    mount: Mount
    why: str


@dataclass(frozen=True, slots=True)
class Vanished:
    """It has gone before it was ready."""

    mount: Mount


@dataclass(frozen=True, slots=True)
class Removed:
    """It has gone after it was ready, maybe while nobody looked."""

    key: str
    path: str


Event = Appeared | Ready | Stayed | Waiting | Vanished | Removed


@dataclass(slots=True)
class _Settling:
    mount: Mount
    since: float
    look_at: float
    looking: bool = False
    last: Look | None = None
    unchanged_since: float = 0.0
    problem: str = "it doesn't answer"
    told: bool = False
    before: str | None = None


class Watch:
    """``ready``: the mountings that were ready before, by key, with their paths."""

    def __init__(self, ready: Mapping[str, str]) -> None:
        self._ready = dict(ready)
        self._settling: dict[str, _Settling] = {}
        self._restarted = True

    @property
    def settled(self) -> bool:
        """Whether every mount that is there is ready."""
        return not self._settling

    @property
    def unsettled(self) -> list[tuple[Mount, str]]:
        """Those that aren't, and why."""
        return [(each.mount, each.problem) for each in self._settling.values()]

    def see(self, mounts: Iterable[Mount], now: float) -> list[Event]:
        """The mounts that are there now, all of them."""
        there = {mount.key: mount for mount in mounts}
        events: list[Event] = []
        # What has gone is told first: a card that comes back is a new mounting at an old path.
        in_doubt: dict[str, str] = {}
        places = {mount.path for mount in there.values() if mount.key not in self._ready}
        for key in [key for key in self._ready if key not in there]:
            path = self._ready.pop(key)
            if self._restarted and path in places and path not in in_doubt:
                in_doubt[path] = key
            else:
                events.append(Removed(key, path))
        for key in [key for key in self._settling if key not in there]:
            gone = self._settling.pop(key)
            events.append(Vanished(gone.mount))
            if gone.before is not None:
                events.append(Removed(gone.before, gone.mount.path))
        for key, mount in there.items():
            if key in self._ready and self._restarted:
                events.append(Stayed(mount))
            if key not in self._ready and key not in self._settling:
                before = in_doubt.get(mount.path)
                self._settling[key] = _Settling(mount, since=now, look_at=now, before=before)
                events.append(Appeared(mount))
        self._restarted = False
        return events

    def due(self, now: float) -> list[Mount]:
        """Those to be looked at now; each waits for ``looked`` before it is due again."""
        due = [s for s in self._settling.values() if not s.looking and s.look_at <= now]
        for settling in due:
            settling.looking = True
        return [settling.mount for settling in due]

    def looked(self, mount: Mount, found: Look | str, now: float) -> list[Event]:
        """What a look has found, or why it couldn't."""
        settling = self._settling.get(mount.key)
        if settling is None:  # it has gone meanwhile
            return []
        settling.looking = False
        settling.look_at = now + LOOK_EVERY_S
        if isinstance(found, str):
            settling.last, settling.problem = None, found
            return []
        if settling.last is None or settling.last.state != found.state:
            settling.unchanged_since = now
            settling.problem = "what lies on it is still changing"
        settling.last = found
        if now - settling.unchanged_since < (EMPTY_QUIET_S if found.empty else QUIET_S):
            return []
        del self._settling[mount.key]
        self._ready[mount.key] = mount.path
        return [Ready(mount, found, settling.before)]

    def overdue(self, now: float) -> list[Event]:
        """Those that have kept everybody waiting for too long, once each."""
        events: list[Event] = []
        for settling in self._settling.values():
            if not settling.told and now - settling.since >= PATIENCE_S:
                settling.told = True
                events.append(Waiting(settling.mount, settling.problem))
        return events

    def next_at(self) -> float | None:
        """When something is due if nothing happens before."""
        times = [s.look_at for s in self._settling.values() if not s.looking]
        times += [s.since + PATIENCE_S for s in self._settling.values() if not s.told]
        return min(times, default=None)
