"""Writes the code for src/catena/serve/grpc/catena.proto beside it (a test compares). Needs grpcio-tools.

python scripts/grpc_code.py [FOLDER]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROTO = "catena/serve/grpc/catena.proto"


def main(target: Path) -> None:
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'src'}", *outputs, PROTO]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src")
