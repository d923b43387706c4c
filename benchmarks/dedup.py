"""Near-duplicates: `data.dedup` against datatrove's MinHash, both whole jobs, in turn on the same files.

    python benchmarks/dedup.py [--megabytes 200] [--cores 2] [--cache DIR] [--without-peer]

Input: sources and documentation of the Python packages installed here and of the standard library, with planted copies
in which words are replaced until the exact Jaccard similarity of word 5-grams is just above 0.8 or 0.9 (counted with
Python sets of tuples, which neither contestant uses). A job is everything from JSON lines to the kept and the removed
documents on disk. Speed is told per second of a processor (user and system, children included), which other work on the
machine changes little. datatrove runs with its defaults (14 buckets of 8 hashes, 5-grams) in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catena.core.events import Events
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.dedup import DedupConfig, dedup
from catena.hub.store import Store, init_store

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "dedup.json"
PEER = ["datatrove[processing,io]==0.10.1", "xxhash<4", "spacy==3.8.18"]
SUFFIXES = {".py", ".rst", ".md", ".txt"}
TARGETS = (0.8, 0.9)
NGRAM = 5


def real_texts(limit: int) -> Iterator[str]:
    """Yield texts of the standard library and of the installed packages, up to `limit` bytes."""
    done = 0
    for root in dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")):
        for path in sorted(Path(root).rglob("*")):
            if (
                path.suffix not in SUFFIXES
                or not path.is_file()
                or ("site-packages" in path.parts) != ("site-packages" in Path(root).parts)
            ):
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if text.strip():
                done += len(text.encode())
                yield text
                if done >= limit:
                    return


def shingles(text: str) -> set[tuple[str, ...]]:
    """Return the word 5-grams of a text: the judge's own count."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[place : place + NGRAM]) for place in range(max(len(words) - NGRAM + 1, 1))}


def jaccard(first: set[Any], second: set[Any]) -> float:
    """Return the share that two sets have in common."""
    return len(first & second) / max(len(first | second), 1)


def plant(text: str, target: float, chance: random.Random) -> tuple[str, float] | None:
    """Return a copy with words replaced, so that the similarity is at least `target` and as little more as possible."""
    words = list(re.finditer(r"\w+", text))
    own = shingles(text)
    places = list(range(2, len(words) - 2, NGRAM + 1))
    chance.shuffle(places)

    def copy(count: int) -> str:
        parts, position = [], 0
        for place in sorted(places[:count]):
            parts += [text[position : words[place].start()], f"planted{place}"]
            position = words[place].end()
        return "".join((*parts, text[position:]))

    low, high = 0, len(places)
    while low + 1 < high:  # the similarity falls with every word
        middle = (low + high) // 2
        if jaccard(own, shingles(copy(middle))) >= target:
            low = middle
        else:
            high = middle
    made = copy(low)
    found = jaccard(own, shingles(made))
    return (made, found) if target <= found < target + 0.02 else None


def make_input(folder: Path, megabytes: int, files: int) -> dict[str, Any]:
    """Write the JSON lines; returns facts and the planted pairs as (id, id, similarity)."""
    chance = random.Random(1)
    texts = list(real_texts(megabytes * 1_000_000))
    suited = [place for place, text in enumerate(texts) if 1500 <= len(text) <= 12000]
    chance.shuffle(suited)
    rows = [(f"real-{place:06}", text) for place, text in enumerate(texts)]
    planted: dict[str, list[tuple[str, str, float]]] = {str(target): [] for target in TARGETS}
    for number, place in enumerate(suited[: 2 * max(len(texts) // 8, 50)]):
        target = TARGETS[number % 2]
        made = plant(texts[place], target, chance)
        if made is not None:
            rows.append((f"planted-{number:06}", made[0]))
            planted[str(target)].append((f"real-{place:06}", f"planted-{number:06}", made[1]))
    chance.shuffle(rows)
    streams = [(folder / f"part-{number}.jsonl").open("w", encoding="utf-8") for number in range(files)]
    for number, (key, text) in enumerate(rows):
        streams[number % files].write(json.dumps({"id": key, "text": text}, ensure_ascii=False) + "\n")
    for stream in streams:
        stream.close()
    size = sum(len(text.encode()) for _, text in rows)
    return {"documents": len(rows), "megabytes": size / 1e6, "planted": planted}


def processor_seconds() -> float:
    """Seconds of all processors that this process and its finished children used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run_catena(folder: Path, work: Path, cores: int) -> None:
    """Read the JSON lines into a store, deduplicate, and print what it took: the work of a child process."""
    marks = [(time.monotonic(), processor_seconds())]
    store = init_store(work / ".catena")
    with store.new_dataset("document") as out:
        for path in sorted(folder.glob("*.jsonl")):
            with path.open(encoding="utf-8") as stream:
                for line in stream:
                    row = json.loads(line)
                    out.add(Sample(row["id"], {"text": row["text"]}))
        source = out.commit()
    marks.append((time.monotonic(), processor_seconds()))
    (work / "work").mkdir()
    events: list[dict[str, Any]] = []
    context = Context(store, work / "work", 0, Events(None, [events.append]), "dedup")
    made = dedup(context, DedupConfig(threshold=0.8, workers=cores), source=source)
    marks.append((time.monotonic(), processor_seconds()))
    (work / "removed.json").write_text(json.dumps(list(removed_of(store, made))), encoding="utf-8")
    told: dict[str, Any] = {
        name: {"seconds": after[0] - before[0], "processor_seconds": after[1] - before[1]}
        for name, before, after in zip(("read", "dedup"), marks, marks[1:], strict=False)
    }
    told["profile"] = made.profile["duplicates"]
    told["peak_bytes"] = 1024 * max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps(told))


def removed_of(store: Store, made: DatasetVersion) -> Iterator[tuple[str, str]]:
    """Yield the id of each removed document and of the one that is kept for it."""
    for sample, _, detail in store.open_dataset(made).rejects():
        yield sample.id, detail.split()[1].rstrip(",")


def peer_python(cache: Path) -> Path:
    """Return the Python of the peer's environment, made on first use."""
    folder = cache / "datatrove-0.10.1"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
        (folder / "ready").touch()
    return python


def removed_by_peer(work: Path) -> list[tuple[str, list[str]]]:
    """Return the id of each removed document and the ids of those that are kept of its cluster."""
    kept: dict[Any, list[str]] = {}
    rows = {
        name: [json.loads(line) for path in sorted((work / name).glob("*.jsonl")) for line in path.open()]
        for name in ("kept", "removed")
    }
    for row in rows["kept"]:
        kept.setdefault(row["metadata"].get("minhash_cluster_id", -1), []).append(row["id"])
    return [
        (row["id"], kept.get(cluster, []) if (cluster := row["metadata"].get("minhash_cluster_id")) is not None else [])
        for row in rows["removed"]
    ]


def judge(folder: Path, facts: dict[str, Any], removed: list[tuple[str, list[str]]], least: float) -> dict[str, Any]:
    """Return recall on the planted pairs, and removals without a kept partner that is really as similar."""
    gone = {key for key, _ in removed}
    wanted = gone | {partner for _, partners in removed for partner in partners}
    texts: dict[str, str] = {}
    for path in folder.glob("*.jsonl"):
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                if row["id"] in wanted:
                    texts[row["id"]] = row["text"]
    false = 0
    for key, partners in removed:
        own = shingles(texts[key])
        false += not any(
            partner not in gone and jaccard(own, shingles(texts[partner])) >= least for partner in partners
        )
    recall = {}
    for target, pairs in facts["planted"].items():
        found = sum(first in gone or second in gone for first, second, _ in pairs)
        recall[target] = {"pairs": len(pairs), "found": found, "recall": found / max(len(pairs), 1)}
    return {"removed": len(gone), "false_removals": false, "recall": recall}


def child(command: list[str]) -> dict[str, Any]:
    """Run a contestant; returns the JSON of its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def speed(told: dict[str, Any], megabytes: float, steps: tuple[str, ...]) -> float:
    """Return megabytes a second of one processor over some steps."""
    return megabytes / sum(told[step]["processor_seconds"] for step in steps)


def main() -> None:
    """Make the input, run both, judge both, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "catena-benchmarks")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--contestant", nargs=2, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contestant:
        run_catena(*asked.contestant, asked.cores)
        return
    with tempfile.TemporaryDirectory(prefix="catena-dedup-") as name:
        folder, ours, theirs = (Path(name) / part for part in ("input", "catena", "datatrove"))
        for path in (folder, ours, theirs):
            path.mkdir()
        facts = make_input(folder, asked.megabytes, asked.cores)
        size = facts["megabytes"]
        own = [sys.executable, __file__, "--cores", str(asked.cores), "--contestant", str(folder), str(ours)]
        told = {"catena": child(own)}
        pairs = [(key, [partner]) for key, partner in json.loads((ours / "removed.json").read_text())]
        told["catena"] |= judge(folder, facts, pairs, 0.8)
        told["catena"]["mb_per_s_core"] = speed(told["catena"], size, ("read", "dedup"))
        told["catena"]["mb_per_s_core_from_store"] = speed(told["catena"], size, ("dedup",))
        if not asked.without_peer:
            script = str(ROOT / "peers" / "datatrove_minhash.py")
            command = [str(peer_python(asked.cache)), script, str(folder), str(theirs), str(asked.cores)]
            told["datatrove"] = child(command)
            told["datatrove"] |= judge(folder, facts, removed_by_peer(theirs), 0.8)
            told["datatrove"]["mb_per_s_core"] = speed(told["datatrove"], size, ("sign", "buckets", "cluster", "write"))
    planted = {target: len(pairs) for target, pairs in facts["planted"].items()}
    result = {
        "input": {"documents": facts["documents"], "megabytes": round(size, 1), "planted_pairs": planted},
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "results": told,
    }
    if "datatrove" in told:
        result["ratio"] = told["catena"]["mb_per_s_core"] / told["datatrove"]["mb_per_s_core"]
    show(result)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['input']} on {result['machine']}")
    print(f"{'':10} {'MB/s core':>9} {'recall 0.8':>10} {'recall 0.9':>10} {'removed':>8} {'false':>6} {'peak MB':>8}")
    for name, told in result["results"].items():
        recall = [told["recall"][str(target)]["recall"] for target in TARGETS]
        print(
            f"{name:10} {told['mb_per_s_core']:9.2f} {recall[0]:10.5f} {recall[1]:10.5f} {told['removed']:8}"
            f" {told['false_removals']:6} {told['peak_bytes'] / 1e6:8.0f}"
        )
    if "ratio" in result:
        print(f"ratio of the speeds: {result['ratio']:.1f}")


if __name__ == "__main__":
    main()
