"""The pipelines that there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from application.authoring import Handler, Pipeline
from domain.errors import InvalidDefinition, PipelineNotFound


class Catalogue:
    """Pipelines by type. ``pools`` are the names of the concurrency limits that exist.

    Raises ``InvalidDefinition`` for two pipelines of one type, and for a step in a
    pool that doesn't exist: it would wait for ever.
    """

    def __init__(self, pipelines: Iterable[Pipeline], *, pools: Collection[str]) -> None:
        self._pipelines: dict[str, Pipeline] = {}
        for pipeline in pipelines:
            if pipeline.type in self._pipelines:
                raise InvalidDefinition(f"there are two pipelines of type {pipeline.type!r}")
            for spec in pipeline.definition.steps:
                if spec.pool not in pools:
                    raise InvalidDefinition(
                        f"pipeline {pipeline.type!r}: step {spec.name!r} wants pool "
                        f"{spec.pool!r}, and there are only {', '.join(sorted(pools))}"
                    )
            self._pipelines[pipeline.type] = pipeline

    def get(self, pipeline_type: str) -> Pipeline:
        """Raises ``PipelineNotFound``, which lists those that there are."""
        try:
            return self._pipelines[pipeline_type]
        except KeyError:
            raise PipelineNotFound(pipeline_type, self.types()) from None

    def handler(self, pipeline_type: str, step_name: str) -> Handler | None:
        """The code of a step that was stored earlier; None if it is gone since."""
        pipeline = self._pipelines.get(pipeline_type)
        return None if pipeline is None else pipeline.handler(step_name)

    def types(self) -> tuple[str, ...]:
        return tuple(sorted(self._pipelines))

    def all(self) -> tuple[Pipeline, ...]:
        return tuple(self._pipelines[name] for name in self.types())
