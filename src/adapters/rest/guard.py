"""The guard at the door: which pages may speak to a server, tokens or not.

A browser is no friend, not even on this machine: any page it shows can send it here. So

* the ``Host`` must be a name of ours, or the page may have had its own name point
  to this address (DNS rebinding): one that the settings name, or the very address at
  which the connection has come in, because no name can be made to be that;
* an ``Origin``, which browsers send with whatever a page posts or connects to, must
  be this server itself, or one that the settings name.

Programs send no Origin and are let through. Holds for HTTP and WebSocket alike.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.rest.problems import problem
from domain.errors import Forbidden

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """``hosts``: further names of this server. ``origins``: further pages that may use it."""

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str] = (), origins: Collection[str] = ()
    ) -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in hosts}
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope["server"])
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await problem(Forbidden(refusal))(scope, receive, send)

    def _refusal(self, headers: Headers, came_in_at: tuple[str, int | None] | None) -> str | None:
        hosts = headers.getlist("host")
        name = _name(hosts[0]) if len(hosts) == 1 else None
        if name not in self._hosts and (came_in_at is None or name != unmapped(came_in_at[0])):
            return (
                f"Host {', '.join(hosts)!a} is not this server; "
                "RUSHES_HOSTS names further names of it"
            )
        for origin in headers.getlist("origin"):
            own = origin.lower() in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}")
            if not own and origin.lower() not in self._origins:
                return (
                    f"pages from {origin!a} may not use this server; "
                    "RUSHES_ORIGINS names those that may"
                )
        return None


def unmapped(sockname: str) -> str:
    """An address as people write it: IPv4 that a socket for both shows as IPv6 is IPv4 again."""
    return sockname.removeprefix("::ffff:") if "." in sockname else sockname


def _name(host: str) -> str | None:
    """The name or address in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
