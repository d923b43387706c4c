"""Time and findings of decontamination: microseconds for each document, and planted evaluation items found again.

    python benchmarks/decontaminate.py [--documents N] [--items N]

Documents are random words from a Zipf distribution, 120 to 600 of them; in each hundredth an evaluation item is
planted at a random place, whole, with a word inserted, with a word deleted, or in other punctuation. Allen AI's decon,
a Rust program that no registry has, tells 34 microseconds for each document on its own machine: that is no comparison
in one run, and stands here only as a mark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from catena.data.overlap import Index

RESULTS = Path(__file__).parent / "results" / "decontaminate.json"
EDITS = ("whole", "inserted", "deleted", "punctuation")


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Return so many words, few of them very often."""
    return [f"w{number}" for number in np.minimum(rng.zipf(1.3, count), 50_000)]


def edited(chance: random.Random, item: list[str], edit: str) -> str:
    """Return an item as somebody else might write it."""
    place = chance.randrange(len(item))
    if edit == "inserted":
        item = [*item[:place], "really", *item[place:]]
    elif edit == "deleted":
        item = [*item[:place], *item[place + 1 :]]
    return ", ".join(item) if edit == "punctuation" else " ".join(item)


def measure(documents: int, items: int) -> dict[str, Any]:
    """Plant, search, and return what was found in which time."""
    rng, chance = np.random.default_rng(7), random.Random(7)
    evaluation = [words(rng, chance.randint(15, 120)) for _ in range(items)]
    texts, planted = [], {}
    for number in range(documents):
        text = words(rng, chance.randint(120, 600))
        if number % 100 == 0:
            edit = EDITS[number // 100 % len(EDITS)]
            place = chance.randrange(len(text))
            text[place:place] = [edited(chance, chance.choice(evaluation), edit)]
            planted[number] = edit
        texts.append(" ".join(text))

    index = Index(13, 5)
    started = time.process_time()
    for number, item in enumerate(evaluation):
        index.add(str(number), " ".join(item))
    index.close()
    built = time.process_time() - started
    started = time.process_time()
    index.learn(texts[:: max(1, documents // 20_000)])
    learned = time.process_time() - started
    started = time.process_time()
    found = {number for number, passage in enumerate(index.search(texts, 0.75)) if passage is not None}
    searched = time.process_time() - started

    right = Counter(planted[number] for number in found if number in planted)
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "documents": documents,
        "items": items,
        "passages": len(index),
        "seconds_index": round(built, 2),
        "microseconds_per_document_weights": round(1e6 * learned / min(documents, 20_000), 1),
        "microseconds_per_document_search": round(1e6 * searched / documents, 1),
        "megabytes_per_second": round(sum(map(len, texts)) / 1e6 / searched, 2),
        "recall": {edit: round(right[edit] / count, 4) for edit, count in sorted(Counter(planted.values()).items())},
        "false_alarms": len(found - planted.keys()),
    }


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=2_000)
    arguments = parser.parse_args()
    result = measure(arguments.documents, arguments.items)
    for name, value in result.items():
        print(f"{name:<36}{value}")
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
