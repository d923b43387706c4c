"""Intents: a small encoder trained here, by LoRA and in full, beside TF-IDF with logistic regression, on CLINC150.

    python benchmarks/clinc150.py DATA [--quick] [--set step.field=value ...]

DATA is `data_full.json` of github.com/clinc/oos-eval (Larson et al. 2019, arXiv 1909.02027): 150 intents, 15,000
queries to train on, 3,000 to validate, 4,500 to test; those out of scope are left out. Ours is `recipes/intents.yaml`
as it stands: tokenizer, masked-language pretraining on the training queries only, and both classifiers. The peer is
scikit-learn on the same queries, with words and word pairs (its C chosen on the validation split), and with parts of
words besides (minutes: C is 10). Accuracy and macro F1 are on the test split, with 95 % intervals; seconds are wall
time on a machine that may be busy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import catena
from catena.core.types import Report
from catena.evaluate.classification import by_label, macro_f1, macro_f1_interval
from catena.evaluate.stats import wilson

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "clinc150.json"
RECIPE = ROOT.parent / "recipes" / "intents.yaml"
SPLITS = {"train": "train", "val": "validation", "test": "test"}
QUICK = 15
"""Intents that `--quick` keeps."""

Rows = dict[str, list[tuple[str, str]]]


def read(path: Path, quick: bool) -> Rows:
    """Return (query, intent) by split; duplicates of one split stay as they are."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    kept = sorted({label for _, label in raw["train"]})[: QUICK if quick else None]
    return {name: [(text, label) for text, label in raw[key] if label in kept] for key, name in SPLITS.items()}


def ours(rows: Rows, root: Path, overrides: list[str]) -> dict[str, Any]:
    """Run the recipe; return scores and seconds of its two classifiers."""
    folder = root / "intents"
    folder.mkdir()
    for split, pairs in rows.items():
        lines = [json.dumps({"input": text, "output": label}) for text, label in pairs]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = [f"examples.folder={folder}", f"texts.folder={folder}", *overrides]
    with catena.open(root / "workspace") as workspace:
        done = workspace.run(RECIPE, overrides=given)
        seconds = {step: round(run.seconds or 0.0, 1) for step, run in done.runs.items()}
        told = {}
        for name in ("lora", "full"):
            report = done.outputs[f"scores-{name}"]
            assert isinstance(report, Report)
            scores = {key: [score.value, score.low, score.high] for key, score in report.scores.items()}
            told[f"catena {name}"] = {**scores, "seconds": seconds[name], "pretraining_seconds": seconds["encoder"]}
        return told


def peer(rows: Rows, parts_of_words: bool, strengths: tuple[float, ...]) -> dict[str, Any]:
    """Fit TF-IDF and logistic regression with the C that is best on the validation split; return its scores."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    texts, labels = ({split: [row[at] for row in pairs] for split, pairs in rows.items()} for at in (0, 1))
    began = time.perf_counter()
    best: tuple[float, float, Any] = (-1.0, 0.0, None)
    for strength in strengths:
        features = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)]
        if parts_of_words:
            features.append(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))
        model = make_pipeline(make_union(*features), LogisticRegression(C=strength, max_iter=200))
        model.fit(texts["train"], labels["train"])
        best = max(
            best, (model.score(texts["validation"], labels["validation"]), strength, model), key=lambda it: it[0]
        )
    foretold = best[2].predict(texts["test"]).tolist()
    seconds = time.perf_counter() - began
    pairs = list(zip(labels["test"], foretold, strict=True))
    right = sum(given == label for given, label in pairs)
    interval = macro_f1_interval(pairs, 0)
    assert abs(interval.value - macro_f1(by_label(pairs))) < 1e-9
    return {"accuracy": list(wilson(right, len(pairs))), "macro_f1": list(interval), "seconds": seconds, "C": best[1]}


def main() -> None:
    """Run all in turn, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} intents only; nothing is written")
    parser.add_argument("--set", action="append", default=[], help="number of the recipe to change, as in catena run")
    asked = parser.parse_args()
    rows = read(asked.data, asked.quick)
    with tempfile.TemporaryDirectory(prefix="catena-clinc150-") as name:
        told = ours(rows, Path(name), asked.set)
    told["tf-idf words + logistic regression"] = peer(rows, False, (1.0, 10.0, 100.0))
    told["tf-idf words, parts + logistic regression"] = peer(rows, True, (10.0,))
    load = os.getloadavg()[0]
    result = {
        "input": {split: len(pairs) for split, pairs in rows.items()},
        "machine": {"cores": os.cpu_count(), "load": load, "system": platform.platform()},
        "changed": asked.set,
        "results": told,
    }
    print(f"{result['input']} on {result['machine']}")
    print(f"{'':42} {'accuracy':>24} {'macro F1':>24} {'seconds':>8}")
    for who, found in told.items():
        cells = ["{:.4f} ({:.4f}-{:.4f})".format(*found[key]) for key in ("accuracy", "macro_f1")]
        print(f"{who:42} {cells[0]:>24} {cells[1]:>24} {found['seconds']:8.1f}")
    if not asked.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
