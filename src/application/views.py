"""The one shape in which every edge shows executions and messages.

REST serialises these as they are, gRPC and the command line pick from them. All
times are RFC 3339 in UTC with milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from application.feed import Message
from application.json_values import json_copy
from application.ports import AttemptRef, Live
from domain.events import timestamp
from domain.execution import Execution
from domain.step import Step, StepStatus


def _timestamp_or_none(at: datetime | None) -> str | None:
    return None if at is None else timestamp(at)


@dataclass(slots=True)
class StepView:
    """progress: of the step, from 0 to 100. detail: what it says beside that while it runs,
        such as bytes, rate and time left. worker_id: who outside has claimed it last.

    lease_expires_at: until when that worker may be silent, while it is at work.
    """

    step_name: str
    step_key: str
    status: str
    required: bool
    external: bool
    params: Mapping[str, Any]
    depends_on: tuple[str, ...]
    after: tuple[str, ...]
    attempt: int
    failures: int
    waived: bool
    progress: int
    detail: Mapping[str, Any]
    output_data: Mapping[str, Any] | None
    error_message: str | None
    worker_id: str | None
    lease_expires_at: str | None
    created_at: str | None
    queued_at: str | None
    next_attempt_at: str | None
    started_at: str | None
    completed_at: str | None

    @classmethod
    def of(cls, step: Step, detail: Mapping[str, Any]) -> StepView:
        return cls(
            step_name=step.name,
            step_key=step.key,
            status=str(step.status),
            required=step.spec.required,
            external=step.spec.external,
            params=json_copy(step.params) if step.params else {},
            depends_on=step.depends_on,
            after=step.after,
            attempt=step.attempt,
            failures=step.failures,
            waived=step.waived,
            progress=100 if step.status is StepStatus.COMPLETED else int(100 * step.progress),
            detail=detail,
            output_data=step.output,
            error_message=step.error,
            worker_id=step.worker,
            lease_expires_at=_timestamp_or_none(step.lease_ends_at if step.claimed else None),
            created_at=_timestamp_or_none(step.created_at),
            queued_at=_timestamp_or_none(step.queued_at),
            next_attempt_at=_timestamp_or_none(step.not_before),
            started_at=_timestamp_or_none(step.started_at),
            completed_at=_timestamp_or_none(step.completed_at),
        )


@dataclass(slots=True)
class ExecutionView:
    """execution_id: the uuid, under the name that events use. progress: from 0 to 100.

    waits_for: steps that run outside Rushes and that it waits for. engine_paused_at: since
        when the whole engine is paused, and so starts nothing of it either.
    """

    id: int
    uuid: str
    execution_id: str
    message_id: str | None
    pipeline_type: str
    status: str
    job_id: int | None
    progress: int
    execution_data: Mapping[str, Any]
    error_message: str | None
    warnings: Sequence[str]
    waits_for: Sequence[str]
    paused_at: str | None
    engine_paused_at: str | None
    rerun_of: int | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    updated_at: str
    steps: Sequence[StepView]

    @classmethod
    def of(
        cls,
        execution: Execution,
        live: Live | None = None,
        *,
        detail: Callable[[AttemptRef], Mapping[str, Any]] | None = None,
        held_at: datetime | None = None,
    ) -> ExecutionView:
        """What the caller's own ``execution`` looks like; it becomes the view's.

        ``live`` lays the progress of running attempts over the committed state, ``detail``
        says what they said with it.
        ``held_at``: since when the engine is held.
        """
        assert execution.id is not None, "only what is stored is shown"
        stored_id = execution.id
        if live:
            execution = execution.copy()
            execution.note(live, at=execution.updated_at)
        return cls(
            id=stored_id,
            uuid=execution.uuid,
            execution_id=execution.uuid,
            message_id=execution.message_id,
            pipeline_type=execution.definition.type,
            status=str(execution.status),
            job_id=execution.job_id,
            progress=execution.progress,
            execution_data=execution.data,
            error_message=execution.error_message,
            warnings=execution.warnings,
            waits_for=execution.waits_for(),
            paused_at=_timestamp_or_none(execution.paused_at),
            engine_paused_at=_timestamp_or_none(held_at) if execution.active else None,
            rerun_of=execution.rerun_of,
            created_at=timestamp(execution.created_at),
            started_at=_timestamp_or_none(execution.started_at),
            completed_at=_timestamp_or_none(execution.completed_at),
            updated_at=timestamp(execution.updated_at),
            steps=[
                StepView.of(
                    step,
                    detail(AttemptRef(stored_id, step.key, step.attempt))
                    if detail is not None and step.status is StepStatus.RUNNING
                    else {},
                )
                for step in execution.steps.values()
            ],
        )


def message_view(message: Message) -> dict[str, Any]:
    """A fact as clients get it, or the progress of a step, which has no id."""
    view: dict[str, Any] = {} if message.id is None else {"id": message.id}
    view["type"] = message.type
    view["timestamp"] = timestamp(message.occurred_at)
    view["data"] = message.data
    return view
