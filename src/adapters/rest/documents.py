"""What REST takes and gives as JSON: the types that check requests and write answers.

The contract (``contract.py``) is made from them. What is said of a field after its name
in a docstring is said there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from application.access import MAX_EXPIRES_S, MAX_NAME, MIN_EXPIRES_S
from application.claims import MAX_WORKER_ID, Claimed
from application.ports import AttemptRef
from application.trigger import MAX_MESSAGE_ID
from application.views import ExecutionView
from domain.access import Role, Token
from domain.definition import PipelineDefinition, StepSpec
from domain.events import timestamp
from domain.footage import CardFile, FileKind, Job, JobStatus, shown

INVISIBLE = (
    r"\u0000-\u001f\u007f-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0001\U000e0020-\U000e007f"
)
"""What ``check_message_id`` doesn't take, for a regular expression's ``[^...]``.

Control and format characters, line and paragraph separators; lone surrogates are no JSON.
"""

MessageId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_MESSAGE_ID,
        extra_json_schema={"pattern": f"^[^{INVISIBLE}]*$"},
    ),
]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request's body: a field that it doesn't have is a slip, and is refused."""


class TriggerRequest(Asked, frozen=True):
    """What to start.

    message_id: the same one again is answered with the same execution. May also be
        the header `Idempotency-Key`.
    data: becomes the execution's data; `sd_ingest` needs `sd_path` in it.
    """

    pipeline_type: str
    message_id: MessageId | None = None
    data: dict[str, Any] = {}


class CompleteRequest(Asked, frozen=True):
    """output: what came of the work that somebody has done in the step's place."""

    output: dict[str, Any] = {}


class RerunRequest(Asked, frozen=True):
    """from_step: it and all that comes of it run again; what else had completed is kept."""

    from_step: str


AttemptNumber = Annotated[float, Meta(ge=1, le=2**31 - 1, multiple_of=1)]
"""To JSON 1.0 is a whole number too, and some write it so."""

WorkerId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_WORKER_ID,
        extra_json_schema={"pattern": f"^[^{INVISIBLE}]*$"},
    ),
]


class ClaimRequest(Asked, frozen=True):
    """step_name: of the step, or of the family if it is one.

    worker_id: whatever tells this worker from others; shown with the step.
    pipeline_type: null: of whatever pipeline.
    """

    step_name: Annotated[str, Meta(pattern="^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
    worker_id: WorkerId
    pipeline_type: Annotated[str, Meta(pattern="^[A-Za-z][A-Za-z0-9_.-]{0,63}$")] | None = None


class ClaimResponse(msgspec.Struct, frozen=True):
    """claim: null if no step waits for a worker now."""

    claim: Claimed | None


class HeartbeatRequest(Asked, frozen=True):
    """attempt: as the claim had it.

    progress: of the step, from 0 to 100.
    detail: what it says of its progress beside that.
    checkpoint: what the next attempt is to be given, if there is one.
    """

    attempt: AttemptNumber
    progress: Annotated[float, Meta(ge=0, le=100)] | None = None
    detail: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None


class CompletedReport(Asked, frozen=True):
    """output: what came of it, merged into the execution's data."""

    attempt: AttemptNumber
    output: dict[str, Any] = {}


class FailedReport(Asked, frozen=True):
    """error: why, for a person to read. permanent: to try again by itself would be no use."""

    attempt: AttemptNumber
    error: Annotated[str, Meta(pattern=r"\S")]
    permanent: bool = False


class ReleasedReport(Asked, frozen=True):
    """The worker gives the step back, which is no failure."""

    attempt: AttemptNumber


class TriggerResponse(msgspec.Struct, frozen=True):
    """duplicate: `message` if this message_id was known, `card` if the card is under way
    already, null if the execution is new.
    """

    execution_id: str
    duplicate: Literal["message", "card"] | None
    execution: ExecutionView


class ExecutionPage(msgspec.Struct, frozen=True):
    """The newest first. next_cursor: `cursor` for the next page; null on the last one."""

    executions: Sequence[ExecutionView]
    next_cursor: str | None


class AttemptView(msgspec.Struct, frozen=True):
    """execution: its number, its `id`."""

    execution: int
    step_key: str
    attempt: int

    @classmethod
    def of(cls, ref: AttemptRef) -> AttemptView:
        return cls(ref.execution_id, ref.step_key, ref.attempt)


class EngineView(msgspec.Struct, frozen=True):
    """The engine as a whole.

    running: handlers at work.
    waiting: steps that wait for a slot.
    overdue: attempts that were told to end and haven't yet; their slots stay taken.
    abandoned: those that haven't for so long that others got their slots.
    """

    paused: bool
    paused_at: str | None
    running: int
    waiting: int
    overdue: Sequence[AttemptView]
    abandoned: Sequence[AttemptView]


class EventPage(msgspec.Struct, frozen=True):
    """In the order of their ids; the last one's is the next page's `since`."""

    events: Sequence[Any]


class PipelineView(msgspec.Struct, frozen=True):
    """A pipeline that can be triggered. card: whether it works on a card."""

    type: str
    steps: Sequence[StepSpec]
    card: bool

    @classmethod
    def of(cls, definition: PipelineDefinition, *, card: bool) -> PipelineView:
        return cls(definition.type, definition.steps, card)


class PipelineList(msgspec.Struct, frozen=True):
    pipelines: Sequence[PipelineView]


class CardView(msgspec.Struct, frozen=True):
    """identity: what tells one card from another.

    label: the volume's name.
    generation: counts the times that it was filled anew, formatted or emptied.
    """

    identity: str
    label: str
    generation: int


class JobView(msgspec.Struct, frozen=True):
    """One card's way into the library.

    execution_id: the execution's number; it may be forgotten, the job never is.
    name: the folder below the library.
    file_count: what the scan found to be copied.
    total_bytes: of what the scan found to be copied.
    intake: how much of it was new, known (in the ledger, at every destination), or to_hash (known
    only if its bytes are the same), each as {files, bytes}, and the same by_kind; null for jobs of
    versions that didn't look.
    safe_to_format: whether the last verdict on its card said so; false before there is one.
    """

    id: int
    uuid: str
    execution_id: int
    name: str
    card: CardView
    status: JobStatus
    file_count: int
    total_bytes: int
    intake: Mapping[str, Any] | None
    safe_to_format: bool
    created_at: str
    completed_at: str | None

    @classmethod
    def of(cls, job: Job) -> JobView:
        return cls(
            id=job.id,
            uuid=job.uuid,
            execution_id=job.execution_id,
            name=job.name,
            card=CardView(job.card.identity, job.card.label, job.card.generation),
            status=job.status,
            file_count=job.file_count,
            total_bytes=job.total_bytes,
            intake=job.intake,
            safe_to_format=job.verdict is not None and bool(job.verdict["safe_to_format"]),
            created_at=timestamp(job.created_at),
            completed_at=None if job.completed_at is None else timestamp(job.completed_at),
        )


class JudgedJob(JobView, frozen=True):
    """A job with the last verdict on its card, and all that was found then.

    verdict: null before there is one.
    """

    verdict: Mapping[str, Any] | None

    @classmethod
    def of(cls, job: Job) -> JudgedJob:
        return cls(**msgspec.structs.asdict(JobView.of(job)), verdict=job.verdict)


class JobPage(msgspec.Struct, frozen=True):
    """The newest first. next_cursor: `cursor` for the next page; null on the last."""

    jobs: Sequence[JobView]
    next_cursor: str | None


class FileView(msgspec.Struct, frozen=True):
    """What a scan found.

    path: on the card; what is no text in it is escaped.
    clip: the path of the clip's first file, if it is part of one.
    problem: what was noticed about it, if anything was.
    """

    path: str
    kind: FileKind
    size_bytes: int
    mtime_ns: int
    clip: str | None
    problem: str | None

    @classmethod
    def of(cls, file: CardFile) -> FileView:
        return cls(
            path=shown(file.path),
            kind=file.kind,
            size_bytes=file.size_bytes,
            mtime_ns=file.mtime_ns,
            clip=None if file.clip is None else shown(file.clip),
            problem=file.problem,
        )


class FilePage(msgspec.Struct, frozen=True):
    """In the order of their paths. next_cursor: `cursor` for the next page; null on the last."""

    files: Sequence[FileView]
    next_cursor: str | None


class TokenRequest(Asked, frozen=True):
    """role: what its bearer may do.

    name: whose it is, for people.
    expires_in_s: seconds from now; null: good until it is revoked.
    """

    role: Role
    name: Annotated[
        str,
        Meta(max_length=MAX_NAME, extra_json_schema={"pattern": r"^[ -~]*$"}),
    ] = ""
    expires_in_s: Annotated[float, Meta(ge=MIN_EXPIRES_S, le=MAX_EXPIRES_S)] | None = None


class TokenView(msgspec.Struct, frozen=True):
    """A token, without its secret.

    name: whose it is, for people.
    expires_at: null: good until it is revoked.
    last_used_at: to ten minutes or so; null if it never was.
    """

    id: int
    name: str
    role: Role
    created_at: str
    expires_at: str | None
    last_used_at: str | None

    @classmethod
    def of(cls, token: Token) -> TokenView:
        return cls(
            id=token.id,
            name=token.name,
            role=token.role,
            created_at=timestamp(token.created_at),
            expires_at=None if token.expires_at is None else timestamp(token.expires_at),
            last_used_at=None if token.last_used_at is None else timestamp(token.last_used_at),
        )


class NewToken(TokenView, frozen=True):
    """token: what its bearer shows. It is told here, and never again."""

    token: str


class TokenList(msgspec.Struct, frozen=True):
    tokens: Sequence[TokenView]


class Ticket(msgspec.Struct, frozen=True):
    """ticket: good once, in the address of a WebSocket or an event stream."""

    ticket: str
    expires_at: str


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok", "ready"]


class Problem(msgspec.Struct, frozen=True):
    """An error (RFC 9457).

    code: the word for programs; it never changes.
    detail: the sentence for people.
    field: which part of the request is wrong, where there is one.
    last_event_id: where following can begin again, if `since` is outside the log.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | UnsetType = UNSET
    last_event_id: int | UnsetType = UNSET
