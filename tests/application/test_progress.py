"""Progress: live where it is asked for, told in measure, dropped with its attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from application.authoring import Pipeline, StepContext, step
from application.feed import StepProgress
from application.ports import Query, Started
from application.progress import TELL_EVERY_S
from domain.errors import ExecutionNotFound, InvalidInput
from tests.fakes.engine import Engine
from tests.fakes.world import ManualDispatcher, settle


def nothing(context: StepContext) -> None:
    return None


class Board:
    """An engine with two steps that run, and everything that was told about them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.told: list[StepProgress] = []
        engine.feed.tell = self.told.append  # type: ignore[method-assign]

    @property
    def started(self) -> list[Started]:
        launched: list[Started] = self.engine.dispatcher.launched
        return launched

    async def note(self, fraction: float, *, which: int = 0, **detail: Any) -> None:
        self.engine.board.note(self.started[which], fraction, detail)
        await settle(3)

    @property
    def percents(self) -> list[float]:
        return [each.data["progress"] for each in self.told]


@pytest.fixture
async def board() -> AsyncIterator[Board]:
    steps = [step(name="a")(nothing), step(name="b")(nothing)]
    engine = await Engine(Pipeline("two", steps), dispatcher=ManualDispatcher()).open()
    made = Board(engine)
    await engine.trigger("two", {}, message_id="m")
    for started in made.started:
        engine.board.begin(started.ref)
    return made


async def test_followers_are_told_what_the_design_says(board: Board) -> None:
    await board.note(0.25, bytes_done=1, bytes_total=4)
    (told,) = board.told
    assert told.id is None
    assert told.type == "pipeline:step_progress"
    assert told.data == {
        "execution_id": board.started[0].execution.uuid,
        "message_id": "m",
        "step_name": "a",
        "step_key": "a",
        "attempt": 1,
        "progress": 25.0,
        "detail": {"bytes_done": 1, "bytes_total": 4},
    }


async def test_they_are_told_four_times_a_second_however_often_it_is_said(board: Board) -> None:
    for tick in range(1000):
        await board.note(tick / 1000)
        board.engine.clock.tick(0.001)
    assert len(board.told) == 4
    assert TELL_EVERY_S == 0.25


async def test_each_step_has_its_own_measure(board: Board) -> None:
    await board.note(0.1)
    await board.note(0.1, which=1)
    assert [each.data["step_key"] for each in board.told] == ["a", "b"]


@pytest.mark.parametrize(
    ("said", "shown"), [(-1.0, 0), (2.0, 100), (0.123456, 12.3), (0, 0), (1, 100)]
)
async def test_a_fraction_is_brought_inside(board: Board, said: float, shown: float) -> None:
    await board.note(said)
    assert board.percents == [shown]


@pytest.mark.parametrize("said", [float("nan"), float("inf"), float("-inf")])
async def test_what_is_no_fraction_is_dropped(board: Board, said: float) -> None:
    await board.note(said)
    assert board.told == []
    assert (await board.engine.status.get(1)).progress == 0


async def test_progress_never_goes_back_within_an_attempt(board: Board) -> None:
    for fraction in (0.5, 0.2, 0.6):
        await board.note(fraction)
        board.engine.clock.tick(1)
    assert board.percents == [50, 50, 60]


async def test_a_detail_that_is_no_json_is_refused(board: Board) -> None:
    with pytest.raises(InvalidInput, match="progress detail"):
        await board.note(0.5, what=object())


async def test_what_an_ended_attempt_still_says_is_dropped(board: Board) -> None:
    board.engine.board.end(board.started[0].ref)
    await board.note(0.5)
    assert board.told == []
    assert (await board.engine.status.get(1)).progress == 0


async def test_what_was_said_just_before_the_end_is_dropped_on_the_loop(board: Board) -> None:
    board.engine.board.note(board.started[0], 0.5, {})
    board.engine.board.end(board.started[0].ref)
    await settle()
    assert board.told == []


async def test_what_a_replaced_attempt_says_is_dropped_and_ends_nothing(board: Board) -> None:
    await board.engine.recovery()
    board.engine.board.begin(board.started[2].ref)
    assert (board.started[2].ref.step_key, board.started[2].ref.attempt) == ("a", 2)
    await board.note(0.9)
    assert board.told == []
    board.engine.board.end(board.started[0].ref)
    await board.note(0.5, which=2)
    assert board.percents == [50]
    assert (await board.engine.status.get(1)).progress == 25


async def test_a_status_lays_the_live_progress_over_the_committed_state(board: Board) -> None:
    await board.note(0.5)
    view = await board.engine.status.get(1)
    assert view.progress == 25
    assert [each.progress for each in view.steps] == [50, 0]
    (listed,) = await board.engine.status.list(Query())
    assert listed == view
    assert (await board.engine.executions.get(1)).progress == 0


async def test_a_status_has_what_a_running_step_said_last_and_nothing_of_one_that_has_ended(
    board: Board,
) -> None:
    await board.note(0.25, bytes_done=1, bytes_total=4)
    uuid = board.started[0].execution.uuid
    shown = {step.step_key: step.detail for step in (await board.engine.status.get(uuid)).steps}
    assert shown == {"a": {"bytes_done": 1, "bytes_total": 4}, "b": {}}
    encoded = await board.engine.status.encoded(uuid, lambda view: repr(view.steps).encode())
    assert b"bytes_done" in encoded

    board.engine.board.end(board.started[0].ref)
    assert [step.detail for step in (await board.engine.status.get(uuid)).steps] == [{}, {}]


async def test_live_progress_is_stored_with_the_next_outcome_and_held(board: Board) -> None:
    await board.note(0.9)
    await board.engine.advance.complete(board.started[1].ref, {})
    stored = await board.engine.executions.get(1)
    assert stored.progress == 95
    completed = (await board.engine.log())[-1]
    assert completed.data["progress"] == 95
    await board.engine.advance.fail(board.started[0].ref, "no")
    board.engine.board.end(board.started[0].ref)
    assert (await board.engine.status.get(1)).progress == 95


async def test_a_handlers_progress_reaches_the_board(board: Board) -> None:
    seen: list[int] = []
    engine: Engine

    async def work(context: StepContext) -> None:
        context.progress(0.5, file="C1.MP4")
        seen.append((await engine.status.get(context.execution_id)).progress)
        seen.append(engine.board.detail(context.ref)["file"])  # type: ignore[arg-type]

    engine = await Engine(Pipeline("one", [step(name="a")(work)])).open()
    view = await engine.ran("one")
    assert seen == [50, "C1.MP4"]
    assert view.progress == 100
    assert engine.board.of(view.id) == {}


async def test_a_status_of_what_isnt_there_is_not_found(board: Board) -> None:
    with pytest.raises(ExecutionNotFound, match="ghost"):
        await board.engine.status.get("ghost")
