"""What an error is called outside: one table for HTTP, gRPC and WebSocket.

An error class that isn't in the table is what its nearest parent is. What is no
``RushesError`` is a bug, and is told to nobody but the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from grpc import StatusCode

from domain import errors


@dataclass(frozen=True, slots=True)
class Status:
    """code: the word for programs (problem type, WebSocket ``code``), never changed."""

    code: str
    http: HTTPStatus
    grpc: StatusCode


STATUS: dict[type[errors.RushesError], Status] = {
    errors.RushesError: Status("error", HTTPStatus.INTERNAL_SERVER_ERROR, StatusCode.UNKNOWN),
    errors.InvalidInput: Status(
        "invalid_input", HTTPStatus.BAD_REQUEST, StatusCode.INVALID_ARGUMENT
    ),
    errors.InvalidDefinition: Status(
        "invalid_definition", HTTPStatus.BAD_REQUEST, StatusCode.INVALID_ARGUMENT
    ),
    errors.InvalidPath: Status("invalid_path", HTTPStatus.BAD_REQUEST, StatusCode.INVALID_ARGUMENT),
    errors.NotFound: Status("not_found", HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND),
    errors.ExecutionNotFound: Status(
        "execution_not_found", HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND
    ),
    errors.StepNotFound: Status("step_not_found", HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND),
    errors.PipelineNotFound: Status(
        "pipeline_not_found", HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND
    ),
    errors.JobNotFound: Status("job_not_found", HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND),
    errors.TokenNotFound: Status("token_not_found", HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND),
    errors.Conflict: Status("conflict", HTTPStatus.CONFLICT, StatusCode.FAILED_PRECONDITION),
    errors.IllegalTransition: Status(
        "illegal_transition", HTTPStatus.CONFLICT, StatusCode.FAILED_PRECONDITION
    ),
    errors.AttemptOver: Status("attempt_over", HTTPStatus.CONFLICT, StatusCode.ABORTED),
    errors.MessageConflict: Status(
        "message_conflict", HTTPStatus.CONFLICT, StatusCode.ALREADY_EXISTS
    ),
    errors.CardBusy: Status("card_busy", HTTPStatus.CONFLICT, StatusCode.FAILED_PRECONDITION),
    errors.NotExternal: Status("not_external", HTTPStatus.CONFLICT, StatusCode.FAILED_PRECONDITION),
    errors.StaleExecution: Status("stale_execution", HTTPStatus.CONFLICT, StatusCode.ABORTED),
    errors.FactsGone: Status("events_gone", HTTPStatus.GONE, StatusCode.OUT_OF_RANGE),
    errors.Unauthenticated: Status(
        "unauthenticated", HTTPStatus.UNAUTHORIZED, StatusCode.UNAUTHENTICATED
    ),
    errors.Forbidden: Status("forbidden", HTTPStatus.FORBIDDEN, StatusCode.PERMISSION_DENIED),
    errors.NotPermitted: Status(
        "not_permitted", HTTPStatus.FORBIDDEN, StatusCode.PERMISSION_DENIED
    ),
    errors.TooManyRequests: Status(
        "too_many_requests", HTTPStatus.TOO_MANY_REQUESTS, StatusCode.RESOURCE_EXHAUSTED
    ),
    errors.Unavailable: Status(
        "unavailable", HTTPStatus.SERVICE_UNAVAILABLE, StatusCode.UNAVAILABLE
    ),
}

INTERNAL = Status("internal", HTTPStatus.INTERNAL_SERVER_ERROR, StatusCode.INTERNAL)
"""What a bug is called; its text is for the log only."""


def status_of(error: BaseException) -> Status:
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return INTERNAL
