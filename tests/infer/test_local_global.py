"""A model that attends by `local_global` answers in the engine as in `generate`, and a step costs its window."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from catena.core.generate import Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.models.attention import use_local_global
from catena.models.attention_settings import LocalGlobal
from tests.infer.architectures import VOCABULARY, build
from tests.infer.test_parity import Numbers

LENGTHS = (3, 30, 62, 90, 17)
ANSWER = 20


@pytest.mark.parametrize("settings", [LocalGlobal(window=8, memory=3), LocalGlobal(window=11, memory=0)], ids=str)
@pytest.mark.parametrize("options", [{}, {"token_budget": 13, "max_running": 2}, {"speculation": "ngram"}], ids=str)
def test_answers_equal_generate(settings: LocalGlobal, options: dict[str, Any]) -> None:
    chance = random.Random(1)
    prompts = [[chance.randrange(2, VOCABULARY) for _ in range(length)] for length in LENGTHS]
    reference = use_local_global(build("llama"), settings)
    expected = {}
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False)
        expected[number] = out[0, len(prompt) :].tolist()
    engine = Engine(use_local_global(build("llama"), settings), Numbers(), EngineConfig(block_size=4, **options))
    requests = [Request(str(at), prompt, SamplingParams(max_tokens=ANSWER)) for at, prompt in enumerate(prompts)]
    for _ in range(2):
        got = {int(done.request_id): list(done.token_ids) for done in engine.generate(requests)}
        assert got == expected
    assert engine.stats()["paged"] == 1
