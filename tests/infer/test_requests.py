"""What a request may ask for: penalties, bias, log-probabilities, ends of its own, deadlines, precedence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from catena.core.errors import UsageError
from catena.core.generate import Completion, Delta, Request, SamplingParams
from catena.infer.engine import Engine
from catena.infer.sampler import adjust, sample
from catena.infer.scheduler import Sequence

PROMPT = [7, 9, 30, 7, 44, 9, 21]


def ask(engine: Engine, prompt: list[int] = PROMPT, **params: Any) -> Completion:
    return next(iter(engine.generate([Request("a", prompt, SamplingParams(**{"max_tokens": 8, **params}))])))


def sequence(**params: Any) -> Sequence:
    return Sequence("a", [*PROMPT, 5, 5, 6], len(PROMPT), SamplingParams(**params), 99)


def test_repetition_penalty_and_min_p_equal_those_of_transformers() -> None:
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(0))
    one = sequence(repetition_penalty=1.7)
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.7)])(torch.tensor([one.tokens]), logits.clone())
    assert torch.equal(adjust(logits, [one]), theirs)
    kept = MinPLogitsWarper(0.2)(torch.tensor([one.tokens]), logits.clone()).isfinite()[0]
    params = SamplingParams(temperature=1.0, min_p=0.2)
    drawn = {sample(logits, [params], [at / 500])[0] for at in range(500)}
    assert drawn == set(kept.nonzero()[:, 0].tolist())


def test_presence_and_frequency_count_the_answer_only_and_bias_is_added() -> None:
    logits = torch.zeros(1, 60)
    got = adjust(logits, [sequence(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={44: 3.0})])[0]
    assert got[5].item() == -1.0
    assert got[6].item() == -0.75
    assert got[44].item() == 3.0
    assert got.count_nonzero() == 3
    assert not logits.any()


def test_rows_without_wishes_stay_as_they_are() -> None:
    logits = torch.randn(2, 60)
    assert adjust(logits, [sequence(), sequence(top_k=3)]) is logits


def test_log_probabilities_are_those_of_transformers(engine_of: Callable[..., Engine], model_of: Any) -> None:
    done = ask(engine_of(token_budget=64), logprobs=3, prompt_logprobs=2)
    tokens = [*PROMPT, *done.token_ids]
    with torch.no_grad():
        expected = model_of()(torch.tensor([tokens])).logits[0].log_softmax(-1)
    entries = [*done.prompt_logprobs, *done.token_logprobs]
    assert [entry.token_id for entry in entries] == tokens[1:]
    for place, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(expected[place, entry.token_id].item(), abs=1e-4)
        best = expected[place].topk(3 if place >= len(PROMPT) - 1 else 2)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_streamed_deltas_carry_every_token_once(engine_of: Callable[..., Engine]) -> None:
    import threading

    engine, deltas, over = engine_of(), [], threading.Event()

    def on_delta(delta: Delta) -> None:
        deltas.append(delta)
        if delta.completion is not None:
            over.set()

    engine.submit(Request("s", PROMPT, SamplingParams(max_tokens=12, logprobs=1)), on_delta)
    assert over.wait(30)
    last = deltas[-1].completion
    assert tuple(token for delta in deltas for token in delta.token_ids) == last.token_ids
    assert tuple(entry for delta in deltas for entry in delta.token_logprobs) == last.token_logprobs
    assert len(last.token_logprobs) == len(last.token_ids)


def test_an_answer_ends_at_a_token_of_its_own_choice(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    whole = ask(engine)
    cut = ask(engine, stop_token_ids=(whole.token_ids[3],))
    first = whole.token_ids.index(whole.token_ids[3])
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert cut.finish_reason == "stop"


def test_the_end_token_can_be_passed_by(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    engine.ends = frozenset([ask(engine).token_ids[2]])
    assert len(ask(engine).token_ids) <= 3
    assert len(ask(engine, ignore_end=True).token_ids) == 8


def test_a_seed_gives_the_same_answer_with_guesses_and_without(engine_of: Callable[..., Engine]) -> None:
    wishes = {"temperature": 0.3, "seed": 11, "max_tokens": 120, "logprobs": 0}
    prompt = [7, 8, 9, 10] * 6
    plain = ask(engine_of(), prompt, **wishes)
    engine = engine_of(speculation="ngram", draft_tokens=3)
    guessed = ask(engine, prompt, **wishes)
    assert guessed.token_ids == plain.token_ids
    assert engine.stats()["guessed_total"] > 0


def test_a_deadline_ends_a_request_wherever_it_is(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_running=1)
    late = [Request(str(at), PROMPT, SamplingParams(max_tokens=64), deadline=0.0) for at in range(3)]
    done = list(engine.generate([*late, Request("in time", PROMPT, SamplingParams(max_tokens=4), deadline=60)]))
    assert {one.request_id: one.finish_reason for one in done} == {
        "0": "deadline",
        "1": "deadline",
        "2": "deadline",
        "in time": "length",
    }
    assert engine.stats()["cache_blocks_used"] == 0


def test_the_urgent_go_first(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_running=1)
    requests = [Request(name, PROMPT, SamplingParams(max_tokens=3), priority=at) for at, name in enumerate("abcd")]
    order = [done.request_id for done in engine.generate(requests)]
    # Two are in the queue when the first is let in; `b` is the more urgent of them.
    assert order[0] == "b"
    assert order.index("d") < order.index("a")


def test_a_prompt_read_before_is_not_computed_again(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(block_size=4)
    first, again = ask(engine), ask(engine)
    assert (first.cached_tokens, again.cached_tokens) == (0, 4)
    assert first.token_ids == again.token_ids
    longer = ask(engine, [*PROMPT, *first.token_ids, 3, 3])
    assert longer.cached_tokens == 12, "the answer's blocks are found again as well"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3.0}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"logit_bias": {99999: 1.0}}, "logit_bias names the token 99999"),
        ({"logit_bias": {5: 101.0}}, "from -100 to 100"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ],
)
def test_values_out_of_range_are_refused_by_name(
    engine_of: Callable[..., Engine], wish: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        ask(engine_of(), **wish)
