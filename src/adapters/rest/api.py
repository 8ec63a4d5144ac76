"""The routes under ``/api``: executions, their events, jobs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from adapters.rest.documents import (
    Asked,
    AttemptView,
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
    ReleasedReport,
    RerunRequest,
    Ticket,
    TokenList,
    TokenRequest,
    TokenView,
    TriggerRequest,
    TriggerResponse,
)
from adapters.scope import principal_of
from application.access import Access
from application.advance import Advance
from application.cancel import Cancel
from application.catalogue import Catalogue
from application.claims import Claims
from application.feed import Entry, Feed, Message
from application.hold import Hold
from application.pause import Pause
from application.ports import CardFiles, Dispatcher, Jobs, Query, Threads
from application.report import Report
from application.rerun import Rerun
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.trigger import Trigger
from application.views import message_view
from domain.errors import FactsGone, InvalidInput
from domain.events import timestamp
from domain.execution import ExecutionStatus
from domain.footage import CardFile

NO_JSON = "Unsupported Media Type: send it as content-type: application/json"

MAX_BODY_BYTES = 1024 * 1024
"""As much as a trigger's data may have."""

PAGE = 50
MAX_PAGE = 200
MAX_EVENTS = 1_000

_FIELD = re.compile(r"field `([^`]*)`|`\$\.(\w+)")
"""Where msgspec says which field of a body is wrong."""

A = TypeVar("A", bound=Asked)

PIECES = 500
"""Lines of a report that are made and sent at once."""

_STILL = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
"""A report runs nothing and loads nothing, whatever names are in it."""

KEEPALIVE_S = 15.0
"""How often a silent event stream says that it is still there."""


class Api:
    """Each method is one route; what they raise becomes a problem (``problems.py``)."""

    def __init__(
        self,
        *,
        trigger: Trigger,
        status: Status,
        retry: Retry,
        cancel: Cancel,
        pause: Pause,
        settle: Settle,
        rerun: Rerun,
        advance: Advance,
        claims: Claims,
        hold: Hold,
        dispatcher: Dispatcher,
        feed: Feed,
        catalogue: Catalogue,
        jobs: Jobs,
        card_files: CardFiles,
        report: Report,
        threads: Threads,
        access: Access,
        owner_key: str = "",
    ) -> None:
        """``owner_key``: who shows it (``X-Rushes-Key``) may name a card anywhere."""
        self._trigger = trigger
        self._status = status
        self._retry = retry
        self._cancel = cancel
        self._pause = pause
        self._settle = settle
        self._rerun = rerun
        self._advance = advance
        self._claims = claims
        self._hold = hold
        self._dispatcher = dispatcher
        self._feed = feed
        self._catalogue = catalogue
        self._jobs = jobs
        self._card_files = card_files
        self._report = report
        self._threads = threads
        self._access = access
        self._owner_key = owner_key

    def routes(self) -> list[Route]:
        one = "/api/pipeline/{reference}"
        step = f"{one}/steps/{{step_key}}"
        return [
            Route("/api/pipeline", self.list_executions, methods=["GET"]),
            Route("/api/pipeline", self.trigger_pipeline, methods=["POST"]),
            Route(one, self.get_execution, methods=["GET"]),
            Route(f"{one}/retry", self.retry_execution, methods=["POST"]),
            Route(f"{one}/cancel", self.cancel_execution, methods=["POST"]),
            Route(f"{one}/pause", self.pause_execution, methods=["POST"]),
            Route(f"{one}/resume", self.resume_execution, methods=["POST"]),
            Route(f"{one}/steps/{{step_key}}/skip", self.skip_step, methods=["POST"]),
            Route(f"{one}/steps/{{step_key}}/complete", self.complete_step, methods=["POST"]),
            Route(f"{one}/rerun", self.rerun_execution, methods=["POST"]),
            Route("/api/steps/claim", self.claim_step, methods=["POST"]),
            Route(f"{step}/heartbeat", self.heartbeat_step, methods=["POST"]),
            Route(f"{step}/report/completed", self.report_completed, methods=["POST"]),
            Route(f"{step}/report/failed", self.report_failed, methods=["POST"]),
            Route(f"{step}/report/released", self.report_released, methods=["POST"]),
            Route("/api/engine", self.get_engine, methods=["GET"]),
            Route("/api/engine/pause", self.pause_engine, methods=["POST"]),
            Route("/api/engine/resume", self.resume_engine, methods=["POST"]),
            Route(f"{one}/events", self.events_of_execution, methods=["GET"]),
            Route("/api/events", self.events, methods=["GET"]),
            Route("/api/pipelines", self.list_pipelines, methods=["GET"]),
            Route("/api/jobs", self.list_jobs, methods=["GET"]),
            Route("/api/jobs/{job_id}", self.get_job, methods=["GET"]),
            Route("/api/jobs/{job_id}/report", self.get_report, methods=["GET"]),
            Route("/api/jobs/{job_id}/report.csv", self.get_report_table, methods=["GET"]),
            Route("/api/jobs/{job_id}/files", self.list_job_files, methods=["GET"]),
            Route("/api/tickets", self.new_ticket, methods=["POST"]),
            Route("/api/tokens", self.list_tokens, methods=["GET"]),
            Route("/api/tokens", self.new_token, methods=["POST"]),
            Route("/api/tokens/{token_id}/revoke", self.revoke_token, methods=["POST"]),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    # -- executions --------------------------------------------------------------

    async def trigger_pipeline(self, request: Request) -> Response:
        asked = await _body(request, TriggerRequest)
        key = request.headers.get("idempotency-key")
        if key is not None and asked.message_id is not None and key != asked.message_id:
            raise InvalidInput(
                "Idempotency-Key and message_id are the same thing, and differ here",
                field="message_id",
            )
        answer = await self._trigger(
            asked.pipeline_type,
            asked.data,
            message_id=key if asked.message_id is None else asked.message_id,
            anywhere=self._is_owner(request),
        )
        execution = answer.execution
        return _json(
            TriggerResponse(execution.execution_id, answer.duplicate, execution),
            status=201 if answer.duplicate is None else 200,
            headers={"location": f"/api/pipeline/{execution.execution_id}"},
        )

    def _is_owner(self, request: Request) -> bool:
        shown = request.headers.get("x-rushes-key", "")
        return bool(self._owner_key) and secrets.compare_digest(
            shown.encode(), self._owner_key.encode()
        )

    async def get_execution(self, request: Request) -> Response:
        answer = await self._status.encoded(_reference(request), msgspec.json.encode)
        return Response(answer, media_type="application/json")

    async def list_executions(self, request: Request) -> Response:
        params = request.query_params
        limit = _number(params.get("limit"), "limit", PAGE, 1, MAX_PAGE)
        cursor = params.get("cursor")
        found = await self._status.list(
            Query(
                status=_status(params.get("status")),
                pipeline_type=params.get("pipeline_type"),
                message_id=params.get("message_id"),
                before=None if cursor is None else _number(cursor, "cursor", 0, 1, 2**63 - 1),
                limit=limit + 1,
            )
        )
        page = found[:limit]
        return _json(ExecutionPage(page, str(page[-1].id) if len(found) > limit else None))

    async def retry_execution(self, request: Request) -> Response:
        return _json(await self._retry(_reference(request)), status=202)

    async def cancel_execution(self, request: Request) -> Response:
        return _json(await self._cancel(_reference(request)), status=202)

    async def pause_execution(self, request: Request) -> Response:
        return _json(await self._pause.pause(_reference(request)))

    async def resume_execution(self, request: Request) -> Response:
        return _json(await self._pause.resume(_reference(request)))

    async def skip_step(self, request: Request) -> Response:
        return _json(await self._settle.skip(_reference(request), request.path_params["step_key"]))

    async def complete_step(self, request: Request) -> Response:
        asked = await _body(request, CompleteRequest)
        return _json(
            await self._settle.complete(
                _reference(request), request.path_params["step_key"], asked.output
            )
        )

    async def rerun_execution(self, request: Request) -> Response:
        asked = await _body(request, RerunRequest)
        execution = await self._rerun(_reference(request), asked.from_step)
        return _json(
            execution,
            status=201,
            headers={"location": f"/api/pipeline/{execution.execution_id}"},
        )

    # -- external steps ----------------------------------------------------------

    async def claim_step(self, request: Request) -> Response:
        """At once or not at all: that a client has gone away while it waits isn't told here."""
        asked = await _body(request, ClaimRequest)
        claimed = await self._claims(
            asked.step_name, asked.worker_id, pipeline_type=asked.pipeline_type
        )
        return _json(ClaimResponse(claimed))

    async def heartbeat_step(self, request: Request) -> Response:
        asked = await _body(request, HeartbeatRequest)
        return _json(
            await self._advance.beat_external(
                _reference(request),
                request.path_params["step_key"],
                int(asked.attempt),
                progress=asked.progress,
                detail=asked.detail,
                checkpoint=asked.checkpoint,
            )
        )

    async def report_completed(self, request: Request) -> Response:
        asked = await _body(request, CompletedReport)
        return _json(
            await self._advance.complete_external(
                _reference(request),
                request.path_params["step_key"],
                int(asked.attempt),
                asked.output,
            )
        )

    async def report_failed(self, request: Request) -> Response:
        asked = await _body(request, FailedReport)
        return _json(
            await self._advance.fail_external(
                _reference(request),
                request.path_params["step_key"],
                int(asked.attempt),
                asked.error,
                permanent=asked.permanent,
            )
        )

    async def report_released(self, request: Request) -> Response:
        asked = await _body(request, ReleasedReport)
        return _json(
            await self._advance.release_external(
                _reference(request), request.path_params["step_key"], int(asked.attempt)
            )
        )

    # -- the engine as a whole ---------------------------------------------------

    async def get_engine(self, request: Request) -> Response:
        load = self._dispatcher.load()
        held_at = self._hold.held_at
        return _json(
            EngineView(
                paused=held_at is not None,
                paused_at=None if held_at is None else timestamp(held_at),
                running=load.running,
                waiting=load.waiting,
                overdue=[AttemptView.of(ref) for ref in load.overdue],
                abandoned=[AttemptView.of(ref) for ref in load.abandoned],
            )
        )

    async def pause_engine(self, request: Request) -> Response:
        await self._hold.pause()
        return await self.get_engine(request)

    async def resume_engine(self, request: Request) -> Response:
        await self._hold.resume()
        return await self.get_engine(request)

    # -- events ------------------------------------------------------------------

    async def events_of_execution(self, request: Request) -> Response:
        execution = await self._status.get(_reference(request))
        return await self._events(request, execution.id)

    async def events(self, request: Request) -> Response:
        return await self._events(request, None)

    async def _events(self, request: Request, execution_id: int | None) -> Response:
        """A page, or the stream itself for who accepts server-sent events.

        Without ``since``: an execution's events from the first; of all executions, a
        stream begins now, and a page with the first that is kept.
        """
        streaming = "text/event-stream" in request.headers.get("accept", "")
        since = _number(request.query_params.get("since"), "since", None, 0, 2**63 - 1)
        # A browser that comes back to a stream says here how far it has come, at the old address.
        last = request.headers.get("last-event-id")
        since = _number(last, "last-event-id", since, 0, 2**63 - 1)
        if since is None:
            if execution_id is not None:
                since = 0
            elif streaming:
                since = self._feed.last_id
            else:
                since = await self._feed.oldest()
        if not streaming:
            limit = _number(request.query_params.get("limit"), "limit", MAX_EVENTS, 1, MAX_EVENTS)
            facts = await self._feed.page(since, limit, execution_id)
            return _json(EventPage([message_view(fact) for fact in facts]))
        await self._feed.check(since, execution_id)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return StreamingResponse(
            _server_sent(
                self._feed.follow(since, execution_id),
                partial(self._access.over, principal_of(request.scope)),
            ),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    # -- pipelines and jobs ------------------------------------------------------

    async def list_pipelines(self, request: Request) -> Response:
        return _json(
            PipelineList(
                [
                    PipelineView.of(pipeline.definition, card=pipeline.card)
                    for pipeline in self._catalogue.all()
                ]
            )
        )

    async def get_job(self, request: Request) -> Response:
        job_id = _job_id(request)
        return _json(JudgedJob.of(await self._threads.run(lambda: self._jobs.get(job_id))))

    async def list_jobs(self, request: Request) -> Response:
        params = request.query_params
        limit = _number(params.get("limit"), "limit", PAGE, 1, MAX_PAGE)
        cursor = params.get("cursor")
        before = None if cursor is None else _number(cursor, "cursor", 0, 1, 2**63 - 1)
        found = await self._threads.run(lambda: self._jobs.list(before=before, limit=limit + 1))
        page = [JobView.of(each) for each in found[:limit]]
        return _json(JobPage(page, str(page[-1].id) if len(found) > limit else None))

    async def get_report(self, request: Request) -> Response:
        job_id = _job_id(request)
        pieces = await self._threads.run(lambda: self._report.as_html(job_id))
        return self._streamed(pieces, "text/html", _STILL)

    async def get_report_table(self, request: Request) -> Response:
        job_id = _job_id(request)
        pieces = await self._threads.run(lambda: self._report.as_csv(job_id))
        name = f'attachment; filename="rushes-job-{job_id}.csv"'
        return self._streamed(pieces, "text/csv", {"content-disposition": name})

    def _streamed(
        self, pieces: Iterator[str], media_type: str, headers: dict[str, str]
    ) -> Response:
        """What reads the database as it goes: a batch at a time is made, in a thread."""

        async def batches() -> AsyncIterator[str]:
            while batch := await self._threads.run(lambda: "".join(islice(pieces, PIECES))):
                yield batch

        return StreamingResponse(
            batches(),
            media_type=media_type,
            headers=headers,
        )

    async def list_job_files(self, request: Request) -> Response:
        job_id = _job_id(request)
        params = request.query_params
        limit = _number(params.get("limit"), "limit", MAX_EVENTS, 1, MAX_EVENTS)
        cursor = params.get("cursor")
        try:
            after = None if cursor is None else bytes.fromhex(cursor)
        except ValueError:
            raise InvalidInput("cursor must be what next_cursor said", field="cursor") from None

        def read() -> list[CardFile]:
            job = self._jobs.get(job_id)
            return list(self._card_files.of(job.execution_id, after=after, limit=limit + 1))

        found = await self._threads.run(read)
        page = found[:limit]
        return _json(
            FilePage(
                [FileView.of(each) for each in page],
                page[-1].path.hex() if len(found) > limit else None,
            )
        )

    # -- who is let in -----------------------------------------------------------

    async def new_ticket(self, request: Request) -> Response:
        text, expires_at = self._access.ticket(principal_of(request.scope))
        return _json(Ticket(text, timestamp(expires_at)), status=201)

    async def list_tokens(self, request: Request) -> Response:
        return _json(TokenList([TokenView.of(token) for token in self._access.tokens()]))

    async def new_token(self, request: Request) -> Response:
        asked = await _body(request, TokenRequest)
        token, text = await self._access.new(asked.role, asked.name, asked.expires_in_s)
        view = TokenView.of(token)
        return _json(NewToken(**msgspec.structs.asdict(view), token=text), status=201)

    async def revoke_token(self, request: Request) -> Response:
        claimed: str = request.path_params["token_id"]
        token_id = _number(claimed, "token_id", 0, 0, 2**63 - 1)
        return _json(TokenView.of(await self._access.revoke(token_id)))

    # -- health ------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        return _json(Health("ok"))

    async def ready(self, request: Request) -> Response:
        """503 if the database doesn't answer."""
        await self._status.list(Query(limit=1))
        return _json(Health("ready"))


async def _server_sent(
    entries: AsyncIterator[Entry], over: Callable[[], asyncio.Future[None]]
) -> AsyncIterator[str]:
    """Server-sent events, with a comment now and then where nothing happens.

    over: makes what is done once who follows may not any more.
    """
    following = asyncio.ensure_future(anext(entries, None))
    let_go = over()
    try:
        while True:
            waits: set[asyncio.Future[Any]] = {following, let_go}
            done, _ = await asyncio.wait(
                waits, timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED
            )
            if let_go.done():
                return
            if not done:
                yield ": still here\n\n"
                continue
            try:
                entry = following.result()
            except FactsGone:
                return  # who comes back with the last id is told why
            if entry is None:
                return
            yield entry.encoded(_server_sent_event)
            following = asyncio.ensure_future(anext(entries, None))
    finally:
        let_go.cancel()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await following


def _server_sent_event(message: Message) -> str:
    data = msgspec.json.encode(message_view(message)).decode()
    head = "" if message.id is None else f"id: {message.id}\n"
    return f"{head}event: {message.type}\ndata: {data}\n\n"


def _json(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


async def _body(request: Request, kind: type[A]) -> A:
    """Raises ``InvalidInput``, naming the field, for what is no such body."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, NO_JSON)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, "Content Too Large")
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except msgspec.ValidationError as error:
        named = _FIELD.search(str(error))
        raise InvalidInput(
            f"the body is not what it should be: {error}",
            field=None if named is None else named[1] or named[2],
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None


def _reference(request: Request) -> str | int:
    """A uuid, or a number; anything else names an execution that isn't there."""
    claimed: str = request.path_params["reference"]
    if claimed.isascii() and claimed.isdigit() and len(claimed) < 20:
        return int(claimed)
    return claimed


def _job_id(request: Request) -> int:
    claimed: str = request.path_params["job_id"]
    return _number(claimed, "job_id", 0, 0, 2**63 - 1)


D = TypeVar("D", int, int | None)


def _number(claimed: str | None, field: str, default: D, least: int, most: int) -> int | D:
    if claimed is None:
        return default
    whole = claimed.isascii() and claimed.isdigit() and len(claimed) < 20
    if whole and least <= int(claimed) <= most:
        return int(claimed)
    raise InvalidInput(
        f"{field} must be a whole number from {least} to {most}, not {claimed!a}", field=field
    )


def _status(claimed: str | None) -> ExecutionStatus | None:
    if claimed is None:
        return None
    try:
        return ExecutionStatus(claimed)
    except ValueError:
        raise InvalidInput(
            f"status must be one of {', '.join(ExecutionStatus)}, not {claimed!a}", field="status"
        ) from None
