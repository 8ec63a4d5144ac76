"""What the application needs of the world.

Each docstring is a contract: every sentence of it has a test in
``tests/contract``, and that suite runs against the fakes and against the real
adapters alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from domain.access import Role, Token
from domain.events import RecordedFact
from domain.execution import Execution, ExecutionStatus
from domain.footage import Card, CardFile, FileKind, Job, VerifiedCopy
from domain.step import Step

T = TypeVar("T")

Change = Callable[[Execution], object]
"""A pure, synchronous function that calls verbs on the draft it is given.

It may run more than once, on any thread, and what it returns is ignored.
"""


Changed = Callable[[Collection[int] | None], None]
"""Is told the ids of what has changed."""


class AttemptRef(NamedTuple):
    """Which attempt of which step is speaking; the fence against those that are over."""

    execution_id: int
    step_key: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.step_key} of execution {self.execution_id}, attempt {self.attempt}"


class Started(NamedTuple):
    """A step that a commit has started, with what its handler is given.

    execution: the committed state; nobody may change it.
    """

    execution: Execution
    step: Step

    @property
    def ref(self) -> AttemptRef:
        assert self.execution.id is not None
        return AttemptRef(self.execution.id, self.step.key, self.step.attempt)


@dataclass(frozen=True, slots=True)
class Triggered:
    """The answer to a trigger.

    duplicate: ``"message"`` if this message_id was known, ``"card"`` if the card
    is under way already, None if the execution is new.
    """

    execution: Execution
    duplicate: Literal["message", "card"] | None


@dataclass(frozen=True, slots=True)
class Query:
    """Which executions to list: newest first, those with an id below ``before``."""

    status: ExecutionStatus | None = None
    pipeline_type: str | None = None
    message_id: str | None = None
    before: int | None = None
    limit: int = 50


class Executions(Protocol):
    """Where executions and their facts are kept: the one place that writes them.

    State, facts and the admission of ready steps commit together or not at all.
    Facts get increasing ids in the order in which they become visible, and are let
    out only after their commit. Whatever is handed out is the caller's own: to
    change it changes nothing here.

    ``Unavailable`` is raised by every method once the store is closed, and
    by the writing ones if a commit fails: then nothing of that change happened.
    """

    async def trigger(self, execution: Execution, contents_hash: str) -> Triggered:
        """Store a new execution, once.

        With a message_id that is known and the same ``contents_hash``, answers with
        the execution that it belongs to; raises ``MessageConflict`` with another
        hash. If an active execution works on that card, as far as its card_key
        tells (``may_be_one_card``), answers with that one, the last of several, and
        remembers the message_id as belonging to it. Several at once, of one message
        or of one card, make one execution.
        """
        ...

    async def update(self, reference: str | int, change: Change) -> Execution:
        """Run ``change`` on a draft, adopted if it returns and dropped if it raises; by uuid or id.

        Only this caller sees what its change raised, whoever shares the commit.
        Changes of one execution run one after the other, each on what the one
        before it left; where another writer was first, the change runs again on
        what that one left (``StaleExecution`` if that goes on). A change that
        changes nothing writes nothing. Answers with the committed state.
        Raises ``ExecutionNotFound``; ``CardBusy`` if the change makes an execution
        active whose card another active one holds.
        """
        ...

    async def apply(self, execution_id: int, change: Change) -> None:
        """``update`` for who needs no answer, and so no copy of the whole execution."""
        ...

    async def get(self, reference: str | int) -> Execution:
        """The last committed state, by uuid or by id. Raises ``ExecutionNotFound``."""
        ...

    def watch(self, changed: Changed) -> None:
        """From now on ``changed`` is told, on the loop, which executions a commit has changed.

        Also if they are new, or forgotten; and before anybody hears of the commit: its
        facts are let out, and who asked for it is answered, after that. ``None`` means that
        any may have been changed.
        """
        ...

    async def list(self, query: Query) -> Sequence[Execution]:
        """The executions that match, newest first, at most ``query.limit``."""
        ...

    async def unfinished(self) -> Sequence[int]:
        """The ids of executions with anything left to go on with, oldest first."""
        ...

    async def unclaimed(
        self, step_name: str, pipeline_type: str | None, limit: int
    ) -> Sequence[tuple[int, str]]:
        """``(execution_id, step_key)`` of external steps that run and have no worker yet.

        Those of this name, of executions that run and aren't paused (of one type, if that
        is said), at most ``limit``; who has waited longest comes first.
        """
        ...

    async def hold(self, at: datetime | None) -> None:
        """Remember since when the engine is held; None: that it isn't.

        For whoever opens the store next, too. Whatever was asked of the store before this
        is stored, or refused, when it returns, whether somebody still waits for it or not.
        """
        ...

    async def held_at(self) -> datetime | None:
        """What ``hold`` was told last; None at first."""
        ...

    async def facts(
        self, since: int, limit: int, execution_id: int | None = None
    ) -> Sequence[RecordedFact]:
        """The committed facts with an id above ``since``, in order, at most ``limit``.

        No fact with a smaller id becomes visible later. Of all executions together, raises
        ``FactsGone`` if one above ``since`` may be forgotten; an execution that is there
        has all its facts.
        """
        ...

    async def fact_bounds(self) -> tuple[int, int]:
        """``(floor, last)``: ``since`` may be anything from ``floor`` to ``last``.

        ``last`` is the highest id that was ever given, also if that fact is forgotten.
        ``(0, 0)`` when nothing was ever recorded.
        """
        ...

    async def forget(self, before: datetime, limit: int) -> int:
        """Delete executions that are over and were last changed before that time; how many.

        The oldest first, at most ``limit``, in one commit, each with its steps, its facts,
        its messages and, unless it has a job, its inventory; 0 if there are none. Jobs and
        the ledger stay, and so does an execution that has anything left to go on with, or
        a job that was never copied: what that has in the library can still be gone on with.

        A change that comes first saves its execution, and one that comes later doesn't
        find it any more. No id is ever given again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """What the dispatcher has to do.

    held: whether it starts nothing at present. running: handlers at work. waiting:
    steps that are ready, and may not go yet. overdue: attempts that were told to end and
    haven't yet; their slots stay taken. abandoned: those that haven't for so long that others
    got their slots; what they had to themselves (key limits) stays taken until they have.
    """

    held: bool
    running: int
    waiting: int
    overdue: tuple[AttemptRef, ...]
    abandoned: tuple[AttemptRef, ...] = ()


class Dispatcher(Protocol):
    """Who decides what may run now, and has it run.

    Every step that was admitted, and isn't external, is then either launched or withdrawn.
    """

    def admit(self, execution: Execution, ready: Sequence[Step]) -> Collection[str]:
        """The keys of those ready steps that may go; they start in this transaction.

        Synchronous, without I/O, on any thread. It takes a slot, but for an external step:
        that takes nothing, and is neither launched nor withdrawn. A step that may not go
        keeps its place in the queue. It is asked about again when the dispatcher has a
        change say so that it may (``Execution.ask_again``), and not before.
        """
        ...

    def launch(self, started: Sequence[Started]) -> None:
        """They have committed: run them."""
        ...

    def hold(self) -> None:
        """Admit nothing until ``go_on``, external steps included; what runs goes on to its end.

        Forgotten with the process; what remembers it is ``Executions.hold``.
        """
        ...

    def go_on(self) -> None:
        """Admit what has waited meanwhile."""
        ...

    def load(self) -> Load: ...

    def look_again(self, execution_id: int, at: datetime) -> None:
        """An attempt is due then, or a wait is over: have the execution looked at (``tick``)."""
        ...

    def cancel(self, execution_id: int) -> None:
        """Tell the execution's handlers to end. They keep their slots until they have, or
        until it has taken so long that they are abandoned."""
        ...

    def withdraw(self, execution_id: int, started: Iterable[Step]) -> None:
        """The transaction that started these attempts is gone: their slots are free again."""
        ...


class Threads(Protocol):
    """Threads for what blocks, so that nothing else in the application knows any."""

    async def run(self, blocking: Callable[[], T], *, long: bool = False) -> T:
        """Call it in a thread, and wait for what it returns or raises.

        ``long``: it may block for as long as a step does; then it takes nothing from
        the threads for short calls.

        Raises ``Unavailable`` once the threads are closed.
        """
        ...

    def await_result(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """From a thread of ``run``: have the loop await it, and wait for what comes of it.

        Raises ``RuntimeError`` on the loop itself, which would wait for ever.
        """
        ...

    def on_loop(self, callback: Callable[[], None]) -> None:
        """From any thread: have the event loop call this soon."""
        ...


class Clock(Protocol):
    def now(self) -> datetime:
        """The time of day, in UTC, with its zone."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class Chance(Protocol):
    def fraction(self) -> float:
        """Any number from 0 up to 1, each as likely as the others."""
        ...


class Secrets(Protocol):
    def new(self) -> str:
        """256 random bits, as text of letters, digits, ``-`` and ``_``."""
        ...


class Ids(Protocol):
    def new(self) -> str:
        """A fresh uuid, as text; later ones sort after earlier ones (RFC 9562, version 7)."""
        ...


class Cards(Protocol):
    """Where cards are found. Blocking."""

    def locate(self, sd_path: object, *, anywhere: bool = False) -> str:
        """The path in one spelling, if a card may be there; nothing has to be there yet.

        Raises ``InvalidPath`` unless it is text, absolute, free of NUL and ``..``,
        strictly below one of the card roots, and without a symbolic link below it.

        ``anywhere``: a person at this machine has named it, so the roots aren't asked
        and links are resolved; only the root of the file system is refused.
        """
        ...

    def has_volume(self, serial: str) -> bool:
        """Whether the system knows a volume by this serial number (see ``key_of_card``)."""
        ...


MAX_UNFINISHED = 100
"""A card that fails more often than that has left nothing in the oldest of its jobs' folders."""


class Jobs(Protocol):
    """The jobs, one per execution at most. Blocking: called from threads."""

    def create(
        self,
        attempt: AttemptRef,
        *,
        name: str,
        card: Card,
        file_count: int,
        total_bytes: int,
        intake: Mapping[str, Any] | None = None,
        taken: Callable[[str], bool] = lambda name: False,
    ) -> Job:
        """The execution's job. The one that it has, if it has one (with its name and time).

        ``intake``: how much of it the ledger knew, as JSON.
        A name that another job has, or has its own below, or that is ``taken``, gets
        ``-2``, ``-3`` and so on. ``taken`` is called within the transaction: it answers at
        once, without I/O. Raises ``AttemptOver`` if the attempt doesn't run.
        """
        ...

    def get(self, job_id: int) -> Job:
        """Raises ``JobNotFound``."""
        ...

    def generation(self, card_identity: str) -> int:
        """The highest generation of any job's card with this identity; 0 if there is none."""
        ...

    def named(self, name: str) -> bool:
        """Whether a job has this name."""
        ...

    def unfinished(self, card_identity: str, library: str) -> Sequence[Job]:
        """This card's jobs for this library that were never copied, and that nobody is at.

        Their executions aren't active, no step of theirs runs, and the ``library`` in
        their data is this one. The newest first, at most ``MAX_UNFINISHED``.
        """
        ...

    def list(self, *, before: int | None = None, limit: int = 50) -> Sequence[Job]:
        """The newest first, those with an id below ``before``, at most ``limit``."""
        ...

    def judged(self, attempt: AttemptRef, job_id: int, verdict: Mapping[str, Any]) -> Job:
        """This is the verdict on its card now; an earlier one is forgotten.

        Raises ``AttemptOver`` if the attempt doesn't run; ``JobNotFound``.
        """
        ...

    def copied(self, attempt: AttemptRef, job_id: int) -> Job:
        """Everything that was to be copied is in the library.

        Raises ``AttemptOver`` if the attempt doesn't run; ``JobNotFound``.
        """
        ...


class CardFiles(Protocol):
    """What scans found. Blocking: called from threads."""

    def replace(self, attempt: AttemptRef, files: Iterable[CardFile]) -> None:
        """This is the execution's inventory now; an older one is forgotten.

        Raises ``AttemptOver`` if the attempt doesn't run.
        """
        ...

    def of(
        self, execution_id: int, *, after: bytes | None = None, limit: int | None = None
    ) -> Sequence[CardFile]:
        """In the order of their paths' bytes, those above ``after``."""
        ...

    def counts(self, execution_id: int) -> Mapping[FileKind, tuple[int, int]]:
        """How many files of each kind, and how many bytes."""
        ...


class Ledger(Protocol):
    """What was imported, for ever. Blocking: called from threads."""

    def known(
        self, files: Sequence[CardFile], destination: str
    ) -> Mapping[bytes, Sequence[VerifiedCopy]]:
        """What was recorded at this destination of files with one of these paths and its size.

        By the path on the card, on whatever card; each file with every place below
        the destination that it was brought to, in the order of recording. Whether it
        still stands there is for the disk to say.
        """
        ...

    def record(self, attempt: AttemptRef, job_id: int, copies: Sequence[VerifiedCopy]) -> None:
        """These stand verified under their final names. The same again is a no-op.

        Raises ``AttemptOver`` if the attempt neither runs nor was cancelled while it did; then
        nothing is recorded. After a cancel it may have to tell of what it had published by
        then: no later attempt of that step ever will.
        """
        ...

    def mount_point(self, destination: str) -> bytes | None:
        """Where that is mounted which this destination lies on, as was kept last; or None."""
        ...

    def keep_mount_point(self, destination: str, path: bytes) -> None:
        """It is mounted there now; what was kept before is forgotten."""
        ...


class Tokens(Protocol):
    """The tokens that aren't revoked. Blocking: called from threads."""

    def add(
        self,
        *,
        name: str,
        role: Role,
        digest: str,
        created_at: datetime,
        expires_at: datetime | None,
    ) -> Token:
        """It is stored, with an id that no token ever had."""
        ...

    def all(self) -> Sequence[Token]:
        """In the order of their ids, those included that have expired."""
        ...

    def revoke(self, token_id: int) -> None:
        """Forget it. Raises ``TokenNotFound``."""
        ...

    def used(self, at: Mapping[int, datetime]) -> None:
        """These were last used then; one that is revoked is passed over."""
        ...


Live = Mapping[str, tuple[int, float]]
"""How far running attempts have come: ``{step_key: (attempt, fraction)}``."""
