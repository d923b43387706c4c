"""Write the measured numbers into both READMEs and the pages on compression, from benchmarks/results/*.json.

python scripts/readme_numbers.py           write
python scripts/readme_numbers.py --check   exit 1 if a README shows other numbers
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NUMBERS = re.compile(r"(<!-- numbers: .*? -->\n).*?(<!-- end of numbers -->)", re.DOTALL)
PEERS = re.compile(r"(<!-- peers: .*? -->\n).*?(<!-- end of peers -->)", re.DOTALL)
LARGER = re.compile(r"(<!-- compression, larger: .*? -->\n).*?(<!-- end of compression, larger -->)", re.DOTALL)
SMALLER = re.compile(r"(<!-- compression: .*? -->\n).*?(<!-- end of compression -->)", re.DOTALL)
PAGES = {"docs/compression.md": "README.md", "docs/compression.zh.md": "README.zh.md"}
"""Pages with the whole table of compression, and whose words they take."""
ENGINE = ("decode-1", "decode-16", "prefill")
SHORT = ("int8", "rtn-4", "awq-4", "gptq-4")
"""Versions that the READMEs show."""
WORDS: dict[str, dict[str, Any]] = {
    "README.md": {
        "peers": (
            "| same input, same run | Catena | peer | ratio |",
            "near-duplicates out of {megabytes:.0f} MB of real text, whole job, MB/s per core",
            "… planted pairs found at Jaccard 0.8; removed without a kept partner (exact word 5-grams)",
            "cleaning {small:.0f} MB of web pages (extract, rules, personal data, dedup), MB/s per core",
            "personal data in ordinary text, MB/s per core (7 kinds; the peer knows 2)",
            "what a commit of 1 % of 1M rows adds",
            "a copy in Parquet",
            "training, {case}, real tokens per processor second",
            ("all weights", "LoRA", "packed conversations of real lengths"),
        ),
        "engine": (
            "0.5B model, {bits}, {threads} threads, tokens/s: one sequence; 16 at once; prompt of 512",
            {
                "catena-bf16": "bfloat16",
                "catena-w8a8": "8 bits, inputs too",
                "catena-int8": "8 bits, inputs of 16",
                "catena-int4-a8": "4 bits, inputs of 8",
            },
            "0.5B model, bfloat16, {threads} threads, 16 answers at once, tokens/s",
            ("continuous batching of transformers", "padded `generate` of transformers"),
        ),
        "smaller": ("as trained", "size", "perplexity", "exact answers (held out; unseen words)"),
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
        "peers": (
            "| 同一输入，同一次运行 | Catena | 对照 | 比值 |",
            "从 {megabytes:.0f} MB 真实文本中去除近似重复，整个任务，每核 MB/s",
            "……Jaccard 0.8 的植入对召回率；被删而没有保留对应文档的数量（按词 5-gram 精确判定）",
            "清洗 {small:.0f} MB 网页（抽取、规则、个人信息、去重），每核 MB/s",
            "普通文本中的个人信息，每核 MB/s（7 类；对照只认 2 类）",
            "提交 100 万行中 1 % 的改动所增加的存储",
            "Parquet 副本",
            "训练（{case}），每处理器秒的有效词元数",
            ("全部权重", "LoRA", "按真实长度打包的对话"),
        ),
        "engine": (
            "0.5B 模型，{bits}，{threads} 线程，每秒词元：单序列；16 序列并发；512 词元提示",
            {
                "catena-bf16": "bfloat16",
                "catena-w8a8": "8 位，输入也是 8 位",
                "catena-int8": "8 位，输入 16 位",
                "catena-int4-a8": "4 位，输入 8 位",
            },
            "0.5B 模型，bfloat16，{threads} 线程，16 条并发，每秒词元",
            ("transformers 的连续批处理", "transformers 补齐后的 `generate`"),
        ),
        "smaller": ("训练所得", "大小", "困惑度", "逐字答对（未见问法；未见词）"),
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


def table(result: dict[str, Any], words: dict[str, Any]) -> str:
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


def peers(words: dict[str, Any]) -> str:
    """Return the Markdown table of what was measured beside other tools."""
    head, dedup_name, found_name, clean_name, personal_name, commit_name, copy_name, train_name, cases = words["peers"]
    dedup, cleaning, personal, versions = (load(name) for name in ("dedup", "cleaning", "pii", "versions"))
    ours, theirs = dedup["results"]["catena"], dedup["results"]["datatrove"]
    found = [f"{side['recall']['0.8']['recall']:.1%}; {side['false_removals']:,}" for side in (ours, theirs)]
    speeds = [side["mb_per_s_core"] for side in (ours, theirs)]
    cleaned = [cleaning["mb_per_s_core"][side]["whole"] for side in ("catena", "datatrove")]
    masked = [personal[side]["mb_per_s_text"] for side in ("catena", "datatrove")]
    added = [versions[side]["bytes"] / 1e6 for side in ("catena", "copies")]
    peer = "datatrove 0.10.1"
    rows = [
        head,
        "|---|---|---|---|",
        f"| {dedup_name.format(megabytes=dedup['input']['megabytes'])} | {speeds[0]:.1f} | {speeds[1]:.2f} ({peer}) "
        f"| {speeds[0] / speeds[1]:.1f} |",
        f"| {found_name} | {found[0]} | {found[1]} ({peer}) | |",
        f"| {clean_name.format(small=cleaning['input']['megabytes'])} | {cleaned[0]:.2f} | {cleaned[1]:.2f} ({peer}) "
        f"| {cleaned[0] / cleaned[1]:.1f} |",
        f"| {personal_name} | {masked[0]:.1f} | {masked[1]:.1f} ({peer}) | {masked[0] / masked[1]:.1f} |",
        f"| {commit_name} | {added[0]:.1f} MB | {added[1]:.1f} MB ({copy_name}) | {added[1] / added[0]:.0f} |",
    ]
    trained = load("train_speed")["cases"]
    for case, told in zip(("full", "lora", "packed"), cases, strict=True):
        sides = [median(run["tokens"] / run["cpu_s"] for run in trained[case][side]) for side in ("ours", "theirs")]
        name = train_name.format(case=told)
        rows.append(
            f"| {name} | {sides[0]:,.0f} | {sides[1]:,.0f} (transformers Trainer) | {sides[0] / sides[1]:.2f} |"
        )
    return "\n".join(rows + engine(words)) + "\n"


def engine(words: dict[str, Any]) -> list[str]:
    """Return rows of the engine beside llama.cpp at equal bits, and beside transformers."""
    name, told, at_once, others = words["engine"]
    pairs = [
        ("catena-bf16", "llama-bf16", "llama.cpp BF16"),
        ("catena-w8a8", "llama-q8_0", "llama.cpp Q8_0"),
        ("catena-int8", "llama-q8_0", "llama.cpp Q8_0"),
        ("catena-int4-a8", "llama-q4_0", "llama.cpp Q4_0"),
    ]
    threads, result = max(load("engine")["threads"].items())
    best = result["best"]
    rows = []
    for ours, theirs, peer in pairs:
        sides = [[best[side][one] for one in ENGINE] for side in (ours, theirs)]
        cells = ["; ".join(f"{value:,.0f}" for value in side) for side in sides]
        ratios = "; ".join(f"{mine / other:.2f}" for mine, other in zip(*sides, strict=True))
        what = name.format(bits=told[ours], threads=threads)
        rows.append(f"| {what} | {cells[0]} | {cells[1]} ({peer}) | {ratios} |")
    for theirs, peer in zip(("continuous", "padded"), others, strict=True):
        mine, other = best["catena-bf16"]["decode-16"], best[theirs]["decode-16"]
        rows.append(f"| {at_once.format(threads=threads)} | {mine:,.0f} | {other:,.0f} ({peer}) | {mine / other:.1f} |")
    return rows


def smaller(words: dict[str, Any], chosen: tuple[str, ...] = ()) -> str:
    """Return the Markdown table of compressed versions, all or the chosen ones: each as a share of its baseline."""
    result = load("compression")
    whole, *heads = words["smaller"]
    base, answers = result["demo"], result["answers"]

    def accuracy(found: dict[str, float] | None) -> str:
        return "; ".join(f"{value:.1%}" for name, value in (found or {}).items() if name.startswith("accuracy/"))

    rows = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    rows.append(f"| {whole} | 100% | {base['before']['perplexity']:.1f} | {accuracy(answers['before'])} |")
    for name, found in base["versions"].items():
        if not chosen or name in chosen:
            change = found["perplexity"] / base["before"]["perplexity"] - 1
            share = base["against_its_baseline"][name]
            told = accuracy(answers["versions"].get(name))
            size = f"{share['size_ratio']:.1%}"
            rows.append(f"| {name} | {size} | {found['perplexity']:.1f} ({change:+.2%}) | {told} |")
    return "\n".join(rows) + "\n"


def larger(words: dict[str, Any]) -> str:
    """Return the Markdown table of the compressed versions of the larger model, where one was measured."""
    result = load("compression").get("larger")
    if result is None:
        return ""
    whole, size, perplexity, _ = words["smaller"]
    before = result["before"]["perplexity"]
    rows = [f"| | {size} | {perplexity} |", "|---|---|---|", f"| {whole} | 100% | {before:.1f} |"]
    for name, found in result["versions"].items():
        share = result["against_its_baseline"][name]["size_ratio"]
        change = found["perplexity"] / before - 1
        rows.append(f"| {name} | {share:.1%} | {found['perplexity']:.1f} ({change:+.2%}) |")
    return "\n".join(rows) + "\n"


def load(name: str) -> dict[str, Any]:
    """Return the JSON of one benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def main() -> int:
    """Write or check both files."""
    result = load("demo")
    stale = []
    for name, words in WORDS.items():
        path = ROOT / name
        text = path.read_text()
        numbers, compared = table(result, words), peers(words)
        fresh = NUMBERS.sub(lambda match, text=numbers: match[1] + text + match[2], text)
        fresh = PEERS.sub(lambda match, text=compared: match[1] + text + match[2], fresh)
        short = smaller(words, SHORT)
        fresh = SMALLER.sub(lambda match, text=short: match[1] + text + match[2], fresh)
        if fresh != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(fresh)
    for name, words_of in PAGES.items():
        text, whole = (ROOT / name).read_text(), smaller(WORDS[words_of])
        fresh = SMALLER.sub(lambda match, text=whole: match[1] + text + match[2], text)
        second = larger(WORDS[words_of])
        fresh = LARGER.sub(lambda match, text=second: match[1] + text + match[2], fresh)
        if fresh != text:
            stale.append(name)
            if "--check" not in sys.argv:
                (ROOT / name).write_text(fresh)
    print(f"stale: {', '.join(stale)}" if stale else "up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
