"""What a large family's outputs are stored as: with their steps, and with the rest when it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.persistence.rows import SMALL_DATA_BYTES
from domain.definition import PipelineDefinition, StepSpec
from domain.execution import Execution, ExecutionStatus
from tests.contract.conftest import SqlStore
from tests.fakes.world import EPOCH

FAN = PipelineDefinition(
    "fan",
    (
        StepSpec("scan", spawns=("clip",)),
        StepSpec("clip", dynamic=True),
        StepSpec("last", depends_on=("clip:*",)),
    ),
)
MEMBERS = [f"{number:03}" for number in range(100)]
OUTPUT = {"said": "x" * (SMALL_DATA_BYTES // 50)}
ALL = {"clip": dict.fromkeys(MEMBERS, OUTPUT)}


def column(sql: SqlStore) -> dict[str, Any]:
    ((text,),) = sql.query("SELECT execution_data FROM pipeline_execution")
    data: dict[str, Any] = json.loads(text)
    return data


async def fanned(sql: SqlStore) -> int:
    made = await sql.make(FAN, data={"given": 1})

    def spawn(execution: Execution) -> None:
        for parameter in MEMBERS:
            execution.spawn("scan", 1, "clip", parameter, at=EPOCH)

    await sql.executions.update(made, spawn)
    for parameter in MEMBERS:
        await sql.complete(made, f"clip:{parameter}", **OUTPUT)
    return made


async def test_large_data_is_not_written_anew_with_each_member_of_a_family(sql: SqlStore) -> None:
    made = await fanned(sql)
    stored = len(json.dumps(column(sql)))
    assert stored < 2 * SMALL_DATA_BYTES < len(json.dumps(ALL))
    assert (await sql.executions.get(made)).data == {"given": 1, **ALL}


async def test_who_reads_it_from_the_database_gets_all_of_it(sql: SqlStore) -> None:
    made = await fanned(sql)
    await sql.reopen()
    assert (await sql.executions.get(made)).data == {"given": 1, **ALL}
    assert column(sql) != {"given": 1, **ALL}


@pytest.mark.parametrize("killed", [False, True])
async def test_at_the_end_all_of_it_is_stored_at_one_place(sql: SqlStore, killed: bool) -> None:
    made = await fanned(sql)
    if killed:
        await sql.reopen()
    await sql.complete(made, "scan")
    final = await sql.complete(made, "last")
    assert final.status is ExecutionStatus.COMPLETED
    assert column(sql) == {"given": 1, **ALL}


async def test_an_output_of_its_own_is_stored_with_whatever_waits(sql: SqlStore) -> None:
    made = await fanned(sql)
    await sql.complete(made, "scan", found=100)
    assert column(sql) == {"given": 1, "found": 100, **ALL}


async def test_what_has_failed_is_stored_whole_and_so_is_what_still_comes_in(sql: SqlStore) -> None:
    made = await sql.make(FAN)
    for parameter in MEMBERS:
        await sql.executions.update(
            made, lambda e, p=parameter: e.spawn("scan", 1, "clip", p, at=EPOCH)
        )
    for parameter in MEMBERS[:-1]:
        await sql.complete(made, f"clip:{parameter}", **OUTPUT)
    await sql.fail(made, "scan")
    without = dict.fromkeys(MEMBERS[:-1], OUTPUT)
    assert column(sql) == {"clip": without}
    await sql.complete(made, f"clip:{MEMBERS[-1]}", **OUTPUT)
    assert column(sql) == ALL
