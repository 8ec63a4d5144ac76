"""What it takes to be let in, of every method that there is."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.rpc.pb import pipeline_pb2 as pb
from domain.access import Permission

SERVICE: str = pb.DESCRIPTOR.services_by_name["PipelineService"].full_name

FREE = "/grpc.health.v1.Health/"

REFLECTION = "/grpc.reflection."

NEEDS: Mapping[str, Permission] = {
    # By the name of the method of our service.
    "TriggerPipeline": Permission.TRIGGER,
    "GetExecution": Permission.READ,
    "ListExecutions": Permission.READ,
    "RetryExecution": Permission.CONTROL,
    "CancelExecution": Permission.CONTROL,
    "PauseExecution": Permission.CONTROL,
    "ResumeExecution": Permission.CONTROL,
    "RerunExecution": Permission.CONTROL,
    "SkipStep": Permission.CONTROL,
    "CompleteStep": Permission.CONTROL,
    "GetEngine": Permission.READ,
    "PauseEngine": Permission.CONTROL,
    "ResumeEngine": Permission.CONTROL,
    "ClaimStep": Permission.WORK,
    "HeartbeatStep": Permission.WORK,
    "AdvanceStep": Permission.WORK,
    "WatchExecution": Permission.READ,
}

CHANGES = frozenset({Permission.TRIGGER, Permission.CONTROL, Permission.WORK})
"""What is used with these is written down."""


def is_free(name: str) -> bool:
    """Whether anybody may, by its full name: ``/package.Service/Method``."""
    return name.startswith(FREE)


def needed(name: str) -> Permission:
    """By its full name, of a method that isn't free."""
    if name.startswith(REFLECTION):
        return Permission.READ
    service, _, method = name[1:].partition("/")
    # What nobody has thought of is open to nobody.
    needed = NEEDS.get(method) if service == SERVICE else None
    return needed or Permission.TOKENS
