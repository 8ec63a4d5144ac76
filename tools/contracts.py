"""Write the contracts of REST and of the WebSocket to ``docs/``, or check (``--check``) them.

A server makes the same documents of itself; here a change of its face is seen in review.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from adapters.settings import Settings
from bootstrap import Container

ROOT = Path(__file__).parent.parent


@cache
def documents() -> dict[str, dict[str, Any]]:
    """What a server answers at ``/openapi.json`` and ``/asyncapi.json``, by the file's name."""
    pages = Container(settings=Settings.load({}, {})).pages()
    made = {"openapi.json": pages.openapi_document(), "asyncapi.json": pages.asyncapi_document()}
    # As they are read from a file: no tuples.
    read: dict[str, dict[str, Any]] = json.loads(json.dumps(made))
    return read


def main() -> int:
    stale = []
    for name, document in documents().items():
        path = ROOT / "docs" / name
        text = json.dumps(document, indent=2) + "\n"
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(f"docs/{name}")
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    if stale and "--check" in sys.argv:
        print(f"{' and '.join(stale)} are not what the program says; run make proto")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
