"""Precision and recall of finding personal data, for each kind, and its speed; datatrove's PII formatter beside it.

    python benchmarks/pii.py [--each N] [--seed N] [--no-peer]

Every line of the generated set (`pii_lines`: Chinese and English) holds one value: personal data in one of many
formats, or a hard negative. A line is right if exactly that value is found, as that kind. The peer replaces e-mail and
IP addresses only, and is held to these lines; it lives in its own virtual environment. Speed is in seconds of one
processor, on the generated set (every line full of digits) and on ordinary text (the sources of the standard library).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pii_lines import NEGATIVE, POSITIVE, Line, lines

from catena.data.pii import find
from catena.data.privacy import replace_spans

RESULTS = Path(__file__).parent / "results" / "pii.json"
PEER = ("datatrove==0.10.1", "xxhash<4", "regex")
PEER_SCRIPT = """
import json, sys, time
from datatrove.pipeline.formatters.pii import PIIFormatter
formatter = PIIFormatter(email_replacement="[EMAIL]", ip_replacement="[IP]")
for path in sys.argv[1:]:
    texts = json.load(open(path))
    start = time.process_time()
    made = [formatter.format(text) for text in texts]
    print(json.dumps({"seconds": time.process_time() - start, "texts": made}))
"""


def masked(text: str) -> str:
    """Return the text with [KIND] in the place of personal data."""
    return replace_spans(text, find(text), lambda kind, value: f"[{kind.upper()}]")


def expected(line: Line) -> str:
    """Return what a perfect mask leaves of a line."""
    return f"{line.before}[{line.kind.upper()}]{line.after}" if line.kind else line.text


def ordinary_text(limit: int) -> list[str]:
    """Return about so many bytes of the standard library's sources."""
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += path.stat().st_size
        if size > limit:
            break
    return texts


def timed(function: Callable[[str], str], texts: list[str]) -> tuple[list[str], float]:
    """Return what the function makes of the texts, and its MB/s."""
    start = time.process_time()
    made = [function(text) for text in texts]
    return made, megabytes(texts) / (time.process_time() - start)


def megabytes(texts: list[str]) -> float:
    """Return the size of the texts in UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def scores(generated: list[Line], made: list[str], kinds: set[str]) -> dict[str, dict[str, float]]:
    """Return precision and recall by kind, and false alarms by group of hard negatives, for these kinds."""
    right, wanted, claimed = Counter[str](), Counter[str](), Counter[str]()
    alarms: Counter[str] = Counter()
    for line, text in zip(generated, made, strict=True):
        tags = [kind for kind in kinds for _ in range(text.count(f"[{kind.upper()}]"))]
        claimed.update(tags)
        if line.kind in kinds:
            wanted[line.kind] += 1
            right[line.kind] += text == expected(line)
        elif tags:
            alarms[line.group] += 1
    by_kind = {
        kind: {
            "lines": wanted[kind],
            "recall": round(right[kind] / wanted[kind], 4),
            "precision": round(right[kind] / claimed[kind], 4) if claimed[kind] else 0.0,
        }
        for kind in sorted(kinds)
    }
    each = Counter(line.group for line in generated)
    return {
        "kinds": by_kind,
        "false_alarms": {group: round(alarms[group] / each[group], 4) for group in each if alarms[group]},
    }


def peer(inputs: list[list[str]]) -> list[dict[str, Any]]:
    """Run datatrove's formatter on the lists of texts, in its own environment."""
    folder = Path.home() / ".cache" / "catena-benchmarks" / "datatrove-pii"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True, stderr=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for number, texts in enumerate(inputs):
            paths.append(Path(temporary) / f"{number}.json")
            paths[-1].write_text(json.dumps(texts))
        script = Path(temporary) / "peer.py"
        script.write_text(PEER_SCRIPT)
        output = subprocess.run([python, script, *paths], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def measure(each: int, seed: int, *, with_peer: bool) -> dict[str, Any]:
    """Return all that is told."""
    generated, ordinary = list(lines(seed, each)), ordinary_text(6_000_000)
    texts = [line.text for line in generated]
    masked("warm up: a@b.co 13812345678 11010519491231002X 4111111111111111 GB82WEST12345698765432 536-22-8726")
    made, dense = timed(masked, texts)
    _, plain = timed(masked, ordinary)
    kinds = {kind for kind, _ in POSITIVE.values()}
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "lines": len(generated),
        "seed": seed,
        "groups": {"personal": list(POSITIVE), "not": list(NEGATIVE)},
        "catena": {
            **scores(generated, made, kinds),
            "mb_per_s_dense": round(dense, 2),
            "mb_per_s_text": round(plain, 2),
        },
    }
    if with_peer:
        both = {"email", "ip"}
        on_lines, on_text = peer([texts, ordinary])
        result["datatrove"] = {
            **scores(generated, on_lines["texts"], both),
            "mb_per_s_dense": round(megabytes(texts) / on_lines["seconds"], 2),
            "mb_per_s_text": round(megabytes(ordinary) / on_text["seconds"], 2),
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Return the result for a person."""
    rows = [f"{result['lines']:,} lines, {result['machine']}", ""]
    rows.append(f"{'kind':<12}{'recall':>9}{'precision':>11}{'peer recall':>13}{'peer precision':>16}")
    for kind, found in result["catena"]["kinds"].items():
        other = result.get("datatrove", {}).get("kinds", {}).get(kind)
        beside = f"{other['recall']:>13.4f}{other['precision']:>16.4f}" if other else f"{'-':>13}{'-':>16}"
        rows.append(f"{kind:<12}{found['recall']:>9.4f}{found['precision']:>11.4f}{beside}")
    for name in ("catena", "datatrove"):
        if name in result:
            found = result[name]
            rows += [
                "",
                f"{name}: {found['mb_per_s_text']} MB/s of ordinary text, {found['mb_per_s_dense']} of the set",
            ]
            rows += [f"  false alarms: {group} {share:.2%}" for group, share in found["false_alarms"].items()]
    return "\n".join(rows)


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=1200, help="lines of each of the 20 groups")
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--no-peer", action="store_true", help="leave datatrove out")
    arguments = parser.parse_args()
    result = measure(arguments.each, arguments.seed, with_peer=not arguments.no_peer)
    print(table(result))
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
