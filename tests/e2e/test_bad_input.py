"""Bad input: a clear error to its sender, nothing stored, and the next good message served."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

from tests.cards import SHOT_AT, contents, files_below, gopro_card, put
from tests.e2e.server import Server, steps

OUTSIDE_ROOTS = Path("/etc")

TYPE = "detector:sd_inserted"

REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # name: (message, code, what the error says)
    "not JSON": (lambda root: "{'type': 1}", "invalid_input", "not JSON"),
    "JSON but no object": (lambda root: "[]", "invalid_input", "must be a JSON object"),
    "a lone surrogate": (lambda root: '{"type": "\\ud800"}', "invalid_input", "not JSON"),
    "nested too deep": (lambda root: "[" * 60_000, "invalid_input", "not JSON"),
    "no type": (lambda root: {"message_id": "m"}, "invalid_input", "no type"),
    "a type that is no text": (lambda root: {"type": 5}, "invalid_input", "type must be text"),
    "an unknown type": (
        lambda root: {"type": "detector:sd_eaten", "message_id": "m"},
        "invalid_input",
        "detector:sd_eaten",
    ),
    "data that is no object": (
        lambda root: {"type": TYPE, "data": "x"},
        "invalid_input",
        "data must be an object",
    ),
    "no message_id": (
        lambda root: {"type": TYPE, "sd_path": str(root / "x")},
        "invalid_input",
        "message_id is missing",
    ),
    "no sd_path": (
        lambda root: {"type": TYPE, "message_id": "m"},
        "invalid_input",
        "sd_path is missing",
    ),
    "a message_id of a wrong type": (
        lambda root: {"type": TYPE, "message_id": 7, "sd_path": str(root / "x")},
        "invalid_input",
        "message_id must be text",
    ),
    "an empty message_id": (
        lambda root: {"type": TYPE, "message_id": "", "sd_path": str(root / "x")},
        "invalid_input",
        "message_id must have",
    ),
    "a message_id with a terminal code": (
        lambda root: {"type": TYPE, "message_id": "a\x1b[2J", "sd_path": str(root / "x")},
        "invalid_input",
        "can't be shown",
    ),
    "an sd_path of a wrong type": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": ["x"]},
        "invalid_path",
        "not text",
    ),
    "an sd_path that is null": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": None},
        "invalid_path",
        "not text",
    ),
    "an empty sd_path": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": ""},
        "invalid_path",
        "empty",
    ),
    "a relative sd_path": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": "cards/A"},
        "invalid_path",
        "not absolute",
    ),
    "an sd_path with a NUL": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": f"{root}/a\0b"},
        "invalid_path",
        "NUL",
    ),
    "an sd_path that is a root itself": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": f"{root}/"},
        "invalid_path",
        "card root itself",
    ),
    "an sd_path outside the roots": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": str(OUTSIDE_ROOTS)},
        "invalid_path",
        "RUSHES_CARD_ROOTS",
    ),
    "an sd_path that only begins like a root": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": f"{root}-other/A"},
        "invalid_path",
        "not below a card root",
    ),
    "an sd_path that leads out by ..": (
        lambda root: {"type": TYPE, "message_id": "m", "sd_path": f"{root}/a/../../etc"},
        "invalid_path",
        "..",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_clear_error_and_the_connection_stays(server: Server, name: str) -> None:
    message, code, says = REFUSED[name]
    before = server.count()
    sent = message(server.cards)
    with server.client("detector") as detector:
        answer = detector.ask(sent)
        assert answer["type"] == "error"
        assert answer["data"]["code"] == code
        assert says in answer["data"]["message"]
        claimed = sent.get("message_id") if isinstance(sent, dict) else None
        assert answer["data"]["message_id"] == (claimed if isinstance(claimed, str) else None)
        assert server.count() == before, "something was stored"
        put(server.cards / f"after {name}" / "DCIM" / "A.MP4", contents(name, 1_000))
        good = detector.announce(str(server.cards / f"after {name}"), f"after {name}")
        assert good["type"] == "detector:accepted"
    server.ended(good["data"]["execution_id"])


def test_a_link_that_leads_out_of_the_roots_is_refused(server: Server) -> None:
    os.symlink("/etc", server.cards / "innocent")
    os.symlink(server.cards / "elsewhere", server.cards / "dangling")
    for name in ("innocent", "innocent/ssl", "dangling"):
        with server.client("detector") as detector:
            answer = detector.announce(str(server.cards / name), f"link {name}")
        assert answer["data"]["code"] == "invalid_path"
        assert "symbolic link" in answer["data"]["message"]


def test_a_card_that_becomes_a_link_after_it_was_accepted_is_not_followed(
    server: Server, card: Path
) -> None:
    execution_id = server.announce(card, "swapped")["data"]["execution_id"]
    server.ended(execution_id)
    os.symlink("/etc", card)
    server.request("POST", f"/api/pipeline/{execution_id}/retry")
    failed = server.ended(execution_id)
    assert failed["status"] == "failed"
    assert "symbolic link" in failed["error_message"]
    assert failed["job_id"] is None


def test_binary_messages_are_refused(server: Server) -> None:
    with server.client("detector") as detector:
        answer = detector.ask(b"\x00\x01")
        assert "binary" in answer["data"]["message"]


def test_a_message_over_the_limit_is_an_error_and_a_huge_one_closes(server: Server) -> None:
    big = {"type": TYPE, "message_id": "big", "sd_path": "/x", "more": "x" * 65_536}
    with server.client("detector") as detector, server.client("frontend") as other:
        answer = detector.ask(big)
        assert answer["type"] == "error"
        assert answer["data"]["message_id"] == "big"
        assert "65536" in answer["data"]["message"]
        detector.say("x" * 1_100_000)
        with pytest.raises(ConnectionClosedError) as closed:
            detector.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert other.ask("{}")["type"] == "error", "the other connection was disturbed"


def test_the_same_message_twice_is_answered_with_the_same_execution(
    server: Server, card: Path
) -> None:
    gopro_card(card)
    first = server.announce(card, "twice")
    again = server.announce(card, "twice")
    assert again["data"]["execution_id"] == first["data"]["execution_id"]
    assert again["data"]["duplicate"] == "message"
    server.ended(first["data"]["execution_id"])
    afterwards = server.announce(card, "twice")
    assert afterwards["data"]["duplicate"] == "message"
    assert len(server.get("/api/pipeline", message_id="twice")["executions"]) == 1


def test_the_same_message_id_with_other_contents_is_a_conflict(server: Server, card: Path) -> None:
    first = server.announce(card, "reused")
    answer = server.announce(card.with_name("another"), "reused")
    assert answer["type"] == "error"
    assert answer["data"]["code"] == "message_conflict"
    assert answer["data"]["message_id"] == "reused"
    server.ended(first["data"]["execution_id"])


def test_a_card_under_way_is_not_started_twice(server: Server, card: Path) -> None:
    """Nothing is there, so the scan waits a little: time for a second announcement."""
    first = server.announce(card, "busy-1")
    second = server.announce(card, "busy-2")
    assert second["data"]["execution_id"] == first["data"]["execution_id"]
    assert second["data"]["duplicate"] == "card"
    server.ended(first["data"]["execution_id"])
    remembered = server.announce(card, "busy-2")
    assert remembered["data"]["execution_id"] == first["data"]["execution_id"]
    assert remembered["data"]["duplicate"] == "message"


def test_a_frontend_may_not_trigger(server: Server, card: Path) -> None:
    before = server.count()
    for client_type in ("frontend", None):
        with server.client(client_type) as frontend:
            answer = frontend.announce(str(card), "not for you")
        assert answer["data"]["code"] == "forbidden"
        assert "client_type=detector" in answer["data"]["message"]
    assert server.count() == before


def test_an_unknown_client_type_or_since_is_told_so(server: Server) -> None:
    for query in ({"client_type": "king"}, {"since": "yesterday"}):
        with pytest.raises(AssertionError), server.client(**query):  # type: ignore[arg-type]
            pass


def test_a_path_where_nothing_is_fails_and_can_be_retried(server: Server, card: Path) -> None:
    execution_id = server.announce(card, "later")["data"]["execution_id"]
    failed = server.ended(execution_id)
    assert "card not there" in failed["error_message"]
    assert str(card) in failed["error_message"]
    footage = gopro_card(card)
    server.request("POST", f"/api/pipeline/{execution_id}/retry")
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert files_below(Path(completed["execution_data"]["job_folder"])) == footage


def test_whoever_completes_a_step_by_hand_says_nothing_of_where_footage_goes(
    server: Server, card: Path
) -> None:
    card.write_text("no card, so that scan_sd fails")
    execution_id = server.announce(card, "by hand")["data"]["execution_id"]
    assert server.ended(execution_id)["status"] == "failed"
    path = f"/api/pipeline/{execution_id}/steps/scan_sd/complete"
    for name in ("sd_path", "library", "destinations"):
        refused = server.request("POST", path, json={"output": {name: [str(OUTSIDE_ROOTS)]}})
        assert (refused.status_code, refused.json()["field"]) == (400, "output")
        assert repr(name) in refused.json()["detail"]
    execution = server.execution(execution_id)
    assert execution["status"] == "failed"
    assert str(OUTSIDE_ROOTS) not in str(execution["execution_data"])


def test_a_path_where_a_file_is_fails_and_says_so(server: Server, card: Path) -> None:
    card.write_text("I am a file")
    failed = server.ended(server.announce(card, "a file")["data"]["execution_id"])
    assert failed["status"] == "failed"
    assert "is a file, not a card" in failed["error_message"]


def test_a_card_without_media_completes_and_says_so(server: Server, card: Path) -> None:
    card.mkdir()
    (card / "DCIM").mkdir()
    completed = server.ended(server.announce(card, "empty")["data"]["execution_id"])
    assert completed["status"] == "completed"
    assert completed["execution_data"]["file_count"] == 0
    assert "card" in completed["execution_data"]["note"]


def test_names_that_are_no_text_arrive_as_they_are_and_are_shown_escaped(
    server: Server, card: Path
) -> None:
    names = [b"caf\xe9.MP4", b"two\nlines.MP4", b"\x1b[31mred.MP4", "ümläut ✓.MP4".encode()]
    folder = card / "DCIM" / "100GOPRO"
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), name)
        with open(path, "wb") as file:
            file.write(contents(f"names {number}", 3_000))
        os.utime(path, (SHOT_AT, SHOT_AT))
    completed = server.ended(server.announce(card, "odd names")["data"]["execution_id"])
    assert completed["status"] == "completed", completed["error_message"]
    job_folder = completed["execution_data"]["job_folder"]
    copied = os.path.join(os.fsencode(job_folder), b"DCIM/100GOPRO")
    assert sorted(os.listdir(copied)) == sorted(names)
    listed = server.get(f"/api/jobs/{completed['job_id']}/files")["files"]
    shown = {each["path"].rsplit("/", 1)[-1] for each in listed}
    assert shown == {
        "caf\\xe9.MP4",
        "two\\x0alines.MP4",
        "\\x1b[31mred.MP4",
        "ümläut ✓.MP4",
    }
    assert all(each["kind"] == "media" and each["clip"] == each["path"] for each in listed)
    noted = {each["path"] for each in listed if each["problem"].startswith("its name is no UTF-8")}
    assert noted == {"DCIM/100GOPRO/caf\\xe9.MP4"}


def test_running_the_same_card_again_copies_only_what_is_new(server: Server, card: Path) -> None:
    footage = gopro_card(card)
    first = server.ended(server.announce(card, "again-1")["data"]["execution_id"])
    assert first["execution_data"]["copied_files"] == len(footage)
    new = contents("one more clip", 20_000)
    put(card / "DCIM/100GOPRO/GX010099.MP4", new)
    second = server.ended(server.announce(card, "again-2")["data"]["execution_id"])
    assert second["execution_data"]["copied_files"] == 1
    assert second["execution_data"]["known_files"] == len(footage)
    assert files_below(Path(second["execution_data"]["job_folder"])) == {
        "DCIM/100GOPRO/GX010099.MP4": new
    }


# -- failing with the file or the place named, and retryable ----------------------------


def unprivileged() -> tuple[str, ...]:
    """A prefix that takes root's power to read and write everything from a command."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def test_an_unreadable_file_on_the_card_is_named_and_the_others_are_saved(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(prefix=unprivileged())
    card = server.cards / "A"
    footage = gopro_card(card)
    locked = card / "DCIM/100GOPRO/GX010001.MP4"
    locked.chmod(0)
    execution_id = server.announce(card, "unreadable")["data"]["execution_id"]
    failed = server.ended(execution_id)
    assert failed["status"] == "failed"
    assert "DCIM/100GOPRO/GX010001.MP4" in failed["error_message"]
    assert "ermission" in failed["error_message"]
    job = server.get(f"/api/jobs/{failed['job_id']}")
    saved = files_below(server.library / job["name"])
    assert saved == {k: v for k, v in footage.items() if k != "DCIM/100GOPRO/GX010001.MP4"}

    locked.chmod(0o644)
    server.request("POST", f"/api/pipeline/{execution_id}/retry")
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert completed["execution_data"]["copied_files"] == len(footage)
    assert files_below(server.library / job["name"]) == footage


def test_a_library_without_write_permission_is_named(start_server: Callable[..., Server]) -> None:
    server = start_server(prefix=unprivileged())
    card = server.cards / "A"
    footage = gopro_card(card)
    server.library.chmod(0o555)
    execution_id = server.announce(card, "locked library")["data"]["execution_id"]
    failed = server.ended(execution_id)
    assert failed["status"] == "failed"
    assert str(server.library) in failed["error_message"]
    assert "may not be written to" in failed["error_message"]
    server.library.chmod(0o755)
    server.request("POST", f"/api/pipeline/{execution_id}/retry")
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert files_below(Path(completed["execution_data"]["job_folder"])) == footage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is quickly filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_library_without_room_is_named_before_a_byte_is_copied(
    start_server: Callable[..., Server], small_disk: Path
) -> None:
    server = start_server(RUSHES_LIBRARY=str(small_disk))
    footage = gopro_card(server.cards / "A")
    ballast = small_disk / "ballast"
    room = os.statvfs(small_disk)
    ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - 100_000))
    execution_id = server.announce(server.cards / "A", "no room")["data"]["execution_id"]
    failed = server.ended(execution_id)
    assert failed["status"] == "failed"
    assert f"not enough room in the library {small_disk}" in failed["error_message"]
    assert list(small_disk.iterdir()) == [ballast]

    ballast.unlink()
    server.request("POST", f"/api/pipeline/{execution_id}/retry")
    completed = server.ended(execution_id)
    assert completed["status"] == "completed"
    assert steps(completed)["scan_sd"]["attempt"] == 1
    assert files_below(Path(completed["execution_data"]["job_folder"])) == footage


def test_rest_refuses_what_makes_no_sense(server: Server) -> None:
    bodies: list[tuple[Any, str]] = [
        ({}, "pipeline_type"),
        ({"pipeline_type": 1}, "pipeline_type"),
        ({"pipeline_type": "diamond", "data": []}, "data"),
        ({"pipeline_type": "diamond", "dta": {}}, "dta"),
        ({"pipeline_type": "diamond", "message_id": 1}, "message_id"),
        ({"pipeline_type": "sd_ingest", "data": {}}, "sd_path"),
        ({"pipeline_type": "sd_ingest", "data": {"sd_path": "/etc"}}, "sd_path"),
    ]
    before = server.count()
    for body, field in bodies:
        response = server.request("POST", "/api/pipeline", json=body)
        assert response.status_code == 400, body
        assert response.json()["field"] == field
    missing = server.request("POST", "/api/pipeline", json={"pipeline_type": "no_such"})
    assert missing.status_code == 404
    assert "diamond" in missing.json()["detail"]
    text = {"content-type": "text/plain"}
    response = server.request("POST", "/api/pipeline", content="{}", headers=text)
    assert response.status_code == 415
    assert response.json()["code"] == "unsupported_media_type"
    assert "send it as content-type: application/json" in response.json()["detail"]
    json_ = {"content-type": "application/json"}
    for content in (b"{", b"\xff", b'{"a": "\xff"}', b"[]", b"[" * 100_000):
        response = server.request("POST", "/api/pipeline", content=content, headers=json_)
        assert response.status_code == 400
    huge = json.dumps({"pipeline_type": "diamond", "data": {"x": "x" * 1_100_000}})
    response = server.request("POST", "/api/pipeline", content=huge, headers=json_)
    assert response.status_code == 413
    for query in ("status=lost", "limit=0", "limit=1000", "cursor=x", "limit=-1"):
        assert server.request("GET", f"/api/pipeline?{query}").status_code == 400
    assert server.request("DELETE", "/api/pipeline").status_code == 405
    assert server.request("GET", "/nowhere").status_code == 404
    assert server.count() == before


def test_a_resume_point_outside_the_log_is_told_so(server: Server) -> None:
    execution = server.ended(server.trigger("diamond", text="a b"))
    beyond = 10**9
    for path in ("/api/events", f"/api/pipeline/{execution['uuid']}/events"):
        for accept in ("application/json", "text/event-stream"):
            response = server.request("GET", f"{path}?since={beyond}", headers={"accept": accept})
            assert response.status_code == 410
            assert response.json()["code"] == "events_gone"
    with server.client("frontend", since=beyond) as frontend:
        reset = frontend.receive()
        assert reset["type"] == "hub:reset"
        assert reset["data"]["last_event_id"] == frontend.welcome["data"]["last_event_id"]
        execution_id = server.trigger("diamond", text="c d")
        assert frontend.events(execution_id), "the live stream didn't go on"
