"""The runner: chunks in, logits out. The only part of the engine that calls the model.

It learns the shapes of keys and values from one tiny pass when it is made, so that any decoder of `transformers` whose
attention goes through `AttentionInterface` runs without a line of its own; the rest are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catena.core.errors import DataError
from catena.infer.kv import ATTENTION, Batch, Decode, Layout, PagedCache, Prefill
from catena.infer.sampler import logprobs_of
from catena.infer.scheduler import Chunk


@dataclass(frozen=True, slots=True)
class Output:
    """What a step gave: logits `[sequences, vocabulary]` of those that get a token, and scores of prompts."""

    sampled: tuple[Chunk, ...]
    logits: Tensor
    scored: tuple[tuple[Chunk, list[float]], ...]
    """Log-probabilities of the tokens `start + 1 .. end + 1` of each chunk, as far as they exist."""


class Runner:
    """A model made ready for batches of chunks. It changes the model's attention for good."""

    def __init__(self, model: Any) -> None:
        name = type(model).__name__
        if not getattr(model, "_supports_attention_backend", False):
            raise DataError(f"the native engine cannot run a {name}: its attention cannot be replaced")
        model.set_attn_implementation(ATTENTION)
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.layout = self._probe()
        layers = model.config.get_text_config().num_hidden_layers
        if len(self.layout.keys) != layers:
            raise DataError(
                f"the native engine cannot run a {name}: {len(self.layout.keys)} of {layers} layers have attention"
            )
        self.cache: PagedCache | None = None

    def allocate(self, blocks: int, block_size: int) -> None:
        """Make the pools."""
        self.cache = PagedCache(self.layout, blocks, block_size)

    @torch.inference_mode()
    def run(self, chunks: Many[Chunk]) -> Output:
        """Put the chunks through the model; afterwards their keys and values are in the pool."""
        assert self.cache is not None
        row = arrange(chunks)
        batch, ids, positions = self._batch(row, self.cache)
        keep, sampled, scored = _wanted(row)
        logits = self._forward(ids, positions, batch, self._tensor(keep))
        return Output(
            sampled=sampled, logits=logits[: len(sampled)], scored=self._scores(scored, logits[len(sampled) :])
        )

    def _forward(self, ids: Tensor, positions: Tensor, paged: Batch | Layout, keep: Tensor) -> Tensor:
        """Return logits `[kept, vocabulary]` of the row `[1, tokens]`."""
        out = self.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep, paged=paged)
        logits: Tensor = out.logits[0]
        return logits

    def _probe(self) -> Layout:
        layout = Layout()
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with torch.inference_mode():
            self._forward(ids, torch.arange(2, device=self.device)[None], layout, self._tensor([1]))
        return layout

    def _batch(self, row: Many[Chunk], cache: PagedCache) -> tuple[Batch, Tensor, Tensor]:
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        prefills: list[Prefill] = []
        size = cache.block_size
        for chunk in row:
            start = len(ids)
            sequence = chunk.sequence
            ids += sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            slots += [sequence.blocks[at // size] * size + at % size for at in range(chunk.start, chunk.end)]
            if chunk.count > 1 or chunk.start == 0:
                used = sequence.blocks[: -(-chunk.end // size)]
                prefills.append(Prefill(start, len(ids), chunk.start, self._tensor([used])))
        batch = Batch(cache, self._tensor(slots), tuple(prefills), tuple(self._groups(row, len(ids), size)))
        return batch, self._tensor([ids]), self._tensor([positions])

    def _groups(self, row: Many[Chunk], tokens: int, size: int) -> list[Decode]:
        """Cut the decoding end of the row where the number of blocks passes a power of two."""
        decoding = [chunk for chunk in row if is_decode(chunk)]
        groups: list[list[Chunk]] = []
        for chunk in decoding:
            if groups and bucket(groups[-1][-1], size) == bucket(chunk, size):
                groups[-1].append(chunk)
            else:
                groups.append([chunk])
        result: list[Decode] = []
        start = tokens - len(decoding)
        for group in groups:
            longest = max(chunk.end for chunk in group)
            width = -(-longest // size)
            tables = [(chunk.sequence.blocks + [0] * width)[:width] for chunk in group]
            lengths = [[chunk.end] for chunk in group]
            equal = all(chunk.end == longest for chunk in group)
            result.append(
                Decode(start, start + len(group), self._tensor(tables), self._tensor(lengths), longest, equal)
            )
            start += len(group)
        return result

    def _scores(self, chunks: Many[Chunk], logits: Tensor) -> tuple[tuple[Chunk, list[float]], ...]:
        """Read off the probability of each chunk's next tokens."""
        result = []
        at = 0
        for chunk in chunks:
            targets = chunk.sequence.tokens[chunk.start + 1 : chunk.end + 1]
            rows = logits[at : at + len(targets)]
            result.append((chunk, logprobs_of(rows, self._tensor(targets)).tolist() if targets else []))
            at += len(targets)
        return tuple(result)

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def is_decode(chunk: Chunk) -> bool:
    """True for one new token behind a past: these are batched; everything else is a prefill."""
    return chunk.count == 1 and chunk.start > 0


def bucket(chunk: Chunk, block_size: int) -> int:
    """Return the power of two that the chunk's number of blocks fits into, as an exponent."""
    return (-(-chunk.end // block_size) - 1).bit_length()


def arrange(chunks: Many[Chunk]) -> list[Chunk]:
    """Order a step's row: prefills, then single tokens by length, so that every group is one slice."""
    return sorted(chunks, key=lambda chunk: (is_decode(chunk), chunk.end if is_decode(chunk) else 0))


def _wanted(row: Many[Chunk]) -> tuple[list[int], tuple[Chunk, ...], tuple[Chunk, ...]]:
    """Return the positions in the row whose logits are needed, those to sample from first."""
    last: list[int] = []
    sampled: list[Chunk] = []
    every: list[int] = []
    scored: list[Chunk] = []
    at = 0
    for chunk in row:
        if chunk.sequence.score:
            scored.append(chunk)
            # The last token of a prompt has no successor to be scored.
            every += range(at, at + chunk.count - chunk.complete)
        elif chunk.complete:
            sampled.append(chunk)
            last.append(at + chunk.count - 1)
        at += chunk.count
    return last + every, tuple(sampled), tuple(scored)
