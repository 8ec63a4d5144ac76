"""A client that knows nothing but the address: it asks the server for everything else."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.adapters.rpc.conftest import PATIENCE_S, House


class Stranger:
    """Learns the services by reflection, and calls them with plain dictionaries."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._pool = DescriptorPool()
        self._known: set[str] = set()

    async def _ask(self, **question: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**question)
        call = self._reflection.ServerReflectionInfo(iter([request]))
        return await asyncio.wait_for(call.read(), PATIENCE_S)

    async def services(self) -> list[str]:
        answer = await self._ask(list_services="")
        return [service.name for service in answer.list_services_response.service]

    async def learn(self, service: str) -> None:
        answer = await self._ask(file_containing_symbol=service)
        await self._learn_files(answer.file_descriptor_response.file_descriptor_proto)

    async def _learn_files(self, files: list[bytes]) -> None:
        for raw in files:
            file = FileDescriptorProto.FromString(raw)
            if file.name in self._known:
                continue
            self._known.add(file.name)
            for dependency in file.dependency:
                answer = await self._ask(file_by_filename=dependency)
                await self._learn_files(answer.file_descriptor_response.file_descriptor_proto)
            self._pool.Add(file)

    def call(self, service: str, name: str, **fields: Any) -> Any:
        method = self._pool.FindServiceByName(service).methods_by_name[name]
        request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        return kind(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )(request)

    def methods(self, service: str) -> set[str]:
        return set(self._pool.FindServiceByName(service).methods_by_name)

    async def answer(self, service: str, name: str, **fields: Any) -> dict[str, Any]:
        return json_format.MessageToDict(
            await self.call(service, name, **fields), preserving_proto_field_name=True
        )


async def test_a_stranger_triggers_watches_reads_and_retries_by_reflection_alone(
    house: House,
) -> None:
    house.broken = True
    async with grpc.aio.insecure_channel(house.address) as channel, asyncio.timeout(PATIENCE_S):
        stranger = Stranger(channel)
        assert set(await stranger.services()) == {
            "rushes.v1.PipelineService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        service = next(name for name in await stranger.services() if name.startswith("rushes"))
        await stranger.learn(service)

        watch = stranger.call(service, "WatchExecution")
        await watch.initial_metadata()
        answer = await stranger.answer(
            service, "TriggerPipeline", pipeline_type="film", message_id="m-1", data={"seconds": 2}
        )
        execution_id = answer["execution"]["execution_id"]
        reported = retried = False
        told = []
        async for message in watch:
            told.append(message.type)
            about = json_format.MessageToDict(message.data)
            assert (about["execution_id"], about["message_id"]) == (execution_id, "m-1")
            if message.type == "pipeline:step_started" and about["step_key"] == "render":
                await stranger.answer(
                    service,
                    "AdvanceStep",
                    execution_id=execution_id,
                    step_key="render",
                    attempt=int(about["attempt"]),
                    completed={"output": {"file": "film.mov"}},
                )
                reported = True
            if message.type == "pipeline:failed":
                house.broken = False
                await stranger.answer(service, "RetryExecution", execution_id=execution_id)
                retried = True
            if message.type == "pipeline:completed":
                break
        watch.cancel()
        assert reported
        assert retried
        assert told[0] == "pipeline:started"
        assert told.count("pipeline:retried") == 1

        found = (await stranger.answer(service, "GetExecution", execution_id=execution_id))[
            "execution"
        ]
        assert found["status"] == "EXECUTION_STATUS_COMPLETED"
        assert found["execution_data"] == {
            "seconds": 2,
            "frames": 48,
            "file": "film.mov",
            "published": True,
        }
        page = await stranger.answer(service, "ListExecutions", page_size=1)
        assert [each["execution_id"] for each in page["executions"]] == [execution_id]


async def test_every_method_is_called_by_reflection_alone(house: House) -> None:
    async with grpc.aio.insecure_channel(house.address) as channel, asyncio.timeout(PATIENCE_S):
        stranger = Stranger(channel)
        service = "rushes.v1.PipelineService"
        await stranger.learn(service)
        called = set()

        async def call(name: str, **fields: Any) -> dict[str, Any]:
            called.add(name)
            return await stranger.answer(service, name, **fields)

        async def triggered() -> dict[str, Any]:
            answer = await call("TriggerPipeline", pipeline_type="film")
            return {"execution_id": answer["execution"]["execution_id"]}

        async def claimed() -> dict[str, Any]:
            answer = await call("ClaimStep", step_name="render", worker_id="w", wait_s=9)
            return {name: answer["claim"][name] for name in ("execution_id", "step_key", "attempt")}

        async def failed() -> dict[str, Any]:
            await triggered()
            step = await claimed()
            await call("AdvanceStep", **step, failed={"error": "no"})
            return {"execution_id": step["execution_id"]}

        async def until_completed(execution: dict[str, Any]) -> None:
            called.add("WatchExecution")
            watch = stranger.call(service, "WatchExecution", **execution, since=0)
            async for message in watch:
                if message.type == "pipeline:completed":
                    break
            watch.cancel()

        one = await triggered()
        await call("PauseExecution", **one)
        await call("ResumeExecution", **one)
        step = await claimed()
        assert (await call("HeartbeatStep", **step, progress=50))["running"]
        await call("AdvanceStep", **step, completed={"output": {"file": "film.mov"}})
        await until_completed(one)
        again = await call("RerunExecution", **one, from_step="publish")
        await until_completed({"execution_id": again["execution"]["execution_id"]})
        cancelled = await call("CancelExecution", **await triggered())
        assert cancelled["execution"]["status"] == "EXECUTION_STATUS_CANCELLED"

        skipped = await failed()
        await call("SkipStep", **skipped, step_key="render")
        await until_completed(skipped)
        completed = await failed()
        await call("CompleteStep", **completed, step_key="render", output={"file": "by hand"})
        await until_completed(completed)
        retried = await failed()
        await call("RetryExecution", **retried)
        assert (await claimed())["attempt"] == 2

        assert "paused_at" in (await call("PauseEngine"))["engine"]
        assert "paused_at" in (await call("GetEngine"))["engine"]
        assert "paused_at" not in (await call("ResumeEngine"))["engine"]
        assert len((await call("ListExecutions"))["executions"]) == 6
        assert (await call("GetExecution", **retried))["execution"]["execution_id"]
        there = stranger.methods(service)
    assert called == there
