"""Encoder-decoder models: equal to `generate`, alone and in batches of sources of different lengths."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from catena.core.errors import UsageError
from catena.core.generate import Delta, Grammar, Request, SamplingParams
from catena.infer.seq2seq import Seq2Seq, Seq2SeqConfig

SOURCES = ["the fox", "你好世界, the quick brown fox", "quick", "brown brown fox 世界 the"]


def model_of(kind: str, tokenizer: Any) -> Any:
    torch.manual_seed(3)
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    if kind == "t5":
        shape = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
        model: Any = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **shape, **tokens))
    else:
        shape = {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 96,
            "init_std": 0.4,
        }
        model = BartForConditionalGeneration(
            BartConfig(vocab_size=len(tokenizer), **shape, **tokens, forced_bos_token_id=7, forced_eos_token_id=None)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    return model.eval()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_greedy_answers_equal_generate_in_any_batch(kind: str, tokenizer: Any) -> None:
    model = model_of(kind, tokenizer)
    generator = Seq2Seq(model, tokenizer, Seq2SeqConfig(max_running=3))
    wanted = {}
    for source in SOURCES:
        ids = torch.tensor([tokenizer(source)["input_ids"]])
        [answer] = model.generate(input_ids=ids, max_new_tokens=20, num_beams=1, do_sample=False).tolist()
        wanted[source] = tuple(answer[1:])
    requests = [Request(source, source, SamplingParams(max_tokens=20)) for source in SOURCES]
    for one in generator.generate(requests):
        assert one.token_ids == wanted[one.request_id]
        assert one.prompt_tokens == len(tokenizer(one.request_id)["input_ids"])
    assert len(set(wanted.values())) > 1


def test_a_seed_and_log_probabilities_do_not_depend_on_the_batch(tokenizer: Any) -> None:
    generator = Seq2Seq(model_of("t5", tokenizer), tokenizer)
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=4, logprobs=2)
    alone = next(generator.generate([Request("0", SOURCES[0], params)]))
    other = [Request(str(number), source, params) for number, source in enumerate(SOURCES)]
    together = next(one for one in generator.generate(other) if one.request_id == "0")
    assert together.token_ids == alone.token_ids
    assert len(alone.token_logprobs) == len(alone.token_ids)
    assert all(
        abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(alone.token_logprobs, together.token_logprobs, strict=True)
    )


def test_an_answer_can_have_a_form(tokenizer: Any) -> None:
    generator = Seq2Seq(model_of("t5", tokenizer), tokenizer)
    form = Grammar("choice", json.dumps(["yes", "no"]))
    [one] = generator.generate([Request("0", "fox", SamplingParams(max_tokens=20, grammar=form))])
    assert one.text in ("yes", "no")


def test_it_streams_and_cancels(tokenizer: Any) -> None:
    generator = Seq2Seq(model_of("bart", tokenizer), tokenizer)
    whole = next(generator.generate([Request("0", "fox", SamplingParams(max_tokens=20, ignore_end=True))]))
    deltas: list[Delta] = []
    done = threading.Event()

    def on_delta(delta: Delta) -> None:
        deltas.append(delta)
        if delta.completion is not None:
            done.set()

    generator.submit(Request("a", "fox", SamplingParams(max_tokens=20, ignore_end=True)), on_delta)
    assert done.wait(30)
    assert "".join(delta.text for delta in deltas) == whole.text
    done.clear()
    generator.submit(Request("b", "fox", SamplingParams(max_tokens=90, ignore_end=True)), on_delta)
    generator.cancel("b")
    assert done.wait(30)
    assert deltas[-1].completion is not None
    assert deltas[-1].completion.finish_reason == "cancelled"
    assert generator.stats()["running"] == 0
    generator.close()
    generator.close()


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ("x " * 200, {}, "context is 96"),
        ("", {}, "empty"),
        ("x", {"max_tokens": 96}, "at most 95"),
        ("x", {"max_tokens": 0}, "no probability"),
        ("x", {"temperature": -1.0}, "temperature"),
    ],
)
def test_a_bad_request_is_refused(tokenizer: Any, prompt: str, params: dict[str, Any], says: str) -> None:
    generator = Seq2Seq(model_of("bart", tokenizer), tokenizer)
    with pytest.raises(UsageError, match=says):
        list(generator.generate([Request("0", prompt, SamplingParams(**{"max_tokens": 8, **params}))]))


def test_a_folder_is_opened_by_its_head(tokenizer: Any, tmp_path: Path) -> None:
    from catena.core.generate import GENERATORS
    from catena.models.checkpoint import save

    save(model_of("t5", tokenizer), tokenizer, tmp_path)
    generator = GENERATORS.load("auto")(tmp_path, max_running=2)
    assert isinstance(generator, Seq2Seq)
    assert generator.config.max_running == 2
