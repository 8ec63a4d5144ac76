"""What is written into the log, by whatever name."""

from __future__ import annotations

import logging

from rushes import _OneLine

FORGED = "2026-11-23 01:00:00,000 INFO rushes.audit: who=owner role=admin outcome=201"


def test_no_name_forges_a_line_colours_one_or_hides_one() -> None:
    try:
        raise ValueError(f"A\n{FORGED}\r\x1b[31m\u202e is no clip")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "step failed", (), None)
        record.exc_info = (ValueError, error, error.__traceback__)
    first, *others = _OneLine("%(message)s").format(record).splitlines()
    assert first == "step failed"
    assert f"  | {FORGED}\\r\\x1b[31m\\u202e is no clip" in others
    assert all(line.startswith("  | ") for line in others)
