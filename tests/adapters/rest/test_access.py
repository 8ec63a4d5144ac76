"""The door of HTTP where it is not asked through a server: its table, and tickets in addresses."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from adapters.rest.access import Door, with_needs
from adapters.scope import PRINCIPAL
from application.access import Access
from domain.access import ANYBODY, OWNER
from tests.fakes.access import unlocked
from tests.fakes.world import FakeClock


def test_a_route_that_nobody_has_thought_of_is_not_served() -> None:
    async def forgotten(request: Request) -> Response:
        raise AssertionError

    with pytest.raises(LookupError, match="/api/forgotten"):
        with_needs([Route("/api/forgotten", forgotten)])


class Asked:
    """One request through the door. ``scope``: as it was behind it; None if it stayed outside."""

    def __init__(self, access: Access, query: str, *headers: tuple[bytes, bytes], **more: Any):
        self.given: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": "/api/events",
            "query_string": query.encode(),
            "headers": headers,
            **more,
        }
        self.scope: Any = None
        self.status = 0
        self._door = Door(self._behind, access)

    async def __call__(self) -> Asked:
        await self._door(self.given, self._receive, self._send)
        return self

    async def _behind(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope

    async def _receive(self) -> Any:
        raise AssertionError

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


STREAM = (b"accept", b"text/event-stream")


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("ticket=t", ""),
        ("since=1&ticket=t&limit=2", "since=1&limit=2"),
        ("ticket=t&ticket=u", ""),
        ("myticket=t", "myticket=t"),
        ("since=1", "since=1"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_no_ticket_stays_in_an_address_good_or_bad(query: str, left: str, kind: str) -> None:
    access = unlocked(FakeClock())
    asked = await Asked(access, query, STREAM, type=kind)()
    assert asked.scope["query_string"] == left.encode()
    assert asked.scope[PRINCIPAL] == ANYBODY, "without tokens nothing has to be shown"
    await access.new("viewer")
    shut_out = await Asked(access, query, STREAM)()
    assert shut_out.scope is None
    assert shut_out.status == 401
    assert shut_out.given["query_string"] == left.encode()


async def test_a_ticket_lets_in_where_no_header_can_be_sent() -> None:
    access = unlocked(FakeClock(), owner_key="k")
    await access.new("viewer")

    def ticket() -> str:
        return f"ticket={access.ticket(OWNER)[0]}"

    assert (await Asked(access, ticket(), type="websocket")()).scope[PRINCIPAL] == OWNER
    assert (await Asked(access, ticket(), STREAM)()).scope[PRINCIPAL] == OWNER
    for outside in (
        Asked(access, ticket()),
        Asked(access, ticket(), STREAM, method="POST"),
        Asked(access, ticket(), STREAM, (b"authorization", b"Bearer wrong")),
    ):
        assert (await outside()).status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_who_watches_whether_it_lives_needs_nothing(path: str) -> None:
    access = unlocked(FakeClock())
    await access.new("viewer")
    assert (await Asked(access, "", path=path)()).scope[PRINCIPAL] == ANYBODY
    for near in (f"{path}/", f"{path}x", f"/{path}", path.upper()):
        assert (await Asked(access, "", path=near)()).status == 401
