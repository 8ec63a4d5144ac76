"""A step that a farm of workers does: ``examples/external_worker.py`` is one of them."""

from __future__ import annotations

from typing import Any

from application.authoring import Pipeline, RetryPolicy, StepContext, external_step, step

transcode = external_step(
    "transcode", lease_s=30, run_timeout_s=3600, retry=RetryPolicy(retries=2, delay_s=10)
)


@step(depends_on=["transcode"])
async def publish(context: StepContext) -> dict[str, Any]:
    return {"published": context.data["proxy"]}


pipeline = Pipeline("transcoding", [transcode, publish])
