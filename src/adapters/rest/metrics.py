"""Figures for Prometheus, at ``/metrics``.

What has happened is counted off the feed, as any other follower would see it: nothing
is measured where the work is done. What is the case now is asked for when somebody looks.

Labels are what pipelines and the program name: types of pipelines and of events,
pools. Never an execution, a step's key, a card or a path.
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from application.catalogue import Catalogue
from application.feed import Feed
from application.ports import AttemptRef, Clock, Dispatcher, Executions
from domain.errors import RushesError
from domain.events import (
    PipelineCancelled,
    PipelineCompleted,
    PipelineFailed,
    PipelineRetried,
    PipelineStarted,
    RecordedFact,
    StepCompleted,
    StepFailed,
    StepRetrying,
    StepSkipped,
    StepStarted,
)

log = logging.getLogger(__name__)

Queues = Callable[[], Mapping[str, tuple[int, AttemptRef | None]]]
"""By pool: how many steps wait for a slot, and which one is served next."""

EXECUTION_WORDS = {
    PipelineStarted.type: "started",
    PipelineRetried.type: "retried",
    PipelineCompleted.type: "completed",
    PipelineFailed.type: "failed",
    PipelineCancelled.type: "cancelled",
}
_ENDS = frozenset({PipelineCompleted.type, PipelineFailed.type, PipelineCancelled.type})

STEP_WORDS = {
    StepStarted.type: "started",
    StepCompleted.type: "completed",
    StepFailed.type: "failed",
    StepRetrying.type: "retrying",
    StepSkipped.type: "skipped",
}

COMMIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""From what a commit on a good disk takes to what is a broken one."""

OTHER = "other"

COPIED_BYTES = "copied_bytes"
"""Where the data of an execution that has copied says how much."""


class Metrics(Collector):
    """``run`` counts, for as long as the server is there; ``render`` is a page of figures."""

    def __init__(
        self,
        *,
        feed: Feed,
        executions: Executions,
        dispatcher: Dispatcher,
        queues: Queues,
        catalogue: Catalogue,
        clock: Clock,
        version: str,
    ) -> None:
        self._feed = feed
        self._executions = executions
        self._dispatcher = dispatcher
        self._queues = queues
        self._clock = clock
        self._cards = frozenset(each.definition.type for each in catalogue.all() if each.card)
        self._types: dict[int, str] = {}  # of the executions that are under way
        self._moved: Counter[tuple[str, str]] = Counter()
        self._stepped: Counter[tuple[str, str]] = Counter()
        self._events: Counter[str] = Counter()
        self._copied_bytes = 0
        self._queued: Mapping[str, tuple[int, float]] = {}
        # Or there is a series beside each one, of when it began, that nobody looks at.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        build = Gauge(
            "rushes_build_info", "What runs here", ["version", "python"], registry=registry
        )
        build.labels(version, platform.python_version()).set(1)
        self._latency = Histogram(
            "rushes_commit_latency_seconds",
            "From a change being asked for until it is committed and everybody is told, a commit",
            buckets=COMMIT_BUCKETS_S,
            registry=registry,
        )
        registry.register(self)

    async def run(self) -> None:
        """Count what happens, from now on, until the feed is closed, whatever fails."""
        while True:
            try:
                return await self._count()
            except RushesError as error:
                log.warning("some events are not counted: %s", error)

    async def _count(self) -> None:
        published_at: float | None = None
        async for entry in self._feed.follow():
            fact = entry.message
            if not isinstance(fact, RecordedFact):
                continue
            # A commit's facts are let out together: one of them stands for all.
            if entry.published_at != published_at:
                published_at = entry.published_at
                self._time(fact.occurred_at, published_at)
            kind = self._types.get(fact.execution_id) or await self._type_of(fact)
            word = STEP_WORDS.get(fact.type)
            if word is not None:
                self._stepped[kind, word] += 1
            elif fact.type in EXECUTION_WORDS:
                self._moved[kind, EXECUTION_WORDS[fact.type]] += 1
                if fact.type in _ENDS:
                    self._types.pop(fact.execution_id, None)
                if fact.type == PipelineCompleted.type and kind in self._cards:
                    await self._count_bytes(fact)
            # Steps may announce words of their own: any number, and so none by its name.
            self._events[fact.type if fact.type.startswith("pipeline:") else OTHER] += 1

    async def render(self) -> bytes:
        """Prometheus' text format."""
        self._queued = await self._ages()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What was counted, and what is the case now; for the registry."""
        load = self._dispatcher.load()
        yield _counter(
            "rushes_executions",
            "What became of executions since the server was started",
            ("pipeline_type", "outcome"),
            self._moved.items(),
        )
        yield _counter(
            "rushes_steps",
            "What became of attempts at steps since the server was started",
            ("pipeline_type", "outcome"),
            self._stepped.items(),
        )
        yield _counter(
            "rushes_events",
            "Committed events since the server was started",
            ("type",),
            (((word,), count) for word, count in self._events.items()),
        )
        yield CounterMetricFamily(
            "rushes_copied_bytes",
            "What completed executions have copied from cards, and verified",
            value=self._copied_bytes,
        )
        for name, told, value in (
            (
                "executions_active",
                "Executions that are under way and have moved since the server was started",
                len(self._types),
            ),
            ("steps_running", "Handlers at work", load.running),
            ("steps_waiting", "Steps that wait for a slot", load.waiting),
            ("steps_overdue", "Attempts told to end that haven't yet", len(load.overdue)),
            ("steps_abandoned", "Attempts that others work around", len(load.abandoned)),
            ("engine_paused", "Whether the engine starts nothing", int(load.held)),
            ("last_event_id", "The id of the newest committed event", self._feed.last_id),
            # Its own cursor is no client.
            (
                "followers",
                "Clients that follow events, over whichever door",
                max(0, self._feed.followers - 1),
            ),
        ):
            yield GaugeMetricFamily(f"rushes_{name}", told, value=value)
        length = GaugeMetricFamily(
            "rushes_queue_length", "Steps that wait for a slot of this pool", labels=["pool"]
        )
        age = GaugeMetricFamily(
            "rushes_queue_age_seconds",
            "How long the step has waited that is served next in this pool",
            labels=["pool"],
        )
        for pool, (waiting, age_s) in sorted(self._queued.items()):
            length.add_metric([pool], waiting)
            age.add_metric([pool], age_s)
        yield length
        yield age

    def _time(self, asked_at: datetime, published_at: float | None) -> None:
        if published_at is None:
            return  # read from the log, and no matter how long ago it was told
        since_then_s = self._clock.monotonic() - published_at
        took_s = (self._clock.now() - asked_at).total_seconds() - since_then_s
        self._latency.observe(max(0.0, took_s))

    async def _type_of(self, fact: RecordedFact) -> str:
        """Of an execution that isn't known to be under way."""
        if fact.type == PipelineStarted.type:
            kind = self._types[fact.execution_id] = str(fact.data["pipeline_type"])
            return kind
        try:
            execution = await self._executions.get(fact.execution_id)
        except RushesError:  # forgotten meanwhile, or the store is closed
            return OTHER
        if execution.active and fact.type not in _ENDS:
            self._types[fact.execution_id] = execution.definition.type
        return execution.definition.type

    async def _count_bytes(self, fact: RecordedFact) -> None:
        try:
            execution = await self._executions.get(fact.execution_id)
        except RushesError:
            return
        if execution.rerun_of is not None:
            return  # its data may still say what the first one copied
        copied = execution.data.get(COPIED_BYTES)
        if isinstance(copied, int) and copied > 0:
            self._copied_bytes += copied

    async def _ages(self) -> dict[str, tuple[int, float]]:
        """By pool: how many steps wait, and for how many seconds the next one has."""
        now = self._clock.now()
        found = {}
        for pool, (waiting, following) in self._queues().items():
            age_s = 0.0
            if following is not None:
                try:
                    execution = await self._executions.get(following.execution_id)
                except RushesError:
                    execution = None
                step = None if execution is None else execution.steps.get(following.step_key)
                if step is not None and step.queued_at is not None:
                    age_s = max(0.0, (now - step.queued_at).total_seconds())
            found[pool] = (waiting, age_s)
        return found


def _counter(
    name: str, told: str, labels: Sequence[str], counts: Iterable[tuple[tuple[str, ...], int]]
) -> Metric:
    family = CounterMetricFamily(name, told, labels=labels)
    for values, count in sorted(counts):
        family.add_metric(values, count)
    return family
