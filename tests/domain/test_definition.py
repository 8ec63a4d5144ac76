"""What could never run is refused, with the culprit's name; the rest survives storage."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest

from domain.definition import DEFAULT_POOL, MAX_STEPS, PipelineDefinition, StepSpec
from domain.errors import InvalidDefinition


def refused(*steps: Any, type: Any = "film") -> str:
    with pytest.raises(InvalidDefinition) as refusal:
        PipelineDefinition(type, tuple(steps))
    return str(refusal.value)


@pytest.mark.parametrize("type_", ["", "9x", "with space", "a" * 65, "a\n", "ä", None, 3])
def test_a_type_that_cant_stand_in_a_url_is_refused_by_name(type_: object) -> None:
    assert repr(type_) in refused(StepSpec("a"), type=type_)


@pytest.mark.parametrize("name", ["", "9x", "with space", "a" * 65, "a\n", "a:b", "a.b", None, 3])
def test_a_step_name_that_cant_stand_in_a_url_is_refused_by_name(name: Any) -> None:
    assert repr(name) in refused(StepSpec(name))


@pytest.mark.parametrize("pool", ["", "two words", "p\n", None, 3])
def test_a_malformed_pool_is_refused_with_its_step(pool: Any) -> None:
    said = refused(StepSpec("a", pool=pool))
    assert "'a'" in said
    assert repr(pool) in said


@pytest.mark.parametrize("weight", [0, -1, 1.5, True, float("nan"), 1_000_001, "1", None])
def test_a_weight_that_is_no_share_is_refused_with_its_step(weight: Any) -> None:
    said = refused(StepSpec("a", weight=weight))
    assert "'a'" in said
    assert repr(weight) in said


@pytest.mark.parametrize("weight", [1, 1_000_000])
def test_the_bounds_of_a_weight_are_allowed(weight: int) -> None:
    assert PipelineDefinition("film", (StepSpec("a", weight=weight),)).steps[0].weight == weight


def test_a_pipeline_without_steps_is_refused() -> None:
    assert "'film' has no steps" in refused()


def test_more_steps_than_the_bound_are_refused_with_their_number() -> None:
    assert str(MAX_STEPS + 1) in refused(*(StepSpec(f"s{n}") for n in range(MAX_STEPS + 1)))


def test_two_steps_of_one_name_are_refused() -> None:
    assert "two steps named 'a'" in refused(StepSpec("a"), StepSpec("b"), StepSpec("a"))


@pytest.mark.parametrize("relation", ["depends_on", "after"])
def test_a_dependency_on_nothing_names_both(relation: str) -> None:
    related: dict[str, Any] = {relation: ("ghost",)}
    said = refused(StepSpec("a", **related))
    assert "'a'" in said
    assert "'ghost'" in said
    assert relation in said


def test_a_required_step_may_not_depend_on_an_optional_one() -> None:
    said = refused(StepSpec("extra", required=False), StepSpec("main", depends_on=("extra",)))
    assert "'main'" in said
    assert "'extra'" in said


def test_a_required_step_may_come_after_an_optional_one() -> None:
    PipelineDefinition("film", (StepSpec("x", required=False), StepSpec("y", after=("x",))))


def test_an_optional_step_may_depend_on_either_kind() -> None:
    optional = StepSpec("z", depends_on=("x", "y"), required=False)
    PipelineDefinition("film", (StepSpec("x"), StepSpec("y", required=False), optional))


@pytest.mark.parametrize(
    "steps",
    [
        (StepSpec("a", depends_on=("a",)),),
        (StepSpec("a", after=("a",)),),
        (StepSpec("a", depends_on=("b",)), StepSpec("b", depends_on=("a",))),
        (StepSpec("a", depends_on=("b",)), StepSpec("b", after=("a",))),
        (
            StepSpec("start"),
            StepSpec("a", depends_on=("start", "c")),
            StepSpec("b", after=("a",)),
            StepSpec("c", depends_on=("b",)),
            StepSpec("end", depends_on=("c",)),
        ),
    ],
)
def test_a_circle_is_refused_and_drawn(steps: tuple[StepSpec, ...]) -> None:
    said = refused(*steps)
    circle = said.rsplit(": ", 1)[1].split(" -> ")
    assert circle[0] == circle[-1]
    by_name = {spec.name: spec for spec in steps}
    for name, following in itertools.pairwise(circle):
        assert following in (*by_name[name].depends_on, *by_name[name].after)
    assert "start" not in circle
    assert "end" not in circle


def test_a_diamond_is_no_circle() -> None:
    PipelineDefinition(
        "film",
        (
            StepSpec("a"),
            StepSpec("b", depends_on=("a",)),
            StepSpec("c", depends_on=("a", "b")),
            StepSpec("d", depends_on=("a", "b", "c"), after=("b",)),
        ),
    )


@pytest.mark.parametrize("backwards", [False, True])
def test_a_chain_of_a_thousand_steps_needs_no_deep_stack(backwards: bool) -> None:
    chain = [StepSpec(f"s{n}", depends_on=(f"s{n - 1}",) if n else ()) for n in range(MAX_STEPS)]
    if backwards:
        chain.reverse()
    limit = sys.getrecursionlimit()
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    sys.setrecursionlimit(depth + 50)
    try:
        assert PipelineDefinition("chain", tuple(chain)).spec("s999") is not None
    finally:
        sys.setrecursionlimit(limit)


def test_a_definition_survives_storage_whole() -> None:
    definition = PipelineDefinition(
        "film.v2",
        (
            StepSpec("a", required=False, weight=7, pool="io"),
            StepSpec("b", after=("a",), external=True),
            StepSpec("c", depends_on=("b",)),
        ),
    )
    stored = definition.to_dict()
    assert PipelineDefinition.from_dict(stored) == definition
    assert set(stored["steps"][0]) == set(StepSpec.__slots__), "every field is stored"


def test_what_is_stored_is_not_asked_again_whether_it_is_valid() -> None:
    stored = PipelineDefinition("film", (StepSpec("a"), StepSpec("b"))).to_dict()
    stored["steps"][0]["weight"] = 0
    stored["steps"][1]["name"] = "no word"
    found = PipelineDefinition.from_dict(stored)
    assert [spec.name for spec in found.steps] == ["a", "no word"]
    assert found.spec("no word") is not None
    with pytest.raises(InvalidDefinition):
        PipelineDefinition("film", found.steps)


def test_what_an_older_version_stored_gets_the_defaults() -> None:
    old = PipelineDefinition.from_dict({"type": "film", "steps": [{"name": "a"}]})
    assert old.steps == (StepSpec("a"),)
    assert old.steps[0].pool == DEFAULT_POOL


def test_what_a_newer_version_stored_beside_it_is_no_harm() -> None:
    stored = {"type": "film", "steps": [{"name": "a", "colour": "red"}], "later": 1}
    assert PipelineDefinition.from_dict(stored).steps == (StepSpec("a"),)


def test_a_step_is_found_by_name_or_not_at_all() -> None:
    definition = PipelineDefinition("film", (StepSpec("a"),))
    assert definition.spec("a") == StepSpec("a")
    assert definition.spec("b") is None


def test_a_definition_is_immutable() -> None:
    definition = PipelineDefinition("film", (StepSpec("a"),))
    with pytest.raises(AttributeError):
        definition.type = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        definition.steps[0].weight = 3  # type: ignore[misc]
