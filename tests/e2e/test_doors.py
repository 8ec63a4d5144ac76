"""A browser on the same machine is no friend, and nobody else is let in at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.e2e.server import RUSHES, Server


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:1", "https://127.0.0.1", "null", "http://[", ""],
)
def test_a_foreign_origin_is_refused(server: Server, origin: str) -> None:
    before = server.count()
    response = server.request(
        "POST",
        "/api/pipeline",
        json={"pipeline_type": "diamond", "data": {"text": "a b"}},
        headers={"origin": origin},
    )
    assert response.status_code == 403
    assert response.json()["code"] == "forbidden"
    with pytest.raises(InvalidStatus) as refused:
        with server.client("detector", additional_headers={"origin": origin}):
            pass
    assert refused.value.response.status_code == 403
    assert server.count() == before


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
def test_a_foreign_host_is_refused(server: Server, host: str) -> None:
    response = server.request("GET", "/api/pipeline", headers={"host": host})
    assert response.status_code == 403
    assert host in response.json()["detail"]


def test_the_server_s_own_pages_and_names_are_let_in(server: Server) -> None:
    port = server.http.rsplit(":", 1)[1]
    for name in (f"127.0.0.1:{port}", f"localhost:{port}"):
        response = server.request(
            "GET", "/api/pipeline", headers={"host": name, "origin": f"http://{name}"}
        )
        assert response.status_code == 200
    with server.client("frontend", additional_headers={"origin": server.http}) as frontend:
        assert frontend.welcome["data"]["last_event_id"] >= 0


def test_a_page_that_the_settings_name_is_let_in(start_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = "http://localhost:5173"
    server = start_server(RUSHES_ORIGINS=page)
    response = server.request("GET", "/api/pipeline", headers={"origin": page})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == page
    with server.client("frontend", additional_headers={"origin": page}):
        pass
    other = server.request("GET", "/api/pipeline", headers={"origin": f"{page}0"})
    assert other.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_anything_but_the_loopback_is_refused_at_start(host: str, tmp_path: Path) -> None:
    answer = subprocess.run(
        [RUSHES, "--database-url", f"sqlite:///{tmp_path}/x.db", "serve", "--host", host],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.returncode == 2
    assert host in answer.stderr
    assert "loopback" in answer.stderr
    assert not (tmp_path / "x.db").exists()
