"""How often one address may ask, and how much of what there is it may have at once.

How often is a bucket of tokens for each, over HTTP and gRPC together.

A bucket fills at the rate and holds a few seconds' worth of it, so a page that asks for
many things at once is no flood. While no token locks the door only this machine can be
asking, and it may as often as it likes.

Failures to show who asks have a bucket of their own, which fills slowly. It is only looked
at when one has failed: whoever shows a good token is let in, whatever a neighbour does.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from functools import lru_cache
from math import ceil

from application.access import Access
from application.ports import Clock
from domain.errors import RushesError, TooManyRequests, Unauthenticated

BURST_S = 4
"""How much of the rate may be asked for at once, after a silence."""

FAILURES = 20
"""At once: a detector, a page and a person who all still have an old token."""

FAILURES_A_MINUTE = 10
"""From then on. Nobody guesses 256 bits; this keeps a flood cheap."""

SHARE = 8
"""One address may have an eighth of all there is, so that it takes eight to take it all. This
machine may have it all: a proxy in front of us has everybody's."""

MAX_ADDRESSES = 10_000
"""Remembered at once. Whoever has been silent for a while is as good as new, and forgotten."""


class Buckets:
    """One for each address, of ``size``, filled by ``rate`` a second."""

    def __init__(self, rate: float, size: float, clock: Clock) -> None:
        self._rate = rate
        self._size = size
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> float:
        """0 if there was one to take, else the seconds until there is."""
        now = self._clock.monotonic()
        left, at = self._left.get(address, (self._size, now))
        left = min(self._size, left + (now - at) * self._rate)
        if left < 1:
            self._left[address] = (left, now)
            return (1 - left) / self._rate
        if len(self._left) >= MAX_ADDRESSES:
            self._forget(now)
        self._left[address] = (left - 1, now)
        return 0.0

    def _forget(self, now: float) -> None:
        full_before = now - self._size / self._rate
        self._left = {each: left for each, left in self._left.items() if left[1] > full_before}
        if len(self._left) >= MAX_ADDRESSES:
            self._left.clear()  # more than a house has: rather too kind than without bound


class Rates:
    """``rate``: requests a second from one address; 0: any number."""

    def __init__(self, rate: int, access: Access, clock: Clock) -> None:
        self._rate = rate
        self._access = access
        self._asked = Buckets(rate or 1, (rate or 1) * BURST_S, clock)
        self._failed = Buckets(FAILURES_A_MINUTE / 60, FAILURES, clock)

    @property
    def apply(self) -> bool:
        """Whether others than this machine may be asking."""
        return self._access.locked

    def ask(self, address: str) -> None:
        """One request more. Raises ``TooManyRequests``."""
        if not self._rate:
            return
        wait_s = self._asked.take(client_of(address))
        if wait_s:
            raise TooManyRequests(
                f"{address} asks more than {self._rate} times a second", ceil(wait_s)
            )

    def refused(self, error: RushesError, address: str) -> RushesError:
        """What a request is answered that failed with ``error``."""
        return self.failed(address) or error if isinstance(error, Unauthenticated) else error

    def failed(self, address: str) -> TooManyRequests | None:
        """Somebody could not say who they are; what they are told if that is once too often."""
        wait_s = self._failed.take(client_of(address))
        if not wait_s:
            return None
        return TooManyRequests(
            f"too many requests without a good token from {address}", ceil(wait_s)
        )


class Shares:
    """Of ``most``, each address its share."""

    def __init__(self, most: int) -> None:
        self.each = max(1, most // SHARE)
        self._taken: Counter[str] = Counter()

    def take(self, address: str) -> bool:
        """One more, if it may."""
        client = _counted(address)
        if not client:
            return True
        if self._taken[client] >= self.each:
            return False
        self._taken[client] += 1
        return True

    def give_back(self, address: str) -> None:
        """One that was taken."""
        client = _counted(address)
        if client:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]


def _counted(address: str) -> str:
    """Whose share it comes off; empty for this machine, which may have all."""
    client = client_of(address)
    return "" if client.startswith("127.") or client == "::/64" else client


@lru_cache(maxsize=4_096)
def client_of(address: str) -> str:
    """Whose bucket it is: of IPv6, a household has a whole /64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))
