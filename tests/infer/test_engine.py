"""The engine: the tokens of transformers in any company, ends of answers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from catena.core.errors import UsageError
from catena.core.generate import GENERATORS, Completion, Message, Request, SamplingParams, StreamingGenerator
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine, open_engine
from catena.models import checkpoint, quant

from .asking import answers, prompts

FAMILIES = ["llama", "llama-mha", "qwen2", "qwen3", "mistral-window"]


def by_transformers(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return [int(token) for token in out[0, len(prompt) :]]


# -- the same tokens as transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "count"), [*((family, 17) for family in FAMILIES), ("llama", 1), ("llama", 3)])
def test_greedy_answers_equal_generate_token_for_token(
    family: str, count: int, model_of: Callable[..., Any], engine_of: Callable[..., Engine], tokenizer: Any
) -> None:
    asked = prompts(count, len(tokenizer))
    model = model_of(family)
    expected = [by_transformers(model, prompt, 24) for prompt in asked]
    found = answers(engine_of(family), asked, max_tokens=24)
    assert [list(completion.token_ids) for completion in found] == expected
    assert len({token for answer in expected for token in answer}) > 5, "the model says always the same"


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
@pytest.mark.parametrize(
    "options",
    [
        {"token_budget": 16, "max_running": 8},
        {"block_size": 4, "cache_bytes": 2 * 2 * 2 * 12 * 4 * 4 * 70, "max_running": 16},
        {"max_running": 1, "block_size": 1},
    ],
    ids=["chunked", "preempted", "one by one"],
)
def test_chunks_preemption_and_block_size_change_nothing(
    family: str, options: dict[str, int], model_of: Callable[..., Any], engine_of: Callable[..., Engine], tokenizer: Any
) -> None:
    asked = prompts(9, len(tokenizer), longest=60)
    model = model_of(family)
    engine = engine_of(family, **options)
    assert [list(c.token_ids) for c in answers(engine, asked, max_tokens=20)] == [
        by_transformers(model, prompt, 20) for prompt in asked
    ]
    stats = engine.stats()
    assert stats["cache_blocks_used"] == 0
    if "cache_bytes" in options:
        assert stats["preemptions_total"] > 0


def test_scores_are_the_log_probabilities_of_the_model(
    model_of: Callable[..., Any], engine_of: Callable[..., Engine], tokenizer: Any
) -> None:
    asked = prompts(5, len(tokenizer))
    model = model_of()
    for options in ({}, {"score_bytes": 4 * len(tokenizer) * 7}):
        scored = {c.request_id: c for c in engine_of(**options).score(Request(str(i), p) for i, p in enumerate(asked))}
        for index, prompt in enumerate(asked):
            with torch.no_grad():
                expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
            picked = [expected[at, token].item() for at, token in enumerate(prompt[1:])]
            assert scored[str(index)].logprobs == pytest.approx(picked, abs=1e-4)
            assert scored[str(index)].token_ids == ()


# -- sampling and ends ---------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_answer_in_any_company(engine_of: Callable[..., Engine], tokenizer: Any) -> None:
    engine = engine_of()
    asked = prompts(6, len(tokenizer))
    params = {"temperature": 1.0, "top_p": 0.95, "seed": 7, "max_tokens": 16}
    alone = [answers(engine, [prompt], **params)[0].token_ids for prompt in asked]
    assert [completion.token_ids for completion in answers(engine, asked, **params)] == alone
    other = answers(engine, asked, **{**params, "seed": 8})
    assert [completion.token_ids for completion in other] != alone


def test_an_end_token_ends_the_answer_and_is_not_in_its_text(
    model_of: Callable[..., Any], tokenizer: Any, engine_of: Callable[..., Engine]
) -> None:
    prompt = prompts(1, len(tokenizer))[0]
    free = answers(engine_of(), [prompt], max_tokens=24)[0].token_ids
    model = model_of()
    model.generation_config.eos_token_id = free[5]
    engine = Engine(model, tokenizer)
    [ended] = answers(engine, [prompt], max_tokens=24)
    assert ended.token_ids == free[: free.index(free[5]) + 1]
    assert ended.finish_reason == "stop"
    engine.close()


def test_a_stop_string_ends_the_answer(engine_of: Callable[..., Engine], tokenizer: Any) -> None:
    engine = engine_of()
    prompt = prompts(3, len(tokenizer))[1]
    [free] = answers(engine, [prompt], max_tokens=40)
    assert free.finish_reason == "length"
    stop = free.text[10:13]
    [stopped] = answers(engine, [prompt], max_tokens=40, stop=(stop,))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < 40


def test_an_answer_ends_where_the_context_ends(engine_of: Callable[..., Engine]) -> None:
    [completion] = answers(engine_of(), [[7] * 250], max_tokens=100)
    assert len(completion.token_ids) == 6
    assert completion.finish_reason == "length"


def test_logits_that_are_no_numbers_fail_one_request_and_spoil_no_other(
    model_of: Callable[..., Any], tokenizer: Any, engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    good = [10, 11, 12]
    [expected] = answers(engine_of(), [good], max_tokens=8)
    model = model_of()
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
        model.lm_head.weight[9] = 0  # so that nobody else says it
    engine = Engine(model, tokenizer, EngineConfig(max_running=3, block_size=4))
    found = answers(engine, [[9] * 30, good, [9] * 5, good, good], max_tokens=8)
    assert [completion.finish_reason for completion in found] == ["error", "length", "error", "length", "length"]
    assert {completion.token_ids for completion in found} == {(), expected.token_ids}
    assert "no numbers" in caplog.text
    engine.close()


# -- requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ([7] * 300, {}, "300 tokens; the context is 256"),
        ([7] * 256, {}, "256 tokens; the context is 256"),
        ("", {}, "empty"),
        ("a \ud800 b", {}, "half a character"),
        ([Message("user", "\ud800")], {}, "half a character"),
        ([], {}, "empty"),
        ([-1], {}, "no id"),
        ([10**9], {}, "no id"),
        ("hi", {"max_tokens": -1}, "max_tokens"),
        ("hi", {"max_tokens": 1000}, "1000"),
        ("hi", {"temperature": -1.0}, "temperature"),
        ("hi", {"temperature": float("nan")}, "temperature"),
        ("hi", {"top_p": 0.0}, "top_p"),
        ("hi", {"top_k": -1}, "top_k"),
    ],
)
def test_a_bad_request_is_refused_with_its_numbers(
    engine_of: Callable[..., Engine], prompt: Any, params: dict[str, Any], says: str
) -> None:
    engine = engine_of()
    request = Request("x", prompt, SamplingParams(**params))
    with pytest.raises(UsageError, match=says):
        list(engine.generate([request]))
    with pytest.raises(UsageError, match=says):
        engine.submit(request, lambda delta: None)
    assert engine.stats()["cache_blocks_used"] == 0


def test_messages_go_through_the_chat_template(engine_of: Callable[..., Engine], tokenizer: Any) -> None:
    engine = engine_of()
    turns = [Message("system", "Be brief."), Message("user", "你好 <|end|>?")]
    written = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns], add_generation_prompt=True, return_dict=False
    )
    tokens = engine.codec.tokens(turns)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.decode(tokens, skip_special_tokens=False).count("<|end|>") == 3
    assert tokens.count(end) == 2, "an end token that a person types must stay text"
    assert written.count(end) == 3
    [completion] = engine.generate([Request("x", turns, SamplingParams(max_tokens=3))])
    assert completion.prompt_tokens == len(tokens)


def test_the_iterable_of_requests_is_read_as_it_is_needed(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_running=2)
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield Request(str(read), [5, 6, 7], SamplingParams(max_tokens=2))

    stream = engine.generate(endless())
    for _ in range(5):
        next(stream)
    cast("Generator[Completion, None, None]", stream).close()
    assert read <= 12
    assert engine.stats()["running"] == engine.stats()["waiting"] == engine.stats()["cache_blocks_used"] == 0


def test_a_model_whose_attention_is_its_own_runs_unpaged_and_says_so(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32))
    model._supports_attention_backend = False
    assert Engine(model, tokenizer).stats()["paged"] == 0
    assert "GPT2LMHeadModel runs in padded batches" in caplog.text


def test_a_cache_smaller_than_the_context_cuts_the_context(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(cache_bytes=2 * 2 * 2 * 12 * 4 * 64)
    assert engine.stats()["context_tokens"] == 64
    with pytest.raises(UsageError, match="the context is 64"):
        list(engine.generate([Request("x", [7] * 80)]))


def test_a_cache_without_room_for_a_block_is_refused(engine_of: Callable[..., Engine]) -> None:
    with pytest.raises(UsageError, match="cache_bytes"):
        engine_of(cache_bytes=100)


# -- folders -------------------------------------------------------------------------------------------------------


def test_a_model_folder_opens_by_registry_name_dense_and_int8(
    tmp_path: Path, model_of: Callable[..., Any], tokenizer: Any
) -> None:
    asked = prompts(3, len(tokenizer))
    model = model_of()
    checkpoint.save(model, tokenizer, tmp_path / "dense")
    quant.quantize_(model)
    checkpoint.save(model, tokenizer, tmp_path / "int8")
    for name in ("dense", "int8"):
        reference, _ = checkpoint.load(tmp_path / name)
        engine: Engine = GENERATORS.load("native")(tmp_path / name, max_running=4)
        streaming: object = engine
        assert isinstance(streaming, StreamingGenerator)
        found = [list(completion.token_ids) for completion in answers(engine, asked, max_tokens=16)]
        assert found == [by_transformers(reference, prompt, 16) for prompt in asked]
        engine.close()


def test_an_unknown_option_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_runing"):
        open_engine(tmp_path / "no such folder", max_runing=4)


def test_the_config_is_bounded() -> None:
    with pytest.raises(ValueError, match="max_running"):
        EngineConfig(max_running=0)
