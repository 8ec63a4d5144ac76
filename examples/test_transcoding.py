from transcoding import pipeline

from adapters.testkit import Testbed


async def test_what_was_transcoded_is_published() -> None:
    async with Testbed(pipeline) as bed:
        await bed.start({"clip": "A001.mov"})
        await bed.refuse("transcode", "out of memory")
        await bed.answer("transcode", {"proxy": "A001.proxy.mov"})
        result = await bed.finish()
    assert result.execution_data["published"] == "A001.proxy.mov"
    assert result.step("transcode").attempt == 2
