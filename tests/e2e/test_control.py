"""What the engine does by itself about failures, and what people can do about executions."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.cards import gopro_card
from tests.e2e.server import DEADLINE_S, Server, eventually, steps
from tests.e2e.test_command_line import CommandLine


def running(server: Server, until: Path) -> str:
    """An execution whose second step runs until the file is there."""
    execution_id = server.trigger("waiting", until=str(until))
    eventually(
        lambda: steps(server.execution(execution_id))["wait_for_file"]["status"],
        lambda status: status == "running",
    )
    return execution_id


def test_a_failed_attempt_is_followed_by_another_one_by_itself(server: Server) -> None:
    with server.client("frontend") as frontend:
        execution_id = server.trigger("lucky")
        events = frontend.events(execution_id)
    completed = server.execution(execution_id)
    assert completed["execution_data"]["lucky_at"] == 3
    assert steps(completed)["third_time_lucky"]["failures"] == 2
    retrying = [e["data"] for e in events if e["type"] == "pipeline:step_retrying"]
    assert [data["attempt"] for data in retrying] == [1, 2]
    assert [data["error"] for data in retrying] == ["not at attempt 1", "not at attempt 2"]
    assert all(data["next_attempt_at"].endswith("Z") for data in retrying)


def test_an_attempt_that_takes_too_long_fails_and_its_handler_is_told(server: Server) -> None:
    """An async handler and a blocking one; the optional one only leaves a warning."""
    failed = server.ended(server.trigger("slow"))
    assert failed["status"] == "failed"
    assert steps(failed)["too_slow"]["error_message"] == "ran longer than 0.2 s"
    optional = eventually(
        lambda: steps(server.execution(failed["uuid"]))["too_slow_async"],
        lambda step: step["status"] == "failed",
    )
    assert optional["error_message"] == "ran longer than 0.2 s"


def test_cancel_ends_what_runs_at_once(server: Server, tmp_path: Path) -> None:
    execution_id = running(server, tmp_path / "never")
    with server.client("frontend") as frontend:
        response = server.request("POST", f"/api/pipeline/{execution_id}/cancel")
        assert response.status_code == 202
        assert response.json()["status"] == "cancelled"
        event = frontend.until(lambda m: m["type"] == "pipeline:cancelled")
    assert event["data"] == {"execution_id": execution_id, "cancelled": ["wait_for_file", "finish"]}
    cancelled = server.execution(execution_id)
    assert steps(cancelled)["prepare"]["status"] == "completed"
    assert steps(cancelled)["wait_for_file"]["status"] == "cancelled"
    assert server.request("POST", f"/api/pipeline/{execution_id}/cancel").status_code == 202
    assert server.request("POST", f"/api/pipeline/{execution_id}/retry").status_code == 409


def test_cancelled_handlers_free_their_slots(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server(RUSHES_POOLS="default=1")
    first = running(server, tmp_path / "never")
    second = server.trigger("words", text="to be")
    waiting = steps(server.execution(second))["list_words"]
    assert (waiting["status"], waiting["attempt"]) == ("pending", 0)
    server.request("POST", f"/api/pipeline/{first}/cancel")
    assert server.ended(second)["status"] == "completed"


def test_what_has_ended_can_t_be_cancelled(server: Server) -> None:
    execution = server.ended(server.trigger("lucky"))
    for verb in ("cancel", "pause", "resume"):
        response = server.request("POST", f"/api/pipeline/{execution['uuid']}/{verb}")
        assert response.status_code == 409
        assert "completed" in response.json()["detail"]
        unknown = server.request("POST", f"/api/pipeline/{uuid.uuid4()}/{verb}")
        assert unknown.status_code == 404


def test_a_paused_execution_starts_nothing_until_it_is_resumed(
    server: Server, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    execution_id = running(server, gate)
    paused = server.request("POST", f"/api/pipeline/{execution_id}/pause").json()
    assert paused["status"] == "running"
    assert paused["paused_at"] is not None
    gate.touch()
    held = eventually(
        lambda: server.execution(execution_id),
        lambda found: steps(found)["wait_for_file"]["status"] == "completed",
    )
    # What a completion makes ready would have been started in the same commit.
    assert steps(held)["finish"]["status"] == "pending"
    assert held["status"] == "running"
    assert server.request("POST", f"/api/pipeline/{execution_id}/resume").status_code == 200
    assert server.ended(execution_id)["execution_data"]["finished"] is True


def test_a_failed_step_is_skipped_by_hand_and_the_rest_goes_on(
    server: Server, tmp_path: Path
) -> None:
    execution_id = server.trigger("gate", gate=str(tmp_path / "never"))
    server.ended(execution_id)
    response = server.request("POST", f"/api/pipeline/{execution_id}/steps/open_gate/skip")
    assert response.status_code == 200
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert steps(completed)["open_gate"]["waived"] is True
    assert completed["execution_data"]["passed_after"] == 1
    unknown = server.request("POST", f"/api/pipeline/{execution_id}/steps/nope/skip")
    assert unknown.status_code == 404


def test_a_failed_step_is_completed_by_hand_with_its_output(server: Server, tmp_path: Path) -> None:
    execution_id = server.trigger("gate", gate=str(tmp_path / "never"))
    server.ended(execution_id)
    path = f"/api/pipeline/{execution_id}/steps/open_gate/complete"
    for bad in ({"output": 1}, {"out": {}}, {"output": {"gate": "another"}}):
        assert server.request("POST", path, json=bad).status_code == 400
    assert server.execution(execution_id)["status"] == "failed"
    assert server.request("POST", path, json={"output": {"opened": "by hand"}}).status_code == 200
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert completed["execution_data"]["opened"] == "by hand"


def test_the_command_line_cancels_pauses_and_settles(server: Server, tmp_path: Path) -> None:
    rushes = CommandLine(server.place)
    held = running(server, tmp_path / "never")
    for verb, says in (
        ("pause", "running, paused"),
        ("resume", "running"),
        ("cancel", "cancelled"),
    ):
        answer = rushes(verb, held)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout == f"{held} {says}\n"
    stuck = server.trigger("gate", gate=str(tmp_path / "never"))
    server.ended(stuck)
    assert rushes("complete", stuck, "open_gate", "--output", "{").returncode == 2
    answer = rushes("complete", stuck, "open_gate", "--output", '{"opened": true}')
    assert answer.returncode == 0, answer.stderr
    assert server.ended(stuck)["status"] == "completed"
    again = server.trigger("gate", gate=str(tmp_path / "never"))
    server.ended(again)
    assert rushes("skip", again, "open_gate").returncode == 0
    assert server.ended(again)["status"] == "completed"


def test_steps_are_spawned_while_the_execution_runs(server: Server) -> None:
    with server.client("frontend") as frontend:
        execution_id = server.trigger("words", text="to be or not")
        events = frontend.events(execution_id)
    completed = server.execution(execution_id)
    assert completed["status"] == "completed", completed["error_message"]
    assert completed["execution_data"]["total"] == 9
    assert completed["execution_data"]["measure"]["not"] == {"length": 3}
    spawned = [e["data"]["step_key"] for e in events if e["type"] == "pipeline:step_spawned"]
    assert spawned == ["measure:to", "measure:be", "measure:or", "measure:not"]
    empty = server.ended(server.trigger("words", text=""))
    assert empty["execution_data"]["total"] == 0


def test_an_attempt_that_falls_silent_is_taken_over_from_its_checkpoint(server: Server) -> None:
    completed = server.ended(server.trigger("leased"))
    assert completed["status"] == "completed", completed["error_message"]
    assert completed["execution_data"] == {"went_on_from": 7, "at_attempt": 2}


def test_a_part_is_run_again_as_a_new_execution(server: Server) -> None:
    original = server.ended(server.trigger("diamond", text="a b"))
    response = server.request(
        "POST", f"/api/pipeline/{original['uuid']}/rerun", json={"from_step": "join"}
    )
    assert response.status_code == 201
    again = server.ended(response.json()["execution_id"])
    assert again["status"] == "completed"
    assert again["rerun_of"] == original["id"]
    assert again["execution_data"] == original["execution_data"]
    events = server.get(f"/api/pipeline/{again['uuid']}/events")["events"]
    started = [e["data"]["step_key"] for e in events if e["type"] == "pipeline:step_started"]
    assert started == ["join"]
    for body, status in (({"from_step": "nope"}, 404), ({}, 400), ({"from": "join"}, 400)):
        refused = server.request("POST", f"/api/pipeline/{original['uuid']}/rerun", json=body)
        assert refused.status_code == status


def test_while_the_engine_is_paused_nothing_starts(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server()
    gate = tmp_path / "gate"
    before = running(server, gate)
    paused = server.request("POST", "/api/engine/pause").json()
    assert paused["paused"] is True
    assert paused["paused_at"].endswith("Z")
    assert server.request("POST", "/api/engine/pause").json() == paused
    gate.touch()
    held = eventually(
        lambda: server.execution(before),
        lambda found: steps(found)["wait_for_file"]["status"] == "completed",
    )
    assert (held["status"], steps(held)["finish"]["status"]) == ("running", "pending")
    assert steps(held)["finish"]["queued_at"] is not None
    assert held["engine_paused_at"] == paused["paused_at"]
    execution_id = server.trigger("diamond", text="a b")
    pending = server.execution(execution_id)
    assert (pending["status"], pending["started_at"]) == ("pending", None)
    assert pending["engine_paused_at"] == paused["paused_at"]
    assert server.get(f"/api/pipeline/{execution_id}/events")["events"] == []
    assert server.get("/api/engine") == {
        "paused": True,
        "paused_at": paused["paused_at"],
        "running": 0,
        "waiting": 1,
        "overdue": [],
        "abandoned": [],
    }
    resumed = server.request("POST", "/api/engine/resume").json()
    assert (resumed["paused"], resumed["paused_at"]) == (False, None)
    for each in (before, execution_id):
        ended = server.ended(each)
        assert (ended["status"], ended["engine_paused_at"]) == ("completed", None)


def test_a_paused_engine_is_paused_after_a_kill_too_and_loses_nothing(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server()
    rushes = CommandLine(server.place)
    gate = tmp_path / "gate"
    interrupted = running(server, gate)
    since = server.request("POST", "/api/engine/pause").json()["paused_at"]
    card = server.cards / "A"
    gopro_card(card)
    accepted = server.announce(card, "while paused")["data"]
    assert accepted["duplicate"] is None
    assert server.announce(card, "again")["data"] == {
        "message_id": "again",
        "execution_id": accepted["execution_id"],
        "duplicate": "card",
    }
    assert server.execution(accepted["execution_id"])["status"] == "pending"

    server.kill()
    server.start()
    assert server.process is not None
    assert server.process.stdout is not None
    said = server.process.stdout.readline()
    assert since in said
    assert "rushes engine resume" in said
    gate.touch()
    assert server.get("/api/engine")["paused_at"] == since
    assert server.execution(accepted["execution_id"])["status"] == "pending"
    # Recovery asks for a slot in the commit in which it takes a step over.
    taken_over = steps(server.execution(interrupted))["wait_for_file"]
    assert (taken_over["status"], taken_over["attempt"]) == ("pending", 1)
    shown = rushes("status", accepted["execution_id"])
    assert f"paused since {since}" in shown.stdout

    resumed = rushes("engine", "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "The engine is not paused" in resumed.stdout
    for each in (interrupted, accepted["execution_id"]):
        assert server.ended(each)["status"] == "completed"
    server.kill()
    server.start()
    assert server.get("/api/engine")["paused"] is False


def test_a_command_without_a_server_starts_nothing_that_it_would_have_to_give_back(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """It changes what is stored; whoever is started to stay goes on with it."""
    server = start_server()
    rushes = CommandLine(server.place)
    rushes.environment = server.environment
    gate = tmp_path / "gate"
    failed = server.trigger("gate", gate=str(tmp_path / "never"))
    server.ended(failed)
    server.request("POST", "/api/engine/pause")
    pending, asking, paused = (
        server.trigger(kind, until=str(gate)) for kind in ("waiting", "outside", "waiting")
    )
    server.request("POST", f"/api/pipeline/{paused}/pause")
    assert server.stop() == 0

    resumed = rushes("engine", "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("The engine is not paused\n0 steps running")
    for command in (("resume", paused), ("skip", failed, "open_gate")):
        answer = rushes(*command)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert "running" in answer.stdout
    with closing(sqlite3.connect(server.place / "rushes.db")) as connection:
        statuses = connection.execute("SELECT DISTINCT status FROM pipeline_execution").fetchall()
        begun = connection.execute(
            "SELECT uuid, step_key, attempt FROM pipeline_step AS step"
            " JOIN pipeline_execution AS execution ON execution.id = step.execution_id"
            " WHERE attempt > 0 ORDER BY step.id"
        ).fetchall()
    assert statuses == [("running",)]
    assert begun == [(failed, "prepare", 1), (failed, "open_gate", 1)], "nothing else ever started"

    gate.touch()
    server.start()
    eventually(lambda: server.execution(asking)["waits_for"], lambda found: found == ["answer"])
    for each in (pending, paused, failed):
        ended = server.ended(each)
        assert ended["status"] == "completed"
        assert max(step["attempt"] for step in ended["steps"]) == 1


def test_a_handler_that_never_looks_up_is_abandoned_and_its_slot_is_used_again(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(
        RUSHES_POOLS="default=1", RUSHES_ABANDON_AFTER_S="0.2", RUSHES_STOP_GRACE_S="0.5"
    )
    rushes = CommandLine(server.place)
    stuck = server.trigger("stuck")
    eventually(
        lambda: steps(server.execution(stuck))["deaf_thread"]["status"],
        lambda status: status == "running",
    )
    server.request("POST", f"/api/pipeline/{stuck}/cancel")
    number = server.execution(stuck)["id"]
    found = eventually(lambda: server.get("/api/engine"), lambda found: found["abandoned"])
    assert found["abandoned"] == [{"execution": number, "step_key": "deaf_thread", "attempt": 1}]
    assert (found["overdue"], found["running"]) == ([], 1)
    assert server.ended(server.trigger("lucky"))["status"] == "completed"
    # A blocking handler needs a thread: the stuck one has kept its own, and there is another.
    assert server.ended(server.trigger("words", text="to be"))["status"] == "completed"
    assert f"abandoned: deaf_thread of execution {number}, attempt 1" in rushes("engine").stdout
    assert server.stop() == 0
    log = server.log.read_text()
    assert f"deaf_thread of execution {number}, attempt 1 is abandoned" in log
    assert "Traceback" not in log


def test_a_command_on_a_paused_engine_says_why_nothing_moves(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    footage = gopro_card(tmp_path / "CARD")
    paused = rushes("engine", "pause")
    assert paused.returncode == 0, paused.stderr
    assert paused.stdout.startswith("The engine is paused since ")
    assert rushes("engine").stdout == paused.stdout
    assert json.loads(rushes("engine", "--json").stdout)["paused"] is True
    process = rushes.start("ingest", str(tmp_path / "CARD"))
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith("The engine is paused since ")
    assert "rushes engine resume" in said
    # From another terminal: it finds the server that the first command has started.
    assert "not paused" in rushes("engine", "resume").stdout
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert f"{len(footage)} files" in output
