"""Views as protobuf, and protobuf's JSON as Python's.

``google.protobuf.Struct`` knows one kind of number, the double. So ``{"take": 3}``
arrives as 3.0; a whole number is made one again, as long as doubles can tell it
from its neighbours. On the way out, what a Struct can't hold is shown as text
rather than refused: one odd execution must not make a whole list unreadable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from adapters.rpc.pb import pipeline_pb2 as pb
from application.advance import Beat
from application.claims import Claimed
from application.json_values import plain_number
from application.ports import AttemptRef, Load
from application.views import ExecutionView, StepView
from domain.errors import InvalidInput
from domain.events import timestamp
from domain.execution import ExecutionStatus

MAX_DEPTH = 30
"""Levels of a Struct: each is up to three nested messages, and readers stop at 100."""


def execution_message(view: ExecutionView) -> pb.Execution:
    return pb.Execution(
        execution_id=view.execution_id,
        id=view.id,
        pipeline_type=view.pipeline_type,
        status=f"EXECUTION_STATUS_{view.status.upper()}",
        message_id=view.message_id,
        job_id=view.job_id,
        progress=view.progress,
        execution_data=struct_of(view.execution_data),
        error_message=view.error_message,
        warnings=view.warnings,
        created_at=_timestamp(view.created_at),
        started_at=_timestamp(view.started_at),
        completed_at=_timestamp(view.completed_at),
        updated_at=_timestamp(view.updated_at),
        steps=[_step_message(step) for step in view.steps],
        waits_for=view.waits_for,
        paused_at=_timestamp(view.paused_at),
        engine_paused_at=_timestamp(view.engine_paused_at),
        rerun_of=view.rerun_of,
    )


def _step_message(view: StepView) -> pb.Step:
    return pb.Step(
        step_name=view.step_name,
        step_key=view.step_key,
        status=f"STEP_STATUS_{view.status.upper()}",
        required=view.required,
        external=view.external,
        depends_on=view.depends_on,
        after=view.after,
        attempt=view.attempt,
        progress=view.progress,
        output_data=None if view.output_data is None else struct_of(view.output_data),
        error_message=view.error_message,
        created_at=_timestamp(view.created_at),
        queued_at=_timestamp(view.queued_at),
        started_at=_timestamp(view.started_at),
        completed_at=_timestamp(view.completed_at),
        params=struct_of(view.params),
        failures=view.failures,
        waived=view.waived,
        next_attempt_at=_timestamp(view.next_attempt_at),
        worker_id=view.worker_id,
        lease_expires_at=_timestamp(view.lease_expires_at),
        detail=struct_of(view.detail) if view.detail else None,
    )


def engine_message(load: Load, held_at: datetime | None) -> pb.Engine:
    return pb.Engine(
        paused_at=None if held_at is None else _timestamp(timestamp(held_at)),
        running=load.running,
        waiting=load.waiting,
        overdue=map(_attempt_message, load.overdue),
        abandoned=map(_attempt_message, load.abandoned),
    )


def _attempt_message(ref: AttemptRef) -> pb.Attempt:
    return pb.Attempt(execution=ref.execution_id, step_key=ref.step_key, attempt=ref.attempt)


def claim_message(claimed: Claimed) -> pb.ClaimedStep:
    checkpoint = claimed.checkpoint
    return pb.ClaimedStep(
        execution_id=claimed.execution_id,
        pipeline_type=claimed.pipeline_type,
        message_id=claimed.message_id,
        step_name=claimed.step_name,
        step_key=claimed.step_key,
        parameter=claimed.parameter,
        attempt=claimed.attempt,
        data=struct_of(claimed.data),
        params=struct_of(claimed.params),
        checkpoint=None if checkpoint is None else struct_of(checkpoint),
        lease_s=claimed.lease_s,
        lease_expires_at=_timestamp(claimed.lease_expires_at),
        run_ends_at=_timestamp(claimed.run_ends_at),
    )


def heartbeat_message(beat: Beat) -> pb.HeartbeatStepResponse:
    return pb.HeartbeatStepResponse(
        running=beat.running,
        reason=beat.reason,
        lease_expires_at=_timestamp(beat.lease_expires_at),
    )


def watch_message(view: Mapping[str, Any]) -> pb.WatchExecutionResponse:
    """Of what ``application.views.message_view`` makes."""
    return pb.WatchExecutionResponse(
        id=view.get("id"),
        type=view["type"],
        timestamp=_timestamp(view["timestamp"]),
        data=struct_of(view["data"]),
    )


def status_filter(status: int) -> ExecutionStatus | None:
    """Raises ``InvalidInput`` for a number that the contract doesn't know."""
    if status == pb.EXECUTION_STATUS_UNSPECIFIED:
        return None
    try:
        name = pb.ExecutionStatus.Name(status)
    except ValueError:
        raise InvalidInput(f"status {status} is none that there is", field="status") from None
    return ExecutionStatus(name.removeprefix("EXECUTION_STATUS_").lower())


def struct_of(plain: Mapping[str, Any]) -> Struct:
    struct = Struct()
    _fill(struct, plain, 1)
    return struct


def json_of(struct: Struct) -> dict[str, Any]:
    return {key: _plain(value) for key, value in struct.fields.items()}


def _fill(struct: Struct, plain: Mapping[str, Any], depth: int) -> None:
    for key, value in plain.items():
        _put(struct.fields[key], value, depth)


def _put(value: Value, plain: object, depth: int) -> None:
    if plain is None:
        value.null_value = NULL_VALUE
    elif isinstance(plain, bool):
        value.bool_value = plain
    elif isinstance(plain, str):
        value.string_value = plain
    elif isinstance(plain, int | float):
        try:
            value.number_value = float(plain)
        except OverflowError:
            value.string_value = str(plain)
    elif depth == MAX_DEPTH:
        value.string_value = json.dumps(plain, ensure_ascii=False)
    elif isinstance(plain, Mapping):
        value.struct_value.SetInParent()
        _fill(value.struct_value, plain, depth + 1)
    elif isinstance(plain, list | tuple):
        value.list_value.SetInParent()
        for each in plain:
            _put(value.list_value.values.add(), each, depth + 1)
    else:
        raise TypeError(f"{type(plain).__name__} is no JSON")


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            return plain_number(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return json_of(value.struct_value)
        case "list_value":
            return [_plain(each) for each in value.list_value.values]
        case _:
            return None


def _timestamp(text: str | None) -> Timestamp | None:
    if text is None:
        return None
    moment = Timestamp()
    moment.FromDatetime(datetime.fromisoformat(text))
    return moment
