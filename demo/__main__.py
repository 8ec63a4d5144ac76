"""A detector announces a card; footage comes out. Exits 0 only if everything is as it should be.

Starts a real ``rushes serve`` with a database and a library of its own, in a
temporary folder, speaks to it over real sockets, and checks every copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from websockets.sync.client import ClientConnection, connect

from demo.card import RATE, count_frames, make_card

RUSHES = Path(sys.executable).parent / "rushes"
DEADLINE_S = 120.0
JUNK = {".Trashes"}


class Discrepancy(Exception):
    """Something isn't as the demo promises."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rushes-demo-") as folder:
        place = Path(folder)
        try:
            show(place)
        except Discrepancy as error:
            print(f"\nNOT AS IT SHOULD BE: {error}", file=sys.stderr)
            return 1
    return 0


def show(place: Path) -> None:
    card = place / "cards" / "GOPRO-A"
    title("A card in GoPro layout, with clips encoded on the spot")
    files = make_card(card)
    for path in sorted(p for p in card.rglob("*") if p.is_file()):
        print(f"  {path.relative_to(card)!s:<32} {path.stat().st_size:>10,} bytes")
    before = snapshot(card)

    title("rushes serve")
    with server(place) as (process, http):
        base = http.removeprefix("http://")
        with (
            connect(f"ws://{base}/ws?client_type=frontend") as frontend,
            connect(f"ws://{base}/ws?client_type=detector") as detector,
        ):
            receive(frontend, "hub:welcome")
            receive(detector, "hub:welcome")
            title("The detector says that a card is there")
            signal_ = {
                "type": "detector:sd_inserted",
                "data": {"message_id": "demo-card-1", "sd_path": str(card)},
            }
            print(f"  > {json.dumps(signal_)}")
            detector.send(json.dumps(signal_))
            answer = receive(detector, "detector:accepted")
            print(f"  < {json.dumps(answer)}")
            execution_id = answer["data"]["execution_id"]
            title("What a frontend sees")
            events = list(until_the_end(frontend, execution_id))
        check_events(events)

        title(f"GET /api/pipeline/{execution_id}")
        execution = httpx2.get(f"{http}/api/pipeline/{execution_id}", trust_env=False).json()
        check_status(execution, files)

        title("The library")
        check_library(card, Path(execution["execution_data"]["job_folder"]))
        expect(snapshot(card) == before, "the card was written to")
        for report in execution["execution_data"]["reports"]:
            print(f"  {report}")
        print(f"\n  {execution['execution_data']['verdict']['words']}.")
        print("  The card is as it was before.")

        process.send_signal(signal.SIGTERM)
        expect(process.wait(30) == 0, f"the server ended with {process.returncode}")
    title(f"All {files} files are in the library, byte for byte. The server has stopped.")


@contextlib.contextmanager
def server(place: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A ``rushes serve`` on free ports, and its HTTP address."""
    (place / "library").mkdir()
    settings = {
        "RUSHES_PORT": "0",
        "RUSHES_GRPC_PORT": "0",
        "RUSHES_DATABASE_URL": f"sqlite:///{place}/rushes.db",
        "RUSHES_LIBRARY": f"{place}/library",
        "RUSHES_CARD_ROOTS": f"{place}/cards",
    }
    process = subprocess.Popen(
        [RUSHES, "serve"], env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        http = ""
        for line in process.stdout:
            print(f"  {line.rstrip()}")
            if "http://" in line:
                http = line.split()[-1]
            if "gRPC" in line:
                break
        expect(bool(http), "the server did not start")
        yield process, http
    finally:
        process.kill()
        process.wait()


def receive(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of that kind; the pipeline's events, which everybody gets, pass by."""
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=DEADLINE_S))
        if message["type"] == kind:
            return message
        expect(message["type"].startswith("pipeline:"), f"not {kind} but {message}")


def until_the_end(frontend: ClientConnection, execution_id: str) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        event = json.loads(frontend.recv(timeout=max(0.0, deadline - time.monotonic())))
        expect(event["data"]["execution_id"] == execution_id, f"whose is this? {event}")
        data = {k: v for k, v in event["data"].items() if k not in ("execution_id", "message_id")}
        if event["type"] == "card:verdict":  # the rest is in the execution's data below
            data = {name: data[name] for name in ("safe_to_format", "words")}
        print(f"  < {event.get('id', '-'):>3}  {event['type']:<24} {json.dumps(data)}")
        yield event
        if event["type"] in ("pipeline:completed", "pipeline:failed"):
            return


def check_events(events: list[dict[str, Any]]) -> None:
    kinds = [event["type"] for event in events]
    expect(kinds[0] == "pipeline:started", f"the first event was {kinds[0]}")
    expect(kinds[-1] == "pipeline:completed", f"the last event was {kinds[-1]}")
    completed = [e["data"] for e in events if e["type"] == "pipeline:step_completed"]
    names = [data["step_name"] for data in completed]
    expect(
        names[:3] == ["scan_sd", "create_job", "copy_files"]
        and names == events[0]["data"]["steps"],
        f"these steps completed: {names}",
    )
    verdicts = [e["data"]["safe_to_format"] for e in events if e["type"] == "card:verdict"]
    expect(verdicts == [True], f"the verdicts were {verdicts}")
    rising = [data["progress"] for data in completed]
    expect(rising == sorted(rising) and rising[-1] == 100, f"progress went {rising}")
    ids = [event["id"] for event in events if "id" in event]
    expect(ids == sorted(set(ids)), f"the event ids went {ids}")


def check_status(execution: dict[str, Any], files: int) -> None:
    shown = {
        name: execution[name]
        for name in ("execution_id", "message_id", "status", "progress", "job_id")
    }
    shown["steps"] = {step["step_name"]: step["status"] for step in execution["steps"]}
    shown["execution_data"] = execution["execution_data"]
    print("  " + json.dumps(shown, indent=2).replace("\n", "\n  "))
    expect(execution["status"] == "completed", f"the status is {execution['status']}")
    expect(execution["progress"] == 100, f"the progress is {execution['progress']}")
    expect(execution["job_id"] is not None, "there is no job")
    expect(execution["message_id"] == "demo-card-1", "the message_id is another")
    copied = execution["execution_data"]["copied_files"]
    expect(copied == files, f"{copied} files were copied, and {files} were to be")


def check_library(card: Path, job: Path) -> None:
    originals = {p: d for p, d in snapshot(card).items() if Path(p).parts[0] not in JUNK}
    copies = {p: d for p, d in snapshot(job).items() if Path(p).parts[0] != "ascmhl"}
    expect(originals.keys() == copies.keys(), f"these differ: {originals.keys() ^ copies.keys()}")
    print(f"  {job}")
    for path, contents in copies.items():
        expect(contents == originals[path], f"{path} is not what is on the card")
        note = "identical"
        if path.endswith(".MP4"):
            frames = count_frames(job / path)
            expect(frames >= 2 * RATE, f"{path} has only {frames} frames")
            note += f", {frames} frames play"
        print(f"  {path:<32} {note}")


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """The digest and the time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Discrepancy(otherwise)


if __name__ == "__main__":
    sys.exit(main())
