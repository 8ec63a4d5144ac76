"""The routes under ``/api``: executions, their events, jobs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from application.cancel import Cancel
from application.catalogue import Catalogue
from application.feed import Entry, Feed, Message
from application.hold import Hold
from application.pause import Pause
from application.ports import AttemptRef, CardFiles, Dispatcher, Jobs, Query, Threads
from application.rerun import Rerun
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.trigger import Trigger
from application.views import message_view, timestamp
from domain.definition import PipelineDefinition
from domain.errors import FactsGone, InvalidInput
from domain.execution import ExecutionStatus
from domain.footage import CardFile, Job, shown

MAX_BODY_BYTES = 1024 * 1024
"""As much as a trigger's data may have."""

PAGE = 50
MAX_PAGE = 200
MAX_EVENTS = 1_000

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
        hold: Hold,
        dispatcher: Dispatcher,
        feed: Feed,
        catalogue: Catalogue,
        jobs: Jobs,
        card_files: CardFiles,
        threads: Threads,
        owner_key: str = "",
    ) -> None:
        """``owner_key``: who shows it (``X-Rushes-Key``) is the user that this server runs for."""
        self._trigger = trigger
        self._status = status
        self._retry = retry
        self._cancel = cancel
        self._pause = pause
        self._settle = settle
        self._rerun = rerun
        self._hold = hold
        self._dispatcher = dispatcher
        self._feed = feed
        self._catalogue = catalogue
        self._jobs = jobs
        self._card_files = card_files
        self._threads = threads
        self._owner_key = owner_key

    def routes(self) -> list[Route]:
        one = "/api/pipeline/{reference}"
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
            Route("/api/engine", self.get_engine, methods=["GET"]),
            Route("/api/engine/pause", self.pause_engine, methods=["POST"]),
            Route("/api/engine/resume", self.resume_engine, methods=["POST"]),
            Route(f"{one}/events", self.events_of_execution, methods=["GET"]),
            Route("/api/events", self.events, methods=["GET"]),
            Route("/api/pipelines", self.list_pipelines, methods=["GET"]),
            Route("/api/jobs/{job_id}", self.get_job, methods=["GET"]),
            Route("/api/jobs/{job_id}/files", self.list_job_files, methods=["GET"]),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    # -- executions --------------------------------------------------------------

    async def trigger_pipeline(self, request: Request) -> Response:
        body = await _json_body(request)
        unknown = body.keys() - {"pipeline_type", "message_id", "data"}
        if unknown:
            raise InvalidInput(f"unknown field {min(unknown)!a}", field=min(unknown))
        pipeline_type = body.get("pipeline_type")
        if not isinstance(pipeline_type, str):
            raise InvalidInput("pipeline_type must be text", field="pipeline_type")
        message_id = body.get("message_id")
        key = request.headers.get("idempotency-key")
        if key is not None and message_id is not None and key != message_id:
            raise InvalidInput(
                "Idempotency-Key and message_id are the same thing, and differ here",
                field="message_id",
            )
        answer = await self._trigger(
            pipeline_type,
            body.get("data", {}),
            message_id=key if message_id is None else message_id,
            anywhere=self._is_owner(request),
        )
        execution = answer.execution
        return _json(
            {
                "execution_id": execution.execution_id,
                "duplicate": answer.duplicate,
                "execution": execution,
            },
            status=201 if answer.duplicate is None else 200,
            headers={"location": f"/api/pipeline/{execution.execution_id}"},
        )

    def _is_owner(self, request: Request) -> bool:
        shown = request.headers.get("x-rushes-key", "")
        return bool(self._owner_key) and secrets.compare_digest(
            shown.encode(), self._owner_key.encode()
        )

    async def get_execution(self, request: Request) -> Response:
        return _json(await self._status.get(_reference(request)))

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
        return _json(
            {
                "executions": page,
                "next_cursor": str(page[-1].id) if len(found) > limit else None,
            }
        )

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
        body = await _json_body(request)
        unknown = body.keys() - {"output"}
        if unknown:
            raise InvalidInput(f"unknown field {min(unknown)!a}", field=min(unknown))
        return _json(
            await self._settle.complete(
                _reference(request), request.path_params["step_key"], body.get("output", {})
            )
        )

    async def rerun_execution(self, request: Request) -> Response:
        body = await _json_body(request)
        from_step = body.get("from_step")
        if not isinstance(from_step, str) or body.keys() - {"from_step"}:
            raise InvalidInput('the body must be {"from_step": STEP}', field="from_step")
        execution = await self._rerun(_reference(request), from_step)
        return _json(
            execution,
            status=201,
            headers={"location": f"/api/pipeline/{execution.execution_id}"},
        )

    # -- the engine as a whole ---------------------------------------------------

    async def get_engine(self, request: Request) -> Response:
        load = self._dispatcher.load()
        held_at = self._hold.held_at
        return _json(
            {
                "paused": held_at is not None,
                "paused_at": None if held_at is None else timestamp(held_at),
                "running": load.running,
                "waiting": load.waiting,
                "overdue": [_attempt_view(ref) for ref in load.overdue],
                "abandoned": [_attempt_view(ref) for ref in load.abandoned],
            }
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
        claimed = request.headers.get("last-event-id") if streaming else None
        claimed = claimed or request.query_params.get("since")
        if claimed is not None:
            since = _number(claimed, "since", 0, 0, 2**63 - 1)
        elif execution_id is not None:
            since = 0
        elif streaming:
            since = self._feed.last_id
        else:
            since = await self._feed.oldest()
        if not streaming:
            limit = _number(request.query_params.get("limit"), "limit", MAX_EVENTS, 1, MAX_EVENTS)
            facts = await self._feed.page(since, limit, execution_id)
            return _json({"events": [message_view(fact) for fact in facts]})
        await self._feed.check(since, execution_id)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return StreamingResponse(
            _server_sent(self._feed.follow(since, execution_id)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    # -- pipelines and jobs ------------------------------------------------------

    async def list_pipelines(self, request: Request) -> Response:
        return _json(
            {
                "pipelines": [
                    _pipeline_view(pipeline.definition, card=pipeline.card)
                    for pipeline in self._catalogue.all()
                ]
            }
        )

    async def get_job(self, request: Request) -> Response:
        job_id = _job_id(request)
        return _json(_job_view(await self._threads.run(lambda: self._jobs.get(job_id))))

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
            {
                "files": [_file_view(each) for each in page],
                "next_cursor": page[-1].path.hex() if len(found) > limit else None,
            }
        )

    # -- health ------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """503 if the database doesn't answer."""
        await self._status.list(Query(limit=1))
        return _json({"status": "ready"})


async def _server_sent(entries: AsyncIterator[Entry]) -> AsyncIterator[str]:
    """Server-sent events, with a comment now and then where nothing happens."""
    following = asyncio.ensure_future(anext(entries, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=KEEPALIVE_S)
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
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await following


def _server_sent_event(message: Message) -> str:
    data = msgspec.json.encode(message_view(message)).decode()
    head = "" if message.id is None else f"id: {message.id}\n"
    return f"{head}event: {message.type}\ndata: {data}\n\n"


def _attempt_view(ref: AttemptRef) -> dict[str, Any]:
    return {"execution": ref.execution_id, "step_key": ref.step_key, "attempt": ref.attempt}


def _pipeline_view(definition: PipelineDefinition, *, card: bool) -> dict[str, Any]:
    return {**definition.to_dict(), "card": card}


def _job_view(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "uuid": job.uuid,
        "execution_id": job.execution_id,
        "name": job.name,
        "card": {"identity": job.card.identity, "label": job.card.label},
        "status": job.status.value,
        "file_count": job.file_count,
        "total_bytes": job.total_bytes,
        "created_at": timestamp(job.created_at),
        "completed_at": None if job.completed_at is None else timestamp(job.completed_at),
    }


def _file_view(each: CardFile) -> dict[str, Any]:
    return {
        "path": shown(each.path),
        "kind": each.kind.value,
        "size_bytes": each.size_bytes,
        "mtime_ns": each.mtime_ns,
        "clip": None if each.clip is None else shown(each.clip),
        "problem": each.problem,
    }


def _json(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


async def _json_body(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "Unsupported Media Type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, "Content Too Large")
    try:
        decoded = msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise InvalidInput("the body must be a JSON object")
    return decoded


def _reference(request: Request) -> str | int:
    """A uuid, or a number; anything else names an execution that isn't there."""
    claimed: str = request.path_params["reference"]
    if claimed.isascii() and claimed.isdigit() and len(claimed) < 20:
        return int(claimed)
    return claimed


def _job_id(request: Request) -> int:
    claimed: str = request.path_params["job_id"]
    return _number(claimed, "job_id", 0, 0, 2**63 - 1)


def _number(claimed: str | None, field: str, default: int, least: int, most: int) -> int:
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
