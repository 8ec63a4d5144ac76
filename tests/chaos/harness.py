"""Kills a real server again and again, with executions of all shapes in flight.

Three sides that know nothing of each other: ``Work`` hands in cards and executions,
insists until it is answered, and meanwhile does to them what people and services do:
retry, skip, complete by hand, cancel, pause, resume, run again, report from outside;
``Listener`` follows the WebSocket and comes back with
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

import grpc
import httpx2
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb.pipeline_pb2_grpc import PipelineServiceStub
from tests.cards import files_below, gopro_card
from tests.chaos.pipelines import CLIPS
from tests.e2e.server import DEADLINE_S, PIPELINES, Server

KINDS = ("card", "card", "diamond", "chain", "gate", "family", "family", "outside")
"""What is handed in, some of it more often."""

OWN = ",".join(f"tests.chaos.pipelines:{kind}" for kind in sorted(set(KINDS) - {"card"}))

DEEDS = {"put right": 5, "answer": 5, "resume": 5, "pause": 5, "run again": 4, "cancel": 3}
"""What is done to executions under way, and how often."""

GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
"""What a client of a server that has just been killed may see."""

IN_FLIGHT = 10
"""Executions under way at a time: as many as make every kill hit something."""

ENDED = ("completed", "failed", "cancelled")


@dataclass
class Handed:
    """What was handed in. footage: the card's files, for a card."""

    kind: str
    message_id: str
    body: dict[str, Any]
    footage: dict[str, bytes] | None = None
    execution_id: str = ""


BECOMES = {
    "step_spawned": "pending",
    "step_started": "running",
    "step_completed": "completed",
    "step_failed": "failed",
    "step_retrying": "pending",
    "step_skipped": "skipped",
}
"""What a step is once that has been said of it."""


@dataclass
class Told:
    """A step, as the log tells it. kept: an earlier execution has done it for this one."""

    status: str = "pending"
    attempt: int = 0
    kept: bool = False


@dataclass
class Asked:
    """What was asked for, and may have been done even where nobody was told.

    cancels: uuids, and whether the answer said so. by_hand: uuid and key of steps.
    reruns: how many were asked for, and how many of these were answered.
    """

    cancels: dict[str, bool] = field(default_factory=dict)
    by_hand: set[tuple[str, str]] = field(default_factory=set)
    reruns: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    kills: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    executions: Counter[str] = field(default_factory=Counter)
    facts: int = 0
    reconnects: int = 0
    takeovers: int = 0
    deeds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.kills} kills ({_counted(self.by_kind)}) in {self.seconds:.0f} s",
            f"{sum(self.executions.values())} executions ({_counted(self.executions)}), "
            f"{self.facts} facts, {self.takeovers} attempts lost and taken over",
            f"answered meanwhile: {_counted(self.deeds)}",
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
        self._asked = Asked()
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
                return
            under_way = self._under_way()
            if len(under_way) < IN_FLIGHT:
                self._handed.append(self._new())
            if under_way:
                (deed,) = self._random.choices(list(DEEDS), list(DEEDS.values()))
                self._do(deed, under_way)

    def _new(self) -> Handed:
        self._number += 1
        kind = self._random.choice(KINDS)
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
        return Handed(kind, message_id, body)

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
        for status in ("pending", "running", "failed"):
            found += self._server.get("/api/pipeline", status=status, limit=200)["executions"]
        return found

    # -- what people and services do meanwhile ---------------------------------------

    def _do(self, deed: str, under_way: list[Any]) -> None:
        one = self._random.choice(under_way)
        if deed == "put right":
            for execution in under_way:
                self._put_right(execution, opening=self._random.random() < 0.5)
        elif deed == "answer":
            for execution in under_way:
                self._answer(execution)
        elif deed == "run again":
            self._run_again()
        elif deed == "resume":
            self._resume(under_way)
        elif one["pipeline_type"].startswith("chaos_") and one["status"] == "running":
            # A card's copy is left alone: nobody clears up after one that is cancelled.
            if deed == "cancel":
                self._asked.cancels[one["execution_id"]] = False
                self._asked.cancels[one["execution_id"]] = self._post(one, deed)
            else:
                self._post(one, deed)

    def _post(self, execution: Any, verb: str, **more: Any) -> bool:
        """Whether it was done; a refusal is one, that the server dies of it is another."""
        path = f"/api/pipeline/{execution['execution_id']}/{verb}"
        response = self._server.request("POST", path, **more)
        done: bool = response.is_success
        self._report.deeds[verb.rpartition("/")[2]] += done
        if not done and response.status_code not in (409, 503):
            self._report.wrong.append(f"{path}: {response.status_code} {response.text}")
        return done

    def _put_right(self, execution: Any, *, opening: bool) -> None:
        if execution["status"] != "failed":
            return
        if execution["pipeline_type"] != "chaos_gate" or not opening:
            self._post(execution, "retry")
            return
        how = self._random.choice(("open", "skip", "complete"))
        if how == "open":
            Path(execution["execution_data"]["gate"]).touch()
            self._post(execution, "retry")
            return
        self._asked.by_hand.add((execution["execution_id"], "open_gate"))
        more = {"json": {"output": {"opened": "by hand"}}} if how == "complete" else {}
        self._post(execution, f"steps/open_gate/{how}", **more)

    def _resume(self, under_way: list[Any]) -> None:
        for execution in under_way:
            if execution["paused_at"] is not None and execution["status"] != "failed":
                self._post(execution, "resume")

    def _answer(self, execution: Any) -> None:
        """The service outside: it fails now and then, says all twice, and comes too late."""
        for key in execution["waits_for"]:
            step = next(each for each in execution["steps"] if each["step_key"] == key)
            attempt = step["attempt"]
            report = (
                {"failed": pb.StepFailed(error=f"no answer at {attempt}")}
                if self._random.random() < 0.3
                else {"completed": pb.StepCompleted(output={"answered": attempt})}
            )
            with contextlib.suppress(grpc.RpcError):
                self._advance(execution, key, attempt, report)
                self._report.deeds["report from outside"] += 1
                self._advance(execution, key, attempt, report)
                late = {"completed": pb.StepCompleted(output={"answered": "too late"})}
                try:
                    self._advance(execution, key, attempt, late)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.ABORTED:
                        raise
                    self._report.deeds["late report refused"] += 1
                else:
                    self._report.wrong.append(f"{execution}: a second outcome is believed")

    def _advance(self, execution: Any, key: str, attempt: int, report: dict[str, Any]) -> None:
        request = pb.AdvanceStepRequest(
            execution_id=execution["execution_id"], step_key=key, attempt=attempt, **report
        )
        with grpc.insecure_channel(self._server.grpc) as channel:
            try:
                PipelineServiceStub(channel).AdvanceStep(request, timeout=DEADLINE_S)
            except grpc.RpcError as error:
                if error.code() not in (*GONE, grpc.StatusCode.ABORTED):
                    self._report.wrong.append(f"{request}: {error}")
                raise

    def _run_again(self) -> None:
        """Nobody can ask for that twice: where no answer comes, it may have been done."""
        if self._asked.reruns["asked"] >= self._kills:
            return
        handed = self._random.choice([each for each in self._handed if each.execution_id])
        execution = self._server.get(f"/api/pipeline/{handed.execution_id}")
        if handed.kind != "card" and execution["status"] in ("completed", "cancelled"):
            key = self._random.choice(execution["steps"])["step_key"]
            self._asked.reruns["asked"] += 1
            self._asked.reruns["answered"] += self._post(
                execution, "rerun", json={"from_step": key}
            )

    def _finish(self) -> None:
        """Nothing is killed any more: everything comes to its end."""
        deadline = time.monotonic() + 4 * DEADLINE_S
        while any(not each.execution_id for each in self._handed):
            assert time.monotonic() < deadline, "somebody is never answered"
            self._hand_in(next(each for each in self._handed if not each.execution_id))
        while under_way := self._under_way():
            if time.monotonic() > deadline:
                self._report.wrong.append(f"never ended: {under_way}")
                return
            self._resume(under_way)
            for execution in under_way:
                self._put_right(execution, opening=True)
                self._answer(execution)
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
            cancelled = self._asked.cancels.get(each["uuid"])
            # Asked for, and not answered: either is right.
            right = {True: ("cancelled",), False: ENDED, None: ("completed",)}[cancelled]
            if each["status"] not in right:
                wrong.append(f"execution {each['id']} is {each['status']}: {each['error_message']}")
        twice = Counter(each["message_id"] for each in executions if each["message_id"])
        wrong += [f"{message_id} made {n} executions" for message_id, n in twice.items() if n > 1]
        first = [each for each in executions if each["rerun_of"] is None]
        if len(first) != len(self._handed):
            wrong.append(f"{len(self._handed)} were handed in, {len(first)} are there")
        again, reruns = len(executions) - len(first), self._asked.reruns
        if not reruns["answered"] <= again <= reruns["asked"]:
            wrong.append(f"{again} were run again, of {reruns}")
        self._look_at_families(executions)
        self._look_at_facts()
        self._look_at_the_listener()
        self._look_at_marks()
        self._look_at_the_library()

    def _look_at_families(self, executions: list[Any]) -> None:
        """Every member is there once, whoever was killed while spawning it."""
        members = sorted(f"{name}:{clip}" for name in ("clip", "frame") for clip in CLIPS)
        for each in executions:
            if each["pipeline_type"] != "chaos_family" or each["status"] != "completed":
                continue
            data, rows = (
                json.loads(each["execution_data"]),
                self._read(f"SELECT * FROM pipeline_step WHERE execution_id = {each['id']:d}"),
            )
            keys = sorted(row["step_key"] for row in rows if ":" in row["step_key"])
            if keys != members or (data["clips"], data["frames"]) != (list(CLIPS), list(CLIPS)):
                self._report.wrong.append(f"execution {each['id']} has {keys} and {data}")
            if "poster" not in each["warnings"]:
                self._report.wrong.append(f"execution {each['id']} warns of {each['warnings']}")

    def _look_at_facts(self) -> None:
        """No completed step ran again, attempts only rise, and the log says what is stored."""
        wrong = self._report.wrong
        told: dict[tuple[int, str], Told] = {}
        of_execution: dict[int, Counter[str]] = {}
        ids = []
        for row in self._read("SELECT * FROM pipeline_event ORDER BY id"):
            ids.append(row["id"])
            data, what = json.loads(row["data"]), row["type"].removeprefix("pipeline:")
            facts = of_execution.setdefault(row["execution_id"], Counter())
            if facts["cancelled"]:
                wrong.append(f"#{row['id']}: {what} after execution {row['execution_id']}'s cancel")
            facts[what] += 1
            if what not in BECOMES and row["step_key"] is not None:
                continue  # a step's own word
            if row["step_key"] is None:
                for key in data.get("kept", ()):
                    told[row["execution_id"], key] = Told("completed", kept=True)
                for key in (*data.get("reopened", ()), *data.get("cancelled", ())):
                    step = told.setdefault((row["execution_id"], key), Told())
                    if step.status == "completed":
                        wrong.append(f"#{row['id']}: {what} {key}, which has completed")
                    step.status = "pending" if what == "retried" else "cancelled"
                continue
            step = told.setdefault((row["execution_id"], row["step_key"]), Told())
            where = f"#{row['id']}: {row['step_key']} of execution {row['execution_id']}"
            if step.status in ("completed", "cancelled"):
                wrong.append(f"{where} {what} after it was {step.status}")
            if what == "step_started":
                if facts["paused"] > facts["resumed"]:
                    wrong.append(f"{where} starts while its execution is paused")
                if facts["failed"] > facts["retried"]:
                    wrong.append(f"{where} starts after its execution failed")
                if data["attempt"] <= step.attempt:
                    wrong.append(f"{where} starts with {data['attempt']} again")
                step.attempt = data["attempt"]
            elif what not in ("step_spawned", "step_skipped") and data["attempt"] != step.attempt:
                wrong.append(f"{where} {what} at {data['attempt']}, and {step.attempt} runs")
            step.status = BECOMES[what]
        self._report.facts = len(ids)
        if ids != sorted(set(ids)):
            wrong.append("ids don't strictly rise")
        for each, facts in of_execution.items():
            if facts["failed"] != facts["retried"] or facts["completed"] + facts["cancelled"] != 1:
                wrong.append(f"execution {each} was told {facts}")
        for row in self._read("SELECT * FROM pipeline_step"):
            step = told.get((row["execution_id"], row["step_key"]), Told())
            self._report.takeovers += row["takeovers"]
            if step.kept:
                continue
            if (row["status"], row["attempt"]) != (step.status, step.attempt):
                wrong.append(f"{dict(row)}: the facts say {step}")
            optional = row["step_key"] in ("poster", "gallery") or row["waived"]
            if row["status"] in ("failed", "skipped") and not optional:
                wrong.append(f"{dict(row)}, and it is required")

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
        steps = {
            (row["uuid"], row["step_key"]): row
            for row in self._read(
                "SELECT pipeline_step.*, uuid, pipeline_type, rerun_of FROM pipeline_step "
                "JOIN pipeline_execution ON pipeline_execution.id = execution_id"
            )
        }
        for mark in self._marks.glob("*/*"):
            key, attempt, _ = mark.name.rsplit(".", 2)
            if int(attempt) > steps[mark.parent.name, key]["attempt"]:
                wrong.append(f"{mark}: no such attempt was ever started")
        for (uuid, key), row in steps.items():
            marks = [each.name for each in (self._marks / uuid).glob(f"{key}.*")]
            elsewhere = (
                row["pipeline_type"] == "sd_ingest"
                or key == "answer"
                or (uuid, key) in self._asked.by_hand
                or (row["rerun_of"] is not None and not marks)
            )
            ended = f"{key}.{row['attempt']}.end" in marks
            if row["status"] == "completed" and not (ended or elsewhere):
                wrong.append(f"{uuid} {key}: completed, and left only {marks}")

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
