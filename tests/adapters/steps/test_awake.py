"""A real program on PATH, as the system's would be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.steps.awake import Awake

SOURCES = Path(__file__).parents[3] / "src"


class Program:
    """Stands for the system's: it runs what it is given, and writes down when."""

    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / "log"
        self.log.touch()
        self._path = folder / name

    def does(self, script: str) -> None:
        self._path.write_text(f'#!/bin/sh\necho "$@" >> {self.log}\n{script}\n')
        self._path.chmod(0o755)

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(params=["linux", "darwin"])
def platform(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def program(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = Program(tmp_path, {"linux": "systemd-inhibit", "darwin": "caffeinate"}[platform])
    waits = {"linux": "cat > /dev/null", "darwin": "while kill -0 $5; do sleep 0.05; done"}
    made.does(f"{waits[platform]}; echo over >> {made.log}")
    return made


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_where_there_is_no_such_program_nothing_is_missing(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Awake(platform) as held:
        assert held is not None
    with Awake("win32"):
        pass


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$", "trap '' TERM; exit 0"])
def test_one_that_fails_hinders_nothing(program: Program, platform: str, script: str) -> None:
    program.does(script)
    awake = Awake(platform)
    assert awake.during(lambda context: "done")(None) == "done"  # type: ignore[arg-type]
    until(lambda: len(program.lines) <= 1)


def test_one_that_can_t_be_started_hinders_nothing(program: Program, platform: str) -> None:
    program.does("")
    next(program.log.parent.glob("[sc]*")).write_bytes(b"no program")
    with Awake(platform):
        pass


def test_it_runs_as_long_as_any_step_does(program: Program, platform: str) -> None:
    awake = Awake(platform)
    with awake:
        with awake:
            until(lambda: len(program.lines) == 1)
        assert len(program.lines) == 1
    assert awake._child is None
    said = program.lines[0]
    if platform == "linux":
        assert said == (
            "--what=sleep:idle --mode=block --who=Rushes --why=A card is being copied cat"
        )
    else:
        assert said == f"-i -m -s -w {os.getpid()}"
    with awake:
        until(lambda: sum(line == said for line in program.lines) == 2)


def test_it_ends_when_a_step_fails(program: Program, platform: str) -> None:
    awake = Awake(platform)

    def fails(context: object) -> None:
        until(lambda: len(program.lines) == 1)
        raise RuntimeError("card lost")

    with pytest.raises(RuntimeError, match="card lost"):
        awake.during(fails)(None)  # type: ignore[arg-type]
    assert awake._child is None


def test_it_does_not_outlive_a_process_that_is_killed(program: Program, platform: str) -> None:
    script = (
        "import sys\n"
        "from adapters.steps.awake import Awake\n"
        f"Awake({platform!r}).__enter__()\n"
        "sys.stdin.read()\n"
    )
    ours = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    until(lambda: len(program.lines) == 1)
    ours.kill()
    ours.communicate()
    # systemd-inhibit's child comes to the end of its input; caffeinate watches the process.
    until(lambda: program.lines[-1] == "over")
