"""Tiny random models of many families, in the number format and with the oddities that each one has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

VOCABULARY = 128
CONTEXT = 128
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
HEAD = {**SHAPE, "head_dim": 16}
SLIDING = ["sliding_attention", "full_attention"]


def _gpt2() -> Any:
    return t.GPT2LMHeadModel(
        t.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=48,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def _opt() -> Any:
    shape = {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 48, "init_std": 0.3}
    for name in ("intermediate_size", "num_key_value_heads", "initializer_range"):
        del shape[name]
    return t.OPTForCausalLM(t.OPTConfig(**shape))


def _falcon() -> Any:
    shape = {**SHAPE, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}
    del shape["num_key_value_heads"]
    return t.FalconForCausalLM(t.FalconConfig(**shape))


def _qwen3_moe() -> Any:
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**HEAD, **mixture))


def _gpt_oss() -> Any:
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24, "layer_types": SLIDING}
    return t.GptOssForCausalLM(t.GptOssConfig(**HEAD, **mixture))


def _mamba(**other: Any) -> Any:
    shape = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id")}
    config = t.MambaConfig(**{**shape, **other}, state_size=8, pad_token_id=0, bos_token_id=None, initializer_range=0.3)
    config.max_position_embeddings = config.num_attention_heads = 128
    return t.MambaForCausalLM(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHAPE)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SHAPE)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**HEAD)),
    "mistral-window": lambda: t.MistralForCausalLM(t.MistralConfig(**SHAPE, sliding_window=24)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**HEAD, sliding_window=24, query_pre_attn_scalar=16)),
    "gemma3": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(**HEAD, sliding_window=24, query_pre_attn_scalar=16, layer_types=SLIDING)
    ),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**SHAPE)),
    "gpt2": _gpt2,
    "opt": _opt,
    "falcon": _falcon,
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**SHAPE)),
    "qwen3-moe": _qwen3_moe,
    "gpt-oss": _gpt_oss,
}
if hasattr(t, "InternLM3ForCausalLM"):  # `transformers` 5.23 has its config only
    FAMILIES["internlm3"] = lambda: t.InternLM3ForCausalLM(t.InternLM3Config(**HEAD))


def build(family: str) -> Any:
    """Return a random model of a family, the same each time, without an end token to stop at."""
    torch.manual_seed(3)
    model = FAMILIES[family]().float().eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
