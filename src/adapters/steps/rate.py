"""How fast bytes go by, as far as that can be said."""

from __future__ import annotations

from collections import deque

RATE_OVER_S = 5.0
"""Long enough to be steady, short enough that a slow disk is seen."""


class Rate:
    """Over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def at(self, now: float, bytes_done: int, bytes_total: int) -> dict[str, int]:
        """``bytes_per_s`` and ``seconds_left``; nothing while they can't be said.

        now: a stop-watch's seconds.
        """
        if not self._samples or now - self._samples[-1][0] >= RATE_OVER_S / 20:
            self._samples.append((now, bytes_done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_OVER_S:
            self._samples.popleft()
        began, before = self._samples[0]
        if now - began < RATE_OVER_S / 10 or bytes_done <= before:
            return {}
        rate = (bytes_done - before) / (now - began)
        return {
            "bytes_per_s": int(rate),
            "seconds_left": int((bytes_total - bytes_done) / rate + 0.5),
        }
