"""How fast the surfaces are, each beside a bare one of its kind.

* REST: the status of a card's execution, beside a Starlette application that does
  nothing but answer with a small JSON object; and how long it takes while the engine
  runs as fast as it can.
* gRPC: ``GetExecution``, beside a bare server with one method that answers with as many
  bytes.
* WebSocket: a thousand frontends, beside a Starlette application that sends to one after
  the other (``send_text``) on uvicorn's default implementation; and from a commit until
  each of them has the event, at ten events a second; and what they take when idle.

Who asks is a process of its own, on sockets, without a library that would be slower than
what it measures. Ours and the bare ones take turns, ``--rounds`` times, each round in new
processes, and medians are printed.

    python -m benchmarks.surfaces [--part answers --part load ...] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import re
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import httpx2
import psutil
import uvicorn
from grpc import aio, unary_unary_rpc_method_handler
from grpc import method_handlers_generic_handler as method_handlers
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import server as rushes_server
from adapters.persistence.batch import Batch, Committed
from adapters.settings import Settings
from benchmarks.engine import percentile, place, run_through
from bootstrap import Container
from domain.events import RecordedFact

FRONTENDS = 1_000
MESSAGES = 200
"""To each frontend, one after the other: some seconds of broadcasting."""

FLOOD = 20
FLOOD_TOGETHER = 100
"""And so many times as many, as an engine at full load lets them out: many at once."""

CONNECTIONS = 32
"""Of those who ask for a status. Each has one question under way, so nobody queues up much."""

CALLS = 16
"""Under way on each of the gRPC connections."""

GRPC_CONNECTIONS = 2
SECONDS = 2.0
WARM_S = 0.5
LOAD_S = 4.0
ASKED_PER_S = 200
"""While the engine runs at full load: at fixed times, whether or not the last was answered."""

EVENTS_PER_S = 10
EVENTS = 50
LAST = "bench:last"
IN_FLIGHT = 64
"""Executions of the full load, as in ``benchmarks.engine``."""

GRPC_PREFIX_BYTES = 5
GET_EXECUTION = "/rushes.v1.PipelineService/GetExecution"


# -- who asks: each of these is a process of its own -----------------------------------


Connect = Callable[[], socket.socket]


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    wire = socket.create_connection((host, int(port)))
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def closing(asking: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """``asking`` connects by what it is given first; all that is closed in the end."""

    @wraps(asking)
    def asked(address: str, *given: Any) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            return asking(lambda: stack.enter_context(connected(address)), address, *given)

    return asked


def answer_of(wire: socket.socket) -> bytes:
    """A whole answer, with its head; it must be a good one."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += wire.recv(65_536)
    head, _, body = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"no answer: {got!r}")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found is not None
    while len(body) < int(found[1]):
        more = wire.recv(65_536)
        got, body = got + more, body + more
    return got


def request_for(address: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n".encode()


@closing
def ask_http(connect: Connect, address: str, path: str) -> dict[str, Any]:
    """Answers a second. All answers have the same size, which is checked."""
    request = request_for(address, path)
    poll = select.epoll()
    wires = {wire.fileno(): wire for wire in (connect() for _ in range(CONNECTIONS))}
    size = 0
    for wire in wires.values():
        wire.send(request)
        size = len(answer_of(wire))
        wire.send(request)
        poll.register(wire, select.EPOLLIN)
    missing = dict.fromkeys(wires, size)
    answers = all_answers = 0
    counting_from = time.perf_counter() + WARM_S
    until = counting_from + SECONDS
    while (now := time.perf_counter()) < until or not all_answers:
        for number, _ in poll.poll(1):
            wire = wires[number]
            missing[number] -= len(wire.recv(65_536))
            if missing[number] == 0:
                missing[number] = size
                wire.send(request)
                answers += now >= counting_from
                all_answers += 1
            elif missing[number] < 0:
                raise RuntimeError("an answer of another size")
    return {"rate": answers / SECONDS, "size": size, "answers": all_answers}


@closing
def ask_http_at_times(connect: Connect, address: str, path: str, seconds: float) -> dict[str, Any]:
    """How long each answer took, from the time at which it was due to be asked."""
    request = request_for(address, path)
    free = deque(connect() for _ in range(CONNECTIONS))
    asked: dict[int, tuple[socket.socket, float]] = {}
    poll = select.epoll()
    for wire in free:
        poll.register(wire, select.EPOLLIN)
    took = []
    left = round(seconds * ASKED_PER_S)
    due = time.perf_counter()
    while left or asked:
        while left and free and due <= time.perf_counter():
            wire = free.popleft()
            wire.send(request)
            asked[wire.fileno()] = (wire, due)
            due += 1 / ASKED_PER_S
            left -= 1
        for number, _ in poll.poll(max(0.0, due - time.perf_counter()) if left else 1):
            wire, since = asked.pop(number)
            answer_of(wire)
            took.append(time.perf_counter() - since)
            free.append(wire)
    return {"took": took}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Of HTTP/2."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def literal(name: str, value: str) -> bytes:
    """A header that nobody remembers."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


@closing
def ask_grpc(connect: Connect, address: str, path: str, message: str) -> dict[str, Any]:
    """Answers a second: HTTP/2 by hand, ``CALLS`` under way on each connection."""
    headers = b"".join(
        literal(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", address),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
    )
    body = bytes.fromhex(message)
    body = b"\0" + len(body).to_bytes(4) + body
    most = 2**31 - 1
    hello = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, (4).to_bytes(2) + most.to_bytes(4))
        + frame(8, 0, 0, (most - 65_535).to_bytes(4))
    )
    answers = all_answers = 0
    sizes: set[int] = set()
    poll = select.epoll()
    wires: dict[int, socket.socket] = {}
    unread: dict[int, bytes] = {}
    streams: dict[int, int] = {}
    window: dict[int, int] = {}

    def call(number: int) -> bytes:
        stream = streams[number]
        streams[number] += 2
        window[number] -= len(body)
        if window[number] < 0:
            raise RuntimeError("the server takes no more")
        return frame(1, 4, stream, headers) + frame(0, 1, stream, body)

    for _ in range(GRPC_CONNECTIONS):
        wire = connect()
        number = wire.fileno()
        wires[number], unread[number], streams[number], window[number] = wire, b"", 1, 65_535
        poll.register(wire, select.EPOLLIN)
        wire.sendall(hello + b"".join(call(number) for _ in range(CALLS)))
    received: dict[tuple[int, int], int] = {}
    counting_from = time.perf_counter() + WARM_S
    until = counting_from + SECONDS
    while (now := time.perf_counter()) < until or not all_answers:
        for number, _ in poll.poll(1):
            got = unread[number] + wires[number].recv(262_144)
            at, said = 0, b""
            while len(got) >= at + 9:
                end = at + 9 + int.from_bytes(got[at : at + 3])
                if len(got) < end:
                    break
                kind, flags = got[at + 3], got[at + 4]
                stream = int.from_bytes(got[at + 5 : at + 9])
                if kind == 0:
                    key = (number, stream)
                    received[key] = received.get(key, 0) + end - at - 9
                elif kind == 4 and not flags & 1:
                    said += frame(4, 1, 0)
                elif kind == 6 and not flags & 1:
                    said += frame(6, 1, 0, got[at + 9 : end])
                elif kind == 8 and stream == 0:
                    window[number] += int.from_bytes(got[at + 9 : end])
                elif kind in (3, 7):
                    raise RuntimeError(f"the server refuses: {got[at:end]!r}")
                if kind in (0, 1) and flags & 1:  # the end of a call
                    sizes.add(received.pop((number, stream), 0))
                    answers += now >= counting_from
                    all_answers += 1
                    said += call(number)
                at = end
            unread[number] = got[at:]
            if said:
                wires[number].sendall(said)
    if len(sizes) != 1 or not min(sizes):  # what is refused has none
        raise RuntimeError(f"answers of these sizes: {sizes}")
    (size,) = sizes
    return {"rate": answers / SECONDS, "size": size, "answers": all_answers}


def be_frontends(address: str, count: str = str(FRONTENDS)) -> None:
    """So many. Says when they are connected, then when each has had the last message.

    When they had which event, too: as the time of each read, with the ids that were in it.
    """
    poll = select.epoll()
    wires: dict[int, socket.socket] = {}
    upgrade = (
        f"GET /ws?client_type=frontend HTTP/1.1\r\nHost: {address}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    for _ in range(int(count)):
        wire = connected(address)
        wire.send(upgrade)
        got = b""
        while b"hub:welcome" not in got:
            got += wire.recv(65_536)
        wires[wire.fileno()] = wire
        poll.register(wire, select.EPOLLIN)
    say({"connected": len(wires)})
    last = LAST.encode()
    tails = dict.fromkeys(wires, b"")
    size = 0
    reads: list[tuple[float, bytes]] = []
    ended = 0
    while ended < len(wires):
        for number, _ in poll.poll(30):
            got = wires[number].recv(262_144)
            if not got:
                raise RuntimeError("a frontend was let go")
            now = time.monotonic()
            size += len(got)
            if len(got) < 1_000:
                reads.append((now, got))
            if last in tails[number] + got:
                ended += 1
                ended_at = now
            tails[number] = got[-len(last) :]
    heard: list[tuple[int, float]] = []
    for now, got in reads:
        heard.extend((int(each), now) for each in re.findall(rb'"id":(\d+)', got))
    say({"ended": ended_at, "size": size, "heard": heard})


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


# -- who is asked: each of these, too -----------------------------------------------------


async def commands() -> Any:
    """What is asked of this process on its standard input, one JSON text a line."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        yield json.loads(line)


async def serve_bare() -> None:
    """The floors: HTTP and WebSocket on one port, gRPC on another, with nothing behind them."""
    clients: list[WebSocket] = []

    async def answer(request: Any) -> JSONResponse:
        return JSONResponse({"status": "ok", "reference": request.path_params["reference"]})

    async def connect(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text('{"type":"hub:welcome"}')
        clients.append(websocket)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()

    app = Starlette(
        routes=[Route("/api/pipeline/{reference}", answer), WebSocketRoute("/ws", connect)]
    )
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    http_port = server.servers[0].sockets[0].getsockname()[1]
    said = {"answer": b""}

    async def method(request: bytes, context: Any) -> bytes:
        return said["answer"]

    grpc = aio.server()
    grpc.add_generic_rpc_handlers(
        (method_handlers("bare.Bare", {"Get": unary_unary_rpc_method_handler(method)}),)
    )
    grpc_port = grpc.add_insecure_port("127.0.0.1:0")
    await grpc.start()
    say({"http": f"127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{grpc_port}"})
    async for command in commands():
        if "answer" in command:
            said["answer"] = bytes(command["answer"])
            say({})
        if "tell" in command:
            count, size = command["tell"]
            texts = ["x" * size] * (count - 1) + [LAST.ljust(size)]
            began = time.monotonic()
            for text in texts:
                for client in clients:
                    await client.send_text(text)
            say({"began": began})
    serving.cancel()
    await grpc.stop(None)


async def serve_rushes(folder: Path) -> None:
    """The product's server, as it is, and at its side somebody who makes it work."""
    made: list[Container] = []
    committed_at: dict[int, float] = {}

    def container_of(settings: Settings) -> Container:
        made.append(Container(settings=settings))
        return made[-1]

    rushes_server.Container = container_of  # type: ignore[misc, assignment]
    commit_into = Batch.commit_into

    def noted(batch: Batch, committed: Committed) -> Any:
        now = time.monotonic()
        committed_at.update((fact.id, now) for fact in batch.facts)
        return commit_into(batch, committed)

    cards = folder / "cards"
    card(cards / "A")
    settings = Settings.load(
        {
            "database_url": f"sqlite:///{folder}/surfaces.db",
            "library": str(folder / "library"),
            "card_roots": str(cards),
            "port": "0",
            "grpc_port": "0",
            "pipelines": "benchmarks.engine:CHAIN,benchmarks.engine:OUTSIDE",
            "pools": "default=512",
        },
        {"RUSHES_CONNECTIONS": str(2 * FRONTENDS)},
    )
    stop, started = asyncio.Event(), asyncio.Event()

    def ready(addresses: rushes_server.Addresses) -> None:
        gc.collect()
        rushes_server.spare_collector()
        say({"http": addresses.http.removeprefix("http://"), "grpc": addresses.grpc})
        started.set()

    rushes_server.spare_collector()  # here and above, as ``rushes serve`` does
    serving = asyncio.create_task(rushes_server.serve(settings, stop=stop, ready=ready))
    await asyncio.wait(
        {serving, asyncio.create_task(started.wait())}, return_when="FIRST_COMPLETED"
    )
    (container,) = made
    feed, pause = container.feed(), container.pause()
    held = (await container.trigger()("outside", {})).execution.id
    async for command in commands():
        if "ingest" in command:
            answer = await container.trigger()("sd_ingest", {"sd_path": str(cards / "A")})
            reference = answer.execution.uuid
            while (view := await container.status().get(reference)).status != "completed":
                if view.status == "failed":
                    raise RuntimeError(f"the card failed: {view.error_message}")
                await asyncio.sleep(0.01)
            say({"reference": reference, "steps": len(view.steps)})
        if "load" in command:
            until = time.monotonic() + command["load"]
            chains = 0
            while time.monotonic() < until:
                await run_through(container, "chain", 5 * IN_FLIGHT, IN_FLIGHT)
                chains += 5 * IN_FLIGHT
            say({"rate": chains / (command["load"] + time.monotonic() - until)})
        if "pace" in command:
            Batch.commit_into = noted  # type: ignore[method-assign]
            for number in range(command["pace"]):
                await asyncio.sleep(1 / EVENTS_PER_S)
                await (pause.resume(held) if number % 2 else pause.pause(held))
            Batch.commit_into = commit_into  # type: ignore[method-assign]
            say({"committed": list(committed_at.items())})
        if "tell" in command:
            # Facts that nobody has committed: the engine would be what is measured.
            first, count, together = feed.last_id + 1, *command["tell"]
            facts = [
                RecordedFact(
                    id=first + number,
                    execution_id=held,
                    type="pipeline:step_completed" if number < count - 1 else LAST,
                    step_key="copy_files",
                    data={
                        "execution_id": "01930000-0000-7000-8000-000000000000",
                        "step_name": "copy_files",
                        "step_key": "copy_files",
                        "progress": number % 100,
                    },
                    occurred_at=datetime.now(UTC),
                )
                for number in range(count)
            ]
            began = time.monotonic()
            walk = container.hub()._broadcast
            for start in range(0, count, together):
                feed.publish(facts[start : start + together])
                while walk.busy:
                    await asyncio.sleep(0)
            say({"began": began})
        if "stop" in command:
            break
    stop.set()
    await serving


def card(folder: Path) -> None:
    """A small one, of six files."""
    clips = folder / "DCIM" / "100GOPRO"
    clips.mkdir(parents=True)
    for number in range(1, 7):
        (clips / f"GX01{number:04}.MP4").write_bytes(os.urandom(100_000))


# -- who runs them ------------------------------------------------------------------------


class Process:
    """This module in a process of its own, in another role; texts of JSON go to and fro."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.surfaces", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: Any) -> Any:
        self.tell(**command)
        return self.read()

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} has ended")
        return json.loads(line)

    def cpu_s(self) -> float:
        """What it has taken of the processor's time: a busy machine doesn't change that."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@contextlib.contextmanager
def a_process(*arguments: object) -> Iterator[Process]:
    process = Process(*arguments)
    try:
        yield process
    except BaseException:
        process.process.kill()
        raise
    finally:
        process.end()


def asked(*arguments: object) -> Any:
    with a_process(*arguments) as process:
        return process.read()


@dataclass
class Sides:
    """The product's server and a bare one, each a process with its addresses."""

    ours: Process
    at: dict[str, str]
    bare: Process
    floor: dict[str, str]
    reference: str

    @property
    def path(self) -> str:
        return f"/api/pipeline/{self.reference}"


def answers(sides: Sides) -> dict[str, Any]:
    """One execution's status, over REST and over gRPC."""
    measured: dict[str, Any] = {}
    message = b"\x0a" + bytes([len(sides.reference)]) + sides.reference.encode()
    call = ("ask-grpc", sides.at["grpc"], GET_EXECUTION, message.hex())
    bare_call = ("ask-grpc", sides.floor["grpc"], "/bare.Bare/Get", message.hex())
    for name, process, *asking in (
        ("bare_http", sides.bare, "ask-http", sides.floor["http"], sides.path),
        ("http", sides.ours, "ask-http", sides.at["http"], sides.path),
        ("grpc", sides.ours, *call),
        ("bare_grpc", sides.bare, *bare_call),
    ):
        if name == "bare_grpc":
            sides.bare.ask(answer=[0] * (measured["grpc_size"] - GRPC_PREFIX_BYTES))
        before_s = process.cpu_s()
        found = asked(*asking)
        measured[name], measured[f"{name}_size"] = found["rate"], found["size"]
        measured[f"{name}_cpu"] = (process.cpu_s() - before_s) / found["answers"]
    assert measured["bare_grpc_size"] == measured["grpc_size"]
    return measured


def load(sides: Sides) -> dict[str, Any]:
    """The status over REST while the engine runs as fast as it can."""
    sides.ours.tell(load=LOAD_S)
    took = asked("ask-http-at-times", sides.at["http"], sides.path, LOAD_S - 1)["took"]
    return {"took": took, "chains": sides.ours.read()["rate"]}


def frontends(sides: Sides) -> dict[str, Any]:
    """A thousand of them: what they take when idle, and how soon they are told."""
    measured: dict[str, Any] = {}
    ours, bare, address = sides.ours, sides.bare, sides.at["http"]
    asked("frontends-that-leave", address)  # so that what is loaded once is there
    memory = psutil.Process(ours.process.pid).memory_info
    time.sleep(1)
    before_bytes = memory().rss
    with a_process("frontends", address) as players:
        players.read()
        time.sleep(1)
        measured["idle"] = memory().rss - before_bytes
        committed = dict(ours.ask(pace=EVENTS)["committed"])
        before_s = ours.cpu_s()
        began = ours.ask(tell=[MESSAGES, 1])["began"]
        found = players.read()
        measured["told"] = FRONTENDS * MESSAGES / (found["ended"] - began)
        measured["told_cpu"] = (ours.cpu_s() - before_s) / FRONTENDS / MESSAGES
        heard = [(number, now) for number, now in found["heard"] if number in committed]
        measured["latencies"] = [now - committed[number] for number, now in heard]
        assert len(heard) == FRONTENDS * len(committed)
    with a_process("frontends", address) as players:
        players.read()
        before_s = ours.cpu_s()
        began = ours.ask(tell=[FLOOD * MESSAGES, FLOOD_TOGETHER])["began"]
        found = players.read()
        measured["flood"] = FRONTENDS * FLOOD * MESSAGES / (found["ended"] - began)
        measured["flood_cpu"] = (ours.cpu_s() - before_s) / FRONTENDS / FLOOD / MESSAGES
        size = found["size"] // FRONTENDS // FLOOD // MESSAGES
    with a_process("frontends", sides.floor["http"]) as players:
        players.read()
        before_s = bare.cpu_s()
        began = bare.ask(tell=[MESSAGES, size])["began"]
        found = players.read()
        measured["bare_told"] = FRONTENDS * MESSAGES / (found["ended"] - began)
        measured["bare_told_cpu"] = (bare.cpu_s() - before_s) / FRONTENDS / MESSAGES
    return measured


PARTS = {"answers": answers, "load": load, "frontends": frontends}


def one_round(folder: Path, parts: Collection[str]) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    with a_process("rushes", folder) as ours, a_process("bare") as bare:
        at, floor = ours.read(), bare.read()
        sides = Sides(ours, at, bare, floor, ours.ask(ingest=True)["reference"])
        answer = httpx2.get(f"http://{at['http']}{sides.path}", trust_env=False).json()
        assert (answer["status"], len(answer["steps"])) == ("completed", 6), answer
        for name, part in PARTS.items():
            if name in parts:
                measured |= part(sides)
        ours.tell(stop=True)
    return measured


def show(rounds: list[dict[str, Any]], parts: Collection[str]) -> None:
    def median(name: str) -> float:
        return statistics.median(each[name] for each in rounds)

    def line(title: str, ours: str, floor: str, aim: float, what: str) -> None:
        cpu, floor_cpu = median(f"{ours}_cpu"), median(f"{floor}_cpu")
        print(
            f"{title:<24}{median(ours):10,.0f} /s{1e6 * cpu:7.1f} µs   "
            f"{what:<14}{median(floor):8,.0f} /s{1e6 * floor_cpu:7.1f} µs   "
            f"ratio {median(ours) / median(floor):.2f} (aim: {aim}), "
            f"of the processor's time {floor_cpu / cpu:.2f}"
        )

    if "answers" in parts:
        size, grpc_size = (rounds[0][name] for name in ("http_size", "grpc_size"))
        line(f"status, {size} bytes", "http", "bare_http", 0.5, "bare Starlette")
        line(f"GetExecution, {grpc_size} bytes", "grpc", "bare_grpc", 0.7, "bare method")
    if "load" in parts:
        took = [1000 * each for one in rounds for each in one["took"]]
        print(
            f"{'status at full load':<24} p50 {percentile(took, 0.5):.1f} ms  "
            f"p99 {percentile(took, 0.99):.1f} ms (aim: 20)   "
            f"{ASKED_PER_S} asked a second, {median('chains'):,.0f} chains/s"
        )
    if "frontends" in parts:
        line(f"to {FRONTENDS:,} frontends", "told", "bare_told", 1.3, "bare loop")
        line(f"  {FLOOD_TOGETHER} events at once", "flood", "bare_told", 1.3, "bare loop")
        latencies = [1000 * each for one in rounds for each in one["latencies"]]
        print(
            f"{'commit to frontend':<24} p50 {percentile(latencies, 0.5):.1f} ms  "
            f"p99 {percentile(latencies, 0.99):.1f} ms (aim: 25)   "
            f"{EVENTS_PER_S} events a second to {FRONTENDS:,}"
        )
        print(f"{FRONTENDS:,} idle frontends    {median('idle') / 2**20:10.0f} MB (aim: 40)")


def measure(folder: Path, rounds: int, parts: Collection[str]) -> None:
    print(f"machine                    {os.cpu_count()} cores; database in {folder.parent}")
    done = []
    for number in range(rounds):
        here = folder / str(number)
        here.mkdir()
        done.append(one_round(here, parts))
    show(done, parts)


def leave_at_once(address: str) -> None:
    wires = []
    for _ in range(100):
        wires.append(connected(address))
        wires[-1].send(
            f"GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        wires[-1].recv(65_536)
    for wire in wires:
        wire.close()
    say({})


ROLES: dict[str, Callable[..., Any]] = {
    "ask-http": lambda *given: say(ask_http(*given)),
    "ask-http-at-times": lambda at, path, s: say(ask_http_at_times(at, path, float(s))),
    "ask-grpc": lambda *given: say(ask_grpc(*given)),
    "frontends": be_frontends,
    "frontends-that-leave": leave_at_once,
    "bare": lambda: asyncio.run(serve_bare()),
    "rushes": lambda folder: asyncio.run(serve_rushes(Path(folder))),
}


def main() -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if len(sys.argv) > 1 and sys.argv[1] in ROLES:
        ROLES[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the database is made; the system's, otherwise")
    given = parser.parse_args()
    with place(given.folder) as folder:
        measure(folder, given.rounds, given.part or PARTS)


if __name__ == "__main__":
    main()
