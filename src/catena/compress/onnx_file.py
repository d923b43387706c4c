"""Writing an ONNX file, and checking it at once: onnxruntime must give the logits that the model gives.

    inputs    input_ids, attention_mask [batch, tokens]           int64; padding at the end, its mask 0
    outputs   logits [batch, tokens, vocabulary], or [batch, labels] of a classifier of texts

With `cache` (decoders) what was read before comes in and goes out, so that each step reads new tokens only:

    inputs    position_ids [batch, tokens]; attention_mask [batch, past + tokens];
              past_key_values.N.key, .value [batch, heads, past, dim], with past 0 at first
    outputs   present.N.key, .value [batch, heads, past + tokens, dim]
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from catena.core.errors import DataError, UsageError
from catena.core.registry import require
from catena.models.attention_settings import LOCAL_GLOBAL
from catena.models.checkpoint import load_model, read_config
from catena.models.heads import head_of

FILE = "model.onnx"
LARGEST = 1 << 30
"""Bytes of weights from which on they lie in a file of their own: one of Protocol Buffers may have 2 GiB."""
TOLERANCE = 1e-3
BESIDE = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"),
)
TRIED = ((2, 7, 5), (1, 3, 9))
"""Sizes of what is tried: batch, tokens, tokens before. The first is traced, the second is another size on purpose."""


class Whole(torch.nn.Module):
    """Reads all tokens at once."""

    def __init__(self, model: Any, decoder: bool) -> None:
        super().__init__()
        self.model = model
        self.more = {"use_cache": False} if decoder else {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.more).logits
        return logits


class Stepwise(torch.nn.Module):
    """Reads tokens after those whose keys and values are given."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Return logits and all keys and values."""
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (found.logits, *present)


def write_onnx(folder: Path, target: Path, *, cache: bool = False, opset: int = 18) -> float:
    """Write a model folder as `target/model.onnx`; return the largest difference of a logit in onnxruntime.

    Raises `UsageError` for a model that has no such file, `DataError` where the file does not compute what it should.
    """
    require("onnxscript")
    runtime = require("onnxruntime")
    settings = read_config(folder)
    head = head_of(settings)
    if head == "seq2seq":
        raise UsageError("an encoder-decoder cannot be written as ONNX here")
    if cache and head != "causal":
        raise UsageError(f"only decoders have a cache; the head of this model is {head!r}")
    if settings.get(LOCAL_GLOBAL):
        raise UsageError("local_global attention, with which this model was trained, has no ONNX form here")
    if settings.get("quantization_config"):
        raise UsageError("the model is quantized already", hint="Export the model that it was made from.")
    model = load_model(folder)
    target.mkdir(parents=True, exist_ok=True)
    program = _traced(model, head == "causal", cache, opset)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    program.save(str(target / FILE), external_data=weights > LARGEST)
    for name in BESIDE:
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    return _check(runtime, target / FILE, model, head == "causal", cache)


def _traced(model: Any, decoder: bool, cache: bool, opset: int) -> Any:
    auto = torch.export.Dim.DYNAMIC
    names, outputs = ["input_ids", "attention_mask"], ["logits"]
    given = _example(model, cache, *TRIED[0])
    module: torch.nn.Module = Whole(model, decoder)
    shapes: tuple[Any, ...] = ({0: auto, 1: auto}, {0: auto, 1: auto})
    if cache:
        module = Stepwise(model)
        layers = len(given[3]) // 2
        names += ["position_ids", *_keys("past_key_values", layers)]
        outputs += _keys("present", layers)
        shapes = (*shapes, {0: auto, 1: auto}, [{0: auto, 2: auto}] * (2 * layers))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            given,
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    _name_sizes(program.model.graph, cache)
    return program


def _keys(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _name_sizes(graph: Any, cache: bool) -> None:
    """Give the sizes that may change names that people can read."""
    ir = require("onnx_ir")
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is None:
            continue
        where = value.name.partition(".")[0]
        named = {0: "batch", 1: "past + tokens" if cache and where == "attention_mask" else "tokens"}
        if where in ("past_key_values", "present"):
            named = {0: "batch", 2: "past" if where == "past_key_values" else "past + tokens"}
        for axis, name in named.items():
            if axis < len(value.shape) and not isinstance(value.shape[axis], int):
                value.shape[axis] = ir.SymbolicDim(name)


def _example(model: Any, cache: bool, batch: int, tokens: int, before: int) -> tuple[Any, ...]:
    """Return inputs of a size: ids that differ, the last row padded at its end where nothing is remembered."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(batch * tokens).reshape(batch, tokens) * 7 + 3) % rows
    if not cache:
        mask = torch.ones(batch, tokens, dtype=torch.long)
        if batch > 1:
            mask[-1, tokens - 2 :] = 0
        return ids, mask
    remembered = (torch.arange(batch * before).reshape(batch, before) * 5 + 2) % rows
    with torch.no_grad():
        layers = model(input_ids=remembered, use_cache=True).past_key_values.layers
    past = [tensor.clone() for layer in layers for tensor in (layer.keys, layer.values)]
    positions = torch.arange(before, before + tokens)[None].repeat(batch, 1)
    return ids, torch.ones(batch, before + tokens, dtype=torch.long), positions, past


def _check(runtime: Any, file: Path, model: Any, decoder: bool, cache: bool) -> float:
    """Run the file on other sizes than it was traced with; raises `DataError` where a logit differs."""
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    module = Stepwise(model) if cache else Whole(model, decoder)
    worst = 0.0
    for sizes in TRIED:
        given = _example(model, cache, *sizes)
        flat = [*given[:3], *given[3]] if cache else list(given)
        with torch.no_grad():
            wanted = module(*given)
        expected = wanted[0] if cache else wanted
        [found] = session.run(["logits"], {name: one.numpy() for name, one in zip(names, flat, strict=True)})
        difference = (torch.from_numpy(found) - expected).abs()
        if difference.dim() == 3 and not cache:
            difference = difference[given[1].bool()]
        worst = max(worst, float(difference.max()))
    if not worst <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise DataError(f"onnxruntime's logits differ from the model's by up to {worst:g}")
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice of the exporter off the terminal, and its many lines about symbols out of every handler."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
