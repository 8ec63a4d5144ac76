"""Workers outside, as processes of their own that are killed, and a server that is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from websockets.exceptions import ConnectionClosed

from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub
from tests.e2e.server import DEADLINE_S, ROOT, Server, steps

WORKER = str(ROOT / "examples/external_worker.py")
TRANSCODING = "examples.transcoding:pipeline,tests.e2e.pipelines:rendered"


@contextmanager
def worker(server: Server, name: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, WORKER, server.grpc, name],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()


def stub_of(channel: grpc.Channel) -> Any:
    return PipelineServiceStub(channel)  # type: ignore[no-untyped-call]


def test_two_of_the_example_do_what_there_is_to_do(start_server: Callable[..., Server]) -> None:
    server = start_server(RUSHES_PIPELINES=TRANSCODING)
    with worker(server, "one"), worker(server, "two"):
        made = [server.trigger("transcoding", clip=f"A{n:03}.mov") for n in range(6)]
        bad = server.trigger("transcoding")
        for n, uuid in enumerate(made):
            done = server.ended(uuid)
            assert done["status"] == "completed", done["error_message"]
            assert done["execution_data"]["published"] == f"A{n:03}.proxy.mov"
            assert steps(done)["transcode"]["worker_id"] in ("one", "two")
            assert steps(done)["transcode"]["attempt"] == 1
        assert "there is no clip" in server.ended(bad)["error_message"]


HOLDS = """
import sys, time, grpc
from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub
rushes = PipelineServiceStub(grpc.insecure_channel(sys.argv[1]))
claim = rushes.ClaimStep(
    pb.ClaimStepRequest(step_name="render", worker_id="doomed", wait_s=30)).claim
while True:
    rushes.HeartbeatStep(pb.HeartbeatStepRequest(
        execution_id=claim.execution_id, step_key="render", attempt=claim.attempt, progress=50))
    print("alive", flush=True)
    time.sleep(0.1)
"""


def test_a_worker_that_is_killed_is_taken_over_and_what_it_says_then_is_refused(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(RUSHES_PIPELINES=TRANSCODING)
    uuid = server.trigger("rendered")
    doomed = subprocess.Popen(
        [sys.executable, "-c", HOLDS, server.grpc],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert doomed.stdout is not None
    assert doomed.stdout.readline() == "alive\n"
    held = steps(server.execution(uuid))["render"]
    assert (held["worker_id"], held["attempt"], held["progress"]) == ("doomed", 1, 50)
    doomed.kill()
    doomed.wait(DEADLINE_S)
    doomed.stdout.close()
    with grpc.insecure_channel(server.grpc) as channel:
        rushes = stub_of(channel)
        wanted = pb.ClaimStepRequest(step_name="render", worker_id="heir", wait_s=DEADLINE_S)
        claim = rushes.ClaimStep(wanted, timeout=DEADLINE_S).claim
        assert (claim.execution_id, claim.attempt) == (uuid, 2)
        said = {"execution_id": uuid, "step_key": "render", "completed": pb.StepCompleted()}
        with pytest.raises(grpc.RpcError) as refused:
            rushes.AdvanceStep(pb.AdvanceStepRequest(**said, attempt=1))
        assert refused.value.code() is grpc.StatusCode.ABORTED
        rushes.AdvanceStep(pb.AdvanceStepRequest(**said, attempt=2))
    done = server.ended(uuid)
    assert (done["status"], steps(done)["render"]["failures"]) == ("completed", 0)


def test_a_claim_goes_on_over_a_kill_of_the_server(start_server: Callable[..., Server]) -> None:
    server = start_server(RUSHES_PIPELINES=TRANSCODING)
    uuid = server.trigger("transcoding", clip="A001.mov")
    with grpc.insecure_channel(server.grpc) as channel:
        wanted = pb.ClaimStepRequest(step_name="transcode", worker_id="steady", wait_s=DEADLINE_S)
        claim = stub_of(channel).ClaimStep(wanted, timeout=DEADLINE_S).claim
    server.kill()
    server.start()
    with grpc.insecure_channel(server.grpc) as channel:
        rushes = stub_of(channel)
        this = {"execution_id": uuid, "step_key": "transcode", "attempt": claim.attempt}
        assert rushes.HeartbeatStep(pb.HeartbeatStepRequest(**this, progress=80)).running
        report = pb.AdvanceStepRequest(**this, completed=pb.StepCompleted())
        report.completed.output.update({"proxy": "p"})
        rushes.AdvanceStep(report)
    assert server.ended(uuid)["execution_data"]["published"] == "p"


def test_sigterm_ends_polls_and_streams_of_all_surfaces_at_once(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(RUSHES_PIPELINES=TRANSCODING)
    codes: list[Any] = []
    begun = threading.Barrier(3)

    def polling() -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            call = stub_of(channel).ClaimStep.future(
                pb.ClaimStepRequest(step_name="render", worker_id="w", wait_s=300)
            )
            begun.wait(DEADLINE_S)
            codes.append(call.code())

    def watching() -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            call = stub_of(channel).WatchExecution(pb.WatchExecutionRequest())
            call.initial_metadata()
            begun.wait(DEADLINE_S)
            with pytest.raises(grpc.RpcError):
                next(call)
            codes.append(call.code())

    threads = [threading.Thread(target=each) for each in (polling, watching)]
    for thread in threads:
        thread.start()
    with server.client() as frontend:
        begun.wait(DEADLINE_S)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(DEADLINE_S)
        assert codes == [grpc.StatusCode.UNAVAILABLE] * 2
        with pytest.raises(ConnectionClosed):
            frontend.receive()
    assert server._reap() == 0
