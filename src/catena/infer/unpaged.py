"""The runner for models that cannot be paged: each sequence keeps a cache of `transformers`' own.

It takes the place of `runner.Runner` for decoders whose attention cannot be replaced, or that remember in other ways
(recurrent and hybrid layers). All that the engine does works the same, only slower: prompts are read one by one and not
shared, and no token is guessed. Sequences that decode share a pass, as in a padded batch of `generate`:

    prefill A | prefill B | decode C, D, E: one batch, whose caches stay joined as long as the same ones decode

Whether a model takes such batches is tried when it is opened; one that does not runs one sequence at a time. Tried is
too whether it goes on with a prompt that was cut: one that does not reads it from its first token again.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence as Many
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from catena.core.errors import DataError, UsageError
from catena.infer.joined import join, row_of
from catena.infer.kv import Layout
from catena.infer.lora import AdapterBank
from catena.infer.runner import Output, Runner, Wanted, is_decode
from catena.infer.scheduler import Chunk

logger = logging.getLogger(__name__)
USUAL = "past_key_values"
"""What most models call the cache."""
TRIAL = (3, 7)
"""Tokens of the prompts that batches are tried with."""
TOLERANCE = {torch.float32: 1e-3}
LOOSE = 0.05
"""Largest difference of a trial's logits (root mean square), as a share of their spread."""
FAR = 4.0
"""So many times that is no rounding any more."""


@dataclass(slots=True)
class Joined:
    """The sequences of the batch that decodes, their one cache, and how many tokens of each are in it."""

    ids: tuple[str, ...]
    cache: Any
    held: list[int]


class UnpagedRunner:
    """One forward call for each prompt, and one for all that decode, with caches that the model makes for itself."""

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
        self._joined: Joined | None = None
        self._cache_name = "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else USUAL
        if not self._holds(partial(self._in_pieces, sum(TRIAL) - 1), FAR):
            raise UsageError(
                f"{type(model).__name__} does not go on from its cache as from the whole text",
                hint="It cannot be served here; another engine may know it (--backend).",
            )
        self.batched = self._holds(self._in_a_batch)
        self.resumes = self._holds(partial(self._in_pieces, TRIAL[1]))

    def allocate(self, blocks: int, block_size: int, *, context: int = 0, compile_step: bool = False) -> None:
        """Nothing to make: blocks only count here, so that the memory of all caches together stays bounded."""

    def free(self) -> None:
        """Drop all caches."""
        self._caches.clear()
        self._joined = None

    def drop(self, sequence_id: str) -> None:
        """Forget a sequence that left, or that was pushed out."""
        self._part()
        self._caches.pop(sequence_id, None)

    @torch.inference_mode()
    def run(self, chunks: Many[Chunk]) -> Output:
        """Put the chunks through the model: those that decode together, the others one after the other."""
        together = [chunk for chunk in chunks if self.batched and is_decode(chunk)]
        ids = tuple(chunk.sequence.id for chunk in together)
        if self._joined is not None and self._joined.ids != ids:
            self._part()
        found = self._decode(together) if len(together) > 1 else {}
        rows = [found[id(chunk)] if id(chunk) in found else self._run(chunk) for chunk in chunks]
        wanted = Wanted.of(chunks)
        return wanted.output(torch.cat(rows)[torch.tensor(wanted.keep, dtype=torch.long, device=self.device)])

    def _run(self, chunk: Chunk) -> Tensor:
        """Return the logits `[tokens, vocabulary]` of every token of a chunk."""
        cache, held = self._caches.get(chunk.sequence.id, (None, 0))
        if held != chunk.start:
            assert chunk.start == 0
            cache = None
        if self.resumes or is_decode(chunk) or not chunk.start:
            logits, cache = self._forward([chunk.ids], [chunk.start], cache)
        else:
            logits, cache = self._forward([chunk.sequence.tokens[: chunk.end]], [0], None)
        self._caches[chunk.sequence.id] = (cache, chunk.end)
        return logits[0, -len(chunk.ids) :]

    def _decode(self, chunks: Many[Chunk]) -> dict[int, Tensor]:
        """Return the logits `[1, vocabulary]` of each chunk's one token, by the chunk's identity."""
        if self._joined is None:
            ids = tuple(chunk.sequence.id for chunk in chunks)
            kept = [self._caches.pop(one) for one in ids]
            self._joined = Joined(ids, join([cache for cache, _ in kept]), [held for _, held in kept])
        batch = self._joined
        assert batch.held == [chunk.start for chunk in chunks]
        logits, batch.cache = self._forward([chunk.ids for chunk in chunks], batch.held, batch.cache)
        batch.held = [held + 1 for held in batch.held]
        return {id(chunk): logits[row] for row, chunk in enumerate(chunks)}

    def _part(self) -> None:
        """Give each sequence of the batch its own cache back."""
        batch, self._joined = self._joined, None
        if batch is not None:
            for row, (one, held) in enumerate(zip(batch.ids, batch.held, strict=True)):
                self._caches[one] = row_of(batch.cache, row, held), held

    def _forward(self, ids: list[list[int]], held: list[int], cache: Any) -> tuple[Tensor, Any]:
        """Return logits `[rows, tokens, vocabulary]` and the cache, of rows that have as many new tokens each."""
        # Models that remember by a state alone have no past to be masked.
        longest, new = max(held) if self._cache_name == USUAL else 0, len(ids[0])
        seen = torch.arange(longest + new, device=self.device)[None, :]
        behind = torch.tensor(held, device=self.device)[:, None]
        out = self.model(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=(seen >= longest - behind).long(),
            position_ids=behind + torch.arange(new, device=self.device)[None, :],
            **{self._cache_name: cache},
            use_cache=True,
        )
        return out.logits, getattr(out, self._cache_name)

    @torch.inference_mode()
    def _holds(self, trial: Callable[[], tuple[Tensor, Tensor]], times: float = 1.0) -> bool:
        """Whether the two logits of a trial are the same, up to rounding (so many times what is usual)."""
        try:
            wanted, found = trial()
        except Exception as error:  # noqa: BLE001  whatever a model of any kind raises: it does not take this then
            logger.debug("%s: %s", type(self.model).__name__, error)
            return False
        apart = (found - wanted).float().square().mean().sqrt() / wanted.float().std().clamp(min=1e-9)
        return bool(apart < times * TOLERANCE.get(found.dtype, LOOSE))

    def _in_a_batch(self) -> tuple[Tensor, Tensor]:
        """Two tokens of two sequences, each by itself, and at first both at once, then the shorter one alone."""
        alone, caches = [], []
        for length in TRIAL:
            _, cache = self._forward([list(range(length))], [0], None)
            caches.append(row_of(cache, 0, length))
            first, cache = self._forward([[1]], [length], cache)
            alone += [first, self._forward([[2]], [length + 1], cache)[0]]
        first, cache = self._forward([[1], [1]], list(TRIAL), join(caches))
        after = [self._forward([[2]], [held + 1], row_of(cache, row, held + 1))[0] for row, held in enumerate(TRIAL)]
        return torch.cat(alone), torch.cat([first[:1], after[0], first[1:], after[1]])

    def _in_pieces(self, cut: int) -> tuple[Tensor, Tensor]:
        """A prompt read whole, and in two pieces."""
        prompt = list(range(sum(TRIAL)))
        _, cache = self._forward([prompt[:cut]], [0], None)
        return self._forward([prompt], [0], None)[0][:, cut:], self._forward([prompt[cut:]], [cut], cache)[0]


def runner_for(model: Any) -> Runner | UnpagedRunner:
    """Return the paged runner where the model's attention allows it, else the other one, and say why."""
    before = model.config._attn_implementation
    try:
        if not getattr(model, "_supports_attention_backend", False):
            raise DataError("its attention cannot be replaced")
        return Runner(model)
    except (DataError, TypeError, AttributeError, KeyError) as error:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
        runner = UnpagedRunner(model)
        how = "in padded batches, and reads prompts one by one" if runner.batched else "one sequence at a time"
        name = type(model).__name__
        logger.warning("%s runs %s, which is slow: the cache cannot be paged (%s)", name, how, error)
        return runner


def _layout(model: Any) -> Layout:
    """Estimate what a token costs: full attention in every layer."""
    config = model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or queries
    dim = getattr(config, "head_dim", None) or max(1, config.hidden_size // queries)
    shapes = dict.fromkeys(range(config.num_hidden_layers), (int(heads), int(dim)))
    parameter = next(model.parameters())
    return Layout(shapes, dict(shapes), parameter.dtype, parameter.device)
