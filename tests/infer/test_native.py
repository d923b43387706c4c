"""The step in C: it computes what the model's own forward computes, in any company, and only where it may."""

from __future__ import annotations

import os
from array import array
from typing import Any

import pytest
import torch
import transformers as t

from catena.core.generate import Request, SamplingParams
from catena.infer import native as step_of
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.infer.native import NativeStep
from catena.infer.runner import _alone
from catena.models import native
from catena.models.quant import quantize_

from .architectures import SHAPE
from .test_parity import Numbers

pytestmark = pytest.mark.skipif(native.library() is None and not os.environ.get("CI"), reason="no C compiler here")
WIDE = {**SHAPE, "hidden_size": 96, "intermediate_size": 160, "head_dim": 32, "initializer_range": 0.1}
WINDOW = 40
LONE = {"num_attention_heads": 2, "num_key_value_heads": 2}
"""One head of queries for each of keys."""
TOKENS = 70
FAMILIES: dict[str, Any] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**WIDE)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**{**WIDE, "hidden_size": 128})),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**{**WIDE, "head_dim": 64, "tie_word_embeddings": True})),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**WIDE, sliding_window=WINDOW)),
    "heads of 128": lambda: t.LlamaForCausalLM(t.LlamaConfig(**{**WIDE, **LONE, "head_dim": 128})),
    "heads of 256": lambda: t.LlamaForCausalLM(t.LlamaConfig(**{**WIDE, **LONE, "head_dim": 256})),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**WIDE, sliding_window=WINDOW)),
}


@pytest.fixture(autouse=True)
def float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let float32 be laid out whatever is faster here."""
    measured = native.wins_at_many
    monkeypatch.setattr(native, "wins_at_many", lambda dtype: dtype == torch.float32 or measured(dtype))


def build(family: str, scheme: str = "") -> Any:
    """Return a random model, its biases and norms too; it is bfloat16, or float32 by `scheme`."""
    torch.manual_seed(3)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name:
                parameter.normal_(0, 0.3)
    model.generation_config.eos_token_id = None
    if scheme == "float32":
        return model
    model = model.to(torch.bfloat16)
    if scheme:
        quantize_(model, ("lm_head",) if model.config.tie_word_embeddings else (), scheme, 32)
    return model


def open_native(model: Any, **options: Any) -> tuple[Engine, NativeStep]:
    engine = Engine(model, Numbers(), EngineConfig(**options))
    assert engine.runner.native is not None
    return engine, engine.runner.native


def ids() -> torch.Tensor:
    return (torch.arange(TOKENS) * 7919 % 120 + 2)[None]


def told(step: NativeStep, first: int, last: int, blocks: list[int]) -> torch.Tensor:
    """Return the logits of tokens first..last, which stand in the given blocks of the pool."""
    table, size = array("i", blocks), step.block_size
    positions = list(range(first, last))
    slots = [table[at // size] * size + at % size for at in positions]
    runs = array("q", (0, last - first, first, table.buffer_info()[0]))
    logits, best = step.run(ids()[0, first:last].tolist(), positions, slots, runs, list(range(last - first)))
    if logits.isfinite().all():
        assert best == logits.argmax(dim=-1).tolist()
    return logits


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        *((one, "") for one in FAMILIES),
        ("llama", "int8"),
        ("qwen2", "int4"),
        ("qwen3", "w8a8"),
        ("mistral", "int4"),
        ("phi3", "int8"),
        ("phi3", "int4"),
    ],
)
def test_it_is_as_near_to_float32_as_the_models_own_forward(family: str, scheme: str) -> None:
    engine, step = open_native(build(family, scheme))
    every = torch.arange(TOKENS)
    with torch.inference_mode():
        found = told(step, 0, TOKENS, [5, 1, 3])
        alone = _alone(engine.runner.cache, TOKENS)
        plain = engine.runner._forward(ids(), every[None], alone, every).float()
        exact = build(family, scheme).float()(ids()).logits[0]
    ours, theirs = ((one - exact).square().mean().sqrt() / exact.std() for one in (found, plain))
    assert ours < 1.3 * theirs
    assert ours < 0.1
    engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_that_of_transformers(family: str) -> None:
    engine, step = open_native(build(family, "float32"))
    with torch.inference_mode():
        exact = build(family, "float32")(ids()).logits[0]
    torch.testing.assert_close(told(step, 0, TOKENS, [5, 1, 3]), exact, rtol=1e-4, atol=1e-4)
    engine.close()


@pytest.mark.parametrize(
    ("family", "scheme"),
    [("qwen3", ""), ("mistral", "int8"), ("llama", "int4"), ("phi3", ""), *((one, "float32") for one in FAMILIES)],
)
def test_a_token_has_the_same_bits_alone_and_in_a_prompt(family: str, scheme: str) -> None:
    engine, step = open_native(build(family, scheme), block_size=24)
    whole = told(step, 0, TOKENS, [0, 1, 2])
    chunks = torch.cat([told(step, at, min(TOKENS, at + 29), [4, 6, 3]) for at in range(0, TOKENS, 29)])
    each = torch.cat([told(step, at, at + 1, [7, 5, 8]) for at in range(TOKENS)])
    assert torch.equal(whole, chunks)
    assert torch.equal(whole, each)
    engine.close()


@pytest.mark.parametrize("scheme", ["", "float32"])
def test_answers_are_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr("catena.infer.runner.wins_at_many", lambda _: True)
    requests = [
        Request(str(at), [2 + (7 * place + at) % 120 for place in range(2 + 11 * at)], SamplingParams(max_tokens=9))
        for at in range(7)
    ]
    engine, _ = open_native(build("qwen3", scheme))
    together = {done.request_id: done.token_ids for done in engine.generate(requests)}
    assert together == {one.id: next(iter(engine.generate([one]))).token_ids for one in requests}
    engine.close()
    engine, _ = open_native(build("qwen3", scheme), token_budget=16, prefix_cache=False, speculation="ngram")
    assert together == {done.request_id: done.token_ids for done in engine.generate(requests)}
    engine.close()


def test_inputs_can_be_rounded_to_8_bits() -> None:
    engine, step = open_native(build("qwen2", "int4"))
    found = told(step, 0, TOKENS, [0, 1, 2])
    engine.close()
    engine, step = open_native(build("qwen2", "int4"), activations="int8")
    short = told(step, 0, TOKENS, [0, 1, 2])
    assert 0 < (short - found).square().mean().sqrt() / found.std() < 0.1
    engine.close()


def test_more_threads_change_nothing() -> None:
    engine, step = open_native(build("qwen2"))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.cat([told(step, 0, 60, [0, 1, 2]), told(step, 60, 61, [0, 1, 2])]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    engine.close()


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda model: model.half(), {}),
        (lambda model: quantize_(model.float(), (), "int8", 32) and model, {}),
        (lambda model: model, {"cache_format": "int8"}),
        (lambda model: setattr(model.config, "hidden_act", "gelu") or model, {}),
        (lambda model: setattr(model.config, "model_type", "other") or model, {}),
        (lambda model: model.model.layers[0].mlp.up_proj.weight.data.fill_(float("nan")) is None or model, {}),
    ],
)
def test_other_models_go_the_general_way(change: Any, options: dict[str, Any]) -> None:
    engine = Engine(change(build("llama")), Numbers(), EngineConfig(**options))
    assert engine.runner.native is None
    assert len(list(engine.generate([Request("a", [3, 4, 5], SamplingParams(max_tokens=2))]))) == 1
    engine.close()


def test_keys_of_another_format_are_refused() -> None:
    engine, _ = open_native(build("llama", "float32"))
    model, cache = engine.runner.model, engine.runner.cache
    model.model.embed_tokens.to(torch.bfloat16)
    with pytest.raises(ValueError, match="keys and values are not"):
        NativeStep(model, cache)
    engine.close()


def test_a_step_that_disagrees_is_not_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(step_of, "_window", lambda *_: 3)
    engine = Engine(build("llama"), Numbers())
    assert engine.runner.native is None
    assert "differs" in caplog.text
    engine.close()


def test_spoilt_logits_end_one_answer_and_leave_no_trace() -> None:
    model = build("llama")
    engine, step = open_native(model)
    whole = told(step, 0, TOKENS, [0, 1, 2])
    row = model.model.embed_tokens.weight.data[9]
    kept = row.clone()
    row.fill_(float("nan"))
    (done,) = engine.generate([Request("a", [9, 9], SamplingParams(max_tokens=3))])
    assert done.finish_reason == "error"
    row.copy_(kept)
    cache = engine.runner.cache
    assert all(pool.data.isfinite().all() for pools in (cache.keys, cache.values) for pool in pools.values())
    assert torch.equal(told(step, 0, TOKENS, [0, 1, 2]), whole)
    engine.close()
