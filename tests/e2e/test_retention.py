"""What is over for long enough is forgotten by a server, and the footage is known for ever."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.cards import files_below, gopro_card
from tests.e2e.server import RUSHES, Server, eventually
from tests.e2e.test_restart import CLIP_BYTES
from tests.e2e.test_streams import Reflected

LONG_AGO = "2001-01-01T00:00:00.000000+00:00"


def make_old(server: Server, *execution_ids: str) -> None:
    """As if they had ended long ago. While the server is down."""
    with closing(sqlite3.connect(server.place / "rushes.db")) as connection, connection:
        for uuid in execution_ids:
            changed = connection.execute(
                "UPDATE pipeline_execution SET created_at = ?, updated_at = ? WHERE uuid = ?",
                (LONG_AGO, LONG_AGO, uuid),
            )
            assert changed.rowcount == 1


def gone(server: Server, *execution_ids: str) -> None:
    """Wait until they are."""
    for uuid in execution_ids:
        eventually(
            lambda uuid=uuid: server.request("GET", f"/api/pipeline/{uuid}").status_code,
            lambda status: status == 404,
        )


def announced(server: Server, card: Path, message_id: str) -> Any:
    answer = server.announce(card, message_id)
    assert answer["data"]["duplicate"] is None
    return server.ended(answer["data"]["execution_id"])


def problem(server: Server, path: str, status: int, **more: Any) -> Any:
    response = server.request("GET", path, **more)
    assert response.status_code == status, response.text
    return response.json()


def test_a_server_with_no_number_of_days_is_refused(tmp_path: Path) -> None:
    refused = subprocess.run(
        [RUSHES, "serve", "--keep-days", "never"],
        env=Server(tmp_path).environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert refused.returncode == 2
    assert "--keep-days: 'never' is no number of days" in refused.stderr


def test_a_forgotten_ingest_leaves_its_job_and_a_card_that_is_known(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    card = server.cards / "A"
    footage = gopro_card(card)
    first = announced(server, card, "first")
    assert first["status"] == "completed", first["error_message"]
    failed = server.ended(server.trigger("gate", gate=str(server.place / "closed")))
    assert failed["status"] == "failed"
    young = server.trigger("diamond", text="a b")
    server.ended(young)
    events = server.get("/api/events", limit=1000)["events"]
    floor = max(e["id"] for e in events if e["data"]["execution_id"] != young)
    job = server.get(f"/api/jobs/{first['job_id']}")
    files = server.get(f"/api/jobs/{first['job_id']}/files")
    assert server.stop() == 0
    make_old(server, first["uuid"], failed["uuid"])
    server.start()
    gone(server, first["uuid"], failed["uuid"])

    problem(server, f"/api/pipeline/{first['id']}", 404)
    problem(server, f"/api/pipeline/{first['uuid']}/events", 404)
    retried = server.request("POST", f"/api/pipeline/{failed['uuid']}/retry")
    assert retried.status_code == 404
    assert server.get(f"/api/jobs/{job['id']}") == job
    assert server.get(f"/api/jobs/{job['id']}/files") == files

    # Who has seen everything that went goes on; who hasn't begins anew.
    kept = [event for event in events if event["id"] > floor]
    assert kept
    assert server.get("/api/events", since=floor)["events"] == kept
    assert server.get("/api/events")["events"] == kept
    assert problem(server, "/api/events", 410, params={"since": floor - 1})["code"] == "events_gone"
    stream = {"accept": "text/event-stream"}
    problem(server, "/api/events", 410, params={"since": 0}, headers=stream)
    with server.client("frontend", since=floor - 1) as late:
        reset = late.receive()
        assert reset["type"] == "hub:reset"
        assert reset["data"]["last_event_id"] == events[-1]["id"]
        with server.client("frontend", since=floor) as timely:
            again = server.trigger("diamond", text="c d")
            told = late.events(again)
            assert timely.events(again) == told
        assert [each["id"] for each in timely.seen if "id" in each] == [
            each["id"] for each in (*kept, *told) if "id" in each
        ]
    assert min(each["id"] for each in told if "id" in each) > events[-1]["id"]
    with grpc.insecure_channel(server.grpc) as channel:
        service = Reflected(channel, "rushes.v1.PipelineService")
        with pytest.raises(grpc.RpcError) as refused:
            next(service.stream("WatchExecution", since=floor - 1))
        assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
        # What is there of one execution is all of it, wherever the log begins.
        watched = service.stream("WatchExecution", execution_id=young, since=0)
        assert next(watched)["type"] == "pipeline:started"
    assert server.get(f"/api/pipeline/{young}/events", since=0)["events"] == kept

    # Its message is forgotten with it, its footage never.
    library = files_below(server.library)
    second = announced(server, card, "first")
    assert second["status"] == "completed", second["error_message"]
    assert second["id"] > failed["id"]
    assert second["execution_data"]["copied_files"] == 0
    assert second["execution_data"]["known_files"] == len(footage)
    assert files_below(server.library) == library
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_an_ingest_that_was_never_copied_stays_and_can_be_gone_on_with(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    card = server.cards / "A"
    footage = gopro_card(card, clips=1, clip_bytes=CLIP_BYTES)
    execution_id = server.announce(card, "unlucky")["data"]["execution_id"]
    eventually(lambda: list(server.library.rglob("*.part")), bool)
    server.kill()
    card.rename(server.place / "pulled out")
    server.start()
    failed = server.ended(execution_id)
    assert failed["status"] == "failed"
    assert server.get(f"/api/jobs/{failed['job_id']}")["status"] == "created"
    other = server.trigger("diamond", text="a b")
    server.ended(other)
    assert server.stop() == 0
    make_old(server, failed["uuid"], other)
    server.start()
    gone(server, other)
    (server.place / "pulled out").rename(card)
    retried = server.request("POST", f"/api/pipeline/{failed['uuid']}/retry")
    assert retried.status_code == 202
    completed = server.ended(failed["uuid"])
    assert completed["status"] == "completed", completed["error_message"]
    assert files_below(Path(completed["execution_data"]["job_folder"])) == footage


def test_what_is_under_way_is_kept_however_short_the_time(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server(RUSHES_KEEP_DAYS="0.000001")
    gate = tmp_path / "gate"
    waiting = server.trigger("waiting", until=str(gate))
    ended = server.trigger("diamond", text="a b")
    server.ended(ended)
    assert server.stop() == 0
    server.start()
    gone(server, ended)
    assert server.execution(waiting)["status"] == "running"
    gate.touch()
    assert server.ended(waiting)["status"] == "completed"
