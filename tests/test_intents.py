"""The recipe `intents`: labelled lines to measured classifiers, whole, on a handful of queries."""

from __future__ import annotations

import json
from pathlib import Path

import catena
from catena.core.types import ModelVersion, Report

RECIPE = Path(__file__).parent.parent / "recipes" / "intents.yaml"
SMALL = ("tokenizer.vocab_size=300", "encoder.preset=modernbert-nano", "encoder.epochs=1", "lora.epochs=1")


def test_the_recipe_ends_with_two_measured_classifiers(tmp_path: Path) -> None:
    folder = tmp_path / "intents"
    folder.mkdir()
    for split, count in (("train", 48), ("validation", 8), ("test", 12)):
        asked = [("book a flight to stop", "flight"), ("查询余额", "balance")]
        rows = [(f"{asked[number % 2][0]} {number}", asked[number % 2][1]) for number in range(count)]
        lines = [json.dumps({"input": text, "output": label}) for text, label in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    places = (f"examples.folder={folder}", f"texts.folder={folder}")
    with catena.open(tmp_path / "workspace") as workspace:
        done = workspace.run(RECIPE, overrides=(*places, *SMALL, "full.epochs=1"))
    adapter, full = done.outputs["lora"], done.outputs["full"]
    assert isinstance(adapter, ModelVersion)
    assert isinstance(full, ModelVersion)
    assert (adapter.form, full.form) == ("adapter", "full")
    for name in ("scores-lora", "scores-full"):
        report = done.outputs[name]
        assert isinstance(report, Report)
        assert set(report.scores) == {"accuracy", "macro_f1"}
        assert report.details["samples"] == 12
    assert done.report is not None
    assert "balance" in done.report.read_text(encoding="utf-8")
