"""The guide to the data layer: its commands, recipe and Python run as they stand, in both languages they are the same,
and its numbers are those that were measured."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from catena.cli.main import run
from catena.data.filters.table import FILTERS
from catena.flow.table import STAGES

ROOT = Path(__file__).parents[2]
PAGES = ("data.md", "data.zh.md")
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """Return (language, file name, body without comments) of each block of a page."""
    found = BLOCK.findall(text_of(name))
    return [(kind, file, re.sub(r" *# .*", "", body) if kind == "sh" else body) for kind, file, body in found]


def test_both_languages_show_the_same_examples() -> None:
    assert blocks("data.md") == blocks("data.zh.md")


def test_every_example_runs_in_the_order_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CATENA_WORKSPACE", raising=False)
    told: dict[str, str] = {}
    for kind, file, body in blocks("data.md"):
        if file:
            Path(file).write_text(body, encoding="utf-8")
        elif kind == "python":
            exec(body, {})
            assert ".md" in capsys.readouterr().out
        for line in body.splitlines() if kind == "sh" else ():
            name, _, value = line.removeprefix("export ").partition("=")
            if line.startswith("export "):
                monkeypatch.setenv(name, value)
                continue
            code = run([*shlex.split(line)[1:], "--quiet"])
            out, err = capsys.readouterr()
            assert code == 0, f"{line}: {err}"
            told[line] = out
    assert "formats.md  rejected: contaminated" in told["catena show clean --rejects"]
    assert "duplicate_of_stored" in told["catena show news --rejects"]
    assert run(["show", "labelled"]) == 0
    assert "login 5, refund 5, delivery 2" in capsys.readouterr().out
    ended = {line.rpartition("--name ")[2]: out for line, out in told.items() if "--name" in line}
    assert {out.split()[0] for out in ended.values()} == {f"{name}@1" for name in ended}
    assert "12 document rows, 1 rejects" in ended["agreed"]
    assert "12 example rows" in ended["labelled"]
    assert "3 document rows, 1 rejects" in ended["worthy"]
    assert "BEST PRICE" in told["catena show worthy --rejects"]
    assert "semantic_duplicate" in told["catena show meant --rejects"]
    assert "5 example rows" in ended["pairs"]
    assert "no_translation" in told["catena show pairs --rejects"]


def test_every_filter_and_every_stage_of_texts_is_on_the_page() -> None:
    ours = [name for name, place in FILTERS.table().items() if place.startswith("catena.")]
    for page in PAGES:
        text = text_of(page)
        assert [name for name in ours if f"| `{name}` |" not in text] == []
        beside = ("collect", "converse", "crawl", "definitions", "extract", "align_parallel", "split_text")
        stages = {name for name in STAGES if name.startswith("data.") and not name[5:].startswith(beside)}
        assert [name for name in sorted(stages) if f"`{name}`" not in text and f"do {name} " not in text] == []


def test_the_numbers_of_the_guide_were_measured() -> None:
    def result(name: str) -> Any:
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())

    dedup, recall, cluster = (result(name) for name in ("dedup", "dedup_recall", "cluster"))
    cleaning, personal, pages = (result(name) for name in ("cleaning", "pii", "html_text"))
    planted, versions = result("decontaminate"), result("versions")["catena"]
    ours, theirs = dedup["results"]["catena"], dedup["results"]["datatrove"]
    kinds = personal["catena"]["kinds"].values()
    seconds = [f"{row['processor_seconds']:.1f}" for row in cluster["results"]]
    numbers = [
        f"{dedup['input']['megabytes']:.0f} MB",
        f"{ours['mb_per_s_core']:.1f} MB/s",
        f"{theirs['mb_per_s_core']:.2f}",
        f"{ours['peak_bytes'] / 1e6:.0f} MB",
        *(f"{row['recall']:.2%}".replace("%", " %") for row in recall["recall"]),
        *seconds,
        f"{max(row['peak_bytes'] for row in cluster['results']) / 2**20:.0f} MiB",
        *(f"{cleaning['mb_per_s_core'][side]['whole']:.2f}" for side in ("catena", "datatrove", "data-juicer")),
        f"{min(kind['recall'] for kind in kinds):.1%}".replace("%", " %"),
        f"{min(kind['precision'] for kind in kinds):.1%}".replace("%", " %"),
        f"{pages['extractors']['union']['f']:.3f}",
        f"{pages['extractors']['union']['pages_per_s']:.0f}",
        f"{min(planted['recall'].values()):.1%}".replace("%", " %"),
        f"{versions['commit_s']:.1f}",
        f"{versions['bytes'] / 1e6:.1f} MB",
    ]
    for page in PAGES:
        shown = text_of(page).partition("`dedup.py`")[0].rpartition("\n|---|")[0]
        measured = text_of(page)[len(shown) :]
        assert [number for number in numbers if number not in measured] == []
