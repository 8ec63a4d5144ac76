"""``python -m adapters.detector``: the detector alone, on systems where the server doesn't run."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import platformdirs

from adapters.detector.detector import detecting
from adapters.settings import Settings
from domain.errors import RushesError


def main() -> int:
    """0: all went well, 1: not, 2: wrong use, 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m adapters.detector", description=__doc__)
    parser.add_argument("--server", metavar="URL", help="the server to tell (RUSHES_SERVER)")
    parser.add_argument(
        "--root",
        metavar="DIR",
        action="append",
        help="a folder below which every mount is a card (RUSHES_WATCH_ROOTS)",
    )
    parser.add_argument("--once", action="store_true", help="announce what is there, and end")
    given = parser.parse_args()
    roots = os.pathsep.join(map(os.path.abspath, given.root or ())) or None
    try:
        settings = Settings.load({"server": given.server, "watch_roots": roots}, os.environ)
        if not settings.server:
            parser.error("which server? --server URL says it")
        database = platformdirs.user_data_path("rushes") / "rushes.db"
        with detecting(
            settings,
            url=settings.server,
            database=database,
            say=lambda line: print(line, flush=True),
        ) as detector:
            if given.once:
                return 0 if asyncio.run(detector.once()) else 1
            asyncio.run(detector.run())
    except RushesError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
