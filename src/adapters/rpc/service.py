"""``rushes.v1.PipelineService`` on the use cases; see the proto for the contract.

Methods raise what the use cases raise: the guard that is around each of them
makes it a status.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from grpc import aio

from adapters.rpc.messages import (
    claim_message,
    engine_message,
    execution_message,
    heartbeat_message,
    json_of,
    status_filter,
    watch_message,
)
from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceServicer
from application.advance import Advance
from application.cancel import Cancel
from application.claims import Claims
from application.feed import Feed
from application.hold import Hold
from application.pause import Pause
from application.ports import Dispatcher, Query
from application.rerun import Rerun
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.trigger import Trigger
from application.views import ExecutionView, message_view
from domain.errors import InvalidInput, Unavailable

DEFAULT_PAGE = 50
"""Executions: what somebody who doesn't say wants to look through."""

MAX_PAGE = 200
"""Executions: so that one request doesn't read the whole history."""

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""A page ends early beyond this: clients refuse messages over 4 MiB unless told otherwise.
Of an execution that is larger by itself a list leaves out the data."""

MAX_DIGITS = 19
"""No id has more."""

Context = aio.ServicerContext[Any, Any]


class PipelineService(PipelineServiceServicer):
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
        advance: Advance,
        claims: Claims,
        feed: Feed,
    ) -> None:
        self._trigger = trigger
        self._status = status
        self._retry = retry
        self._cancel = cancel
        self._pause = pause
        self._settle = settle
        self._rerun = rerun
        self._hold = hold
        self._dispatcher = dispatcher
        self._advance = advance
        self._claims = claims
        self._feed = feed

    async def TriggerPipeline(
        self, request: pb.TriggerPipelineRequest, context: Context
    ) -> pb.TriggerPipelineResponse:
        answer = await self._trigger(
            request.pipeline_type,
            json_of(request.data),
            message_id=request.message_id if request.HasField("message_id") else None,
        )
        duplicate = {
            None: pb.DUPLICATE_UNSPECIFIED,
            "message": pb.DUPLICATE_MESSAGE,
            "card": pb.DUPLICATE_CARD,
        }[answer.duplicate]
        return pb.TriggerPipelineResponse(
            execution=execution_message(answer.execution), duplicate=duplicate
        )

    async def GetExecution(self, request: pb.GetExecutionRequest, context: Context) -> bytes:
        return await self._status.encoded(_reference(request.execution_id), _get_response)

    async def ListExecutions(
        self, request: pb.ListExecutionsRequest, context: Context
    ) -> pb.ListExecutionsResponse:
        if request.page_size < 0:
            raise InvalidInput(
                f"page_size must not be negative: {request.page_size}", field="page_size"
            )
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        # One more than the page shows whether there is another.
        views = await self._status.list(
            Query(
                status=status_filter(request.status),
                pipeline_type=request.pipeline_type or None,
                message_id=request.message_id or None,
                before=_before(request.page_token),
                limit=size + 1,
            )
        )
        page = pb.ListExecutionsResponse()
        size_bytes = 0
        for view in views[:size]:
            execution = _listed(view)
            size_bytes += execution.ByteSize()
            if page.executions and size_bytes > MAX_PAGE_BYTES:
                break
            page.executions.append(execution)
        if len(page.executions) < len(views):
            page.next_page_token = str(page.executions[-1].id)
        return page

    async def RetryExecution(
        self, request: pb.RetryExecutionRequest, context: Context
    ) -> pb.RetryExecutionResponse:
        view = await self._retry(_reference(request.execution_id))
        return pb.RetryExecutionResponse(execution=execution_message(view))

    async def CancelExecution(
        self, request: pb.CancelExecutionRequest, context: Context
    ) -> pb.CancelExecutionResponse:
        view = await self._cancel(_reference(request.execution_id))
        return pb.CancelExecutionResponse(execution=execution_message(view))

    async def PauseExecution(
        self, request: pb.PauseExecutionRequest, context: Context
    ) -> pb.PauseExecutionResponse:
        view = await self._pause.pause(_reference(request.execution_id))
        return pb.PauseExecutionResponse(execution=execution_message(view))

    async def ResumeExecution(
        self, request: pb.ResumeExecutionRequest, context: Context
    ) -> pb.ResumeExecutionResponse:
        view = await self._pause.resume(_reference(request.execution_id))
        return pb.ResumeExecutionResponse(execution=execution_message(view))

    async def RerunExecution(
        self, request: pb.RerunExecutionRequest, context: Context
    ) -> pb.RerunExecutionResponse:
        view = await self._rerun(_reference(request.execution_id), request.from_step)
        return pb.RerunExecutionResponse(execution=execution_message(view))

    async def SkipStep(self, request: pb.SkipStepRequest, context: Context) -> pb.SkipStepResponse:
        view = await self._settle.skip(_reference(request.execution_id), request.step_key)
        return pb.SkipStepResponse(execution=execution_message(view))

    async def CompleteStep(
        self, request: pb.CompleteStepRequest, context: Context
    ) -> pb.CompleteStepResponse:
        view = await self._settle.complete(
            _reference(request.execution_id), request.step_key, json_of(request.output)
        )
        return pb.CompleteStepResponse(execution=execution_message(view))

    async def GetEngine(
        self, request: pb.GetEngineRequest, context: Context
    ) -> pb.GetEngineResponse:
        return pb.GetEngineResponse(engine=self._engine())

    async def PauseEngine(
        self, request: pb.PauseEngineRequest, context: Context
    ) -> pb.PauseEngineResponse:
        await self._hold.pause()
        return pb.PauseEngineResponse(engine=self._engine())

    async def ResumeEngine(
        self, request: pb.ResumeEngineRequest, context: Context
    ) -> pb.ResumeEngineResponse:
        await self._hold.resume()
        return pb.ResumeEngineResponse(engine=self._engine())

    def _engine(self) -> pb.Engine:
        return engine_message(self._dispatcher.load(), self._hold.held_at)

    async def ClaimStep(
        self, request: pb.ClaimStepRequest, context: Context
    ) -> pb.ClaimStepResponse:
        claimed = await self._claims(
            request.step_name,
            request.worker_id,
            pipeline_type=request.pipeline_type or None,
            wait_s=request.wait_s,
        )
        return pb.ClaimStepResponse(claim=None if claimed is None else claim_message(claimed))

    async def HeartbeatStep(
        self, request: pb.HeartbeatStepRequest, context: Context
    ) -> pb.HeartbeatStepResponse:
        checkpoint = json_of(request.checkpoint) if request.HasField("checkpoint") else None
        beat = await self._advance.beat_external(
            _reference(request.execution_id),
            request.step_key,
            request.attempt,
            progress=request.progress if request.HasField("progress") else None,
            detail=json_of(request.detail),
            checkpoint=checkpoint,
        )
        return heartbeat_message(beat)

    async def AdvanceStep(
        self, request: pb.AdvanceStepRequest, context: Context
    ) -> pb.AdvanceStepResponse:
        reference = _reference(request.execution_id)
        match request.WhichOneof("report"):
            case "completed":
                view = await self._advance.complete_external(
                    reference, request.step_key, request.attempt, json_of(request.completed.output)
                )
            case "failed":
                view = await self._advance.fail_external(
                    reference,
                    request.step_key,
                    request.attempt,
                    request.failed.error,
                    permanent=request.failed.permanent,
                )
            case "released":
                view = await self._advance.release_external(
                    reference, request.step_key, request.attempt
                )
            case _:
                raise InvalidInput(
                    "report is missing: say completed, failed or released", field="report"
                )
        return pb.AdvanceStepResponse(execution=execution_message(view))

    def WatchExecution(
        self, request: pb.WatchExecutionRequest, context: Context
    ) -> AsyncGenerator[pb.WatchExecutionResponse, None]:
        # Not in the generator: that begins only after the client has been told that it may
        # rely on getting what happens now.
        since = request.since if request.HasField("since") else self._feed.last_id
        return self._watch(since, request.execution_id)

    async def _watch(
        self, since: int, reference: str
    ) -> AsyncGenerator[pb.WatchExecutionResponse, None]:
        execution_id = None
        if reference:
            execution_id = (await self._status.get(_reference(reference))).id
        async with aclosing(self._feed.follow(since, execution_id)) as entries:
            async for entry in entries:
                yield watch_message(message_view(entry.message))
        raise Unavailable("the server is stopping")


def _get_response(view: ExecutionView) -> bytes:
    """A whole ``GetExecutionResponse``; ``Status`` keeps it."""
    return pb.GetExecutionResponse(execution=execution_message(view)).SerializeToString()


def _listed(view: ExecutionView) -> pb.Execution:
    """As much of it as fits a page: nobody could read what comes after it otherwise."""
    execution = execution_message(view)
    if execution.ByteSize() > MAX_PAGE_BYTES:
        for step in execution.steps:
            step.ClearField("output_data")
    if execution.ByteSize() > MAX_PAGE_BYTES:
        execution.ClearField("execution_data")
    return execution


def _reference(text: str) -> str | int:
    """A uuid, or a number as text."""
    if not text:
        raise InvalidInput("execution_id is missing", field="execution_id")
    return int(text) if _is_number(text) else text


def _before(page_token: str) -> int | None:
    if not page_token:
        return None
    if not _is_number(page_token):
        raise InvalidInput("page_token is none that a page has ended with", field="page_token")
    return int(page_token)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
