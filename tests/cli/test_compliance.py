"""`catena compliance`: a page and a signed file, and an exit code for those who want one."""

from __future__ import annotations

from pathlib import Path

from catena.govern.compliance import holds

from .conftest import Catena


def test_a_report_is_written_and_noted(catena: Catena, here: Path) -> None:
    catena("init")
    catena("keys", "create", "ada")
    done = catena("compliance", "report", "--output", "out", "--json")
    assert done.code == 0
    assert holds(Path(done.json["file"]).read_bytes(), here / ".catena")
    assert Path(done.json["file"]).with_suffix(".html").read_text().startswith("<!doctype html>")
    assert catena("audit", "search", "--text", "compliance.report", "--json").json[0]["counts"] == done.json["counts"]
    assert catena("compliance", "report", "--strict").code == 7
    lines = {line["id"]: line["status"] for line in catena("compliance", "report", "--json").json["lines"]}
    assert lines["quarterly"] == "held"
    assert catena("compliance", "changes").err == "there are no models yet\n"
