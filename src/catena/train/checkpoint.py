"""Training checkpoints: all that a killed training needs to go on bit-exactly. No pickle.

    <workdir>/checkpoint-00000200/
        model.safetensors       weights
        optimizer.safetensors   AdamW's moments by parameter name, and the state of torch's random numbers
        state.json              counters, and size and SHA-256 of both files

A folder appears in one rename, synced; the two newest are kept, so that a damaged one still leaves a way on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from catena.core.digest import sha256_of_file
from catena.hub.files import sync_folder

PREFIX = "checkpoint-"
FILES = ("model.safetensors", "optimizer.safetensors")
KEPT = 2
CPU_RANDOM, GPU_RANDOM = "random.cpu", "random.cuda"


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: dict[str, Any]) -> None:
    """Write a checkpoint named by `counters["step"]`, and remove all but the newest two."""
    target = folder / f"{PREFIX}{counters['step']:08d}"
    writing = folder / f".{target.name}.writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    save_file({name: tensor.detach().cpu() for name, tensor in model.named_parameters()}, writing / FILES[0])
    save_file(_optimizer_tensors(model, optimizer), writing / FILES[1])
    digests = {name: sha256_of_file(writing / name) for name in FILES}
    (writing / "state.json").write_text(json.dumps({"counters": counters, "sha256": digests}, indent=1))
    sync_folder(writing)
    shutil.rmtree(target, ignore_errors=True)
    writing.rename(target)
    _sync_entry(folder)
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Put the newest sound checkpoint into model and optimizer; returns its counters, or None where there is none.

    One that is damaged, or that another training left (`fingerprint` in its counters differs), is passed over and `say`
    is told.
    """
    for path in _newest_first(folder):
        try:
            state = json.loads((path / "state.json").read_text())
            counters: dict[str, Any] = state["counters"]
            damaged = [name for name in FILES if sha256_of_file(path / name) != state["sha256"][name]]
        except (OSError, ValueError, KeyError) as error:
            say(f"{path.name} cannot be read ({error}); trying the one before it, or starting over")
            continue
        if damaged:
            say(f"{path.name} is damaged ({damaged[0]}); trying the one before it, or starting over")
        elif counters.get("fingerprint") != fingerprint:
            say(f"{path.name} was left by another training; not used")
        else:
            _restore(model, optimizer, load_file(path / FILES[0]), load_file(path / FILES[1]))
            return counters
    return None


def _sync_entry(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"), reverse=True)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {CPU_RANDOM: torch.get_rng_state()}
    if any(parameter.is_cuda for parameter in model.parameters()):
        tensors[GPU_RANDOM] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu()
    return tensors


def _restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], moments: dict[str, Tensor]
) -> None:
    torch.set_rng_state(moments.pop(CPU_RANDOM))
    gpu_random = moments.pop(GPU_RANDOM, None)
    if gpu_random is not None and torch.cuda.device_count():
        torch.cuda.set_rng_state(gpu_random)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for name, value in moments.items():
        key, _, parameter_name = name.partition("/")
        parameter = parameters[parameter_name]
        optimizer.state[parameter][key] = value.to(parameter.device)
