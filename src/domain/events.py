"""What has happened: frozen facts in the past tense.

An aggregate records facts while its verbs run; the store writes them in the
transaction that writes the state, gives each an increasing id, and lets them
out after the commit. ``type`` is the word that clients see, and a fact's fields
(beside its time) are what they are told.

``step_progress`` is not a fact: nobody has to remember it. It travels beside
them without an id (``application/feed.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that happened, at ``at`` (UTC)."""

    type: ClassVar[str]
    at: datetime

    def data(self) -> dict[str, Any]:
        """What clients are told, beside the execution's id and the message's; JSON."""
        fields: tuple[str, ...] = self.__match_args__[1:]  # all but ``at``
        return {name: _as_json(getattr(self, name)) for name in fields}

    @property
    def subject(self) -> str | None:
        """The key of the step that it is about, if it is about one."""
        return None


@dataclass(frozen=True, slots=True)
class PipelineStarted(Fact):
    """``kept`` are the keys of steps that an earlier execution has done for this one."""

    type: ClassVar[str] = "pipeline:started"
    pipeline_type: str
    steps: tuple[str, ...]
    kept: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        told = {"pipeline_type": self.pipeline_type, "steps": list(self.steps)}
        return {**told, "kept": list(self.kept)} if self.kept else told


@dataclass(frozen=True, slots=True)
class PipelineCompleted(Fact):
    type: ClassVar[str] = "pipeline:completed"
    warnings: tuple[str, ...]
    progress: int = 100


@dataclass(frozen=True, slots=True)
class PipelineFailed(Fact):
    type: ClassVar[str] = "pipeline:failed"
    step_name: str
    step_key: str
    attempt: int
    message: str

    def data(self) -> dict[str, Any]:
        return {
            "error": {
                "step_name": self.step_name,
                "step_key": self.step_key,
                "attempt": self.attempt,
                "message": self.message,
            }
        }


@dataclass(frozen=True, slots=True)
class PipelineCancelled(Fact):
    """``cancelled`` are the keys of the steps that will not run, or not to their end."""

    type: ClassVar[str] = "pipeline:cancelled"
    cancelled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PipelinePaused(Fact):
    type: ClassVar[str] = "pipeline:paused"


@dataclass(frozen=True, slots=True)
class PipelineResumed(Fact):
    type: ClassVar[str] = "pipeline:resumed"


@dataclass(frozen=True, slots=True)
class PipelineRetried(Fact):
    """``reopened`` are the keys of the steps that will run again."""

    type: ClassVar[str] = "pipeline:retried"
    reopened: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepFact(Fact):
    step_name: str
    step_key: str
    attempt: int

    @property
    def subject(self) -> str | None:
        return self.step_key

    def _whose(self) -> dict[str, Any]:
        """Which attempt of which step."""
        return {"step_name": self.step_name, "step_key": self.step_key, "attempt": self.attempt}


@dataclass(frozen=True, slots=True)
class StepStarted(StepFact):
    type: ClassVar[str] = "pipeline:step_started"

    def data(self) -> dict[str, Any]:
        return self._whose()


@dataclass(frozen=True, slots=True)
class StepSpawned(StepFact):
    """A step that wasn't there before; ``spawned_by`` is the key of the one that made it."""

    type: ClassVar[str] = "pipeline:step_spawned"
    spawned_by: str


@dataclass(frozen=True, slots=True)
class StepCompleted(StepFact):
    """``progress`` is the execution's, from 0 to 100."""

    type: ClassVar[str] = "pipeline:step_completed"
    progress: int

    def data(self) -> dict[str, Any]:
        return {**self._whose(), "progress": self.progress}


@dataclass(frozen=True, slots=True)
class StepFailed(StepFact):
    type: ClassVar[str] = "pipeline:step_failed"
    error: str


@dataclass(frozen=True, slots=True)
class StepRetrying(StepFact):
    """``attempt`` has failed with ``error``; the next one starts after ``next_attempt_at``."""

    type: ClassVar[str] = "pipeline:step_retrying"
    error: str
    next_attempt_at: datetime


@dataclass(frozen=True, slots=True)
class StepSkipped(StepFact):
    """``error`` names the step because of which it can't run, or says who waived it."""

    type: ClassVar[str] = "pipeline:step_skipped"
    error: str


@dataclass(frozen=True, slots=True)
class Announced(StepFact):
    """A step's own word, which no other fact says; ``said`` is what clients are told with it."""

    word: str
    said: Mapping[str, Any]

    @property
    def type(self) -> str:  # type: ignore[override]  # the one fact whose type isn't its class's
        return self.word

    def data(self) -> dict[str, Any]:
        return {**self.said, **self._whose()}


def _as_json(value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, datetime):
        return timestamp(value)
    return value


@lru_cache(maxsize=1024)
def timestamp(at: datetime) -> str:
    """As clients get a time: RFC 3339, in UTC, with milliseconds, ``2026-11-22T08:29:00.123Z``."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RecordedFact(NamedTuple):
    """A fact as the log keeps it: what clients resume from, page through and replay.

    id: rises in the order in which facts become visible; ids may skip.
    execution_id: the store's id; ``data["execution_id"]`` is the uuid that clients see.
    data: everything that clients are told.
    """

    id: int
    execution_id: int
    type: str
    step_key: str | None
    data: Mapping[str, Any]
    occurred_at: datetime
