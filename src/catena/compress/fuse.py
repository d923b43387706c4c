"""Fusion: the same numbers from fewer operations. Norms give their weights to the layers after them, and layers that
read one input become one.

    norm weight -> 1            weights of the layers that read it * norm weight
    q, k, v     -> qkv          gate, up -> gate_up        (a Llama becomes a Phi-3, which is that and loads as that)

A low-rank adapter is merged into its base by `train.merge`.
"""

from __future__ import annotations

from typing import Any

from catena.compress.quantize import keep, refuse_small
from catena.core.config import Config
from catena.core.errors import ConfigError, UsageError
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion

SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps"),
    *("num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "rope_parameters", "initializer_range"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""What the configs of Llama and Phi-3 have in common."""


class FuseConfig(Config):
    """What is joined."""

    norms: bool = True
    """Multiply the weights of norms into the linear layers that read them. It takes outliers out of a norm before
    weights are rounded, and leaves it a norm of ones."""
    layers: bool = False
    """Join queries, keys and values, and gate and up; for a model of the Llama architecture, written as a Phi-3."""


@stage("compress.fuse")
def fuse(ctx: Context, cfg: FuseConfig, *, model: ModelVersion) -> ModelVersion:
    """Fold norms into the layers after them, and join layers that read one input; the answers stay the same."""
    refuse_small(model, "fused")
    if not (cfg.norms or cfg.layers):
        raise ConfigError("norms and layers are both off: there is nothing to do")
    import torch

    from catena.models import checkpoint

    loaded, tokenizer = checkpoint.load(ctx.store.checkout(model))
    rows = torch.arange(64).remainder(loaded.config.get_text_config().vocab_size).view(2, 32)
    with torch.no_grad():
        before = loaded(input_ids=rows)[0]
        if cfg.norms:
            ctx.events.metric("folded_norms", fold_norms(loaded, rows))
        if cfg.layers:
            loaded = join_layers(loaded)
        after = loaded(input_ids=rows)[0]
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise UsageError(f"{type(loaded).__name__} does not answer as before when it is fused", hint="Leave it whole.")
    return keep(ctx, loaded, tokenizer, "full", model)


def fold_norms(model: Any, rows: Any) -> int:
    """Fold norms into the linear layers after them, in place, where the model's answers stay; returns how many."""
    from catena.compress import folds
    from catena.compress.blocks import walk

    count = 0
    for block in walk(model, rows):
        for fold in folds.find(block):
            if fold.norm:
                norm: Any = block.module.get_submodule(fold.source)
                scale = (norm.weight.detach() + fold.offset).clone()
                scale[scale.abs() < 1e-6] = 1  # a channel that the norm shuts stays shut
                fold.apply_(block.module, scale)
                count += 1
    return count


def join_layers(model: Any) -> Any:
    """Return a Llama with joined layers: a Phi-3 of the same weights. Raises `UsageError` for any other model."""
    import torch
    from transformers import LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    config = model.config
    plain = type(model) is LlamaForCausalLM and not (config.attention_bias or config.mlp_bias)
    if not plain or config.rope_parameters.get("rope_type") != "default":
        raise UsageError(
            f"the layers of {type(model).__name__} cannot be joined: that is for a Llama without biases and with "
            "plain rotary positions"
        )
    values = {key: getattr(config, key) for key in SHARED}
    new = Phi3Config(**values, original_max_position_embeddings=config.max_position_embeddings, sliding_window=None)
    new.head_dim = config.head_dim
    joined = Phi3ForCausalLM(new)
    state = dict(model.state_dict())
    for number in range(config.num_hidden_layers):
        for parent, parts, name in (
            ("self_attn", ("q_proj", "k_proj", "v_proj"), "qkv_proj"),
            ("mlp", ("gate_proj", "up_proj"), "gate_up_proj"),
        ):
            place = f"model.layers.{number}.{parent}"
            state[f"{place}.{name}.weight"] = torch.cat([state.pop(f"{place}.{part}.weight") for part in parts])
    joined.load_state_dict(state)
    joined.generation_config = model.generation_config
    return joined.eval()
