"""Each verb of an execution against each state that it, and the step it is about, can be in.

A situation is ``execution/step``, and every one is reached by verbs, none is set by
hand. A line of the table says what becomes of it; a situation that isn't in a verb's
line refuses it with the error that stands before the line. ``SAME``: the verb is
understood, and changes neither state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from domain.definition import PipelineDefinition, StepSpec
from domain.errors import AttemptOver, IllegalTransition, NotExternal, RushesError
from domain.execution import Execution, ExecutionStatus
from domain.step import StepStatus

NOW = datetime(2026, 11, 22, 8, 29, tzinfo=UTC)

X = StepSpec("x", spawns=("family",))
FAMILY = StepSpec("family", dynamic=True)
OUTPUT = {"x": 1}
SAID = "no"

SAME = "same"
NOTHING = "nothing"
"""As ``SAME``, and there is nothing to store either."""


def triggered(x: StepSpec = X, *, held: bool = False) -> Execution:
    """``x`` is what it is about; ``boom`` is there to fail, and ``rest`` to be left open."""
    steps = (x, FAMILY, StepSpec("boom"), StepSpec("rest"))
    definition = PipelineDefinition("film", steps)
    return Execution.trigger(definition, uuid="u", data={}, at=NOW, held=held)


def done(execution: Execution, *keys: str) -> Execution:
    for key in keys:
        execution.start(key, at=NOW)
        execution.complete(key, 1, OUTPUT if key == "x" else {}, at=NOW)
    return execution


def broken(execution: Execution, key: str) -> Execution:
    execution.start(key, at=NOW)
    execution.fail(key, 1, SAID, at=NOW)
    return execution


def started(execution: Execution) -> Execution:
    execution.start("x", at=NOW)
    return execution


def waived(execution: Execution) -> Execution:
    broken(execution, "x").waive("x", at=NOW)
    return execution


def cancelled(execution: Execution) -> Execution:
    execution.cancel(at=NOW)
    return execution


def run_again(original: Execution) -> Execution:
    return Execution.rerun(original, "rest", uuid="v", at=NOW, held=True)


OPTIONAL = replace(X, required=False)
BELOW = replace(X, depends_on=("boom",))

SITUATIONS: dict[str, Callable[[], Execution]] = {
    "pending/pending": lambda: triggered(held=True),
    "pending/completed": lambda: run_again(done(triggered(), "x", "boom", "rest")),
    "pending/skipped": lambda: run_again(done(waived(triggered()), "boom", "rest")),
    "running/pending": triggered,
    "running/running": lambda: started(triggered()),
    "running/completed": lambda: done(triggered(), "x"),
    "running/failed": lambda: broken(triggered(OPTIONAL), "x"),
    "running/skipped": lambda: waived(triggered()),
    "failed/pending": lambda: broken(triggered(), "boom"),
    "failed/running": lambda: broken(started(triggered()), "boom"),
    "failed/completed": lambda: broken(done(triggered(), "x"), "boom"),
    "failed/failed": lambda: broken(triggered(), "x"),
    "failed/skipped": lambda: broken(triggered(BELOW), "boom"),
    "completed/completed": lambda: done(triggered(), "x", "boom", "rest"),
    "completed/failed": lambda: done(broken(triggered(OPTIONAL), "x"), "boom", "rest"),
    "completed/skipped": lambda: done(waived(triggered()), "boom", "rest"),
    "cancelled/completed": lambda: cancelled(done(triggered(), "x")),
    "cancelled/failed": lambda: cancelled(broken(triggered(OPTIONAL), "x")),
    "cancelled/skipped": lambda: cancelled(waived(triggered())),
    "cancelled/cancelled": lambda: cancelled(triggered()),
}

RUNS = ("running/running", "failed/running")
HAS_FAILED = tuple(each for each in SITUATIONS if each.endswith("/failed"))
HAS_COMPLETED = tuple(each for each in SITUATIONS if each.endswith("/completed"))
ACTIVE = tuple(each for each in SITUATIONS if each.startswith(("pending", "running")))
CANCELLED = tuple(each for each in SITUATIONS if each.startswith("cancelled"))
WAIVED = ("pending/skipped", "running/skipped", "completed/skipped", "cancelled/skipped")


def outside(execution: Execution) -> Execution:
    """The same, as if a service outside did ``x``, with a lease."""
    step = execution.step("x")
    spec = replace(step.spec, external=True, lease_s=60)
    execution.steps["x"] = step._replace(spec=spec)
    return execution


def held_outside(execution: Execution) -> Execution:
    step = outside(execution).step("x")
    execution.steps["x"] = step._replace(worker="other", lease_ends_at=NOW + timedelta(seconds=60))
    return execution


def attempt(execution: Execution) -> int:
    return max(1, execution.step("x").attempt)


@dataclass(frozen=True)
class Line:
    """call: the verb. refusal: how what isn't in ``becomes`` is refused, or None."""

    call: Callable[[Execution], object]
    refusal: type[RushesError] | None
    becomes: dict[str, str]


TABLE: dict[str, Line] = {
    "begin": Line(
        lambda e: e.begin(at=NOW),
        IllegalTransition,
        {
            "pending/pending": "running/pending",
            "pending/completed": "running/completed",
            "pending/skipped": "running/skipped",
        },
    ),
    "start": Line(
        lambda e: e.start("x", at=NOW), IllegalTransition, {"running/pending": "running/running"}
    ),
    "queue": Line(
        lambda e: e.queue("x", at=NOW),
        None,
        {each: SAME for each in SITUATIONS if each.endswith("/pending")},
    ),
    "note": Line(
        lambda e: e.note({"x": (attempt(e), 0.5)}, at=NOW), None, dict.fromkeys(RUNS, SAME)
    ),
    "complete": Line(
        lambda e: e.complete("x", attempt(e), OUTPUT, at=NOW),
        AttemptOver,
        {
            "running/running": "running/completed",
            "failed/running": "failed/completed",
            **dict.fromkeys(HAS_COMPLETED, NOTHING),
        },
    ),
    "complete with another output": Line(
        lambda e: e.complete("x", attempt(e), {"x2": 2}, at=NOW),
        AttemptOver,
        {"running/running": "running/completed", "failed/running": "failed/completed"},
    ),
    "complete an attempt that isn't there yet": Line(
        lambda e: e.complete("x", attempt(e) + 1, OUTPUT, at=NOW), AttemptOver, {}
    ),
    "fail": Line(
        lambda e: e.fail("x", attempt(e), SAID, at=NOW),
        AttemptOver,
        {
            "running/running": "failed/failed",
            "failed/running": "failed/failed",
            **dict.fromkeys(HAS_FAILED, NOTHING),
        },
    ),
    "fail for another reason": Line(
        lambda e: e.fail("x", attempt(e), "because", at=NOW),
        AttemptOver,
        dict.fromkeys(RUNS, "failed/failed"),
    ),
    "fail an attempt that isn't there yet": Line(
        lambda e: e.fail("x", attempt(e) + 1, SAID, at=NOW), AttemptOver, {}
    ),
    "spawn": Line(
        lambda e: e.spawn("x", attempt(e), "family", "A", at=NOW),
        AttemptOver,
        dict.fromkeys(RUNS, SAME),
    ),
    "leave": Line(
        lambda e: e.leave("x", attempt(e), {"done": 1}, at=NOW),
        AttemptOver,
        dict.fromkeys(RUNS, SAME),
    ),
    "lose": Line(
        lambda e: e.lose("x", attempt(e), at=NOW),
        AttemptOver,
        {"running/running": "running/pending", "failed/running": "failed/pending"},
    ),
    "release": Line(
        lambda e: e.release("x", attempt(e), at=NOW),
        AttemptOver,
        {"running/running": "running/pending", "failed/running": "failed/pending"},
    ),
    "tick": Line(lambda e: e.tick(at=NOW), None, {}),
    "recover": Line(
        lambda e: e.recover(at=NOW),
        None,
        {"running/running": "running/pending", "failed/running": "failed/pending"},
    ),
    "retry": Line(
        lambda e: e.retry(at=NOW),
        IllegalTransition,
        {
            "failed/pending": "running/pending",
            "failed/running": "running/running",
            "failed/completed": "running/completed",
            "failed/failed": "running/pending",
            "failed/skipped": "running/pending",
        },
    ),
    "cancel": Line(
        lambda e: e.cancel(at=NOW),
        IllegalTransition,
        {
            "pending/pending": "cancelled/cancelled",
            "pending/completed": "cancelled/completed",
            "pending/skipped": "cancelled/skipped",
            "running/pending": "cancelled/cancelled",
            "running/running": "cancelled/cancelled",
            "running/completed": "cancelled/completed",
            "running/failed": "cancelled/failed",
            "running/skipped": "cancelled/skipped",
            **dict.fromkeys(CANCELLED, NOTHING),
        },
    ),
    "pause": Line(lambda e: e.pause(at=NOW), IllegalTransition, dict.fromkeys(ACTIVE, SAME)),
    "resume": Line(lambda e: e.resume(at=NOW), IllegalTransition, dict.fromkeys(ACTIVE, NOTHING)),
    "waive": Line(
        lambda e: e.waive("x", at=NOW),
        IllegalTransition,
        {"failed/failed": "running/skipped", **dict.fromkeys(WAIVED, NOTHING)},
    ),
    "settle": Line(
        lambda e: e.settle("x", OUTPUT, at=NOW),
        IllegalTransition,
        {"failed/failed": "running/completed", **dict.fromkeys(HAS_COMPLETED, NOTHING)},
    ),
    "settle with another output": Line(
        lambda e: e.settle("x", {"x2": 2}, at=NOW),
        IllegalTransition,
        {"failed/failed": "running/completed"},
    ),
    "claim": Line(lambda e: e.claim("x", "w", at=NOW), NotExternal, {}),
    "claim of an external step": Line(
        lambda e: outside(e).claim("x", "w", at=NOW),
        IllegalTransition,
        {"running/running": SAME},
    ),
    "claim of what somebody has": Line(
        lambda e: held_outside(e).claim("x", "w", at=NOW), IllegalTransition, {}
    ),
    "beat": Line(
        lambda e: e.beat("x", attempt(e), at=NOW), AttemptOver, dict.fromkeys(RUNS, NOTHING)
    ),
    "beat of who has it": Line(
        lambda e: held_outside(e).beat("x", attempt(e), at=NOW + timedelta(seconds=1)),
        AttemptOver,
        dict.fromkeys(RUNS, SAME),
    ),
    "run again": Line(
        lambda e: Execution.rerun(e, "x", uuid="v", at=NOW),
        IllegalTransition,
        {each: NOTHING for each in SITUATIONS if each not in ACTIVE},
    ),
}

VERBS_OF_NO_STATE = {
    "ask_again",
    "copy",
    "differs_from",
    "payload",
    "next_look_at",
    "ready",
    "require_external",
    "step",
    "trigger",
    "waits_for",
}
"""Questions, and the way in."""


def state(execution: Execution) -> str:
    return f"{execution.status}/{execution.step('x').status}"


@pytest.mark.parametrize("verb", TABLE)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_verb_does_what_the_table_says_or_is_refused(situation: str, verb: str) -> None:
    original, line = SITUATIONS[situation](), TABLE[verb]
    assert state(original) == situation
    draft = original.copy()
    becomes = line.becomes.get(situation)
    if becomes is None and line.refusal is not None:
        with pytest.raises(line.refusal):
            line.call(draft)
    else:
        line.call(draft)
        assert state(draft) == (situation if becomes in (None, SAME, NOTHING) else becomes)
        assert draft.differs_from(original) == (becomes not in (None, NOTHING))
    assert state(original) == situation, "a draft leaves its original alone"


def test_the_table_has_every_verb_that_there_is() -> None:
    verbs = {name for name, of in vars(Execution).items() if callable(getattr(of, "__func__", of))}
    public = {name for name in verbs if not name.startswith("_")} - VERBS_OF_NO_STATE
    assert public == {verb.split()[0] for verb in TABLE if verb != "run again"} | {"rerun"}


def test_every_pair_of_states_is_there_that_verbs_can_reach() -> None:
    told = {tuple(each.split("/")) for each in SITUATIONS}
    unreachable = {
        # A pending execution has started nothing; what another one did well it may keep.
        *((ExecutionStatus.PENDING, of) for of in ("running", "failed", "cancelled")),
        # Only a cancelled execution has cancelled steps, and it has nothing open.
        *((of, StepStatus.CANCELLED) for of in ("running", "failed", "completed")),
        *((of, step) for of in ("completed", "cancelled") for step in ("pending", "running")),
    }
    assert told == {(e, s) for e in ExecutionStatus for s in StepStatus} - unreachable
