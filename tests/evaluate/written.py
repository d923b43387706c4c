"""Task files that tests ask, and the lines that come of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from catena.core.types import Report
from catena.hub.store import Store

CHOICE = """\
name: which
kind: choice
data: {rows: [{q: json.loads, c: [reads a, writes], r: 0}, {q: Return, c: [a string, or], r: 1}, {q: a b, c: [c, d e]}]}
prompt: "{{ q }}"
choices: "{{ c }}"
correct: "{{ r if r is defined else 'c' }}"
cluster: "{{ q }}"
"""
WRITE = """\
name: write
kind: generate
data: {made: addition, count: 12}
prompt: "{{ expression }} ="
answer: "{{ answer }}"
max_tokens: 4
extract: [{regex: '-?[0-9]+'}]
score: [numeric]
group: "{{ answer > 50 }}"
"""
TEXTS = """\
name: texts
kind: perplexity
data: {rows: [{text: json.loads reads a document. Return a string.}, {text: 读取一个文件，返回字符串。}]}
"""
JUDGED = """\
name: judged
kind: judge
data: {rows: [{q: "What is it?", good: a string}, {q: "What else?", good: a document}]}
prompt: "{{ q }}"
max_tokens: 4
"""


def written(tmp_path: Path, **texts: str) -> list[str]:
    """Write task files; return their paths."""
    paths = []
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        paths.append(str(tmp_path / f"{name}.yaml"))
    return paths


def lines_of(store: Store, report: Report) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (store.checkout(report) / "samples.jsonl").read_bytes().splitlines()]
