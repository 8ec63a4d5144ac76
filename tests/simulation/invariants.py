"""What is always true, and the history against which it is held.

``History`` replays the log as it grows, knowing nothing of the engine's own code but
the words of its facts, and compares what it makes of it with what is stored, at every
commit. What an observer outside can notice (messages, answers, handlers at work) it
checks as it happens, and the rest at the end.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from application.authoring import StepContext
from application.trigger import TriggerAnswer
from domain.card_keys import may_be_one_card
from domain.definition import StepSpec
from domain.errors import FactsGone
from domain.events import RecordedFact
from domain.execution import Execution, ExecutionStatus
from domain.step import StepStatus
from tests.fakes.world import EPOCH
from tests.simulation.store import Batch

if TYPE_CHECKING:
    from tests.simulation.world import Follower, Process, World

INVARIANTS = {
    "liveness": "No execution stays running or pending with nothing running and scheduled.",
    "completed once": "kill -9 at any instant repeats no completed step.",
    "attempts": "Attempt rises at each start and never resets; an older attempt's result is "
    "refused; an attempt is begun once.",
    "order": "A step starts only when every step in its depends_on has completed and every "
    "step in its after has ended, and only while its execution runs and isn't paused.",
    "failure": "A required step that fails fails the execution at once, with one "
    "pipeline:failed; what depends on a failed step is skipped, and nothing else is.",
    "retry": "Retry reopens the failed and those skipped because of them, and keeps what "
    "completed.",
    "cancel": "The first commit wins: nothing starts or ends any more once it is cancelled.",
    "completion": "An execution completes once every step has ended and no required one failed.",
    "progress": "Progress never falls within a run, is at most 99 before the last step and "
    "100 with it.",
    "facts and state": "State and facts commit together or not at all: the log replayed is "
    "what is stored.",
    "ids": "Facts become visible in the order of their increasing ids.",
    "durable first": "Nothing is said to anybody, and no handler begun, before it is durable.",
    "followers": "A follower misses nothing and sees nothing twice; it is told so if what it "
    "missed is forgotten, and only then.",
    "step progress": "Step progress carries its attempt, and is dropped unless that attempt "
    "is known to run.",
    "pools": "No pool has more handlers at work than it has slots, but for abandoned ones.",
    "families": "Spawning the same again changes nothing; a family is closed when all its "
    "declarers have ended, and only then is who waits for it satisfied.",
    "messages": "One execution per message_id; the same one again is answered with the same, "
    "as long as that is kept.",
    "cards": "At most one active execution per card.",
    "hold": "While the engine is held, nothing starts, whoever does it.",
    "forgetting": "What is forgotten had ended, long enough ago; it stays away, and what has "
    "ended for longer goes.",
    "data": "Data is what the trigger brought and what completed steps put out.",
    "no surprises": "Nothing raises where nobody catches it.",
}
"""Each by its name, with the rule that it stands for."""

BY_HAND = "skipped by hand"

FORGETTING_S = 5.0
"""How long it may take to forget what is too old: one after the other, with pauses."""


@dataclass(slots=True)
class Replayed:
    """A step, as the log tells it. begun_by: the process in which its last attempt began."""

    spec: StepSpec
    status: str = "pending"
    attempt: int = 0
    begun_by: int = 0
    waived: bool = False
    completed_attempt: int = 0

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "skipped", "cancelled")


@dataclass(slots=True)
class Told:
    """An execution, as the log tells it."""

    execution: Execution
    payload: Mapping[str, Any]
    status: str = "pending"
    paused: bool = False
    retries: int = 0
    steps: dict[str, Replayed] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    progress: int = 0
    progress_of: tuple[int, int] = (0, 0)
    last_at: datetime = EPOCH
    gone: bool = False


class History:
    def __init__(self, world: World) -> None:
        self._world = world
        self._told: dict[int, Told] = {}
        self._ids: list[int] = []
        self._by_id: dict[int, RecordedFact] = {}
        self._messages: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self._gone: set[str] = set()  # by uuid
        self._floor = 0
        self._begun: set[tuple[str, str, int]] = set()
        self._shown: dict[tuple[int, int, int], int] = {}

    def _wrong(self, name: str, text: str) -> None:
        self._world.violate(name, text)

    @property
    def _process(self) -> int:
        return len(self._world.processes)

    # -- at every commit ---------------------------------------------------------

    def committed(self, before: Mapping[int, Execution], batch: Batch) -> None:
        # First: a message that is forgotten may make another execution in the same commit.
        for execution_id in sorted(batch.gone):
            self._forget(execution_id)
        for execution_id, draft in batch.drafts.items():
            if execution_id not in before:
                self._insert(execution_id, draft)
        for fact in batch.facts:
            if self._ids and fact.id <= self._ids[-1]:
                self._wrong("ids", f"fact {fact.id} comes after {self._ids[-1]}")
            self._ids.append(fact.id)
            self._by_id[fact.id] = fact
            told = self._told[fact.execution_id]
            told.last_at = fact.occurred_at
            if batch.while_held and fact.type == "pipeline:step_started":
                self._wrong("hold", f"{self._where(fact)} starts while the engine is held")
            replay = REPLAY.get(fact.type)
            if replay is None:
                self._wrong("facts and state", f"nobody knows what {fact.type} does")
            else:
                replay(self, told, fact)
        for execution_id, draft in batch.drafts.items():
            self._compare(execution_id, draft)
        self._check_cards(batch)

    def _forget(self, execution_id: int) -> None:
        told, keep_s = self._told[execution_id], self._world.keep_s
        at_work = [key for key, step in told.steps.items() if step.status == "running"]
        if told.status in ("pending", "running") or at_work:
            state = f"{told.status}, with {at_work} at work"
            self._wrong("forgetting", f"execution {execution_id} is forgotten while {state}")
        age_s = self._age_s(told.last_at)
        if keep_s is None or age_s < keep_s:
            self._wrong(
                "forgetting", f"execution {execution_id} is forgotten after {age_s} s, not {keep_s}"
            )
        told.gone = True
        self._gone.add(told.execution.uuid)
        lost = (number for number in reversed(self._ids) if self._of(number) == execution_id)
        self._floor = max(self._floor, next(lost, 0))

    def _of(self, fact_id: int) -> int:
        return self._by_id[fact_id].execution_id

    def _age_s(self, since: datetime) -> float:
        return self._world.schedule.now - (since - EPOCH).total_seconds()

    def _insert(self, execution_id: int, draft: Execution) -> None:
        if draft.message_id is not None and any(
            told.execution.message_id == draft.message_id and not told.gone
            for told in self._told.values()
        ):
            self._wrong("messages", f"{draft.message_id} has made a second execution")
        # What its first commit brings can only be what the trigger said, or what an
        # execution that is run again has kept of the one before.
        told = Told(draft, draft.data if draft.rerun_of is None else draft.payload())
        for key, step in draft.steps.items():
            if draft.rerun_of is not None and step.satisfies:
                told.kept.add(key)
                told.steps[key] = Replayed(
                    step.spec,
                    status=step.status.value,
                    attempt=step.attempt,
                    waived=step.waived,
                    completed_attempt=step.attempt,
                )
            elif draft.rerun_of is not None or not step.spec.dynamic:
                told.steps[key] = Replayed(step.spec)
        self._told[execution_id] = told

    def _compare(self, execution_id: int, stored: Execution) -> None:
        told = self._told[execution_id]
        told.execution = stored
        if told.gone:
            self._wrong("forgetting", f"execution {execution_id} is changed, and was forgotten")
        if told.status != stored.status.value:
            self._wrong(
                "facts and state",
                f"execution {execution_id} is {stored.status}, and was told to be {told.status}",
            )
        for key, step in stored.steps.items():
            replayed = told.steps[key]
            if replayed.status == "running" and step.status is StepStatus.PENDING:
                replayed.status = "pending"  # taken over or given back, which nobody is told
            where = f"step {key} of execution {execution_id}"
            if replayed.status != step.status.value:
                self._wrong(
                    "facts and state",
                    f"{where} is {step.status}, and was told to be {replayed.status}",
                )
            if replayed.attempt != step.attempt:
                self._wrong(
                    "attempts", f"{where} is at {step.attempt}, told to be at {replayed.attempt}"
                )
            theirs = key in told.kept or stored.definition.type == "probe"
            if step.status is StepStatus.COMPLETED and not theirs:
                self._check_output(where, step.name, step.output, step.attempt, stored, key)

    def _check_output(
        self,
        where: str,
        name: str,
        output: Mapping[str, Any] | None,
        attempt: int,
        stored: Execution,
        key: str,
    ) -> None:
        said = (output or {}).get(name)
        if said is None or said[:2] != [stored.uuid, key]:
            self._wrong("data", f"{where} has another's output: {output}")
        elif said[2] != attempt:
            self._wrong("attempts", f"{where} has taken attempt {said[2]}'s output for {attempt}'s")

    def _check_cards(self, batch: Batch) -> None:
        holders = [
            (execution_id, execution.card_key)
            for execution_id, execution in batch.disk.executions.items()
            if execution.card_key is not None and execution.active
        ]
        for (one, key), (other, its_key) in itertools.combinations(holders, 2):
            if may_be_one_card(key, its_key):
                self._wrong("cards", f"{one} and {other} hold {key}")

    # -- what the facts say ------------------------------------------------------

    def _step(self, told: Told, fact: RecordedFact) -> Replayed:
        return told.steps[fact.data["step_key"]]

    def _where(self, fact: RecordedFact) -> str:
        return f"#{fact.id}: step {fact.step_key} of execution {fact.execution_id}"

    def _started(self, told: Told, fact: RecordedFact) -> None:
        if told.status != "pending":
            self._wrong("facts and state", f"#{fact.id}: started while {told.status}")
        told.status = "running"

    def _step_started(self, told: Told, fact: RecordedFact) -> None:
        step, where, attempt = self._step(told, fact), self._where(fact), fact.data["attempt"]
        if told.status != "running" or told.paused:
            name = "cancel" if told.status == "cancelled" else "order"
            state = "paused" if told.paused else told.status
            self._wrong(name, f"{where} starts while its execution is {state}")
        if step.status == "completed" or step.completed_attempt:
            self._wrong("completed once", f"{where} starts again, at attempt {attempt}")
        elif (
            step.status == "running"
            and step.begun_by == self._process
            and step.spec.lease_s is None  # taken over, which nobody is told
        ):
            self._wrong("attempts", f"{where} starts again while attempt {step.attempt} runs")
        elif step.status not in ("pending", "running"):
            self._wrong("order", f"{where} starts while it is {step.status}")
        if attempt <= step.attempt:
            self._wrong("attempts", f"{where} starts with {attempt} after {step.attempt}")
        for name in step.spec.depends_on:
            for other in self._named(told, name, where):
                if other.status != "completed" and not other.waived:
                    self._wrong("order", f"{where} starts while {name} is {other.status}")
        for name in step.spec.after:
            for other in self._named(told, name, where):
                if not other.ended:
                    self._wrong("order", f"{where} starts while {name} is {other.status}")
        step.status, step.attempt, step.begun_by = "running", attempt, self._process

    def _named(self, told: Told, name: str, where: str = "") -> list[Replayed]:
        """The step of that name, or a family, which has to be closed for who starts after it."""
        if not name.endswith(":*"):
            return [told.steps[name]]
        family = name[:-2]
        open_ones = [k for k, s in told.steps.items() if family in s.spec.spawns and not s.ended]
        if where and open_ones:
            self._wrong("families", f"{where} starts while {open_ones} may spawn more of {family}")
        return [step for step in told.steps.values() if step.spec.name == family]

    def _spawned(self, told: Told, fact: RecordedFact) -> None:
        key, by = fact.data["step_key"], told.steps[fact.data["spawned_by"]]
        spec = told.execution.definition.spec(fact.data["step_name"])
        if spec is None or spec.name not in by.spec.spawns or by.status != "running":
            self._wrong("families", f"#{fact.id}: {key} is spawned by one that is {by.status}")
            return
        if key in told.steps:
            self._wrong("families", f"#{fact.id}: {key} is spawned again")
        told.steps[key] = Replayed(spec)

    def _believed(self, told: Told, step: Replayed, fact: RecordedFact) -> None:
        where, attempt = self._where(fact), fact.data["attempt"]
        if step.status == "cancelled":
            self._wrong("cancel", f"{where}: {fact.type} after it was cancelled")
        elif step.attempt != attempt or step.status != "running":
            self._wrong(
                "attempts",
                f"{where}: {fact.type} of attempt {attempt}; it is {step.status} "
                f"at attempt {step.attempt}",
            )

    def _step_completed(self, told: Told, fact: RecordedFact) -> None:
        step, progress = self._step(told, fact), fact.data["progress"]
        settled = (told.execution.uuid, fact.data["step_key"]) in self._world.settled
        if not (settled and step.status == "failed"):
            self._believed(told, step, fact)
        step.status, step.completed_attempt = "completed", fact.data["attempt"]
        run = (told.retries, self._process)
        if run == told.progress_of and progress < told.progress:
            self._wrong("progress", f"{self._where(fact)}: {progress} after {told.progress}")
        told.progress, told.progress_of = progress, run
        last = all(each.ended for each in told.steps.values())
        required = [s for s in told.steps.values() if s.spec.required and s.status == "failed"]
        done = last and not required and told.status == "running"
        if (progress == 100) != done and not (settled and progress <= 99):
            self._wrong("progress", f"{self._where(fact)}: {progress} with all ended: {last}")

    def _step_failed(self, told: Told, fact: RecordedFact) -> None:
        step = self._step(told, fact)
        if not (step.status == "pending" and "for a slot" in fact.data["error"]):
            self._believed(told, step, fact)
        step.status = "failed"

    def _step_retrying(self, told: Told, fact: RecordedFact) -> None:
        step = self._step(told, fact)
        self._believed(told, step, fact)
        if told.status != "running":
            self._wrong("failure", f"{self._where(fact)} is tried again after {told.status}")
        step.status = "pending"

    def _step_skipped(self, told: Told, fact: RecordedFact) -> None:
        step, where = self._step(told, fact), self._where(fact)
        if step.status == "failed" and fact.data["error"] == BY_HAND:
            step.status, step.waived = "skipped", True
            return
        above = [s for name in step.spec.depends_on for s in self._named(told, name)]
        if step.status != "pending":
            self._wrong("failure", f"{where} is skipped while it is {step.status}")
        if not any(s.status in ("failed", "skipped") and not s.waived for s in above):
            self._wrong("failure", f"{where} is skipped, and nothing that it depends on failed")
        step.status = "skipped"

    def _failed(self, told: Told, fact: RecordedFact) -> None:
        error = fact.data["error"]
        step = told.steps[error["step_key"]]
        if told.status != "running":
            self._wrong("failure", f"#{fact.id}: failed a second time, while {told.status}")
        if step.status != "failed" or not step.spec.required or step.attempt != error["attempt"]:
            self._wrong("failure", f"#{fact.id}: says that {error} failed it")
        told.status, told.paused = "failed", False

    def _retried(self, told: Told, fact: RecordedFact) -> None:
        if told.status != "failed":
            self._wrong("retry", f"#{fact.id}: retried while {told.status}")
        for key in fact.data["reopened"]:
            step = told.steps[key]
            if step.status not in ("failed", "skipped"):
                self._wrong("retry", f"#{fact.id}: reopens {key}, which is {step.status}")
            step.status = "pending"
        told.status = "running"
        told.retries += 1
        for key, step in told.steps.items():
            if step.status == "failed" and step.spec.required:
                self._wrong("retry", f"#{fact.id}: leaves {key} failed")

    def _completed(self, told: Told, fact: RecordedFact) -> None:
        open_ones = [key for key, step in told.steps.items() if not step.ended]
        failed = [k for k, s in told.steps.items() if s.status == "failed" and s.spec.required]
        if told.status != "running" or open_ones or failed:
            self._wrong(
                "completion",
                f"#{fact.id}: completed while {told.status}, open {open_ones}, failed {failed}",
            )
        told.status, told.paused = "completed", False

    def _cancelled(self, told: Told, fact: RecordedFact) -> None:
        if told.status not in ("running", "pending"):
            self._wrong("cancel", f"#{fact.id}: cancelled while {told.status}")
        for key in fact.data["cancelled"]:
            step = told.steps[key]
            if step.ended:
                self._wrong("cancel", f"#{fact.id}: cancels {key}, which is {step.status}")
            step.status = "cancelled"
        told.status, told.paused = "cancelled", False

    def _paused(self, told: Told, fact: RecordedFact) -> None:
        told.paused = True

    def _resumed(self, told: Told, fact: RecordedFact) -> None:
        told.paused = False

    # -- what others notice ------------------------------------------------------

    def began(self, context: StepContext, process: Process) -> None:
        ref = context.ref
        told = self._told.get(ref.execution_id)
        step = None if told is None else told.steps.get(ref.step_key)
        if told is None or step is None or step.attempt < ref.attempt:
            self._wrong("durable first", f"{ref} begins, and its start isn't stored")
            return
        if told.gone:
            self._wrong("forgetting", f"{ref} begins, and its execution is forgotten")
        attempt = (context.execution_id, ref.step_key, ref.attempt)
        if attempt in self._begun:
            self._wrong("attempts", f"{ref} is begun twice")
        self._begun.add(attempt)
        for name in step.spec.depends_on:
            if name.endswith(":*"):
                continue
            if told.steps[name].status == "completed" and name not in context.data:
                self._wrong("data", f"{ref} isn't given what {name} put out")
        pool = step.spec.pool
        abandoned = process.container.dispatcher().load().abandoned
        busy = 1 + sum(
            self._told[other.execution_id].steps[other.step_key].spec.pool == pool
            for other in process.at_work
            if other not in abandoned
        )
        if busy > self._world.pools[pool]:
            self._wrong("pools", f"{ref} begins as number {busy} in pool {pool}")
        for limit in step.spec.limits:
            where = context.data.get(limit.by)
            busy = 1 + sum(
                limit in self._told[other.execution_id].steps[other.step_key].spec.limits
                and self._told[other.execution_id].payload.get(limit.by) == where
                for other in process.at_work
            )
            if where is not None and busy > limit.at_once:
                self._wrong("pools", f"{ref} begins as number {busy} with {limit.by} {where}")

    def heard(self, follower: Follower, message: RecordedFact) -> None:
        who = f"follower {follower.number}"
        if self._by_id.get(message.id) is not message:
            self._wrong("durable first", f"{who} hears of #{message.id}, which isn't stored")
            return
        if message.id <= follower.last:
            self._wrong("followers", f"{who} sees #{message.id} again, after #{follower.last}")
            return
        for between in self._ids[bisect_right(self._ids, follower.last) :]:
            if between >= message.id:
                break
            if follower.execution_id in (None, self._by_id[between].execution_id):
                self._wrong("followers", f"{who} misses #{between}, hears #{message.id}")

    def reset(self, follower: Follower, gone: FactsGone) -> None:
        """It is told that there is something that it can't be told any more."""
        who = f"follower {follower.number}"
        if follower.execution_id is None:
            whole = follower.last >= self._floor
        else:
            told = self._told.get(follower.execution_id)
            whole = told is not None and not told.gone
        if whole:
            self._wrong("followers", f"{who} is told, for nothing, that {gone}")

    def progress_told(self, data: Mapping[str, Any]) -> None:
        told = next(t for t in self._told.values() if t.execution.uuid == data["execution_id"])
        if data["attempt"] > told.steps[data["step_key"]].attempt:
            self._wrong("step progress", f"progress of an attempt that never began: {data}")

    def answered(self, message_id: str | None, answer: TriggerAnswer) -> None:
        if message_id is None:
            return
        uuid = answer.execution.uuid
        if uuid in self._gone:  # since it was answered
            return
        if self._messages.get(message_id, uuid) not in (uuid, *self._gone):
            self._wrong("messages", f"{message_id} is answered with a second execution")
        self._messages[message_id] = uuid
        if answer.duplicate is None:
            if message_id in self._new and self._new[message_id] not in self._gone:
                self._wrong("messages", f"{message_id} is called new twice")
            self._new[message_id] = uuid

    def run_of(self, execution_id: int) -> tuple[int, int, int]:
        """What progress may not fall within."""
        return (execution_id, self._told[execution_id].retries, self._process)

    def shown(self, run: tuple[int, int, int], view: Any) -> None:
        before = self._shown.get(run, 0)
        self._world.trace("execution %d is shown %s, %d %%", run[0], view.status, view.progress)
        if view.progress < before:
            self._wrong("progress", f"execution {run[0]} is shown at {view.progress}, was {before}")
        self._shown[run] = max(before, view.progress)

    # -- at the end --------------------------------------------------------------

    def stuck(self) -> None:
        """It didn't come to its end."""
        world = self._world
        for execution_id, execution in world.disk.executions.items():
            if execution.status not in (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED):
                steps = {key: str(step.status) for key, step in execution.steps.items()}
                self._wrong(
                    "liveness", f"execution {execution_id} is {execution.status} for ever: {steps}"
                )
        last = world.disk.last_fact_id
        for follower in world.followers:
            if not follower.caught_up(last):
                self._wrong(
                    "followers", f"follower {follower.number} stays at {follower.last} of {last}"
                )

    def _stays_too_long(self) -> None:
        """What is over for longer than it is kept goes, whatever failed on the way."""
        world = self._world
        if world.keep_s is None or world.process is None:
            return
        # The first time after a failure is as late as the next one would have been.
        grace_s = world.forgets_every_s * (1 + world.disk.forgets_failed) + FORGETTING_S
        if world.process.age_s < grace_s:
            return
        for execution_id, execution in world.disk.executions.items():
            age_s = self._age_s(execution.updated_at)
            if not execution.unfinished and age_s > world.keep_s + grace_s:
                self._wrong("forgetting", f"execution {execution_id} is there after {age_s} s")

    def ended(self) -> None:
        self._stays_too_long()
        for execution_id, told in self._told.items():
            if told.gone:
                continue
            stored = self._world.disk.executions[execution_id]
            expected = dict(told.payload)
            for step in stored.steps.values():
                if step.status is StepStatus.COMPLETED and step.spec.dynamic:
                    family = expected.setdefault(step.name, {})
                    expected[step.name] = {**family, key_of(step.key): step.output}
                elif step.status is StepStatus.COMPLETED:
                    expected.update(step.output or {})
            if dict(stored.data) != expected:
                self._wrong("data", f"execution {execution_id} has {stored.data}, not {expected}")
            if stored.status is ExecutionStatus.COMPLETED and stored.progress != 100:
                self._wrong("progress", f"execution {execution_id} completed at {stored.progress}")
            for key, step in stored.steps.items():
                if step.status is StepStatus.RUNNING:
                    self._wrong("liveness", f"step {key} of {execution_id} runs after its end")


def key_of(step_key: str) -> str:
    """``p1`` of ``fam:p1``."""
    return step_key.partition(":")[2]


REPLAY: dict[str, Callable[[History, Told, RecordedFact], None]] = {
    "pipeline:started": History._started,
    "pipeline:step_started": History._step_started,
    "pipeline:step_spawned": History._spawned,
    "pipeline:step_completed": History._step_completed,
    "pipeline:step_failed": History._step_failed,
    "pipeline:step_retrying": History._step_retrying,
    "pipeline:step_skipped": History._step_skipped,
    "pipeline:completed": History._completed,
    "pipeline:failed": History._failed,
    "pipeline:retried": History._retried,
    "pipeline:cancelled": History._cancelled,
    "pipeline:paused": History._paused,
    "pipeline:resumed": History._resumed,
}
"""What each fact does to what it is about."""
