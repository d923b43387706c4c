"""The guide to evaluation: its files, commands and Python run as they stand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import catena as c
from catena.cli.main import run as run_line
from catena.evaluate.task import KINDS
from catena.evaluate.taskfile import shipped
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer
from tests.evaluate.conftest import TEXTS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCKS = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL).findall(PAGE)


def test_the_guide_runs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    for seed, name in enumerate(("helper", "helper-4bit")):
        model = build("llama-nano", len(tokenizer), seed, context=1024, end_id=tokenizer.eos_token_id)
        checkpoint.save(model, tokenizer, tmp_path / name)
        version = store.put_model(tmp_path / name, **checkpoint.describe(tmp_path / name))
        store.index.add_artifact(version)
        store.index.add_name(name, version.digest)
    monkeypatch.chdir(tmp_path)
    for kind, name, body in BLOCKS:
        if kind in ("yaml", "json") and name:
            (tmp_path / name).write_text(body, encoding="utf-8")
    (tmp_path / "files").mkdir()
    row = '{"question": "1 and 1?", "answer": "1 + 1 = 2\\n#### 2"}\n'
    (tmp_path / "files" / "gsm8k-test.jsonl").write_text(row * 2)
    (tmp_path / "files" / "gsm8k-train.jsonl").write_text(row * 6)
    lines = [line for kind, _, body in BLOCKS if kind == "sh" for line in body.splitlines()]
    assert len(lines) > 5
    for line in lines:
        small = line.replace("--limit 20", "--limit 1")
        assert run_line([*shlex.split(small)[1:], "--workspace", str(store.root), "--quiet"]) == 0, line
    assert (tmp_path / "scores.html").exists()
    assert (tmp_path / "board.html").exists()
    python = "".join(body for kind, _, body in BLOCKS if kind == "python").replace("limit=20", "limit=1")
    with c.open(store.root) as ws:
        exec(python, {"ws": ws})


def test_the_guide_names_every_kind_and_shipped_task() -> None:
    assert all(f"| `{kind}` |" in PAGE for kind in KINDS)
    own = {"basics", "basics-zh"}
    named = {name for name in shipped() if f"`{name}`" in PAGE}
    assert {"gsm8k", "humaneval", "mmlu", "ceval", "cmmlu", "truthfulqa", "wikitext"} | own <= named


def test_its_figures_are_those_that_were_measured() -> None:
    root = Path(__file__).parents[2]
    told = json.loads((root / "benchmarks" / "results" / "evaluate.json").read_text())
    assert told["equal"]
    assert told["equal_texts"] == told["texts"]
    for page in ("evaluation.md", "evaluation.zh.md"):
        text = (root / "docs" / page).read_text(encoding="utf-8")
        for name, ratio in told["faster"].items():
            ours, theirs = told["seconds"]["catena"], told["seconds"]["harness"]
            if name != "all":
                best = min(run[name] for run in theirs.values())
                assert f"| {best:.1f} s | {ours[name]:.1f} s | {ratio:.1f}x |" in text
