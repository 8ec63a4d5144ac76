"""The pipelines of the golden executions: their code, as a later version has it too.

What is stored was made with ``making`` set: some handlers hang then, and others fail.
Afterwards all of them do their work, and say in ``called`` that they did.
"""

from __future__ import annotations

import asyncio
from typing import Any

from application.authoring import (
    Pipeline,
    RetryPolicy,
    StepContext,
    StepError,
    external_step,
    step,
)


class _Making:
    on = False


making = _Making()

called: list[tuple[str, str, int]] = []
"""By the execution's uuid, step key and attempt."""


def _call(context: StepContext) -> None:
    called.append((context.execution_id, context.step_key, context.attempt))


async def _hang() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue  # until the process is gone


# -- one after the other -----------------------------------------------------------


@step()
async def first(context: StepContext) -> dict[str, Any]:
    _call(context)
    return {"first": context.data["text"].upper()}


@step(depends_on=["first"], weight=3)
async def second(context: StepContext) -> dict[str, Any]:
    """In the making it does what the trigger says: it hangs, fails, or completes."""
    _call(context)
    behave = context.data.get("behave") if making.on else None
    if behave == "hangs" or (behave == "hangs when run again" and context.message_id is None):
        context.progress(0.4, files=2)
        await _hang()
    if behave == "fails":
        raise StepError("no film in the camera")
    return {"second": f"{context.data['first']}!"}


@step(depends_on=["second"])
async def third(context: StepContext) -> dict[str, Any]:
    _call(context)
    return {"third": len(context.data.get("second", ""))}


chain = Pipeline("chain", [first, second, third])
on_card = Pipeline("on_card", [first, second, third], card=True)


# -- by itself again -----------------------------------------------------------------


@step(retry=RetryPolicy(retries=3, delay_s=7200, max_delay_s=7200, jitter=0), run_timeout_s=600)
async def fetch(context: StepContext) -> dict[str, Any]:
    _call(context)
    if making.on:
        raise StepError("the volume isn't mounted")
    return {"fetched_at_attempt": context.attempt}


patient = Pipeline("patient", [fetch])


# -- a family ----------------------------------------------------------------------------


@step(spawns=["probe"])
async def scan(context: StepContext) -> dict[str, Any]:
    _call(context)
    for name in ("A", "B", "C"):
        await context.aspawn("probe", name, {"clip": f"{name}.mov"})
        if making.on and context.data.get("scan") == f"hangs after {name}":
            await _hang()
    return {"clips": 3}


@step(dynamic=True, retry=RetryPolicy(retries=1, delay_s=7200, max_delay_s=7200, jitter=0))
async def probe(context: StepContext) -> dict[str, Any]:
    """In the making, ``{"wanted": {"B": "hangs"}}`` says what becomes of each."""
    _call(context)
    wanted = context.data.get("wanted", {}).get(context.parameter) if making.on else None
    if wanted == "hangs":
        await context.aheartbeat({"frames": 240})
        await _hang()
    if wanted == "fails":
        raise StepError(f"{context.params['clip']} can't be read")
    return {
        "clip": context.params["clip"],
        "from_frame": (context.checkpoint or {}).get("frames", 0),
    }


@step(depends_on=["probe:*"])
async def report(context: StepContext) -> dict[str, Any]:
    _call(context)
    return {"report": sorted(each["clip"] for each in context.data["probe"].values())}


family = Pipeline("family", [scan, probe, report])


# -- a family that two steps spawn ---------------------------------------------------------


@step(spawns=["clip"])
async def camera_a(context: StepContext) -> dict[str, Any]:
    _call(context)
    for name in ("A", "B"):
        await context.aspawn("clip", name, {"file": f"{name}.mov"})
    return {"camera_a": 2}


@step(spawns=["clip"], after=["camera_a"])
async def camera_b(context: StepContext) -> dict[str, Any]:
    """It finds one that is there already, as it would spawn it itself."""
    _call(context)
    for name in ("B", "C"):
        await context.aspawn("clip", name, {"file": f"{name}.mov"})
    if making.on and context.data.get("camera_b") == "hangs":
        await _hang()
    return {"cameras": 2}


@step(dynamic=True)
async def clip(context: StepContext) -> dict[str, Any]:
    _call(context)
    if making.on and context.data.get("clips") == "hang when run again" and not context.message_id:
        await _hang()
    return {"file": context.params["file"]}


@step(depends_on=["clip:*"])
async def reel(context: StepContext) -> dict[str, Any]:
    _call(context)
    return {"reel": sorted(each["file"] for each in context.data["clip"].values())}


two_cameras = Pipeline("two_cameras", [camera_a, camera_b, clip, reel])


# -- what may fail, what others do, and what has to wait for room ---------------------------


@step(required=False)
async def sheet(context: StepContext) -> None:
    _call(context)
    raise StepError("there is no printer")


@step(after=["sheet"])
async def close(context: StepContext) -> dict[str, Any]:
    _call(context)
    if making.on:
        await _hang()
    return {"closed": True}


optional = Pipeline("optional", [sheet, close])


@step(depends_on=["approve"])
async def publish(context: StepContext) -> dict[str, Any]:
    _call(context)
    return {"published": context.data["approved_by"]}


outside = Pipeline("outside", [external_step("approve"), publish])


@step(pool="narrow")
async def squeeze(context: StepContext) -> dict[str, Any]:
    _call(context)
    if making.on:
        await _hang()
    return {"squeezed": True}


narrow = Pipeline("narrow", [squeeze])

PIPELINES = [chain, on_card, patient, family, two_cameras, optional, outside, narrow]


# -- whose code is gone ------------------------------------------------------------------------


@step()
async def forgotten(context: StepContext) -> None:
    await _hang()


@step()
async def rest(context: StepContext) -> dict[str, Any]:
    _call(context)
    return {"rest": True}


GONE = [Pipeline("retired", [first, forgotten]), Pipeline("shrunk", [first, forgotten, rest])]
"""What there was in the making: of ``retired`` nothing is left, of ``shrunk`` a step is gone."""

LEFT = [Pipeline("shrunk", [first, rest])]
