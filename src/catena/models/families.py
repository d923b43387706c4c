"""Families: how the numbers of a preset become a `transformers` configuration, and which class is built from it.

Dropout is off everywhere: text is seen once or a few times in pretraining, where it only slows learning. Initial
weights grow as a model gets narrower (`Preset.initial_scale`), but for GPT-2 and T5, which stay as published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from catena.models.presets import Family, Preset


class Words(NamedTuple):
    """What a configuration has to know of the tokenizer, and the longest sequence."""

    size: int
    pad: int
    end: int
    context: int


class Architecture(NamedTuple):
    """A family's configuration and its class with the head of pretraining."""

    config: Callable[[Preset, Words], Any]
    model: Callable[[Any], Any]


def _common(numbers: Preset, words: Words) -> dict[str, Any]:
    """Return the settings that have one name in most families."""
    return {
        "vocab_size": words.size,
        "hidden_size": numbers.hidden,
        "intermediate_size": numbers.feed_forward,
        "num_hidden_layers": numbers.layers,
        "num_attention_heads": numbers.heads,
        "max_position_embeddings": words.context,
        "tie_word_embeddings": numbers.tied,
        "pad_token_id": words.pad,
        "bos_token_id": None,
        "eos_token_id": words.end,
    }


def _rotary(numbers: Preset, words: Words) -> dict[str, Any]:
    return {
        **_common(numbers, words),
        "num_key_value_heads": numbers.key_value_heads or numbers.heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": numbers.rope_theta},
        "initializer_range": numbers.initial_scale,
    }


def _llama(numbers: Preset, words: Words) -> Any:
    return LlamaConfig(**_rotary(numbers, words), **({"head_dim": numbers.head_dim} if numbers.head_dim else {}))


def _qwen3(numbers: Preset, words: Words) -> Any:
    return Qwen3Config(**_rotary(numbers, words), head_dim=numbers.head_dim or numbers.hidden // numbers.heads)


def _gpt2(numbers: Preset, words: Words) -> Any:
    return GPT2Config(
        vocab_size=words.size,
        n_positions=words.context,
        n_embd=numbers.hidden,
        n_layer=numbers.layers,
        n_head=numbers.heads,
        n_inner=numbers.feed_forward,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=numbers.tied,
        pad_token_id=words.pad,
        bos_token_id=None,
        eos_token_id=words.end,
    )


def _bert(numbers: Preset, words: Words) -> Any:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**_common(numbers, words), **off, initializer_range=numbers.initial_scale)


def _modernbert(numbers: Preset, words: Words) -> Any:
    return ModernBertConfig(
        **_common(numbers, words),
        cls_token_id=None,
        sep_token_id=None,
        classifier_pooling="mean",  # as in the published configuration
        initializer_range=numbers.initial_scale,
    )


def _t5(numbers: Preset, words: Words) -> Any:
    return T5Config(
        vocab_size=words.size,
        d_model=numbers.hidden,
        d_kv=numbers.head_dim or numbers.hidden // numbers.heads,
        d_ff=numbers.feed_forward,
        num_layers=numbers.layers,
        num_heads=numbers.heads,
        n_positions=words.context,
        dropout_rate=0.0,
        pad_token_id=words.pad,
        eos_token_id=words.end,
        decoder_start_token_id=words.pad,
    )


FAMILIES: dict[Family, Architecture] = {
    "llama": Architecture(_llama, LlamaForCausalLM),
    "qwen3": Architecture(_qwen3, Qwen3ForCausalLM),
    "gpt2": Architecture(_gpt2, GPT2LMHeadModel),
    "bert": Architecture(_bert, BertForMaskedLM),
    "modernbert": Architecture(_modernbert, ModernBertForMaskedLM),
    "t5": Architecture(_t5, T5ForConditionalGeneration),
}
