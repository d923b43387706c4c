"""The commands of docs/governance.md run as they stand there, in both languages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from catena.cli.main import run

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["governance.md", "governance.zh.md"])
def test_the_commands_of_the_guide_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CATENA_WORKSPACE", raising=False)
    assert run(["init"]) == 0
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) == 11
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "catena"
        assert run(words) == 0, line
