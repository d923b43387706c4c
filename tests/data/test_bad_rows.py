"""What the row-wise stages do with rows that nobody wants: huge, empty, invisible, broken, twice the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from catena.core.errors import DataError
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from tests.data.stores import document, documents, put, rejects, run, samples

LENGTH = {"filters": {"length": {"min_tokens": 1}}}
ROWWISE: dict[str, dict[str, Any]] = {
    "data.filter": LENGTH,
    "data.dedup": {},
    "data.mask": {},
    "data.language": {},
    "data.split": {},
    "data.licences": {},
    "data.align_labels": {"field": "label"},
    "data.balance": {"by": "label"},
}
SENTENCE = "The river rises in the hills and flows through three towns before it reaches the sea."


def reasons(context: Context, made: DatasetVersion) -> dict[str, int]:
    assert made.funnel is not None
    assert sum(made.funnel.rejected.values()) == made.rejects
    return dict(made.funnel.rejected)


def texts(context: Context, made: DatasetVersion) -> list[str]:
    return [str(row.data.get("text", row.data.get("input"))) for row in samples(context.store, made)]


@pytest.mark.parametrize("stage", ROWWISE)
def test_nul_bytes_right_to_left_and_zero_width_characters_travel_as_they_are(context: Context, stage: str) -> None:
    odd = [
        f"{SENTENCE}\x00 with a NUL",
        "שלום עולם, this is a text that goes \u202eright to left\u202c and back again",
        "zero\u200bwidth\u200d spaces\ufeff in a text about some other things altogether",
        "e\u0301 is not é, and 🏳️‍🌈 is one sign made of four",
    ]
    source = put(context.store, [document(text, metadata={"label": "a"}) for text in odd])
    made = run(context, stage, ROWWISE[stage], source=source)
    assert texts(context, made) == odd
    assert reasons(context, made) == {}


EMPTY: dict[str, dict[str, int]] = {
    "data.filter": {"too_short": 1},
    "data.dedup": {},  # to be empty is not to be a copy of another empty text
    "data.mask": {},
    "data.language": {},
    "data.licences": {},
    "data.align_labels": {"no_label": 1},
    "data.balance": {"no_label": 1},
    "data.split": {},
}


@pytest.mark.parametrize(
    ("count", "stages"),
    [(10_000, ["data.filter", "data.dedup", "data.mask", "data.language"]), (300, list(EMPTY))],
    ids=["ten thousand", "three hundred"],
)
def test_empty_rows_are_each_accounted_for(context: Context, count: int, stages: list[str]) -> None:
    context = replace(context, workers=1)  # a team of processes for every stage would show nothing more
    source = documents(context.store, *[""] * count)
    for stage in stages:
        made = run(context, stage, ROWWISE[stage], source=source)
        assert reasons(context, made) == {reason: times * count for reason, times in EMPTY[stage].items()}, stage
        assert made.rows + made.rejects == count, stage
        if stage == "data.language":
            assert made.profile["languages"] == {"und": count}


@pytest.mark.parametrize("stage", ROWWISE)
def test_rows_with_one_id_are_rows_of_their_own(context: Context, stage: str) -> None:
    rows = [
        Sample("same", {"text": f"{SENTENCE} Only here {number} {'x' * number} else"}, {"label": "a"})
        for number in range(3)
    ]
    other = ["", "A second text has nothing in common with it.", "又一篇完全不同的文章，讲的是别的事情。"]
    rows = [Sample("same", {"text": other[place] or row.data["text"]}, row.metadata) for place, row in enumerate(rows)]
    made = run(context, stage, ROWWISE[stage], source=put(context.store, rows))
    assert texts(context, made) == [str(row.data["text"]) for row in rows]


def test_a_lone_surrogate_cannot_be_stored_and_says_which_row_it_is(context: Context) -> None:
    with pytest.raises(DataError, match="row broken cannot be stored") as caught:
        put(context.store, [Sample("broken", {"text": "half of \ud83d a sign"})])
    assert "surrogate" in caught.value.hint


HUGE = 100 * (1 << 20)


def test_a_row_of_100_mb_is_judged_by_excerpts_or_kept_back_before_it_costs_anything(context: Context) -> None:
    words = "The north wind and the sun, a@acme.io, were disputing which was the stronger. "
    huge = words * (HUGE // len(words))
    source = put(context.store, [Sample(sample_id("huge"), {"text": huge}), document(SENTENCE)])

    made = run(context, "data.language", {}, source=source)
    first = samples(context.store, made)[0]
    assert (first.metadata["language"], len(first.text)) == ("en", len(huge))

    kept_back = {}
    for stage in ("data.mask", "data.filter"):
        made = run(context, stage, ROWWISE[stage], source=source)
        assert reasons(context, made) == {"too_large": 1}
        assert texts(context, made) == [SENTENCE]
        kept_back[stage] = rejects(context.store, made)[0]
    row, _, detail = kept_back["data.mask"]
    assert detail == f"{len(huge)} characters, the first 1000 are kept"
    assert len(row.text) <= 1000
    assert "[EMAIL]" in row.text  # what is not looked through is not stored
    assert "acme" not in row.text
    assert kept_back["data.filter"][0].text == huge
