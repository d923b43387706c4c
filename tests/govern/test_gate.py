"""Gates and promotion: arithmetic that can be read, and refusals that say why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from catena.core.errors import ConfigError, DataError, GateFailed, UsageError
from catena.core.stage import Context
from catena.core.types import ModelVersion, Report, Score
from catena.govern.gate import GateConfig, PromoteConfig, gate, kept, promote
from catena.hub.store import Store

ACCURACY = "accuracy/held_out_phrasings"


def put_model(store: Store, folder: Path, size: int) -> ModelVersion:
    """Store a model folder of so many bytes."""
    path = folder / f"model-{size}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(size))
    return store.put_model(path)


@pytest.fixture
def models(store: Store, tmp_path: Path) -> dict[str, ModelVersion]:
    """A baseline of 1000 bytes and a candidate of 400."""
    return {"candidate": put_model(store, tmp_path, 400), "baseline": put_model(store, tmp_path, 1000)}


def report(store: Store, model: ModelVersion, scores: Mapping[str, Score | float], **details: Any) -> Report:
    whole = {name: item if isinstance(item, Score) else Score(value=item, n=100) for name, item in scores.items()}
    return store.put_report(model, "answers", whole, details={"data": "d", **details})


def decide(context: Context, models: dict[str, ModelVersion], after: float, before: float, **cfg: Any) -> Report:
    store = context.store
    return gate(
        context,
        GateConfig.model_validate(cfg),
        **models,
        candidate_report=report(store, models["candidate"], {ACCURACY: after}),
        baseline_report=report(store, models["baseline"], {ACCURACY: before}),
    )


@pytest.mark.parametrize(
    ("after", "verdict"), [(0.99, "passed"), (0.95, "passed"), (0.93, "refused"), (0.9405, "passed"), (0.94, "refused")]
)
def test_a_share_of_the_baseline_must_be_kept(
    context: Context, models: dict[str, ModelVersion], after: float, verdict: str
) -> None:
    decision = decide(context, models, after, 0.99, keep={ACCURACY: 0.95})
    assert decision.details["verdict"] == verdict
    winner = models["candidate" if verdict == "passed" else "baseline"]
    assert decision.details["winner"] == winner.digest
    assert decision.scores[f"keep/{ACCURACY}"].value == pytest.approx(after / 0.99, abs=1e-6)
    assert (decision.suite, decision.subject) == ("gate", models["candidate"].digest)


def test_lower_is_better_turns_the_share_around(context: Context, models: dict[str, ModelVersion]) -> None:
    store = context.store

    def perplexity(model: ModelVersion, value: float) -> Report:
        return report(store, model, {"perplexity": Score(value=value, better="lower")})

    def verdict(value: float) -> str:
        decision = gate(
            context,
            GateConfig(keep={"perplexity": 0.95}),
            **models,
            candidate_report=perplexity(models["candidate"], value),
            baseline_report=perplexity(models["baseline"], 9.5),
        )
        return str(decision.details["verdict"])

    assert [verdict(value) for value in (9.4, 10.0, 10.1)] == ["passed", "passed", "refused"]


def test_limits_of_its_own_and_size(context: Context, models: dict[str, ModelVersion]) -> None:
    decision = decide(context, models, 0.9, 0.9, at_least={ACCURACY: 0.92}, max_size_ratio=0.5)
    rules = {rule["name"]: rule for rule in decision.details["rules"]}
    assert rules["size_ratio"]["held"]
    assert rules["size_ratio"]["value"] == 0.4
    assert not rules[f"at_least/{ACCURACY}"]["held"]
    assert decision.details["verdict"] == "refused"
    assert decide(context, models, 0.9, 0.9, max_size_ratio=0.3).details["verdict"] == "refused"


def test_a_limit_for_perplexity_is_a_ceiling(context: Context, models: dict[str, ModelVersion]) -> None:
    scores = {"perplexity": Score(value=12.0, better="lower")}
    decision = gate(
        context,
        GateConfig(at_least={"perplexity": 11.0}),
        **models,
        candidate_report=report(context.store, models["candidate"], scores),
        baseline_report=report(context.store, models["baseline"], scores),
    )
    assert decision.details["verdict"] == "refused"


def test_a_second_pair_of_reports_is_judged_with_the_first(context: Context, models: dict[str, ModelVersion]) -> None:
    store = context.store
    reports = {f"{role}_report": report(store, model, {ACCURACY: 0.9}) for role, model in models.items()}
    further = {f"{role}_also": report(store, model, {"perplexity": 9.0}) for role, model in models.items()}
    decision = gate(context, GateConfig(keep={ACCURACY: 0.9, "perplexity": 0.9}), **models, **reports, **further)
    assert len(decision.scores) == 2
    with pytest.raises(UsageError, match="about one model only"):
        gate(context, GateConfig(max_size_ratio=1), **models, **reports, candidate_also=further["candidate_also"])


def test_on_fail_stop_names_every_broken_rule(context: Context, models: dict[str, ModelVersion]) -> None:
    with pytest.raises(GateFailed, match=r"keep/.* is 0.5, and must be at least 0.95; size_ratio is 0.4") as caught:
        decide(context, models, 0.4, 0.8, keep={ACCURACY: 0.95}, max_size_ratio=0.1, on_fail="stop")
    assert caught.value.exit_code == 7


def test_reports_of_other_models_or_other_data_are_refused(context: Context, models: dict[str, ModelVersion]) -> None:
    store, cfg = context.store, GateConfig(keep={ACCURACY: 0.9})
    new, old = (report(store, models[role], {ACCURACY: 0.9}) for role in ("candidate", "baseline"))
    with pytest.raises(UsageError, match="the candidate's report 'answers' is about"):
        gate(context, cfg, **models, candidate_report=old, baseline_report=new)
    elsewhere = report(store, models["baseline"], {ACCURACY: 0.9}, data="another")
    with pytest.raises(UsageError, match="not measured on the same data"):
        gate(context, cfg, **models, candidate_report=new, baseline_report=elsewhere)


def test_an_unknown_score_is_named_with_the_closest(context: Context, models: dict[str, ModelVersion]) -> None:
    with pytest.raises(ConfigError, match="no score 'accuracy/held_out'") as caught:
        decide(context, models, 0.9, 0.9, keep={"accuracy/held_out": 0.9})
    assert ACCURACY in caught.value.hint


def test_an_error_of_zero_is_kept_and_negative_scores_are_refused() -> None:
    assert kept("perplexity", Score(value=0.0, better="lower"), Score(value=2.0, better="lower")) == 1.0
    with pytest.raises(DataError, match="negative"):
        kept("loglikelihood", Score(value=-2.0), Score(value=-1.0))


@pytest.mark.parametrize("after", [0.0, 0.5])
def test_a_baseline_of_zero_holds_nothing_and_is_said(
    context: Context, models: dict[str, ModelVersion], after: float
) -> None:
    decision = decide(context, models, after, 0.0, keep={ACCURACY: 0.95})
    (rule,) = decision.details["rules"]
    assert (decision.details["verdict"], rule["held"], rule["value"]) == ("refused", False, 0.0)
    with pytest.raises(GateFailed, match="nothing to go by: the baseline's value is 0"):
        decide(context, models, after, 0.0, keep={ACCURACY: 0.95}, on_fail="stop")


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        ({"max_tokens": 64}, {"max_tokens": 32}, r"max_tokens 64, 32$"),
        (
            {"limit": None, "scorer": "exact"},
            {"limit": 5, "scorer": "contains"},
            r"limit None, 5; scorer exact, contains",
        ),
        ({"window": 64}, None, r"window 64, not told"),
    ],
)
def test_reports_measured_differently_are_refused_with_the_difference(
    context: Context, models: dict[str, ModelVersion], new: dict[str, Any], old: dict[str, Any] | None, said: str
) -> None:
    store, cfg = context.store, GateConfig(keep={ACCURACY: 0.9})
    mine = report(store, models["candidate"], {ACCURACY: 0.9}, config={"splits": ["test"], **new})
    theirs = report(
        store, models["baseline"], {ACCURACY: 0.9}, **({"config": {"splits": ["test"], **old}} if old else {})
    )
    with pytest.raises(UsageError, match=said):
        gate(context, cfg, **models, candidate_report=mine, baseline_report=theirs)


def test_scores_of_other_numbers_of_samples_are_refused_where_a_rule_compares_them(
    context: Context, models: dict[str, ModelVersion]
) -> None:
    store = context.store
    mine = report(store, models["candidate"], {ACCURACY: Score(value=0.9, n=40), "other": 0.5})
    theirs = report(store, models["baseline"], {ACCURACY: Score(value=0.9, n=50), "other": 0.5})
    reports = {"candidate_report": mine, "baseline_report": theirs}
    with pytest.raises(UsageError, match=rf"n of {ACCURACY} 40, 50"):
        gate(context, GateConfig(keep={ACCURACY: 0.9}), **models, **reports)
    assert gate(context, GateConfig(keep={"other": 0.9}), **models, **reports).details["verdict"] == "passed"


def test_a_gate_without_rules_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least one rule"):
        GateConfig()


@pytest.mark.parametrize(("after", "winner"), [(0.9, "candidate"), (0.1, "baseline")])
def test_promote_passes_the_winner_on_unchanged(
    context: Context, models: dict[str, ModelVersion], after: float, winner: str
) -> None:
    decision = decide(context, models, after, 0.9, keep={ACCURACY: 0.95})
    assert promote(context, PromoteConfig(), gate=decision, **models) == models[winner]


def test_promote_refuses_what_the_gate_did_not_decide(
    context: Context, models: dict[str, ModelVersion], tmp_path: Path
) -> None:
    decision = decide(context, models, 0.9, 0.9, max_size_ratio=1)
    other = put_model(context.store, tmp_path, 7)
    with pytest.raises(UsageError, match="other models"):
        promote(context, PromoteConfig(), gate=decision, candidate=other, baseline=models["baseline"])
    answers = report(context.store, other, {ACCURACY: 1.0})
    with pytest.raises(UsageError, match="report of 'answers'"):
        promote(context, PromoteConfig(), gate=answers, **models)
