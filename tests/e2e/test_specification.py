"""One test for each scenario of the specification, named after it, against a real server."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from tests.cards import files_below, gopro_card
from tests.e2e.server import Server, eventually, steps


def test_create_pipeline_execution(server: Server, tmp_path: Path) -> None:
    """A detector's signal makes a running record with the message_id and the payload."""
    card = server.cards / "create"
    gopro_card(card)
    answer = server.announce(card, "create-1", camera="GoPro 13")
    assert answer["type"] == "detector:accepted"
    assert answer["data"]["message_id"] == "create-1"
    assert answer["data"]["duplicate"] is None
    events = server.get(f"/api/pipeline/{answer['data']['execution_id']}/events")["events"]
    assert events[0]["type"] == "pipeline:started"
    execution = server.execution(answer["data"]["execution_id"])
    assert execution["message_id"] == "create-1"
    assert execution["pipeline_type"] == "sd_ingest"
    assert execution["execution_data"]["sd_path"] == str(card)
    assert execution["execution_data"]["camera"] == "GoPro 13"
    assert execution["created_at"] is not None


def test_a_running_execution_has_status_running(server: Server, tmp_path: Path) -> None:
    gate = tmp_path / "open"
    execution_id = server.trigger("waiting", until=str(gate))
    execution = eventually(
        lambda: server.execution(execution_id),
        lambda found: steps(found)["wait_for_file"]["progress"] > 0,
    )
    assert execution["status"] == "running"
    assert execution["completed_at"] is None
    assert steps(execution)["prepare"]["status"] == "completed"
    assert steps(execution)["wait_for_file"]["status"] == "running"
    assert 33 <= execution["progress"] < 67
    gate.touch()
    assert server.ended(execution_id)["status"] == "completed"


def test_sd_card_detection_triggers_pipeline(server: Server, card: Path) -> None:
    gopro_card(card)
    with server.client("frontend") as frontend:
        answer = server.announce(card, "detection-1")
        execution_id = answer["data"]["execution_id"]
        started = frontend.until(
            lambda m: m["type"] == "pipeline:started" and m["data"]["execution_id"] == execution_id
        )
    assert started["data"]["message_id"] == "detection-1"
    assert started["data"]["pipeline_type"] == "sd_ingest"
    assert started["data"]["steps"][:3] == ["scan_sd", "create_job", "copy_files"]
    assert list(steps(server.execution(execution_id))) == started["data"]["steps"]
    server.ended(execution_id)


def test_step_completion_broadcast(server: Server, card: Path) -> None:
    gopro_card(card)
    with server.client("frontend") as frontend:
        execution_id = server.announce(card, "steps-1")["data"]["execution_id"]
        events = frontend.events(execution_id)
    completed = [e["data"] for e in events if e["type"] == "pipeline:step_completed"]
    assert [data["step_name"] for data in completed] == [
        "scan_sd",
        "create_job",
        "copy_files",
        "write_manifest",
        "verdict",
        "write_report",
    ]
    progress = [data["progress"] for data in completed]
    assert progress == sorted(set(progress))
    assert progress[-1] == 100
    assert all(data["execution_id"] == execution_id for data in completed)


def test_pipeline_completion_and_its_broadcast(server: Server, card: Path) -> None:
    footage = gopro_card(card)
    with server.client("frontend") as frontend:
        execution_id = server.announce(card, "completion-1")["data"]["execution_id"]
        last = frontend.events(execution_id)[-1]
    assert last["type"] == "pipeline:completed"
    assert last["data"] == {
        "execution_id": execution_id,
        "message_id": "completion-1",
        "progress": 100,
        "warnings": [],
    }
    execution = server.execution(execution_id)
    assert execution["status"] == "completed"
    assert execution["progress"] == 100
    merged = execution["execution_data"]
    for step in execution["steps"]:
        assert step["output_data"].items() <= merged.items()
    assert merged["file_count"] == merged["copied_files"] == merged["verified"] == len(footage)
    job = server.get(f"/api/jobs/{execution['job_id']}")
    assert job["status"] == "copied"
    assert job["file_count"] == len(footage)
    assert files_below(server.library / job["name"]) == footage


def test_step_output_merging(server: Server) -> None:
    """A later step is given what earlier ones returned."""
    execution_id = server.trigger("diamond", text="to be or not")
    data = server.ended(execution_id)["execution_data"]
    assert data["split"] == ["to", "be", "or", "not"]
    assert data["joined"] == "to+not"
    assert data["text"] == "to be or not"


def test_pipeline_failure_and_its_broadcast(server: Server, tmp_path: Path) -> None:
    with server.client("frontend") as frontend:
        execution_id = server.trigger("gate", gate=str(tmp_path / "gate"))
        events = frontend.events(execution_id)
    execution = server.execution(execution_id)
    assert execution["status"] == "failed"
    cause = f"the gate {tmp_path / 'gate'} is closed"
    assert execution["error_message"] == f"step open_gate failed (attempt 1): {cause}"
    failed = events[-1]
    assert failed["type"] == "pipeline:failed"
    assert failed["data"]["error"] == {
        "step_name": "open_gate",
        "step_key": "open_gate",
        "attempt": 1,
        "message": cause,
    }
    assert [e["type"] for e in events].count("pipeline:failed") == 1
    assert steps(execution)["pass_through"]["status"] == "skipped"


def test_get_pipeline_status(server: Server) -> None:
    """By uuid and by number, and 404 for what isn't there."""
    execution = server.ended(server.trigger("diamond", text="a b"))
    assert uuid.UUID(execution["uuid"]).version == 7
    assert server.execution(execution["id"]) == execution
    for step in execution["steps"]:
        assert step["status"] == "completed"
        assert step["progress"] == 100
        assert step["attempt"] == 1
    for unknown in (str(uuid.uuid4()), "999999999", "99999999999999999999999", "nonsense", "%00"):
        response = server.request("GET", f"/api/pipeline/{unknown}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "execution_not_found"


def test_retry_failed_pipeline(server: Server, card: Path) -> None:
    """The card is missing, then there: the failed step runs again, and the run completes."""
    execution_id = server.announce(card, "retry-1")["data"]["execution_id"]
    failed = server.ended(execution_id)
    assert failed["status"] == "failed"
    assert steps(failed)["scan_sd"]["status"] == "failed"
    assert str(card) in failed["error_message"]

    footage = gopro_card(card)
    response = server.request("POST", f"/api/pipeline/{execution_id}/retry")
    assert response.status_code == 202
    assert response.json()["status"] == "running"
    assert response.json()["error_message"] is None
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert steps(completed)["scan_sd"]["attempt"] == 2
    assert files_below(Path(completed["execution_data"]["job_folder"])) == footage


def test_retry_runs_no_completed_step_again(server: Server, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    execution_id = server.trigger("gate", gate=str(gate))
    server.ended(execution_id)
    gate.touch()
    with server.client("frontend") as frontend:
        server.request("POST", f"/api/pipeline/{execution_id}/retry")
        events = frontend.events(execution_id)
    assert events[0]["type"] == "pipeline:retried"
    assert events[0]["data"]["reopened"] == ["open_gate", "pass_through"]
    completed = server.execution(execution_id)
    assert completed["status"] == "completed"
    assert {key: step["attempt"] for key, step in steps(completed).items()} == {
        "prepare": 1,
        "open_gate": 2,
        "pass_through": 1,
    }
    assert completed["execution_data"]["passed_after"] == 1


def test_retry_of_what_has_not_failed_is_a_conflict(server: Server) -> None:
    execution = server.ended(server.trigger("diamond", text="a b"))
    response = server.request("POST", f"/api/pipeline/{execution['uuid']}/retry")
    assert response.status_code == 409
    assert response.json()["code"] == "illegal_transition"
    assert "completed" in response.json()["detail"]
    assert server.execution(execution["id"]) == execution
    assert server.request("POST", f"/api/pipeline/{uuid.uuid4()}/retry").status_code == 404


def test_the_middle_steps_of_a_diamond_run_in_parallel(server: Server) -> None:
    """Each of them waits until the other is there: one after the other they would fail."""
    execution = server.ended(server.trigger("diamond", text="a b"))
    assert execution["status"] == "completed", execution["error_message"]
    left, right = (steps(execution)[key] for key in ("left", "right"))
    assert left["started_at"] <= right["completed_at"]
    assert right["started_at"] <= left["completed_at"]


def test_a_frontend_that_reconnects_has_seen_every_event_once_in_order(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    seen: list[int] = []
    last = 0
    for round_ in range(6):
        with server.client("frontend", since=last) as frontend:
            execution_id = server.trigger("diamond", text=f"a {round_}")
            # Leave in the middle: the rest comes with the next connection.
            frontend.until(
                lambda m, e=execution_id: (
                    m["type"] == "pipeline:step_started" and m["data"]["execution_id"] == e
                )
            )
            ids = [message["id"] for message in frontend.seen if "id" in message]
        seen += ids
        last = ids[-1]
    server.ended(execution_id)
    everything = server.get("/api/events", since=0)["events"]
    with server.client("frontend", since=last) as frontend:
        while seen[-1] < everything[-1]["id"]:
            message = frontend.receive()
            if "id" in message:
                seen.append(message["id"])
    assert seen == [event["id"] for event in everything]
    assert len(seen) == 6 * 10
