"""The page about all stages says what the table of stages and the code say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "stages_page.py"


def test_the_page_of_stages_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], check=False)
    assert done.returncode == 0, "docs/stages.md is old: run `python scripts/stages_page.py`"
