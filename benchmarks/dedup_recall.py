"""Recall of near-duplicates, on so many pairs of exactly known similarity that the promise can be held to its bound.

    python benchmarks/dedup_recall.py [--pairs 0.8=60000 0.9=60000] [--below 20000]

Each pair is a text of random words and a copy whose last words are others: of 100 word 5-grams in either, 80 or 90 are
in both, so that the Jaccard similarity is 0.8 or 0.9 exactly, where the promise is hardest to keep. All go the way of
`data.dedup`: signatures, 32 bands of 8 rows, exact verification, choice of the one that is kept. Told are the share of
pairs found, its exact lower bound (Clopper and Pearson 1934, one-sided, 95 %), and what theory says; and, for pairs
just below 0.8, how many were taken for near-duplicates at that threshold, which has to be none. No peer runs here:
`dedup.py` compares.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from catena.data.dedup import DedupConfig, find_duplicates

RESULTS = Path(__file__).parent / "results" / "dedup_recall.json"
VOCABULARY = [f"word{number}" for number in range(50_000)]
NGRAM, BANDS, ROWS, UNION = 5, 32, 8, 100
PROMISED = {0.8: 0.997, 0.9: 0.9999}
AT_ONCE = 20_000
LEVEL = 0.05


def pair(drawn: list[str], common: int, distinct: int) -> tuple[str, str]:
    """Return two texts with `common` shingles in both and `distinct` in each alone."""
    kept, words = common + NGRAM - 1, common + distinct + NGRAM - 1
    return " ".join(drawn[:words]), " ".join(drawn[:kept] + drawn[words : words + distinct])


def exact(first: str, second: str) -> float:
    """Return the Jaccard similarity by Python's own sets of tuples."""
    one, two = ({tuple(text.split()[at : at + NGRAM]) for at in range(len(text.split()) - NGRAM + 1)}
                for text in (first, second))  # fmt: skip
    return len(one & two) / len(one | two)


def measure(common: int, union: int, threshold: float, pairs: int, seed: int) -> dict[str, Any]:
    """Make pairs, look for them, and count."""
    rng = np.random.default_rng(seed)
    distinct = (union - common) // 2
    cfg = DedupConfig(threshold=threshold, ngram=NGRAM, bands=BANDS, rows=ROWS)
    found = candidates = strangers = 0
    used = 0.0
    for start in range(0, pairs, AT_ONCE):
        count = min(AT_ONCE, pairs - start)
        drawn = rng.integers(0, len(VOCABULARY), (count, common + 2 * distinct + NGRAM - 1)).tolist()
        texts = [text for row in drawn for text in pair([VOCABULARY[word] for word in row], common, distinct)]
        if start == 0:
            said = {round(exact(texts[at], texts[at + 1]), 9) for at in range(0, 200, 2)}
            assert said == {round(common / union, 9)}, said
        began = time.process_time()
        result = find_duplicates(texts, [f"{place:08}" for place in range(len(texts))], cfg)
        used += time.process_time() - began
        leaves = np.flatnonzero(result.kept_for >= 0)
        right = result.kept_for[leaves] // 2 == leaves // 2
        found += int(right.sum())
        strangers += int((~right).sum())
        candidates += result.candidates
    return {
        "similarity": common / union,
        "threshold": threshold,
        "pairs": pairs,
        "found": found,
        "strangers_taken": strangers,
        "candidates": candidates,
        "processor_seconds": round(used, 1),
    }


def bounded(told: dict[str, Any]) -> dict[str, Any]:
    """Add recall, its lower bound, and what theory says."""
    found, pairs, similarity = told["found"], told["pairs"], told["similarity"]
    return {
        **told,
        "recall": round(found / pairs, 6),
        "lower_bound": round(float(beta.ppf(LEVEL, found, pairs - found + 1)), 6),
        "theory": round(1 - (1 - similarity**ROWS) ** BANDS, 6),
        "promised": PROMISED[similarity],
    }


def main() -> int:
    """Measure, print, write the JSON; the exit code says whether the promise held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["0.8=60000", "0.9=60000"], metavar="J=COUNT")
    parser.add_argument("--below", type=int, default=20_000, help="pairs just below 0.8")
    asked = parser.parse_args()
    wanted = {float(similarity): int(count) for similarity, _, count in (one.partition("=") for one in asked.pairs)}
    told = [
        bounded(measure(round(similarity * UNION), UNION, similarity, count, seed))
        for seed, (similarity, count) in enumerate(sorted(wanted.items()))
    ]
    below = measure(UNION - 22, UNION, 0.8, asked.below, len(wanted))
    for row in told:
        print(
            f"J = {row['similarity']}: {row['found']} of {row['pairs']} pairs, recall {row['recall']:.5f}, at least "
            f"{row['lower_bound']:.5f} (theory {row['theory']:.5f}, promised {row['promised']})"
        )
    print(f"J = {below['similarity']:.3f}, threshold 0.8: {below['found']} of {below['pairs']} pairs were taken")
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "recall": told, "below": below}, indent=2) + "\n")
    kept = all(row["lower_bound"] >= row["promised"] and not row["strangers_taken"] for row in told)
    return 0 if kept and not below["found"] + below["strangers_taken"] else 1


if __name__ == "__main__":
    sys.exit(main())
