"""Whatever comes in at the doors: the server stays up and small, and a good client notices
nothing.

A client that behaves asks over REST, WebSocket and gRPC, on connections that stay and on new
ones, all the while; every one of its answers is looked at. ``RUSHES_HOSTILE=50`` in the
environment does fifty times as much.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub
from tests.e2e.server import DEADLINE_S, Server, eventually

# The good client draws random numbers of its own meanwhile, in its thread.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

TIMES = int(os.environ.get("RUSHES_HOSTILE", "1"))

CONNECTS = 10_000
AT_ONCE = 500

MAX_GROWTH_BYTES = 150 * 1024 * 1024
"""Of what has come in: 5,000 calls in gRPC's queue are 70 MiB, 10,000 connects 25."""

MAX_LOG_BYTES = 64 * 1024

SHAPES = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def examples(count: int) -> Any:
    return settings(max_examples=count * TIMES, **SHAPES)  # type: ignore[arg-type]


class Healthy:
    """A client that behaves, in a thread of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._uuid = server.trigger("diamond", text="a b")
        self._over = threading.Event()
        self.calls = 0
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Healthy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * DEADLINE_S)
        if self._thread.is_alive():
            self.failed.append("it is still waiting for an answer")

    def _run(self) -> None:
        try:
            self._ask_all_the_time()
        except Exception as error:
            self.failed.append(f"after {self.calls} calls: {type(error).__name__}: {error}")

    def _ask_all_the_time(self) -> None:
        server, path = self._server, f"/api/pipeline/{self._uuid}"
        wanted = pb.GetExecutionRequest(execution_id=self._uuid)
        body = json.dumps({"pipeline_type": "diamond", "data": {"text": "a b"}})
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(contextlib.closing(self._connection()))
            told = stack.enter_context(server.client("frontend"))
            channel = stack.enter_context(grpc.insecure_channel(server.grpc))
            rushes = PipelineServiceStub(channel)  # type: ignore[no-untyped-call]
            for turn in itertools.count():
                if self._over.is_set():
                    return
                assert self._answer(kept, "GET", path)["execution_id"] == self._uuid
                with contextlib.closing(self._connection()) as new:
                    assert self._answer(new, "GET", path)["execution_id"] == self._uuid
                found = rushes.GetExecution(wanted, timeout=DEADLINE_S).execution
                assert found.execution_id == self._uuid
                if turn % 5 == 0:
                    asked = self._answer(kept, "POST", "/api/pipeline", body)
                    assert told.events(asked["execution_id"])
                    told.seen.clear()
                    with server.client("frontend"), grpc.insecure_channel(server.grpc) as another:
                        stub = PipelineServiceStub(another)  # type: ignore[no-untyped-call]
                        stub.GetExecution(wanted, timeout=DEADLINE_S)
                self.calls += 1

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*place(self._server.http), timeout=DEADLINE_S)

    def _answer(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: str | None = None,
    ) -> Any:
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status < 300, answer
        return answer

    def called_on(self) -> None:
        """Until it has had another answer, or has failed."""
        before = self.calls
        eventually(lambda: self.calls > before or bool(self.failed), bool)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("target")).start()
    yield server
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    refused = [line for line in log.splitlines() if "outcome=201" not in line]  # or not audit
    assert sum(map(len, refused)) < MAX_LOG_BYTES


@pytest.fixture(scope="module")
def healthy(target: Server) -> Iterator[Healthy]:
    with Healthy(target) as client:
        yield client
    assert not client.failed


@pytest.fixture(autouse=True)
def nobody_notices(target: Server, healthy: Healthy) -> Iterator[None]:
    """Around each test: the good client goes on, and the server has not grown afterwards."""
    assert target.process is not None
    process = psutil.Process(target.process.pid)
    before = process.memory_info().rss
    healthy.called_on()
    yield
    healthy.called_on()
    assert not healthy.failed
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES


def place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition("//")[2].rpartition(":")
    return host, int(port)


def hang_up(wire: socket.socket, how: str) -> None:
    """As a client may: politely, half, or by breaking off (RST)."""
    with wire:
        with contextlib.suppress(OSError):
            if how == "half":
                wire.shutdown(socket.SHUT_WR)
                wire.settimeout(0.05)
                wire.recv(65_536)
            elif how == "reset":
                linger = struct.pack("ii", 1, 0)
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def say(address: str, pieces: list[bytes], how: str) -> None:
    say_on(socket.create_connection(place(address), DEADLINE_S), pieces, how)


def say_on(wire: socket.socket, pieces: list[bytes], how: str) -> None:
    with contextlib.suppress(OSError):  # it may have had enough
        for piece in pieces:
            wire.sendall(piece)
    hang_up(wire, how)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(each % (len(data) + 1) for each in at), len(data)]
    return [data[one:other] for one, other in itertools.pairwise(edges)]


HOW = st.sampled_from(["close", "half", "reset"])
CUTS = st.lists(st.integers(0, 10_000), max_size=4)

# -- HTTP ------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *(b"GET ", b"POST ", b"/api/pipeline", b"/ws?since=", b"%00%ff/../..", b"\xff\xfe\0"),
        *(b" HTTP/1.1\r\n", b" HTTP/0.9\r\n", b"\r\n", b"0\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\n"),
        b"Host: 127.0.0.1\r\n",
        b"Host: evil.example\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Type: application/json\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b'{"pipeline_type": 1}',
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
)
LONG = st.just(20_000).map(lambda size: b"X: " + b"a" * size + b"\r\n")
TEXT = st.one_of(st.binary(max_size=2_000), st.lists(WORDS | LONG, max_size=12).map(b"".join))


@examples(60)
@given(data=TEXT, at=CUTS, how=HOW)
def test_bytes_on_the_http_port(target: Server, data: bytes, at: list[int], how: str) -> None:
    say(target.http, cut(data, at), how)


# -- WebSocket -------------------------------------------------------------------------

HANDSHAKE = (
    b"GET /ws?client_type=detector HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    + base64.b64encode(bytes(16))
    + b"\r\n\r\n"
)


def upgraded(server: Server) -> socket.socket:
    """A WebSocket that says nothing by itself, and answers no pings."""
    wire = socket.create_connection(place(server.http), DEADLINE_S)
    wire.sendall(HANDSHAKE)
    heard = b""
    while b"\r\n\r\n" not in heard:
        piece = wire.recv(4096)
        assert piece, heard
        heard += piece
    assert heard.startswith(b"HTTP/1.1 101")
    return wire


def frame(first: int, payload: bytes, *, masked: bool = True, length: int | None = None) -> bytes:
    """``first``: FIN, the reserved bits and the opcode. ``length``: that it claims."""
    claimed = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    if claimed < 126:
        head = bytes([first, mask | claimed])
    elif claimed < 65_536:
        head = bytes([first, mask | 126]) + claimed.to_bytes(2, "big")
    else:
        head = bytes([first, mask | 127]) + claimed.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = b"\x01\x02\x03\x04"
    return head + key + bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))


PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from([b"\xed\xa0\x80", b"\xff", b"{", b'{"type": 1}']),
    st.sampled_from([5_000, 70_000]).map(lambda size: b"[" * size),
)
FRAMES = st.one_of(
    st.builds(
        frame,
        st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x88, 0x89, 0x8A]),
        PAYLOADS,
        masked=st.sampled_from([True, True, True, False]),
    ),
    st.builds(
        frame,
        st.integers(0, 255),
        PAYLOADS,
        length=st.sampled_from([None, 0, 2**20 + 1, 2**63, 2**64 - 1]),
    ),
    st.binary(max_size=20),
)


@examples(60)
@given(frames=st.lists(FRAMES, max_size=8), at=CUTS, how=HOW)
def test_frames_on_a_websocket(
    target: Server, frames: list[bytes], at: list[int], how: str
) -> None:
    say_on(upgraded(target), cut(b"".join(frames), at), how)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=9), one, max_size=4),
    max_leaves=10,
)
MESSAGES = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {},
        optional={
            "type": JSON | st.sampled_from(["detector:sd_inserted", "detector:sd_removed", "x"]),
            "command": JSON | st.just("detector:sd_inserted"),
            "message_id": JSON,
            "sd_path": JSON | st.sampled_from(["/", "..", "/etc/passwd", "/nowhere/\0"]),
            "data": JSON | st.fixed_dictionaries({"message_id": JSON, "sd_path": JSON}),
        },
    ),
)


@examples(3)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=20))
def test_json_of_any_shape_is_answered_and_the_connection_stays(
    target: Server, messages: list[Any]
) -> None:
    with target.client("detector") as detector:
        for message in messages:
            answer = detector.ask(json.dumps(message))
            assert answer["type"] == "error" or message["type"] == "detector:sd_removed"
        assert detector.announce("/nowhere", "m")["data"]["code"] == "invalid_path"


def test_a_message_in_many_fragments_with_others_in_between(target: Server) -> None:
    text = b'{"type": "detector:sd_inserted", "message_id": "m", "sd_path": "/nowhere"}'
    with upgraded(target) as wire:
        wire.sendall(frame(0x01, b""))
        for byte in text:
            wire.sendall(frame(0x89, b"are you there?") + frame(0x00, bytes([byte])))
        wire.sendall(frame(0x80, b""))
        heard = b""
        while b"invalid_path" not in heard:
            piece = wire.recv(65_536)
            assert piece, heard
            heard += piece


# -- gRPC ------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4


def h2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def hpack(**fields: str) -> bytes:
    """Each as a literal that isn't to be remembered."""
    coded = b""
    for name, value in fields.items():
        key = name.replace("__", ":").replace("_", "-")
        coded += b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode()
    return coded


def call(path: str) -> bytes:
    return hpack(
        __method="POST",
        __scheme="http",
        __path=path,
        __authority="127.0.0.1",
        te="trailers",
        content_type="application/grpc",
    )


CALL = call("/rushes.v1.PipelineService/GetExecution")
HEALTH = call("/grpc.health.v1.Health/Check")
OPENING = PREFACE + h2(SETTINGS, 0, 0, b"")
H2 = st.builds(
    h2,
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 1, 1, 3, 5, 2**31 - 1]),
    st.one_of(st.binary(max_size=100), st.just(CALL), st.just(16_385).map(bytes)),
)


@examples(60)
@given(
    opening=st.sampled_from([b"", PREFACE, OPENING, OPENING + h2(HEADERS, END_HEADERS, 1, CALL)]),
    data=st.one_of(st.binary(max_size=2_000), st.lists(H2, max_size=10).map(b"".join)),
    at=CUTS,
    how=HOW,
)
def test_bytes_on_the_grpc_port(
    target: Server, opening: bytes, data: bytes, at: list[int], how: str
) -> None:
    say(target.grpc, [opening, *cut(data, at)], how)


def test_headers_without_end_on_the_grpc_port(target: Server) -> None:
    more = [h2(CONTINUATION, 0, 1, hpack(x="a" * 120) * 100) for _ in range(200 * TIMES)]
    say(target.grpc, [OPENING, h2(HEADERS, 0, 1, CALL), *more], "half")


def test_streams_that_are_opened_and_taken_back(target: Server) -> None:
    """Rapid reset."""
    for _ in range(TIMES):
        said = b"".join(
            h2(HEADERS, END_HEADERS, stream, CALL) + h2(RST_STREAM, 0, stream, bytes(4))
            for stream in range(1, 10_000, 2)
        )
        say(target.grpc, [OPENING, *cut(said, list(range(0, len(said), 20_000)))], "reset")


@pytest.mark.parametrize(("asked", "connections"), [(CALL, 10), (HEALTH, 40)])
def test_streams_that_are_opened_and_left_alone(
    target: Server, healthy: Healthy, asked: bytes, connections: int
) -> None:
    """Of health, which takes no token, more are taken than there may be calls at once."""
    said = b"".join(h2(HEADERS, END_HEADERS, stream, asked) for stream in range(1, 256, 2))
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            wire = stack.enter_context(socket.create_connection(place(target.grpc), DEADLINE_S))
            with contextlib.suppress(OSError):
                wire.sendall(OPENING + said)
        healthy.called_on()


# -- connections -----------------------------------------------------------------------


@contextlib.contextmanager
def many(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Connected and silent, all at the same time."""
    wires: list[socket.socket] = []
    try:
        for _ in range(count // AT_ONCE):
            batch = [socket.socket() for _ in range(AT_ONCE)]
            wires += batch
            for wire in batch:
                wire.setblocking(False)
                wire.connect_ex(place(address))
            time.sleep(0)
        yield wires
    finally:
        for wire in wires:
            wire.close()


@pytest.fixture(scope="module", autouse=True)
def _room_for_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_connects(target: Server, healthy: Healthy) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > CONNECTS, "too few files may be open here"
    with many(target.http, CONNECTS):
        healthy.called_on()
    with many(target.grpc, CONNECTS // 10):
        healthy.called_on()


def test_requests_that_drip_in(target: Server, healthy: Healthy) -> None:
    with many(target.http, AT_ONCE) as wires:
        for byte in HANDSHAKE[:40]:
            for wire in wires:
                with contextlib.suppress(OSError):
                    wire.send(bytes([byte]))
        healthy.called_on()
