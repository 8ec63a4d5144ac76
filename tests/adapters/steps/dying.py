"""Work that is killed at a given point, in a process of its own.

It is forked from one that has no threads: from the test's own, with the threads of gRPC
that earlier tests have left, a child would wait for one of them for ever.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import cloudpickle

DEADLINE_S = 60.0

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.adapters.steps.finishing", "tests.adapters.steps.dying"])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """The fakes' locks too: in the other process nobody holds them."""

    dispatch_table: ClassVar = ChainMap(
        {type(threading.Lock()): lambda lock: (threading.Lock, ())},
        cloudpickle.Pickler.dispatch_table,
    )


def killed(work: Callable[[], object]) -> bool:
    """Whether it was killed; else it came to its end. What it changes in memory stays there."""
    pickled = io.BytesIO()
    _Pickler(pickled).dump(work)
    process = _PROCESSES.Process(target=_do, args=(pickled.getvalue(),))
    process.start()
    process.join(DEADLINE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the work has not ended within {DEADLINE_S:g} s")
    assert process.exitcode in (0, -signal.SIGKILL), "the work failed; its traceback is above"
    return process.exitcode != 0


def dies(work: Callable[[], object], point: int, calls: Iterable[tuple[Any, str]]) -> bool:
    """Whether it was killed just before the ``point``-th of these calls; else it came to its end.

    calls: functions that change something on the disk, each by its owner and its name.
    """
    return killed(lambda: _do_until(work, point, calls))


def _do(pickled: bytes) -> None:
    cloudpickle.loads(pickled)()


def _do_until(work: Callable[[], object], point: int, calls: Iterable[tuple[Any, str]]) -> None:
    left = point

    def mortal(act: Callable[..., Any]) -> Callable[..., Any]:
        def acts(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return acts

    for owner, name in calls:
        setattr(owner, name, mortal(getattr(owner, name)))
    work()
