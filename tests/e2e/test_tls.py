"""A server that other machines reach: over TLS, with tokens, under its own names alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from websockets.asyncio.client import connect as follow
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from adapters import tls
from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub
from adapters.settings import Settings
from bootstrap import Container, running
from domain.errors import InvalidInput
from server import Addresses, serve
from tests.certificates import Authority
from tests.e2e.server import DEADLINE_S, ROOT, RUSHES, Server, eventually


def settings(environment: dict[str, str]) -> Settings:
    return Settings.load({}, environment)


def new_token(environment: dict[str, str], role: str) -> str:
    """Made before there is a server: a server that others reach starts with one."""

    async def make() -> str:
        container = Container(settings=settings(environment))
        async with running(container, recover=False):
            return (await container.access().new(role))[1]

    return asyncio.run(make())


@contextlib.asynccontextmanager
async def serving(environment: dict[str, str]) -> AsyncIterator[Addresses]:
    """A server in this process, whose constants a test can change."""
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    server = asyncio.create_task(serve(settings(environment), stop=stop, ready=ready.set_result))
    await asyncio.wait({server, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not server.done():
            yield ready.result()
    finally:
        stop.set()
        await server


class Open(Server):
    """At all addresses, over TLS, with mutual TLS for gRPC; asked at 127.0.0.1."""

    def __init__(self, place: Path) -> None:
        self.authority = Authority(place / "tls")
        certificate, key = self.authority.sign("rushes.test", "127.0.0.1")
        self.client = self.authority.sign("a-service.test")
        super().__init__(
            place,
            RUSHES_TLS_CERTIFICATE=str(certificate),
            RUSHES_TLS_KEY=str(key),
            RUSHES_TLS_CLIENT_CA=str(self.authority.file),
            RUSHES_HOSTS="rushes.test",
            RUSHES_WATCH="yes",
        )
        self.token = new_token(self.environment, "admin")
        self.environment["RUSHES_HOST"] = "0.0.0.0"
        self.trust = tls.trusting_authority(self.authority.file)
        self.port = 0

    def start(self) -> Open:
        super().start()
        assert self.http.startswith("https://0.0.0.0:")
        self.port = int(self.http.rpartition(":")[2])
        self.http = f"https://127.0.0.1:{self.port}"
        return self

    def ask(self, path: str, token: str | None = None, **headers: str) -> Any:
        """Whatever it answers, with a good token unless another one is given."""
        shown = {"authorization": f"Bearer {self.token if token is None else token}"} | headers
        return self.request("GET", path, headers=shown, verify=self.trust)


@contextlib.contextmanager
def opened_at(place: Path) -> Iterator[Open]:
    server = Open(place).start()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """For tests that leave it as it was."""
    with opened_at(tmp_path_factory.mktemp("open")) as server:
        yield server


def test_nothing_but_tls_is_answered(opened: Open) -> None:
    with socket.create_connection(("127.0.0.1", opened.port), DEADLINE_S) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert b"HTTP/1.1" not in plain.recv(4096)
    old = tls.trusting(Path(opened.environment["RUSHES_TLS_CERTIFICATE"]).read_text())
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", opened.port), DEADLINE_S) as wire:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            old.wrap_socket(wire)


def test_a_connection_over_tls_is_no_more_than_its_buffers(opened: Open) -> None:
    assert opened.process is not None
    process = psutil.Process(opened.process.pid)
    before = process.memory_info().rss
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            wire = socket.create_connection(("127.0.0.1", opened.port), DEADLINE_S)
            stack.enter_context(opened.trust.wrap_socket(wire, server_hostname="127.0.0.1"))
        assert process.memory_info().rss - before < 100 * 128 * 1024


def test_who_shows_a_token_is_answered_and_told_to_come_back_over_tls(opened: Open) -> None:
    answer = opened.ask("/api/pipeline")
    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    refused = opened.request("GET", "/api/pipeline", verify=opened.trust)
    assert refused.status_code == 401
    assert opened.request("GET", "/healthz", verify=opened.trust).status_code == 200


def test_websockets_come_in_the_same_way(opened: Open) -> None:
    coming = partial(
        connect,
        f"wss://127.0.0.1:{opened.port}/ws",
        ssl=opened.trust,
        open_timeout=DEADLINE_S,
    )
    with pytest.raises(InvalidStatus) as refused:
        coming()
    assert refused.value.response.status_code == 401
    with coming(additional_headers={"authorization": f"Bearer {opened.token}"}) as told:
        assert json.loads(told.recv(timeout=DEADLINE_S))["type"] == "hub:welcome"


def test_services_show_a_certificate_and_a_token(opened: Open) -> None:
    authority = opened.authority.file.read_bytes()
    certificate, key = (file.read_bytes() for file in opened.client)
    address = f"127.0.0.1:{opened.grpc.rpartition(':')[2]}"

    def ask(credentials: grpc.ChannelCredentials, token: str) -> Any:
        with grpc.secure_channel(address, credentials) as channel:
            rushes = PipelineServiceStub(channel)  # type: ignore[no-untyped-call]
            metadata = (("authorization", f"Bearer {token}"),)
            return rushes.ListExecutions(
                pb.ListExecutionsRequest(), metadata=metadata, timeout=DEADLINE_S
            )

    known = grpc.ssl_channel_credentials(authority, key, certificate)
    assert not ask(known, opened.token).executions
    for credentials, token, code in (
        (known, "wrong", grpc.StatusCode.UNAUTHENTICATED),
        (grpc.ssl_channel_credentials(authority), opened.token, grpc.StatusCode.UNAVAILABLE),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            ask(credentials, token)
        assert refused.value.code() is code


def test_it_answers_to_its_own_names_and_addresses_and_to_no_others(opened: Open) -> None:
    near = [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family is socket.AF_INET
    ]
    for name in ("rushes.test", f"RUSHES.test:{opened.port}", "localhost"):
        assert opened.ask("/api/pipeline", host=name).status_code == 200
    for name in ("evil.test", "0.0.0.0", "192.0.2.1"):
        refused = opened.ask("/api/pipeline", host=name)
        assert refused.status_code == 403
        assert "RUSHES_HOSTS" in refused.json()["detail"]
    unverified = ssl._create_unverified_context()  # the certificate names none of these
    for address in near:
        bearer = f"authorization: Bearer {opened.token}"
        with socket.create_connection((address, opened.port), DEADLINE_S) as wire:
            with unverified.wrap_socket(wire) as secure:
                secure.sendall(
                    f"GET /api/pipeline HTTP/1.1\r\nhost: {address}\r\n{bearer}\r\n\r\n".encode()
                )
                assert secure.recv(4096).startswith(b"HTTP/1.1 200")


def test_the_user_s_own_commands_and_detector_get_in_without_being_told_how(opened: Open) -> None:
    listed = subprocess.run(
        [RUSHES, "list", "--json"],
        env=opened.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    eventually(
        opened.log.read_text, lambda log: f"connected to wss://127.0.0.1:{opened.port}/ws" in log
    )


def test_a_detector_elsewhere_trusts_the_authority_that_it_is_told_of(
    opened: Open, tmp_path: Path
) -> None:
    place = Server(tmp_path, RUSHES_TOKEN=opened.token)
    arguments = [RUSHES, "detect", "--server", f"https://127.0.0.1:{opened.port}"]
    trusting = subprocess.run(
        [*arguments, "--once", "--tls-ca", str(opened.authority.file)],
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert trusting.returncode == 0, trusting.stderr
    wary = subprocess.Popen(
        arguments,
        env=place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wary.stderr is not None
    with wary, wary.stderr:
        line = wary.stderr.readline()
        wary.terminate()
    assert "certificate isn't trusted here" in line
    assert "RUSHES_TLS_CA" in line


def test_it_stays_locked_when_its_last_token_is_revoked(tmp_path: Path) -> None:
    with opened_at(tmp_path) as server:
        assert server.ask("/api/pipeline").status_code == 200
        lock = json.loads((server.place / "rushes.db.lock").read_text())
        owner = {"x-rushes-key": lock["key"]}
        (token,) = server.request("GET", "/api/tokens", headers=owner, verify=server.trust).json()[
            "tokens"
        ]
        revoked = server.request(
            "POST", f"/api/tokens/{token['id']}/revoke", headers=owner, verify=server.trust
        )
        assert revoked.status_code == 200
        assert server.ask("/api/pipeline").status_code == 401
        assert server.request("GET", "/api/pipeline", verify=server.trust).status_code == 401


# -- at the start ----------------------------------------------------------------------


async def refusal(environment: dict[str, str]) -> str:
    with pytest.raises(InvalidInput) as refused:
        await serve(settings(environment), stop=asyncio.Event(), ready=lambda addresses: None)
    return refused.value.message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
async def test_other_machines_aren_t_served_without_tls_unless_it_is_said(
    host: str, tmp_path: Path
) -> None:
    environment = Server(tmp_path, RUSHES_HOST=host).environment
    said = await refusal(environment)
    for word in (host, "RUSHES_TLS_CERTIFICATE", "--insecure", "rushes token new"):
        assert word in said
    assert not (tmp_path / "rushes.db").exists()
    if host == "192.0.2.1":
        return  # nobody's (RFC 5737), so there is nothing to listen on
    without_token = await refusal(environment | {"RUSHES_INSECURE": "yes"})
    assert "there is no token" in without_token
    assert "rushes token new" in without_token
    assert "TLS" not in without_token


async def test_other_machines_aren_t_served_without_a_token_over_tls_either(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "tls").sign("rushes.test")
    tls_alone = {"RUSHES_TLS_CERTIFICATE": str(certificate), "RUSHES_TLS_KEY": str(key)}
    environment = Server(tmp_path, RUSHES_HOST="::", **tls_alone).environment
    assert "there is no token" in await refusal(environment)
    wrong = environment | {"RUSHES_TLS_KEY": str(certificate)}
    assert "can't be used" in await refusal(wrong)


def test_it_says_so_as_wrong_use(tmp_path: Path) -> None:
    answer = subprocess.run(
        [RUSHES, "serve", "--host", "0.0.0.0"],
        env=Server(tmp_path).environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert answer.returncode == 2
    assert "0.0.0.0 can be reached from other machines" in answer.stderr


def test_the_example_of_a_worker_works_over_tls(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.sign("127.0.0.1")
    server = start_server(
        RUSHES_TLS_CERTIFICATE=str(certificate),
        RUSHES_TLS_KEY=str(key),
        RUSHES_PIPELINES="examples.transcoding:pipeline",
    )
    worker = subprocess.Popen(
        [sys.executable, str(ROOT / "examples/external_worker.py"), f"https://{server.grpc}", "w"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "RUSHES_TLS_CA": str(authority.file)},
        stdout=subprocess.PIPE,
        text=True,
    )
    trust = tls.trusting_authority(authority.file)
    body = {"pipeline_type": "transcoding", "data": {"clip": "A001.mov"}}
    assert server.request("POST", "/api/pipeline", json=body, verify=trust).status_code == 201
    assert worker.stdout is not None
    with worker, worker.stdout:
        assert worker.stdout.readline() == "A001.mov: done\n"
        worker.kill()


def test_a_command_that_starts_its_own_server_lets_nobody_else_in(tmp_path: Path) -> None:
    nowhere = {f"RUSHES_TLS_{name}": "/nowhere.pem" for name in ("CERTIFICATE", "KEY", "CLIENT_CA")}
    listed = subprocess.run(
        [RUSHES, "list"],
        env=Server(tmp_path, RUSHES_HOST="0.0.0.0", **nowhere).environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr


def test_an_insecure_server_is_reached_with_a_token_at_both_ip_versions(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    token = new_token(Server(tmp_path).environment, "viewer")
    server = start_server(RUSHES_HOST="::", RUSHES_INSECURE="yes")
    port = server.http.rpartition(":")[2]
    for address in (f"http://[::1]:{port}", f"http://127.0.0.1:{port}"):
        server.http = address
        bearer = {"authorization": f"Bearer {token}"}
        answer = server.request("GET", "/api/pipeline", headers=bearer)
        assert answer.status_code == 200
        assert "strict-transport-security" not in answer.headers
        assert server.request("GET", "/api/pipeline").status_code == 401
    for host in ("[::1]", "127.0.0.1"):
        with grpc.insecure_channel(f"{host}:{server.grpc.rpartition(':')[2]}") as channel:
            rushes = PipelineServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError) as refused:
                rushes.ListExecutions(pb.ListExecutionsRequest(), timeout=DEADLINE_S)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


# -- renewed ---------------------------------------------------------------------------


def certificate_at(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as wire:
        context = ssl._create_unverified_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(wire) as secure:
            return ssl.DER_cert_to_PEM_cert(secure.getpeercert(True) or b"").strip()


async def test_a_renewed_certificate_is_shown_without_a_restart_once_it_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.05)
    caplog.set_level("INFO", "rushes")
    authority = Authority(tmp_path / "tls")
    files = authority.sign("rushes.test", "127.0.0.1")
    first = tls.alone(files[0]).strip()
    certificate, key = authority.sign("renewed.test", "127.0.0.1")
    second = tls.alone(certificate).strip()
    environment = Server(
        tmp_path,
        RUSHES_TLS_CERTIFICATE=str(files[0]),
        RUSHES_TLS_KEY=str(files[1]),
        RUSHES_TLS_CLIENT_CA=str(authority.file),
    ).environment
    async with serving(environment) as addresses:
        http, rpc = (int(each.rpartition(":")[2]) for each in (addresses.http, addresses.grpc))

        async def shown() -> list[str]:
            here = await asyncio.to_thread(certificate_at, http)
            there = await asyncio.to_thread(certificate_at, rpc)
            return [
                here,
                there,
                json.loads((tmp_path / "rushes.db.lock").read_text())["certificate"].strip(),
            ]

        assert await shown() == [first] * 3
        address = f"wss://127.0.0.1:{http}/ws"
        async with follow(address, ssl=tls.trusting(first), proxy=None) as before:
            os.replace(certificate, files[0])
            async with asyncio.timeout(DEADLINE_S):
                while f"still shown: {files[1]} is not the key of {files[0]}" not in caplog.text:
                    await asyncio.sleep(0.01)
            assert await shown() == [first] * 3
            os.replace(key, files[1])
            async with asyncio.timeout(DEADLINE_S):
                while await shown() != [second] * 3:
                    await asyncio.sleep(0.01)
            assert "hub:welcome" in str(await before.recv())
            await (await before.ping())
        pair = [file.read_bytes() for file in reversed(authority.sign("a-service.test"))]
        for its_own, code in ((pair, grpc.StatusCode.OK), ([], grpc.StatusCode.UNAVAILABLE)):
            trust = grpc.ssl_channel_credentials(authority.file.read_bytes(), *its_own)
            async with grpc.aio.secure_channel(f"127.0.0.1:{rpc}", trust) as channel:
                rushes = PipelineServiceStub(channel)  # type: ignore[no-untyped-call]
                assert await rushes.GetEngine(pb.GetEngineRequest()).code() is code
