"""What the author of a pipeline imports.

    from application.authoring import Pipeline, StepContext, step

    @step()
    def probe(context: StepContext) -> dict[str, object]:
        return {"duration_s": 12.5}

    @step(depends_on=["probe"])
    async def report(context: StepContext) -> dict[str, object]:
        return {"report": f"{context.data['duration_s']} seconds"}

    pipeline = Pipeline("my_pipeline", [probe, report])

A handler is an ordinary function (it runs in a thread and may block) or a
coroutine function (it runs on the event loop and may not). It returns what is
to be merged into the execution's data, or None. It may be run again after a
crash, so it has to be idempotent; whatever it raises fails the step.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from application.json_values import json_object
from application.ports import AttemptRef
from domain.definition import DEFAULT_POOL, KeyLimit, PipelineDefinition, RetryPolicy, StepSpec
from domain.errors import InvalidDefinition, InvalidInput

__all__ = [
    "Interrupted",
    "KeyLimit",
    "PermanentError",
    "Pipeline",
    "RetryPolicy",
    "StepContext",
    "StepError",
    "external_step",
    "step",
]

NO_RETRY = RetryPolicy()

Output = Mapping[str, Any] | None
Handler = Callable[["StepContext"], Output | Awaitable[Output]]


class StepError(Exception):
    """Raised by a handler: its text is for the person who reads why the step failed.

    Any other exception fails the step as well, and is shown with its type's name.
    """


class PermanentError(StepError):
    """To try again by itself would be no use."""


MAX_ANNOUNCED = 20
"""Words of an attempt's own; progress is what is said often."""

MAX_ANNOUNCED_BYTES = 64 * 1024
"""Of one of them, as JSON: every follower gets it, and the log keeps it."""

_WORD = re.compile(r"[a-z][a-z0-9_]{0,29}:[a-z][a-z0-9_]{0,29}")
_OWN_WORDS = frozenset({"pipeline", "hub", "detector"})
_OWN_FIELDS = frozenset({"execution_id", "message_id", "step_name", "step_key", "attempt"})


class Interrupted(BaseException):
    """Raised by ``StepContext.check``: Rushes stops, or the attempt is no longer wanted.

    No ``Exception``, so that a handler's ``except Exception`` lets it pass.
    """


class Reports(Protocol):
    """What an attempt can say while it runs; the step runner listens."""

    def progress(self, fraction: float, detail: dict[str, Any]) -> None: ...

    def beat(self) -> None: ...

    def told(self) -> bool: ...

    def paused(self) -> bool: ...

    def rest(self) -> None: ...

    def give_back(self) -> None: ...

    def wait(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None: ...

    async def leave(self, checkpoint: Mapping[str, Any]) -> None: ...

    async def spawn(
        self,
        name: str,
        parameter: str,
        params: Mapping[str, Any],
        depends_on: Sequence[str],
        after: Sequence[str],
    ) -> None: ...


class StepContext:
    """What a handler is given.

    execution_id: the uuid. attempt: which start of this step it is, from 1.
    data: the execution's data as it was when this attempt began; the handler's own.
    parameter and params: of a spawned step, what it was spawned with.
    checkpoint: what an earlier attempt of this step has left, or None.
    """

    def __init__(
        self,
        *,
        ref: AttemptRef,
        execution_id: str,
        pipeline_type: str,
        message_id: str | None,
        step_name: str,
        data: dict[str, Any],
        reports: Reports,
        parameter: str = "",
        params: dict[str, Any] | None = None,
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        self.ref = ref
        self.execution_id = execution_id
        self.pipeline_type = pipeline_type
        self.message_id = message_id
        self.step_name = step_name
        self.data = data
        self.parameter = parameter
        self.params = {} if params is None else params
        self.checkpoint = checkpoint
        self.job_id: int | None = None
        self.announced: list[tuple[str, dict[str, Any]]] = []
        self._reports = reports

    @property
    def step_key(self) -> str:
        return self.ref.step_key

    @property
    def attempt(self) -> int:
        return self.ref.attempt

    def progress(self, fraction: float, **detail: Any) -> None:
        """Say how far this attempt has come, from 0 to 1, as often as you like.

        ``detail`` is shown beside it: ``bytes_done=..., bytes_total=...``. Cheap
        and safe from any thread; the frontend is told a few times a second. It renews
        the step's lease.
        """
        self._reports.progress(fraction, detail)

    def attach_job(self, job_id: int) -> None:
        """The execution works on this job: its ``job_id``, once this step completes."""
        self.job_id = job_id

    def announce(self, word: str, data: Mapping[str, Any]) -> None:
        """Have everybody told, once this step completes: an event of type ``word``, with ``data``.

        It is committed with the step's completion or not at all, and stays in the log.
        ``word`` is two plain words with a colon between them; the first is none of Rushes'
        own (``pipeline``, ``hub``, ``detector``). Raises ``InvalidInput`` for another word,
        for ``data`` that is no JSON object or names what every event has by itself, and
        beyond ``MAX_ANNOUNCED``.
        """
        given = json_object(data, f"what is announced as {word!r}", limit_bytes=MAX_ANNOUNCED_BYTES)
        if not _WORD.fullmatch(word) or word.partition(":")[0] in _OWN_WORDS:
            raise InvalidInput(f"{word!r} can't be announced: it is no word of a step's own")
        taken = given.keys() & _OWN_FIELDS
        if taken:
            raise InvalidInput(f"{word!r} may not say {min(taken)!r}: every event has that")
        if len(self.announced) == MAX_ANNOUNCED:
            raise InvalidInput(f"an attempt announces at most {MAX_ANNOUNCED} things")
        self.announced.append((word, given))

    @property
    def stopping(self) -> bool:
        """Whether the handler should come to an end as soon as it can."""
        return self._reports.told()

    def check(self) -> None:
        """Call it often in long work. Raises ``Interrupted`` when it is to end.

        That is so when Rushes stops, the execution is cancelled, or the time is over.
        """
        if self._reports.told():
            raise Interrupted

    @property
    def paused(self) -> bool:
        """Whether the execution, or the whole engine, is paused, as of half a second ago.

        A pause lets steps that run go on to their end. One that takes long may stand still
        instead: ``while context.paused: context.rest()``, as often as ``check`` is called.
        For blocking handlers.
        """
        return self._reports.paused()

    def rest(self) -> None:
        """Do nothing for a moment; its lease is renewed. Raises ``Interrupted`` as ``check`` does.

        The time that a step may take (``run_timeout_s``) goes on.
        """
        self._reports.rest()
        self.check()

    def give_back(self) -> NoReturn:
        """End a paused attempt here: another one begins when the pause is over.

        That is no failure. For who can't stand still any longer, since what it works on has
        gone, say. Raises ``Interrupted``.
        """
        self._reports.give_back()
        raise Interrupted

    def heartbeat(self, checkpoint: Mapping[str, Any] | None = None) -> None:
        """Renew the step's lease. ``checkpoint`` is stored, for the attempt after this one.

        For blocking handlers; a checkpoint costs a commit. Raises ``AttemptOver`` if
        this attempt has been taken over.
        """
        self._reports.beat()
        if checkpoint is not None:
            left = dict(checkpoint)
            self._reports.wait(lambda: self._reports.leave(left))

    async def aheartbeat(self, checkpoint: Mapping[str, Any] | None = None) -> None:
        """``heartbeat``, for coroutines."""
        self._reports.beat()
        if checkpoint is not None:
            await self._reports.leave(dict(checkpoint))

    def spawn(
        self,
        name: str,
        parameter: str,
        params: Mapping[str, Any] | None = None,
        *,
        depends_on: Sequence[str] = (),
        after: Sequence[str] = (),
    ) -> None:
        """Add a step of the family ``name``, which this step must declare to spawn.

        It is stored, visible and may run as soon as this returns. The same again, after
        a crash or a retry, changes nothing. For blocking handlers. Raises
        ``AttemptOver`` if this attempt has been taken over, ``InvalidInput`` for what
        can't be spawned.
        """
        self._reports.wait(
            lambda: self._reports.spawn(name, parameter, params or {}, depends_on, after)
        )

    async def aspawn(
        self,
        name: str,
        parameter: str,
        params: Mapping[str, Any] | None = None,
        *,
        depends_on: Sequence[str] = (),
        after: Sequence[str] = (),
    ) -> None:
        """``spawn``, for coroutines."""
        await self._reports.spawn(name, parameter, params or {}, depends_on, after)


@dataclass(frozen=True, slots=True)
class AuthoredStep:
    """A step's specification with the function that does its work; still callable as that."""

    spec: StepSpec
    handler: Handler | None

    def __call__(self, context: StepContext) -> Output | Awaitable[Output]:
        if self.handler is None:
            raise TypeError(f"step {self.spec.name!r} is external: it has no handler here")
        return self.handler(context)


def step(
    *,
    name: str | None = None,
    depends_on: Sequence[str] = (),
    after: Sequence[str] = (),
    required: bool = True,
    weight: int = 1,
    pool: str = DEFAULT_POOL,
    retry: RetryPolicy = NO_RETRY,
    run_timeout_s: float | None = None,
    queue_timeout_s: float | None = None,
    lease_s: float | None = None,
    priority: int = 0,
    limits: Sequence[KeyLimit] = (),
    dynamic: bool = False,
    spawns: Sequence[str] = (),
) -> Callable[[Handler], AuthoredStep]:
    """Make a function a step; see ``StepSpec`` for what the words mean."""

    def decorate(handler: Handler) -> AuthoredStep:
        own_name = name if name is not None else getattr(handler, "__name__", None)
        if own_name is None:
            raise InvalidDefinition(f"{handler!r} has no name: pass step(name=...)")
        spec = StepSpec(
            name=own_name,
            depends_on=_names("depends_on", own_name, depends_on),
            after=_names("after", own_name, after),
            required=required,
            weight=weight,
            pool=pool,
            retry=retry,
            run_timeout_s=run_timeout_s,
            queue_timeout_s=queue_timeout_s,
            lease_s=lease_s,
            priority=priority,
            limits=tuple(limits),
            dynamic=dynamic,
            spawns=_names("spawns", own_name, spawns),
        )
        return AuthoredStep(spec, handler)

    return decorate


def external_step(
    name: str,
    *,
    depends_on: Sequence[str] = (),
    after: Sequence[str] = (),
    required: bool = True,
    weight: int = 1,
    retry: RetryPolicy = NO_RETRY,
    run_timeout_s: float | None = None,
    lease_s: float | None = None,
) -> AuthoredStep:
    """A step that a worker outside Rushes claims, does, and reports on (docs/services.md).

    ``run_timeout_s`` and ``lease_s`` count from its claim; without a lease, a worker that
    is gone for good is waited for until a person says what became of the step.
    """
    return AuthoredStep(
        StepSpec(
            name=name,
            depends_on=_names("depends_on", name, depends_on),
            after=_names("after", name, after),
            required=required,
            weight=weight,
            external=True,
            retry=retry,
            run_timeout_s=run_timeout_s,
            lease_s=lease_s,
        ),
        None,
    )


class Pipeline:
    """A definition with its handlers.

    Raises ``InvalidDefinition``, naming the culprit, if it could never run.
    """

    def __init__(
        self,
        type: str,
        steps: Sequence[AuthoredStep],
        *,
        card: bool = False,
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """``card``: it is triggered with an ``sd_path``, and works on that card.

        ``check``: asked about a trigger's data before there is an execution; it raises
        ``InvalidInput`` for what could never be done. It may block.
        """
        for each in steps:
            if not isinstance(each, AuthoredStep):
                raise InvalidDefinition(
                    f"pipeline {type!r}: {each!r} is no step; decorate it with @step()"
                )
        self.definition = PipelineDefinition(type, tuple(each.spec for each in steps))
        self.card = card
        self.check = check
        self._handlers = {each.spec.name: each.handler for each in steps}

    @property
    def type(self) -> str:
        return self.definition.type

    def handler(self, step_name: str) -> Handler | None:
        return self._handlers.get(step_name)


def runs_on_loop(handler: Handler) -> bool:
    """Whether the handler is a coroutine function, also as a callable object."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004
    )


def _names(relation: str, owner: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidDefinition(
            f"step {owner!r}: {relation} takes a list of names, not the text {names!r}"
        )
    return tuple(names)
