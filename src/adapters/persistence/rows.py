"""Between rows and the domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, select

from adapters.persistence.tables import pipeline_execution, pipeline_step
from application.json_values import json_copy
from domain.definition import PipelineDefinition, StepSpec
from domain.events import RecordedFact
from domain.execution import Execution, ExecutionStatus
from domain.step import Step, StepStatus


def execution_row(execution: Execution) -> dict[str, Any]:
    """Everything that a change may have changed."""
    return {
        "status": execution.status.value,
        "job_id": execution.job_id,
        "execution_data": execution.data,
        "error_message": execution.error_message,
        "warnings": execution.warnings,
        "progress": execution.progress,
        "paused_at": execution.paused_at,
        "version": execution.version,
        "started_at": execution.started_at,
        "completed_at": execution.completed_at,
        "updated_at": execution.updated_at,
    }


def new_execution_row(execution: Execution) -> dict[str, Any]:
    return {
        "id": execution.id,
        "uuid": execution.uuid,
        "message_id": execution.message_id,
        "pipeline_type": execution.definition.type,
        "definition": execution.definition.to_dict(),
        "card_key": execution.card_key,
        "rerun_of": execution.rerun_of,
        "created_at": execution.created_at,
        **execution_row(execution),
    }


def step_row(step: Step) -> dict[str, Any]:
    """Everything that a change may have changed."""
    return {
        "status": step.status.value,
        "output_data": step.output,
        "error_message": step.error,
        "attempt": step.attempt,
        "failures": step.failures,
        "takeovers": step.takeovers,
        "progress": step.progress,
        "queued_at": step.queued_at,
        "started_at": step.started_at,
        "completed_at": step.completed_at,
        "checkpoint": step.checkpoint,
        "not_before": step.not_before,
        "waived": step.waived,
    }


def new_step_row(execution_id: int, step: Step) -> dict[str, Any]:
    return {
        "execution_id": execution_id,
        "step_name": step.name,
        "step_key": step.key,
        "required": step.spec.required,
        "depends_on": step.depends_on,
        "after": step.after,
        "params": step.params,
        "spawned_by": step.spawned_by,
        "created_at": step.created_at,
        **step_row(step),
    }


def fact_row(fact: RecordedFact) -> dict[str, Any]:
    return {
        "id": fact.id,
        "execution_id": fact.execution_id,
        "type": fact.type,
        "step_key": fact.step_key,
        "data": fact.data,
        "occurred_at": fact.occurred_at,
    }


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
            execution.steps[row["step_key"]] = _step(execution.definition, row)
    return list(by_id.values())


def load_execution(connection: Connection, reference: str | int) -> Execution | None:
    """By uuid or by id."""
    key = pipeline_execution.c.id if isinstance(reference, int) else pipeline_execution.c.uuid
    row = connection.execute(select(pipeline_execution).where(key == reference)).first()
    return None if row is None else load_executions(connection, [row])[0]


def _execution(row: RowMapping) -> Execution:
    return Execution(
        id=row["id"],
        uuid=row["uuid"],
        message_id=row["message_id"],
        definition=PipelineDefinition.from_dict(row["definition"]),
        status=ExecutionStatus(row["status"]),
        job_id=row["job_id"],
        data=row["execution_data"],
        error_message=row["error_message"],
        warnings=tuple(row["warnings"]),
        progress=row["progress"],
        paused_at=row["paused_at"],
        card_key=row["card_key"],
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
