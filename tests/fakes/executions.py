"""``Executions`` in memory, which lives in the test kit: authors of pipelines use it too."""

from adapters.testkit.executions import MemoryExecutions, own

__all__ = ["MemoryExecutions", "own"]
