"""The systemd units name commands, flags and settings that there are."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from adapters.cli.commands import rushes
from adapters.settings import Settings

PACKAGING = Path(__file__).parent.parent.parent.parent / "packaging"
UNITS = sorted(PACKAGING.glob("*.service"))
SETTINGS = {f"RUSHES_{field.name.upper()}" for field in fields(Settings)}


def unit(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.read(path)
    return parser


def test_there_is_a_unit_for_the_server_and_one_for_the_detector() -> None:
    assert [path.name for path in UNITS] == ["rushes-detect.service", "rushes.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_a_command_that_there_is_with_flags_that_it_has(path: Path) -> None:
    program, name, *arguments = shlex.split(unit(path)["Service"]["ExecStart"])
    assert Path(program).name == "rushes"
    rushes.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_sets_only_settings_that_there_are(path: Path) -> None:
    named = set(re.findall(r"\bRUSHES_\w+", path.read_text()))
    assert named
    assert named <= SETTINGS


def test_what_systemd_says_of_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here to ask")
    program = Path(sys.executable).parent / "rushes"
    for path in UNITS:
        text = path.read_text().replace("/opt/rushes/.venv/bin/rushes", str(program))
        assert str(program) in text
        (tmp_path / path.name).write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    said = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert str(tmp_path) not in said.stderr, said.stderr
