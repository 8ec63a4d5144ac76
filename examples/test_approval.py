from approval import pipeline

from adapters.testkit import Testbed


async def test_it_is_published_once_it_is_approved() -> None:
    async with Testbed(pipeline) as bed:
        await bed.start({"cut": "reel-1"})
        waiting = await bed.until("approve", "running")
        assert waiting.waits_for == ["approve"]
        await bed.answer("approve", {"approved_by": "Thelma"})
        result = await bed.finish()
    assert result.execution_data["published"] == "Thelma"


async def test_a_service_that_fails_is_asked_again() -> None:
    async with Testbed(pipeline) as bed:
        await bed.start({"cut": "reel-1"})
        await bed.refuse("approve", "the player crashed")
        await bed.answer("approve", {"approved_by": "Dede"})
        result = await bed.finish()
    assert result.step("approve").attempt == 2
