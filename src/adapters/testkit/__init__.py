"""What the author of a pipeline tests it with: ``from adapters.testkit import Testbed, script``.

See ``docs/pipelines.md``, "Testing", and ``examples/test_dailies.py``.
"""

from adapters.testkit.bed import Result, Stuck, Testbed
from adapters.testkit.executions import MemoryExecutions
from adapters.testkit.scripts import (
    Hang,
    Script,
    Turn,
    does,
    fails,
    hangs,
    raises,
    returns,
    script,
)
from adapters.testkit.world import EPOCH, VirtualClock

__all__ = [
    "EPOCH",
    "Hang",
    "MemoryExecutions",
    "Result",
    "Script",
    "Stuck",
    "Testbed",
    "Turn",
    "VirtualClock",
    "does",
    "fails",
    "hangs",
    "raises",
    "returns",
    "script",
]
