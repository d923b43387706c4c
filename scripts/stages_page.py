"""Writes docs/stages.md from the table of stages: what each is called, takes, gives and does.

    python scripts/stages_page.py [--check]

With --check nothing is written; the exit code says whether the page is what the code says (a test asks).
"""

from __future__ import annotations

import sys
from pathlib import Path

from catena.core.stage import stage_of
from catena.flow.table import STAGES

PAGE = Path(__file__).parent.parent / "docs" / "stages.md"
HEAD = """\
# All stages

Each is a step of a recipe (`stage: NAME`), a command (`catena do NAME --set a.b=c --use input=name`), and a function of
Python. `catena explain NAME` tells its settings. Made by `python scripts/stages_page.py`, and checked by a test.
"""
COLUMNS = "| stage | inputs (`?`: may be left out) | gives | what it does |\n|---|---|---|---|"


def entry(name: str) -> str:
    """Return the row of one stage."""
    stage = stage_of(STAGES.load(name))
    inputs = ", ".join(f"`{key}`?" if key in stage.optional else f"`{key}`" for key in stage.inputs)
    gives = " or ".join(kind.__name__.removesuffix("Version").lower() for kind in stage.output)
    return f"| `{name}` | {inputs or '-'} | {gives} | {stage.summary.replace('|', chr(92) + '|')} |"


def page() -> str:
    """Return the whole page."""
    groups: dict[str, list[str]] = {}
    for name in (name for name, where in sorted(STAGES.table().items()) if where.startswith("catena.")):
        groups.setdefault(name.partition(".")[0], []).append(name)
    parts = [HEAD]
    for group, names in groups.items():
        rows = "\n".join(map(entry, names))
        parts.append(f"## {group}\n\n{COLUMNS}\n{rows}\n")
    return "\n".join(parts)


def main() -> int:
    """Write or check the page."""
    made = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == made else 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
