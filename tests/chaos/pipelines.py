"""Pipelines whose handlers leave a file for each attempt that they begin and end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from application.authoring import Pipeline, StepContext, StepError, step


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
