"""Pipelines that the tests' servers are started with (``RUSHES_PIPELINES``)."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from application.authoring import (
    Pipeline,
    RetryPolicy,
    StepContext,
    StepError,
    external_step,
    step,
)

DEADLINE_S = 20.0

_meetings: dict[str, threading.Barrier] = {}
_guard = threading.Lock()


@step()
async def split(context: StepContext) -> dict[str, Any]:
    return {"split": context.data["text"].split()}


def _meet(context: StepContext) -> None:
    """Returns once both sides are here at the same time; otherwise the step fails."""
    with _guard:
        barrier = _meetings.setdefault(context.execution_id, threading.Barrier(2))
    barrier.wait(DEADLINE_S)


@step(depends_on=["split"])
def left(context: StepContext) -> dict[str, Any]:
    _meet(context)
    return {"left": context.data["split"][0]}


@step(depends_on=["split"])
def right(context: StepContext) -> dict[str, Any]:
    _meet(context)
    return {"right": context.data["split"][-1]}


@step(depends_on=["left", "right"])
async def join(context: StepContext) -> dict[str, Any]:
    return {"joined": f"{context.data['left']}+{context.data['right']}"}


diamond = Pipeline("diamond", [split, left, right, join])


@step()
async def prepare(context: StepContext) -> dict[str, Any]:
    return {"prepared_by_attempt": context.attempt}


@step(depends_on=["prepare"])
async def open_gate(context: StepContext) -> dict[str, Any]:
    """Fails while the file that the trigger names isn't there."""
    if not await asyncio.to_thread(Path(context.data["gate"]).exists):
        raise StepError(f"the gate {context.data['gate']} is closed")
    return {"opened": True}


@step(depends_on=["open_gate"])
async def pass_through(context: StepContext) -> dict[str, Any]:
    return {"passed_after": context.data["prepared_by_attempt"]}


gate = Pipeline("gate", [prepare, open_gate, pass_through])


@step()
async def ask(context: StepContext) -> dict[str, Any]:
    return {"question": "6 x 7"}


@step(depends_on=["answer"])
async def use(context: StepContext) -> dict[str, Any]:
    return {"used": context.data["answer"]}


outside = Pipeline("outside", [ask, external_step("answer", depends_on=["ask"]), use])


@step(depends_on=["prepare"])
def unlock(context: StepContext) -> dict[str, Any]:
    """Waits while the card has a file ``hold``, and fails while it has no file ``key``."""
    card, pause = Path(context.data["sd_path"]), threading.Event()
    while (card / "hold").exists():
        context.check()
        pause.wait(0.01)
    if not (card / "key").exists():
        raise StepError("there is no key on the card")
    return {"unlocked": True}


@step(depends_on=["unlock"])
async def develop(context: StepContext) -> dict[str, Any]:
    return {"developed": context.data.get("unlocked")}


lifecycle = Pipeline("lifecycle", [prepare, unlock, develop], card=True)
rendered = Pipeline("rendered", [external_step("render", lease_s=1)])


@step(depends_on=["prepare"])
def wait_for_file(context: StepContext) -> dict[str, Any]:
    """Runs until the file that the trigger names is there, and says how it goes on."""
    pause = threading.Event()
    rounds = 0
    while not Path(context.data["until"]).exists():
        context.check()
        rounds += 1
        context.progress(min(rounds / 1000, 0.9), rounds=rounds)
        pause.wait(0.01)
    return {"rounds": rounds}


@step(depends_on=["wait_for_file"])
async def finish(context: StepContext) -> dict[str, Any]:
    return {"finished": True}


waiting = Pipeline("waiting", [prepare, wait_for_file, finish])


@step(retry=RetryPolicy(retries=3, delay_s=0.05, jitter=0))
async def third_time_lucky(context: StepContext) -> dict[str, Any]:
    if context.attempt < 3:
        raise StepError(f"not at attempt {context.attempt}")
    return {"lucky_at": context.attempt}


lucky = Pipeline("lucky", [third_time_lucky])


@step(run_timeout_s=0.2)
def too_slow(context: StepContext) -> None:
    """Blocks until it is told to end, which only its timeout does."""
    pause = threading.Event()
    while True:
        context.check()
        pause.wait(0.01)


@step(run_timeout_s=0.2, required=False)
async def too_slow_async(context: StepContext) -> None:
    await asyncio.Event().wait()


@step()
async def deaf(context: StepContext) -> None:
    """Swallows every request to end."""
    while True:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            pass


@step()
def deaf_thread(context: StepContext) -> None:
    threading.Event().wait(600)


stubborn = Pipeline("stubborn", [deaf, deaf_thread])
stuck = Pipeline("stuck", [deaf_thread])
stubborn_card = Pipeline("stubborn_card", [deaf_thread], card=True)

slow = Pipeline("slow", [too_slow_async, too_slow])


@step(spawns=["measure"])
def list_words(context: StepContext) -> dict[str, Any]:
    """Spawns from a thread, one step for each word."""
    for word in context.data["text"].split():
        context.spawn("measure", word, {"word": word})
    return {}


@step(dynamic=True)
async def measure(context: StepContext) -> dict[str, Any]:
    return {"length": len(context.params["word"])}


@step(depends_on=["measure:*"])
async def add_up(context: StepContext) -> dict[str, Any]:
    measured = context.data.get("measure", {})
    return {"total": sum(each["length"] for each in measured.values())}


words = Pipeline("words", [list_words, measure, add_up])


@step(lease_s=0.3)
def silent(context: StepContext) -> dict[str, Any]:
    """Leaves a checkpoint and falls silent; the attempt after it goes on from there."""
    if context.checkpoint is not None:
        return {"went_on_from": context.checkpoint["done"], "at_attempt": context.attempt}
    context.heartbeat({"done": 7})
    pause = threading.Event()
    while not context.stopping:
        pause.wait(0.01)
    return {"went_on_from": "a result that comes too late"}


leased = Pipeline("leased", [silent])


@step()
async def wait_on_the_loop(context: StepContext) -> dict[str, Any]:
    while not Path(context.data["until"]).exists():
        await asyncio.sleep(0.01)
    return {"waited_at": context.attempt}


patient = Pipeline("patient", [wait_on_the_loop])


@step()
async def ends_the_process(context: StepContext) -> dict[str, Any]:
    async def quit_once() -> None:
        if context.attempt == 1:
            raise SystemExit(5)

    async with asyncio.TaskGroup() as group:
        group.create_task(quit_once())
    return {"went_on_at": context.attempt}


quitter = Pipeline("quitter", [ends_the_process])


wide = Pipeline(
    "wide",
    [
        external_step("gate"),
        *(
            external_step(f"gate_{number:03}_{'x' * 50}", depends_on=["gate"])
            for number in range(120)
        ),
    ],
)
"""What its start says is as long as a page; nobody does its steps."""
