"""Handlers that do as they are told: what stands in for a step in a test.

A *script* is a row of turns. The first attempt of a step takes the first, the next
attempt the next, and the last turn is for all that follow. In a family each step goes
through the script by itself.

    script(fails("no such card"), fails("still none"), returns({"clips": 3}))
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from application.authoring import (
    Handler,
    PermanentError,
    StepContext,
    StepError,
    runs_on_loop,
)
from application.ports import AttemptRef

Output = Mapping[str, Any] | None


class Turn(Protocol):
    """What one attempt does."""

    async def play(self, context: StepContext) -> Output: ...


class _Returns:
    def __init__(self, output: Output) -> None:
        self._output = output

    async def play(self, context: StepContext) -> Output:
        return self._output


class _Raises:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def play(self, context: StepContext) -> Output:
        raise self._error.with_traceback(None)


class _Does:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def play(self, context: StepContext) -> Output:
        returned: Any
        if runs_on_loop(self._handler):
            returned = self._handler(context)
        else:
            returned = await asyncio.to_thread(self._handler, context)
        if inspect.isawaitable(returned):
            returned = await returned
        found: Output = returned
        return found


class Hang:
    """Attempts that get this turn hang in it, until they are told to end or let go."""

    def __init__(self, first: Turn, then: Turn, *, deaf: bool) -> None:
        self._first = first
        self._then = then
        self._deaf = deaf
        self._gate = asyncio.Event()
        self.hanging: set[AttemptRef] = set()

    def let_go(self) -> None:
        """Whoever hangs here goes on with ``then``, and so does whoever comes later."""
        self._gate.set()

    def rewind(self) -> None:
        """Whoever comes hangs again."""
        self._gate = asyncio.Event()
        self.hanging.clear()

    async def play(self, context: StepContext) -> Output:
        await self._first.play(context)
        self.hanging.add(context.ref)
        try:
            await self._hang()
        finally:
            self.hanging.discard(context.ref)
        return await self._then.play(context)

    async def _hang(self) -> None:
        while not self._gate.is_set():
            try:
                await self._gate.wait()
            except asyncio.CancelledError:
                if not self._deaf:
                    raise


class Script:
    """A handler that plays turns. ``calls``: the contexts it was called with, in order."""

    def __init__(self, turns: tuple[Turn, ...]) -> None:
        if not turns:
            raise ValueError("a script needs at least one turn")
        self._turns = turns
        self._played: Counter[tuple[int, str]] = Counter()
        self.calls: list[StepContext] = []

    async def __call__(self, context: StepContext) -> Output:
        step = (context.ref.execution_id, context.ref.step_key)
        turn = self._turns[min(self._played[step], len(self._turns) - 1)]
        self._played[step] += 1
        self.calls.append(context)
        return await turn.play(context)

    @property
    def attempts(self) -> list[int]:
        """The attempts it was called for, in order."""
        return [context.attempt for context in self.calls]

    def rewind(self) -> None:
        """Begin again; what a new test bed does with the scripts that it is given."""
        self._played.clear()
        self.calls.clear()
        for turn in self._turns:
            if isinstance(turn, Hang):
                turn.rewind()

    def hangs_in(self, ref: AttemptRef) -> bool:
        """Whether the attempt waits here for nothing but to be told or let go."""
        return any(isinstance(turn, Hang) and ref in turn.hanging for turn in self._turns)

    def let_go(self) -> None:
        for turn in self._turns:
            if isinstance(turn, Hang):
                turn.let_go()


def script(*turns: Turn) -> Script:
    """A handler: the first attempt of a step plays the first turn, and so on."""
    return Script(turns)


def returns(output: Output = None) -> Turn:
    """The attempt completes with this output."""
    return _Returns(output)


def fails(reason: str = "scripted to fail", *, permanent: bool = False) -> Turn:
    """The attempt fails; ``permanent``: no other one follows by itself."""
    return _Raises(PermanentError(reason) if permanent else StepError(reason))


def raises(error: BaseException) -> Turn:
    """The attempt fails with an error of your own, as a bug would."""
    return _Raises(error)


def does(handler: Handler) -> Turn:
    """The attempt does what this function does, blocking or not: your own step, for one."""
    return _Does(handler)


def hangs(then: Turn | None = None, *, first: Turn | None = None, deaf: bool = False) -> Hang:
    """The attempt hangs until its time is over, it is cancelled, or ``let_go()`` is called.

    Time doesn't wait for it. ``first``: what it does before it hangs (leave a checkpoint,
    for one); ``then``: what it does once it is let go. ``deaf``: it doesn't hear that it is
    to end, as a worker that everybody has given up.
    """
    return Hang(first or returns(), then or returns(), deaf=deaf)
