"""``rushes`` as people and scripts use it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from adapters.persistence.lock import DatabaseLock
from tests.cards import contents, files_below, gopro_card, job_folders, put
from tests.e2e.server import DEADLINE_S, ROOT, RUSHES, Server, eventually


class CommandLine:
    """``rushes`` with a home, a database and a library of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.library = place / "library"
        self.library.mkdir(exist_ok=True)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RUSHES_")},
            "HOME": str(place),
            "RUSHES_DATABASE_URL": f"sqlite:///{place}/rushes.db",
            "RUSHES_LIBRARY": str(self.library),
        }

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RUSHES, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_S,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [RUSHES, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def test_ingest_needs_no_server_and_shows_plain_lines(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    footage = gopro_card(tmp_path / "CARD")
    first = rushes("ingest", str(tmp_path / "CARD"))
    assert first.returncode == 0, first.stderr
    assert "scan_sd completed" in first.stdout
    assert f"{len(footage)} files" in first.stdout
    assert "copied and verified" in first.stdout
    (job,) = job_folders(rushes.library)
    assert str(job) in first.stdout
    assert files_below(job) == footage
    assert "\x1b" not in first.stdout

    put(tmp_path / "CARD/DCIM/100GOPRO/GX010077.MP4", contents("new", 5_000))
    second = rushes("ingest", str(tmp_path / "CARD"))
    assert second.returncode == 0
    assert "1 file (5.0 kB) copied and verified" in second.stdout
    assert f"{len(footage)} files were in the library already" in second.stdout

    listed = rushes("list")
    assert listed.returncode == 0
    assert listed.stdout.count("completed") == 2
    status = rushes("status", "1")
    assert status.returncode == 0
    assert re.search(r"copy_files +completed", status.stdout)


def test_ingest_as_json_lines(tmp_path: Path) -> None:
    gopro_card(tmp_path / "CARD")
    answer = CommandLine(tmp_path)("ingest", str(tmp_path / "CARD"), "--json")
    assert answer.returncode == 0
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert lines[0]["type"] == "pipeline:started"
    assert lines[-2]["type"] == "pipeline:completed"
    assert lines[-1]["type"] == "execution"
    assert lines[-1]["data"]["status"] == "completed"


def test_ingest_shows_bars_on_a_terminal(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    card = tmp_path / "CARD"
    gopro_card(card)
    put(card / "DCIM" / "\x1b[31mred\nname.MP4", b"x" * 1000)
    screen, slave = pty.openpty()
    process = subprocess.Popen(
        [RUSHES, "ingest", str(card)],
        env={**rushes.environment, "TERM": "xterm", "COLUMNS": "100"},
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if select.select([screen], [], [], 0.1)[0]:
            try:
                shown += os.read(screen, 65_536)
            except OSError:
                break
    os.close(screen)
    assert process.wait(DEADLINE_S) == 0
    text = shown.decode()
    assert "copy_files" in text
    assert "100%" in text
    assert "━" in text, "no bar was drawn"
    assert "completed" in text
    assert "red\nname" not in text


def test_ingest_of_what_is_no_card_is_wrong_use(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    (tmp_path / "file").touch()
    for path, why in (("nothing", "is not there"), ("file", "is no folder")):
        answer = rushes("ingest", str(tmp_path / path))
        assert answer.returncode == 2
        assert why in answer.stderr
    assert rushes("ingest").returncode == 2
    assert rushes("no-such-command").returncode == 2
    assert rushes("status", "no-such-execution").returncode == 2
    assert (
        "there is no pipeline of type"
        in rushes("ingest", str(tmp_path), "--pipeline", "nope").stderr
    )


def test_a_failed_ingest_exits_with_1_and_can_be_retried(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    footage = gopro_card(tmp_path / "CARD")
    rushes.library.rmdir()
    rushes.library.write_text("in the way")
    failed = rushes("ingest", str(tmp_path / "CARD"))
    assert failed.returncode == 1
    assert "FAILED: step copy_files failed (attempt 1)" in failed.stdout
    (again,) = re.findall(r"rushes retry (\S+)", failed.stdout)
    assert rushes("status", again).returncode == 1

    rushes.library.unlink()
    rushes.library.mkdir()
    # The card lies under no card root; that it was named once is enough.
    retried = rushes("retry", again)
    assert retried.returncode == 0, retried.stdout + retried.stderr
    (job,) = job_folders(rushes.library)
    assert files_below(job) == footage
    twice = rushes("retry", again)
    assert twice.returncode == 2
    assert "can't retry while it is completed" in twice.stderr


def test_an_interrupted_ingest_exits_with_130_and_goes_on_at_the_next_start(
    tmp_path: Path,
) -> None:
    rushes = CommandLine(tmp_path)
    footage = gopro_card(tmp_path / "CARD", clips=2, clip_bytes=150_000_000)
    process = rushes.start("ingest", str(tmp_path / "CARD"))
    eventually(lambda: list(rushes.library.rglob("*.part")), bool)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "goes on at the next start" in errors
    assert "Traceback" not in errors

    looked = rushes("status", "1")
    assert "running" in looked.stdout, "looking must not start work, nor lose it"
    watched = rushes("watch", "1")
    assert watched.returncode == 0, watched.stdout + watched.stderr
    (job,) = job_folders(rushes.library)
    assert files_below(job) == footage
    assert list(rushes.library.rglob("*.part")) == []  # it was gone on with


def test_a_command_joins_the_server_that_holds_the_database(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    rushes = CommandLine(server.place)
    card = server.cards / "CARD"
    footage = gopro_card(card)
    answer = rushes("ingest", str(card))
    assert answer.returncode == 0, answer.stderr
    assert server.count() == 1
    (job,) = job_folders(server.library)
    assert files_below(job) == footage
    assert "diamond" in rushes("pipelines").stdout

    elsewhere = server.place / "elsewhere"
    gopro_card(elsewhere)
    refused = rushes("ingest", str(elsewhere))
    assert refused.returncode == 2
    assert "RUSHES_CARD_ROOTS" in refused.stderr
    other_library = rushes("ingest", str(card), "--library", str(server.place))
    assert other_library.returncode == 2
    assert server.http in other_library.stderr


def test_two_ingests_at_once_share_one_server_and_both_end_well(tmp_path: Path) -> None:
    """The second joins the first one's server, and outlives it."""
    rushes = CommandLine(tmp_path)
    # Each lies in a place of its own, and both were named by their user.
    small = gopro_card(tmp_path / "one" / "SMALL", clips=1)
    large = gopro_card(tmp_path / "two" / "LARGE", clips=3, clip_bytes=120_000_000)
    first = rushes.start("ingest", str(tmp_path / "one" / "SMALL"))
    second = rushes.start("ingest", str(tmp_path / "two" / "LARGE"))
    for process in (first, second):
        output, errors = process.communicate(timeout=2 * DEADLINE_S)
        assert process.returncode == 0, output + errors
    arrived = {job.name.split("_")[1]: files_below(job) for job in job_folders(rushes.library)}
    assert arrived == {"SMALL": small, "LARGE": large}


def test_watch_shows_all_executions(start_server: Callable[..., Server]) -> None:
    server = start_server()
    rushes = CommandLine(server.place)
    watching = rushes.start("watch", "--json", "--since", "0")
    execution_id = server.trigger("diamond", text="a b")
    assert watching.stdout is not None
    for line in watching.stdout:
        event = json.loads(line)
        assert event["data"]["execution_id"] == execution_id
        if event["type"] == "pipeline:completed":
            break
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=DEADLINE_S)
    assert watching.returncode == 130


def test_who_watches_a_server_never_takes_its_place(start_server: Callable[..., Server]) -> None:
    server = start_server()
    rushes = CommandLine(server.place)
    watching = rushes.start("watch", "--json", "--since", "0")
    assert watching.stdout is not None

    def seen(execution_id: str) -> bool:
        return any(execution_id in line for line in watching.stdout or ())

    assert seen(server.trigger("diamond", text="a b"))
    assert server.stop() == 0
    lock = DatabaseLock(server.place / "rushes.db")
    missed = time.monotonic() + 1.5  # it asks after 0.1, 0.2, 0.5 and 1 s
    while time.monotonic() < missed:
        assert lock.holder() is None
        time.sleep(0.01)
    server.start()
    assert seen(server.trigger("diamond", text="c d"))
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=DEADLINE_S)
    assert watching.returncode == 130


def test_a_server_that_a_command_keeps_out_says_so(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    watching = rushes.start("watch")
    lock = DatabaseLock(tmp_path / "rushes.db")
    eventually(lock.holder, lambda holder: holder is not None and bool(holder.address))
    refused = rushes("serve")
    assert refused.returncode == 1
    assert f"pid {watching.pid}" in refused.stderr
    assert "end that command" in refused.stderr
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=DEADLINE_S)


def test_settings_have_an_order_and_errors_name_their_source(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    config = tmp_path / "my.toml"
    for text, says in (
        ("colour = 1", "'colour', which is no setting"),
        ("port = 'x'", "port in the settings file"),
        ("port = ", "can't be read"),
    ):
        config.write_text(text)
        answer = rushes("--config", str(config), "list")
        assert answer.returncode == 2
        assert says in answer.stderr
    config.write_text('port = 7\ncard_roots = ["/a", "/b"]\nlibrary = "/from/file"\n')
    rushes.environment["RUSHES_PORT"] = "notaport"
    assert "RUSHES_PORT" in rushes("--config", str(config), "list").stderr
    assert "--port" in rushes("--config", str(config), "serve", "--port", "-1").stderr
    assert rushes("--config", str(tmp_path / "none.toml"), "list").returncode == 2
    # A file in the current folder is never read: that folder may be a card.
    del rushes.environment["RUSHES_PORT"]
    (tmp_path / "rushes.toml").write_text("nonsense")
    answer = subprocess.run(
        [RUSHES, "list"],
        env=rushes.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "No executions.\n"


def test_every_command_has_a_help_text(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    for command in ("ingest", "serve", "list", "status", "watch", "retry", "pipelines"):
        answer = rushes(command, "--help")
        assert answer.returncode == 0
        assert len(answer.stdout.splitlines()) > 4
    assert rushes("--version").returncode == 0


def test_an_interrupted_command_ends_though_a_handler_doesn_t(
    tmp_path: Path,
) -> None:
    rushes = CommandLine(tmp_path)
    rushes.environment |= {
        "PYTHONPATH": str(ROOT),
        "RUSHES_PIPELINES": "tests.e2e.pipelines:stubborn_card",
        "RUSHES_STOP_GRACE_S": "0.5",
    }
    (tmp_path / "CARD").mkdir()
    process = rushes.start("ingest", str(tmp_path / "CARD"), "--pipeline", "stubborn_card")
    assert process.stdout is not None
    assert any("deaf_thread started" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "goes on at the next start" in errors
    assert "Traceback" not in errors


def test_names_from_outside_move_no_cursor(start_server: Callable[..., Server]) -> None:
    server = start_server()
    rushes = CommandLine(server.place)
    odd = server.cards / "esc\x1b]0;pwned\x07\nline\u202e"
    execution_id = server.announce(odd, "odd name")["data"]["execution_id"]
    server.ended(execution_id)
    for command in (("list",), ("status", "1"), ("watch", "1", "--since", "0")):
        shown = rushes(*command).stdout
        assert "pwned" in shown
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert len(rushes("list").stdout.splitlines()) == 2


def test_a_card_whose_own_path_is_no_text_is_refused_with_a_sentence(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    card = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(card)
    answer = rushes("ingest", os.fsdecode(card))
    assert answer.returncode == 2
    assert "valid UTF-8" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_reader_that_has_had_enough_is_no_failure(tmp_path: Path) -> None:
    rushes = CommandLine(tmp_path)
    footage = gopro_card(tmp_path / "CARD")
    piped = subprocess.run(
        f"set -o pipefail; {RUSHES} ingest {tmp_path}/CARD | head -1",
        shell=True,
        executable="/bin/bash",
        env=rushes.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert piped.returncode == 0, piped.stderr
    assert len(piped.stdout.splitlines()) == 1
    (job,) = job_folders(rushes.library)
    assert files_below(job) == footage


def test_watching_what_has_ended_ends(start_server: Callable[..., Server]) -> None:
    server = start_server()
    rushes = CommandLine(server.place)
    execution_id = server.trigger("diamond", text="a b")
    server.ended(execution_id)
    last = server.get(f"/api/pipeline/{execution_id}/events")["events"][-1]["id"]
    for since in (0, last - 1, last):
        assert rushes("watch", execution_id, "--since", str(since)).returncode == 0
