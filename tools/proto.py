"""Generate the gRPC code from ``proto/``, or check (``--check``) that it is in step."""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools

ROOT = Path(__file__).parent.parent
PROTO = "proto/rushes/v1/pipeline.proto"
GENERATED = Path("adapters/rpc/pb")


def generate(target: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{GENERATED}=proto/rushes/v1",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            PROTO,
        ],
        cwd=ROOT,
        check=True,
    )


def main() -> int:
    if "--check" not in sys.argv:
        generate(ROOT / "src")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / GENERATED
        names = [path.name for path in fresh.iterdir()]
        _, different, missing = filecmp.cmpfiles(
            fresh, ROOT / "src" / GENERATED, names, shallow=False
        )
    for name in different + missing:
        print(f"src/{GENERATED}/{name} is not what {PROTO} says; run make proto")
    return 1 if different or missing else 0


if __name__ == "__main__":
    sys.exit(main())
