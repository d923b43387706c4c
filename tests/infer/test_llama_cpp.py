"""llama.cpp itself on files that are written here: the same tokens as the native engine, greedy, in 32 bits.

Skipped where llama.cpp is not built (`scripts/llama-cpp`), unless CATENA_EXPECT_LLAMA_CPP says that it must be there.
"""

from __future__ import annotations

import json
import os
import queue
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from catena.core.errors import EnvironmentProblem
from catena.core.generate import GENERATORS, Delta, Grammar, Message, Request, SamplingParams
from catena.infer.backends.engines import program_of
from catena.infer.backends.remote import RemoteGenerator
from catena.infer.engine import open_engine
from catena.models import checkpoint
from catena.models.tokenizer import train_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
HEAD = {**SHAPE, "head_dim": 32}
ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
GEMMA = {**HEAD, "query_pre_attn_scalar": 32, "sliding_window": 16}
MAKE: dict[str, Callable[[int], Any]] = {
    "llama": lambda size: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=size, **SHAPE)),
    "mistral": lambda size: t.MistralForCausalLM(t.MistralConfig(vocab_size=size, sliding_window=None, **SHAPE)),
    "qwen2": lambda size: t.Qwen2ForCausalLM(t.Qwen2Config(vocab_size=size, **SHAPE)),
    "qwen3": lambda size: t.Qwen3ForCausalLM(t.Qwen3Config(vocab_size=size, tie_word_embeddings=True, **HEAD)),
    "olmo2": lambda size: t.Olmo2ForCausalLM(t.Olmo2Config(vocab_size=size, **SHAPE)),
    "gemma2": lambda size: t.Gemma2ForCausalLM(t.Gemma2Config(vocab_size=size, **GEMMA)),
    "gemma3": lambda size: t.Gemma3ForCausalLM(t.Gemma3TextConfig(vocab_size=size, **GEMMA)),
    "gpt2": lambda size: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=size, n_positions=256, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3, **ENDS)
    ),
}
PROMPTS = ["the quick brown fox", "你好，世界 fox", "  two  spaces\nand a line 42", "x"]
GREEDY = SamplingParams(max_tokens=24)


@pytest.fixture(scope="module")
def program() -> Path:
    """llama.cpp's server."""
    try:
        return program_of("llama.cpp", "")
    except EnvironmentProblem:
        if os.environ.get("CATENA_EXPECT_LLAMA_CPP"):
            pytest.fail("llama.cpp is expected, and not built")
        pytest.skip("llama.cpp is not built (scripts/llama-cpp)")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that saves a tiny model of a family, whose tokens are far apart."""
    tokenizer = train_tokenizer(["the quick brown fox 你好世界 " * 20], 320)

    def make(family: str) -> Path:
        torch.manual_seed(11)
        folder = tmp_path_factory.mktemp(family)
        checkpoint.save(MAKE[family](len(tokenizer)), tokenizer, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def llama(program: Path, folder_of: Callable[[str], Path]) -> Iterator[RemoteGenerator]:
    """llama.cpp over a tiny Llama."""
    generator = started(folder_of("llama"))
    yield generator
    generator.close()


def started(folder: Path) -> RemoteGenerator:
    """Start llama.cpp on a model, in 32 bits."""
    generator: RemoteGenerator = GENERATORS.load("llama.cpp")(
        folder,
        gguf_type="f32",
        cache_format="f32",
        max_running=4,
        arguments=("--threads", "1", "--flash-attn", "off"),
        start_timeout_s=120,
    )
    return generator


def requests(params: SamplingParams = GREEDY) -> list[Request]:
    """Return a request for each prompt."""
    return [Request(str(number), prompt, params) for number, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("family", MAKE)
def test_greedy_answers_are_the_native_engines(program: Path, folder_of: Callable[[str], Path], family: str) -> None:
    # llama.cpp looks GPT-2's GELU up in a table of half precision.
    bound = 0.03 if family == "gpt2" else 1e-3
    folder = folder_of(family)
    native, other = open_engine(folder), started(folder)
    try:
        params = SamplingParams(max_tokens=24, logprobs=2)
        wanted = {one.request_id: one for one in native.generate(requests(params))}
        found = {one.request_id: one for one in other.generate(requests(params))}
    finally:
        native.close()
        other.close()
    for id, one in wanted.items():
        assert found[id].token_ids == one.token_ids
        assert (found[id].text, found[id].prompt_tokens) == (one.text, one.prompt_tokens)
        # llama.cpp tells nothing of tokens that are a part of a character; the others come in their order.
        rest = iter(one.token_logprobs)
        for entry in found[id].token_logprobs:
            same = next(
                ours for ours in rest if ours.token_id == entry.token_id and abs(ours.logprob - entry.logprob) < bound
            )
            assert same.top[0][0] == entry.top[0][0]
        assert found[id].token_logprobs


def test_a_stream_says_the_same_as_the_whole(llama: RemoteGenerator) -> None:
    wanted = {one.request_id: one for one in llama.generate(requests())}
    for request in requests():
        told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        llama.submit(request, told.put)
        text = ""
        while (delta := told.get(timeout=60)).completion is None:
            text += delta.text
        assert text + delta.text == delta.completion.text
        # llama.cpp keeps bytes back that are no character at the end of an answer.
        assert wanted[request.id].text.rstrip("\ufffd").startswith(delta.completion.text.rstrip("\ufffd"))
        whole = wanted[request.id]
        assert (delta.completion.finish_reason, delta.completion.generated) == (whole.finish_reason, whole.generated)


def test_text_is_cut_into_the_same_tokens(llama: RemoteGenerator) -> None:
    for text in (*PROMPTS, "don't  stop", "a.b(c)\n\n  x = 3.14"):
        # The file cannot say that a space stands before every text: who gives text to llama.cpp writes it.
        assert asked(llama, "/tokenize", {"content": f" {text}"})["tokens"] == llama.codec.tokens(text)


def test_the_chat_template_gives_the_same_tokens(llama: RemoteGenerator) -> None:
    messages = [Message("system", "be kind"), Message("user", "the fox 你好")]
    body = {"messages": [{"role": one.role, "content": one.content} for one in messages]}
    text = asked(llama, "/apply-template", body)["prompt"]
    ids = asked(llama, "/tokenize", {"content": text, "parse_special": True})["tokens"]
    assert ids == llama.codec.tokens(messages)


def test_a_grammar_and_a_stop_text_hold(llama: RemoteGenerator) -> None:
    choice = Grammar("choice", json.dumps(["yes", "no"]))
    [answer] = llama.generate([Request("c", "fox", SamplingParams(max_tokens=9, grammar=choice))])
    assert answer.text in ("yes", "no")
    [free] = llama.generate([Request("f", PROMPTS[0], GREEDY)])
    stop = free.text[4:6]
    [cut] = llama.generate([Request("s", PROMPTS[0], SamplingParams(max_tokens=24, stop=(stop,)))])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_seeds_repeat(llama: RemoteGenerator) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3)
    first, second = ([one.token_ids for one in llama.generate([Request("r", "fox", params)])] for _ in range(2))
    assert first == second


def asked(generator: RemoteGenerator, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask llama.cpp's server itself."""
    assert generator.place.process is not None
    request = urllib.request.Request(
        generator.place.process.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        found: dict[str, Any] = json.loads(response.read())
    return found
