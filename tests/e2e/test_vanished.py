"""A host that vanishes with its clients: no goodbye, and no word from anybody on the way.

It is another network namespace, and its cable is pulled. What is sent to it then is
confirmed by nobody, which a proxy in its place could not do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest
from websockets.asyncio.client import connect

import server
from adapters.rest import api as rest_api
from adapters.rpc import server as rpc_server
from tests.e2e.server import DEADLINE_S, ROOT, Server
from tests.e2e.test_tls import new_token, serving
from tests.filesystems import unavailable


@dataclass(frozen=True)
class Host:
    """near: this machine, as it sees it. address: its own."""

    name: str
    near: str
    address: str

    def run(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pull_the_cable(self) -> None:
        _ip(f"-n {self.name} link set eth0 down")


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


@pytest.fixture
def host() -> Iterator[Host]:
    # Of the network that is set aside for trying networks out (RFC 2544): four for each process.
    last = 4 * (os.getpid() % 2**14)
    near, address = (f"198.18.{(last + n) // 256}.{(last + n) % 256}" for n in (1, 2))
    host = Host(f"rushes-{os.getpid()}", near, address)
    link = f"rushes{os.getpid()}"
    with contextlib.ExitStack() as stack:
        try:
            _ip(f"netns add {host.name}")
            stack.callback(_ip, f"netns del {host.name}")
            _ip(f"link add {link} type veth peer name eth0 netns {host.name}")
        except FileNotFoundError:
            unavailable("not installed: iproute2")
        except subprocess.CalledProcessError as error:
            unavailable(f"no network namespace can be made here: {error.stderr.strip()}")
        stack.callback(_ip, f"link del {link}")
        _ip(f"addr add {near}/30 dev {link}")
        _ip(f"link set {link} up")
        _ip(f"-n {host.name} addr add {address}/30 dev eth0")
        _ip(f"-n {host.name} link set eth0 up")
        yield host


def by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """WebSocket's and gRPC's, every two seconds; TCP takes as long as ever."""
    monkeypatch.setattr(server, "PING_S", 2)
    quick = {"grpc.keepalive_time_ms": 2_000, "grpc.keepalive_timeout_ms": 2_000}
    options = tuple((dict(rpc_server.OPTIONS) | quick).items())
    monkeypatch.setattr(rpc_server, "OPTIONS", options)


def by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within three seconds, whether or not anything is sent; pings come as seldom as ever."""
    monkeypatch.setattr(rest_api, "KEEPALIVE_S", 0.2)  # to event streams, and to them alone
    quick = {
        socket.TCP_KEEPIDLE: 1,
        socket.TCP_KEEPINTVL: 1,
        socket.TCP_KEEPCNT: 2,
        socket.TCP_USER_TIMEOUT: 2_000,
    }
    options = [(option, quick[option]) for option, _ in server._GONE_AFTER]
    monkeypatch.setattr(server, "_GONE_AFTER", options)


@pytest.mark.parametrize(
    ("noticed", "kinds"),
    [(by_pings, ("websocket", "grpc")), (by_tcp, ("websocket", "events"))],
)
async def test_who_vanishes_with_their_host_is_let_go_and_nobody_else(
    noticed: Callable[[pytest.MonkeyPatch], None],
    kinds: tuple[str, ...],
    tmp_path: Path,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noticed(monkeypatch)
    environment = Server(tmp_path, RUSHES_INSECURE="yes").environment
    token = await asyncio.to_thread(new_token, environment, "viewer")
    async with serving(environment | {"RUSHES_HOST": host.near}) as addresses:
        bearer = {"authorization": f"Bearer {token}"}
        http = addresses.http.removeprefix("http://")

        async def followers() -> int:
            url = f"{addresses.http}/metrics"
            told = await asyncio.to_thread(httpx2.get, url, headers=bearer, trust_env=False)
            found = re.search(r"^rushes_followers (\d+)", told.text, re.MULTILINE)
            assert found is not None, told.text
            return int(found[1])

        def connections() -> int:
            here = psutil.Process().net_connections("tcp")
            ends = [each.raddr.ip.removeprefix("::ffff:") for each in here if each.raddr]
            return ends.count(host.address)

        async def until(everybody: int, far: int) -> None:
            async with asyncio.timeout(DEADLINE_S):
                while (await followers(), connections()) != (everybody, far):
                    await asyncio.sleep(0.05)

        async with connect(f"ws://{http}/ws", additional_headers=bearer, proxy=None) as near:
            watchers = host.run(
                sys.executable, "-m", "tests.e2e.watchers", http, addresses.grpc, token, *kinds
            )
            with watchers:
                assert watchers.stdout is not None
                assert await asyncio.to_thread(watchers.stdout.readline) == "following\n"
                await until(1 + len(kinds), len(kinds))
                host.pull_the_cable()
                await until(1, 0)
                watchers.kill()
            assert "hub:welcome" in str(await near.recv())
            await (await near.ping())
