"""How progress is shown: bars on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

Event = Mapping[str, Any]

MAX_NAMED = 5
"""Files of the card that have a line each; the report has them all."""

PLAIN_EVERY = 10
"""Plain lines tell of a step's progress at every so many percent."""


class Display(Protocol):
    """Shows an execution's events while it is open, and what became of it at the end."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def event(self, event: Event) -> None: ...

    def result(self, execution: Mapping[str, Any]) -> None: ...


class _Open:
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *of_the_block: object) -> None:
        return


class JsonLines(_Open):
    """Each event as it came, a line each, and the execution as the last line."""

    def event(self, event: Event) -> None:
        click.echo(json.dumps(event))

    def result(self, execution: Mapping[str, Any]) -> None:
        click.echo(json.dumps({"type": "execution", "data": execution}))


class Lines(_Open):
    """A line for what happens, and one now and then for what goes on."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], float] = {}

    def event(self, event: Event) -> None:
        data = event["data"]
        if event["type"] == "pipeline:step_progress":
            key = (data["step_key"], data["attempt"])
            if data["progress"] < self._told.get(key, 0) + PLAIN_EVERY:
                return
            self._told[key] = data["progress"]
        line = describe(event)
        if line:
            say(f"{clock(event)}  {line}")

    def result(self, execution: Mapping[str, Any]) -> None:
        for line in summary(execution):
            say(line)


class Bars:
    """A bar for each step that runs, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.fields[step]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *of_the_block: object) -> None:
        self._progress.stop()

    def event(self, event: Event) -> None:
        kind, data = event["type"], event["data"]
        key = data.get("step_key")
        match kind:
            case "pipeline:started":
                for step in data["steps"]:
                    self._bar(step)
            case "pipeline:step_started":
                again = f"attempt {data['attempt']}" if data["attempt"] > 1 else ""
                self._progress.update(self._bar(key), completed=0, detail=Text(again))
            case "pipeline:step_progress":
                self._progress.update(
                    self._bar(key),
                    completed=data["progress"],
                    detail=plain(detail(data["detail"])),
                )
            case "pipeline:step_completed":
                self._progress.update(self._bar(key), completed=100, detail=Text("done", "green"))
            case "pipeline:step_failed":
                self._progress.update(self._bar(key), detail=Text("failed", "red"))
            case "pipeline:step_retrying":
                self._progress.update(self._bar(key), detail=Text("to be tried again", "yellow"))
            case "pipeline:step_skipped":
                self._progress.update(self._bar(key), detail=Text("skipped", "yellow"))
            case "card:scanned":
                self._progress.console.print(plain(describe(event)), soft_wrap=True)
            case "pipeline:retried":
                for step in data["reopened"]:
                    self._progress.update(self._bar(step), completed=0, detail=Text(""))

    def result(self, execution: Mapping[str, Any]) -> None:
        style = {"completed": "green", "failed": "red"}.get(execution["status"], "yellow")
        first, *more = summary(execution)
        self._console.print(plain(first, style), soft_wrap=True)
        for line in more:
            self._console.print(plain(line), soft_wrap=True)

    def _bar(self, key: str) -> TaskID:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(
                "", total=100, step=plain(key), detail=Text("waiting", "dim")
            )
        return self._tasks[key]


def display(*, as_json: bool) -> Display:
    """The one that fits where the output goes."""
    if as_json:
        return JsonLines()
    console = Console(highlight=False)
    return Bars(console) if console.is_terminal else Lines()


def say(text: str) -> None:
    """A line on standard output, whatever names are in it."""
    click.echo(printable(text))


def fall_silent() -> None:
    """Whoever read our output has had enough of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(*titles: str) -> Table:
    """To be shown by ``print_table``."""
    made = Table(box=None, pad_edge=False)
    for title in titles:
        made.add_column(title, overflow="fold")
    return made


def print_table(table: Table) -> None:
    """Whole on a terminal's width; never cut where nobody is there to see a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def plain(text: object, style: str = "") -> Text:
    """For a table or a bar: no markup, and nothing that moves a cursor."""
    return Text(printable(str(text)), style)


def printable(text: str) -> str:
    """Control and direction characters as escapes: names come from cards and detectors."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def clock(event: Event) -> str:
    """The time of day of an event, in UTC, to the second."""
    return str(event["timestamp"])[11:19]


def describe(event: Event) -> str:
    """An event as a line of text; empty for what says nothing to a person."""
    data = event["data"]
    step = data.get("step_key", "")
    match event["type"]:
        case "pipeline:started":
            return f"{data['pipeline_type']} started: {', '.join(data['steps'])}"
        case "pipeline:step_started":
            again = f" (attempt {data['attempt']})" if data["attempt"] > 1 else ""
            return f"{step} started{again}"
        case "pipeline:step_progress":
            return f"{step} {int(data['progress'])}%  {detail(data['detail'])}".rstrip()
        case "pipeline:step_completed":
            return f"{step} completed, {data['progress']}% of all"
        case "pipeline:step_failed":
            return f"{step} failed: {data['error']}"
        case "pipeline:step_skipped":
            return f"{step} skipped: {data['error']}"
        case "pipeline:step_retrying":
            return f"{step} failed: {data['error']}; again at {data['next_attempt_at'][11:19]}"
        case "card:scanned":
            return _scanned(data)
        case "card:verdict":
            return str(data["words"])
        case "pipeline:completed":
            return "completed"
        case "pipeline:cancelled":
            return "cancelled"
        case "pipeline:failed":
            return f"failed at {data['error']['step_key']}"
        case "pipeline:retried":
            return f"retried: {', '.join(data['reopened'])}"
        case other:
            return str(other)


def detail(said: Mapping[str, Any]) -> str:
    """What a step says beside its fraction, where we know the words."""
    parts = []
    if "files_total" in said:
        parts.append(f"{said.get('files_done', 0)} of {said['files_total']} files")
    if "bytes_total" in said:
        parts.append(f"{size(said.get('bytes_done', 0))} of {size(said['bytes_total'])}")
    if "bytes_per_s" in said:
        parts.append(f"{size(said['bytes_per_s'])}/s")
    if "seconds_left" in said:
        parts.append(f"{_duration(said['seconds_left'])} left")
    if "file" in said:
        parts.append(str(said["file"]))
    return ", ".join(parts)


def size(size_bytes: object) -> str:
    """Bytes as people read them, in powers of 1000 as on a card's label."""
    if not isinstance(size_bytes, int | float):
        return str(size_bytes)  # some pipeline's own idea of a number
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return str(seconds)
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _scanned(data: Mapping[str, Any]) -> str:
    """``A001: 214 files (61.2 GB) in 5 clips; 12 new (9.7 GB), 202 known``."""
    intake = data["intake"]
    clips = "1 clip" if data["clip_count"] == 1 else f"{data['clip_count']} clips"
    said = f"{data['label']}: {_files(data['file_count'])} ({size(data['total_bytes'])}) in {clips}"
    states = [
        f"{intake[key]['files']} {words}"
        + (f" ({size(intake[key]['bytes'])})" if key != "known" else "")
        for key, words in (("new", "new"), ("known", "known"), ("to_hash", "to be compared"))
        if intake[key]["files"]
    ]
    return "; ".join(filter(None, (said, ", ".join(states))))


def _exceptions(data: Mapping[str, Any]) -> list[str]:
    """What there is to know of the card's files, beside that they were copied."""
    found = data["exceptions"]
    named = [each for each in found["named"] if each["kind"] not in _LEFT_OUT][:MAX_NAMED]
    lines = [f"Remark: {each['path']}: {each['problem']}" for each in named]
    more = found.get("remarked", len(named)) - len(named)
    if more > 0:
        lines.append(f"and {more} more remarks: {_whole_report(data)}")
    return lines


def _whole_report(data: Mapping[str, Any]) -> str:
    return f"rushes report {data['job_id']}" if "job_id" in data else "see the report"


_LEFT_OUT = {
    "junk": ("file of an operating system", "files of operating systems"),
    "link": ("link, never followed", "links, never followed"),
    "special": ("that is no file", "that are no files"),
}
"""Kinds that are counted in a line of their own, and what one and several are called."""


def _files(count: object) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _verified(data: Mapping[str, Any]) -> list[str]:
    """What ``verify_folder`` found, the worst last: that is what is still on the screen."""
    lines = [f"Note: {note}" for note in data.get("notes", ())]
    if data["unlisted_files"]:
        named = data.get("unlisted", [])
        more = data["unlisted_files"] - len(named)
        lines.append(
            f"{_files(data['unlisted_files'])} in no manifest: {', '.join(named)}"
            + (f" and {more} more" if more else "")
        )
    lines.extend(f"Put aside: {path}" for path in data.get("put_aside", ()))
    lines.extend(f"Written: {path}" for path in data.get("written", ()))
    if "report" in data:
        lines.append(f"Report: {data['report']}")
    if data["repaired_files"]:
        lines.append(f"{_files(data['repaired_files'])} repaired")
    findings = data.get("findings", [])
    lines.extend(
        f"{found['finding'].upper()}: {found['path']}"
        + (f": {found['detail']}" if found["detail"] else "")
        for found in findings
    )
    if data["bad_files"] > len(findings):
        lines.append(f"and {data['bad_files'] - len(findings)} more")
    checked = f"{data['good_files']} of {_files(data['listed_files'])} are as the manifests say"
    if data["intact"]:
        return [*lines, f"INTACT: {checked} ({size(data['checked_bytes'])} read)"]
    return [*lines, f"NOT INTACT: {checked}"]


def _places(data: Mapping[str, Any]) -> str:
    """The job's folder at every destination that has one."""
    folders = [each["job_folder"] for each in data.get("copies", ())] or [data["job_folder"]]
    return " and ".join(str(folder) for folder in folders if folder is not None)


def summary(execution: Mapping[str, Any]) -> list[str]:
    """What became of an execution, in a few lines; the first says how it ended."""
    uuid, data = execution["execution_id"], execution["execution_data"]
    if execution["status"] == "failed":
        lines = [
            f"FAILED: {execution['error_message']}",
            f"When that is mended: rushes retry {uuid}",
        ]
        return lines + _unjudged(execution)
    if execution["status"] == "cancelled":
        stopped = [s["step_key"] for s in execution.get("steps", ()) if s["status"] == "cancelled"]
        again = [f"To go on where it stopped: rushes rerun {uuid} {key}" for key in stopped[:1]]
        return [f"cancelled ({execution['progress']}%)", *again, *_unjudged(execution)]
    if execution["status"] != "completed":
        return [f"{execution['status']} ({execution['progress']}%)"]
    lines = []
    if "copied_files" in data:
        lines.append(
            f"{_files(data['copied_files'])} ({size(data.get('copied_bytes', 0))}) "
            "copied and verified" + (f" to {_places(data)}" if data["copied_files"] else "")
        )
        if data.get("known_files"):
            were = "was" if data["known_files"] == 1 else "were"
            lines.append(f"{_files(data['known_files'])} {were} in the library already")
        if "library_note" in data:
            lines.append(f"Note: {data['library_note']}")
            lines.append("To bring all of the card once more: rushes ingest --again")
        lines.extend(
            f"Stored as {each['stored_as']} at {each['destination']}: {each['path']}"
            for each in data.get("renamed", {}).get("named", ())
        )
        lines.extend(f"Bad copy put aside: {path}" for path in data.get("bad_copies", ()))
        examples = data.get("excluded_named", {})
        for kind, count in (data.get("left_out") or {}).items():
            names = examples.get(kind, ())
            more = f" and {count - len(names)} more" if names and count > len(names) else ""
            said = f" ({', '.join(names)}{more})" if names else ""
            what = _LEFT_OUT.get(kind, (kind, kind))[count != 1]
            lines.append(f"Left on the card: {count} {what}{said}")
        if "exceptions" in data:
            lines.extend(_exceptions(data))
    if "intact" in data:
        lines.extend(_verified(data))
    lines.extend(f"Note: {data[each]}" for each in ("note", "card_note") if each in data)
    lines.extend(f"Warning: {warning}" for warning in execution["warnings"])
    if "verdict" in data and "safe_to_format" in data:
        lines.extend(_judged(data))
    return [f"completed: execution {uuid}", *lines]


def _unjudged(execution: Mapping[str, Any]) -> list[str]:
    """Of a card that didn't come to its verdict, since silence would be taken for one."""
    is_card = any(step["step_name"] == "verdict" for step in execution.get("steps", ()))
    return ["NOT safe to format: the card was not taken in to the end"] if is_card else []


def _judged(data: Mapping[str, Any]) -> list[str]:
    """The verdict on the card, last: that is what is still on the screen."""
    verdict = data["verdict"]
    lines = [f"Report: {path}" for path in data.get("reports", ())]
    lines.extend(f"Not safe: {reason}" for reason in verdict["reasons"])
    more = verdict["reason_count"] - len(verdict["reasons"])
    if more:
        lines.append(f"and {more} more: rushes report {data['job_id']}")
    return [*lines, verdict["words"]]
