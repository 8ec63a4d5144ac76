"""The contract of REST: of each route what it is for, what it takes, and how it may refuse.

``openapi.py`` makes the document of this table and of the types that check what comes in and
write what goes out (``documents.py``). A route that isn't here has no contract, and the
document can't be made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from adapters.rest.api import MAX_EVENTS, MAX_PAGE, PAGE
from adapters.rest.documents import (
    AttemptView,
    CardView,
    ClaimRequest,
    ClaimResponse,
    CompletedReport,
    CompleteRequest,
    EngineView,
    EventPage,
    ExecutionPage,
    FailedReport,
    FilePage,
    FileView,
    Health,
    HeartbeatRequest,
    JobPage,
    JobView,
    JudgedJob,
    NewToken,
    PipelineList,
    PipelineView,
    Problem,
    ReleasedReport,
    RerunRequest,
    Ticket,
    TokenList,
    TokenRequest,
    TokenView,
    TriggerRequest,
    TriggerResponse,
)
from adapters.schemas import (
    EXAMPLE_AT,
    EXAMPLE_MESSAGE,
    EXAMPLE_UUID,
    event_examples,
)
from application.advance import Beat
from application.claims import Claimed
from application.trigger import MAX_MESSAGE_ID
from application.views import ExecutionView, StepView
from domain import errors
from domain.access import Role
from domain.definition import KeyLimit, PipelineDefinition, RetryPolicy, StepSpec
from domain.events import timestamp
from domain.execution import Execution, ExecutionStatus
from domain.footage import Familiarity, FileKind, Intake, JobStatus
from domain.step import StepStatus

MOST = 2**63 - 1
"""The greatest id that there can be."""

TYPES: tuple[type[Any], ...] = (
    AttemptView,
    Beat,
    CardView,
    ClaimRequest,
    ClaimResponse,
    Claimed,
    CompletedReport,
    FailedReport,
    HeartbeatRequest,
    ReleasedReport,
    CompleteRequest,
    EngineView,
    EventPage,
    ExecutionPage,
    ExecutionStatus,
    ExecutionView,
    FileKind,
    FilePage,
    FileView,
    Health,
    JobPage,
    JobStatus,
    JobView,
    JudgedJob,
    KeyLimit,
    NewToken,
    PipelineList,
    PipelineView,
    Problem,
    RerunRequest,
    RetryPolicy,
    Role,
    StepSpec,
    StepStatus,
    StepView,
    Ticket,
    TokenList,
    TokenRequest,
    TokenView,
    TriggerRequest,
    TriggerResponse,
)

RENAMED = {
    "AttemptView": "Attempt",
    "CardView": "Card",
    "EngineView": "Engine",
    "ExecutionView": "Execution",
    "FileView": "File",
    "JobView": "Job",
    "PipelineView": "Pipeline",
    "StepView": "Step",
    "TokenView": "Token",
}
"""What a client's own types will be called: to them it is the thing, not a view of it."""

_AT = timestamp(EXAMPLE_AT)


def _example() -> ExecutionView:
    """A card that is just being scanned."""
    steps = (StepSpec("scan_sd"), StepSpec("copy_files", ("scan_sd",), weight=9))
    execution = Execution.trigger(
        PipelineDefinition("sd_ingest", steps),
        uuid=EXAMPLE_UUID,
        message_id=EXAMPLE_MESSAGE,
        data={"sd_path": "/media/A001", "library": "/footage"},
        at=EXAMPLE_AT,
    )
    execution.id = 7
    execution.start("scan_sd", at=EXAMPLE_AT)
    execution.note({"scan_sd": (1, 0.5)}, at=EXAMPLE_AT)
    return ExecutionView.of(execution)


_EXECUTION = _example()

_JOB = JobView(
    id=3,
    uuid=EXAMPLE_UUID,
    execution_id=7,
    name="2026-11-22_A001",
    card=CardView("volume:9C1F-23AB:64000000000", "A001", 1),
    status=JobStatus.CREATED,
    file_count=214,
    total_bytes=61_203_283_968,
    intake=Intake(
        {
            (FileKind.MEDIA, Familiarity.NEW): (12, 9_663_676_416),
            (FileKind.MEDIA, Familiarity.KNOWN): (202, 51_539_607_552),
        }
    ).as_json(),
    safe_to_format=False,
    created_at=_AT,
    completed_at=None,
)

_CLAIMED = Claimed(
    execution_id=EXAMPLE_UUID,
    pipeline_type="transcoding",
    message_id=None,
    step_name="transcode",
    step_key="transcode",
    parameter="",
    attempt=1,
    worker_id="farm-3",
    data={"clip": "A001.mov"},
    params={},
    checkpoint=None,
    lease_s=30.0,
    lease_expires_at=_AT,
    run_ends_at=None,
)

_ENGINE = EngineView(
    paused=False,
    paused_at=None,
    running=1,
    waiting=0,
    overdue=(),
    abandoned=(),
)


_TOKEN = TokenView(3, "cart 2", Role.DETECTOR, _AT, None, None)


@dataclass(frozen=True, slots=True)
class Parameter:
    """``where``: ``path``, ``query`` or ``header``."""

    name: str
    where: str
    schema: Mapping[str, Any]
    description: str
    example: object = None

    def to_dict(self) -> dict[str, Any]:
        told = {
            "name": self.name,
            "in": self.where,
            "required": self.where == "path",
            "description": self.description,
            "schema": dict(self.schema),
        }
        return told if self.example is None else {**told, "example": self.example}


@dataclass(frozen=True, slots=True)
class Answer:
    """example: what the answer may look like; an instance of the type that writes it."""

    description: str
    example: Any
    media_type: str = "application/json"
    location: bool = False
    other: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """refuses: an example of each error that it may answer with, beside those of all."""

    tag: str
    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    body: Any = None
    parameters: Sequence[Parameter] = ()
    refuses: Sequence[errors.RushesError] = ()


REFERENCE = Parameter(
    "reference", "path", {"type": "string"}, "an execution's uuid, or its `id`", EXAMPLE_UUID
)
STEP_KEY = Parameter("step_key", "path", {"type": "string"}, "which of its steps", "copy_files")
JOB_ID = Parameter(
    "job_id", "path", {"type": "integer", "minimum": 0, "maximum": MOST}, "a job's `id`", 3
)
SINCE = Parameter(
    "since",
    "query",
    {"type": "integer", "minimum": 0, "maximum": MOST},
    "an event's id: what came after it",
)
LAST_EVENT_ID = Parameter(
    "last-event-id",
    "header",
    {"type": "integer", "minimum": 0, "maximum": MOST},
    "what `since` is, as a browser says it when it comes back to a stream",
)

CURSOR = Parameter(
    "cursor",
    "query",
    {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"},
    "`next_cursor` of the page before",
)


def _limit(default: int, most: int) -> Parameter:
    bounds = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter("limit", "query", bounds, "how many at most")


TOKEN_ID = Parameter(
    "token_id", "path", {"type": "integer", "minimum": 0, "maximum": MOST}, "a token's `id`", 3
)
TICKET = Parameter(
    "ticket",
    "query",
    {"type": "string"},
    "for a browser's event stream, in place of `Authorization`; good once",
)

_NO_EXECUTION = errors.ExecutionNotFound(EXAMPLE_UUID)
_NO_STEP = errors.StepNotFound(EXAMPLE_UUID, "copy_file")
_NO_JOB = errors.JobNotFound(3)
_BAD_LIMIT = errors.InvalidInput(
    f"limit must be a whole number from 1 to {MAX_PAGE}, not '0'", field="limit"
)
_BAD_BODY = errors.InvalidInput(
    "the body is not what it should be: Object contains unknown field `dta`", field="dta"
)
_GONE = errors.FactsGone(12, 900, 1041)
_STALE = errors.StaleExecution("under way")

_EVENTS = Answer(
    "a page of them, or the stream for who accepts `text/event-stream`",
    EventPage([event_examples()["StepStarted"]]),
    other={
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": "id: 1042\nevent: pipeline:step_started\ndata: {...}\n\n",
        }
    },
)
_EVENTS_TOLD = (
    "A page of what happened, in order; or, for who accepts `text/event-stream`, all of it as "
    "server-sent events, with the WebSocket's messages as their data, and everything that "
    "happens from then on. Who comes back with `since` or `Last-Event-ID` misses nothing."
)


def _changes(
    verb: str,
    summary: str,
    *refuses: errors.RushesError,
    status: int = 200,
    description: str = "",
    body: Any = None,
    parameters: Sequence[Parameter] = (),
) -> Operation:
    """Something that is done to an execution, and answered with it."""
    return Operation(
        "executions",
        summary,
        {status: Answer("the execution, as it is now", _EXECUTION, location=status == 201)},
        description,
        body,
        (REFERENCE, *parameters),
        (_NO_EXECUTION, errors.IllegalTransition("execution", verb, "completed"), *refuses, _STALE),
    )


def _reports(summary: str, body: Any) -> Operation:
    """What a worker outside says of its attempt."""
    over = errors.AttemptOver("step transcode: attempt 1 is over (the step is running, at 2)")
    return Operation(
        "external steps",
        summary,
        {200: Answer("the execution, as it is now", _EXECUTION)},
        "The same again changes nothing; what an attempt says that is over is refused.",
        body,
        (REFERENCE, STEP_KEY),
        (_NO_EXECUTION, _NO_STEP, _BAD_BODY, errors.NotExternal("copy_files"), over, _STALE),
    )


OPERATIONS: Mapping[str, Operation] = {
    # By the name of the method that serves it.
    "list_executions": Operation(
        "executions",
        "Executions, the newest first",
        {200: Answer("a page", ExecutionPage([_EXECUTION], "7"))},
        parameters=(
            Parameter(
                "status", "query", {"$ref": "#/components/schemas/ExecutionStatus"}, "only these"
            ),
            Parameter("pipeline_type", "query", {"type": "string"}, "only these"),
            Parameter(
                "message_id", "query", {"type": "string"}, "the one that it was answered with"
            ),
            _limit(PAGE, MAX_PAGE),
            CURSOR,
        ),
        refuses=(_BAD_LIMIT,),
    ),
    "trigger_pipeline": Operation(
        "executions",
        "Start a pipeline",
        {
            201: Answer(
                "it is stored, and starts",
                TriggerResponse(EXAMPLE_UUID, None, _EXECUTION),
                location=True,
            ),
            200: Answer(
                "it is there already: the message is known, or its card is under way",
                TriggerResponse(EXAMPLE_UUID, "message", _EXECUTION),
                location=True,
            ),
        },
        "Once a `message_id`: the same again is answered with the same execution.",
        TriggerRequest("sd_ingest", EXAMPLE_MESSAGE, {"sd_path": "/media/A001"}),
        (
            Parameter(
                "idempotency-key",
                "header",
                {
                    "type": "string",
                    "pattern": "^[!-~]([ -~]*[!-~])?$",
                    "maxLength": MAX_MESSAGE_ID,
                },
                "the `message_id`, for who would rather say it here; not another one than there",
            ),
        ),
        (
            _BAD_BODY,
            errors.InvalidPath("sd_path '/etc' is not below a card root", field="sd_path"),
            errors.PipelineNotFound("sd_ingst", ("sd_ingest",)),
            errors.MessageConflict(EXAMPLE_MESSAGE),
        ),
    ),
    "get_execution": Operation(
        "executions",
        "One execution, with its steps",
        {200: Answer("the execution", _EXECUTION)},
        parameters=(REFERENCE,),
        refuses=(_NO_EXECUTION,),
    ),
    "retry_execution": _changes(
        "retry",
        "Go on with one that has failed",
        errors.CardBusy("path:/media/A001", EXAMPLE_UUID),
        status=202,
        description="Failed steps, and those skipped because of them, run again; what has "
        "completed stays.",
    ),
    "cancel_execution": _changes("cancel", "End one that is under way", status=202),
    "pause_execution": _changes(
        "pause", "Start nothing more of one", description="What runs goes on to its end."
    ),
    "resume_execution": _changes("resume", "Let one go on that is paused"),
    "skip_step": _changes(
        "skip",
        "Do without a step that has failed",
        _NO_STEP,
        errors.CardBusy("path:/media/A001", EXAMPLE_UUID),
        description="What depends on it goes on without its output.",
        parameters=(STEP_KEY,),
    ),
    "complete_step": _changes(
        "complete",
        "Say what came of a step that has failed",
        _NO_STEP,
        _BAD_BODY,
        errors.CardBusy("path:/media/A001", EXAMPLE_UUID),
        description="Somebody has done its work by hand.",
        body=CompleteRequest({"job_folder": "/footage/A001"}),
        parameters=(STEP_KEY,),
    ),
    "rerun_execution": _changes(
        "rerun",
        "Do a part of one again, as a new execution",
        _NO_STEP,
        _BAD_BODY,
        errors.CardBusy("path:/media/A001", EXAMPLE_UUID),
        status=201,
        body=RerunRequest("copy_files"),
    ),
    "claim_step": Operation(
        "external steps",
        "Claim a step that waits for a worker outside",
        {200: Answer("the one that has waited longest, if any does", ClaimResponse(_CLAIMED))},
        "Each is handed to one worker only. It doesn't wait: `pipeline:step_started` says when "
        "there may be one, and gRPC's ClaimStep waits.",
        ClaimRequest("transcode", "farm-3"),
        refuses=(_BAD_BODY,),
    ),
    "heartbeat_step": Operation(
        "external steps",
        "Say that a worker is at work on its step",
        {200: Answer("whether its attempt still runs", Beat(True, None, _AT))},
        "It begins the step's lease anew. An attempt that is over is answered, not refused: "
        "its worker is to end.",
        HeartbeatRequest(1, 40.0),
        (REFERENCE, STEP_KEY),
        (_NO_EXECUTION, _NO_STEP, _BAD_BODY, errors.NotExternal("copy_files"), _STALE),
    ),
    "report_completed": _reports("Say what came of an external step", CompletedReport(1)),
    "report_failed": _reports("Say why an external step failed", FailedReport(1, "no licence")),
    "report_released": _reports("Give an external step back to others", ReleasedReport(1)),
    "get_engine": Operation(
        "engine", "The engine as a whole", {200: Answer("what it has to do", _ENGINE)}
    ),
    "pause_engine": Operation(
        "engine",
        "Start nothing more",
        {
            200: Answer(
                "what it has to do", msgspec.structs.replace(_ENGINE, paused=True, paused_at=_AT)
            )
        },
        "What runs goes on to its end. It stays so when the server is started again.",
    ),
    "resume_engine": Operation("engine", "Go on", {200: Answer("what it has to do", _ENGINE)}),
    "events_of_execution": Operation(
        "events",
        "What happened to one execution",
        {200: _EVENTS},
        _EVENTS_TOLD,
        parameters=(REFERENCE, SINCE, LAST_EVENT_ID, TICKET, _limit(MAX_EVENTS, MAX_EVENTS)),
        refuses=(_BAD_LIMIT, _NO_EXECUTION, _GONE),
    ),
    "events": Operation(
        "events",
        "What happened to all of them",
        {200: _EVENTS},
        _EVENTS_TOLD,
        parameters=(SINCE, LAST_EVENT_ID, TICKET, _limit(MAX_EVENTS, MAX_EVENTS)),
        refuses=(_BAD_LIMIT, _GONE),
    ),
    "list_pipelines": Operation(
        "pipelines",
        "What can be started",
        {
            200: Answer(
                "all there are",
                PipelineList(
                    [
                        PipelineView.of(
                            PipelineDefinition(
                                "qr_billing",
                                (StepSpec("read_codes"), StepSpec("bill", ("read_codes",))),
                            ),
                            card=False,
                        )
                    ]
                ),
            )
        },
    ),
    "get_job": Operation(
        "jobs",
        "One card's way into the library",
        {
            200: Answer(
                "the job",
                JudgedJob(**msgspec.structs.asdict(_JOB), verdict=None),
            )
        },
        parameters=(JOB_ID,),
        refuses=(_NO_JOB,),
    ),
    "list_jobs": Operation(
        "jobs",
        "Jobs, the newest first",
        {200: Answer("a page", JobPage([_JOB], "3"))},
        parameters=(
            _limit(PAGE, MAX_PAGE),
            CURSOR,
        ),
        refuses=(_BAD_LIMIT,),
    ),
    "get_report": Operation(
        "jobs",
        "What came of every file of a card, as a page to print or send",
        {200: Answer("a page that loads nothing", "<!doctype html>...", "text/html")},
        parameters=(JOB_ID,),
        refuses=(_NO_JOB,),
    ),
    "get_report_table": Operation(
        "jobs",
        "The same for a spreadsheet",
        {200: Answer("RFC 4180, with a header line", "path,kind,...", "text/csv")},
        parameters=(JOB_ID,),
        refuses=(_NO_JOB,),
    ),
    "list_job_files": Operation(
        "jobs",
        "What was found on its card",
        {
            200: Answer(
                "a page",
                FilePage(
                    [
                        FileView(
                            "DCIM/100GOPRO/GX010001.MP4",
                            FileKind.MEDIA,
                            4_011_622_400,
                            1_763_800_140_000_000_000,
                            "DCIM/100GOPRO/GX010001.MP4",
                            None,
                        )
                    ],
                    None,
                ),
            )
        },
        parameters=(
            JOB_ID,
            _limit(MAX_EVENTS, MAX_EVENTS),
            Parameter(
                "cursor",
                "query",
                {"type": "string", "pattern": "^([0-9a-f]{2})+$"},
                "`next_cursor` of the page before",
            ),
        ),
        refuses=(_BAD_LIMIT, _NO_JOB),
    ),
    "new_ticket": Operation(
        "access",
        "A ticket for a browser's WebSocket or event stream",
        {201: Answer("good once, for 30 seconds", Ticket("q1Zc...", _AT))},
        "It stands for who asks, and goes into the address: `/ws?ticket=...`.",
    ),
    "list_tokens": Operation(
        "access",
        "Who is let in",
        {200: Answer("all that aren't revoked", TokenList([_TOKEN]))},
    ),
    "new_token": Operation(
        "access",
        "Let somebody in",
        {
            201: Answer(
                "it says its `token` here, and never again",
                NewToken(**{**msgspec.structs.asdict(_TOKEN), "token": "rushes_3_..."}),
            )
        },
        "With the first one the server is locked: from then on everything takes a token.",
        TokenRequest(Role.DETECTOR, "cart 2"),
        refuses=(_BAD_BODY, errors.Conflict("there are 1000 tokens already")),
    ),
    "revoke_token": Operation(
        "access",
        "Let somebody in no more",
        {200: Answer("the token, as it was", _TOKEN)},
        "Whoever is connected with it is let go at once.",
        parameters=(TOKEN_ID,),
        refuses=(errors.TokenNotFound(3),),
    ),
    "health": Operation("server", "Whether it is alive", {200: Answer("it is", Health("ok"))}),
    "ready": Operation(
        "server",
        "Whether it can work",
        {200: Answer("the database answers", Health("ready"))},
    ),
    "openapi": Operation(
        "server", "This document", {200: Answer("OpenAPI 3.1", {"openapi": "3.1.0"})}
    ),
    "asyncapi": Operation(
        "server", "The WebSocket's contract", {200: Answer("AsyncAPI 3", {"asyncapi": "3.0.0"})}
    ),
    "reference": Operation(
        "server",
        "Both contracts, for people",
        {200: Answer("a page", "<!doctype html>...", "text/html")},
    ),
    "metrics": Operation(
        "server",
        "Figures for Prometheus",
        {200: Answer("in its text format", "rushes_executions_active 2\n", "text/plain")},
    ),
}
