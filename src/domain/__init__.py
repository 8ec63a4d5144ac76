"""The rules of Rushes: executions, steps, footage. Pure: no I/O, no clock, no asyncio."""
