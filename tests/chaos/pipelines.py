"""Pipelines whose handlers leave a file for each attempt that they begin and end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from application.authoring import (
    PermanentError,
    Pipeline,
    RetryPolicy,
    StepContext,
    StepError,
    external_step,
    step,
)


def mark(context: StepContext, what: str) -> None:
    """Kept by the kernel, whatever becomes of this process."""
    folder = Path(context.data["marks"]) / context.execution_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{context.step_key}.{context.attempt}.{what}").touch()


def worked(context: StepContext, **output: Any) -> dict[str, Any]:
    mark(context, "end")
    return {context.step_name: context.attempt, **output}


@step()
async def split(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context)


@step(depends_on=["split"])
def left(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context)


@step(depends_on=["split"])
async def right(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    await asyncio.sleep(0.02)
    return worked(context)


@step(depends_on=["left", "right"])
async def join(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context)


diamond = Pipeline("chaos_diamond", [split, left, right, join])


def _slowly(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    pause = threading.Event()
    for done in range(1, 11):
        context.check()
        pause.wait(0.02)
        context.progress(done / 10, done=done)
    return worked(context)


@step()
def first(context: StepContext) -> dict[str, Any]:
    return _slowly(context)


@step(depends_on=["first"])
def second(context: StepContext) -> dict[str, Any]:
    return _slowly(context)


@step(depends_on=["second"])
def third(context: StepContext) -> dict[str, Any]:
    return _slowly(context)


chain = Pipeline("chaos_chain", [first, second, third])


@step()
async def prepare(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context)


@step(depends_on=["prepare"])
def open_gate(context: StepContext) -> dict[str, Any]:
    """Fails while the file that the trigger names isn't there."""
    mark(context, "begin")
    if not Path(context.data["gate"]).exists():
        raise StepError("the gate is closed")
    return worked(context)


@step(depends_on=["open_gate"])
async def pass_through(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context)


gate = Pipeline("chaos_gate", [prepare, open_gate, pass_through])


CLIPS = ("A001", "A002", "B001")

BRISKLY = RetryPolicy(retries=3, delay_s=0.02)


@step(spawns=["clip"])
def list_clips(context: StepContext) -> dict[str, Any]:
    """Spawns from a thread, and takes a while over it."""
    mark(context, "begin")
    pause = threading.Event()
    for name in CLIPS:
        context.spawn("clip", name, {"clip": name})
        pause.wait(0.01)
    return worked(context)


@step(dynamic=True, spawns=["frame"], retry=BRISKLY)
async def clip(context: StepContext) -> dict[str, Any]:
    """Spawns a step of its own, and fails at its first attempt for one of the clips."""
    mark(context, "begin")
    name = context.params["clip"]
    await context.aspawn("frame", name, {"of": name})
    if name == CLIPS[-1] and context.attempt == 1:
        raise StepError("the first attempt always fails")
    return worked(context)


@step(dynamic=True, depends_on=["list_clips"])
def frame(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context, of=context.params["of"])


@step(depends_on=["list_clips"], required=False)
def poster(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    raise PermanentError("there is no poster, ever")


@step(depends_on=["poster"], required=False)
def gallery(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context)


@step(depends_on=["clip:*", "frame:*"], after=["gallery"])
async def reel(context: StepContext) -> dict[str, Any]:
    """Sees all of both families, whoever spawned them and how often it was killed."""
    mark(context, "begin")
    return worked(context, clips=sorted(context.data["clip"]), frames=sorted(context.data["frame"]))


family = Pipeline("chaos_family", [list_clips, clip, frame, poster, gallery, reel])


@step(depends_on=["answer"])
async def publish(context: StepContext) -> dict[str, Any]:
    mark(context, "begin")
    return worked(context, published=context.data["answered"])


outside = Pipeline(
    "chaos_outside",
    [prepare, external_step("answer", depends_on=["prepare"], retry=BRISKLY), publish],
)
