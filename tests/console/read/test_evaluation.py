"""Evaluations: boards, samples, and two models side by side with the statistic of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.console.read.evaluation import EvaluationBook
from catena.core.errors import UsageError
from catena.core.types import Score
from catena.evaluate.stats import mcnemar
from tests.console.read.conftest import Written, put_model, put_report, put_tasks


def test_every_way_of_measuring_has_its_board_best_first(written: Written) -> None:
    boards = EvaluationBook(written.store).boards()
    assert [(board.task, board.score) for board in boards] == [("sums", "exact"), ("answers", "accuracy/test")]
    assert [(place.model, place.score.value) for place in boards[0].places] == [
        ("helper-small@1", 0.4),
        ("helper@1", 0.3),
    ]
    assert boards[0].places[0].report == written.tasks[1].digest


def test_of_a_score_where_less_is_better_the_least_is_first(written: Written) -> None:
    store = written.store
    for model, value in zip(written.models, (12.0, 14.0), strict=True):
        score = Score(value=value, better="lower")
        put_report(store, store.put_report(model, "perplexity", {"perplexity": score}), f"p-{value:.0f}")
    board = next(board for board in EvaluationBook(store).boards() if board.task == "perplexity")
    assert [place.score.value for place in board.places] == [12.0, 14.0]


def test_samples_are_found_by_outcome_and_words(written: Written) -> None:
    samples = EvaluationBook(written.store).samples
    report = written.tasks[0]
    assert samples.lines(report).counts() == {"sums": (10, 3)}
    right = samples.page(report, outcome="right")
    assert (right.total, [line["id"] for line in right.rows]) == (3, ["q0", "q1", "q2"])
    wrong = samples.page(report, outcome="wrong", offset=5, limit=5)
    assert (wrong.total, [line["id"] for line in wrong.rows]) == (7, ["q8", "q9"])
    assert [line["id"] for line in samples.page(report, search="IS 7").rows] == ["q7"]
    assert samples.page(report, search="多少").total == 10
    assert samples.page(report, split="other").total == 0


def test_two_models_are_compared_question_by_question(written: Written) -> None:
    book = EvaluationBook(written.store)
    found = book.compare(written.tasks[0].digest, written.tasks[1].digest)
    assert found.names == ("helper@1", "helper-small@1")
    (gain,) = found.gains
    assert gain.value == pytest.approx(0.1)
    assert gain.p_value == mcnemar(1, 2)
    assert gain.low is not None
    assert gain.low <= 0.1
    assert found.pairs is not None
    assert found.pairs.counts() == {"both": 2, "lost": 1, "gained": 2, "neither": 5}
    lost = found.pairs.page(pairing="lost")
    assert [(pair.first["id"], pair.first["score"], pair.second["score"]) for pair in lost.rows] == [("q2", 1.0, 0.0)]
    assert found.pairs.page(pairing="gained", search="3 + 3").total == 1
    assert found.pairs.page(offset=8, limit=5).total == 10


def test_answers_of_recipes_are_compared_by_mcnemar(written: Written) -> None:
    found = EvaluationBook(written.store).compare(*(report.digest for report in written.answers))
    assert [(gain.name, gain.p_value) for gain in found.gains] == [("accuracy/test", mcnemar(1, 2))]


def test_what_was_not_measured_alike_is_not_compared(written: Written, tmp_path: Path) -> None:
    book = EvaluationBook(written.store)
    with pytest.raises(UsageError, match="different things"):
        book.compare(written.tasks[0].digest, written.answers[1].digest)
    with pytest.raises(UsageError, match="same model"):
        book.compare(written.tasks[0].digest, written.tasks[0].digest)
    third = put_model(written.store, tmp_path / "third", "third")
    report = put_tasks(written.store, tmp_path / "t3", third, "1" * 10, "tasks-3")
    assert {row.model for row in book.partners(report)} == {"helper@1", "helper-small@1"}
    assert [row.model for row in book.partners(written.answers[0])] == ["helper-small@1"]
    assert [row.suite for row in book.reports(third.digest)] == ["tasks"]
