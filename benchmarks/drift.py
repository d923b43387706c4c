"""Drift: how often an alarm is raised where nothing has changed, and how small a change is found.

    python benchmarks/drift.py [--comparisons 400] [--texts clinc150.json]

`--texts` is CLINC150's `data_full.json` (clinc/oos-eval), real questions; without it they are made of word lists.
Each comparison draws reference and current anew. "False alarm" is a comparison in which any feature is
called `drift`; the rate of `watch` stands beside it. Planted: one thing is changed, and it is counted how often that
feature is called `drift`, or at least `watch`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from catena.core.config import parse
from catena.data.drift.facts import Facts
from catena.data.drift.stage import DriftConfig, compare

RESULT = Path(__file__).parent / "results" / "drift.json"
WORDS = ["function list module import error", "flight hotel train ticket city", "flour sugar oven bread salt"]
PLANTS: dict[str, tuple[str, list[float]]] = {
    "refused": ("refused", [0.02, 0.05, 0.10, 0.20]),
    "moderated": ("moderated", [0.02, 0.05, 0.10, 0.20]),
    "latency x": ("ms", [1.2, 1.5, 2.0, 3.0]),
    "chinese": ("language", [0.02, 0.05, 0.10, 0.20]),
    "longer x": ("question_words", [1.2, 1.5, 2.0, 3.0]),
    "one topic more by": ("topic", [0.05, 0.10, 0.20, 0.40]),
}


def load(file: Path | None, dice: random.Random) -> list[str]:
    """Return the questions to draw from."""
    if file is None:
        return [" ".join(dice.choices(dice.choice(WORDS).split(), k=8)) for _ in range(5000)]
    return [text for rows in json.loads(file.read_text("utf-8")).values() for text, _ in rows]


def draw(texts: list[str], count: int, dice: random.Random, plant: str = "", by: float = 0.0) -> list[Facts]:
    """Draw rows, with one thing changed."""
    made = []
    topic = [text for text in texts if text.split()[:1] in (["what"], ["what's"], ["function"], ["list"])] or texts
    for _ in range(count):
        text = dice.choice(topic if plant == "one topic more by" and dice.random() < by else texts)
        if plant == "chinese" and dice.random() < by:
            text = "请问这个问题应该怎么处理才好呢"
        while plant == "longer x" and len(text.split()) < by * 6 and dice.random() < 0.8:
            text += " " + dice.choice(texts)
        refused = dice.random() < 0.01 + (by if plant == "refused" else 0)
        flagged = dice.random() < 0.01 + (by if plant == "moderated" else 0)
        ms = dice.lognormvariate(5.0, 0.6) * (by if plant == "latency x" else 1.0)
        answer = " ".join(["word"] * max(1, int(dice.gauss(20, 6))))
        made.append(Facts(text, answer, refused, flagged, None, ms))
    return made


def main() -> None:
    """Run, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=400)
    parser.add_argument("--texts", type=Path)
    options = parser.parse_args()
    dice, config = random.Random(1), parse(DriftConfig, {})
    texts, began = load(options.texts, dice), time.monotonic()
    result: dict[str, Any] = {
        "questions": len(texts),
        "texts": options.texts.name if options.texts else "made of word lists",
        "alpha": config.alpha,
        "nothing changed": {},
        "planted": {},
    }
    for size in (150, 500, 2000):
        tally: Counter[str] = Counter()
        rounds = options.comparisons if size < 2000 else options.comparisons // 4
        for number in range(rounds):
            found = compare(draw(texts, size, dice), draw(texts, size, dice), config, number)
            verdicts = {one.verdict for one in found}
            tally["drift"] += "drift" in verdicts
            tally["watch"] += "watch" in verdicts or "drift" in verdicts
            tally["psi_alone"] += any(one.psi >= config.drift for one in found)
        result["nothing changed"][f"{size} rows a side"] = {"comparisons": rounds, **tally}
    for plant, (feature, amounts) in PLANTS.items():
        for amount in amounts:
            tally = Counter({"drift": 0, "watch": 0})
            rounds = max(10, options.comparisons // 20)
            for number in range(rounds):
                found = compare(draw(texts, 500, dice), draw(texts, 500, dice, plant, amount), config, number)
                verdict = next((one.verdict for one in found if one.name == feature), "")
                tally["drift"] += verdict == "drift"
                tally["watch"] += verdict in ("drift", "watch")
            result["planted"][f"{plant} {amount:g}"] = {"feature": feature, "of": rounds, **tally}
    result["seconds"] = round(time.monotonic() - began, 1)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
