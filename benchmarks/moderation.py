"""Moderation: how often ordinary text is found, how much of what is bad, in two languages, in many ways, how fast.

    python benchmarks/moderation.py --data FOLDER [--output benchmarks/results/moderation.json] [--only evasions|lists]

FOLDER holds cold-{train,dev,test}.csv (COLD), gsm8k-{train,test}.jsonl, clinc150.json, wikitext2-{valid,test}.txt and
crosswoz-{val,test}.json.zip. The filter is trained by recipes/moderation.yaml on COLD's training split and the training
(or validation) splits of the ordinary sets; everything is measured on the test splits, which nothing has seen. One text
is one sample: a question, an answer, a query, a paragraph, an utterance. A false positive is an ordinary text of which
words or the classifier find anything; intervals are Clopper and Pearson's, 95 %, two-sided. Masked personal data is
told beside it. `evasions`: every entry of the lists in a sentence, written in each of the ways of evasion_ways.py,
which needs `pip install pypinyin`. `--only evasions` measures these alone and leaves the rest of the output as it was;
`--only lists` adds what the word lists without the classifier find of ordinary text and of COLD, and their rate.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evasion_ways import WAYS

import catena as c
from catena.core.types import ModelVersion
from catena.govern.config import ModerationConfig
from catena.govern.moderation.classifier import Filter, load_filter
from catena.govern.moderation.moderator import Moderator
from catena.govern.moderation.train import clopper_pearson
from catena.govern.moderation.words import LISTS, read_entries

ROOT = Path(__file__).parents[1]
FLAG = {"on_words": "flag", "on_classifier": "flag", "on_personal": "flag"}


def ordinary(data: Path, part: str) -> dict[str, list[str]]:
    """Return texts by set; `part` is train or test."""
    sets = {}
    lines = [json.loads(line) for line in (data / f"gsm8k-{part}.jsonl").read_text().splitlines()]
    sets["gsm8k"] = [text for line in lines for text in (line["question"], line["answer"])]
    clinc = json.loads((data / "clinc150.json").read_text())
    sets["clinc150"] = [text for text, _ in clinc[part]]
    wiki = (data / f"wikitext2-{'valid' if part == 'train' else 'test'}.txt").read_text()
    sets["wikitext2"] = [line.strip() for line in wiki.splitlines() if line.strip()]
    with zipfile.ZipFile(data / f"crosswoz-{'val' if part == 'train' else 'test'}.json.zip") as archive:
        dialogues = json.loads(archive.read(archive.namelist()[0]))
    sets["crosswoz"] = [turn["content"] for dialogue in dialogues.values() for turn in dialogue["messages"]]
    return sets


def cold(data: Path, part: str) -> list[tuple[str, bool]]:
    """Return COLD's texts, and whether each is offensive."""
    with (data / f"cold-{part}.csv").open(encoding="utf-8-sig", newline="") as stream:
        return [(row["TEXT"], row["label"] == "1") for row in csv.DictReader(stream)]


def trained(data: Path, folder: Path) -> Filter:
    """Run the recipe."""
    (folder / "cold").mkdir()
    (folder / "ordinary").mkdir()
    for part in ("train", "test"):
        shutil.copy(data / f"cold-{part}.csv", folder / "cold" / f"{part}.csv")
    for name, texts in ordinary(data, "train").items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / "ordinary" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with c.open(folder / ".catena") as workspace:
        overrides = [f"labelled.folder={folder / 'cold'}", f"ordinary.folder={folder / 'ordinary'}"]
        workspace.run(ROOT / "recipes" / "moderation.yaml", overrides=overrides)
        return load_filter(workspace.store.checkout(workspace.store.resolve("moderation/text-filter", ModelVersion)))


def share(hits: int, count: int) -> dict[str, Any]:
    """A share and its interval."""
    low, high = clopper_pearson(hits, count)
    return {"found": hits, "of": count, "share": round(hits / count, 5), "low": round(low, 5), "high": round(high, 5)}


def kinds_in(moderator: Moderator, text: str) -> set[str]:
    """Return what is found in a text."""
    return {one.finding.kind for one in moderator.review(text).decisions}


def false_positives(moderator: Moderator, sets: dict[str, list[str]]) -> tuple[dict[str, Any], list[Any]]:
    """Count ordinary texts with findings, by set, by language and together."""
    told: dict[str, Any] = {}
    examples: list[Any] = []
    totals: Counter[str] = Counter()
    for name, texts in sets.items():
        counts: Counter[str] = Counter()
        for text in texts:
            kinds = kinds_in(moderator, text)
            bad = kinds & {"words", "classifier"}
            counts.update(bad)
            counts["any"] += bool(bad)
            counts["personal"] += bool(kinds - bad)
            if bad and len(examples) < 40:
                examples.append([name, sorted(bad), text[:120]])
        language = "zh" if name == "crosswoz" else "en"
        for key in (language, "all"):
            totals[key] += counts["any"]
            totals[f"{key} of"] += len(texts)
        told[name] = {
            **share(counts["any"], len(texts)),
            "by_words": counts["words"],
            "by_classifier": counts["classifier"],
            "personal_data": counts["personal"],
        }
    for key in ("en", "zh", "all"):
        told[key] = share(totals[key], totals[f"{key} of"])
    return told, examples


def evasions(moderator: Moderator) -> dict[str, Any]:
    """Write every entry in every way; returns found and tried by language, kind and way, and by kind together."""
    told: dict[str, Any] = {}
    for language, kinds in WAYS.items():
        before, after = (
            ("And then they said ", " to all of us.") if language == "en" else ("然后他说：", "，大家都听到了。")
        )
        words = [entry.word for entry in read_entries(LISTS / f"{language}.txt") if not entry.harmless]
        for kind, ways in kinds.items():
            totals: Counter[str] = Counter()
            rows: dict[str, Any] = {}
            for name, way in ways.items():
                written = [made for word in words if (made := way(word)) is not None]
                found = sum("words" in kinds_in(moderator, before + made + after) for made in written)
                rows[name] = share(found, len(written))
                totals.update(found=found, of=len(written))
            told.setdefault(language, {})[kind] = {**share(totals["found"], totals["of"]), "ways": rows}
    return told


def speed(moderator: Moderator, texts: Iterable[str], size: int = 0) -> float:
    """Return MB of UTF-8 a second of one core's time, whole or in pieces of so many characters."""
    texts = list(texts)
    amount = sum(len(text.encode()) for text in texts)
    began = time.process_time()
    for text in texts:
        if size:
            stream = moderator.stream()
            for at in range(0, len(text), size):
                stream.push(text[at : at + size])
            stream.push("", end=True)
        else:
            moderator.review(text)
    return round(amount / (time.process_time() - began) / 1e6, 2)


def lists_alone(moderator: Moderator, data: Path) -> dict[str, Any]:
    """What the lists do without the classifier: found by mistake, of COLD, and MB of UTF-8 a second."""
    sets = ordinary(data, "test")
    told, examples = false_positives(moderator, sets)
    labelled = [("words" in kinds_in(moderator, text), bad) for text, bad in cold(data, "test")]
    english, chinese = random.Random(1).sample(sets["wikitext2"], 400), random.Random(1).sample(sets["crosswoz"], 4000)
    return {
        "false_positives": told,
        "examples": examples,
        "cold_test": {
            "recall": share(sum(hit for hit, bad in labelled if bad), sum(bad for _, bad in labelled)),
            "false_positives": share(sum(hit for hit, bad in labelled if not bad), sum(not bad for _, bad in labelled)),
        },
        "mb_per_core_second": {"en whole": speed(moderator, english), "zh whole": speed(moderator, chinese)},
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--data", type=Path)
    options.add_argument("--output", type=Path)
    options.add_argument("--only", choices=("evasions", "lists"))
    given = options.parse_args()
    if given.data is None and given.only != "evasions":
        options.error("--data is needed")
    if given.only:
        with Moderator(ModerationConfig(on=True, **FLAG), None) as moderator:
            found: dict[str, Any] = {"evasions": evasions(moderator)}
            if given.only == "lists":
                found["lists_alone"] = lists_alone(moderator, given.data)
        print(json.dumps(found, indent=2, ensure_ascii=False))
        if given.output:
            result = json.loads(given.output.read_text(encoding="utf-8")) | found
            given.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    result: dict[str, Any] = {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    with tempfile.TemporaryDirectory() as name:
        judge = trained(given.data, Path(name))
    sets = ordinary(given.data, "test")
    with Moderator(ModerationConfig(on=True, **FLAG), judge) as moderator:
        result["threshold"] = round(judge.threshold, 4)
        result["false_positives"], result["examples"] = false_positives(moderator, sets)
        found = [
            (bool(kinds_in(moderator, text) & {"words", "classifier"}), bad) for text, bad in cold(given.data, "test")
        ]
        result["cold_test"] = {
            "recall": share(sum(hit for hit, bad in found if bad), sum(bad for _, bad in found)),
            "false_positives": share(sum(hit for hit, bad in found if not bad), sum(not bad for _, bad in found)),
        }
        draw = random.Random(1)
        english, chinese = draw.sample(sets["wikitext2"], 400), draw.sample(sets["crosswoz"], 4000)
        result["mb_per_core_second"] = {
            "en whole": speed(moderator, english),
            "zh whole": speed(moderator, chinese),
            "en in pieces of 4 characters": speed(moderator, english[:100], 4),
            "zh in pieces of 4 characters": speed(moderator, chinese[:1000], 4),
        }
    with Moderator(ModerationConfig(on=True, **FLAG), None) as moderator:
        result["evasions"], result["lists_alone"] = evasions(moderator), lists_alone(moderator, given.data)
    for threshold in (0.5, 0.7, 0.9):
        judge.threshold = threshold
        hits = [(bool(judge.find(text)), bad) for text, bad in cold(given.data, "test")]
        usual = [text for texts in sets.values() for text in texts]
        result.setdefault("classifier_alone", {})[str(threshold)] = {
            "recall": share(sum(hit for hit, bad in hits if bad), sum(bad for _, bad in hits)),
            "false_positives_cold": share(sum(hit for hit, bad in hits if not bad), sum(not bad for _, bad in hits)),
            "false_positives_ordinary": share(sum(bool(judge.find(text)) for text in usual), len(usual)),
        }
    print(json.dumps(result, indent=2, ensure_ascii=False))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
