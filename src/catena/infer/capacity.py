"""How much the engine takes on at once: its config, and what follows from it for one model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError, UsageError


class EngineConfig(Config):
    """How much the engine takes on at once."""

    max_running: int = Field(default=64, ge=1)
    """Most sequences in one step."""
    max_waiting: int = Field(default=256, ge=1)
    """Most submitted requests in the queue; the next is refused at once."""
    token_budget: int = Field(default=2048, ge=1)
    """Most tokens in one step; longer prompts are cut into chunks."""
    device: str = "auto"
    """Where to compute: `cpu`, `cuda`, `cuda:1`; `auto` is the first GPU, else the processor."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What a model folder is computed with. `auto`: float32; bfloat16 for weights that are stored so, where a short
    measurement finds this machine fast at it. Kernels for int8 and int4 weights need bfloat16."""
    activations: Literal["auto", "int8"] = "auto"
    """`int8`: inputs of int8 and int4 layers are rounded to 8 bits, as in llama.cpp: faster where many rows meet them.
    Else they have 16, or what the model says (w8a8). Only where those layers have kernels of our own."""
    compile_step: bool = False
    """Compile the decode step in the background (minutes of a processor): a little faster, other in the last bits."""
    ahead: bool = True
    """On a GPU, launch the next step before the tokens of the last one are read."""
    block_size: int = Field(default=32, ge=1)
    """Tokens of one block of the key-value cache."""
    cache_bytes: int = Field(default=1 << 30, ge=1)
    """Memory for keys and values. Where it holds less than the model's context, the context is cut to it."""
    cache_format: Literal["auto", "int8"] = "auto"
    """Number format of keys and values: the model's, or int8 with a scale for each token and head."""
    score_bytes: int = Field(default=128 << 20, ge=1)
    """Memory for the logits of prompts that are scored."""
    prefix_cache: bool = True
    """Keep the keys and values of what was read, for prompts that begin alike."""
    speculation: Literal["none", "ngram", "draft"] = "none"
    """Who guesses the next tokens: `ngram` looks them up in the text so far, `draft` asks a small model."""
    draft_model: str = ""
    """Folder of the small model; it must have the same tokenizer."""
    draft_tokens: int = Field(default=4, ge=1, le=32)
    """Tokens to guess for one step."""


def blocks_and_context(config: EngineConfig, context: int, bytes_per_token: int) -> tuple[int, int]:
    """Return the number of blocks, and the context that they can hold."""
    size = config.block_size
    affordable = config.cache_bytes // (bytes_per_token * size)
    if affordable < 1:
        raise UsageError(
            f"cache_bytes is {config.cache_bytes}; one block of {size} tokens takes {bytes_per_token * size} bytes"
        )
    blocks = min(affordable, config.max_running * -(-context // size))
    return blocks, min(context, blocks * size)


def context_of(config: Any) -> int:
    """Return the longest sequence, in tokens, that the model was made for."""
    context = getattr(config, "max_position_embeddings", None)
    if not context:
        raise DataError("the model's config.json does not say how long its context is (max_position_embeddings)")
    return int(context)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer: those of the model's generation config, else the tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends) if isinstance(ends, list | tuple) else frozenset([ends])
