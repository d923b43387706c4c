"""Writing a GGUF file: the keys, the tokenizer, then each tensor by itself, so that memory holds one at a time."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open

from catena.core.errors import DataError, UsageError
from catena.core.registry import require
from catena.models import adapter_folder
from catena.models.checkpoint import read_config, weight_files
from catena.models.gguf.architectures import (
    ROPE_FREQS,
    TRANSPOSED,
    Architecture,
    Array,
    architecture_of,
    keys,
    prepared,
    rope_factors,
)
from catena.models.gguf.vocabulary import Vocabulary, template_of, vocabulary_of
from catena.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)
GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
FILE = "model.gguf"
BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Copied beside the file: Catena reads text by them, whoever runs the model."""
BLOCK = 32
"""Values that share a scale in q8_0 and q4_0."""
OUTER = ("token_embd.weight", "output.weight", "position_embd.weight")
"""Tensors that q4_0 leaves at q8_0: they are read by every token, and small beside the layers of a large model."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    file: Path
    tensors: int
    exact_tokenizer: bool
    """Whether llama.cpp cuts every text as the tokenizer does."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    format: Any
    read: Callable[[], Array]


def write_folder(
    folder: Path,
    target: Path,
    kind: GgufType = "f16",
    *,
    name: str = "",
    license: str | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> Written:
    """Write a model folder as `target/model.gguf`, with its tokenizer's files beside it.

    Raises `UsageError` for a model that llama.cpp would not compute as `transformers` does, `DataError` for a folder
    that lacks something.
    """
    gguf = require("gguf")
    if adapter_folder.is_adapter(folder):
        raise UsageError("an adapter cannot be written as GGUF by itself", hint="Merge it first: train.merge.")
    settings = read_config(folder)
    architecture = architecture_of(settings)
    tokenizer = load_tokenizer(folder)
    rows = settings["vocab_size"]
    vocabulary = vocabulary_of(tokenizer, rows)
    target.mkdir(parents=True, exist_ok=True)
    file, part = target / FILE, target / f"{FILE}.part"
    writer = gguf.GGUFWriter(part, architecture.name)
    _add_keys(writer, keys(settings, architecture), architecture.name)
    writer.add_name(name or folder.name)
    if license:
        writer.add_license(license)
    writer.add_file_type(_file_type(gguf, kind))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, vocabulary, tokenizer, _ends(folder, settings, tokenizer))
    count = _write(gguf, writer, _planned(gguf, folder, settings, architecture, kind), on_tensor)
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    part.rename(file)
    for beside in BESIDE:
        if (folder / beside).exists():
            shutil.copyfile(folder / beside, target / beside)
    if not vocabulary.exact:
        logger.warning(
            "llama.cpp cuts text by another rule than this tokenizer; prompts as token ids are not concerned"
        )
    return Written(file, count, vocabulary.exact)


def _write(gguf: Any, writer: Any, tensors: list[Planned], on_tensor: Callable[[], None]) -> int:
    for one in tensors:
        block, size = gguf.GGML_QUANT_SIZES[one.format]
        bytes_ = int(np.prod(one.shape)) // block * size
        plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
        if one.format in plain:
            writer.add_tensor_info(one.name, one.shape, np.dtype(plain[one.format]), bytes_)
        else:
            shape = gguf.quant_shape_to_byte_shape(one.shape, one.format)
            writer.add_tensor_info(one.name, shape, np.dtype(np.uint8), bytes_, raw_dtype=one.format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in tensors:
        writer.write_tensor_data(gguf.quants.quantize(one.read(), one.format))
        on_tensor()
    writer.close()
    return len(tensors)


def _planned(
    gguf: Any, folder: Path, settings: Mapping[str, Any], architecture: Architecture, kind: GgufType
) -> list[Planned]:
    """Return every tensor with its name in the file, its shape and its format."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    layers = int(settings.get("num_hidden_layers") or settings["n_layer"])
    names = gguf.get_tensor_name_map(arch, layers)
    tied = settings.get("tie_word_embeddings", True)
    found: list[Planned] = []
    for name, shape, read in _stored(folder):
        if name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
            continue  # buffers of older releases
        if name == "lm_head.weight" and tied:
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            raise DataError(f"the tensor {name} has no place in a GGUF file of the architecture {architecture.name}")
        shape = shape[::-1] if architecture.transposed and name.endswith(TRANSPOSED) else shape
        ready = partial(_ready, name, read, settings, architecture)
        found.append(Planned(own, shape, _format(gguf, own, shape, kind), ready))
    factors = rope_factors(settings)
    if factors is not None:
        found.append(Planned(ROPE_FREQS, factors.shape, gguf.GGMLQuantizationType.F32, lambda: factors))
    if len({one.name for one in found}) != len(found):
        raise DataError(f"two tensors of {folder} have one name in a GGUF file")
    return found


def _ready(name: str, read: Callable[[], Array], settings: Mapping[str, Any], architecture: Architecture) -> Array:
    return prepared(name, read(), settings, architecture)


def _stored(folder: Path) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Array]]]:
    """Give every stored tensor with its shape and a function that reads it, as float32."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        for name, shape in shapes.items():
            yield name, shape, partial(_read, path, name)


def _read(path: Path, name: str) -> Array:
    with safe_open(path, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    if not tensor.dtype.is_floating_point:
        raise DataError(f"{path} holds {name} as {tensor.dtype}, which is no number format of a weight")
    array: Array = tensor.float().numpy()
    return array


def _format(gguf: Any, name: str, shape: tuple[int, ...], kind: GgufType) -> Any:
    """Return the number format of a tensor: vectors stay whole, and rows that no block of 32 divides stay half."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2 or kind == "f32":
        return types.F32
    if kind in ("q8_0", "q4_0"):
        if shape[-1] % BLOCK:
            return types.F16
        return types.Q8_0 if kind == "q8_0" or name in OUTER else types.Q4_0
    return types.BF16 if kind == "bf16" else types.F16


def _file_type(gguf: Any, kind: GgufType) -> Any:
    types = gguf.LlamaFileType
    return {
        "f32": types.ALL_F32,
        "f16": types.MOSTLY_F16,
        "bf16": types.MOSTLY_BF16,
        "q8_0": types.MOSTLY_Q8_0,
        "q4_0": types.MOSTLY_Q4_0,
    }[kind]


def _add_keys(writer: Any, values: Mapping[str, Any], architecture: str) -> None:
    for key, value in values.items():
        place = f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(place, value)
        elif isinstance(value, str):
            writer.add_string(place, value)
        elif isinstance(value, float):
            writer.add_float32(place, value)
        else:
            writer.add_uint32(place, int(value))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Any, ends: list[int]) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list([token.encode() for token in vocabulary.tokens])
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
    writer.add_add_space_prefix(vocabulary.spaced)
    begin = tokenizer.bos_token_id
    if begin is not None:
        writer.add_bos_token_id(begin)
    read = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(begin is not None and read[:1] == [begin])
    writer.add_add_eos_token(False)
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    template = template_of(tokenizer)
    if template is not None:
        writer.add_chat_template(template)


def _ends(folder: Path, settings: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer; that of the tokenizer first."""
    ends = settings.get("eos_token_id")
    generation = folder / "generation_config.json"
    if generation.exists():
        told = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
        ends = ends if told is None else told
    listed = ends if isinstance(ends, list) else [ends]
    own = tokenizer.eos_token_id
    return [one for one in dict.fromkeys([own if own in listed else None, *listed, own]) if one is not None]
