"""Who has a slot, and who waits for one.

A *claim* is what a step needs to run: a slot of its pool, and room in each of its
key limits (one copy per card reader, whichever executions the copies belong to).
A claim that can be met at once is; any other waits, in the order in which they
came, but a higher priority counts as having come earlier: by so many places and no
more, so that whoever waits is overtaken a bounded number of times.

When something is given back it is reserved at once for whoever is the first that it
helps. So what is free is free for everybody: nobody who waits could use it.

A step may hold several claims at a time: a handler that ignored the end of its time
keeps its own while the next attempt has to wait for another.
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

StepId = tuple[int, str]
"""The execution's id and the step's key."""

PLACES = 100
"""By how many places one step of priority moves a claim forward."""


@dataclass(frozen=True, slots=True)
class Claim:
    """limits: ``(what is limited, at most so many)``."""

    pool: str
    limits: tuple[tuple[str, int], ...] = ()
    priority: int = 0


class Pools:
    """Safe to use from several threads; nothing is done under its lock but counting."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._lock = threading.Lock()
        self._free = dict(sizes)
        self._limited: Counter[str] = Counter()
        self._held: dict[StepId, list[Claim]] = {}
        self._reserved: dict[StepId, Claim] = {}
        self._waiting: list[tuple[int, StepId, Claim]] = []  # in the order of service
        self._waits: set[StepId] = set()
        self._arrivals = 0
        self._closed = False

    def names(self) -> frozenset[str]:
        return frozenset(self._free)

    def hold(self) -> None:
        """Nobody gets anything until ``go_on``; what is held stays held."""
        with self._lock:
            self._closed = True

    def go_on(self) -> Sequence[StepId]:
        """Who can have something now is to be asked to start."""
        with self._lock:
            self._closed = False
            return self._serve(None)

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._waiting)

    def admit(self, step_id: StepId, claim: Claim) -> bool:
        """Whether it has what it needs; if not, it waits from now on, once."""
        with self._lock:
            reserved = self._reserved.pop(step_id, None)
            if reserved is None:
                if step_id in self._waits:
                    return False
                if self._closed or not self._is_free(claim):
                    self._arrivals += 1
                    place = self._arrivals - PLACES * claim.priority
                    bisect.insort(self._waiting, (place, step_id, claim), key=lambda w: w[0])
                    self._waits.add(step_id)
                    return False
                self._take(claim)
            self._held.setdefault(step_id, []).append(reserved or claim)
            return True

    def release(self, step_id: StepId) -> Sequence[StepId]:
        """One of its claims is given back. Who can have it is to be asked to start."""
        with self._lock:
            claims = self._held.get(step_id)
            if not claims:
                return ()
            claim = claims.pop(0)
            if not claims:
                del self._held[step_id]
            return self._give(claim)

    def give_back(self, step_id: StepId) -> Sequence[StepId]:
        """What was reserved for it isn't needed after all. As ``release``."""
        with self._lock:
            claim = self._reserved.pop(step_id, None)
            return () if claim is None else self._give(claim)

    def _give(self, claim: Claim) -> Sequence[StepId]:
        self._free[claim.pool] += 1
        for name, _ in claim.limits:
            self._limited[name] -= 1
            if not self._limited[name]:
                del self._limited[name]
        return self._serve(claim)

    def _serve(self, given: Claim | None) -> Sequence[StepId]:
        """Reserve what is free for those who wait; ``given`` is all that is new, if it is known."""
        if self._closed:
            return ()
        following = []
        for index, (_, step_id, wanted) in enumerate(self._waiting):
            if self._is_free(wanted):
                self._take(wanted)
                self._reserved[step_id] = wanted
                self._waits.discard(step_id)
                following.append(index)
            if given is not None and not given.limits and not self._free[given.pool]:
                break  # nobody further back can be helped by a slot that is taken again
        taken = [self._waiting[index][1] for index in following]
        for index in reversed(following):
            del self._waiting[index]
        return taken

    def _is_free(self, claim: Claim) -> bool:
        return self._free[claim.pool] > 0 and all(
            self._limited[name] < at_once for name, at_once in claim.limits
        )

    def _take(self, claim: Claim) -> None:
        self._free[claim.pool] -= 1
        for name, _ in claim.limits:
            self._limited[name] += 1
