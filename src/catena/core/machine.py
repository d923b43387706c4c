"""What this machine was measured to compute with, by a child process whose death is a finding too."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

MEASURE_SECONDS = 120


def measured() -> dict[str, Any]:
    """Measure in a child process, whose death (SIGILL) is a finding too. Returns `{"error": ...}` where it fails."""
    command = [sys.executable, "-m", "catena.models.measure"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=MEASURE_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"the measurement did not end: {error}"}
    if child.returncode < 0:
        return {"error": f"the measurement was ended by signal {-child.returncode}"}
    try:
        found = json.loads(child.stdout)
    except json.JSONDecodeError:
        found = None
    if isinstance(found, dict):
        return found
    return {"error": (child.stderr.strip().splitlines() or ["the measurement said nothing"])[-1]}
