"""One life of executions, told once, and led through each of the faces that Rushes has.

Whatever a person or a program uses, the same is asked and the same comes of it: REST with
the WebSocket, gRPC with nothing but reflection, and the command line.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Protocol

import grpc
import pytest

from tests.e2e.server import DEADLINE_S, RUSHES, Server, eventually
from tests.e2e.test_streams import Reflected

TOLD = [
    "pipeline:started",
    "pipeline:step_started",
    "pipeline:step_completed",
    "pipeline:step_started",
    "pipeline:step_failed",
    "pipeline:step_skipped",
    "pipeline:failed",
    "pipeline:retried",
    "pipeline:step_started",
    "pipeline:step_completed",
    "pipeline:step_started",
    "pipeline:step_completed",
    "pipeline:completed",
]


class Face(Protocol):
    """What every face can do. Verbs raise ``Refused``; ``look`` is in REST's words."""

    def trigger(self, card: Path) -> str: ...

    def look(self, execution: str) -> dict[str, Any]: ...

    def listed(self, status: str) -> list[str]: ...

    def told(self, execution: str, last: str) -> list[str]:
        """The types of its events, from the first to the first ``last``; none is transient."""
        ...

    def do(self, verb: str, execution: str, *more: Any) -> str:
        """retry, cancel, pause, resume, skip, complete or rerun; of whom it speaks then."""
        ...


class Refused(Exception):
    """Not in this state."""


class Rest:
    def __init__(self, server: Server, closing: ExitStack) -> None:
        self.server = server
        self.frontend = closing.enter_context(server.client(since=0))

    def trigger(self, card: Path) -> str:
        return self.server.trigger("lifecycle", sd_path=str(card))

    def look(self, execution: str) -> dict[str, Any]:
        found: dict[str, Any] = self.server.execution(execution)
        return found

    def listed(self, status: str) -> list[str]:
        found = self.server.get("/api/pipeline", status=status)["executions"]
        return [each["execution_id"] for each in found]

    def told(self, execution: str, last: str) -> list[str]:
        def of_it(message: dict[str, Any]) -> bool:
            return bool(message["data"].get("execution_id") == execution and "id" in message)

        if not any(of_it(m) and m["type"] == last for m in self.frontend.seen):
            self.frontend.until(lambda m: of_it(m) and m["type"] == last)
        return [m["type"] for m in self.frontend.seen if of_it(m)]

    def do(self, verb: str, execution: str, *more: Any) -> str:
        path = f"/api/pipeline/{execution}"
        body: dict[str, Any] = {}
        if verb in ("skip", "complete"):
            path = f"{path}/steps/{more[0]}"
            body = {"output": more[1]} if verb == "complete" else {}
        elif verb == "rerun":
            body = {"from_step": more[0]}
        answer = self.server.request("POST", f"{path}/{verb}", json=body)
        if answer.status_code == 409:
            raise Refused(answer.json()["code"])
        assert answer.is_success, answer.text
        return str(answer.json()["execution_id"])


class Grpc:
    METHODS: ClassVar[dict[str, str]] = {
        "retry": "RetryExecution",
        "cancel": "CancelExecution",
        "pause": "PauseExecution",
        "resume": "ResumeExecution",
        "rerun": "RerunExecution",
        "skip": "SkipStep",
        "complete": "CompleteStep",
    }

    def __init__(self, server: Server, closing: ExitStack) -> None:
        channel = closing.enter_context(grpc.insecure_channel(server.grpc))
        self.service = Reflected(channel, "rushes.v1.PipelineService")

    def trigger(self, card: Path) -> str:
        answer = self.service.call(
            "TriggerPipeline", pipeline_type="lifecycle", data={"sd_path": str(card)}
        )
        return str(answer["execution"]["execution_id"])

    def look(self, execution: str) -> dict[str, Any]:
        found = self.service.call("GetExecution", execution_id=execution)["execution"]
        found["status"] = found["status"].removeprefix("EXECUTION_STATUS_").lower()
        for step in found["steps"]:
            step["status"] = step["status"].removeprefix("STEP_STATUS_").lower()
        # A field that says nothing isn't there.
        empty = {"attempt": 0, "waived": False}
        steps = [{**empty, **step} for step in found["steps"]]
        return {"paused_at": None, "rerun_of": None, "progress": 0} | found | {"steps": steps}

    def listed(self, status: str) -> list[str]:
        page = self.service.call("ListExecutions", status=f"EXECUTION_STATUS_{status.upper()}")
        return [each["execution_id"] for each in page.get("executions", [])]

    def told(self, execution: str, last: str) -> list[str]:
        types = []
        for event in self.service.stream("WatchExecution", execution_id=execution, since=0):
            if "id" in event:
                types.append(str(event["type"]))
            if event["type"] == last:
                break
        return types

    def do(self, verb: str, execution: str, *more: Any) -> str:
        fields: dict[str, Any] = {"execution_id": execution}
        if verb == "rerun":
            fields["from_step"] = more[0]
        elif more:
            fields |= dict(zip(("step_key", "output"), more, strict=False))
        try:
            answer = self.service.call(self.METHODS[verb], **fields)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # type: ignore[attr-defined]
                raise
            codes = dict(error.trailing_metadata())  # type: ignore[attr-defined]
            raise Refused(codes["rushes-code"]) from None
        return str(answer["execution"]["execution_id"])


class CommandLine:
    """Each a process of its own, which finds the server by the database's lock."""

    def __init__(self, server: Server, closing: ExitStack) -> None:
        self.environment = server.environment
        self.closing = closing

    def rushes(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RUSHES, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )

    def follow(self, *arguments: str) -> subprocess.Popen[str]:
        process = self.closing.enter_context(
            subprocess.Popen(
                [RUSHES, *arguments],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        self.closing.callback(process.kill)
        return process

    def lines(self, process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)

    def trigger(self, card: Path) -> str:
        ingest = self.follow("ingest", str(card), "--pipeline", "lifecycle", "--json")
        return str(next(self.lines(ingest))["data"]["execution_id"])

    def look(self, execution: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rushes("status", execution, "--json").stdout)
        return found

    def listed(self, status: str) -> list[str]:
        lines = self.rushes("list", "--status", status, "--json").stdout.splitlines()
        return [json.loads(line)["execution_id"] for line in lines]

    def told(self, execution: str, last: str) -> list[str]:
        types = []
        for event in self.lines(self.follow("watch", execution, "--since", "0", "--json")):
            if "id" in event:
                types.append(event["type"])
            if event["type"] == last:
                break
        return types

    def do(self, verb: str, execution: str, *more: Any) -> str:
        arguments = [verb, execution, *more[:1]]
        if verb == "complete":
            arguments += ["--output", json.dumps(more[1])]
        elif verb == "rerun":
            events = self.lines(self.follow(*arguments, "--json"))
            return str(next(events)["data"]["execution_id"])
        done = self.rushes(*arguments)
        if done.returncode == 2:
            assert "can't" in done.stderr
            raise Refused("illegal_transition")
        assert done.returncode == 0, done.stderr
        return execution


FACES: dict[str, Callable[[Server, ExitStack], Face]] = {
    "REST and WebSocket": Rest,
    "gRPC": Grpc,
    "the command line": CommandLine,
}


@pytest.mark.parametrize("name", FACES)
def test_a_life_is_the_same_through_every_face(
    name: str, start_server: Callable[..., Server]
) -> None:
    server = start_server()
    with contextlib.ExitStack() as closing:
        face = FACES[name](server, closing)
        lead(face, server)
    assert server.stop() == 0


def lead(face: Face, server: Server) -> None:
    def card(name: str, *files: str) -> Path:
        place = server.cards / name
        place.mkdir()
        for each in files:
            (place / each).touch()
        return place

    def until(execution: str, status: str) -> dict[str, Any]:
        """Waited for over REST, which costs no process a look."""
        eventually(lambda: server.execution(execution), lambda e: e["status"] == status)
        seen = face.look(execution)
        assert seen["status"] == status
        return seen

    def standing(execution: dict[str, Any]) -> dict[str, tuple[str, int]]:
        return {s["step_key"]: (s["status"], s["attempt"]) for s in execution["steps"]}

    # It fails, and is put right and retried.
    locked = card("A")
    first = face.trigger(locked)
    failed = until(first, "failed")
    assert "there is no key on the card" in failed["error_message"]
    assert standing(failed) == {
        "prepare": ("completed", 1),
        "unlock": ("failed", 1),
        "develop": ("skipped", 0),
    }
    assert face.listed("failed") == [first]
    (locked / "key").touch()
    face.do("retry", first)
    done = until(first, "completed")
    assert standing(done) == {
        "prepare": ("completed", 1),
        "unlock": ("completed", 2),
        "develop": ("completed", 1),
    }
    assert (done["progress"], done["execution_data"]["developed"]) == (100, True)
    assert face.told(first, "pipeline:completed") == TOLD
    with pytest.raises(Refused, match="illegal_transition"):
        face.do("cancel", first)

    # A part of it is done again, as a new execution.
    again = face.do("rerun", first, "unlock")
    assert again != first
    redone = until(again, "completed")
    assert int(redone["rerun_of"]) == int(done["id"])
    assert set(face.listed("completed")) == {first, again}

    # What failed is skipped, or done by hand.
    skipped = face.trigger(card("B"))
    until(skipped, "failed")
    face.do("skip", skipped, "unlock")
    assert standing(until(skipped, "completed"))["unlock"] == ("skipped", 1)
    by_hand = face.trigger(card("C"))
    until(by_hand, "failed")
    face.do("complete", by_hand, "unlock", {"unlocked": "by hand"})
    assert until(by_hand, "completed")["execution_data"]["developed"] == "by hand"

    # It is paused, goes on, and is stopped for good.
    held = card("D", "hold", "key")
    stopped = face.trigger(held)
    eventually(lambda: standing(server.execution(stopped))["unlock"][0], "running".__eq__)
    assert standing(face.look(stopped))["unlock"] == ("running", 1)
    face.do("pause", stopped)
    assert face.look(stopped)["paused_at"] is not None
    face.do("resume", stopped)
    assert face.look(stopped)["paused_at"] is None
    face.do("cancel", stopped)
    assert standing(until(stopped, "cancelled"))["unlock"] == ("cancelled", 1)
    assert face.listed("cancelled") == [stopped]
    with pytest.raises(Refused, match="illegal_transition"):
        face.do("resume", stopped)
