"""The runner for models that cannot be paged: each sequence keeps a cache of `transformers`' own, and runs by itself.

It takes the place of `runner.Runner` for decoders whose attention cannot be replaced, or that remember in other ways
(recurrent and hybrid layers). All that the engine does works the same, only slower: sequences are not batched, prompts
are not shared, and no token is guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many
from typing import Any

import torch

from catena.core.errors import DataError
from catena.infer.kv import Layout
from catena.infer.lora import AdapterBank
from catena.infer.runner import Output, Runner, Wanted
from catena.infer.scheduler import Chunk

logger = logging.getLogger(__name__)


class UnpagedRunner:
    """One forward call for each chunk, with the cache that the model makes for itself."""

    paged = False

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.own_attention = model.config._attn_implementation
        self.device = next(model.parameters()).device
        self.layout = _layout(model)
        self.adapters = AdapterBank(model)
        """Always empty."""
        self._caches: dict[str, tuple[Any, int]] = {}
        """Sequence to its cache and the number of tokens in it."""

    def allocate(self, blocks: int, block_size: int, *, compile_step: bool = False) -> None:
        """Nothing to make: blocks only count here, so that the memory of all caches together stays bounded."""

    def free(self) -> None:
        """Drop all caches."""
        self._caches.clear()

    def drop(self, sequence_id: str) -> None:
        """Forget a sequence that left, or that was pushed out."""
        self._caches.pop(sequence_id, None)

    @torch.inference_mode()
    def run(self, chunks: Many[Chunk]) -> Output:
        """Put the chunks through the model, one after the other."""
        rows = [self._run(chunk) for chunk in chunks]
        wanted = Wanted.of(chunks)
        return wanted.output(torch.cat(rows)[torch.tensor(wanted.keep, dtype=torch.long, device=self.device)])

    def _run(self, chunk: Chunk) -> torch.Tensor:
        """Return the logits `[tokens, vocabulary]` of every token of a chunk."""
        cache, held = self._caches.get(chunk.sequence.id, (None, 0))
        if held != chunk.start:
            assert chunk.start == 0
            cache = None
        ids = torch.tensor([chunk.ids], device=self.device)
        positions = torch.arange(chunk.start, chunk.end, device=self.device)
        out = self.model(
            input_ids=ids,
            attention_mask=torch.ones(1, chunk.end, dtype=torch.long, device=self.device),
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
        )
        self._caches[chunk.sequence.id] = (out.past_key_values, chunk.end)
        logits: torch.Tensor = out.logits[0]
        return logits


def runner_for(model: Any) -> Runner | UnpagedRunner:
    """Return the paged runner where the model's attention allows it, else the other one, and say why."""
    before = model.config._attn_implementation
    try:
        if not getattr(model, "_supports_attention_backend", False):
            raise DataError("its attention cannot be replaced")
        return Runner(model)
    except (DataError, TypeError, AttributeError, KeyError) as error:
        name = type(model).__name__
        logger.warning("%s runs one sequence at a time, which is slow: the cache cannot be paged (%s)", name, error)
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
        return UnpagedRunner(model)


def _layout(model: Any) -> Layout:
    """Estimate what a token costs: full attention in every layer."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shapes = dict.fromkeys(range(config.num_hidden_layers), (int(heads), int(dim)))
    parameter = next(model.parameters())
    return Layout(shapes, dict(shapes), parameter.dtype, parameter.device)
