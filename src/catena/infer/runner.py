"""The runner: chunks in, logits out. The only part of the engine that calls the model.

It learns the shapes of keys and values from one tiny pass when it is made, so that any decoder of `transformers` whose
attention goes through `AttentionInterface` runs without a line of its own; the rest go to `catena.infer.unpaged`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catena.core.errors import DataError
from catena.core.generate import TokenLogprob
from catena.infer.compiled import CompiledStep
from catena.infer.flat import NOTHING, Kinds, flatten, kinds_of
from catena.infer.graphs import GraphStep
from catena.infer.kv import ATTENTION, Batch, Decode, Layout, PagedCache, Prefill
from catena.infer.lora import AdapterBank
from catena.infer.native import NativeStep, native_step
from catena.infer.sampler import report
from catena.infer.scheduler import Chunk
from catena.models.attention_settings import LOCAL_GLOBAL, LocalGlobal
from catena.models.native import MANY, wins_at_many

logger = logging.getLogger(__name__)

WORTH_SHARING = 2048
"""Tokens whose keys and values need not be read again where sequences begin alike: from so many on that is worth it."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a step gave to those that get a token, and to those whose prompt is scored."""

    sampled: tuple[Chunk, ...]
    logits: Tensor
    """`[rows, vocabulary]`: for each sampled chunk that of its last known token, then those of its guesses."""
    scored: tuple[tuple[Chunk, list[TokenLogprob]], ...]
    """Of the prompt's tokens `start + 1 .. end` of each chunk, as far as they exist and are to be told."""
    best: list[int] | None = None
    """The likeliest token of each row, where the step told it: -1 where its logits are no numbers."""


class Runner:
    """A model made ready for batches of chunks. It changes the model's attention for good."""

    paged = True

    def __init__(self, model: Any) -> None:
        self.own_attention = model.config._attn_implementation
        """What the model was loaded with."""
        model.set_attn_implementation(ATTENTION)
        self.model = model.eval()
        self.device = next(model.parameters()).device
        stored = getattr(model.config, LOCAL_GLOBAL, None)
        self.local = LocalGlobal(**stored) if stored else None
        self.adapters = AdapterBank(model)
        self.layout = self._probe()
        layers = model.config.get_text_config().num_hidden_layers
        if len(self.layout.keys) != layers:
            raise DataError(f"{len(self.layout.keys)} of {layers} layers have attention")
        self.cache: PagedCache | None = None
        self.compiled: CompiledStep | None = None
        self.native: NativeStep | None = None
        self.graphs: GraphStep | None = None
        self.kinds = Kinds()
        """What goes the flat way."""

    def allocate(self, blocks: int, block_size: int, *, context: int = 0, compile_step: bool = False) -> None:
        """Make the pools; a sequence has at most `context` tokens, 0 for as many as there is room for.

        With `compile_step`, begin to compile the decode step in the background.
        """
        self.kinds = kinds_of(self.layout, local=self.local is not None)
        # One more, which belongs to nobody, for the rows of a recorded step that no sequence has.
        self.cache = cache = PagedCache(self.layout, blocks + self.kinds.decodes, block_size)
        if self.kinds.decodes:
            self.graphs = GraphStep(self._forward, cache, -(-context // block_size) or blocks, spare=blocks)
        if self.local is None:

            def forward(ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
                return self._forward(ids, positions, _alone(cache, ids.shape[1]), keep)

            self.native = native_step(self.model, cache, forward)
        if compile_step and self.native is not None:
            logger.info("the step is not compiled: this model has one in C, which leaves nothing to gain")
        elif compile_step and self.device.type == "cpu":
            self.compiled = CompiledStep(self.model, self.layout, block_size)

    def free(self) -> None:
        """Give the pools back."""
        self.cache = self.native = self.graphs = None

    def drop(self, sequence_id: str) -> None:
        """Nothing is kept by sequence here: blocks are the scheduler's."""

    def run(self, chunks: Many[Chunk]) -> Output:
        """Put the chunks through the model; afterwards their keys and values are in the pool."""
        assert self.cache is not None
        row = arrange(chunks)
        tokens = self._tokens(row, self.cache.block_size)
        wanted = Wanted.of(row)
        self.adapters.select(row)
        if self.native is not None and self._natively(row, len(tokens[0])):
            return wanted.output(*self.native(*tokens, row, wanted.keep))
        return wanted.output(self._run(row, tokens, wanted.keep, self.cache))

    @torch.inference_mode()
    def _run(self, row: Many[Chunk], tokens: tuple[list[int], ...], keep: list[int], cache: PagedCache) -> Tensor:
        """Return the logits of the tokens in `keep`, by the model's own forward."""
        if self.graphs is not None and self._plain(row) and self.graphs.takes(len(row)):
            logits = self.graphs(row)
            if logits is not None:
                return logits[self._tensor(keep)]
        ids, positions, slots = self._tensor([tokens[0]]), self._tensor([tokens[1]]), self._tensor(tokens[2])
        batch = self._batch(row, slots, cache)
        if self.compiled is not None and self._plain(row) and self.compiled.ready(len(row)):
            return self.compiled(ids, positions, batch)[self._tensor(keep)]
        return self._forward(ids, positions, batch, self._tensor(keep))

    def _natively(self, row: Many[Chunk], tokens: int) -> bool:
        """Whether the step in C takes a row: no adapter has a part in it, and it is no slower at so many tokens."""
        adapted = self.adapters.used and any(chunk.sequence.adapter for chunk in row)
        return not adapted and (tokens < MANY or wins_at_many(self.layout.dtype))

    def _plain(self, row: Many[Chunk]) -> bool:
        """Whether every sequence has one new token, and no adapter changes a layer."""
        return not self.adapters.used and all(is_decode(chunk) for chunk in row)

    def _forward(self, ids: Tensor, positions: Tensor, paged: Batch | Layout, keep: Tensor) -> Tensor:
        """Return logits `[kept, vocabulary]` of the row `[1, tokens]`."""
        out = self.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep, paged=paged)
        logits: Tensor = out.logits[0]
        return logits

    def _probe(self) -> Layout:
        layout = Layout()
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with torch.inference_mode():
            logits = self._forward(ids, torch.arange(2, device=self.device)[None], layout, self._tensor([1]))
        if len(logits) != 1:
            raise DataError("it does not give the logits of chosen positions only")
        return layout

    @staticmethod
    def _tokens(row: Many[Chunk], size: int) -> tuple[list[int], list[int], list[int]]:
        """Return ids and positions of a row's tokens, and the slots of their keys and values."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for chunk in row:
            blocks = chunk.sequence.blocks
            ids += chunk.ids
            positions += range(chunk.start, chunk.stop)
            slots += [blocks[at // size] * size + at % size for at in range(chunk.start, chunk.stop)]
        return ids, positions, slots

    def _batch(self, row: Many[Chunk], slots: Tensor, cache: PagedCache) -> Batch:
        prefills: list[Prefill] = []
        size, start = cache.block_size, 0
        singles = sum(map(is_decode, row))
        flat = flatten(row, singles, size, self.kinds, self.device) if self.kinds != Kinds() else NOTHING
        for chunk in row:
            end = start + chunk.stop - chunk.start
            if not is_decode(chunk) and flat.prefills is None:
                used = chunk.sequence.blocks[: -(-chunk.stop // size)]
                prefills.append(Prefill(start, end, chunk.start, self._tensor([used])))
            start = end
        groups = self._groups(row, start, size) if flat.singles is None else []
        return Batch(cache, slots, tuple(prefills), tuple(groups), self.local, flat)

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
            result.append(self._group(group, start, size))
            start += len(group)
        return result

    def _group(self, group: Many[Chunk], start: int, size: int) -> Decode:
        longest = max(chunk.end for chunk in group)
        places = [list(range(-(-chunk.end // size))) for chunk in group]
        width = -(-longest // size)
        if self.local is not None:
            # Blocks that only hold what nobody sees any more are left where they are: a step costs the window.
            first, last = -(-self.local.memory // size), -(-self.local.window // size) + 1
            places = [one if len(one) <= first + last else one[:first] + one[-last:] for one in places]
            width = min(width, first + last)
        tables = [
            ([chunk.sequence.blocks[place] for place in one] + [0] * width)[:width]
            for chunk, one in zip(group, places, strict=True)
        ]
        positions = None
        if width * size < longest:
            beyond = [longest // size + 1]  # further than any token: seen by none
            padded = self._tensor([(one + beyond * width)[:width] for one in places])
            positions = (padded[:, :, None] * size + self._tensor(range(size))).flatten(1)
        equal = all(chunk.end == longest for chunk in group)
        lengths = self._tensor([[chunk.end] for chunk in group])
        shared = common_blocks(tables) if self.local is None else 0
        shared = shared if shared * size * (len(group) - 1) >= WORTH_SHARING else 0
        return Decode(start, start + len(group), self._tensor(tables), lengths, longest, equal, positions, shared)

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _alone(cache: PagedCache, tokens: int) -> Batch:
    """Return the batch of one sequence in the first blocks."""
    blocks = torch.arange(-(-tokens // cache.block_size))[None]
    return Batch(cache, torch.arange(tokens), (Prefill(0, tokens, 0, blocks),), ())


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose logits are needed, by position in a step's row."""

    sampled: tuple[Chunk, ...]
    scored: tuple[Chunk, ...]
    keep: list[int]
    """Positions of those to sample from first, then of those to score."""

    @staticmethod
    def of(row: Many[Chunk]) -> Wanted:
        """Read it off the chunks, in the order of the row."""
        sampled = tuple(chunk for chunk in row if chunk.complete and not chunk.sequence.score)
        scored = tuple(chunk for chunk in row if chunk.sequence.wants_prompt and _targets(chunk))
        starts: dict[int, int] = {}
        at = 0
        for chunk in row:
            starts[id(chunk)] = at
            at += chunk.stop - chunk.start
        keep: list[int] = []
        for chunk in sampled:
            first = starts[id(chunk)] + chunk.count - 1
            keep += range(first, first + 1 + len(chunk.draft))
        for chunk in scored:
            first = starts[id(chunk)] + _first_target(chunk) - 1 - chunk.start
            keep += range(first, first + len(_targets(chunk)))
        return Wanted(sampled, scored, keep)

    def output(self, logits: Tensor, best: list[int] | None = None) -> Output:
        """Sort logits `[keep, vocabulary]`, and the likeliest token of each, to their chunks."""
        if not self.scored:
            return Output(self.sampled, logits, (), best)
        rows = sum(1 + len(chunk.draft) for chunk in self.sampled)
        targets = [token for chunk in self.scored for token in _targets(chunk)]
        tops = [chunk.sequence.params.prompt_logprobs or 0 for chunk in self.scored for _ in _targets(chunk)]
        entries = iter(report(logits[rows:], targets, tops))
        scored = tuple((chunk, [next(entries) for _ in _targets(chunk)]) for chunk in self.scored)
        return Output(self.sampled, logits[:rows], scored, best and best[:rows])


def _targets(chunk: Chunk) -> list[int]:
    """Return the tokens of the prompt that the chunk's positions foretell, as far as they are to be told."""
    sequence = chunk.sequence
    return sequence.tokens[_first_target(chunk) : min(chunk.end + 1, sequence.prompt_length)]


def _first_target(chunk: Chunk) -> int:
    return max(chunk.start + 1, chunk.sequence.params.prompt_logprobs_from)


def is_decode(chunk: Chunk) -> bool:
    """True for one new token behind a past: these are batched; everything else is a prefill."""
    return chunk.stop - chunk.start == 1 and chunk.start > 0


def common_blocks(tables: Many[Many[int]]) -> int:
    """Return how many blocks at their beginning all tables have in common; the last one of each is its own."""
    count = 0
    for column in zip(*tables, strict=True):
        if any(block != column[0] for block in column):
            break
        count += 1
    return min(count, len(tables[0]) - 1)


def bucket(chunk: Chunk, block_size: int) -> int:
    """Return the power of two that the chunk's number of blocks fits into, as an exponent."""
    return (-(-chunk.end // block_size) - 1).bit_length()


def arrange(chunks: Many[Chunk]) -> list[Chunk]:
    """Order a step's row: prefills, then single tokens by length, so that every group is one slice."""
    return sorted(chunks, key=lambda chunk: (is_decode(chunk), chunk.end if is_decode(chunk) else 0))
