"""The Python of docs/engine.md runs against a server, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from catena.infer.capacity import EngineConfig
from catena.serve.app import ENDPOINTS, PAGES
from catena.serve.config import ServeConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "engine.md").read_text()


@pytest.mark.parametrize("body", re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_its_python_runs(body: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(body, {"url": url})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", ["engine.md", "engine.zh.md"])
def test_it_names_every_route_and_no_field_that_is_not_there(name: str) -> None:
    page = (DOCS / name).read_text()
    told = set(re.findall(r"/(?:v1/)?[a-z]+(?:/completions)?(?=[`,])", page))
    for path in (*ENDPOINTS, *(path for path in PAGES if "{" not in path)):
        assert path in told, path
    for field in re.findall(r"(?<!catena\.)serve\.([a-z_]+)", page):
        assert field in {*ServeConfig.model_fields, "port"}, field
    for field in re.findall(r"--engine ([a-z_]+)=", page):
        assert field in EngineConfig.model_fields, field
