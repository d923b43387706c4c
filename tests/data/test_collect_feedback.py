"""Feedback to a dataset: what is kept, what is not and why, what is taken back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from catena.core.config import parse
from catena.core.stage import Context
from catena.core.trace import TRACES, Trace
from catena.core.types import DatasetVersion
from catena.data.collect.feedback import CollectFeedbackConfig, collect_feedback, judge_of
from catena.hub.erase import erase

from .feedback_traces import Planted, trace


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    source = Planted()
    monkeypatch.setattr(TRACES, "load", lambda name: source)
    return source


def run(context: Context, **config: object) -> DatasetVersion:
    made = collect_feedback(context, parse(CollectFeedbackConfig, config))
    context.store.index.add_artifact(made)
    context.store.index.add_name(context.name, made.digest)
    return made


def rows(context: Context, made: DatasetVersion) -> dict[str, str]:
    """Trace to what would be learnt."""
    opened = context.store.open_dataset(made)
    return {one.metadata["trace"]: one.data["messages"][-1]["content"] for one in opened.samples()}


def reasons(context: Context, made: DatasetVersion) -> dict[str, str]:
    opened = context.store.open_dataset(made)
    return {one.metadata["trace"]: reason for one, reason, _ in opened.rejects()}


def test_liked_answers_and_corrections_are_learnt_and_the_rest_is_kept_back(context: Context, planted: Planted) -> None:
    planted.said = [
        trace("1"),
        trace("2", answer="Wrong.", rating="down", correction="Right."),
        trace("3", rating="down"),
        trace("4", consent=False),
        trace("5", consent=None),
        trace("6", problem="erased"),
        trace("7", decisions=({"by": "moderation", "decision": "block"},)),
        trace("8", problem="not_text"),
        trace("9", answer=" "),
        trace("10", status=500),
    ]
    made = run(context)
    assert rows(context, made) == {"1": "Number 1 is 111.", "2": "Right."}
    assert reasons(context, made) == {
        **{"3": "thumbs_down", "4": "no_consent", "5": "no_consent", "6": "erased", "7": "moderated"},
        **{"8": "not_text", "9": "empty", "10": "failed"},
    }
    stored = {one.metadata["trace"]: one for one in context.store.open_dataset(made).samples()}
    assert stored["2"].metadata["rejected"] == "Wrong."
    assert (stored["1"].source, stored["1"].metadata["digest"], stored["1"].metadata["rating"]) == (
        "trace:1",
        "d" * 12,
        "up",
    )
    silent = [
        one.data["messages"]
        for one, reason, _ in context.store.open_dataset(made).rejects()
        if reason in ("no_consent", "erased", "moderated")
    ]
    assert silent == [[]] * 4


def test_personal_data_is_masked_everywhere_before_it_is_stored(context: Context, planted: Planted) -> None:
    planted.said = [
        trace("1", "I am ada@corp.net", "Hello ada@corp.net.", correction="Hello, ada@corp.net!"),
        trace("2", "Mail bob@corp.net please", rating="down"),
    ]
    made = run(context)
    opened = context.store.open_dataset(made)
    everything = repr([*opened.samples(), *opened.rejects()])
    assert "corp.net" not in everything
    assert everything.count("[EMAIL]") == 4
    assert made.funnel is not None
    assert made.funnel.changed == {"masked_email": 3}


def test_equal_and_nearly_equal_conversations_come_once(context: Context, planted: Planted) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    planted.said = [
        trace("1", "Say words", words),
        trace("2", "say  words", words),
        trace("3", "Say words", f"{words} more"),
    ]
    made = run(context)
    assert len(rows(context, made)) == 1
    assert set(reasons(context, made).values()) <= {"exact_duplicate", "near_duplicate"}
    planted.said.append(trace("4", "SAY WORDS", words))
    again = run(context)
    assert rows(context, again) == rows(context, made)
    assert reasons(context, again)["4"] == "duplicate_of_stored"


def test_a_later_run_takes_only_what_is_new_changed_or_withdrawn(context: Context, planted: Planted) -> None:
    planted.said = [trace("1"), trace("2"), trace("3")]
    first = run(context)
    planted.said += [trace("4"), trace("2", rating="down", correction="Better."), trace("3", consent=False)]
    second = run(context)
    assert rows(context, second) == {"1": "Number 1 is 111.", "2": "Better.", "4": "Number 4 is 444."}
    assert reasons(context, second) == {"3": "no_consent"}
    found = second.profile["feedback"]
    assert {name: found[name] for name in ("new", "changed", "withdrawn", "kept", "cursor")} == {
        **{"new": 1, "changed": 1, "withdrawn": 1, "kept": 1, "cursor": 6}
    }
    assert run(context).content == second.content
    assert first.content != second.content


def test_in_one_run_or_in_many_the_dataset_is_the_same(context: Context, planted: Planted) -> None:
    planted.said = [trace(str(number), consent=number % 3 != 0) for number in range(1, 20)]
    whole = run(context)
    stepwise = replace(context, name="stepwise")
    for _ in range(5):
        made = run(stepwise, max_traces=4)
    assert made.content == whole.content


def test_who_was_erased_leaves_the_next_version_and_can_be_erased_from_all(context: Context, planted: Planted) -> None:
    planted.said = [trace("1"), trace("2", subject="bob", rating="down"), trace("3", subject="bob")]
    before = run(context)
    planted.gone = {"key-bob"}
    after = run(context)
    assert rows(context, after) == {"1": "Number 1 is 111."}
    assert reasons(context, after) == {"2": "erased", "3": "erased"}
    left = [one for one, _, _ in context.store.open_dataset(after).rejects()]
    assert all(one.data["messages"] == [] for one in left)
    done = erase(context.store, context.name, where="metadata.subject=tag-bob", reason="asked")
    assert len(done.rows) == 2
    assert "333" not in repr(
        list(context.store.open_dataset(context.store.resolve(f"{context.name}@1", DatasetVersion)).samples())
    )
    planted.gone, planted.said = set(), [*planted.said, trace("3", subject="bob")]
    assert "3" not in rows(context, run(context)), "what was erased once never comes back"
    assert before.rows == 2


def test_filters_look_at_what_would_be_learnt(context: Context, planted: Planted) -> None:
    planted.said = [
        trace("1", "A long question with many words in it", "Yes."),
        trace("2", "Why?", "It has enough words."),
    ]
    made = run(context, filters={"length": {"min_tokens": 3}})
    assert list(rows(context, made)) == ["2"]
    assert reasons(context, made) == {"1": "too_short"}


def test_other_models_and_other_configs(context: Context, planted: Planted) -> None:
    planted.said = [trace("1"), trace("2", model="other")]
    assert list(rows(context, run(context, models=["other"]))) == ["2"]
    assert sorted(rows(context, run(context))) == ["1", "2"], "another config begins anew"


def test_system_prompts_can_be_left_out() -> None:
    one = replace(trace("1"), messages=(("system", "Be kind."), ("user", "Hi")))
    for system, roles in ((True, ["system", "user", "assistant"]), (False, ["user", "assistant"])):
        judged = judge_of(CollectFeedbackConfig(system=system))(one)
        assert [message["role"] for message in judged.sample.data["messages"]] == roles


def test_every_reject_has_a_reason_and_nothing_disappears(context: Context, planted: Planted) -> None:
    kinds: list[dict[str, object]] = [{}, {"rating": "down"}, {"consent": False}, {"problem": "cut"}, {"status": 503}]
    planted.said = [trace(str(number), **kinds[number % 5]) for number in range(1, 41)]
    made = run(context)
    told = Counter(reasons(context, made).values())
    assert made.rows + made.rejects == len({one.id for one in planted.said if isinstance(one, Trace)})
    assert all(told)
