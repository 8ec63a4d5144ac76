"""The other ways to follow: server-sent events, and gRPC with nothing but reflection."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.e2e.server import DEADLINE_S, Server


def server_sent(server: Server, path: str, **headers: str) -> Iterator[dict[str, Any]]:
    with httpx2.stream(
        "GET",
        f"{server.http}{path}",
        headers={"accept": "text/event-stream", **headers},
        trust_env=False,
        verify=False,
        timeout=DEADLINE_S,
    ) as response:
        assert response.status_code == 200
        for event in httpx2.EventSource(response):
            data = json.loads(event.data)
            assert event.event == data["type"]
            yield data


def test_server_sent_events_resume_after_the_last_one(server: Server) -> None:
    execution_id = server.trigger("diamond", text="a b")
    path = f"/api/pipeline/{execution_id}/events"
    seen = []
    for event in server_sent(server, path):
        seen.append(event["id"])
        if len(seen) == 3:
            break
    for event in server_sent(server, path, **{"last-event-id": str(seen[-1])}):
        if "id" in event:
            seen.append(event["id"])
        if event["type"] == "pipeline:completed":
            break
    assert seen == [event["id"] for event in server.get(path)["events"]]


def test_an_event_stream_ends_when_the_server_stops(start_server: Callable[..., Server]) -> None:
    server = start_server()
    execution_id = server.trigger("diamond", text="a b")
    server.ended(execution_id)
    events = server_sent(server, f"/api/pipeline/{execution_id}/events")
    assert next(events)["type"] == "pipeline:started"
    assert server.stop() == 0
    assert [event["type"] for event in events][-1] == "pipeline:completed"


class Reflected:
    """A gRPC service of which nothing is known but what its server says of it."""

    def __init__(self, channel: grpc.Channel, service: str) -> None:
        self._channel = channel
        self._reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._pool = descriptor_pool.DescriptorPool()
        self._added: set[str] = set()
        self.services = [
            found.name for found in self._ask(list_services="").list_services_response.service
        ]
        for file in self._files(file_containing_symbol=service):
            self._add(file)
        self._service = self._pool.FindServiceByName(service)

    def call(self, method: str, **request: Any) -> Any:
        name, make, _ = self._method(method)
        unary = self._channel.unary_unary(
            name, lambda message: message.SerializeToString(), make.FromString
        )
        return json_format.MessageToDict(
            unary(self._request(method, request), timeout=DEADLINE_S),
            preserving_proto_field_name=True,
        )

    def stream(self, method: str, **request: Any) -> Iterator[dict[str, Any]]:
        name, make, _ = self._method(method)
        streaming = self._channel.unary_stream(
            name, lambda message: message.SerializeToString(), make.FromString
        )
        for message in streaming(self._request(method, request), timeout=DEADLINE_S):
            yield json_format.MessageToDict(message, preserving_proto_field_name=True)

    def _request(self, method: str, fields: dict[str, Any]) -> Any:
        return json_format.ParseDict(fields, self._method(method)[2]())

    def _method(self, method: str) -> tuple[str, Any, Any]:
        found = self._service.methods_by_name[method]
        return (
            f"/{self._service.full_name}/{method}",
            message_factory.GetMessageClass(found.output_type),
            message_factory.GetMessageClass(found.input_type),
        )

    def _ask(self, **question: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**question)
        return next(self._reflection.ServerReflectionInfo(iter([request])))

    def _files(self, **question: str) -> list[FileDescriptorProto]:
        answer = self._ask(**question).file_descriptor_response
        return [FileDescriptorProto.FromString(each) for each in answer.file_descriptor_proto]

    def _add(self, file: FileDescriptorProto) -> None:
        if file.name in self._added:
            return
        self._added.add(file.name)
        for dependency in file.dependency:
            for each in self._files(file_by_filename=dependency):
                self._add(each)
        self._pool.Add(file)


def test_an_internal_service_that_knows_only_reflection(server: Server, tmp_path: Path) -> None:
    """It triggers, watches, reads, does an external step, and retries."""
    with grpc.insecure_channel(server.grpc) as channel:
        service = Reflected(channel, "rushes.v1.PipelineService")
        assert "grpc.health.v1.Health" in service.services

        gate = tmp_path / "gate"
        triggered = service.call(
            "TriggerPipeline",
            pipeline_type="gate",
            message_id="by grpc",
            data={"gate": str(gate), "take": 3},
        )
        execution_id = triggered["execution"]["execution_id"]
        watched = service.stream("WatchExecution", execution_id=execution_id, since=0)
        seen = []
        for event in watched:
            seen.append(event)
            if event["type"] == "pipeline:failed":
                break
        assert seen[0]["type"] == "pipeline:started"
        failed = service.call("GetExecution", execution_id=execution_id)["execution"]
        assert failed["status"] == "EXECUTION_STATUS_FAILED"
        assert str(gate) in failed["error_message"]
        assert server.execution(execution_id)["execution_data"]["take"] == 3

        gate.touch()
        retried = service.call("RetryExecution", execution_id=execution_id)["execution"]
        assert retried["status"] == "EXECUTION_STATUS_RUNNING"
        # The stream is resumed after the last event that was seen.
        for event in service.stream(
            "WatchExecution", execution_id=execution_id, since=seen[-1]["id"]
        ):
            seen.append(event)
            if event["type"] == "pipeline:completed":
                break
        ids = [int(event["id"]) for event in seen if "id" in event]
        stored = server.get(f"/api/pipeline/{execution_id}/events")["events"]
        assert ids == [event["id"] for event in stored]
        listed = service.call("ListExecutions", message_id="by grpc")["executions"]
        assert [each["execution_id"] for each in listed] == [execution_id]

        outside = service.call("TriggerPipeline", pipeline_type="outside")["execution"]
        for event in service.stream(
            "WatchExecution", execution_id=outside["execution_id"], since=0
        ):
            if event["type"] == "pipeline:step_started" and event["data"]["step_key"] == "answer":
                attempt = int(event["data"]["attempt"])
                break
        waiting = server.execution(outside["execution_id"])
        assert waiting["waits_for"] == ["answer"]
        service.call(
            "AdvanceStep",
            execution_id=outside["execution_id"],
            step_key="answer",
            attempt=attempt,
            completed={"output": {"answer": 42}},
        )
    completed = server.ended(outside["execution_id"])
    assert completed["status"] == "completed"
    assert completed["execution_data"]["used"] == 42
