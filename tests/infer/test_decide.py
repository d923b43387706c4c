"""Typed decisions and prompts that are only read, checked against the model's own probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from catena.core.decide import answer_requests, decide
from catena.core.errors import UsageError
from catena.core.generate import Message, Request, SamplingParams

ASKED = [Message("user", "the quick brown fox 你好世界 " * 6 + "is it so?")]
ANSWERS = ["yes", "no", "no way 世界"]


def by_hand(model: Any, ids: list[int]) -> list[float]:
    """Log-probability of every token after the first."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
    return [float(logprobs[at, token]) for at, token in enumerate(ids[1:])]


def test_each_answer_has_the_share_of_its_whole_text(engine_of: Any, model_of: Any) -> None:
    engine = engine_of()
    prompt = engine.codec.tokens(ASKED)
    sums = []
    for answer in ANSWERS:
        ids = [*prompt, *engine.codec.continuation(answer), engine.codec.end]
        sums.append(sum(by_hand(model_of(), ids)[len(prompt) - 1 :]))
    total = sum(math.exp(one) for one in sums)
    for _ in range(2):  # the second time, the prompt comes from the prefix cache
        found = decide(engine, engine.codec, ASKED, ANSWERS)
        for answer, one in zip(ANSWERS, sums, strict=True):
            assert math.isclose(found[answer], math.exp(one) / total, abs_tol=1e-4)
    assert engine.stats()["cached_tokens_total"] > 0


@pytest.mark.parametrize(
    ("answers", "says"),
    [(["yes"], "at least two"), (["a", "a"], "differ"), (["a", ""], "empty"), (["a", "\ud800"], "half")],
)
def test_answers_that_decide_nothing_are_refused(engine_of: Any, answers: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        answer_requests(engine_of().codec, ASKED, answers)


@pytest.mark.parametrize("start", [1, 2, 40, 64, 65, 66, 1000])
@pytest.mark.parametrize("budget", [2048, 24])
def test_a_prompt_that_is_only_read_is_told_from_where_it_is_asked_for(
    engine_of: Any, model_of: Any, start: int, budget: int
) -> None:
    engine = engine_of(token_budget=budget, max_running=8)
    ids = engine.codec.tokens("the quick brown fox 你好世界 " * 20)
    wanted = by_hand(model_of(), ids)
    params = SamplingParams(max_tokens=0, prompt_logprobs=2, prompt_logprobs_from=start)
    for _ in range(2):
        [one] = engine.generate([Request("0", ids, params)])
        assert one.token_ids == ()
        assert one.prompt_tokens == len(ids)
        assert [entry.token_id for entry in one.prompt_logprobs] == ids[start:]
        for entry, value in zip(one.prompt_logprobs, wanted[start - 1 :], strict=True):
            assert abs(entry.logprob - value) < 1e-4
            assert len(entry.top) == 2
    reused = engine.stats()["cached_tokens_total"]
    assert reused == min(start - 1, len(ids) - 1) // 32 * 32


def test_a_prompt_that_fills_the_context_can_be_read(engine_of: Any) -> None:
    engine = engine_of()
    [one] = engine.generate([Request("0", [7] * 256, SamplingParams(max_tokens=0, prompt_logprobs=0))])
    assert len(one.prompt_logprobs) == 255
