"""The server dies, and nothing is lost, half-written or done twice."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cards import files_below, gopro_card
from tests.e2e.server import RUSHES, Server, eventually, steps
from tests.e2e.test_command_line import CommandLine

CLIP_BYTES = 150_000_000


def test_a_server_killed_in_the_middle_of_a_copy_goes_on_by_itself(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    card = server.cards / "A"
    footage = gopro_card(card, clips=2, clip_bytes=CLIP_BYTES)
    execution_id = server.announce(card, "killed")["data"]["execution_id"]

    eventually(lambda: list(server.library.rglob("*.part")), bool)
    server.kill()

    # Under its final name a file is whole, or it isn't there.
    for path, data in files_below(server.library).items():
        name = path.split("/", 1)[1]
        assert name.endswith(".part") or data == footage[name]
    assert list(server.library.rglob("*.part")), "it was killed too late to show anything"

    server.start()
    completed = server.ended(execution_id)
    assert completed["status"] == "completed", completed["error_message"]
    assert {key: step["attempt"] for key, step in steps(completed).items()} == {
        "scan_sd": 1,
        "create_job": 1,
        "copy_files": 2,
        "write_manifest": 1,
        "verdict": 1,
        "write_report": 1,
    }
    assert files_below(Path(completed["execution_data"]["job_folder"])) == footage
    assert list(server.library.rglob("*.part")) == []

    events = server.get(f"/api/pipeline/{execution_id}/events")["events"]
    ids = [event["id"] for event in events]
    assert ids == sorted(set(ids))
    started = [e["data"]["step_key"] for e in events if e["type"] == "pipeline:step_started"]
    after = ["write_manifest", "verdict", "write_report"]
    assert started == ["scan_sd", "create_job", "copy_files", "copy_files", *after]
    finished = [e["data"]["step_key"] for e in events if e["type"] == "pipeline:step_completed"]
    assert finished == ["scan_sd", "create_job", "copy_files", *after]


def test_a_server_that_is_asked_to_stop_gives_its_steps_back(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server()
    gate = tmp_path / "gate"
    execution_id = server.trigger("waiting", until=str(gate))
    eventually(
        lambda: steps(server.execution(execution_id))["wait_for_file"]["status"],
        lambda status: status == "running",
    )
    assert server.stop() == 0
    gate.touch()
    server.start()
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert steps(completed)["prepare"]["attempt"] == 1
    assert steps(completed)["wait_for_file"]["attempt"] == 2


def test_a_second_server_on_one_database_is_refused_by_the_first_one_s_name(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    assert server.process is not None
    second = subprocess.run(
        [RUSHES, "serve"],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert f"pid {server.process.pid}" in second.stderr
    assert server.http in second.stderr
    assert "Traceback" not in second.stderr
    assert server.get("/healthz") == {"status": "ok"}
    assert server.get("/readyz") == {"status": "ready"}


def test_an_address_in_use_is_named(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server = start_server()
    port = server.http.rsplit(":", 1)[1]
    grpc_port = server.grpc.rsplit(":", 1)[1]
    for flags, named in (
        (["--port", port], port),
        (["--port", "0", "--grpc-port", grpc_port], grpc_port),
    ):
        second = subprocess.run(
            [RUSHES, "--database-url", f"sqlite:///{tmp_path}/other.db", "serve", *flags],
            env=server.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 1
        assert named in second.stderr
        assert "Traceback" not in second.stderr


def test_http_and_grpc_get_no_port_together(tmp_path: Path) -> None:
    refused = CommandLine(tmp_path)("serve", "--port", "18451", "--grpc-port", "18451")
    assert refused.returncode == 2
    assert "need a port each, and both are to have 18451" in refused.stderr
    assert refused.stdout == ""


def test_an_execution_whose_code_is_gone_fails_and_others_go_on(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server()
    gate = tmp_path / "gate"
    lost = server.trigger("waiting", until=str(gate))
    eventually(
        lambda: steps(server.execution(lost))["wait_for_file"]["status"],
        lambda status: status == "running",
    )
    server.kill()
    server.environment["RUSHES_PIPELINES"] = "tests.e2e.pipelines:diamond"
    server.start()
    failed = server.ended(lost)
    assert failed["status"] == "failed"
    assert "no code for step 'wait_for_file' of pipeline 'waiting'" in failed["error_message"]
    assert server.ended(server.trigger("diamond", text="a b"))["status"] == "completed"


def test_a_server_whose_handlers_don_t_end_stops_all_the_same(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(RUSHES_STOP_GRACE_S="0.5")
    execution_id = server.trigger("stubborn")
    eventually(
        lambda: {s["status"] for s in server.execution(execution_id)["steps"]},
        lambda statuses: statuses == {"running"},
    )
    assert server.stop() == 0
    assert "did not end in time" in server.log.read_text()


def test_a_handler_that_ends_the_process_fails_nobody_and_all_go_on(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server()
    gate = tmp_path / "gate"
    bystander = server.trigger("patient", until=str(gate))
    eventually(
        lambda: steps(server.execution(bystander))["wait_on_the_loop"]["status"],
        lambda status: status == "running",
    )
    culprit = server.trigger("quitter")
    assert server.end() == 1
    assert "a handler's task ended the server: SystemExit(5)" in server.log.read_text()
    server.start()
    gate.touch()
    assert server.ended(bystander)["execution_data"]["waited_at"] == 2
    assert server.ended(culprit)["execution_data"] == {"went_on_at": 2}
