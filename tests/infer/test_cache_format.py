"""A cache of int8 holds more tokens in the same memory, and answers stay close."""

from __future__ import annotations

import psutil
import pytest
import torch

from catena.core.generate import Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.infer.kv import Layout, Pool
from tests.infer.architectures import build
from tests.infer.test_parity import Numbers, prompts


def test_a_pool_takes_memory_as_it_is_written_to() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    pool = Pool(1 << 20, (2, 64), Layout())  # 512 MiB
    assert process.memory_info().rss - before < 50 << 20
    row = torch.ones(1, 2, 3, 64)
    pool.write(torch.tensor([0, 500_000, (1 << 20) - 1]), row)
    assert torch.equal(
        pool.read(torch.tensor([[125_000, 7]]), 4)[0, :, :2], torch.stack([row[0, :, 0], row[0, :, 0] * 0], 1)
    )


def test_rounding_a_token_keeps_each_head_within_a_part_of_its_largest_value() -> None:
    row = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    row[0, 1] *= 100  # one head's size is not another's
    pool = Pool(8, (2, 16), Layout(rounded=True))
    pool.write(torch.tensor([4, 5, 6, 7, 0]), row)
    got = pool.read(torch.tensor([[1, 0]]), 4)[:, :, :5]
    assert ((got - row).abs() <= row.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()


def test_log_probabilities_behind_an_int8_cache_are_close_and_memory_is_less() -> None:
    exact, rounded = (
        Engine(build("llama"), Numbers(), EngineConfig(token_budget=9, cache_format=kind)) for kind in ("auto", "int8")
    )
    # The last part of a prompt that is cut reads what the cache holds of the others.
    asked = SamplingParams(max_tokens=1, logprobs=0)
    requests = [Request(str(at), prompt, asked) for at, prompt in enumerate(prompts())]
    told = [{done.request_id: done.token_logprobs for done in engine.generate(requests)} for engine in (exact, rounded)]
    pairs = [(first, other) for name in told[0] for first, other in zip(told[0][name], told[1][name], strict=True)]
    assert len(pairs) == len(requests)
    differences = [abs(first.logprob - other.logprob) for first, other in pairs]
    assert 0 < sum(differences) / len(differences) < 0.02
    assert exact.runner.layout.bytes_per_token / rounded.runner.layout.bytes_per_token == pytest.approx(12 * 4 / 16)
