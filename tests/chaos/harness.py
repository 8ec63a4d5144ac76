"""Kills a real server again and again, with executions of all shapes in flight.

Three sides that know nothing of each other: ``Work`` hands in cards and executions,
and insists until it is answered; ``Listener`` follows the WebSocket and comes back with
the last id that it has seen; ``Killer`` kills, at any instant or, by a failpoint, right
before or after a commit. Then everything is let finish, and ``wrong`` looks at the
database, the marks that handlers left, the library, and what the listener saw.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx2
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.cards import files_below, gopro_card
from tests.e2e.server import DEADLINE_S, PIPELINES, Server

OWN = ",".join(f"tests.chaos.pipelines:{name}" for name in ("diamond", "chain", "gate"))

IN_FLIGHT = 10
"""Executions under way at a time: as many as make every kill hit something."""

ENDED = ("completed", "failed", "cancelled")


@dataclass
class Handed:
    """What was handed in. folder: the card's, for a card."""

    kind: str
    message_id: str
    body: dict[str, Any]
    footage: dict[str, bytes] | None = None
    gate: Path | None = None
    execution_id: str = ""


@dataclass
class Report:
    kills: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    executions: Counter[str] = field(default_factory=Counter)
    facts: int = 0
    reconnects: int = 0
    takeovers: int = 0
    retries: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.kills} kills ({_counted(self.by_kind)}) in {self.seconds:.0f} s",
            f"{sum(self.executions.values())} executions ({_counted(self.executions)}), "
            f"{self.facts} facts, {self.takeovers} attempts lost and taken over, "
            f"{self.retries} retries by a person",
            f"the listener connected {self.reconnects} times",
            *(f"WRONG: {each}" for each in self.wrong),
        ]
        return "\n".join([*lines, "nothing is wrong" if not self.wrong else ""]).strip()


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counter.items()))


class Listener:
    """A client that reconnects with ``since``, for ever."""

    def __init__(self, server: Server) -> None:
        self.seen: list[dict[str, Any]] = []
        self.connects = 0
        self.complaints: list[str] = []
        self._server = server
        self._last = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)

    @property
    def last(self) -> int:
        return self._last

    def _listen(self) -> None:
        while not self._over.is_set():
            address = self._server.http.replace("http", "ws", 1)
            try:
                with connect(
                    f"{address}/ws?client_type=frontend&since={self._last}",
                    open_timeout=5,
                    close_timeout=0.1,
                    max_size=None,
                ) as socket:
                    self.connects += 1
                    while not self._over.is_set():
                        with contextlib.suppress(TimeoutError):
                            self._take(json.loads(socket.recv(timeout=0.2)))
            except (OSError, TimeoutError, WebSocketException):
                self._over.wait(0.02)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] in ("error", "hub:reset"):
            self.complaints.append(f"the listener is told {message}")
        if "id" in message:
            self.seen.append(message)
            self._last = message["id"]


class Chaos:
    """``place``: a folder of its own. ``say``: told how it goes."""

    def __init__(
        self, place: Path, *, seed: int, kills: int, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._place = place
        self._random = Random(seed)
        self._kills = kills
        self._say = say
        self._server = Server(place, RUSHES_PIPELINES=f"{PIPELINES},{OWN}")
        self._marks = place / "marks"
        self._listener = Listener(self._server)
        self._handed: list[Handed] = []
        self._report = Report()
        self._number = 0

    def run(self) -> Report:
        began = time.monotonic()
        self._start("")
        self._listener.start()
        try:
            for number in range(1, self._kills + 1):
                self._life(number)
                if number % 20 == 0:
                    self._say(f"{number} kills, {time.monotonic() - began:.0f} s")
            self._finish()
        finally:
            self._listener.stop()
            process = self._server.process
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(DEADLINE_S)
        self._look()
        self._report.seconds = time.monotonic() - began
        self._report.reconnects = self._listener.connects
        return self._report

    # -- one life of the server ----------------------------------------------------

    def _life(self, number: int) -> None:
        """Work until it dies: of a signal after a while, or of its failpoint at a commit."""
        process = self._server.process
        assert process is not None
        failpoint = self._server.environment.get("RUSHES_FAILPOINT", "")
        die_at = time.monotonic() + (
            DEADLINE_S
            if failpoint
            else self._random.choice((0.05, 0.3, 0.6)) * self._random.random()
        )
        while process.poll() is None and time.monotonic() < die_at:
            self._work()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.005)
        if process.poll() is None:
            if failpoint:
                self._report.wrong.append(f"failpoint {failpoint} was never reached")
            self._server.kill()
        else:
            self._server._reap()
        self._report.kills += 1
        kind = failpoint.partition(":")[0].replace("_", " ") or "at any instant"
        self._report.by_kind[kind] += 1
        self._start(self._next_failpoint() if number < self._kills else "")

    def _next_failpoint(self) -> str:
        where = self._random.choice(("", "before_commit", "after_commit"))
        return f"{where}:{self._random.randint(1, 40)}" if where else ""

    def _start(self, failpoint: str) -> None:
        """A failpoint may strike before it is ready: then it is started again without one."""
        environment = self._server.environment
        environment.pop("RUSHES_FAILPOINT", None)
        if failpoint:
            environment["RUSHES_FAILPOINT"] = failpoint
            try:
                self._server.start()
            except AssertionError:
                self._server._reap()
                self._report.kills += 1
                self._report.by_kind["in recovery"] += 1
                self._start("")
        else:
            self._server.start()

    # -- work ------------------------------------------------------------------------

    def _work(self) -> None:
        """One thing that somebody wants of the server. It may die of it at any moment."""
        with contextlib.suppress(httpx2.HTTPError):
            open_ones = [each for each in self._handed if not each.execution_id]
            if open_ones:
                self._hand_in(open_ones[0])
            elif len(self._under_way()) < IN_FLIGHT:
                self._handed.append(self._new())
            else:
                self._put_right(opening=self._random.random() < 0.5)

    def _new(self) -> Handed:
        self._number += 1
        kind = self._random.choice(("card", "card", "diamond", "chain", "gate"))
        name = f"{kind}{self._number}"
        message_id = f"chaos {name}"
        if kind == "card":
            card = self._server.cards / name
            # Made elsewhere and moved: a card is there whole or not at all.
            made = self._place / "making" / name
            footage = gopro_card(
                made, clips=2, clip_bytes=self._random.choice((100_000, 3_000_000))
            )
            shutil.move(made, card)
            body = {"pipeline_type": "sd_ingest", "data": {"sd_path": str(card)}}
            return Handed(kind, message_id, body, footage=footage)
        gate = self._place / f"{name}.gate"
        body = {
            "pipeline_type": f"chaos_{kind}",
            "data": {"marks": str(self._marks), "gate": str(gate)},
        }
        return Handed(kind, message_id, body, gate=gate if kind == "gate" else None)

    def _hand_in(self, handed: Handed) -> None:
        response = self._server.request(
            "POST", "/api/pipeline", json={**handed.body, "message_id": handed.message_id}
        )
        if response.status_code in (200, 201):
            handed.execution_id = response.json()["execution_id"]
        elif response.status_code != 503:
            self._report.wrong.append(f"{handed.message_id}: {response.text}")
            handed.execution_id = "refused"

    def _under_way(self) -> list[Any]:
        found = []
        for status in ("running", "failed"):
            found += self._server.get("/api/pipeline", status=status, limit=200)["executions"]
        return found

    def _put_right(self, *, opening: bool) -> None:
        gates = {each.execution_id: each.gate for each in self._handed}
        for execution in self._server.get("/api/pipeline", status="failed", limit=200)[
            "executions"
        ]:
            execution_id = execution["execution_id"]
            gate = gates.get(execution_id)
            if gate is not None and opening:
                gate.touch()
            response = self._server.request("POST", f"/api/pipeline/{execution_id}/retry")
            self._report.retries += response.status_code == 202

    def _finish(self) -> None:
        """Nothing is killed any more: everything comes to its end."""
        deadline = time.monotonic() + 4 * DEADLINE_S
        while any(not each.execution_id for each in self._handed):
            assert time.monotonic() < deadline, "somebody is never answered"
            self._hand_in(next(each for each in self._handed if not each.execution_id))
        while self._under_way():
            if time.monotonic() > deadline:
                self._report.wrong.append(f"never ended: {self._under_way()}")
                return
            self._put_right(opening=True)
            time.sleep(0.05)
        last = self._last_fact()
        while self._listener.last < last and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self._server.stop() == 0

    # -- what became of it -------------------------------------------------------------

    def _read(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self._place / "rushes.db")) as database:
            database.row_factory = sqlite3.Row
            return database.execute(query).fetchall()

    def _last_fact(self) -> int:
        last: int = self._read("SELECT max(id) AS last FROM pipeline_event")[0]["last"]
        return last

    def _look(self) -> None:
        wrong = self._report.wrong
        integrity = self._read("PRAGMA integrity_check")[0][0]
        if integrity != "ok":
            wrong.append(f"the database: {integrity}")
        executions = self._read("SELECT * FROM pipeline_execution")
        for each in executions:
            self._report.executions[each["pipeline_type"]] += 1
            if each["status"] != "completed":
                wrong.append(f"execution {each['id']} is {each['status']}: {each['error_message']}")
        twice = Counter(each["message_id"] for each in executions)
        wrong += [f"{message_id} made {n} executions" for message_id, n in twice.items() if n > 1]
        if len(executions) != len(self._handed):
            wrong.append(f"{len(self._handed)} were handed in, {len(executions)} are there")
        self._look_at_facts()
        self._look_at_the_listener()
        self._look_at_marks()
        self._look_at_the_library()

    def _look_at_facts(self) -> None:
        """No completed step ran again, attempts only rise, and the log says what is stored."""
        wrong = self._report.wrong
        attempts: dict[tuple[int, str], int] = {}
        completed: dict[tuple[int, str], int] = {}
        failed: Counter[int] = Counter()
        ids = []
        for row in self._read("SELECT * FROM pipeline_event ORDER BY id"):
            ids.append(row["id"])
            data = json.loads(row["data"])
            key = (row["execution_id"], row["step_key"])
            if row["type"] == "pipeline:step_started":
                if key in completed:
                    wrong.append(f"#{row['id']}: {key} starts again after it completed")
                if data["attempt"] <= attempts.get(key, 0):
                    wrong.append(f"#{row['id']}: {key} starts with {data['attempt']} again")
                attempts[key] = data["attempt"]
            elif row["type"] == "pipeline:step_completed":
                if key in completed:
                    wrong.append(f"#{row['id']}: {key} completed twice")
                completed[key] = data["attempt"]
            elif row["type"] == "pipeline:failed":
                failed[row["execution_id"]] += 1
            elif row["type"] == "pipeline:retried":
                failed[row["execution_id"]] -= 1
        self._report.facts = len(ids)
        if ids != sorted(set(ids)):
            wrong.append("ids don't strictly rise")
        wrong += [f"execution {each} failed {n} times more than retried"
                  for each, n in failed.items() if n]  # fmt: skip
        for row in self._read("SELECT * FROM pipeline_step"):
            key = (row["execution_id"], row["step_key"])
            self._report.takeovers += row["takeovers"]
            if row["status"] != "completed" or completed.get(key) != row["attempt"]:
                wrong.append(f"{key} is {row['status']} at {row['attempt']}, told {completed}")

    def _look_at_the_listener(self) -> None:
        wrong, seen = self._report.wrong, self._listener.seen
        wrong += self._listener.complaints
        stored = [(r["id"], r["type"]) for r in
                  self._read("SELECT id, type FROM pipeline_event ORDER BY id")]  # fmt: skip
        heard = [(message["id"], message["type"]) for message in seen]
        if heard != stored:
            missing = sorted(set(stored) - set(heard))[:5]
            doubled = [each for each, n in Counter(heard).items() if n > 1][:5]
            unstored = sorted(set(heard) - set(stored))[:5]
            wrong.append(f"the listener missed {missing}, doubled {doubled}, made up {unstored}")

    def _look_at_marks(self) -> None:
        """What handlers did: nothing begins after the attempt that completed."""
        wrong = self._report.wrong
        completed = {
            (row["uuid"], row["step_key"]): row["attempt"]
            for row in self._read(
                "SELECT uuid, step_key, attempt FROM pipeline_step "
                "JOIN pipeline_execution ON pipeline_execution.id = execution_id"
            )
        }
        for mark in self._marks.glob("*/*"):
            key, attempt, _ = mark.name.rsplit(".", 2)
            if int(attempt) > completed[mark.parent.name, key]:
                wrong.append(f"{mark} was begun after its step had completed")
        for (uuid, key), attempt in completed.items():
            folder = self._marks / uuid
            if folder.exists() and not (folder / f"{key}.{attempt}.end").exists():
                wrong.append(f"{uuid} {key}: completed, and attempt {attempt} never ended")

    def _look_at_the_library(self) -> None:
        wrong = self._report.wrong
        if parts := list(self._server.library.rglob("*.part")):
            wrong.append(f"left behind: {parts}")
        data = {
            row["uuid"]: json.loads(row["execution_data"])
            for row in self._read("SELECT uuid, execution_data FROM pipeline_execution")
        }
        for handed in self._handed:
            if handed.footage is not None:
                folder = data[handed.execution_id].get("job_folder")
                if folder is None or files_below(Path(folder)) != handed.footage:
                    wrong.append(f"{handed.message_id}: what arrived isn't what was on the card")
