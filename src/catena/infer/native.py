"""A whole step of a decoder of the Llama family in one call of C (`models/decoder.c`), in place of the model's forward.

It is taken for float32 and bfloat16 models of `FAMILY` (linear layers of the latter may be int8 or int4), and only
after its logits of a small trial were those of the model's own forward, up to rounding. Everything else, and any step
in which an adapter takes part, goes the general way. Both read and write the same pools, so each step is free to
choose.

A row's numbers do not depend on which rows are beside it: to the last bit, an answer is the same in any batch of steps
that go this way.
"""

from __future__ import annotations

import ctypes
import logging
from array import array
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor, nn

from catena.infer.kv import PagedCache
from catena.infer.linears import PanelLinear
from catena.infer.scheduler import Chunk
from catena.models import native
from catena.models.packed import PackedLinear

logger = logging.getLogger(__name__)

FAMILY = ("llama", "mistral", "phi3", "qwen2", "qwen3")
"""Model types of `transformers` that are made of those parts and no others."""
LARGEST_DIM = 256
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of a trial's logits (root mean square), as a share of their spread: rounding makes less than a
millionth in float32, and 0.01-0.04 in bfloat16."""
TRIAL = 101
"""Tokens of it: more than a block of keys, and no whole number of blocks."""
MOVING = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies depend on how long a sequence is."""
RUN = 4
"""Numbers of a run."""


class NativeStep:
    """A decoder's weights as C reads them, and its pools."""

    def __init__(self, model: Any, cache: PagedCache) -> None:
        """Raises `ValueError` for a model that is made of other parts."""
        config = model.config
        _check(config)
        self.block_size = cache.block_size
        embedding, self._rotary = _embedding(model), model.model.rotary_emb
        if any(pool.data.dtype != embedding.dtype for pools in (cache.keys, cache.values) for pool in pools.values()):
            raise ValueError(f"keys and values are not {embedding.dtype}")
        self._kept: list[Any] = []
        """What C has the addresses of."""
        layers = [self._layer(one, at, config, cache) for at, one in enumerate(model.model.layers)]
        layer_array = (native.LayerRecord * len(layers))(*layers)
        attention = model.model.layers[0].self_attn
        if 2 * self._rotary.inv_freq.numel() != attention.head_dim:
            raise ValueError("its positions turn a part of each head")
        self._vocabulary = model.lm_head.out_features
        self._record = native.ModelRecord(
            layers=ctypes.addressof(layer_array),
            count=len(layers),
            width=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            dim=attention.head_dim,
            inner=config.intermediate_size,
            epsilon=config.rms_norm_eps,
            scaling=attention.scaling,
            norm=self._numbers(model.model.norm.weight),
            embedding=embedding.data_ptr(),
            vocabulary=len(embedding),
            per=4 // embedding.itemsize,
            head=self._weight(model.lm_head),
        )
        self._kept += [layer_array, embedding]

    def __call__(
        self, ids: list[int], positions: list[int], slots: list[int], row: Many[Chunk], keep: list[int]
    ) -> tuple[Tensor, list[int]]:
        """Bring a row through the model; keys and values go to the pools.

        Returns float32 logits `[kept, vocabulary]`, and of each the likeliest token, or -1 where they are no numbers.
        """
        size = self.block_size
        blocks = array("i")
        starts = []
        for chunk in row:
            starts.append(len(blocks))
            blocks.extend(chunk.sequence.blocks[: -(-chunk.stop // size)])
        runs, first, table = array("q"), 0, blocks.buffer_info()[0]
        for chunk, start in zip(row, starts, strict=True):
            count = chunk.stop - chunk.start
            runs.extend((first, count, chunk.start, table + start * blocks.itemsize))
            first += count
        found = self.run(ids, positions, slots, runs, keep)
        del blocks  # until here C had its address
        return found

    def run(
        self, ids: list[int], positions: list[int], slots: list[int], runs: array[int], keep: list[int]
    ) -> tuple[Tensor, list[int]]:
        """The same, with the runs as C reads them: first row, rows, first position, address of the blocks."""
        rotary, record = self._rotary, self._record
        if rotary.rope_type in MOVING:  # its call changes them
            rotary(torch.empty(0), torch.tensor([positions]))
        frequencies = rotary.inv_freq.float()
        record.frequencies, record.turn_scaling = frequencies.data_ptr(), rotary.attention_scaling
        # No tensors: each operator of torch has to be read from memory again after all those weights.
        parts = [array("q", one) for one in (ids, positions, slots)]
        kept, best = array("q", keep), array("q", bytes(8 * len(keep)))
        logits = torch.empty(len(keep), self._vocabulary)
        addresses = [one.buffer_info()[0] for one in (*parts, runs, kept)]
        step = native.StepRecord(*addresses, logits.data_ptr(), best.buffer_info()[0])
        step.rows, step.count, step.kept, step.block_size = len(ids), len(runs) // RUN, len(keep), self.block_size
        step.threads = torch.get_num_threads()
        native.library().native_step(ctypes.byref(record), ctypes.byref(step))
        return logits, best.tolist()

    def _layer(self, layer: Any, at: int, config: Any, cache: PagedCache) -> native.LayerRecord:
        attention = layer.self_attn
        records = self._records(layer, config)
        for together in (("query", "key", "value"), ("gate", "up")):
            kinds = {(one.kind, one.planes, one.group) for one in (records[name] for name in together)}
            if len(kinds) > 1:
                raise ValueError("layers that read the same rows differ in format")
        norms = {"before": layer.input_layernorm, "after": layer.post_attention_layernorm}
        norms |= {name: getattr(attention, short, None) for name, short in NORMS.items()}
        pools = cache.keys[at], cache.values[at]
        self._kept += pools
        for pool in pools:
            native.library().native_large_pages(pool.data.data_ptr(), pool.data.nbytes)
        return native.LayerRecord(
            **records,
            **{name: 0 if one is None else self._numbers(one.weight) for name, one in norms.items()},
            keys=pools[0].data.data_ptr(),
            values=pools[1].data.data_ptr(),
            window=_window(config, attention),
        )

    def _records(self, layer: Any, config: Any) -> dict[str, native.Record]:
        attention, mlp = layer.self_attn, layer.mlp
        if config.model_type == "phi3":  # what reads the same rows is one layer there
            heads = [
                attention.head_dim * config.num_attention_heads,
                *2 * [attention.head_dim * config.num_key_value_heads],
            ]
            first = native.cut(self._weight(attention.qkv_proj), heads)
            second = native.cut(self._weight(mlp.gate_up_proj), 2 * [config.intermediate_size])
        else:
            first = [self._weight(one) for one in (attention.q_proj, attention.k_proj, attention.v_proj)]
            second = [self._weight(one) for one in (mlp.gate_proj, mlp.up_proj)]
        query, key, value = first
        gate, up = second
        out, down = self._weight(attention.o_proj), self._weight(mlp.down_proj)
        return {"query": query, "key": key, "value": value, "out": out, "gate": gate, "up": up, "down": down}

    def _weight(self, layer: nn.Module) -> native.Record:
        panels = getattr(layer, "panels", None)
        if not isinstance(layer, PanelLinear | PackedLinear) or panels is None:
            raise ValueError(f"a layer is {type(layer).__name__}, not in panels")
        self._kept.append(panels)
        record = native.Record.from_buffer_copy(panels.record)
        if layer.bias is not None:
            record.bias = self._numbers(layer.bias)
        return record

    def _numbers(self, numbers: Tensor) -> int:
        """Keep float32 numbers, and return where they lie."""
        kept = numbers.detach().float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


NORMS = {"query_norm": "q_norm", "key_norm": "k_norm"}


def _embedding(model: Any) -> Tensor:
    embedding = model.model.embed_tokens
    if type(embedding) is not nn.Embedding or embedding.weight.dtype not in native.FLOATS:
        raise ValueError("its embeddings are no plain ones of float32 or bfloat16")
    return embedding.weight.detach().contiguous()


def _check(config: Any) -> None:
    """Raise `ValueError` for a model of other parts, as far as its config says it."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type not in FAMILY:
        raise ValueError(f"{config.model_type} is not among {', '.join(FAMILY)}")
    if config.hidden_act != "silu":
        raise ValueError(f"its activation is {config.hidden_act}")
    if dim % 32 or dim > LARGEST_DIM:
        raise ValueError(f"its heads have {dim} numbers")


def _window(config: Any, attention: Any) -> int:
    window = getattr(attention, "sliding_window", None)
    return int(window or (config.sliding_window if config.model_type in ("mistral", "phi3") else 0) or 0)


def native_step(model: Any, cache: PagedCache, forward: Any) -> NativeStep | None:
    """Return the step in C of a model, where it can have one and agrees with its own `forward` of ids and positions."""
    pool = next(iter(cache.keys.values())).data
    if pool.device.type != "cpu" or pool.dtype not in native.FLOATS or native.library() is None:
        return None
    try:
        step = NativeStep(model, cache)
    except (ValueError, AttributeError) as error:
        logger.info("steps go through the model's own forward: %s", error)
        return None
    size, count = cache.block_size, min(TRIAL, len(pool))
    ids, every = [at * 7919 % model.get_input_embeddings().weight.shape[0] for at in range(count)], list(range(count))
    keep = [0, count // 2, count - 1]
    blocks = array("i", range(-(-count // size)))
    with torch.inference_mode():
        expected = forward(torch.tensor([ids]), torch.tensor([every]), torch.tensor(keep)).float()
        found, _ = step.run(ids, every, every, array("q", (0, count, 0, blocks.buffer_info()[0])), keep)
    share = ((found - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6)).item()
    if not share < TOLERANCE[pool.dtype]:
        logger.warning("steps go through the model's own forward: the native step differs by %.2g", share)
        return None
    return step
