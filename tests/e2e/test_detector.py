"""``rushes detect`` and ``rushes serve --watch``: real mounts, real processes, a real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.adapters.detector.mounting import Mounts, mounting
from tests.cards import files_below, gopro_card
from tests.e2e.server import DEADLINE_S, RUSHES, Server, eventually
from tests.e2e.test_bad_input import unprivileged
from tests.e2e.test_volumes import card as card_with_serial
from tests.e2e.test_volumes import named

INSERTED = "detector:sd_inserted"
REMOVED = "detector:sd_removed"


class Detector:
    """A ``rushes detect`` with a home of its own; it can be killed and started again."""

    def __init__(self, place: Path, root: Path) -> None:
        self.root = root
        self.log = place / "detector.log"
        self.log.touch()
        self.memory = place / "detector.db.detector"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RUSHES_")},
            "HOME": str(place),
            "RUSHES_DATABASE_URL": f"sqlite:///{place}/detector.db",
            "RUSHES_LIBRARY": str(place / "library"),
            "RUSHES_WATCH_ROOTS": str(root),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, server: str, *arguments: str, prefix: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, RUSHES, "detect", "--server", server, *arguments],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.process

    def once(self, server: str) -> int:
        return self.start(server, "--once").wait(3 * DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL: nothing of it has time for anything."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def says(self, *words: str, times: int = 1) -> None:
        """Wait until that many lines hold all the words."""

        def lines() -> list[str]:
            found = self.log.read_text().splitlines()
            return [line for line in found if all(word in line for word in words)]

        eventually(lines, lambda found: len(found) >= times)

    @property
    def kept(self) -> list[dict[str, Any]]:
        """What it keeps in mind."""
        found: list[dict[str, Any]] = json.loads(self.memory.read_bytes())["insertions"]
        return found


@pytest.fixture
def mounts(card: Path) -> Iterator[Mounts]:
    """Below the roots of the server of all tests, in a folder of the test's own."""
    card.mkdir()
    with mounting(card) as below:
        yield below


@pytest.fixture
def detector(tmp_path: Path, mounts: Mounts) -> Iterator[Detector]:
    detector = Detector(tmp_path, mounts.root)
    yield detector
    if detector.process is not None and detector.process.poll() is None:
        detector.kill()


@pytest.fixture
def port() -> str:
    """A port that a server can come back to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def announced(server: Server, mounts: Mounts) -> list[dict[str, Any]]:
    """The executions of what was put in here."""
    return [
        execution
        for execution in server.get("/api/pipeline", limit=200)["executions"]
        if Path(execution["execution_data"].get("sd_path", "")).is_relative_to(mounts.root)
    ]


def message_ids(server: Server, mounts: Mounts) -> list[str]:
    return sorted(execution["message_id"] for execution in announced(server, mounts))


# -- what a server is told, and refuses ---------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({}, "invalid_input", "sd_path"),
        ({"sd_path": 5}, "invalid_input", "sd_path"),
        ({"sd_path": ""}, "invalid_input", "sd_path"),
        ({"sd_path": "/" + 4_096 * "x"}, "invalid_input", "4096"),
        ({"sd_path": "/media/A", "message_id": 5}, "invalid_input", "message_id"),
        ({"sd_path": "/media/A", "message_id": "\x1b"}, "invalid_input", "can't be shown"),
    ],
)
def test_a_removal_that_makes_no_sense_is_refused_and_told_to_nobody(
    server: Server, fields: dict[str, Any], code: str, says: str
) -> None:
    with server.client("frontend") as frontend, server.client("detector") as detector:
        answer = detector.ask({"type": REMOVED, "data": fields})
        assert answer["type"] == "error"
        assert answer["data"]["code"] == code
        assert says in answer["data"]["message"]
        good = detector.ask({"type": REMOVED, "data": {"sd_path": "/media/good"}})
        assert good["type"] == "detector:accepted"
        told = frontend.until(lambda m: m["type"] == "card:removed")
        assert told["data"]["sd_path"] == "/media/good"


def test_only_detectors_say_that_a_card_is_gone(server: Server) -> None:
    with server.client("frontend") as frontend:
        answer = frontend.ask({"type": REMOVED, "sd_path": "/media/A", "message_id": "m"})
        assert answer["data"]["code"] == "forbidden"
        assert answer["data"]["message_id"] == "m"


def test_everybody_who_is_there_is_told_that_a_card_is_gone(server: Server) -> None:
    with server.client("frontend") as frontend, server.client("detector") as detector:
        said = {"type": REMOVED, "message_id": "gone", "sd_path": "/media/two\nlines"}
        answer = detector.ask(said)
        assert answer["data"] == {"message_id": "gone", "execution_id": None, "duplicate": None}
        told = frontend.until(lambda m: m["type"] == "card:removed")
        assert told["data"] == {"message_id": "gone", "sd_path": "/media/two\\x0alines"}
        assert "id" not in told, "nobody can resume from it"


@pytest.mark.parametrize(
    ("arguments", "setting", "says"),
    [
        (("detect", "--server", "localhost:8000"), {}, "--server"),
        (("detect",), {"RUSHES_PORT": "0"}, "which server"),
        (("serve",), {"RUSHES_WATCH": "maybe"}, "RUSHES_WATCH"),
        (("eject", "/etc"), {}, "no card is mounted"),
    ],
)
def test_wrong_use_is_told(
    tmp_path: Path, arguments: tuple[str, ...], setting: dict[str, str], says: str
) -> None:
    environment = {**Detector(tmp_path, tmp_path).environment, **setting}
    refused = subprocess.run(
        [RUSHES, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert says in refused.stderr


# -- cards ----------------------------------------------------------------------------------


def test_a_card_that_is_put_in_is_copied_and_its_removal_told(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    detector.start(server.http)
    with server.client("frontend") as frontend:
        footage = gopro_card(mounts.put("GOPRO-A"))
        started = frontend.until(lambda m: m["type"] == "pipeline:started")
        completed = server.ended(started["data"]["execution_id"])
        assert completed["status"] == "completed", completed["error_message"]
        assert files_below(Path(completed["execution_data"]["job_folder"])) == footage
        volume = completed["execution_data"]["volume"]
        assert volume["label"] == "GOPRO-A"
        assert volume["fs_type"] == "tmpfs"
        assert 0 < volume["free_bytes"] < volume["size_bytes"] == 16 * 1024 * 1024
        detector.says("GOPRO-A: accepted", completed["execution_id"])
        detector.says("GOPRO-A: completed")
        mounts.take("GOPRO-A")
        removed = frontend.until(lambda m: m["type"] == "card:removed")
        message_id, sd_path = completed["message_id"], str(mounts.root / "GOPRO-A")
        assert removed["data"] == {"message_id": message_id, "sd_path": sd_path}
    eventually(lambda: detector.kept, lambda kept: kept == [])
    assert detector.stop() == 0
    assert "Traceback" not in detector.log.read_text()


def test_what_a_server_missed_it_is_told_once_whatever_was_killed_meanwhile(
    start_server: Callable[..., Server], detector: Detector, mounts: Mounts, port: str
) -> None:
    detector.start(f"http://127.0.0.1:{port}")
    detector.says("no connection")
    gopro_card(mounts.put("A"))
    detector.says("A: a card")
    (kept,) = detector.kept
    detector.kill()
    detector.start(f"http://127.0.0.1:{port}")
    detector.says("no connection", times=2)

    server = start_server(RUSHES_PORT=port, RUSHES_CARD_ROOTS=str(mounts.root))
    eventually(lambda: detector.kept[0]["state"], lambda state: state == "accepted")
    assert message_ids(server, mounts) == [kept["data"]["message_id"]]
    detector.says("A: completed")
    server.kill()
    detector.kill()

    server.start()
    detector.start(server.http)
    detector.says("connected", times=2)
    gopro_card(mounts.put("B"))
    detector.says("B: accepted")
    assert len(message_ids(server, mounts)) == 2
    assert kept["data"]["message_id"] in message_ids(server, mounts)


def test_a_detector_that_comes_back_notices_what_happened_while_it_was_away(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    detector.start(server.http)
    for name in ("stays", "goes", "changes"):
        gopro_card(mounts.put(name))
    detector.says("completed", times=3)  # at the same path it would be taken for its card
    before = message_ids(server, mounts)
    detector.kill()
    mounts.take("goes")
    mounts.take("changes")
    gopro_card(mounts.put("changes"), clips=1)  # at the same place, maybe as the same device
    detector.start(server.http)
    detector.says("goes: removed")
    detector.says("changes: removed")
    detector.says("changes: accepted", times=2)
    after = message_ids(server, mounts)
    assert len(after) == 4
    assert set(before) < set(after)


def test_a_detector_that_is_killed_at_any_point_announces_each_card_and_hears_its_end(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    points = ["mounted", "a card", "accepted"]
    for number, point in enumerate(points):
        gopro_card(mounts.put(f"card-{number}"))
        detector.start(server.http)
        detector.says(f"card-{number}: {point}")
        detector.kill()
    detector.start(server.http)
    detector.says("connected", times=2)
    eventually(lambda: [each["state"] for each in detector.kept], lambda s: s == ["ended"] * 3)
    places = {each["execution_data"]["sd_path"] for each in announced(server, mounts)}
    assert places == {str(mounts.path(f"card-{number}")) for number in range(3)}
    before = message_ids(server, mounts)
    detector.kill()
    detector.start(server.http)
    detector.says("connected", times=3)
    gopro_card(mounts.put("last"))
    detector.says("last: completed")
    assert len(message_ids(server, mounts)) == len(before) + 1


def copied(execution: dict[str, Any]) -> dict[str, bytes]:
    return files_below(Path(execution["execution_data"]["job_folder"]))


def test_a_card_that_is_back_before_its_execution_has_ended_gets_another_one(
    start_server: Callable[..., Server], detector: Detector, mounts: Mounts
) -> None:
    server = start_server(RUSHES_CARD_ROOTS=str(mounts.root))
    server.request("POST", "/api/engine/pause")
    detector.start(server.http)
    gopro_card(mounts.put("A"), clips=1)
    detector.says("A: accepted")
    (first,) = announced(server, mounts)
    mounts.take("A")
    detector.says("A: removed")
    footage = gopro_card(mounts.put("A"), clips=2)
    detector.says("A: accepted", "at work on this card already")
    server.request("POST", f"/api/pipeline/{first['execution_id']}/cancel")
    detector.says("A: announced again")
    server.request("POST", "/api/engine/resume")
    detector.says("A: completed")
    (second,) = [e for e in announced(server, mounts) if e["id"] != first["id"]]
    assert copied(second) == footage
    mounts.take("A")
    eventually(lambda: detector.kept, lambda kept: kept == [])


def test_a_card_that_was_away_with_its_detector_is_copied_when_both_are_back(
    start_server: Callable[..., Server], detector: Detector, mounts: Mounts, tmp_path: Path
) -> None:
    """As after a power cut: the server is up before the card is mounted, the detector after."""
    server = start_server(RUSHES_CARD_ROOTS=str(mounts.root))
    server.request("POST", "/api/engine/pause")
    folder = mounts.path("A")
    with card_with_serial(tmp_path / "disk", folder, str(uuid4()), is_named=False) as mount:
        with named(mount):
            footage = gopro_card(folder)
            detector.start(server.http)
            detector.says("A: accepted")
            eventually(lambda: detector.kept[0]["state"], lambda state: state == "accepted")
            detector.kill()
            mount.take_out()
        server.request("POST", "/api/engine/resume")
        (first,) = announced(server, mounts)
        assert server.ended(first["execution_id"])["status"] == "failed"
        mount.put_in(folder)
        with named(mount):
            detector.start(server.http)
            detector.says("A: the card that was there before")
            detector.says("A: completed")
        (second,) = [e for e in announced(server, mounts) if e["id"] != first["id"]]
        assert copied(second) == footage
        detector.kill()


def test_a_service_that_is_restarted_knows_its_cards_in_its_next_namespace(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    """Where, as under systemd, all mounts are others than in the last one."""
    namespace = ("unshare", "--mount", "--propagation", "slave")
    gopro_card(mounts.put("stays"))
    gopro_card(mounts.put("grows"))
    detector.start(server.http, prefix=namespace)
    detector.says("completed", times=2)
    before = detector.kept
    detector.kill()
    gopro_card(mounts.path("grows"), clips=3)
    detector.start(server.http, prefix=namespace)
    detector.says("stays: the card that was there before")
    detector.says("grows: accepted", times=2)
    after = detector.kept
    assert {each["key"] for each in before}.isdisjoint(each["key"] for each in after)
    assert len(message_ids(server, mounts)) == 3


def test_a_card_that_goes_before_it_is_quiet_is_nobody_s_business(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    detector.start(server.http)
    mounts.put("too-short")  # empty, so it is given time
    detector.says("too-short: mounted")
    mounts.take("too-short")
    detector.says("too-short: gone before it was announced")
    gopro_card(mounts.put("A"))
    detector.says("A: accepted")
    assert len(announced(server, mounts)) == 1


def test_a_card_that_comes_back_is_announced_again(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    detector.start(server.http)
    for number in (1, 2, 3):
        gopro_card(mounts.put("A"), clips=number)
        detector.says("A: completed", times=number)
        mounts.take("A")
        detector.says("A: removed", times=number)
    assert len(set(message_ids(server, mounts))) == 3


def test_twenty_cards_at_once(server: Server, detector: Detector, mounts: Mounts) -> None:
    detector.start(server.http)
    detector.says("connected")
    for number in range(20):
        gopro_card(mounts.put(f"card-{number}"), clips=1, clip_bytes=1_000)
    detector.says("accepted", times=20)
    detector.says("completed", times=20)
    assert len(set(message_ids(server, mounts))) == 20
    mounts.take_all()
    detector.says("removed", times=20)
    eventually(lambda: detector.kept, lambda kept: kept == [])


def test_names_that_make_trouble_make_none(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    detector.start(server.http)
    names = [b"two\nlines", b"n" * 255, b"\x1b[31mred", b"a - vfat none", "ümläut ✓".encode()]
    for name in names:
        gopro_card(mounts.put(name), clips=1)
    (mounts.put(b"caf\xe9") / "DCIM").mkdir()
    detector.says("caf\\xe9", "NOT announced", "UTF-8")
    detector.says("accepted", times=len(names))
    detector.says("completed", times=len(names))
    places = {each["execution_data"]["sd_path"] for each in announced(server, mounts)}
    assert places == {str(mounts.path(name)) for name in names}
    assert "\x1b" not in detector.log.read_text()


def test_a_card_is_announced_once_it_can_be_read(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    locked = mounts.put("locked")
    gopro_card(locked)
    locked.chmod(0)
    detector.start(server.http, prefix=unprivileged())
    detector.says("locked: mounted")
    gopro_card(mounts.put("open"))
    detector.says("open: accepted")
    assert len(announced(server, mounts)) == 1
    locked.chmod(0o755)
    detector.says("locked: accepted")


def test_a_card_outside_the_server_s_roots_is_refused_loudly_and_once(
    start_server: Callable[..., Server], detector: Detector, mounts: Mounts, tmp_path: Path
) -> None:
    server = start_server(tmp_path / "server")
    gopro_card(mounts.put("A"))
    assert detector.once(server.http) == 1
    log = detector.log.read_text()
    assert log.count("REFUSED") == 1
    assert "RUSHES_CARD_ROOTS" in log
    assert len(announced(server, mounts)) == 0


def test_once_announces_what_is_there_and_ends(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    assert detector.once(server.http) == 0
    gopro_card(mounts.put("A"))
    gopro_card(mounts.put("B"))
    assert detector.once(server.http) == 0
    told = message_ids(server, mounts)
    assert len(told) == 2
    assert detector.once(server.http) == 0
    assert message_ids(server, mounts) == told


def test_a_server_can_watch_for_cards_itself(
    start_server: Callable[..., Server], detector: Detector, mounts: Mounts, tmp_path: Path
) -> None:
    server = start_server(
        RUSHES_WATCH="yes",
        RUSHES_WATCH_ROOTS=str(mounts.root),
        RUSHES_CARD_ROOTS=str(mounts.root),
    )
    with server.client("frontend") as frontend:
        footage = gopro_card(mounts.put("A"))
        started = frontend.until(lambda m: m["type"] == "pipeline:started")
        completed = server.ended(started["data"]["execution_id"])
        assert files_below(Path(completed["execution_data"]["job_folder"])) == footage
        detector.environment["RUSHES_DATABASE_URL"] = server.environment["RUSHES_DATABASE_URL"]
        assert detector.start(server.http).wait(DEADLINE_S) == 1
        detector.says("another detector")
        memory = server.place / "rushes.db.detector"
        eventually(memory.read_text, lambda kept: '"state":"ended"' in kept)
        server.kill()
    server.start()
    with server.client("frontend") as frontend:
        mounts.take("A")
        removed = frontend.until(lambda m: m["type"] == "card:removed")
        assert removed["data"]["message_id"] == completed["message_id"]
    assert len(announced(server, mounts)) == 1
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_a_server_doesn_t_begin_to_watch_beside_another_detector(
    detector: Detector,
) -> None:
    detector.start("http://127.0.0.1:1")
    detector.says("no connection")
    refused = subprocess.run(
        [RUSHES, "serve", "--watch", "--port", "0", "--grpc-port", "0"],
        env=detector.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "another detector" in refused.stderr
    assert refused.stdout == "", "it was ready to serve"


# -- taking a card out -----------------------------------------------------------------------


def test_a_card_is_ejected_unless_somebody_uses_it(detector: Detector, mounts: Mounts) -> None:
    def eject() -> subprocess.CompletedProcess[str]:
        command = [RUSHES, "eject", str(card)]
        return subprocess.run(
            command, env=detector.environment, capture_output=True, text=True, check=False
        )

    card = mounts.put("A")
    with (card / "A.MP4").open("wb"):
        busy = eject()
        assert busy.returncode == 1
        assert "busy" in busy.stderr
        assert os.path.ismount(card)
    done = eject()
    assert done.returncode == 0, done.stderr
    assert str(card) in done.stdout
    assert not os.path.ismount(card)


def test_the_detector_runs_without_the_rest_of_rushes(
    server: Server, detector: Detector, mounts: Mounts
) -> None:
    gopro_card(mounts.put("A"))
    done = subprocess.run(
        [sys.executable, "-m", "adapters.detector", "--server", server.http, "--once"],
        env=detector.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "A: accepted" in done.stdout
    assert len(announced(server, mounts)) == 1
