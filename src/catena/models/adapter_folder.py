"""Adapter folders: what training with an adapter leaves, and how it comes back onto its base.

    adapter_config.json         PEFT's; `base_model_name_or_path` is the base's digest
    adapter_model.safetensors   the adapter's weights, and a classifier's head
    adapter_base.json           ours: the base's digest, and the number format that it was frozen in
    config.json, tokenizer.json ...   as in a model folder: what the model with the adapter is

The base lies beside the folder, under its digest: a store lays both out. Plain PEFT loads the adapter onto it with
`PeftModel.from_pretrained(base, folder)`. One that was trained on a rounded base (int8, nf4) has learnt around the
rounding, so here it goes onto the rounded values, and these are what merging keeps: the merged model computes what was
trained.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from catena.core.errors import DataError, NotFound, UsageError
from catena.core.registry import require
from catena.models.adapters import Weights, dense_layers, quiet_peft
from catena.models.nf4 import round_
from catena.models.tokenizer import save_tokenizer
from catena.models.virtual_tokens import prompt_kind

SETTINGS, TENSORS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
KINDS = {"LORA": "lora", "PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix"}


def save(adapted: Any, tokenizer: Any, folder: Path, base: str = "", weights: Weights = "float32") -> None:
    """Write an adapter and the tokenizer into `folder`; `base` is the digest of the model it was put on.

    Equal weights give equal bytes: what PEFT keeps as a set is sorted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = adapted.peft_config["default"].to_dict()
    settings |= {"base_model_name_or_path": base, "inference_mode": True}
    found = require("peft").get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(found.items())}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    for name, values in ((SETTINGS, settings), (BASE, {"base": base, "weights": weights})):
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, default=_sorted)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    model = adapted.get_base_model()
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        generation.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def _sorted(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and not a whole model."""
    return (folder / SETTINGS).exists()


def read(folder: Path) -> dict[str, Any]:
    """Return `kind`, `base` (a digest, or what PEFT says) and `weights` of an adapter folder, ours or plain PEFT's.

    Raises `DataError` where it is damaged, of a kind that Catena does not know, or has its weights as a pickle.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        ours = json.loads((folder / BASE).read_text(encoding="utf-8")) if (folder / BASE).exists() else {}
        kind = KINDS[settings["peft_type"]]
    except KeyError as error:
        raise DataError(
            f"the adapter in {folder} is of a kind that Catena does not know ({error})",
            hint=f"It knows {', '.join(sorted(KINDS))}.",
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"the adapter in {folder} cannot be read: {error}") from error
    if not (folder / TENSORS).exists():
        raise DataError(
            f"{folder} has no {TENSORS}", hint="An adapter's weights are safetensors; a pickle could run any code."
        )
    facts = {"base": settings.get("base_model_name_or_path") or "", "weights": "float32"}
    return {**facts, **ours, "kind": "dora" if settings.get("use_dora") else kind}


def base_folder(folder: Path) -> Path:
    """Return the folder of the base that lies beside an adapter's folder; raises `NotFound` where it does not."""
    base: str = read(folder)["base"]
    found = folder.parent / base
    if not base or not (found / "config.json").exists():
        raise NotFound(
            f"the base of the adapter in {folder} is not beside it", hint=f"Put it into {found}, or merge the two."
        )
    return found


def put_on(model: Any, folder: Path) -> Any:
    """Put a stored adapter onto its base (dense, float32), which is changed in place; returns PEFT's model around it.

    Raises `DataError` where the two do not belong together.
    """
    facts = read(folder)
    if facts["weights"] == "bfloat16":
        model.to(torch.bfloat16).to(torch.float32)
    elif facts["weights"] != "float32":
        round_(model, dense_layers(model), facts["weights"])
    try:
        with quiet_peft():
            return require("peft").PeftModel.from_pretrained(model, str(folder)).eval()
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"the adapter in {folder} does not fit the model: {lines[0]}", hint="Give the base it was trained on."
        ) from error


def merge(adapted: Any) -> Any:
    """Return the plain model with a low-rank adapter added to its weights. Raises `UsageError` for the other kinds."""
    kind = prompt_kind(adapted)
    if kind is not None:
        raise UsageError(
            f"a {kind} adapter stands before the input and is in no weight, so it cannot be merged",
            hint="Use it with plain PEFT, or train one of the kind lora or dora.",
        )
    return adapted.merge_and_unload()
