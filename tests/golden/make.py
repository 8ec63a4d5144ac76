"""Make the golden set of this version: ``python -m tests.golden.make 0005``, by its schema.

A process brings executions into every shape that there is, and ends as in a power cut.
What is in its database then is kept as SQL text, schema and all, beside what has to
become of each execution. Only for a version that isn't released yet: what is released
stays as it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dependency_injector import providers

from adapters.persistence.database import SCHEMA
from adapters.settings import Settings
from adapters.testkit.world import AllCards, SequentialIds, VirtualClock
from application.catalogue import Catalogue
from application.views import ExecutionView
from bootstrap import Container, running
from tests.golden.pipelines import GONE, PIPELINES, making

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Scenario:
    """An execution: how it is made, how it stands in the end, and what becomes of it later.

    name: its message_id, or that of the one which was run again. stored: the status of
    each step when the process died. made_by and then: what people and time do to it,
    before that and afterwards. data: what has to be in the execution's data in the end.
    not_again: steps that may not run again.
    """

    name: str
    type: str
    trigger: Mapping[str, Any]
    stored: Mapping[str, str]
    status: str = "running"
    paused: bool = False
    made_by: tuple[str, ...] = ()
    then: tuple[Any, ...] = ()
    ends: str = "completed"
    error: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    not_again: tuple[str, ...] = ()


DONE, RUNS, WAITS, FAILED, SKIPPED = "completed", "running", "pending", "failed", "skipped"
HANGS = {"text": "take", "behave": "hangs"}
FAILS = {"text": "take", "behave": "fails"}
AT_SECOND = {"first": DONE, "second": RUNS, "third": WAITS}
CHAIN_DATA = {"first": "TAKE", "second": "TAKE!", "third": 5}

SCENARIOS = [
    Scenario(
        "family failed",
        "family",
        {"wanted": {"B": "fails"}},
        {
            "scan": DONE,
            "report": SKIPPED,
            "probe:A": DONE,
            "probe:B": FAILED,
            "probe:C": DONE,
        },
        status="failed",
        made_by=("advance",),
        then=("retry",),
        data={"report": ["A.mov", "B.mov", "C.mov"]},
        not_again=("scan", "probe:A", "probe:C"),
    ),
    Scenario(
        "running",
        "chain",
        HANGS,
        AT_SECOND,
        data=CHAIN_DATA,
        not_again=("first",),
    ),
    Scenario(
        "failed",
        "chain",
        FAILS,
        {"first": DONE, "second": FAILED, "third": SKIPPED},
        status="failed",
        then=("retry",),
        data=CHAIN_DATA,
        not_again=("first",),
    ),
    Scenario(
        "paused",
        "chain",
        HANGS,
        AT_SECOND,
        paused=True,
        made_by=("pause",),
        then=("resume",),
        data=CHAIN_DATA,
        not_again=("first",),
    ),
    Scenario(
        "waiting for a retry",
        "patient",
        {},
        {"fetch": WAITS},
        then=("advance",),
        data={"fetched_at_attempt": 2},
    ),
    Scenario(
        "family half done",
        "family",
        {"wanted": {"B": "hangs", "C": "fails"}},
        {"scan": DONE, "report": WAITS, "probe:A": DONE, "probe:B": RUNS, "probe:C": WAITS},
        then=("advance",),
        data={
            "report": ["A.mov", "B.mov", "C.mov"],
            "probe": {
                "A": {"clip": "A.mov", "from_frame": 0},
                "B": {"clip": "B.mov", "from_frame": 240},
                "C": {"clip": "C.mov", "from_frame": 0},
            },
        },
        not_again=("scan", "probe:A"),
    ),
    Scenario(
        "family being spawned",
        "family",
        {"scan": "hangs after B"},
        {"scan": RUNS, "report": WAITS, "probe:A": DONE, "probe:B": DONE},
        data={"report": ["A.mov", "B.mov", "C.mov"], "clips": 3},
        not_again=("probe:A", "probe:B"),
    ),
    Scenario(
        "cancelled",
        "chain",
        HANGS,
        {"first": DONE, "second": "cancelled", "third": "cancelled"},
        status="cancelled",
        made_by=("cancel",),
        ends="cancelled",
        data={"first": "TAKE"},
        not_again=("first", "second", "third"),
    ),
    Scenario(
        "completed",
        "chain",
        {"text": "take"},
        {"first": DONE, "second": DONE, "third": DONE},
        status="completed",
        data=CHAIN_DATA,
        not_again=("first", "second", "third"),
    ),
    Scenario(
        "running again from its second step",
        "chain",
        {"text": "take", "behave": "hangs when run again"},
        AT_SECOND,
        made_by=("rerun second",),
        data=CHAIN_DATA,
        not_again=("first",),
    ),
    Scenario(
        "family of two spawners, one at work",
        "two_cameras",
        {"camera_b": "hangs"},
        {
            "camera_a": DONE,
            "camera_b": RUNS,
            "reel": WAITS,
            "clip:A": DONE,
            "clip:B": DONE,
            "clip:C": DONE,
        },
        data={"reel": ["A.mov", "B.mov", "C.mov"], "cameras": 2},
        not_again=("camera_a", "clip:A", "clip:B", "clip:C"),
    ),
    Scenario(
        "a member of a family run again without its spawners",
        "two_cameras",
        {"clips": "hang when run again"},
        {
            "camera_a": DONE,
            "camera_b": DONE,
            "reel": WAITS,
            "clip:A": DONE,
            "clip:C": DONE,
            "clip:B": RUNS,
        },
        made_by=("rerun clip:B",),
        data={"reel": ["A.mov", "B.mov", "C.mov"]},
        not_again=("camera_a", "camera_b", "clip:A", "clip:C"),
    ),
    Scenario(
        "skipped by hand",
        "chain",
        FAILS,
        {"first": DONE, "second": SKIPPED, "third": DONE},
        status="completed",
        made_by=("skip",),
        data={"third": 0},
        not_again=("first", "second", "third"),
    ),
    Scenario(
        "with a warning",
        "optional",
        {},
        {"sheet": FAILED, "close": RUNS},
        data={"closed": True},
        not_again=("sheet",),
    ),
    Scenario(
        "waiting for somebody outside",
        "outside",
        {},
        {"approve": RUNS, "publish": WAITS},
        then=({"answer": "approve", "output": {"approved_by": "Thelma"}},),
        data={"published": "Thelma"},
    ),
    Scenario("in the only slot", "narrow", {}, {"squeeze": RUNS}, data={"squeezed": True}),
    Scenario("waiting for a slot", "narrow", {}, {"squeeze": WAITS}, data={"squeezed": True}),
    Scenario(
        "on a card",
        "on_card",
        {**HANGS, "sd_path": "/media/me/CARD"},
        AT_SECOND,
        data=CHAIN_DATA,
        not_again=("first",),
    ),
    Scenario(
        "its code is gone",
        "retired",
        {"text": "take"},
        {"first": DONE, "forgotten": RUNS},
        ends="failed",
        error="this server has no code for step 'forgotten' of pipeline 'retired'",
    ),
    Scenario(
        "a step's code is gone",
        "shrunk",
        {"text": "take"},
        {"first": DONE, "forgotten": RUNS, "rest": DONE},
        ends="failed",
        error="this server has no code for step 'forgotten' of pipeline 'shrunk'",
        not_again=("first", "rest"),
    ),
    # Whatever comes after this finds the engine held.
    Scenario(
        "to be run again once the engine goes on",
        "chain",
        {"text": "take"},
        {"first": DONE, "second": WAITS, "third": WAITS},
        status="pending",
        made_by=("hold", "rerun second"),
        data=CHAIN_DATA,
        not_again=("first",),
    ),
    Scenario(
        "triggered while the engine is held",
        "chain",
        {"text": "take"},
        {"first": WAITS, "second": WAITS, "third": WAITS},
        status="pending",
        data=CHAIN_DATA,
    ),
]


def container_on(place: Path, clock: VirtualClock, catalogue: Catalogue) -> Container:
    """The engine on ``place/rushes.db``, with these pipelines and this time."""
    flags = {
        "database_url": f"sqlite:///{place}/rushes.db",
        "library": str(place),
        "card_roots": str(place),
        "pools": "narrow=1",
    }
    container = Container(settings=Settings.load(flags, {}))
    container.catalogue.override(providers.Object(catalogue))
    container.clock.override(providers.Object(clock))
    container.cards.override(providers.Object(AllCards()))
    return container


async def make(place: Path) -> None:
    making.on = True
    clock = VirtualClock()
    container = container_on(
        place, clock, Catalogue([*PIPELINES, *GONE], pools=["default", "narrow"])
    )
    container.ids.override(providers.Object(SequentialIds()))
    async with running(container):
        uuids = {each.name: await _bring_about(container, clock, each) for each in SCENARIOS}
        made = {"stored_at": clock.now().isoformat(), "uuids": uuids}
        (place / "made.json").write_text(json.dumps(made))
        sys.stdout.flush()
        os._exit(0)


async def _bring_about(container: Container, clock: VirtualClock, scenario: Scenario) -> str:
    trigger = container.trigger()
    answer = await trigger(scenario.type, dict(scenario.trigger), message_id=scenario.name)
    uuid = answer.execution.uuid
    for verb in scenario.made_by:
        await _calm(container, uuid)
        if verb == "advance":
            await clock.advance(7200)
        elif verb == "hold":
            await container.hold().pause()
        elif verb.startswith("rerun "):
            uuid = (await container.rerun()(uuid, verb.removeprefix("rerun "))).uuid
        elif verb == "skip":
            await container.settle().skip(uuid, "second")
        elif verb == "cancel":
            await container.cancel()(uuid)
        else:
            await container.pause().pause(uuid)
    view = await _calm(container, uuid)
    stored = {step.step_key: step.status for step in view.steps}
    assert stored == dict(scenario.stored), (scenario.name, stored)
    assert view.status == scenario.status, (scenario.name, view.status)
    assert (view.paused_at is not None) == scenario.paused
    return uuid


async def _calm(container: Container, uuid: str) -> ExecutionView:
    """Once nothing of it happens any more: nobody says when that is, so it is looked at."""
    status = container.status()
    seen = await status.get(uuid)
    quiet = 0
    while quiet < 10:
        await asyncio.sleep(0.01)
        now = await status.get(uuid)
        quiet = quiet + 1 if now == seen else 0
        seen = now
    return seen


def main(name: str) -> None:
    if name != SCHEMA:
        sys.exit(f"this version stores schema {SCHEMA}: nothing here makes a set of {name}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        subprocess.run([sys.executable, "-m", "tests.golden.make", "--in", folder], check=True)
        connection = sqlite3.connect(place / "rushes.db")
        dump = "\n".join(connection.iterdump()) + "\n"
        connection.close()
        made = json.loads((place / "made.json").read_text())
    expected = {
        "stored_at": made["stored_at"],
        "executions": {
            each.name: {
                "uuid": made["uuids"][each.name],
                "status": each.status,
                "steps": each.stored,
                "then": each.then,
                "ends": each.ends,
                "error": each.error,
                "data": each.data,
                "not_again": each.not_again,
            }
            for each in SCENARIOS
        },
    }
    target = HERE / name
    target.mkdir(exist_ok=True)
    (target / "database.sql").write_text(dump)
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--in":
        asyncio.run(make(Path(sys.argv[2])))
    else:
        main(sys.argv[1])
