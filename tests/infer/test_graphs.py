"""What a GPU does, without one: its kernels interpreted, its recorded step played by hand. With one: as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from catena.core.errors import UsageError
from catena.core.generate import Request, SamplingParams
from catena.infer import flat
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.infer.graphs import GraphStep
from catena.infer.linears import device_for

from .architectures import build
from .test_parity import Numbers, answers

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def reference(query: torch.Tensor, pools: tuple[torch.Tensor, torch.Tensor], slots: list[int], softcap: float | None):
    """Attention of one token over its slots, in float32."""
    group = query.shape[0] // pools[0].shape[1]
    key, value = (pool[slots].float().repeat_interleave(group, 1) for pool in pools)
    scores = torch.einsum("hd,nhd->hn", query.float(), key) * query.shape[-1] ** -0.5
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return torch.einsum("hn,nhd->hd", scores.softmax(-1), value)


def check_kernel(device: str, dtype: torch.dtype, tolerance: float) -> None:
    from catena.infer.paged_decode import paged_decode

    torch.manual_seed(0)
    page, count = 8, 32
    for heads, kv_heads, dim, value_dim, window, softcap in [
        (4, 2, 32, 32, None, None),
        (6, 2, 24, 40, 20, None),
        (3, 3, 16, 16, None, 5.0),
    ]:
        pools = tuple(torch.randn(count * page, kv_heads, size, device=device).to(dtype) for size in (dim, value_dim))
        lengths = torch.tensor([1, 65, 150], dtype=torch.int32)
        tables = torch.stack([torch.randperm(count)[:19] for _ in lengths]).int()
        query = torch.randn(len(lengths), heads, dim, device=device).to(dtype)
        found = paged_decode(query, pools, tables.to(device), lengths.to(device), page, window=window, softcap=softcap)
        for row, length in enumerate(lengths.tolist()):
            first = max(0, length - window) if window else 0
            slots = [int(tables[row][at // page]) * page + at % page for at in range(first, length)]
            expected = reference(query[row], pools, slots, softcap)
            assert (found[row].float() - expected).abs().max() < tolerance
        alone = paged_decode(query[1:2], pools, tables[1:2].to(device), lengths[1:2].to(device), page)
        among = paged_decode(query, pools, tables.to(device), lengths.to(device), page)
        assert torch.equal(alone[0], among[1])  # bit for bit: who is beside it changes nothing


def check_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded step's bookkeeping and the kernel's tables, against the plain way: windows, softcaps, groups."""
    plain = Engine(build("gemma2"), Numbers(), EngineConfig(block_size=8))
    expected = answers(plain, range(3))
    plain.close()
    monkeypatch.setattr("catena.infer.runner.kinds_of", lambda layout, local: flat.Kinds(decodes=True))
    monkeypatch.setattr("catena.infer.graphs.GraphStep.record", staticmethod(by_hand))
    # A small budget: prompts are cut, and single tokens stand behind chunks of prompts in one row.
    engine = Engine(build("gemma2"), Numbers(), EngineConfig(block_size=8, token_budget=17))
    assert answers(engine, range(3)) == expected
    assert answers(engine, range(1)) == {0: expected[0]}
    assert engine.runner.graphs is not None
    assert engine.runner.graphs.sizes == (1, 4)
    engine.close()


def by_hand(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    return step


def test_kernels_and_recorded_steps_answer_as_the_plain_way() -> None:
    """In a process of its own: whether Triton interprets is decided when it is imported."""
    code = (
        "import pytest, torch; from tests.infer import test_graphs as t; t.check_kernel('cpu', torch.float32, 1e-5); "
        "t.check_engine(pytest.MonkeyPatch()); print('same')"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout.split() == ["same"], child.stderr


def test_a_step_that_cannot_be_recorded_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = Engine(build("llama"), Numbers())
    expected = answers(plain, range(3))
    plain.close()
    engine = Engine(build("llama"), Numbers())
    cache = engine.runner.cache
    assert cache is not None
    monkeypatch.setattr("catena.infer.graphs.GraphStep.record", staticmethod(refuse))
    engine.runner.graphs = graphs = GraphStep(engine.runner._forward, cache, 8, spare=0)
    assert answers(engine, range(3)) == expected
    assert graphs.broken
    engine.close()


def test_a_device_that_is_not_there_is_said() -> None:
    assert device_for("cpu") == "cpu"
    assert device_for("auto") in ("cpu", "cuda")
    for wrong in ("cuda:99", "tpu", "mps", "nothing at all"):
        with pytest.raises(UsageError, match="there is no device"):
            device_for(wrong)


@pytest.mark.gpu
@needs_gpu
def test_kernel_on_a_gpu() -> None:
    check_kernel("cuda", torch.float32, 1e-4)
    check_kernel("cuda", torch.bfloat16, 3e-2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
def test_answers_on_a_gpu_equal_generate(family: str) -> None:
    model: Any = build(family).cuda()
    engine = Engine(model, Numbers(), EngineConfig(block_size=16))
    found = answers(engine, range(17))
    engine.close()
    assert engine.runner.kinds.decodes
    reference = build(family).cuda()
    from .test_parity import ANSWER, prompts

    for number, prompt in enumerate(prompts()):
        ids = torch.tensor([prompt], device="cuda")
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False)
        assert found[number] == out[0, len(prompt) :].tolist()


@pytest.mark.gpu
@needs_gpu
def test_prefills_in_one_call_answer_as_one_by_one() -> None:
    model: Any = build("llama").to("cuda", torch.bfloat16)
    engine = Engine(model, Numbers(), EngineConfig(block_size=16, token_budget=64))
    assert engine.runner.kinds.prefills
    requests = [Request(str(at), list(range(2, 40 + at)), SamplingParams(prompt_logprobs=0)) for at in range(5)]
    found = {one.request_id: one.prompt_logprobs for one in engine.score(requests)}
    engine.runner.kinds = flat.Kinds()
    for one in engine.score(requests):
        for ours, plain in zip(found[one.request_id], one.prompt_logprobs, strict=True):
            assert abs(ours.logprob - plain.logprob) < 0.1
    engine.close()
