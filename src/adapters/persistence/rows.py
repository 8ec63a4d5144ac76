"""Between rows and the domain.

What is written on every transition goes as tuples (``statements.py``): the columns are
named once, and the functions beside them give the values in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, select

from adapters.persistence.statements import json_text, time_text
from adapters.persistence.tables import pipeline_execution, pipeline_step
from application.json_values import json_copy
from domain.definition import PipelineDefinition, StepSpec
from domain.events import RecordedFact
from domain.execution import Execution, ExecutionStatus
from domain.step import Step, StepStatus
from domain.steps import Steps

SMALL_DATA_BYTES = 16 * 1024
"""Data up to this is written whenever it changes: four pages, beside the dozen that a
transition writes anyway."""

DEFINITIONS = 100
"""How many definitions' texts are kept: more than a server has pipelines."""


EXECUTION_STATE = (
    "status",
    "job_id",
    "error_message",
    "warnings",
    "progress",
    "paused_at",
    "version",
    "started_at",
    "completed_at",
    "updated_at",
)
"""Everything that a change of an execution may have changed, but its data."""

EXECUTION_DATA = (*EXECUTION_STATE, "execution_data")

EXECUTION = (
    *EXECUTION_DATA,
    "id",
    "uuid",
    "message_id",
    "pipeline_type",
    "definition",
    "card_key",
    "given",
    "rerun_of",
    "created_at",
)

STEP_STATE = (
    "status",
    "output_data",
    "error_message",
    "attempt",
    "failures",
    "takeovers",
    "progress",
    "queued_at",
    "started_at",
    "completed_at",
    "checkpoint",
    "not_before",
    "waived",
    "worker_id",
    "lease_expires_at",
)
"""Everything that a change of a step may have changed."""

STEP = (
    *STEP_STATE,
    "execution_id",
    "step_key",
    "step_name",
    "required",
    "depends_on",
    "after",
    "params",
    "spawned_by",
    "created_at",
)

FACT = ("id", "execution_id", "type", "step_key", "data", "occurred_at")


def execution_state(execution: Execution) -> tuple[Any, ...]:
    """The values of ``EXECUTION_STATE``, as they are written."""
    return (
        str(execution.status),
        execution.job_id,
        execution.error_message,
        json_text(execution.warnings),
        execution.progress,
        time_text(execution.paused_at),
        execution.version,
        time_text(execution.started_at),
        time_text(execution.completed_at),
        time_text(execution.updated_at),
    )


def execution_data(execution: Execution) -> tuple[Any, ...]:
    """The values of ``EXECUTION_DATA``."""
    return (*execution_state(execution), json_text(execution.data))


def execution_values(execution: Execution) -> tuple[Any, ...]:
    """The values of ``EXECUTION``."""
    return (
        *execution_data(execution),
        execution.id,
        execution.uuid,
        execution.message_id,
        execution.definition.type,
        _definition_text(execution.definition),
        execution.card_key,
        None if execution.given is None else json_text(execution.given),
        execution.rerun_of,
        time_text(execution.created_at),
    )


def step_state(step: Step) -> tuple[Any, ...]:
    """The values of ``STEP_STATE``."""
    return (
        str(step.status),
        None if step.output is None else json_text(step.output),
        step.error,
        step.attempt,
        step.failures,
        step.takeovers,
        step.progress,
        time_text(step.queued_at),
        time_text(step.started_at),
        time_text(step.completed_at),
        None if step.checkpoint is None else json_text(step.checkpoint),
        time_text(step.not_before),
        step.waived,
        step.worker,
        time_text(step.lease_ends_at),
    )


def step_values(execution_id: int, step: Step) -> tuple[Any, ...]:
    """The values of ``STEP``."""
    return (
        *step_state(step),
        execution_id,
        step.key,
        step.name,
        step.spec.required,
        json_text(step.depends_on),
        json_text(step.after),
        json_text(step.params),
        step.spawned_by,
        time_text(step.created_at),
    )


def fact_values(fact: RecordedFact) -> tuple[Any, ...]:
    """The values of ``FACT``."""
    return (
        fact.id,
        fact.execution_id,
        fact.type,
        fact.step_key,
        json_text(fact.data),
        time_text(fact.occurred_at),
    )


_definition_texts: dict[int, tuple[PipelineDefinition, str]] = {}


def _definition_text(definition: PipelineDefinition) -> str:
    """Of the same few objects again and again: those of the catalogue."""
    known = _definition_texts.get(id(definition))
    if known is None:
        if len(_definition_texts) >= DEFINITIONS:
            _definition_texts.clear()
        # The definition itself is kept too, or another one could get its id.
        known = _definition_texts[id(definition)] = (definition, json_text(definition.to_dict()))
    return known[1]


_definitions: dict[str, tuple[dict[str, Any], PipelineDefinition]] = {}


def _definition(stored: dict[str, Any]) -> PipelineDefinition:
    """Read back; one object for all executions of a pipeline, as long as it stays the same."""
    known = _definitions.get(stored["type"])
    if known is None or known[0] != stored:
        if len(_definitions) >= DEFINITIONS:
            _definitions.clear()
        known = _definitions[stored["type"]] = (stored, PipelineDefinition.from_dict(stored))
    return known[1]


def load_executions(connection: Connection, rows: Sequence[Row[Any]]) -> list[Execution]:
    """The executions of these rows of ``pipeline_execution``, in their order, with their steps."""
    by_id = {row.id: _execution(row._mapping) for row in rows}
    ids = list(by_id)
    for start in range(0, len(ids), 500):  # SQLite bounds the parameters of a statement
        steps = connection.execute(
            select(pipeline_step)
            .where(pipeline_step.c.execution_id.in_(ids[start : start + 500]))
            .order_by(pipeline_step.c.id)
        )
        for row in steps.mappings():
            execution = by_id[row["execution_id"]]
            step = execution.steps[row["step_key"]] = _step(execution.definition, row)
            if step.spec.dynamic and step.output:
                _merge(execution, step)
    return list(by_id.values())


def data_waits(base: Execution, draft: Execution) -> bool:
    """Whether the draft's data need not be written with it.

    A family's outputs are in its steps' rows as well. So where they are all that is new,
    and the data is so large that to write it with each of them would take longer than
    all else, it is written with the next change of anything else, or at the end.
    """
    if draft.data is base.data:
        ends = base.active and not draft.active
        return not (ends and any(_is_family(draft.definition, name) for name in draft.data))
    if not (draft.active and (draft.data_bytes or 0) > SMALL_DATA_BYTES):
        return False
    return all(
        name in base.data and value is base.data[name]
        for name, value in draft.data.items()
        if not _is_family(draft.definition, name)
    )


def _is_family(definition: PipelineDefinition, name: str) -> bool:
    spec = definition.spec(name)
    return spec is not None and spec.dynamic


def _merge(execution: Execution, step: Step) -> None:
    """A family's output into the data just read, which need not have it yet."""
    data = execution.data
    assert isinstance(data, dict)
    data.setdefault(step.name, {})[step.parameter] = step.output


def load_executions_by_id(connection: Connection, ids: Sequence[int]) -> list[Execution]:
    """Those that are there. Not more than SQLite takes parameters."""
    rows = connection.execute(
        select(pipeline_execution).where(pipeline_execution.c.id.in_(ids))
    ).all()
    return load_executions(connection, rows)


def load_execution(connection: Connection, reference: str | int) -> Execution | None:
    """By uuid or by id."""
    key = pipeline_execution.c.id if isinstance(reference, int) else pipeline_execution.c.uuid
    row = connection.execute(select(pipeline_execution).where(key == reference)).first()
    return None if row is None else load_executions(connection, [row])[0]


def _execution(row: RowMapping) -> Execution:
    definition = _definition(row["definition"])
    return Execution(
        steps=Steps(definition),
        id=row["id"],
        uuid=row["uuid"],
        message_id=row["message_id"],
        definition=definition,
        status=ExecutionStatus(row["status"]),
        job_id=row["job_id"],
        data=row["execution_data"],
        error_message=row["error_message"],
        warnings=tuple(row["warnings"]),
        progress=row["progress"],
        paused_at=row["paused_at"],
        card_key=row["card_key"],
        given=None if row["given"] is None else tuple(row["given"]),
        rerun_of=row["rerun_of"],
        version=row["version"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        updated_at=row["updated_at"],
    )


def _step(definition: PipelineDefinition, row: RowMapping) -> Step:
    spec = definition.spec(row["step_name"])
    if spec is None:
        # The row says enough to go on with, whatever became of the definition.
        spec = StepSpec(
            name=row["step_name"],
            depends_on=tuple(row["depends_on"]),
            after=tuple(row["after"]),
            required=row["required"],
        )
    return Step(
        spec=spec,
        key=row["step_key"],
        status=StepStatus(row["status"]),
        attempt=row["attempt"],
        failures=row["failures"],
        takeovers=row["takeovers"],
        progress=row["progress"],
        output=row["output_data"],
        error=row["error_message"],
        created_at=row["created_at"],
        queued_at=row["queued_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        params=row["params"],
        depends_on=tuple(row["depends_on"]),
        after=tuple(row["after"]),
        checkpoint=row["checkpoint"],
        not_before=row["not_before"],
        waived=row["waived"],
        spawned_by=row["spawned_by"],
        worker=row["worker_id"],
        lease_ends_at=row["lease_expires_at"],
    )


def fact_of(row: Row[Any]) -> RecordedFact:
    return RecordedFact(
        id=row.id,
        execution_id=row.execution_id,
        type=row.type,
        step_key=row.step_key,
        data=row.data,
        occurred_at=row.occurred_at,
    )


def detached(execution: Execution) -> Execution:
    """A copy that shares nothing that could be changed with the original."""
    copied = execution.copy()
    copied.data = json_copy(execution.data)
    for key, step in execution.steps.items():
        if step.output is not None:
            copied.steps[key] = step.with_output(json_copy(step.output))
    return copied
