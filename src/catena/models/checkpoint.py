"""Checkpoints: model folders as plain `transformers` reads them. Training writes them, everything after reads them.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  chat_template.jinja

Weights are safetensors only: a pickle runs code when it is opened, so `.bin` files are refused, as is code that a
folder brings along (`trust_remote_code`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, initialization
from transformers.utils import logging as transformers_logging

from catena.core.errors import DataError, NotFound, UsageError
from catena.models import adapter_folder, quant
from catena.models.attention import use_stored_attention
from catena.models.attention_settings import LOCAL_GLOBAL
from catena.models.heads import CLASSES, Head, context_of, head_of, labels_of, load_dense, refuse_gaps
from catena.models.tokenizer import load_tokenizer, save_tokenizer
from catena.models.virtual_tokens import prompt_kind

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "F8_E4M3": "float8"}
PACKED = {"I32": (8, "int4"), "U8": (2, "float4")}
"""How many numbers a `weight_packed` has in each of its own, and what they are called."""
# What stands beside weights that are quantized, and buffers that older releases of `transformers` wrote.
NOT_PARAMETERS = (
    *(".weight_scale", ".weight_global_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx"),
    *(".position_ids", ".attn.bias", ".attn.masked_bias", "final_logits_bias"),
)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model (with packed layers or without) and its tokenizer into `folder`, made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # classifiers and encoders do not generate
        generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    if quant.is_quantized(model):
        _save_quantized(model, folder)
    else:
        with _quiet():
            model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def _save_quantized(model: Any, folder: Path) -> None:
    tensors = quant.stored_tensors(model)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))
    halved = any(tensor.dtype == torch.float16 for tensor in tensors.values())
    config["dtype"] = "float16" if halved else config.get("dtype")
    config["quantization_config"] = quant.settings_of(model)
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    model.generation_config.save_pretrained(folder)


def load(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    head: Head | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    adapted: bool = False,
) -> tuple[Any, Any]:
    """Load (model, tokenizer) from a folder, dense or quantized, ready for inference: with its own head, or a new one.

    A new `head` gets weights that `seed` decides, and a classifier its `labels`. Raises `NotFound` or `DataError` for a
    folder that lacks something, is damaged, or whose tokenizer has more tokens than the model.
    """
    model = load_model(folder, dtype, device, head=head, labels=labels, seed=seed, adapted=adapted)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise DataError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model only {model.config.vocab_size}",
            hint="They do not belong together.",
        )
    return model, tokenizer


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    head: Head | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    adapted: bool = False,
) -> Any:
    """Load the model of a folder without its tokenizer; see `load`."""
    if adapter_folder.is_adapter(folder):
        return _load_adapted(folder, dtype, head, keep=adapted).to(device).eval()
    settings = read_config(folder)
    weight_files(folder)
    own = head_of(settings)
    quantized = settings.get("quantization_config")
    if quantized and (labels is not None or head not in (None, own)):
        raise UsageError(
            f"the model in {folder} is quantized; a new head cannot be put on it",
            hint="Put it on the model that this one was made smaller from.",
        )
    try:
        with _quiet():
            if quantized:
                model = _load_quantized(folder, own, quantized, dtype)
            else:
                model = load_dense(folder, own, dtype, head=head, labels=labels, seed=seed)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"the model in {folder} cannot be loaded: {lines[0]}") from error
    return use_stored_attention(model).to(device).eval()


def _load_adapted(folder: Path, dtype: torch.dtype, head: Head | None, *, keep: bool) -> Any:
    """Load the base of an adapter, merge the two, or `keep` an adapter around it that cannot be merged."""
    settings = read_config(folder)
    own = head_of(settings)
    if head not in (None, own):
        raise UsageError(f"{folder} is an adapter for the head {own}", hint="Merge it first: train.merge.")
    model = load_model(adapter_folder.base_folder(folder), head=own, labels=labels_of(settings) or None)
    if settings.get(LOCAL_GLOBAL):  # trained so on a base that attends densely
        setattr(model.config, LOCAL_GLOBAL, settings[LOCAL_GLOBAL])
        use_stored_attention(model)
    around = adapter_folder.put_on(model, folder)
    return (around if keep and prompt_kind(around) else adapter_folder.merge(around)).to(dtype)


def _load_quantized(folder: Path, own: Head, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    del config.quantization_config
    with initialization.no_init_weights():
        model = CLASSES[own].from_config(config, dtype=dtype, trust_remote_code=False)
    quant.prepare_(model, settings)
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        tensors.update(load_file(path))
    found = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    refuse_gaps(folder, set(found.missing_keys) - tied, found.unexpected_keys)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json; raises `NotFound` without a folder and `DataError` for one without a readable config."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no config.json", hint="A model is a folder with config.json and weights."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"config.json in {folder} cannot be read: {error}") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise DataError(f"config.json in {folder} does not say the model_type")
    return settings


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files; raises `DataError` when there are none, only pickles, or fewer than the index names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickles:
            raise DataError(
                f"{folder} has its weights as a pickle ({pickles[0]}), which could run any code",
                hint="Convert it with a tool you trust to model.safetensors.",
            )
        raise DataError(f"{folder} has no weights", hint="A model is a folder with config.json and *.safetensors.")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        gone = sorted(path.name for path in named if not path.exists())
        if gone:
            raise DataError(f"{folder} lacks the weight file {gone[0]}", hint="Its index names it; copy it again.")
    return files


def describe(folder: Path) -> dict[str, Any]:
    """Return the facts of a model folder as fields of `ModelVersion`; reads headers only.

    `architecture`, `parameters` (tied ones once), `dtype` (of most parameters), `context` (tokens), `quantization`.
    """
    settings = read_config(folder)
    counts: dict[str, int] = {}
    for name, dtype, size in _tensors(folder):
        if not name.endswith(NOT_PARAMETERS):
            times, kind = PACKED.get(dtype, (1, dtype)) if name.endswith(".weight_packed") else (1, dtype)
            counts[kind] = counts.get(kind, 0) + size * times
    most = max(counts, key=lambda key: counts[key], default="")
    quantization = settings.get("quantization_config")
    return {
        "architecture": (settings.get("architectures") or [""])[0],
        "parameters": sum(counts.values()),
        "dtype": DTYPES.get(most, most.lower()),
        "context": context_of(settings),
        "quantization": quant.scheme_of(quantization) if quantization else None,
    }


def _tensors(folder: Path) -> Iterator[tuple[str, str, int]]:
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  not a mapping: it has no iterator
                    piece = opened.get_slice(name)
                    size = 1
                    for length in piece.get_shape():
                        size *= length
                    yield name, piece.get_dtype(), size
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged: {error}", hint="Copy or make it again.") from error


class _quiet:
    """Keep the progress bars and advice of `transformers` off the terminal: the events tell what goes on."""

    def __enter__(self) -> None:
        self._verbosity = transformers_logging.get_verbosity()
        self._bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._warnings.__exit__(None, None, None)
        transformers_logging.set_verbosity(self._verbosity)
        if self._bars:
            transformers_logging.enable_progress_bar()
