"""Who has a slot, and who waits for one.

A *claim* is what a step needs to run: a slot of its pool, and room in each of its
key limits (one copy per card reader, whichever executions the copies belong to).
A claim that can be met at once is; any other waits, in the order in which they
came, but a higher priority counts as having come earlier: by so many places and no
more, so that whoever waits is overtaken a bounded number of times.

When something is given back it is reserved at once for whoever is the first that it
helps. So what is free is free for everybody: nobody who waits could use it.

Each attempt has a claim of its own: a handler that ignored the end of its time keeps
that while the next attempt of its step has to wait for another, and what they claim may
differ. In the end it is *abandoned*: others get its slot, which is only a number, but
not its room in the key limits, since its hands are still on the reader.
"""

from __future__ import annotations

import bisect
import heapq
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

AttemptId = tuple[int, str, int]
"""The execution's id, the step's key and the attempt's number (``AttemptRef`` is one)."""

PLACES = 100
"""By how many places one step of priority moves a claim forward."""

ABANDONED_PER_SLOT = 1
"""So many abandoned handlers a pool may have for each of its slots, since each keeps a thread.

Where that doesn't do, every handler of a pool has got stuck, and only a restart helps.
"""


def most_at_work(sizes: Mapping[str, int]) -> int:
    """How many handlers there may be at once: one in each slot, and those abandoned."""
    return sum(sizes.values()) * (1 + ABANDONED_PER_SLOT)


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
        self._may_abandon = {name: size * ABANDONED_PER_SLOT for name, size in sizes.items()}
        self._limited: Counter[str] = Counter()
        self._held: dict[AttemptId, Claim] = {}
        self._abandoned: dict[AttemptId, Claim] = {}
        self._reserved: dict[AttemptId, Claim] = {}
        # By pool, in the order of service: thousands may wait for one, and a slot of another
        # helps none of them.
        self._waiting: dict[str, list[tuple[int, AttemptId, Claim]]] = {name: [] for name in sizes}
        self._waits: set[AttemptId] = set()
        self._barred: dict[AttemptId, None] = {}  # a set in the order of coming
        self._arrivals = 0
        self._closed = False

    def names(self) -> frozenset[str]:
        return frozenset(self._free)

    def hold(self) -> None:
        """Nobody gets anything until ``go_on``; what is held stays held."""
        with self._lock:
            self._closed = True

    def go_on(self) -> Sequence[AttemptId]:
        """Who can have something now, or needs nothing, is to be asked to start."""
        with self._lock:
            self._closed = False
            barred, self._barred = self._barred, {}
            # Those whose slots were reserved before the hold are first, as they were then.
            return [*self._reserved, *self._serve(None), *barred]

    @property
    def waiting(self) -> int:
        with self._lock:
            held = len(self._reserved) if self._closed else 0
            return len(self._waits) + len(self._barred) + held

    def queues(self) -> Mapping[str, tuple[int, AttemptId | None]]:
        """By pool: how many wait for a slot, and who is served next."""
        with self._lock:
            return {
                pool: (len(waiting), waiting[0][1] if waiting else None)
                for pool, waiting in self._waiting.items()
            }

    def lets_through(self, attempt: AttemptId) -> bool:
        """Whether what needs nothing may start; if not, it waits for ``go_on`` alone."""
        with self._lock:
            if self._closed:
                self._barred[attempt] = None
            return not self._closed

    def admit(self, attempt: AttemptId, claim: Claim) -> bool:
        """Whether it has what it needs; if not, it waits from now on, once."""
        with self._lock:
            if self._closed and attempt in self._reserved:
                return False
            reserved = self._reserved.pop(attempt, None)
            if reserved is None:
                if attempt in self._waits:
                    return False
                if self._closed or not self._is_free(claim):
                    self._arrivals += 1
                    place = self._arrivals - PLACES * claim.priority
                    waiting = self._waiting[claim.pool]
                    bisect.insort(waiting, (place, attempt, claim), key=lambda w: w[0])
                    self._waits.add(attempt)
                    return False
                self._take(claim)
            self._held[attempt] = reserved or claim
            return True

    def release(self, attempt: AttemptId) -> Sequence[AttemptId]:
        """What it holds is given back. Who can have it is to be asked to start."""
        with self._lock:
            claim = self._held.pop(attempt, None)
            return () if claim is None else self._give(claim)

    def abandon(self, attempt: AttemptId) -> Sequence[AttemptId] | None:
        """Its slot is free, and its key limits stay taken.

        As ``release``; None, and nothing is free, if its pool has too many abandoned ones.
        """
        with self._lock:
            pool = self._held[attempt].pool
            if not self._may_abandon[pool]:
                return None
            self._may_abandon[pool] -= 1
            self._abandoned[attempt] = self._held.pop(attempt)
            self._free[pool] += 1
            return self._serve(Claim(pool))

    def release_abandoned(self, attempt: AttemptId) -> Sequence[AttemptId]:
        """Its handler has ended after all: as ``release``, of what it had kept."""
        with self._lock:
            claim = self._abandoned.pop(attempt, None)
            if claim is None:
                return ()
            self._may_abandon[claim.pool] += 1
            return self._free_limits(claim) if claim.limits else ()

    def give_back(self, attempt: AttemptId) -> Sequence[AttemptId]:
        """What was reserved for it isn't needed after all. As ``release``.

        While all is held it may be needed yet: who it is for wasn't let through.
        """
        with self._lock:
            if self._closed:
                return ()
            claim = self._reserved.pop(attempt, None)
            return () if claim is None else self._give(claim)

    def _give(self, claim: Claim) -> Sequence[AttemptId]:
        self._free[claim.pool] += 1
        return self._free_limits(claim)

    def _free_limits(self, claim: Claim) -> Sequence[AttemptId]:
        for name, _ in claim.limits:
            self._limited[name] -= 1
            if not self._limited[name]:
                del self._limited[name]
        return self._serve(claim)

    def _serve(self, given: Claim | None) -> Sequence[AttemptId]:
        """Reserve what is free for those who wait; ``given`` is all that is new, if it is known."""
        if self._closed:
            return ()
        if not self._waits:
            return []
        only_slot = given is not None and not given.limits
        pools = [given.pool] if given is not None and only_slot else list(self._waiting)
        served = []
        for _, pool, index in heapq.merge(*(self._places(pool) for pool in pools)):
            _, attempt, wanted = self._waiting[pool][index]
            if self._is_free(wanted):
                self._take(wanted)
                self._reserved[attempt] = wanted
                self._waits.discard(attempt)
                served.append((pool, index, attempt))
            if only_slot and not self._free[pool]:
                break  # nobody further back can be helped by a slot that is taken again
        for pool, index, _ in reversed(served):
            del self._waiting[pool][index]
        return [attempt for _, _, attempt in served]

    def _places(self, pool: str) -> Iterator[tuple[int, str, int]]:
        """Who waits for it, in the order of service: place, pool, index."""
        return ((place, pool, index) for index, (place, _, _) in enumerate(self._waiting[pool]))

    def _is_free(self, claim: Claim) -> bool:
        return self._free[claim.pool] > 0 and all(
            self._limited[name] < at_once for name, at_once in claim.limits
        )

    def _take(self, claim: Claim) -> None:
        self._free[claim.pool] -= 1
        for name, _ in claim.limits:
            self._limited[name] += 1
