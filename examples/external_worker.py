"""A worker outside Rushes: claims a step, does it, and says how far it is.

    python external_worker.py 127.0.0.1:50051 worker-1

Start as many as you like, anywhere. Where the server has tokens, RUSHES_TOKEN is one of
the role ``service``; where it speaks TLS, write ``https://`` before the address, and name
a private authority's certificate in RUSHES_TLS_CA. In a service of your own, generate the
two modules below from ``proto/rushes/v1/pipeline.proto``, in whatever language.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub

FRAMES = 10

TOKEN = os.environ.get("RUSHES_TOKEN")
SHOWN = [("authorization", f"Bearer {TOKEN}")] if TOKEN else []
"""With every call, in the place of a password."""

SHUT_OUT = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def transcode(rushes: Any, claim: Any) -> None:
    """One attempt. What it carries names it in everything that is said about it."""
    this = {"execution_id": claim.execution_id, "step_key": claim.step_key}
    this["attempt"] = claim.attempt
    clip = claim.data.fields["clip"].string_value
    if not clip:
        why = pb.StepFailed(error="there is no clip in the data", permanent=True)
        rushes.AdvanceStep(pb.AdvanceStepRequest(**this, failed=why), metadata=SHOWN)
        return
    for frame in range(FRAMES):  # your work; say more often than every lease_s that it goes on
        time.sleep(0.02)
        progress = 100 * frame / FRAMES
        request = pb.HeartbeatStepRequest(**this, progress=progress)
        beat = rushes.HeartbeatStep(request, metadata=SHOWN)
        if not beat.running:  # cancelled, or taken over by another worker: it isn't ours any more
            print(f"{clip}: {beat.reason}", flush=True)
            return
    done = pb.StepCompleted()
    done.output.update({"proxy": clip.replace(".mov", ".proxy.mov")})
    rushes.AdvanceStep(pb.AdvanceStepRequest(**this, completed=done), metadata=SHOWN)
    print(f"{clip}: done", flush=True)


# What a step is given, all earlier outputs, may be more than the 4 MiB that gRPC would take.
OPTIONS = (("grpc.max_receive_message_length", -1),)


def connected(address: str) -> grpc.Channel:
    if not address.startswith("https://"):
        return grpc.insecure_channel(address, OPTIONS)
    authority = os.environ.get("RUSHES_TLS_CA")
    credentials = grpc.ssl_channel_credentials(
        Path(authority).read_bytes() if authority else None  # else those that gRPC brings
    )
    return grpc.secure_channel(address.removeprefix("https://"), credentials, OPTIONS)


def work(address: str, worker_id: str) -> None:
    wanted = pb.ClaimStepRequest(step_name="transcode", worker_id=worker_id, wait_s=30)
    with connected(address) as channel:
        rushes = PipelineServiceStub(channel)  # type: ignore[no-untyped-call]
        while True:
            try:
                answer = rushes.ClaimStep(wanted, timeout=60, metadata=SHOWN)
                if answer.HasField("claim"):
                    transcode(rushes, answer.claim)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.ABORTED:
                    continue  # our report came too late: another attempt has begun
                if error.code() in SHUT_OUT:
                    sys.exit(f"{error.details()} (RUSHES_TOKEN says who we are)")
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                time.sleep(1)  # the server stops, or isn't there: it will be


if __name__ == "__main__":
    work(*sys.argv[1:])
