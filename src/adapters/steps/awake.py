"""Keeps the machine from going to sleep while a card is worked on.

A laptop on a cart is nobody's to touch for an hour, so it would sleep in the midst of a
copy. Systems have a program that holds that off for as long as it runs; where there is none,
or it isn't allowed to, the copy goes on as it did, and a sleep costs time and nothing else.

The program mustn't outlive us, however we end: one waits for the end of its input, which
the system closes with us, the other watches our process by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from application.authoring import StepContext

ENDS_WITHIN_S = 2.0
"""It has only to close a connection to its service."""

_PROGRAMS = {
    "linux": (
        *("systemd-inhibit", "--what=sleep:idle", "--mode=block", "--who=Rushes"),
        *("--why=A card is being copied", "cat"),
    ),
    "darwin": ("caffeinate", "-i", "-m", "-s", "-w", "{pid}"),
}


class Awake:
    """Held by any number of steps at a time; one program runs for all of them."""

    def __init__(self, platform: str = sys.platform) -> None:
        self._program = _PROGRAMS.get(platform)
        self._lock = Lock()
        self._holders = 0
        self._child: subprocess.Popen[bytes] | None = None

    def during(self, handler: Callable[[StepContext], Any]) -> Callable[[StepContext], Any]:
        """The same handler, while it is held."""

        def held(context: StepContext) -> Any:
            with self:
                return handler(context)

        return held

    def __enter__(self) -> Awake:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._child = self._start()
        return self

    def __exit__(self, *of_the_block: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._child is not None:
                _end(self._child)
                self._child = None

    def _start(self) -> subprocess.Popen[bytes] | None:
        if self._program is None:
            return None
        name, *arguments = (each.format(pid=os.getpid()) for each in self._program)
        path = shutil.which(name)
        if path is None:
            return None
        with suppress(OSError):
            return subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is for us to answer
            )
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        assert child.stdin is not None
        child.stdin.close()
    child.terminate()
    try:
        child.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
