"""Draw the state machines from their tables, or check (``--check``) that the drawings are in step.

A drawing stands in a Markdown file between ``<!-- diagram: NAME -->`` and
``<!-- end of diagram -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from domain.execution import EXECUTION_TRANSITIONS, ExecutionStatus
from domain.step import STEP_TRANSITIONS, StepStatus

ROOT = Path(__file__).parent.parent
FILES = ("docs/architecture.md",)
PLACE = re.compile(r"(<!-- diagram: (\w+) -->\n).*?(<!-- end of diagram -->)", re.DOTALL)


def state_machine(transitions: Mapping[StrEnum, Mapping[StrEnum, StrEnum]], first: StrEnum) -> str:
    """A Mermaid state diagram; states that no arrow reaches yet are left out."""
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    reached = {first, *(to for row in transitions.values() for to in row.values())}
    for state, row in transitions.items():
        lines += [f"    {state} --> {to}: {verb}" for verb, to in row.items()]
        if not row and state in reached:
            lines.append(f"    {state} --> [*]")
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


DRAWINGS = {
    "execution": lambda: state_machine(EXECUTION_TRANSITIONS, ExecutionStatus.PENDING),
    "step": lambda: state_machine(STEP_TRANSITIONS, StepStatus.PENDING),
}


def redrawn(text: str) -> str:
    return PLACE.sub(lambda found: found[1] + DRAWINGS[found[2]]() + found[3], text)


def main() -> int:
    stale = []
    for name in FILES:
        path = ROOT / name
        text = path.read_text("utf-8")
        if redrawn(text) != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(redrawn(text), "utf-8")
    if stale and "--check" in sys.argv:
        print(f"the diagrams in {', '.join(stale)} are not what the tables say; run make proto")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
