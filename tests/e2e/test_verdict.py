"""The verdict and the report, as a frontend, a person and a spreadsheet get them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.cards import gopro_card, put
from tests.e2e.server import Server
from tests.e2e.test_command_line import CommandLine


def test_everybody_is_told_the_verdict(server: Server, card: Path) -> None:
    footage = gopro_card(card)
    with server.client("frontend") as frontend:
        execution_id = server.announce(card, "verdict-told")["data"]["execution_id"]
        events = frontend.events(execution_id)
    execution = server.execution(execution_id)
    (event,) = (each for each in events if each["type"] == "card:verdict")
    types = [each["type"] for each in events]
    assert types.index("card:verdict") < types.index("pipeline:completed")
    words = f"Safe to format: every one of {len(footage)} files stands verified on 1 destination"
    said = event["data"]
    assert said["safe_to_format"] is True
    assert said["words"].startswith(words)
    assert said["message_id"] == "verdict-told"
    assert said["job_id"] == execution["job_id"]
    assert said["step_key"] == "verdict"
    assert said["files"] == said["safe_files"] == len(footage)
    assert said["reasons"] == []
    assert server.get(f"/api/pipeline/{execution_id}/events", since=event["id"] - 1)["events"][
        0
    ] == {key: event[key] for key in ("id", "type", "timestamp", "data")}

    job = server.get(f"/api/jobs/{said['job_id']}")
    assert job["safe_to_format"] is True
    assert job["verdict"]["words"] == said["words"]
    assert all(Path(path).is_file() for path in job["verdict"]["reports"])
    (manifest,) = job["verdict"]["manifests"]
    assert Path(manifest["path"]).is_file()
    assert manifest["files"] == len(footage)


def test_jobs_are_listed_in_pages(start_server: Callable[..., Server]) -> None:
    server = start_server()
    cards = [server.cards / name for name in ("A001", "B001", "C001")]
    for number, card in enumerate(cards):
        gopro_card(card, clips=1)
        server.ended(server.announce(card, f"list-{number}")["data"]["execution_id"])
    first = server.get("/api/jobs", limit=2)
    assert [job["card"]["label"] for job in first["jobs"]] == ["C001", "B001"]
    rest = server.get("/api/jobs", limit=2, cursor=first["next_cursor"])
    assert [job["card"]["label"] for job in rest["jobs"]] == ["A001"]
    assert rest["next_cursor"] is None
    assert all(job["safe_to_format"] for job in first["jobs"] + rest["jobs"])
    for wrong in ("limit=0", "limit=201", "limit=x", "cursor=0", "cursor=-1", "cursor=x"):
        assert server.request("GET", f"/api/jobs?{wrong}").status_code in (400, 422), wrong


def test_the_report_is_a_page_that_runs_nothing_and_a_table(server: Server, card: Path) -> None:
    footage = gopro_card(card)
    put(card / "<script>alert(1)</script>.txt", b"text")
    put(card / "=1+1.txt", b"text")
    with open(os.path.join(os.fsencode(card), b"caf\xe9.txt"), "wb") as file:
        file.write(b"latin-1")
    execution = server.ended(server.announce(card, "verdict-report")["data"]["execution_id"])
    path = f"/api/jobs/{execution['job_id']}/report"
    page = server.request("GET", path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert execution["execution_data"]["verdict"]["words"] in page.text
    assert "<script" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.txt" in page.text

    table = server.request("GET", f"{path}.csv")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert table.headers["content-disposition"].startswith("attachment;")
    rows = list(csv.DictReader(io.StringIO(table.content.decode("utf-8-sig"), newline="")))
    junk = [row for row in rows if row["kind"] == "junk"]
    assert [row["path"] for row in junk] == [".Trashes"]
    rows = [row for row in rows if row not in junk]
    paths = {row["path"] for row in rows}
    assert paths == {*footage, "<script>alert(1)</script>.txt", "'=1+1.txt", "caf\\xe9.txt"}
    assert {row["state"].split(",")[0] for row in rows} == {"verified"}

    # What was written beside the footage is the same.
    html, written = execution["execution_data"]["reports"]
    assert Path(html).read_text() == page.text
    assert Path(written).read_bytes() == table.content
    assert server.request("GET", "/api/jobs/999999/report").status_code == 404
    assert server.request("GET", "/api/jobs/999999/report.csv").status_code == 404
    assert server.request("POST", path).status_code == 405


def test_a_verdict_can_be_asked_for_again(server: Server, card: Path) -> None:
    gopro_card(card)
    first = server.ended(server.announce(card, "verdict-again")["data"]["execution_id"])
    lost = next(Path(first["execution_data"]["job_folder"]).rglob("*.MP4"))
    lost.unlink()
    again = server.request(
        "POST", f"/api/pipeline/{first['uuid']}/rerun", json={"from_step": "verdict"}
    )
    assert again.status_code == 201, again.text
    second = server.ended(again.json()["execution_id"])
    assert second["status"] == "completed", second["error_message"]
    assert second["execution_data"]["safe_to_format"] is False
    job = server.get(f"/api/jobs/{first['job_id']}")
    assert job["safe_to_format"] is False
    (reason,) = job["verdict"]["reasons"]
    assert reason["path"].endswith(lost.name)
    assert reason["doubt"] == "gone"
    assert set(job["verdict"]["reports"]).isdisjoint(first["execution_data"]["reports"])


def test_ingest_ends_with_the_verdict_in_words_and_report_says_it_again(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    card = start_server().cards / "CARD"
    rushes = CommandLine(tmp_path)
    footage = gopro_card(card)
    first = rushes("ingest", str(card))
    assert first.returncode == 0, first.stderr
    last = first.stdout.splitlines()[-1]
    assert last.startswith(f"Safe to format: every one of {len(footage)} files stands verified")

    told = rushes("report", "1")
    assert told.returncode == 0, told.stderr
    *paths, words = told.stdout.splitlines()
    assert words == last
    assert [Path(path).suffix for path in paths] == [".html", ".csv"]
    assert all(Path(path).is_file() for path in paths)
    as_json = json.loads(rushes("report", "1", "--json").stdout)
    assert as_json["verdict"]["words"] == last

    lost = sorted(rushes.library.rglob("*.MP4"))[0]
    lost.unlink()
    second = rushes("ingest", str(card))
    assert second.returncode == 0, second.stderr
    lines = second.stdout.splitlines()
    assert lines[-1] == (
        f"NOT safe to format: 1 of {len(footage)} files not standing verified on 1 destination "
        f"(DCIM/100GOPRO/{lost.name})"
    )
    assert lines[-2] == (
        f"Not safe: DCIM/100GOPRO/{lost.name}: its copy is no longer on {rushes.library}"
    )
    assert rushes("report", "2").stdout.splitlines()[-1] == lines[-1]

    for wrong, code in (("99", 2), ("0", 2), ("nonsense", 2)):
        refused = rushes("report", wrong)
        assert refused.returncode == code
        assert "Traceback" not in refused.stderr


def test_a_card_that_was_not_taken_in_is_not_safe(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    gopro_card(tmp_path / "CARD")
    (tmp_path / "file").write_text("no folder")
    failed = rushes("ingest", str(tmp_path / "CARD"), "--library", str(tmp_path / "file"))
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1] == (
        "NOT safe to format: the card was not taken in to the end"
    )
    without = rushes("report", "1")
    assert without.returncode == 1
    assert "job 1 has not come to its verdict" in without.stderr


def test_an_empty_folder_is_no_card_that_may_be_formatted(tmp_path: Path) -> None:
    """As it lies there while the card isn't mounted."""
    rushes = CommandLine(tmp_path)
    (tmp_path / "CARD").mkdir()
    told = rushes("ingest", str(tmp_path / "CARD"))
    assert told.returncode == 1
    assert told.stdout.splitlines()[-1] == (
        "NOT safe to format: nothing is there: is the card mounted?"
    )
