"""Write the measured numbers into README.md and README.zh.md, between their markers, from benchmarks/results/demo.json.

python scripts/readme_numbers.py           write
python scripts/readme_numbers.py --check   exit 1 if a README shows other numbers
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MARKERS = re.compile(r"(<!-- numbers: .*? -->\n).*?(<!-- end of numbers -->)", re.DOTALL)
WORDS = {
    "README.md": {
        "held": "exact answers, phrasings held out",
        "unseen": "exact answers, phrasings with words that no training question has",
        "size": "size",
        "chain": (
            "{pages} pages crawled, {documents} documents kept, {functions} functions learnt. A model of "
            "{parameters:.1f}M parameters, perplexity {perplexity:.0f} on held-out pages before it was tuned to "
            "answer. The whole chain took {seconds:.0f} s and at most {peak} GiB of memory, a second run "
            "{again:.1f} s. Measured on {machine}."
        ),
    },
    "README.zh.md": {
        "held": "未见过的问法，逐字答对",
        "unseen": "问法中含有训练问题从未出现的词，逐字答对",
        "size": "大小",
        "chain": (
            "抓取 {pages} 页，保留 {documents} 篇文档，学会 {functions} 个函数。模型 {parameters:.1f}M 参数，"
            "调成问答之前在留出页面上的困惑度为 {perplexity:.0f}。整条链用时 {seconds:.0f} 秒，内存最多 {peak} GiB，"
            "再次运行 {again:.1f} 秒。测于 {machine}。"
        ),
    },
}


def table(result: dict[str, Any], words: dict[str, str]) -> str:
    """Return the Markdown of one README."""

    def row(name: str, score: str) -> str:
        cells = [words[name]]
        for report in ("answers-full", "answers-int8"):
            found = result["scores"][report][f"accuracy/{score}"]
            cells.append(f"{found['value']:.1%} ({found['low']:.1%} – {found['high']:.1%}, n = {found['n']})")
        return f"| {' | '.join(cells)} |"

    rows = [
        "| | float32 | INT8 |",
        "|---|---|---|",
        row("held", "held_out_phrasings"),
        row("unseen", "unseen_words"),
        f"| {words['size']} | {result['bytes_full'] / 1e6:.1f} MB | {result['bytes_int8'] / 1e6:.1f} MB |",
        "",
        words["chain"].format(
            **{key: result[key] for key in ("pages", "documents", "functions", "seconds", "machine")},
            parameters=result["parameters"] / 1e6,
            perplexity=result["scores"]["perplexity-base"]["perplexity"]["value"],
            peak=result["peak_memory_gib"],
            again=result["seconds_again"],
        ),
    ]
    return "\n".join(rows) + "\n"


def main() -> int:
    """Write or check both files."""
    result = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    stale = []
    for name, words in WORDS.items():
        path = ROOT / name
        text = path.read_text()
        fresh = MARKERS.sub(lambda match, words=words: match[1] + table(result, words) + match[2], text)  # type: ignore[misc]
        if fresh != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(fresh)
    print(f"stale: {', '.join(stale)}" if stale else "up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
