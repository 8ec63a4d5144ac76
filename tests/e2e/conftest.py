from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was; each uses cards of its own."""
    running = Server(tmp_path_factory.mktemp("server")).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Servers of a test's own, each in the test's folder unless it says otherwise."""
    servers: list[Server] = []

    def start(place: Path = tmp_path, **settings: Any) -> Server:
        servers.append(Server(place, **settings))
        return servers[-1].start()

    yield start
    for each in servers:
        if each.process is not None and each.process.poll() is None:
            each.kill()


@pytest.fixture
def card(server: Server, request: pytest.FixtureRequest) -> Path:
    """A folder for a card below the server's root, named after the test; not there yet."""
    return server.cards / request.node.name.replace("[", "-").replace("]", "")[:80]
