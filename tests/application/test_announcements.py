"""A step's own words: in the log with its completion, once, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from application.authoring import MAX_ANNOUNCED, Pipeline, StepContext, step
from domain.definition import RetryPolicy
from domain.errors import AttemptOver
from tests.fakes.engine import Engine
from tests.fakes.world import ManualDispatcher


async def told(engine: Engine, word: str = "card:verdict") -> list[dict[str, Any]]:
    return [dict(fact.data) for fact in await engine.log() if fact.type == word]


@pytest.mark.parametrize(
    ("word", "data", "reason"),
    [
        ("pipeline:completed", {}, "no word of a step's own"),
        ("pipeline:mine", {}, "no word of a step's own"),
        ("hub:reset", {}, "no word of a step's own"),
        ("detector:accepted", {}, "no word of a step's own"),
        ("verdict", {}, "no word of a step's own"),
        ("card:", {}, "no word of a step's own"),
        ("card:a:b", {}, "no word of a step's own"),
        ("Card:verdict", {}, "no word of a step's own"),
        ("card:verdict\n", {}, "no word of a step's own"),
        ("card:" + "x" * 31, {}, "no word of a step's own"),
        ("card:verdict", {"execution_id": "another's"}, "may not say 'execution_id'"),
        ("card:verdict", {"message_id": 1}, "may not say 'message_id'"),
        ("card:verdict", {"step_key": 1}, "may not say 'step_key'"),
        ("card:verdict", [], "must be an object"),
        ("card:verdict", {"a": {1, 2}}, "can't be written as JSON"),
        ("card:verdict", {"a": "\udc80"}, "not valid Unicode"),
    ],
)
async def test_what_can_t_be_announced_fails_the_step(word: str, data: Any, reason: str) -> None:
    @step()
    def judge(context: StepContext) -> None:
        context.announce(word, data)

    engine = await Engine(Pipeline("film", [judge])).open()
    failed = await engine.ran("film")
    assert failed.status == "failed"
    assert reason in str(failed.error_message)
    assert await told(engine, word) == []


async def test_an_attempt_has_only_so_many_words() -> None:
    @step()
    def chatty(context: StepContext) -> None:
        for number in range(MAX_ANNOUNCED + 1):
            context.announce("card:word", {"number": number})

    engine = await Engine(Pipeline("film", [chatty])).open()
    assert f"at most {MAX_ANNOUNCED} things" in str((await engine.ran("film")).error_message)
    assert await told(engine, "card:word") == []


async def test_what_a_step_announces_is_told_just_before_its_completion() -> None:
    @step()
    async def judge(context: StepContext) -> dict[str, object]:
        said = {"safe": True}
        context.announce("card:verdict", said)
        said["safe"] = False  # what was announced was a copy
        context.announce("card:verdict", {"safe": None})
        return {"done": 1}

    engine = await Engine(Pipeline("film", [judge])).open()
    done = await engine.ran("film", message_id="m-1")
    log = await engine.log()
    assert [fact.type for fact in log] == [
        "pipeline:started",
        "pipeline:step_started",
        "card:verdict",
        "card:verdict",
        "pipeline:step_completed",
        "pipeline:completed",
    ]
    assert log[2].step_key == "judge"
    common = {
        "execution_id": done.execution_id,
        "message_id": "m-1",
        "step_name": "judge",
        "step_key": "judge",
        "attempt": 1,
    }
    assert await told(engine) == [{**common, "safe": True}, {**common, "safe": None}]


async def test_an_attempt_that_fails_has_said_nothing() -> None:
    @step(retry=RetryPolicy(retries=0))
    def judge(context: StepContext) -> None:
        context.announce("card:verdict", {"attempt_was": context.attempt})
        if context.attempt == 1:
            raise RuntimeError("not yet")

    engine = await Engine(Pipeline("film", [judge])).open()
    failed = await engine.ran("film")
    assert await told(engine) == []
    await engine.retry(failed.execution_id)
    await engine.dispatcher.idle()
    assert [each["attempt_was"] for each in await told(engine)] == [2]


async def test_the_same_outcome_twice_is_told_once_and_one_that_is_over_never() -> None:
    @step()
    def judge(context: StepContext) -> None: ...

    dispatcher = ManualDispatcher()
    engine = await Engine(Pipeline("film", [judge]), dispatcher=dispatcher).open()
    await engine.trigger("film", {})
    (started,) = dispatcher.launched
    words = [("card:verdict", {"n": 1})]
    over = started.ref._replace(attempt=2)
    with pytest.raises(AttemptOver):
        await engine.advance.complete(over, {}, announced=[("card:verdict", {"n": 2})])
    for _ in range(2):
        await engine.advance.complete(started.ref, {}, announced=words)
    assert [each["n"] for each in await told(engine)] == [1]


async def test_an_output_that_contradicts_takes_the_words_with_it() -> None:
    @step()
    def judge(context: StepContext) -> dict[str, object]:
        context.announce("card:verdict", {})
        return {"given": "something else"}

    engine = await Engine(Pipeline("film", [judge])).open()
    failed = await engine.ran("film", {"given": "by the trigger"})
    assert failed.status == "failed"
    assert await told(engine) == []
