"""The structure holds, and each contract that guards it can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.status_codes import STATUS, status_of
from domain import errors

ROOT = Path(__file__).parent.parent
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"

# contract: (a file, an import that breaks it)
VIOLATIONS = {
    "layers": ("domain/step.py", "import application.ports"),
    "layers, from application": ("application/feed.py", "import adapters.system"),
    "rooms": ("adapters/rest/api.py", "import adapters.websocket.messages"),
    "shared": ("adapters/status_codes.py", "import adapters.rest.api"),
    "pure-domain": ("domain/step.py", "import asyncio"),
    "pure-domain, a library": ("domain/step.py", "import sqlalchemy"),
    "plain-application": ("application/feed.py", "import threading"),
    "plain-application, a library": ("application/feed.py", "import starlette"),
    "testkit": ("adapters/testkit/bed.py", "import adapters.system"),
    "testkit, a library": ("adapters/testkit/bed.py", "import sqlalchemy"),
    "one-container": ("adapters/cli/display.py", "import dependency_injector"),
    "one-container, upwards": ("adapters/cli/display.py", "import bootstrap"),
}


def subclasses(kind: type[errors.RushesError]) -> Iterator[type[errors.RushesError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from subclasses(each)


def test_every_error_of_the_tree_has_its_line_in_the_status_table() -> None:
    tree = {kind for kind in subclasses(errors.RushesError) if kind.__module__ == "domain.errors"}
    assert set(STATUS) == tree
    codes = [status.code for status in STATUS.values()]
    assert len(set(codes)) == len(codes)


def test_what_is_no_error_of_ours_is_internal() -> None:
    assert status_of(ValueError("secret")).code == "internal"


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_breaks_its_contract(name: str, tmp_path: Path) -> None:
    contract = name.split(",")[0]
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    place, line = VIOLATIONS[name]
    file = source / place
    file.write_text(file.read_text() + f"\n{line}\n")
    linted = subprocess.run(
        [
            LINT_IMPORTS,
            "--config",
            tmp_path / "pyproject.toml",
            "--contract",
            contract,
            "--no-cache",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 1, linted.stdout + linted.stderr
    assert "1 broken" in linted.stdout
