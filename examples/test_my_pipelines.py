from my_pipelines import pipeline

from adapters.testkit import Testbed, returns


async def test_it_runs_as_it_is() -> None:
    async with Testbed(pipeline) as bed:
        result = await bed.run()
    assert result.status == "completed"
    assert result.execution_data["report"] == "12.5 seconds"


async def test_the_report_says_what_was_probed() -> None:
    async with Testbed(pipeline, handlers={"probe": returns({"duration_s": 3})}) as bed:
        result = await bed.run()
    assert result.execution_data["report"] == "3 seconds"
