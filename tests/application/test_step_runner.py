"""From a handler to the outcome that is stored, through the real use cases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from application.advance import MAX_ERROR
from application.authoring import (
    Interrupted,
    PermanentError,
    Pipeline,
    StepContext,
    StepError,
    external_step,
    step,
)
from application.step_runner import REPORT_AGAIN_S
from domain.definition import PipelineDefinition, StepSpec
from domain.errors import (
    AttemptOver,
    CardBusy,
    ExecutionNotFound,
    IllegalTransition,
    InvalidInput,
    NotExternal,
    StepNotFound,
)
from domain.execution import MAX_TAKEOVERS, Execution
from tests.fakes.engine import Engine
from tests.fakes.world import EPOCH, ManualDispatcher, settle, until

Output = Mapping[str, Any] | None


async def ran(handler: Any, data: object = None) -> Any:
    """A pipeline of one step, run to its end."""
    engine = await Engine(Pipeline("one", [step(name="a")(handler)])).open()
    return await engine.ran("one", data)


# -- outcomes --------------------------------------------------------------------


async def test_a_function_and_a_coroutine_function_are_both_handlers() -> None:
    @step()
    def first(context: StepContext) -> Output:
        return {"first": 1}

    @step(depends_on=["first"])
    async def second(context: StepContext) -> Output:
        await asyncio.sleep(0)
        return {"second": context.data["first"] + 1}

    class Third:
        async def __call__(self, context: StepContext) -> Output:
            return {"third": context.data["second"] + 1}

    def fourth(context: StepContext) -> Awaitable[Output]:
        async def work() -> Output:
            return {"fourth": context.data["third"] + 1}

        return work()

    third_step = step(name="third", depends_on=["second"])(Third())
    fourth_step = step(name="fourth", depends_on=["third"])(fourth)
    engine = await Engine(Pipeline("four", [first, second, third_step, fourth_step])).open()
    view = await engine.ran("four", {"given": 0})
    assert view.status == "completed"
    assert view.execution_data == {"given": 0, "first": 1, "second": 2, "third": 3, "fourth": 4}
    assert view.progress == 100


async def test_a_handler_that_returns_nothing_has_an_empty_output() -> None:
    view = await ran(lambda context: None)
    assert (view.status, view.steps[0].output_data) == ("completed", {})


async def test_a_handler_is_told_who_it_is_and_what_is_known() -> None:
    told: list[StepContext] = []

    def look(context: StepContext) -> Output:
        told.append(context)
        return None

    engine = await Engine(Pipeline("one", [step(name="a")(look)])).open()
    view = await engine.ran("one", {"x": [1]}, message_id="m")
    (context,) = told
    assert (context.execution_id, context.pipeline_type, context.message_id) == (
        view.uuid, "one", "m",
    )  # fmt: skip
    assert (context.step_name, context.step_key, context.attempt) == ("a", "a", 1)
    assert (context.data, context.stopping) == ({"x": [1]}, False)
    context.check()


async def test_what_a_handler_does_to_its_data_stays_with_it() -> None:
    def spoil(context: StepContext) -> Output:
        context.data["x"].append("spoilt")
        context.data["more"] = "spoilt"
        return None

    view = await ran(spoil, {"x": [1]})
    assert view.execution_data == {"x": [1]}


async def test_what_a_handler_does_to_its_output_later_changes_nothing() -> None:
    kept: dict[str, Any] = {"x": [1]}
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: kept)])).open()
    view = await engine.ran("one")
    kept["x"].append("spoilt")
    assert (await engine.status.get(view.id)).execution_data == {"x": [1]}


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raising(error: BaseException) -> Callable[[StepContext], Output]:
    def handler(context: StepContext) -> Output:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StepError("the card is full"), "the card is full"),
        (PermanentError("no such camera"), "no such camera"),
        (CardBusy("c", "u"), "execution u is at work on the card c"),
        (ValueError("bad value"), "ValueError: bad value"),
        (ValueError(), "ValueError"),
        (StepError(), "StepError"),
        (KeyError("k"), "KeyError: 'k'"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "CancelledError"),
        (Interrupted(), "Interrupted"),
        (Broken(), "Broken"),
        (StepError("two\nlines\x1b[2J"), "two lines [2J"),
        (StepError("half \ud800 a character"), "half \\ud800 a character"),
        (StepError("\n"), "no reason was given"),
        (StepError("x" * 5000), "x" * (MAX_ERROR - 1) + "…"),
    ],
)
@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_whatever_a_handler_raises_fails_the_step_with_its_text(
    error: BaseException, said: str, kind: str
) -> None:
    async def coroutine(context: StepContext) -> Output:
        raise error

    view = await ran(raising(error) if kind == "function" else coroutine)
    assert view.status == "failed"
    assert view.steps[0].error_message == said
    assert view.error_message == f"step a failed (attempt 1): {said}"


async def test_a_handler_that_raises_stop_iteration_fails_too() -> None:
    view = await ran(raising(StopIteration("s")))
    assert (view.status, view.steps[0].status) == ("failed", "failed")


@pytest.mark.parametrize("output", ["text", 3, [1], {1: 2}, {"a": object()}, {"a": float("nan")}])
async def test_an_output_that_is_no_json_object_fails_the_step(output: Any) -> None:
    view = await ran(lambda context: output)
    assert view.status == "failed"
    assert "the output of step 'a'" in view.error_message


async def test_a_step_whose_code_is_gone_fails_and_says_so() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: None)])).open()
    stored = Execution.trigger(
        PipelineDefinition("gone", (StepSpec("b"),)), uuid="u", data={}, at=EPOCH
    )
    made = (await engine.executions.trigger(stored, "h")).execution.id
    await engine.dispatcher.idle()
    view = await engine.status.get(made)
    assert view.status == "failed"
    assert "no code for step 'b' of pipeline 'gone'" in str(view.error_message)


async def test_a_job_that_was_attached_is_the_executions_once_the_step_completes() -> None:
    def attach(context: StepContext) -> Output:
        context.attach_job(7)
        return None

    assert (await ran(attach)).job_id == 7


# -- reports ---------------------------------------------------------------------


async def test_an_outcome_that_cant_be_stored_is_kept_and_offered_again() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: {"x": 1})])).open()
    answer = await engine.trigger("one", {})
    engine.executions.refuse_commits = 6
    running = asyncio.ensure_future(engine.dispatcher.idle())
    waited = []
    for number in range(6):
        await until(lambda: engine.clock.sleeping)
        assert (await engine.status.get(answer.execution.id)).status == "running"
        pause = REPORT_AGAIN_S[min(number, len(REPORT_AGAIN_S) - 1)]
        waited.append(pause)
        await engine.clock.advance(pause)
    await running
    view = await engine.status.get(answer.execution.id)
    assert (view.status, view.execution_data) == ("completed", {"x": 1})


class Refusing:
    """Delegates, but reports meet this error first, so many times."""

    def __init__(self, executions: Any, error: Exception, times: int) -> None:
        self._executions = executions
        self.error, self.times = error, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executions, name)

    async def apply(self, execution_id: int, change: Any) -> Any:
        if self.times:
            self.times -= 1
            raise self.error
        return await self._executions.apply(execution_id, change)


@pytest.mark.parametrize("error", [IllegalTransition("step a", "x", "y"), OverflowError("odd")])
async def test_an_outcome_that_is_refused_for_what_it_says_fails_the_step(
    error: Exception,
) -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: {"x": 1})])).open()
    engine.advance._executions = Refusing(engine.executions, error, 1)
    view = await engine.ran("one")
    assert view.status == "failed"
    assert "its outcome can't be stored" in view.error_message


async def test_a_refused_outcome_is_kept_until_at_least_that_can_be_stored() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: {"x": 1})])).open()
    refusing = Refusing(engine.executions, OverflowError("odd"), 1)
    engine.advance._executions = refusing  # type: ignore[assignment]
    answer = await engine.trigger("one", {})
    engine.executions.refuse_commits = 1
    running = asyncio.ensure_future(engine.dispatcher.idle())
    await until(lambda: engine.clock.sleeping)
    await engine.clock.advance(REPORT_AGAIN_S[0])
    await running
    assert (await engine.status.get(answer.execution.id)).status == "failed"


async def test_an_outcome_that_nothing_can_be_said_about_ends_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: None)])).open()
    error = OverflowError("odd")
    engine.advance._executions = Refusing(engine.executions, error, 99)  # type: ignore[assignment]
    await engine.trigger("one", {})
    await asyncio.wait_for(engine.dispatcher.idle(), 10)
    assert "its outcome can't be stored: OverflowError: odd" in caplog.text


async def test_what_a_handler_says_that_outlives_its_forgotten_execution_is_dropped_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = asyncio.Event()

    async def deaf(context: StepContext) -> Output:
        await go_on.wait()
        return {"late": True}

    engine = await Engine(Pipeline("one", [step(name="a")(deaf)])).open()
    made = (await engine.trigger("one", {})).execution.id
    await engine.cancel(made)
    await engine.clock.advance(60)
    assert await engine.executions.forget(engine.clock.now(), 10) == 1
    go_on.set()
    with caplog.at_level(logging.INFO):
        await asyncio.wait_for(engine.dispatcher.idle(), 10)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    assert "a late report is dropped: there is no execution 1" in caplog.text


async def test_a_report_of_an_attempt_that_was_replaced_is_dropped() -> None:
    go_on = asyncio.Event()

    async def slow(context: StepContext) -> Output:
        if context.attempt == 1:
            await go_on.wait()
        return {"attempt": context.attempt}

    engine = await Engine(Pipeline("one", [step(name="a")(slow)])).open()
    answer = await engine.trigger("one", {})
    await settle()
    await engine.recovery()
    await settle()
    go_on.set()
    await engine.dispatcher.idle()
    view = await engine.status.get(answer.execution.id)
    assert (view.execution_data, view.steps[0].attempt) == ({"attempt": 2}, 2)


# -- stopping --------------------------------------------------------------------


async def test_when_rushes_stops_the_attempt_is_given_back() -> None:
    begun = asyncio.Event()

    async def endless(context: StepContext) -> Output:
        begun.set()
        while True:
            await asyncio.sleep(0)

    engine = await Engine(
        Pipeline("one", [step(name="a")(endless)]), dispatcher=ManualDispatcher()
    ).open()
    answer = await engine.trigger("one", {})
    attempt = engine.runner.begin(engine.dispatcher.launched[0])
    deciding = asyncio.create_task(engine.runner.decided(attempt))
    await begun.wait()
    engine.dispatcher.slots = 0
    engine.runner.stop()
    attempt.tell()
    await (await deciding)()
    execution = await engine.executions.get(answer.execution.id)
    assert (execution.step("a").status, execution.step("a").takeovers) == ("pending", 0)
    assert execution.status == "running"
    assert (await engine.log())[-1].type == "pipeline:step_started"


async def test_what_a_handler_finished_while_rushes_stops_is_kept() -> None:
    engine = await Engine(
        Pipeline("one", [step(name="a")(lambda context: {"x": 1})]), dispatcher=ManualDispatcher()
    ).open()
    answer = await engine.trigger("one", {})
    report = await engine.runner.decided(engine.runner.begin(engine.dispatcher.launched[0]))
    engine.runner.stop()
    await report()
    assert (await engine.status.get(answer.execution.id)).status == "completed"


async def test_an_attempt_that_begins_while_rushes_stops_is_given_back_unrun() -> None:
    ran: list[int] = []
    engine = await Engine(
        Pipeline("one", [step(name="a")(lambda context: ran.append(1))]),
        dispatcher=ManualDispatcher(),
    ).open()
    answer = await engine.trigger("one", {})
    engine.dispatcher.slots = 0
    engine.runner.stop()
    await (await engine.runner.decided(engine.runner.begin(engine.dispatcher.launched[0])))()
    execution = await engine.executions.get(answer.execution.id)
    assert (execution.step("a").status, execution.step("a").takeovers) == ("pending", 0)
    assert ran == []


async def test_an_outcome_that_cant_be_stored_doesnt_hold_up_a_stop() -> None:
    engine = await Engine(
        Pipeline("one", [step(name="a")(lambda context: None)]), dispatcher=ManualDispatcher()
    ).open()
    await engine.trigger("one", {})
    report = await engine.runner.decided(engine.runner.begin(engine.dispatcher.launched[0]))
    engine.executions.refuse_commits = 99
    engine.runner.stop()
    await asyncio.wait_for(report(), 10)


# -- retry, recovery -------------------------------------------------------------


def flaky(times: int) -> Callable[[StepContext], Output]:
    """Fails so many times, then works."""

    def handler(context: StepContext) -> Output:
        if context.attempt <= times:
            raise StepError(f"failed {context.attempt}")
        return {"attempt": context.attempt}

    return handler


async def test_a_retry_runs_again_from_the_step_that_failed() -> None:
    runs: list[str] = []

    @step()
    def first(context: StepContext) -> Output:
        runs.append("first")
        return {"first": 1}

    second = step(name="second", depends_on=["first"])(flaky(1))
    third = step(name="third", depends_on=["second"])(lambda context: None)
    engine = await Engine(Pipeline("three", [first, second, third])).open()
    view = await engine.ran("three")
    assert [each.status for each in view.steps] == ["completed", "failed", "skipped"]
    retried = await engine.retry(view.uuid)
    assert (retried.status, retried.error_message) == ("running", None)
    await engine.dispatcher.idle()
    view = await engine.status.get(view.id)
    assert view.status == "completed"
    assert view.execution_data == {"first": 1, "attempt": 2}
    assert runs == ["first"]


async def test_only_what_has_failed_is_retried() -> None:
    engine = await Engine(Pipeline("one", [step(name="a")(lambda context: None)])).open()
    view = await engine.ran("one")
    with pytest.raises(IllegalTransition, match="retry while it is completed"):
        await engine.retry(view.id)
    with pytest.raises(ExecutionNotFound):
        await engine.retry("ghost")


async def test_a_retry_waits_for_the_card() -> None:
    engine = await Engine(
        Pipeline("card", [step(name="a")(flaky(1))], card=True), dispatcher=ManualDispatcher()
    ).open()
    first = await engine.trigger("card", {"sd_path": "/x"})
    await (await engine.runner.decided(engine.runner.begin(engine.dispatcher.launched[0])))()
    await engine.trigger("card", {"sd_path": "/x"})
    with pytest.raises(CardBusy):
        await engine.retry(first.execution.id)


async def test_recovery_goes_on_with_everything_unfinished_and_repeats_nothing() -> None:
    pipeline = Pipeline(
        "two",
        [
            step(name="a")(lambda context: {"a": context.attempt}),
            step(name="b", depends_on=["a"])(lambda context: {"b": context.attempt}),
        ],
    )
    dead = ManualDispatcher()
    engine = await Engine(pipeline, dispatcher=dead).open()
    made = [(await engine.trigger("two", {})).execution.id for _ in range(130)]
    await (await engine.runner.decided(engine.runner.begin(dead.launched[0])))()

    survivor = await Engine(pipeline, executions=engine.executions).open()
    assert await survivor.recovery() == len(made)
    await survivor.dispatcher.idle()
    views = [await survivor.status.get(each) for each in made]
    assert {view.status for view in views} == {"completed"}
    assert views[0].execution_data == {"a": 1, "b": 2}
    assert views[1].execution_data == {"a": 2, "b": 1}
    assert await survivor.recovery() == 0


async def test_a_step_that_kills_its_process_fails_in_the_end() -> None:
    pipeline = Pipeline("one", [step(name="a")(lambda context: None)])
    engine = await Engine(pipeline, dispatcher=ManualDispatcher()).open()
    answer = await engine.trigger("one", {})
    for _ in range(MAX_TAKEOVERS + 1):
        await engine.recovery()
    view = await engine.status.get(answer.execution.id)
    assert view.status == "failed"
    assert "lost its worker" in str(view.error_message)


async def test_whatever_a_coroutine_raises_its_attempt_has_an_end() -> None:
    async def broken(context: StepContext) -> Output:
        raise GeneratorExit

    view = await ran(broken)
    assert (view.status, view.steps[0].status) == ("failed", "failed")
    assert "GeneratorExit" in str(view.error_message)


# -- steps outside ---------------------------------------------------------------


@pytest.fixture
async def outside() -> Engine:
    steps = [external_step("render"), step(name="b", depends_on=["render"])(lambda context: None)]
    return await Engine(Pipeline("out", steps)).open()


async def test_a_service_outside_completes_its_step(outside: Engine) -> None:
    view = await outside.ran("out")
    assert (view.status, view.waits_for) == ("running", ["render"])
    done = await outside.advance.complete_external(view.uuid, "render", 1, {"url": "x"})
    assert done.execution_data == {"url": "x"}
    again = await outside.advance.complete_external(view.uuid, "render", 1, {"url": "x"})
    assert again.status in ("running", "completed")
    await outside.dispatcher.idle()
    assert (await outside.status.get(view.id)).status == "completed"


async def test_a_service_outside_fails_its_step(outside: Engine) -> None:
    view = await outside.ran("out")
    failed = await outside.advance.fail_external(view.id, "render", 1, "no\nlicence")
    assert failed.error_message == "step render failed (attempt 1): no licence"


@pytest.mark.parametrize(
    ("reference", "key", "attempt", "output", "refusal"),
    [
        ("ghost", "render", 1, {}, ExecutionNotFound),
        (1, "ghost", 1, {}, StepNotFound),
        (1, "b", 1, {}, NotExternal),
        (1, "render", 2, {}, AttemptOver),
        (1, "render", 0, {}, InvalidInput),
        (1, "render", 1, "text", InvalidInput),
        (1, "render", 1, None, InvalidInput),
    ],
)
async def test_a_report_from_outside_that_cant_be_is_refused(
    outside: Engine, reference: Any, key: str, attempt: int, output: Any, refusal: Any
) -> None:
    view = await outside.ran("out")
    with pytest.raises(refusal):
        await outside.advance.complete_external(reference, key, attempt, output)
    assert (await outside.status.get(view.id)).steps[0].status == "running"


async def test_a_failure_from_outside_needs_a_reason(outside: Engine) -> None:
    await outside.ran("out")
    with pytest.raises(InvalidInput):
        await outside.advance.fail_external(1, "render", 1, " \n")
