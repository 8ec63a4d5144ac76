"""Who has a slot, and who waits for one.

A *claim* is what a step needs to run: a slot of its pool, and room in each of its
key limits (one copy per card reader, whichever executions the copies belong to).
A claim that can be met at once is; any other waits, in the order in which they
came, but a higher priority counts as having come earlier: by so many places and no
more, so that whoever waits is overtaken a bounded number of times.

When something is given back it is reserved at once for whoever is the first that it
helps. So what is free is free for everybody: nobody who waits could use it.

A step may hold several claims at a time: a handler that ignored the end of its time
keeps its own while the next attempt has to wait for another. In the end it is
*abandoned*: others get its slot, which is only a number, but not its room in the key
limits, since its hands are still on the reader.
"""

from __future__ import annotations

import bisect
import heapq
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

StepId = tuple[int, str]
"""The execution's id and the step's key."""

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
        self._held: dict[StepId, list[Claim]] = {}
        self._abandoned: dict[StepId, list[Claim]] = {}
        self._reserved: dict[StepId, Claim] = {}
        # By pool, in the order of service: thousands may wait for one, and a slot of another
        # helps none of them.
        self._waiting: dict[str, list[tuple[int, StepId, Claim]]] = {name: [] for name in sizes}
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
            return len(self._waits)

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
                    waiting = self._waiting[claim.pool]
                    bisect.insort(waiting, (place, step_id, claim), key=lambda w: w[0])
                    self._waits.add(step_id)
                    return False
                self._take(claim)
            self._held.setdefault(step_id, []).append(reserved or claim)
            return True

    def release(self, step_id: StepId) -> Sequence[StepId]:
        """One of its claims is given back. Who can have it is to be asked to start."""
        with self._lock:
            claim = _pop(self._held, step_id)
            return () if claim is None else self._give(claim)

    def abandon(self, step_id: StepId) -> Sequence[StepId] | None:
        """The slot of its oldest claim is free, and its key limits stay taken.

        As ``release``; None, and nothing is free, if its pool has too many abandoned ones.
        """
        with self._lock:
            pool = self._held[step_id][0].pool
            if not self._may_abandon[pool]:
                return None
            claim = _pop(self._held, step_id)
            assert claim is not None
            self._may_abandon[pool] -= 1
            self._abandoned.setdefault(step_id, []).append(claim)
            self._free[pool] += 1
            return self._serve(Claim(pool))

    def release_abandoned(self, step_id: StepId) -> Sequence[StepId]:
        """Its handler has ended after all: as ``release``, of what it had kept."""
        with self._lock:
            claim = _pop(self._abandoned, step_id)
            if claim is None:
                return ()
            self._may_abandon[claim.pool] += 1
            return self._free_limits(claim) if claim.limits else ()

    def give_back(self, step_id: StepId) -> Sequence[StepId]:
        """What was reserved for it isn't needed after all. As ``release``."""
        with self._lock:
            claim = self._reserved.pop(step_id, None)
            return () if claim is None else self._give(claim)

    def _give(self, claim: Claim) -> Sequence[StepId]:
        self._free[claim.pool] += 1
        return self._free_limits(claim)

    def _free_limits(self, claim: Claim) -> Sequence[StepId]:
        for name, _ in claim.limits:
            self._limited[name] -= 1
            if not self._limited[name]:
                del self._limited[name]
        return self._serve(claim)

    def _serve(self, given: Claim | None) -> Sequence[StepId]:
        """Reserve what is free for those who wait; ``given`` is all that is new, if it is known."""
        if self._closed:
            return ()
        only_slot = given is not None and not given.limits
        pools = [given.pool] if given is not None and only_slot else list(self._waiting)
        served = []
        for _, pool, index in heapq.merge(*(self._places(pool) for pool in pools)):
            _, step_id, wanted = self._waiting[pool][index]
            if self._is_free(wanted):
                self._take(wanted)
                self._reserved[step_id] = wanted
                self._waits.discard(step_id)
                served.append((pool, index, step_id))
            if only_slot and not self._free[pool]:
                break  # nobody further back can be helped by a slot that is taken again
        for pool, index, _ in reversed(served):
            del self._waiting[pool][index]
        return [step_id for _, _, step_id in served]

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


def _pop(claims: dict[StepId, list[Claim]], step_id: StepId) -> Claim | None:
    """Its oldest one."""
    held = claims.get(step_id)
    if not held:
        return None
    oldest = held.pop(0)
    if not held:
        del claims[step_id]
    return oldest
