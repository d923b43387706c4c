"""The commands of docs/hub.md run as they stand there, in both languages, against a hub over the same workspace."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from catena.cli.main import run
from catena.core.types import DatasetVersion
from catena.hub.store import Store
from catena.serve.hub.app import build_hub
from catena.serve.server import background

from .conftest import put_dataset

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("page", ["hub.md", "hub.zh.md"])
def test_the_commands_of_the_guide_run(
    page: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CATENA_WORKSPACE", raising=False)
    put_dataset(store)
    [block] = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = block.splitlines()
    assert len(lines) == 7
    with background(build_hub(store)) as url:
        for line in lines:
            program, *words = shlex.split(line.replace("$HUB", url))
            assert program == "catena"
            assert run(words) == 0, line
    assert store.resolve("copies/pages", DatasetVersion).rows == 6
