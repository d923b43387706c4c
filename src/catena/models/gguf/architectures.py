"""Which models can be written as GGUF: their keys in the file, and what has to be done to their tensors.

llama.cpp computes each architecture by code of its own. Three things differ from `transformers`:

    rotary pairs    its `llama` rotates neighbours (0, 1), (2, 3); ours (0, d/2), (1, d/2 + 1): rows of q and k move
    Gemma's norms   it multiplies by the weight, `transformers` by 1 + weight
    GPT-2           its matrices are stored as [out, in], those of `transformers` as [in, out]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from catena.core.errors import UsageError, did_you_mean
from catena.models.attention_settings import LOCAL_GLOBAL

ROPE_FREQS = "rope_freqs.weight"
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture is written."""

    name: str
    """llama.cpp's."""
    pairs: bool = False
    """Rows of q and k have to move."""
    norm: float = 0.0
    """Added to the weights of norms."""
    transposed: bool = False
    head: bool = True
    """Has an output matrix of its own where it is not tied."""
    windows: bool = False
    """llama.cpp knows its sliding windows; elsewhere the context must not be longer than the window."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", pairs=True),
    "MistralForCausalLM": Architecture("llama", pairs=True),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "Olmo2ForCausalLM": Architecture("olmo2"),
    "Gemma2ForCausalLM": Architecture("gemma2", norm=1.0, head=False, windows=True),
    "Gemma3ForCausalLM": Architecture("gemma3", norm=1.0, head=False, windows=True),
    "GPT2LMHeadModel": Architecture("gpt2", transposed=True),
}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
WINDOW_EVERY = {"gemma2": 2, "gemma3": 6}
"""llama.cpp takes every so-manieth layer to attend to all; the others have the window."""


def architecture_of(settings: Mapping[str, Any]) -> Architecture:
    """Return how a model is written; raises `UsageError` for one that llama.cpp would not compute as we do."""
    name = (settings.get("architectures") or [""])[0]
    if name not in ARCHITECTURES:
        raise UsageError(f"a {name or 'model without a class'} cannot be written as GGUF here", hint=_known(name))
    if settings.get(LOCAL_GLOBAL):
        raise UsageError("llama.cpp has no local_global attention, with which this model was trained")
    if settings.get("quantization_config"):
        raise UsageError(
            "the model is quantized already; its rounded weights would be rounded once more",
            hint="Export the model that it was made from, with --type q8_0 or q4_0.",
        )
    if not ARCHITECTURES[name].head and settings.get("tie_word_embeddings") is False:
        raise UsageError(f"llama.cpp knows a {name} only with tied embeddings")
    return ARCHITECTURES[name]


def _known(name: str) -> str:
    return did_you_mean(name, ARCHITECTURES) if name else f"Known: {', '.join(ARCHITECTURES)}."


def keys(settings: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Return the numbers of a model by their keys, without the architecture's name in front.

    Raises `UsageError` for a number that llama.cpp has no key for.
    """
    if architecture.name == "gpt2":
        return {
            "context_length": settings["n_positions"],
            "embedding_length": settings["n_embd"],
            "block_count": settings["n_layer"],
            "feed_forward_length": settings.get("n_inner") or 4 * settings["n_embd"],
            "attention.head_count": settings["n_head"],
            "attention.layer_norm_epsilon": float(settings["layer_norm_epsilon"]),
            "vocab_size": settings["vocab_size"],
        }
    heads = settings["num_attention_heads"]
    dim = head_dim(settings)
    found: dict[str, Any] = {
        "context_length": _context(settings, architecture),
        "embedding_length": settings["hidden_size"],
        "block_count": settings["num_hidden_layers"],
        "feed_forward_length": settings["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": settings.get("num_key_value_heads") or heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": float(settings["rms_norm_eps"]),
        "rope.dimension_count": dim,
        "vocab_size": settings["vocab_size"],
    }
    if settings.get("hidden_act", settings.get("hidden_activation")) not in ("silu", "gelu_pytorch_tanh"):
        raise UsageError(f"llama.cpp has no {settings.get('hidden_act')} in a model of this kind")
    return found | _rope(settings, dim) | (_gemma(settings, architecture) if architecture.windows else {})


def head_dim(settings: Mapping[str, Any]) -> int:
    """Return the width of an attention head."""
    return int(settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"])


def _context(settings: Mapping[str, Any], architecture: Architecture) -> int:
    """Return the context; at most the window where every layer has one that llama.cpp would not respect."""
    context, window = int(settings["max_position_embeddings"]), int(settings.get("sliding_window") or 0)
    kinds = settings.get("layer_types")
    windowed = window > 0 and (
        "sliding_attention" in kinds if kinds else settings.get("use_sliding_window", "Mistral" in _class(settings))
    )
    return min(context, window) if windowed and not architecture.windows else context


def _class(settings: Mapping[str, Any]) -> str:
    return str((settings.get("architectures") or [""])[0])


def _rope(settings: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """Return the keys of the rotary embedding, and refuse what cannot be said with them."""
    rope = _rope_of(settings)
    kind = rope.get("rope_type", rope.get("type", "default"))
    found: dict[str, Any] = {"rope.freq_base": float(rope.get("rope_theta") or settings.get("rope_theta") or 10000.0)}
    share = rope.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        found["rope.dimension_count"] = int(dim * share)
    if kind in ("default", "llama3", None):
        return found  # llama3's factors are a tensor
    if kind not in ("linear", "yarn"):
        raise UsageError(f"llama.cpp has no rope scaling of the type {kind!r}")
    found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or settings["max_position_embeddings"]
        found["rope.scaling.original_context_length"] = int(original)
    return found


def _rope_of(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    inner = rope.get("full_attention")
    return inner if isinstance(inner, Mapping) else rope


def _gemma(settings: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    every = WINDOW_EVERY[architecture.name]
    layers = settings["num_hidden_layers"]
    wanted = ["full_attention" if (at + 1) % every == 0 else "sliding_attention" for at in range(layers)]
    found: dict[str, Any] = {"attention.sliding_window": int(settings["sliding_window"])}
    given = settings.get("layer_types") or wanted
    if given != wanted:
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in given]
    if (settings.get("query_pre_attn_scalar") or head_dim(settings)) != head_dim(settings):
        raise UsageError("llama.cpp scales queries by the width of a head; this model's query_pre_attn_scalar differs")
    local = (settings.get("rope_parameters") or {}).get("sliding_attention") or {}
    if local.get("rope_theta"):
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    for key, name in (("attn_logit_softcapping", "attn"), ("final_logit_softcapping", "final")):
        if settings.get(key):
            found[f"{name}_logit_softcapping"] = float(settings[key])
    return found


def prepared(name: str, tensor: Array, settings: Mapping[str, Any], architecture: Architecture) -> Array:
    """Return a tensor as llama.cpp wants it; `name` is that of `transformers`."""
    if architecture.norm and name.endswith("norm.weight"):
        return tensor.astype(np.float32) + np.float32(architecture.norm)
    if architecture.transposed and name.endswith(TRANSPOSED):
        return np.ascontiguousarray(tensor.T)
    if architecture.pairs and ".self_attn.q_proj." in name:
        return _paired(tensor, settings["num_attention_heads"])
    if architecture.pairs and ".self_attn.k_proj." in name:
        return _paired(tensor, settings.get("num_key_value_heads") or settings["num_attention_heads"])
    return tensor


def _paired(tensor: Array, heads: int) -> Array:
    """Move rows so that the two of a rotary pair, half a head apart before, are neighbours."""
    rest = tensor.shape[1:]
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *rest)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))


def rope_factors(settings: Mapping[str, Any]) -> Array | None:
    """Return by what each rotary frequency is divided, where that is of Llama 3's kind: long waves are stretched."""
    rope = _rope_of(settings)
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    base, dim = float(rope.get("rope_theta") or settings.get("rope_theta") or 10000.0), head_dim(settings)
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    waves = 2 * math.pi * base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
