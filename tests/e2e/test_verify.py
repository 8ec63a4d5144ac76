"""``rushes verify``, as people use it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adapters.steps.mhl.conftest import Shelf
from tests.e2e.server import Server
from tests.e2e.test_command_line import CommandLine

Answer = subprocess.CompletedProcess[str]


@pytest.fixture
def rushes(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Outside the library: whoever names it on the command line may have it looked at."""
    shelf = Shelf(tmp_path / "shelf")
    shelf.add_new("A/one.mov", "A/two.mov", "three.mov")
    return shelf


@pytest.mark.parametrize("option", [[], ["--repair-from"]])
def test_what_is_no_folder_is_wrong_use(
    rushes: CommandLine, shelf: Shelf, option: list[str]
) -> None:
    for name, why in (("nowhere", "is not there"), ("shelf/three.mov", "is no folder")):
        place = str(shelf.root.parent / name)
        arguments = ["verify", str(shelf.root), *option, place] if option else ["verify", place]
        answer = rushes(*arguments)
        assert answer.returncode == 2
        assert why in answer.stderr


def test_a_folder_without_manifests_fails_and_says_so(rushes: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    answer = rushes("verify", str(tmp_path / "plain"))
    assert answer.returncode == 1
    assert "there is no manifest" in answer.stdout


def test_an_intact_folder_is_said_to_be_so(rushes: CommandLine, shelf: Shelf) -> None:
    answer = rushes("verify", str(shelf.root))
    assert answer.returncode == 0, answer.stderr
    assert "INTACT: 3 of 3 files are as the manifests say" in answer.stdout
    assert "NOT INTACT" not in answer.stdout
    assert len(shelf.manifests) == 1


def test_damage_is_named_and_repaired_when_that_is_asked_for(
    rushes: CommandLine, shelf: Shelf, tmp_path: Path
) -> None:
    other = Shelf(tmp_path / "other")
    for path in ("A/one.mov", "A/two.mov"):
        other.put(path, (shelf.root / path).read_bytes())
    (shelf.root / "A/one.mov").write_bytes(b"footage of A/one.mow")
    (shelf.root / "A/two.mov").unlink()
    shelf.put("B/\x1b[31mred.mov")

    page = tmp_path / "report.html"
    damaged = rushes("verify", str(shelf.root), "--report", str(page))
    assert damaged.returncode == 1
    assert f"Report: {page}" in damaged.stdout
    assert "NOT intact" in page.read_text()
    assert "CHANGED: A/one.mov: has" in damaged.stdout
    assert "MISSING: A/two.mov" in damaged.stdout
    assert "NOT INTACT: 1 of 3 files" in damaged.stdout
    assert "1 file in no manifest: B/" in damaged.stdout
    assert "\x1b" not in damaged.stdout

    repaired = rushes("verify", str(shelf.root), "--repair-from", str(other.root), "--write")
    assert repaired.returncode == 0, repaired.stdout
    assert "2 files repaired" in repaired.stdout
    assert "Put aside: " in repaired.stdout
    assert "Written: " in repaired.stdout
    assert len(shelf.manifests) == 2
    assert rushes("verify", str(shelf.root)).returncode == 0


def test_as_json_lines_with_all_of_the_summary(rushes: CommandLine, shelf: Shelf) -> None:
    (shelf.root / "three.mov").unlink()
    answer = rushes("verify", str(shelf.root), "--json")
    assert answer.returncode == 1
    *events, last = [json.loads(line) for line in answer.stdout.splitlines()]
    assert "pipeline:step_progress" in [event["type"] for event in events]
    data = last["data"]["execution_data"]
    assert data["intact"] is False
    assert data["findings"] == [{"path": "three.mov", "finding": "missing", "detail": ""}]


def test_a_server_looks_at_what_lies_in_its_library_and_nowhere_else(
    rushes: CommandLine, shelf: Shelf, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server()
    Shelf(server.library / "job").add_new("a.mov")
    execution = server.ended(server.trigger("verify_folder", folder=str(server.library)))
    assert execution["status"] == "completed"
    assert execution["execution_data"]["intact"] is True
    refused = rushes("verify", str(shelf.root))
    assert refused.returncode == 2
    assert "RUSHES_CARD_ROOTS" in refused.stderr
    assert len(server.get("/api/pipeline")["executions"]) == 1
    assert rushes("verify", str(server.library / "job")).returncode == 0
