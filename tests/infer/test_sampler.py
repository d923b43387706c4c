from __future__ import annotations

import random
from collections import Counter

import torch

from catena.core.generate import SamplingParams
from catena.infer.sampler import INVALID, report, sample


def many(logits: list[float], params: SamplingParams, count: int = 4000) -> Counter[int]:
    draws = random.Random(0)
    rows = torch.tensor(logits).expand(count, -1)
    return Counter(sample(rows, [params] * count, [draws.random() for _ in range(count)]))


def test_temperature_zero_takes_the_best() -> None:
    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), [SamplingParams()], [0.99]) == [1]


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = [0.5, 0.3, 0.2]
    found = many([torch.tensor(p).log().item() for p in probabilities], SamplingParams(temperature=1.0))
    for token, probability in enumerate(probabilities):
        assert abs(found[token] / 4000 - probability) < 0.03


def test_top_k_and_top_p_keep_only_the_likely() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().tolist()
    assert set(many(logits, SamplingParams(temperature=1.0, top_k=2))) == {1, 2}
    assert set(many(logits, SamplingParams(temperature=1.0, top_p=0.65))) == {1, 2}
    assert set(many(logits, SamplingParams(temperature=1.0, top_p=0.01))) == {1}
    assert set(many(logits, SamplingParams(temperature=1.0))) == {0, 1, 2, 3}


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow() -> None:
    assert sample(torch.tensor([[1e30, 2e30, -1e30]]), [SamplingParams(temperature=1e-30)], [0.999999]) == [1]


def test_a_draw_just_below_one_takes_the_last_token_that_is_left() -> None:
    params = SamplingParams(temperature=1.0, top_k=2)
    assert sample(torch.tensor([[0.0, 1.0, 2.0, -5.0]]), [params], [1 - 1e-12]) == [1]


def test_rows_of_one_batch_are_independent() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(temperature=0.8), SamplingParams(), SamplingParams(temperature=1.2, top_p=0.9)]
    draws = [0.3, 0.5, 0.7]
    together = sample(logits, params, draws)
    assert together == [sample(logits[i : i + 1], params[i : i + 1], draws[i : i + 1])[0] for i in range(3)]


def test_logits_that_are_no_numbers_give_no_token() -> None:
    nan = float("nan")
    params = [SamplingParams(), SamplingParams(temperature=1.0), SamplingParams()]
    rows = torch.tensor([[nan, 1.0], [nan, nan], [1.0, 0.0]])
    assert sample(rows, params, [0.5] * 3) == [INVALID, INVALID, 0]


def test_no_rows_are_no_tokens() -> None:
    assert sample(torch.zeros(0, 5), [], []) == []


def test_logprobs_are_those_of_log_softmax() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    expected = logits.log_softmax(-1)
    entries = report(logits, [0, 8, 3, 3], [0, 2, 9, 1])
    for row, (token, entry) in enumerate(zip([0, 8, 3, 3], entries, strict=True)):
        assert entry.token_id == token
        assert entry.logprob == expected[row, token].item()
    assert [len(entry.top) for entry in entries] == [0, 2, 9, 1]
    assert entries[3].top[0] == (int(expected[3].argmax()), expected[3].max().item())
