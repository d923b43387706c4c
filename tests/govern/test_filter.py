"""The recipe of moderation on a small set, and the filter that comes out of it, in a server without torch."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

import catena as c
from catena.core.errors import DataError, NotFound, UsageError
from catena.core.types import DatasetVersion, ModelVersion, Report
from catena.govern.config import GovernConfig, ModerationConfig
from catena.govern.moderation.classifier import load_filter
from catena.govern.moderation.train import clopper_pearson
from catena.serve.config import ServeConfig
from catena.serve.governed import governed

RECIPE = Path(__file__).parents[2] / "recipes" / "moderation.yaml"
PEOPLE, VERBS = ("这些人", "他们", "那个地方的人", "老师", "邻居"), ("都很", "真是", "总是", "特别")
BAD, GOOD = ("恶心又无耻", "下贱得很", "又蠢又坏"), ("热情又友好", "认真得很", "又快又好")


def texts(draw: random.Random, ends: tuple[str, ...], count: int) -> list[str]:
    return [draw.choice(PEOPLE) + draw.choice(VERBS) + draw.choice(ends) + "。" for _ in range(count)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The recipe's outputs, with labelled texts as COLD's and ordinary ones."""
    here, draw = tmp_path_factory.mktemp("moderation"), random.Random(1)
    (here / "cold").mkdir()
    (here / "ordinary").mkdir()
    for name, count in (("train", 150), ("test", 60)):
        rows = [(text, 1) for text in texts(draw, BAD, count)] + [(text, 0) for text in texts(draw, GOOD, count)]
        with (here / "cold" / f"{name}.csv").open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["", "split", "topic", "label", "TEXT"])
            writer.writerows((number, name, "x", label, text) for number, (text, label) in enumerate(rows))
    lines = [json.dumps({"text": f"我想订{number}张票，{draw.choice(PEOPLE)}也去。"}) for number in range(200)]
    (here / "ordinary" / "usual.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with c.open(here / ".catena") as workspace:
        folders = [
            f"{name}.folder={here / folder}" for name, folder in (("labelled", "cold"), ("ordinary", "ordinary"))
        ]
        workspace.run(RECIPE, overrides=folders)
        yield workspace


def test_the_recipe_trains_and_measures(run: Any) -> None:
    report = run.store.resolve("moderation/scores", Report)
    assert report.scores["recall"].value > 0.9
    assert report.scores["false_positives_ordinary"].value <= 0.02
    assert report.scores["false_positives_labelled"].better == "lower"
    assert report.scores["recall"].n == 60


def test_the_filter_judges_pieces(run: Any) -> None:
    model = run.store.resolve("moderation/text-filter", ModelVersion)
    assert model.form == "filter"
    judge = load_filter(run.store.checkout(model))
    text = "我想订两张票。这些人真是恶心又无耻。谢谢你。"
    first = judge.find(text)[0]
    assert text[first.start : first.end] == "这些人真是恶心又无耻。"
    assert not load_filter(run.store.checkout(model), 0.99999).find(text)


def test_a_server_takes_it_by_name(run: Any) -> None:
    config = GovernConfig(moderation=ModerationConfig(on=True, words=(), classifier="moderation/text-filter"))
    with governed(run.store, config, ServeConfig()) as [middleware]:
        moderator = middleware.kwargs["moderator"]
        assert moderator.review("他们总是下贱得很。").blocked
        assert not moderator.review("他们总是认真得很。").blocked
    with (
        pytest.raises(NotFound),
        governed(
            run.store,
            config.model_copy(update={"moderation": ModerationConfig(on=True, classifier="none")}),
            ServeConfig(),
        ),
    ):
        pass


def test_what_cannot_be_learnt_from_is_told(run: Any, tmp_path: Path) -> None:
    labelled = run.store.resolve("moderation/labelled", DatasetVersion)
    with pytest.raises(DataError, match="0 of 300 labelled texts are bad"):
        run.do("govern.train_filter", {"labelled": labelled.digest}, {"bad": ["yes"]})
    ordinary = run.store.resolve("moderation/ordinary", DatasetVersion)
    with pytest.raises(UsageError, match="are of the shape 'document'"):
        run.do("govern.train_filter", {"labelled": ordinary.digest})
    with pytest.raises(DataError, match="holds no text filter"):
        load_filter(tmp_path)


def test_the_interval_is_scipys_and_exact_at_the_ends() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for hits, count in ((0, 600), (3, 2000), (7, 7), (50, 100)):
        expected = scipy_stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
        assert clopper_pearson(hits, count) == pytest.approx((expected.low, expected.high))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
