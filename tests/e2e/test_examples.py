"""The examples in a real server, over real files."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cards import contents
from tests.e2e.server import RUSHES, Server, eventually, steps

DAILIES = "examples.dailies:pipeline,examples.my_pipelines:pipeline"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("examples"), RUSHES_PIPELINES=DAILIES).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def test_the_dailies_of_a_day(server: Server, tmp_path: Path) -> None:
    day = tmp_path / "day"
    (day / "b").mkdir(parents=True)
    clips = {f"A{n:03}.mov": contents(f"clip {n}", 100_000) for n in range(20)}
    clips["b/A001.mov"] = contents("another", 3_000_000)
    for name, data in clips.items():
        (day / name).write_bytes(data)
    uuid = server.trigger("dailies", folder=str(day))
    execution = server.ended(uuid)
    assert execution["status"] == "completed", execution["error_message"]
    assert execution["warnings"] == ["optional step notes failed: there are no notes.txt"]
    found = steps(execution)
    assert sum(key.startswith("probe:") for key in found) == len(clips)
    assert {step["status"] for key, step in found.items() if key != "notes"} == {"completed"}
    summary = json.loads((day / "dailies.json").read_text())
    assert summary["sha256"] == {n: hashlib.sha256(d).hexdigest() for n, d in clips.items()}
    assert summary["clips"] == sorted(clips)


def test_a_day_that_is_killed_goes_on(start_server: Callable[..., Server], tmp_path: Path) -> None:
    day = tmp_path / "day"
    server = start_server(RUSHES_PIPELINES=DAILIES)
    uuid = server.trigger("dailies", folder=str(day))  # not there: scan waits for its next attempt
    waiting = eventually(
        lambda: steps(server.execution(uuid))["scan"],
        lambda step: step["next_attempt_at"] is not None,
    )
    assert "isn't there (yet)" in waiting["error_message"]
    server.kill()
    day.mkdir()
    (day / "A001.mov").write_bytes(contents("late", 5_000))
    execution = server.start().ended(uuid)
    assert execution["status"] == "completed", execution["error_message"]
    assert steps(execution)["scan"]["attempt"] > 1


def test_the_ten_lines_of_the_readme(server: Server) -> None:
    execution = server.ended(server.trigger("my_pipeline"))
    assert execution["execution_data"]["report"] == "12.5 seconds"


def test_the_graph_of_a_pipeline(server: Server) -> None:
    def rushes(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RUSHES, "pipelines", *arguments],
            env=server.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    text = rushes("--graph", "dailies")
    assert text.returncode == 0, text.stderr
    assert "  2  probe:*     a family, spawned by scan" in text.stdout.splitlines()
    mermaid = rushes("--graph", "dailies", "--format", "mermaid")
    assert mermaid.stdout.startswith("flowchart TD\n")
    unknown = rushes("--graph", "weeklies")
    assert unknown.returncode == 2
    assert "there is no pipeline 'weeklies', only dailies, my_pipeline, sd_ingest" in unknown.stderr
    assert rushes("--format", "text").returncode == 2
    assert rushes("--graph", "dailies", "--json").returncode == 2
    assert "  probe:*  a family, spawned by scan" in rushes().stdout.splitlines()
