"""A real ``rushes serve`` in a process of its own, and clients that talk to it.

Whatever these are answered and told is held against the contracts.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from websockets.sync.client import ClientConnection, connect

from tests.contracts import check_answer, check_message

RUSHES = str(Path(sys.executable).parent / "rushes")
ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 30.0

PIPELINES = ",".join(
    f"tests.e2e.pipelines:{name}"
    for name in (
        "diamond",
        "gate",
        "leased",
        "lifecycle",
        "lucky",
        "outside",
        "patient",
        "quitter",
        "slow",
        "stubborn",
        "stubborn_card",
        "stuck",
        "waiting",
        "wide",
        "words",
    )
)

Message = dict[str, Any]


class Server:
    """A server with a folder of its own; it can be killed and started again."""

    def __init__(self, place: Path, prefix: tuple[str, ...] = (), **settings: str) -> None:
        self.place = place
        self.cards = place / "cards"
        self.library = place / "library"
        self.cards.mkdir(parents=True, exist_ok=True)
        self.library.mkdir(exist_ok=True)
        self._prefix = prefix
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RUSHES_")},
            "HOME": str(place),
            "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
            "RUSHES_PORT": "0",
            "RUSHES_GRPC_PORT": "0",
            "RUSHES_DATABASE_URL": f"sqlite:///{place}/rushes.db",
            "RUSHES_LIBRARY": str(self.library),
            "RUSHES_CARD_ROOTS": str(self.cards),
            "RUSHES_PIPELINES": PIPELINES,
            **settings,
        }
        self.process: subprocess.Popen[str] | None = None
        self.http = ""
        self.grpc = ""
        self.log = place / "server.log"

    def start(self) -> Server:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self._prefix, RUSHES, "serve"],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline(), self.process.stdout.readline()]
        assert all(lines), f"the server did not start: {self.log.read_text()}"
        self.http, self.grpc = (line.split()[-1] for line in lines)
        return self

    def kill(self) -> None:
        """SIGKILL: nothing of it has time for anything."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def end(self) -> int:
        """It ends by itself; its exit code."""
        return self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        code = self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        return code

    # -- REST --------------------------------------------------------------------

    def request(
        self, method: str, path: str, *, verify: ssl.SSLContext | bool = False, **more: Any
    ) -> httpx2.Response:
        # To read in the authorities that the system trusts takes longer than all the rest.
        response = httpx2.request(
            method,
            f"{self.http}{path}",
            trust_env=False,
            timeout=DEADLINE_S,
            verify=verify,
            **more,
        )
        if method != "HEAD":
            media_type = response.headers.get("content-type", "").partition(";")[0]
            is_json = media_type.endswith("json")
            check_answer(
                method,
                path,
                response.status_code,
                media_type,
                response.headers,
                response.json() if is_json else response.text,
            )
        return response

    def get(self, path: str, **params: Any) -> Any:
        response = self.request("GET", path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def trigger(self, pipeline_type: str, **data: Any) -> str:
        """The execution's uuid."""
        body = {"pipeline_type": pipeline_type, "data": data}
        response = self.request("POST", "/api/pipeline", json=body)
        assert response.status_code == 201, response.text
        uuid: str = response.json()["execution_id"]
        return uuid

    def execution(self, reference: str | int) -> Any:
        return self.get(f"/api/pipeline/{reference}")

    def ended(self, reference: str | int) -> Any:
        """The execution, once it has completed or failed."""
        return eventually(
            lambda: self.execution(reference),
            lambda found: found["status"] in ("completed", "failed"),
        )

    def count(self) -> int:
        return len(self.get("/api/pipeline", limit=200)["executions"])

    # -- WebSocket ---------------------------------------------------------------

    @contextmanager
    def client(
        self, client_type: str | None = None, *, since: int | None = None, **more: Any
    ) -> Iterator[Client]:
        query = []
        if client_type is not None:
            query.append(f"client_type={client_type}")
        if since is not None:
            query.append(f"since={since}")
        address = f"ws{self.http.removeprefix('http')}/ws?{'&'.join(query)}"
        with connect(
            address, max_size=None, open_timeout=DEADLINE_S, close_timeout=1, **more
        ) as socket:
            yield Client(socket)

    def announce(self, card: Path, message_id: str, **fields: Any) -> Message:
        """What a detector is answered."""
        with self.client("detector") as detector:
            return detector.announce(str(card), message_id, **fields)


class Client:
    """One WebSocket connection; what it was sent is kept in ``seen``."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[Message] = []
        self.welcome = self.receive()
        assert self.welcome["type"] == "hub:welcome"

    def say(self, message: object) -> None:
        self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def receive(self) -> Message:
        message: Message = json.loads(self.socket.recv(timeout=DEADLINE_S))
        self.seen.append(message)
        check_message(message)
        return message

    def until(self, wanted: Callable[[Message], bool]) -> Message:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            message = self.receive()
            if wanted(message):
                return message
        raise AssertionError(f"it never came; these did: {self.seen}")

    def answer(self) -> Message:
        """The next message that is for this client alone."""
        return self.until(lambda m: m["type"] in ("error", "detector:accepted"))

    def ask(self, message: object) -> Message:
        self.say(message)
        return self.answer()

    def announce(self, sd_path: object, message_id: object, **fields: Any) -> Message:
        data = {"message_id": message_id, "sd_path": sd_path, **fields}
        return self.ask({"type": "detector:sd_inserted", "data": data})

    def events(self, execution_id: str) -> list[Message]:
        """What it was told of an execution, up to its end."""
        self.until(
            lambda m: (
                m["type"] in ("pipeline:completed", "pipeline:failed")
                and m["data"]["execution_id"] == execution_id
            )
        )
        return [m for m in self.seen if m["data"].get("execution_id") == execution_id]


def eventually(look: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """What ``look`` finds, once it is what is wanted; within the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = look()
        if wanted(found):
            return found
        assert time.monotonic() < deadline, f"it never came about: {found}"
        time.sleep(0.01)


def steps(execution: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {step["step_key"]: step for step in execution["steps"]}
