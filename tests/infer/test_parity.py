"""Greedy answers equal those of `generate`, token for token: every family, batch size, and way to schedule."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from catena.core.generate import Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from tests.infer.architectures import FAMILIES, VOCABULARY, build

ANSWER = 10
LENGTHS = (1, 40, 5, 33, 64, 7, 20, 18, 19, 50, 3, 2, 31, 32, 30, 12, 11)
UNPAGED = {"falcon"}


class Numbers:
    """Stands in for a tokenizer: a token's text is its number."""

    eos_token_id = None

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def prompts() -> list[list[int]]:
    """Prompts of all lengths; the longer half begin alike."""
    chance = random.Random(0)
    found = [[chance.randrange(2, VOCABULARY) for _ in range(length)] for length in LENGTHS]
    for prompt in found[8:]:
        prompt[:16] = found[1][:16][: len(prompt)]
    return found


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[str, dict[int, list[int]]]:
    """A family with the answers of `generate`, each prompt by itself."""
    model, expected = build(request.param), {}
    for number, prompt in enumerate(prompts()):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False)
        expected[number] = out[0, len(prompt) :].tolist()
    return request.param, expected


def answers(engine: Engine, numbers: range) -> dict[int, list[int]]:
    given = prompts()
    requests = [Request(str(at), given[at], SamplingParams(max_tokens=ANSWER)) for at in numbers]
    return {int(done.request_id): list(done.token_ids) for done in engine.generate(requests)}


def test_answers_equal_generate(family: tuple[str, dict[int, list[int]]]) -> None:
    name, expected = family
    drafted = {"block_size": 8, "speculation": "draft", "draft_model": "a copy of itself", "draft_tokens": 3}
    small = (EngineConfig().block_size * 4, {"block_size": 8, "token_budget": 17, "max_running": 8})
    for size, options in [(17, {}), (17, small[1]), (3, {"block_size": 8, "speculation": "ngram"}), (17, drafted)]:
        model = build(name)
        if options is small[1]:  # blocks for two or three sequences at once: the others are pushed out
            probe = Engine(build(name), Numbers())
            options = {**options, "cache_bytes": probe.runner.layout.bytes_per_token * small[0]}
        engine = Engine(model, Numbers(), EngineConfig(**options), build(name) if options is drafted else None)
        for again in range(2):  # the second time, prompts are in the prefix cache
            assert answers(engine, range(size)) == {at: expected[at] for at in range(size)}, (options, again)
        stats = engine.stats()
        assert stats["cache_blocks_used"] == 0
        assert stats["paged"] == (name not in UNPAGED)
        assert (stats["preemptions_total"] > 0) == (options.get("max_running") == 8)
        if name not in UNPAGED:
            assert stats["cached_tokens_total"] > 0
            assert (stats["guessed_right_total"] > 0) >= (options is drafted)
        engine.close()


def test_log_probabilities_are_those_of_the_models_forward(family: tuple[str, dict[int, list[int]]]) -> None:
    """Of prompts read in chunks, several at once, and of answers: within 1e-4 of the whole sequence's log-softmax."""
    name, expected = family
    engine = Engine(build(name), Numbers(), EngineConfig(block_size=8, token_budget=24))
    numbers, given = (3, 7, 9, 14), prompts()
    params = SamplingParams(max_tokens=ANSWER, logprobs=2, prompt_logprobs=0)
    found = engine.generate([Request(str(at), given[at], params) for at in numbers])
    model = build(name)
    for done in found:
        prompt = given[int(done.request_id)]
        ids = torch.tensor([[*prompt, *expected[int(done.request_id)]]])
        with torch.no_grad():
            whole = model(ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(dim=-1)
        told = [*done.prompt_logprobs, *done.token_logprobs]
        assert [one.token_id for one in told] == ids[0, 1:].tolist()
        assert [one.logprob for one in told] == pytest.approx(
            whole[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist(), abs=1e-4
        )
        best = [value for one in done.token_logprobs for _, value in one.top]
        assert best == pytest.approx(whole[len(prompt) - 1 : -1].topk(2).values.flatten().tolist(), abs=1e-4)


def test_one_request_at_a_time_gives_the_same(family: tuple[str, dict[int, list[int]]]) -> None:
    name, expected = family
    engine = Engine(build(name), Numbers())
    for number in (0, 3, 8):
        assert answers(engine, range(number, number + 1))[number] == expected[number]
