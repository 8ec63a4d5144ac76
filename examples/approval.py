"""A step that somebody outside Rushes does: a service that lets an editor look at the cut.

Rushes starts ``approve`` and waits. The service finds it (``WatchExecution``, or the
``waits_for`` of an execution), and reports with ``AdvanceStep`` over gRPC.
"""

from __future__ import annotations

from typing import Any

from application.authoring import Pipeline, RetryPolicy, StepContext, external_step, step


@step()
def render(context: StepContext) -> dict[str, Any]:
    return {"preview": f"/previews/{context.data['cut']}.mp4"}


approve = external_step("approve", depends_on=["render"], retry=RetryPolicy(retries=1))


@step(depends_on=["approve"])
async def publish(context: StepContext) -> dict[str, Any]:
    return {"published": context.data["approved_by"]}


pipeline = Pipeline("approval", [render, approve, publish])
