"""A browser on the same machine is no friend, and nobody else is let in at all."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from tests.e2e.server import Server


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
    answered = refused.value.response
    assert answered.status_code == 403
    assert answered.headers["cache-control"] == "no-store"
    assert answered.headers["x-content-type-options"] == "nosniff"
    assert server.count() == before
    assert "ERROR" not in server.log.read_text(), "a refusal is nobody's fault"


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


@pytest.mark.parametrize("path", ["/api/pipeline", "/healthz", "/nowhere", "/docs", "/metrics"])
def test_no_answer_is_kept_guessed_at_or_shown_inside_another_page(
    server: Server, path: str
) -> None:
    answer = server.request("GET", path)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "strict-transport-security" not in answer.headers
    if answer.headers["content-type"].startswith("text/html"):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
    else:
        assert "html" not in answer.headers["content-type"]


def test_nobody_else_s_page_is_told_that_it_may_read(server: Server) -> None:
    preflight = {"access-control-request-method": "POST", "origin": "http://evil.example"}
    for method, headers in (("OPTIONS", preflight), ("GET", {}), ("GET", {"origin": server.http})):
        answer = httpx2.request(
            method, f"{server.http}/api/pipeline", headers=headers, trust_env=False
        )
        assert answer.headers.get("access-control-allow-origin") in (None, server.http)
