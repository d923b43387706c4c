"""Facts about recipes/shakespeare.yaml, run on a text of our own: its end is held out and measured as a whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import catena as c
from catena.core.errors import DataError
from catena.data.split_text import SplitTextConfig, cut

RECIPE = Path(__file__).parent.parent / "recipes" / "shakespeare.yaml"
LINES = ["First Citizen:", "Speak, speak.", "Before we proceed any further, hear me speak.", "你好，世界。"]


def test_recipe_learns_characters_and_measures_the_whole_end_of_the_text(tmp_path: Path) -> None:
    text = "\n".join(LINES[(number * number) % 4] for number in range(400))
    (tmp_path / "input.txt").write_text(text, encoding="utf-8")
    small = [f"text.paths=[{tmp_path / 'input.txt'}]", "model.steps=30", "model.warmup_steps=5", "model.log_every=5"]
    with c.open(tmp_path / ".catena") as workspace:
        events: list[dict[str, Any]] = []
        run = workspace.run(RECIPE, overrides=small, listeners=[events.append])
        assert run.runs["characters"].metrics["vocabulary"] == len(set(text)) + 6
        # Far below what knowing nothing costs, and less than knowing how frequent the characters are.
        [loss] = [event["value"] for event in events if event["event"] == "metric" and event["name"] == "val_loss"]
        assert 0 < loss < 0.85 * math.log(len(set(text)))
        corpus = workspace.dataset("shakespeare/corpus")
        parts = {sample.split: sample.text for sample in corpus.samples()}
        assert parts["train"] + parts["validation"] == text
        assert len(parts["train"]) == int(0.9 * len(text))
        assert workspace.model("shakespeare/model").version.architecture == "GPT2LMHeadModel"


def test_text_is_cut_by_position_and_joined_parts_are_the_text() -> None:
    text = "abcdefghij世界"
    assert cut(text, {"train": 0.5, "validation": 0.25, "test": 0.25}) == {
        "train": "abcdef",
        "validation": "ghi",
        "test": "j世界",
    }
    assert "".join(cut("x" * 10 + "y", {"a": 0.9, "b": 0.1}).values()) == "x" * 10 + "y"


def test_shares_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"add up to 0\.9"):
        SplitTextConfig(ratios={"train": 0.9})
    with pytest.raises(ValidationError, match="more than 0"):
        SplitTextConfig(ratios={"train": 1.0, "validation": 0.0})


def test_text_too_short_to_be_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("a", encoding="utf-8")
    with (
        c.open(tmp_path / ".catena") as workspace,
        pytest.raises(DataError, match="too short to be cut into 2 parts"),
    ):
        workspace.run(RECIPE, overrides=[f"text.paths=[{tmp_path / 'input.txt'}]"], until="corpus")
