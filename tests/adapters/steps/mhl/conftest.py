"""A folder with files, generations of it, and the reference implementation to judge them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapters.steps.hashes import Hashes
from adapters.steps.library import Library
from adapters.steps.mhl.documents import Action, Creator, HashedFile, Process
from adapters.steps.mhl.history import Added, History, add_generation, read_history

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CREATOR = Creator("cart-1", "Rushes", "0.1.0")
REFERENCE = Path(sys.prefix) / "ascmhl" / "bin"
SCHEMA = Path(__file__).parent / "schema"


class Shelf:
    """A folder that gets manifests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.now = NOON

    def put(self, path: str | bytes, content: bytes | None = None) -> bytes:
        name = os.fsencode(path)
        place = os.path.join(os.fsencode(self.root), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(b"footage of " + name if content is None else content)
        return name

    def hashed(
        self,
        path: str | bytes,
        *names: str,
        action: Action = Action.ORIGINAL,
        hashes: dict[str, str] | None = None,
    ) -> HashedFile:
        """The file as it is, hashed as an ingest would have on its way."""
        name = os.fsencode(path)
        place = os.path.join(os.fsencode(self.root), name)
        wanted = Hashes(names or ("xxh64",))
        with open(place, "rb") as file:
            wanted.update(file.read())
        status = os.stat(place)
        return HashedFile(
            name, status.st_size, status.st_mtime_ns, hashes or wanted.values(), self.now, action
        )

    def add(self, files: Sequence[HashedFile], name: str = "shelf") -> Added:
        with Library(str(self.root)).open() as folder:
            added = add_generation(
                folder,
                os.fsencode(name),
                files,
                creator=CREATOR,
                process=Process.TRANSFER,
                at=self.now,
            )
        self.now += timedelta(minutes=1)
        return added

    def add_new(self, *paths: str | bytes) -> Added:
        """Files that come to be there, and a generation that lists them."""
        return self.add([self.hashed(self.put(path)) for path in paths])

    def history(self) -> History | None:
        with Library(str(self.root)).open() as folder:
            return read_history(folder)

    def read(self) -> History:
        history = self.history()
        assert history is not None
        return history

    @property
    def manifests(self) -> list[Path]:
        return sorted((self.root / "ascmhl").glob("*.mhl"))

    @property
    def chain(self) -> Path:
        return self.root / "ascmhl" / "ascmhl_chain.xml"


class Reference:
    """The commands of the reference implementation, in its own environment."""

    def __init__(self) -> None:
        self._well_formed: set[tuple[Path, int]] = set()

    def __call__(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        program = REFERENCE / command
        if not program.exists():
            pytest.fail(f"{program} is not there: `make setup` installs it from tests/ascmhl.txt")
        environment = {
            **os.environ,
            "TZ": "UTC",
            # It asks the network for newer versions of itself; nobody answers here.
            "https_proxy": "http://127.0.0.1:9",
        }
        return subprocess.run(
            [program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def accepts(self, shelf: Shelf) -> None:
        """All that it can find fault with: the files, each manifest's form, the chain's."""
        verified = self("ascmhl-debug", "verify", "-v", shelf.root)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        for manifest in shelf.manifests:
            state = (manifest, manifest.stat().st_mtime_ns)
            if state in self._well_formed:
                continue
            xsd = SCHEMA / "ASCMHL.xsd"
            checked = self("ascmhl-debug", "xsd-schema-check", "-xsd", xsd, manifest)
            assert checked.returncode == 0, checked.stdout + checked.stderr
            self._well_formed.add(state)
        xsd = SCHEMA / "ASCMHLDirectory__combined.xsd"
        checked = self("ascmhl-debug", "xsd-schema-check", "-df", "-xsd", xsd, shelf.chain)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def reference() -> Reference:
    return Reference()
