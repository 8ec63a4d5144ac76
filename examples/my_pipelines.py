# my_pipelines.py
from application.authoring import Pipeline, StepContext, step


@step()
def probe(context: StepContext) -> dict[str, object]:  # blocking: runs in a thread
    return {"duration_s": 12.5}


@step(depends_on=["probe"])
async def report(context: StepContext) -> dict[str, object]:  # async: runs on the event loop
    return {"report": f"{context.data['duration_s']} seconds"}


pipeline = Pipeline("my_pipeline", [probe, report])
