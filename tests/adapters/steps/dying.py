"""Work that is killed at a given point, in a process of its own: a fork, which costs nothing."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable
from typing import Any


def dies(work: Callable[[], object], point: int, calls: Iterable[tuple[Any, str]]) -> bool:
    """Whether it was killed just before the ``point``-th of these calls; else it came to its end.

    calls: functions that change something on the disk, each by its owner and its name.
    """
    child = os.fork()
    if not child:
        _do(work, point, calls)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed; its traceback is above"
    return False


def _do(work: Callable[[], object], point: int, calls: Iterable[tuple[Any, str]]) -> None:
    left = point

    def mortal(act: Callable[..., Any]) -> Callable[..., Any]:
        def acts(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return acts

    try:
        for owner, name in calls:
            setattr(owner, name, mortal(getattr(owner, name)))
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
