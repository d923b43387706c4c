"""The cleaning recipe from HTML to a clean set, against datatrove's nearest pipeline, in turn on the same pages.

    python benchmarks/cleaning.py [--megabytes 12] [--cache DIR] [--without-peer] [--data-juicer]

Input: pages in a site's frame; their paragraphs are real prose from the documentation strings of the standard library
and the installed packages, some pages are near-copies, some are lists, some hold made-up mail addresses and telephone
numbers. Both take the main text out, apply the rules of Gopher, C4 and FineWeb, mask personal data (datatrove: mail and
IP; Catena: also telephones, identity, card and account numbers) and remove near-duplicates by MinHash. Speed is
megabytes of HTML for each second of a processor (user and system, children included). Language identification and
Unicode repair are told apart and are not in the ratio: datatrove's language model is a download, and it has no repair.
With --data-juicer that runs too, by rules of its own; its times hold its start, some seconds.
"""

from __future__ import annotations

import argparse
import ast
import html
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catena.core.config import parse
from catena.core.events import Events
from catena.core.sample import Sample
from catena.core.stage import Context, stage_of
from catena.core.types import DatasetVersion
from catena.flow.table import STAGES
from catena.hub.store import init_store

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "cleaning.json"
PEERS = {
    "datatrove": ["datatrove[processing,io]==0.10.1", "xxhash<4", "spacy==3.8.18", "lxml_html_clean"],
    # The last four it imports and does not require; torch, with CUDA, it installs by itself at its first run.
    "data-juicer": ["py-data-juicer==1.6.1", "aiohttp", "av", "selectolax", "ftfy"],
}
FOLDERS = {"datatrove": "datatrove-0.10.1-cleaning", "data-juicer": "data-juicer-1.6.1"}
RULES = {"c4": {}, "fineweb": {}, "quality": {}, "repetition": {"duplicate_ngrams": True}, "length": {}}
# In the peer's order; the parts that it does not have are told apart.
RECIPE: list[tuple[str, str, dict[str, Any]]] = [
    ("extract", "data.extract", {}),
    ("repair", "data.repair", {}),
    ("language", "data.language", {}),
    ("rules", "data.lines", {}),
    ("rules", "data.filter", {"filters": RULES}),
    ("rules", "data.mask", {}),
    ("dedup", "data.dedup", {"threshold": 0.8, "workers": 1}),
]
COMMON = ("extract", "rules", "dedup")


def paragraphs(limit: int) -> Iterator[str]:
    """Yield paragraphs of prose from documentation strings, up to `limit` characters."""
    for root in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib")):
        for path in sorted(Path(root).rglob("*.py")):
            try:
                nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            except (SyntaxError, ValueError, OSError, RecursionError):
                continue
            for node in nodes:
                if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    continue
                for part in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    text = " ".join(part.split())
                    if 80 <= len(text) <= 1500 and text[0].isupper() and text.endswith("."):
                        limit -= len(text)
                        yield text
                        if limit <= 0:
                            return


def page(title: str, body: str) -> str:
    """Put a page's main part into the frame of a site."""
    links = "".join(f'<li><a href="/{name}">{name}</a></li>' for name in ("Home", "News", "Archive", "Contact", "Help"))
    return (
        f"<html><head><title>{title}</title><script>var x = {{}};</script></head><body><nav><ul>{links}</ul></nav>"
        f"<main><h1>{title}</h1>{body}</main><footer><ul>{links}</ul><p>Copyright. We use cookies.</p></footer>"
        "</body></html>"
    )


def make_input(folder: Path, megabytes: float) -> dict[str, Any]:
    """Write the pages as JSON lines; returns their number and size."""
    chance = random.Random(1)
    known = list(dict.fromkeys(paragraphs(int(megabytes * 1_000_000))))
    chance.shuffle(known)
    pages: list[str] = []
    place = 0
    while place < len(known):
        count = chance.randint(6, 20)
        texts = known[place : place + count]
        place += count
        if chance.random() < 0.3:
            texts.append(
                f"Write to user{place}@mail{place}.test-site.com or call +49 30 1234{place % 10000:04d} today."
            )
        marked = [f"<p>{html.escape(text)}</p>" for text in texts]
        pages.append(page(f"Page {place}", "".join(marked)))
        kind = chance.random()
        if kind < 0.15:  # a near-copy: one more paragraph
            pages.append(page(f"Copy {place}", "".join([*marked, f"<p>{html.escape(chance.choice(known))}</p>"])))
        elif kind < 0.3:  # a list
            items = "".join(f"<li>{' '.join(text.split()[:3])}</li>" for text in chance.choices(known, k=60))
            pages.append(page(f"List {place}", f"<ul>{items}</ul>"))
    with (folder / "pages.jsonl").open("w", encoding="utf-8") as stream:
        for number, text in enumerate(pages):
            stream.write(json.dumps({"id": f"page-{number:06}", "text": text}, ensure_ascii=False) + "\n")
    return {"pages": len(pages), "megabytes": round(sum(len(text.encode()) for text in pages) / 1e6, 2)}


def processor_seconds() -> float:
    """Seconds of all processors that this process and its finished children used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run_catena(folder: Path, work: Path) -> None:
    """Run the recipe and print what each part took: the work of a child process."""
    store = init_store(work / ".catena")
    used = processor_seconds()
    told: dict[str, float] = {}
    rows: dict[str, Any] = {}
    with store.new_dataset("media") as out, (folder / "pages.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            # Each page is of a site of its own, as in a crawl of the web: no frame is learnt from its neighbours.
            source = f"http://{row['id']}.test/"
            data = {"content": row["text"].encode(), "media_type": "text/html; charset=utf-8"}
            out.add(Sample(row["id"], data, source=source))
        made = out.commit()
    for number, (part, name, values) in enumerate(RECIPE):
        stage = stage_of(STAGES.load(name))
        workdir = work / str(number)
        workdir.mkdir()
        result = stage.function(Context(store, workdir, 0, Events(), name), parse(stage.config, values), source=made)
        assert isinstance(result, DatasetVersion)
        made, now = result, processor_seconds()
        told[part] = told.get(part, 0.0) + now - used  # reading the input counts as a part of the extraction
        used = now
        rows[name] = {"rows": made.rows, "rejected": dict(made.funnel.rejected) if made.funnel else {}}
    print(json.dumps({"processor_seconds": told, "rows": rows}))


def peer_python(cache: Path, peer: str) -> Path:
    """Return the Python of the peer's environment, made on first use."""
    folder = cache / FOLDERS[peer]
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
        (folder / "ready").touch()
    return python


def child(command: list[str]) -> dict[str, Any]:
    """Run a contestant with one thread; returns the JSON of its last line."""
    alone = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def main() -> None:
    """Make the input, run both, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=12, help="of prose; the pages are somewhat more")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "catena-benchmarks")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--data-juicer", action="store_true", help="also run it; its first run fetches 6 GB")
    parser.add_argument("--contestant", nargs=2, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contestant:
        run_catena(*asked.contestant)
        return
    with tempfile.TemporaryDirectory(prefix="catena-cleaning-") as name:
        folder, ours = Path(name, "input"), Path(name, "catena")
        folder.mkdir()
        ours.mkdir()
        facts = make_input(folder, asked.megabytes)
        told = {"catena": child([sys.executable, __file__, "--contestant", str(folder), str(ours)])}
        wanted = {"datatrove": not asked.without_peer, "data-juicer": asked.data_juicer}
        for peer in (peer for peer, is_wanted in wanted.items() if is_wanted):
            theirs = Path(name, peer)
            theirs.mkdir()
            script = str(ROOT / "peers" / f"{peer.replace('-', '_')}_cleaning.py")
            told[peer] = child([str(peer_python(asked.cache, peer)), script, str(folder), str(theirs)])
    speeds = {
        name: {
            **{part: round(facts["megabytes"] / seconds, 3) for part, seconds in found["processor_seconds"].items()},
            "whole": round(facts["megabytes"] / sum(found["processor_seconds"][part] for part in COMMON), 3),
        }
        for name, found in told.items()
    }
    result: dict[str, Any] = {
        "input": facts,
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "mb_per_s_core": speeds,
        "results": told,
        "left_out": {
            "language": "datatrove's language model is a download; Catena's is told apart",
            "data-juicer": "its filters by language, perplexity and word lists are downloads",
        },
    }
    for peer in PEERS.keys() & speeds.keys():
        result["ratio" if peer == "datatrove" else f"ratio_{peer}"] = {
            part: round(speeds["catena"][part] / speeds[peer][part], 2) for part in (*COMMON, "whole")
        }
    show(result)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    parts = ("extract", "rules", "dedup", "whole", "repair", "language")
    print(f"{result['input']} on {result['machine']}; MB of HTML for each second of a processor")
    print(f"{'':10} " + " ".join(f"{part:>9}" for part in parts))
    for name, speeds in result["mb_per_s_core"].items():
        print(f"{name:10} " + " ".join(f"{speeds[part]:9.2f}" if part in speeds else f"{'-':>9}" for part in parts))
    for name in ("ratio", "ratio_data-juicer"):
        if name in result:
            print(f"{name[:10]:10} " + " ".join(f"{result[name][part]:9.2f}" for part in parts if part in result[name]))


if __name__ == "__main__":
    main()
