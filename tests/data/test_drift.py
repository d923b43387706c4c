"""Drift: what is drawn from one distribution is left alone, what was planted is found."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from catena.core.config import parse
from catena.core.errors import ConfigError, DataError, GateFailed, UsageError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.trace import TRACES, Trace
from catena.core.types import DatasetVersion
from catena.data.drift import measure
from catena.data.drift.facts import Facts, of_sample, of_trace, refuses, sampled
from catena.data.drift.stage import DriftConfig, compare, drift

from .feedback_traces import Planted, trace

SUBJECTS = {
    "python": "function list module import error type class string loop file",
    "travel": "flight hotel train ticket city airport visa luggage map beach",
    "cooking": "flour sugar oven bread butter salt recipe soup pan knife",
    "money": "bank account loan interest card payment tax invoice salary rent",
}


def facts(count: int, dice: random.Random, **planted: Any) -> list[Facts]:
    """Ordinary traffic, but for what is planted."""
    weights = planted.get("topics", (4, 3, 2, 1))
    made = []
    for _ in range(count):
        subject = dice.choices(list(SUBJECTS), weights)[0]
        length = max(3, int(dice.lognormvariate(planted.get("length", 2.2), 0.5)))
        asked = f"how do I {' '.join(dice.choices(SUBJECTS[subject].split(), k=length))}"
        if dice.random() < planted.get("chinese", 0.1):
            asked = "请问这个问题应该怎么处理才好呢，谢谢你的帮助"
        said = " ".join(dice.choices(SUBJECTS[subject].split(), k=max(2, int(dice.gauss(20, 6)))))
        refused = dice.random() < planted.get("refused", 0.02)
        flagged = dice.random() < planted.get("moderated", 0.01)
        made.append(Facts(asked, said, refused, flagged, None, dice.lognormvariate(planted.get("slow", 5.0), 0.6)))
    return made


def verdicts(first: list[Facts], second: list[Facts], **config: Any) -> dict[str, str]:
    return {one.name: one.verdict for one in compare(first, second, parse(DriftConfig, config), 7)}


PLANTED: list[tuple[dict[str, Any], str]] = [
    ({"length": 2.9}, "question_words"),
    ({"chinese": 0.4}, "language"),
    ({"topics": (1, 1, 1, 7)}, "topic"),
    ({"refused": 0.12}, "refused"),
    ({"moderated": 0.1}, "moderated"),
    ({"slow": 5.8}, "ms"),
]


@pytest.mark.parametrize(("planted", "feature"), PLANTED)
def test_planted_drift_is_found_and_nothing_else(planted: dict[str, Any], feature: str) -> None:
    dice = random.Random(3)
    found = verdicts(facts(600, dice), facts(500, dice, **planted))
    assert found[feature] == "drift", found
    # Another language is another topic, and longer, too; the others stand alone.
    allowed = {"chinese": {"language", "topic", "question_words"}}.get(next(iter(planted)), {feature})
    assert {name for name, verdict in found.items() if verdict == "drift"} <= allowed


def test_rows_of_one_distribution_raise_no_alarm() -> None:
    # benchmarks/drift.py measures the rate; here a few comparisons, small ones too, where PSI is large by chance.
    dice = random.Random(5)
    for size in (120, 600):
        reference = facts(size, dice)
        for _ in range(2):
            assert "drift" not in verdicts(reference, facts(size, dice)).values()


def test_psi_alone_would_raise_alarms_where_rows_are_few() -> None:
    generator = np.random.default_rng(1)
    alarms = {"psi": 0, "both": 0}
    for number in range(60):
        first, second = generator.normal(size=60), generator.normal(size=60)
        found = measure.numbers(first.tolist(), second.tolist(), number)
        alarms["psi"] += found.psi >= 0.25
        alarms["both"] += found.psi >= 0.25 and found.p < 0.01
    assert alarms["psi"] > 30
    assert alarms["both"] <= 3


def test_measures_agree_with_scipy_and_by_hand() -> None:
    generator = np.random.default_rng(2)
    for shift in (0.0, 0.3):
        first, second = generator.normal(size=200), generator.normal(shift, size=150)
        assert measure.ks(first, second) == pytest.approx(stats.ks_2samp(first, second).statistic)
    assert float(measure.psi([50, 50], [80, 20])) == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4))
    assert float(measure.psi([5, 5], [50, 50])) == 0.0
    assert np.isfinite(measure.psi([10, 0], [0, 10]))


def test_a_permutation_test_is_as_often_significant_as_it_says() -> None:
    generator = np.random.default_rng(3)
    low = 0
    for number in range(200):
        first, second = (np.bincount(generator.integers(0, 5, 80), minlength=5) for _ in range(2))
        low += measure.permutation_p(first, second, number, draws=300) < 0.1
    assert 8 <= low <= 34


def test_values_that_repeat_and_categories_that_are_many() -> None:
    same = measure.numbers([1.0] * 50, [1.0] * 50, 0)
    assert (same.psi, same.ks) == (0.0, 0.0)
    many = measure.categories([f"c{number}" for number in range(100)], [f"c{number}" for number in range(100)], 0)
    assert many.labels[-1] == "other"
    assert sum(many.reference) == 100


def test_too_few_rows_say_nothing() -> None:
    dice = random.Random(1)
    assert set(verdicts(facts(500, dice), facts(40, dice, refused=1.0)).values()) == {"too few"}


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot do that.", True),
        ("As an AI language model, I do not have opinions.", True),
        ("很抱歉，我无法回答这个问题。", True),
        ("作为一个人工智能，我没有感情。", True),
        ("shutil.move moves a file.", False),
        ("You can say sorry to her.", False),
        ("你不能这样做菜。", False),
        ("x" * 300 + " I cannot", False),
    ],
)
def test_refusals_are_known_by_their_beginning(answer: str, refused: bool) -> None:
    assert refuses(answer) is refused


def test_facts_of_traces_and_rows() -> None:
    one = trace("1", "Why?", "Because.", ms=7.0, decisions=({"by": "moderation", "decision": "mask"},))
    assert of_trace(one) == Facts("Why?", "Because.", False, True, True, 7.0)
    assert of_trace(replace(one, problem="cut")) is None
    assert of_trace(replace(one, status=500, decisions=())) is None
    chat = Sample("a", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b"}]})
    assert of_sample(chat) == Facts("q", "a b", False)
    assert of_sample(Sample("b", {"text": "t"})) == Facts("t", "", False)
    assert of_sample(Sample("c", {"content": b"x", "media_type": "y"})) is None
    assert len(sampled([Facts("q", "a", False)] * 50, 10, 1)) == 10


# -- the stage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    """Four weeks of ordinary traffic, and a week in which a tenth is refused."""
    source, dice, now = Planted(), random.Random(9), datetime.now(UTC)
    before, after = facts(300, dice), facts(300, dice, refused=0.2)
    for number, one in enumerate((*before, *after)):
        old = number < len(before)
        at = now - (timedelta(days=20) if old else timedelta(days=2)) + timedelta(minutes=number)
        answer = "I'm sorry, but I cannot help." if one.refused else one.answer
        source.said.append(trace(str(number), one.question, answer, time=at.isoformat(), ms=one.ms))
    monkeypatch.setattr(TRACES, "load", lambda name: source)
    return source


def test_a_time_is_compared_with_the_time_before(context: Context, planted: Planted, tmp_path: Path) -> None:
    made = drift(context, DriftConfig())
    assert made.details["drifted"] == ["refused"]
    assert made.details["rows"] == [300, 300]
    assert made.scores["difference/refused"].value > 0.1
    assert made.scores["drifted"].value == 1
    page = (context.store.files.checkout(made.files, tmp_path / "page") / "drift.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    with pytest.raises(GateFailed, match="drift in refused"):
        drift(context, DriftConfig(on_drift="stop"))


def test_a_dataset_can_be_either_side(context: Context, planted: Planted) -> None:
    with context.store.new_dataset("conversation") as out:
        for number, one in enumerate(facts(200, random.Random(4))):
            said = [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
            out.add(Sample(f"r{number}", {"messages": said}))
        dataset: DatasetVersion = out.commit()
    made = drift(context, DriftConfig(), reference=dataset)
    assert made.subject == dataset.digest
    assert "ms" not in made.details["features"], "a dataset has no latency"
    assert made.details["features"]["refused"]["verdict"] == "drift"
    assert drift(context, DriftConfig(), reference=dataset, current=dataset).details["verdict"] == "stable"


def test_what_cannot_be_compared_is_told(context: Context, planted: Planted) -> None:
    with pytest.raises(DataError, match="nothing in the time to look at"):
        drift(context, DriftConfig(models=("other",), reference_since="400d"), reference=_one(context))
    with pytest.raises(DataError, match="nothing in the reference"):
        drift(context, DriftConfig(reference_since="400d", reference_until="300d"))
    with pytest.raises(UsageError, match="is empty"):
        drift(context, DriftConfig(since="0s", until="7d"))
    with pytest.raises(ConfigError, match="neither a time"):
        parse(DriftConfig, {"since": "last week"})


def _one(context: Context) -> DatasetVersion:
    with context.store.new_dataset("document") as out:
        out.add(Sample("d", {"text": "t"}))
        return out.commit()


def test_topics_name_no_word_of_one_person(planted: Planted, context: Context) -> None:
    planted.said.append(trace("999", "my secret word is xylophonist", "fine", time=datetime.now(UTC).isoformat()))
    assert isinstance(planted.said[0], Trace)
    made = drift(context, DriftConfig(until="2030-01-01"))
    assert "xylophonist" not in repr(made.details)
    assert any("oven" in label or "bread" in label for label in made.details["features"]["topic"]["labels"])
