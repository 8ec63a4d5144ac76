"""How far a copy is, how fast it goes, and how long it may take yet."""

from __future__ import annotations

import math
from threading import Lock

from adapters.steps.rate import Rate
from application.authoring import StepContext
from application.ports import Clock
from domain.footage import CardFile, shown

TELL_EVERY_S = 0.05
"""More often than anybody is told; of small files there are thousands a second."""


class Progress:
    """How far it is by bytes read and read back, so that verifying moves it as copying does.

    Told from several threads.
    """

    def __init__(self, context: StepContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self._lock = Lock()
        self._open: dict[bytes, int] = {}
        self._usual = 0
        self._unusual: dict[bytes, int] = {}
        self._work = self._done = 0
        self._files_total = self._files_done = self._bytes_total = 0
        self._rate = Rate()
        self._told_at = -math.inf

    def expect(self, file: CardFile, *, readings: int) -> None:
        """So often its bytes will pass by; one more, so that empty files count for something."""
        self._usual = self._usual or readings
        if readings != self._usual:  # of a large card there is too much to keep for each file
            self._unusual[file.path] = readings
        self._work += self._expected(file)
        self._files_total += 1
        self._bytes_total += file.size_bytes

    def moved(self, file: CardFile, count: int) -> None:
        with self._lock:
            # Reading again after a mismatch is no progress.
            left = self._open.get(file.path)
            if left is None:
                left = self._expected(file)
            step = min(count, left)
            self._open[file.path] = left - step
            self._done += step
            self._report(file)

    def settle(self, file: CardFile) -> None:
        with self._lock:
            self._done += self._open.pop(file.path, self._expected(file))
            self._files_done += 1
            self._report(file)

    def _expected(self, file: CardFile) -> int:
        return self._unusual.get(file.path, self._usual) * file.size_bytes + 1

    def pause(self) -> None:
        """It stands still; how fast it went before says nothing of how long it will take."""
        with self._lock:
            self._rate = Rate()
            self._context.progress(
                self._done / self._work if self._work else 0.0,
                files_done=self._files_done,
                files_total=self._files_total,
                bytes_done=self._bytes_done(),
                bytes_total=self._bytes_total,
                paused=True,
            )

    def _bytes_done(self) -> int:
        return self._done * self._bytes_total // self._work if self._work else 0

    def _report(self, file: CardFile) -> None:
        now = self._clock.monotonic()
        if now - self._told_at < TELL_EVERY_S and self._files_done < self._files_total:
            return
        self._told_at = now
        fraction = self._done / self._work
        bytes_done = self._bytes_done()
        self._context.progress(
            fraction,
            files_done=self._files_done,
            files_total=self._files_total,
            bytes_done=bytes_done,
            bytes_total=self._bytes_total,
            file=shown(file.path),
            **self._rate.at(now, bytes_done, self._bytes_total),
        )
