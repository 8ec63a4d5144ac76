"""The application as it is wired, with fakes where a test wants them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dependency_injector import providers

from adapters.settings import Settings
from application.authoring import Pipeline, StepContext, step
from application.catalogue import Catalogue
from application.ports import Query
from bootstrap import Container, load_pipeline, running
from domain.errors import InvalidInput, Unavailable
from server import NEW_OBJECTS, spare_collector


def settings(place: Path, **flags: str) -> Settings:
    own = {
        "database_url": f"sqlite:///{place}/rushes.db",
        "library": str(place),
        "card_roots": str(place),
    }
    return Settings.load({**own, **flags}, {})


@step()
async def greet(context: StepContext) -> dict[str, object]:
    return {"greeting": f"hello {context.data['name']}"}


async def test_a_pipeline_runs_through_the_container(tmp_path: Path) -> None:
    container = Container(settings=settings(tmp_path))
    catalogue = Catalogue([Pipeline("greeting", [greet])], pools=["default"])
    container.catalogue.override(providers.Object(catalogue))
    async with running(container):
        feed = container.feed()
        answer = await container.trigger()("greeting", {"name": "card"})
        async with asyncio.timeout(10):
            async for entry in feed.follow(0):
                if entry.message.type == "pipeline:completed":
                    break
        found = await container.status().get(answer.execution.uuid)
    assert found.status == "completed"
    assert found.execution_data == {"name": "card", "greeting": "hello card"}


@contextmanager
def own_collector() -> Iterator[None]:
    """What is done to the collector of this process is undone."""
    threshold = gc.get_threshold()
    try:
        yield
    finally:
        gc.enable()
        gc.set_threshold(*threshold)
        gc.unfreeze()


async def test_what_the_engine_makes_goes_without_the_collector(tmp_path: Path) -> None:
    """Which is in no hurry (``spare_collector``): what is in a cycle would stay for long."""
    container = Container(settings=settings(tmp_path))
    catalogue = Catalogue([Pipeline("greeting", [greet])], pools=["default"])
    container.catalogue.override(providers.Object(catalogue))
    executions = 50
    async with running(container):
        following = container.feed().follow(0)

        async def through(count: int) -> None:
            for _ in range(count):
                await container.trigger()("greeting", {"name": "card"})
            async with asyncio.timeout(10):
                async for entry in following:
                    count -= entry.message.type == "pipeline:completed"
                    if not count:
                        return

        with own_collector():
            await through(1)  # what is made once, and kept, may hang together as it likes
            gc.collect()
            gc.disable()
            await through(executions)
            assert gc.collect() < executions
        await following.aclose()


def test_what_is_there_at_the_start_is_not_looked_through_again() -> None:
    with own_collector():
        there: list[list[int]] = [[]]
        spare_collector()
        later: list[list[int]] = [[]]
        looked_through = {id(each) for each in gc.get_objects()}
        assert id(later) in looked_through
        assert id(there) not in looked_through
        assert gc.get_threshold()[0] == NEW_OBJECTS


async def test_nothing_is_served_after_the_end(tmp_path: Path) -> None:
    container = Container(settings=settings(tmp_path))
    async with running(container):
        trigger = container.trigger()
    with pytest.raises(Unavailable):
        await trigger("sd_ingest", {"sd_path": str(tmp_path / "A")})


class Endless:
    """A retention that notes when it is run and when it is ended."""

    def __init__(self) -> None:
        self.states: list[str] = []

    async def run(self) -> None:
        self.states.append("runs")
        try:
            await asyncio.Event().wait()
        finally:
            self.states.append("ended")


@pytest.mark.parametrize("recover", [True, False])
async def test_what_is_too_old_is_forgotten_for_as_long_as_the_engine_runs(
    tmp_path: Path, recover: bool
) -> None:
    """Not by who only looks at what there is."""
    container, retention = Container(settings=settings(tmp_path)), Endless()
    container.retention.override(providers.Object(retention))
    async with running(container, recover=recover):
        await container.status().list(Query())
        assert retention.states == (["runs"] if recover else [])
    assert retention.states == (["runs", "ended"] if recover else [])


def test_the_built_in_pipeline_is_as_the_specification_has_it(tmp_path: Path) -> None:
    container = Container(settings=settings(tmp_path))
    definition = container.catalogue().get("sd_ingest").definition
    assert {spec.name: spec.depends_on for spec in definition.steps[:3]} == {
        "scan_sd": (),
        "create_job": ("scan_sd",),
        "copy_files": ("create_job",),
    }
    # What can't be written is no reason to fail what was copied, nor to leave it unjudged.
    assert {spec.name: (spec.depends_on, spec.required) for spec in definition.steps[3:]} == {
        "write_manifest": (("copy_files",), False),
        "verdict": (("copy_files",), True),
        "write_report": (("verdict",), False),
    }
    assert definition.steps[4].after == ("write_manifest",)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:pipeline", "No module named 'no_such_module'"),
        ("tests.e2e.pipelines:nothing", "has no attribute 'nothing'"),
        ("tests.e2e.pipelines:split", "not a Pipeline"),
    ],
)
def test_a_pipeline_that_can_t_be_loaded_is_named(name: str, says: str) -> None:
    with pytest.raises(InvalidInput, match="pipeline") as refused:
        load_pipeline(name)
    assert name in str(refused.value)
    assert says in str(refused.value)


def test_a_module_that_ends_the_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_the_process.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match="'ends_the_process:pipeline' can't be loaded: SystemE"):
        load_pipeline("ends_the_process:pipeline")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:step", "No module named 'no_such_module'"),
        ("tests.e2e.clips:nothing", "has no attribute 'nothing'"),
        ("tests.e2e.pipelines:gate", "is Pipeline, not a step made by @step()"),
    ],
)
def test_a_step_for_clips_that_can_t_be_loaded_is_named(
    tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match="clip step") as refused:
        Container(settings=settings(tmp_path, clip_steps=name)).catalogue()
    assert name in str(refused.value)
    assert says in str(refused.value)
    assert refused.value.field == "RUSHES_CLIP_STEPS"


def test_steps_for_clips_are_families_that_nothing_but_the_end_waits_for(tmp_path: Path) -> None:
    names = "examples.checksums:checksums,tests.e2e.clips:picky"
    container = Container(settings=settings(tmp_path, clip_steps=names))
    definition = container.catalogue().get("sd_ingest").definition
    specs = {spec.name: spec for spec in definition.steps}
    assert specs["copy_files"].spawns == ("checksums", "picky")
    assert [(specs[n].dynamic, specs[n].required) for n in ("checksums", "picky")] == (
        [(True, False)] * 2
    )
    waiting = [n for n, spec in specs.items() if "picky:*" in (*spec.depends_on, *spec.after)]
    assert waiting == ["check_clips"]
    assert specs["check_clips"].required
    assert specs["check_clips"].after == ("checksums:*", "picky:*", "verdict", "write_report")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"card_pipeline": "no_such"}, "no_such"),
        (
            {"pipelines": "tests.e2e.pipelines:gate", "card_pipeline": "gate"},
            "doesn't work on cards",
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(
    tmp_path: Path, flags: dict[str, str], says: str
) -> None:
    with pytest.raises(Exception, match=says):
        Container(settings=settings(tmp_path, **flags)).catalogue()


@pytest.mark.parametrize("after_s", ["0", "-1", "nan", "inf", "3601", "soon"])
def test_a_bound_for_handlers_that_don_t_end_is_a_positive_number_of_seconds(
    tmp_path: Path, after_s: str
) -> None:
    with pytest.raises(InvalidInput, match=r"no number of seconds from 0\.1 to 3600"):
        settings(tmp_path, abandon_after_s=after_s)
    assert settings(tmp_path).abandon_after_s == 300
