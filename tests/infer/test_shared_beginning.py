"""Sequences that begin alike: their beginning is read once, and the answers are those of each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from catena.core.generate import Completion, Request, SamplingParams
from catena.infer import kv, runner
from catena.infer.runner import common_blocks

BEGINNING = "the quick brown fox 你好世界 jumps over it and " * 3
ENDS = ["a", "bb", "the end of it", "fox", "世", "one that is quite a bit longer than all of the others are"]
PARAMS = SamplingParams(max_tokens=24, ignore_end=True, logprobs=0)


def answers(engine: Any, prompts: Sequence[str]) -> list[Completion]:
    requests = [Request(str(number), prompt, PARAMS) for number, prompt in enumerate(prompts)]
    return sorted(engine.generate(requests), key=lambda one: int(one.request_id))


@pytest.mark.parametrize("options", [{}, {"cache_format": "int8"}], ids=["float", "int8"])
@pytest.mark.parametrize("family", ["llama", "llama-mha", "qwen3", "mistral-window"])
def test_answers_do_not_change(
    engine_of: Any, family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    shared = kv._decode_shared
    monkeypatch.setattr(kv, "_decode_shared", lambda *given: calls.append(1) or shared(*given))
    prompts = [BEGINNING + end for end in ENDS]
    engine = engine_of(family, block_size=16, **options)
    answers(engine, prompts[:1])  # now its beginning lies in the pool
    alone = answers(engine, prompts)
    assert not calls
    monkeypatch.setattr(runner, "WORTH_SHARING", 1)
    engine = engine_of(family, block_size=16, **options)
    answers(engine, prompts[:1])
    together = answers(engine, prompts)
    assert bool(calls) == (family != "mistral-window")  # a window leaves the beginning behind
    for one, other in zip(alone, together, strict=True):
        assert other.token_ids == one.token_ids
        told = [entry.logprob for entry in other.token_logprobs]
        assert told == pytest.approx([entry.logprob for entry in one.token_logprobs], abs=1e-3)


def test_blocks_in_common() -> None:
    assert common_blocks([[3, 4, 5], [3, 4, 6]]) == 2
    assert common_blocks([[3, 4], [5, 4]]) == 0
    assert common_blocks([[3, 4, 0], [3, 4, 0]]) == 2
    assert common_blocks([[7]]) == 0
