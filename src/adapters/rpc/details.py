"""What a refusal says for programs: ``google.rpc.Status`` with its standard details.

Beside the sentence for people: which field is wrong, what was asked of what in which
state, what isn't there. REST says the same with the members of its problem documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.rpc import error_details_pb2 as details_pb
from google.rpc.status_pb2 import Status as RpcStatus
from grpc import StatusCode

from adapters.status_codes import Status
from domain.errors import (
    CardBusy,
    ExecutionNotFound,
    FactsGone,
    IllegalTransition,
    InvalidInput,
    JobNotFound,
    MessageConflict,
    NotExternal,
    NotPermitted,
    PipelineNotFound,
    RushesError,
    StepNotFound,
    TokenNotFound,
)

DOMAIN = "rushes"
"""Whose reasons they are."""

MAX_PART_BYTES = 300
"""Of one field of a detail: names and states are short, and what isn't can't be one."""


def rich_status(error: RushesError, status: Status, text: str) -> bytes:
    """google.rpc.Status on the wire; ``text`` is what the plain status says, as it must."""
    rich = RpcStatus(code=status.grpc.value[0], message=text)
    info, more = _details(error, status, bounded(text, MAX_PART_BYTES))
    reason = details_pb.ErrorInfo(
        reason=status.code,
        domain=DOMAIN,
        metadata={name: _part(value) for name, value in info.items()},
    )
    for detail in (reason, *more):
        rich.details.add().Pack(detail)
    serialized: bytes = rich.SerializeToString()
    return serialized


def _details(
    error: RushesError, status: Status, text: str
) -> tuple[Mapping[str, object], tuple[Any, ...]]:
    match error:
        case InvalidInput(field=str(field)):
            violation = details_pb.BadRequest.FieldViolation(field=_part(field), description=text)
            return {}, (details_pb.BadRequest(field_violations=[violation]),)
        case IllegalTransition(subject=subject, verb=verb, state=state):
            return {"verb": verb, "state": state}, (_precondition(status, subject, text),)
        case CardBusy(card_key=card_key):
            return {}, (_precondition(status, card_key, text),)
        case NotExternal(step_key=step_key):
            return {}, (_precondition(status, f"step {step_key}", text),)
        case MessageConflict(message_id=message_id):
            return {}, (_resource("message", message_id, text),)
        case ExecutionNotFound(reference=reference):
            return {}, (_resource("execution", reference, text),)
        case StepNotFound(step_key=step_key):
            return {}, (_resource("step", step_key, text),)
        case PipelineNotFound(pipeline_type=pipeline_type):
            return {}, (_resource("pipeline", pipeline_type, text),)
        case JobNotFound(reference=reference):
            return {}, (_resource("job", reference, text),)
        case NotPermitted(role=role, permission=permission):
            return {"role": role, "permission": permission}, ()
        case TokenNotFound(reference=reference):
            return {}, (_resource("token", reference, text),)
        case FactsGone(oldest=oldest, last=last):
            return {"oldest_event_id": oldest, "last_event_id": last}, ()
    if status.grpc is StatusCode.FAILED_PRECONDITION:
        return {}, (_precondition(status, "", text),)
    return {}, ()


def _precondition(status: Status, subject: object, text: str) -> Any:
    violation = details_pb.PreconditionFailure.Violation(
        type=status.code, subject=_part(subject), description=text
    )
    return details_pb.PreconditionFailure(violations=[violation])


def _resource(kind: str, name: object, text: str) -> Any:
    return details_pb.ResourceInfo(resource_type=kind, resource_name=_part(name), description=text)


def _part(value: object) -> str:
    return bounded(str(value), MAX_PART_BYTES)


def bounded(text: str, most_bytes: int) -> str:
    """Text that can be encoded, and isn't too much."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= most_bytes:
        return raw.decode()
    return raw[:most_bytes].decode(errors="ignore") + "…"
