"""Clients that follow events and go on doing so, in a process of their own.

``python -m tests.e2e.watchers HTTP GRPC TOKEN KIND...`` says "following" once all of them
do, and ends when its standard input does.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import grpc
import httpx2
from websockets.sync.client import connect

from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub

DEADLINE_S = 30.0


def follow(stack: ExitStack, kind: str, http: str, rpc: str, token: str) -> None:
    bearer = {"authorization": f"Bearer {token}"}
    if kind == "websocket":
        client = connect(f"ws://{http}/ws", additional_headers=bearer, proxy=None)
        assert "hub:welcome" in str(stack.enter_context(client).recv(DEADLINE_S))
    elif kind == "events":
        stream = httpx2.stream(
            "GET",
            f"http://{http}/api/events",
            headers={"accept": "text/event-stream", **bearer},
            trust_env=False,
        )
        assert stack.enter_context(stream).status_code == 200
    else:
        channel = grpc.insecure_channel(rpc, [("grpc.enable_http_proxy", 0)])
        rushes = PipelineServiceStub(stack.enter_context(channel))  # type: ignore[no-untyped-call]
        call = rushes.WatchExecution(pb.WatchExecutionRequest(), metadata=list(bearer.items()))
        assert call.initial_metadata() is not None
        stack.callback(call.cancel)


if __name__ == "__main__":
    http, rpc, token, *kinds = sys.argv[1:]
    with ExitStack() as stack:
        for kind in kinds:
            follow(stack, kind, http, rpc, token)
        print("following", flush=True)
        sys.stdin.read()
