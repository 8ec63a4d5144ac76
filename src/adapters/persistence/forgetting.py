"""Which executions may be forgotten, and what goes with them.

Nothing here reads more than what goes: the ids of executions rise in the order of
their creation, so the walk ends at the first that is too young, and every row that
hangs on an execution is found by an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    column,
    delete,
    exists,
    func,
    select,
    table,
    update,
)

from adapters.persistence.batch import Batch
from adapters.persistence.tables import (
    card_file,
    engine_state,
    job,
    pipeline_event,
    pipeline_execution,
    pipeline_step,
    trigger_message,
)
from domain.execution import ACTIVE
from domain.footage import JobStatus
from domain.step import StepStatus

KEYS = 500
"""How many keys a query names; SQLite bounds the parameters of a statement."""

_sqlite_sequence = table("sqlite_sequence", column("name"), column("seq"))
"""The highest id that each table has ever given out, also if its row is gone."""

_gone: ColumnElement[int] = bindparam("gone", type_=pipeline_execution.c.id.type)

_last_fact = select(func.max(pipeline_event.c.id)).where(pipeline_event.c.execution_id == _gone)

_raise_floor = (
    update(engine_state)
    .where(engine_state.c.id == 1)
    .values(
        facts_floor=func.max(
            engine_state.c.facts_floor, func.coalesce(_last_fact.scalar_subquery(), 0)
        )
    )
)

_deletions = (
    delete(card_file).where(
        card_file.c.execution_id == _gone, ~exists().where(job.c.execution_id == _gone)
    ),
    delete(trigger_message).where(trigger_message.c.execution_id == _gone),
    delete(pipeline_event).where(pipeline_event.c.execution_id == _gone),
    delete(pipeline_step).where(pipeline_step.c.execution_id == _gone),
    delete(pipeline_execution).where(pipeline_execution.c.id == _gone),
)


def forgettable(connection: Connection, before: datetime, limit: int) -> Sequence[int]:
    """The oldest executions that may go, at most ``limit``."""
    execution = pipeline_execution.c
    walk = select(execution.id, execution.created_at, _is_over(before).label("is_over")).order_by(
        execution.id
    )
    found: list[int] = []
    with connection.execute(walk) as rows:
        for row in rows:
            if row.created_at >= before or len(found) == limit:
                break
            if row.is_over:
                found.append(row.id)
    return found


def forget(batch: Batch, before: datetime, found: Sequence[int]) -> int:
    """Delete those that still may go, within the transaction; how many."""
    connection = batch.connection
    # What has been changed in this very transaction isn't written yet.
    unchanged = [execution_id for execution_id in found if execution_id not in batch.drafts]
    going: list[dict[str, int]] = []
    for start in range(0, len(unchanged), KEYS):
        still = select(pipeline_execution.c.id).where(
            pipeline_execution.c.id.in_(unchanged[start : start + KEYS]), _is_over(before)
        )
        going.extend({"gone": row.id} for row in connection.execute(still))
    if going:
        for statement in (_raise_floor, *_deletions):
            connection.execute(statement, going)
        batch.gone.extend(each["gone"] for each in going)
    return len(going)


def fact_bounds(connection: Connection) -> tuple[int, int]:
    """``Executions.fact_bounds``."""
    last = select(_sqlite_sequence.c.seq).where(_sqlite_sequence.c.name == pipeline_event.name)
    row = connection.execute(
        select(
            engine_state.c.facts_floor.label("floor"), last.scalar_subquery().label("last")
        ).where(engine_state.c.id == 1)
    ).one()
    return row.floor, row.last or 0


def _is_over(before: datetime) -> ColumnElement[bool]:
    execution, step = pipeline_execution.c, pipeline_step.c
    return and_(
        execution.status.not_in([status.value for status in ACTIVE]),
        execution.updated_at < before,
        ~exists().where(step.execution_id == execution.id, step.status == StepStatus.RUNNING.value),
        ~exists().where(
            job.c.execution_id == execution.id, job.c.status == JobStatus.CREATED.value
        ),
    )
