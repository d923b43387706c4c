"""Adapters of the low-rank kind (LoRA, arXiv 2106.09685) beside one model in memory: each request answers with its own.

The weights stay as they are; where an adapter changes a layer, its small product is added to the rows of those who
asked for it. Adapters come and go while the engine runs. One that is loaded again under its name is another one: who
was on the way keeps the old, and nothing of its keys and values is taken from the prefix cache.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from catena.core.errors import DataError, UsageError, did_you_mean
from catena.infer.scheduler import Chunk

if TYPE_CHECKING:
    from catena.infer.engine import Engine

BEFORE, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Adapter:
    """By layer: `down` [rank, inputs] and `up` [outputs, rank], with the scale worked into `up`."""

    name: str
    layers: dict[str, tuple[Tensor, Tensor]]


class AdapterBank:
    """The adapters of one model, and whose rows they change in the step that runs."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._keys: dict[str, str] = {}
        """Name to the key that requests carry from now on."""
        self._adapters: dict[str, Adapter] = {}
        self._hooks: dict[str, Any] = {}
        self._rows: list[tuple[Adapter, Tensor]] = []

    @property
    def names(self) -> list[str]:
        """Names of the adapters that can be asked for."""
        with self._lock:
            return sorted(self._keys)

    @property
    def used(self) -> bool:
        """Whether any layer ever had an adapter: its hooks are in the way of compiled code."""
        return bool(self._hooks)

    def key(self, name: str) -> str:
        """Return what a request for the adapter of that name carries; raises `UsageError` where there is none."""
        if not name:
            return ""
        with self._lock:
            if name not in self._keys:
                raise UsageError(f"no adapter {name!r} is loaded", hint=did_you_mean(name, self._keys))
            return self._keys[name]

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter folder of PEFT under a name; one that has the name is replaced for requests to come."""
        adapter = Adapter(name, _read(folder, self._model))
        with self._lock:
            key = f"{name}#{next(self._numbers)}"
            self._keys[name], self._adapters[key] = key, adapter
            for layer in adapter.layers:
                if layer not in self._hooks:
                    module = self._model.get_submodule(layer)
                    self._hooks[layer] = module.register_forward_hook(self._hook(layer))

    def unload(self, name: str) -> None:
        """Take an adapter away from requests to come; raises `UsageError` where there is none."""
        self.key(name)
        with self._lock:
            del self._keys[name]

    def sweep(self, used: set[str]) -> None:
        """Free the adapters that have no name any more and that nobody on the way uses."""
        with self._lock:
            for key in set(self._adapters) - set(self._keys.values()) - used:
                del self._adapters[key]

    def select(self, row: Many[Chunk]) -> None:
        """Note whose tokens of a step's row each adapter changes."""
        if not self._adapters:
            self._rows = []
            return
        rows: dict[str, list[int]] = {}
        at = 0
        for chunk in row:
            size = chunk.stop - chunk.start
            if chunk.sequence.adapter:
                rows.setdefault(chunk.sequence.adapter, []).extend(range(at, at + size))
            at += size
        device = next(self._model.parameters()).device
        self._rows = [(self._adapters[key], torch.tensor(places, device=device)) for key, places in rows.items()]

    def _hook(self, layer: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for adapter, rows in self._rows:
                if layer in adapter.layers:
                    down, up = adapter.layers[layer]
                    # Most layers see the row [1, tokens, width]; some see it flat.
                    flat = inputs[0].reshape(-1, inputs[0].shape[-1])
                    change = (flat[rows] @ down.T) @ up.T
                    output = output.reshape(-1, output.shape[-1]).index_add(0, rows, change).view_as(output)
            return output

        return add


class TakesAdapters:
    """What lets an engine's requests answer with adapters."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Let requests answer with a low-rank adapter, by name; while others are on their way.

        Raises `UsageError` or `DataError` for an adapter that does not fit, or cannot stand beside others.
        """
        engine = cast("Engine", self)
        if not engine.runner.paged:
            raise UsageError("adapters need a paged cache, which this model cannot have", hint="Merge it.")
        with engine._stepping, engine._wake:
            engine.runner.adapters.load(name, folder)
            self._sweep()

    def unload_adapter(self, name: str) -> None:
        """Take an adapter away; who is on the way still answers with it. Raises `UsageError` where there is none."""
        engine = cast("Engine", self)
        with engine._stepping, engine._wake:
            engine.runner.adapters.unload(name)
            self._sweep()

    def _sweep(self) -> None:
        engine = cast("Engine", self)
        engine.runner.adapters.sweep({ticket.sequence.adapter for ticket in engine._tickets.values()})

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that requests may ask for."""
        return cast("Engine", self).runner.adapters.names


def _read(folder: Path, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the layers of an adapter folder and check that they fit the model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from catena.models.adapter_folder import SETTINGS, TENSORS, read

    facts = read(folder)
    if facts["kind"] != "lora":
        raise UsageError(
            f"the adapter in {folder} is of the kind {facts['kind']}; only lora can be used beside others",
            hint="Merge it into its base (train.merge) and serve that.",
        )
    if facts["weights"] != "float32":
        raise UsageError(
            f"the adapter in {folder} was trained on weights rounded to {facts['weights']}, which its base here is not",
            hint="Merge it into its base (train.merge) and serve that.",
        )
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    for name in ("alpha_pattern", "rank_pattern", "modules_to_save", "layer_replication"):
        if settings.get(name):
            raise UsageError(f"the adapter in {folder} uses {name}, which cannot be used beside others: merge it")
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise DataError(f"the adapter in {folder} cannot be read: {error}") from error
    rank = settings["r"]
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(tensors):
        if not name.endswith(DOWN):
            continue
        layer = name.removeprefix(BEFORE).removesuffix(DOWN)
        down, up = tensors[name], tensors.get(name.removesuffix(DOWN) + UP)
        layers[layer] = _fitted(folder, model, layer, down, up, scale)
    if 2 * len(layers) != len(tensors):
        raise DataError(f"the adapter in {folder} holds more than low-rank layers, for example {min(tensors)}")
    return layers


def _fitted(
    folder: Path, model: nn.Module, layer: str, down: Tensor, up: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        module = None
    sides = _sides(module)
    if sides is None or up is None or (down.shape[1], up.shape[0]) != sides:
        raise DataError(
            f"the adapter in {folder} does not fit the model: layer {layer}", hint="It was trained on another base."
        )
    parameter = next(model.parameters())
    kind = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
    return down.to(parameter.device, kind), (up * scale).to(parameter.device, kind)


def _sides(module: nn.Module | None) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a linear layer, or None for anything else."""
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):  # nn.Linear; the Conv1D of GPT-2
        if hasattr(module, inputs):
            return int(getattr(module, inputs)), int(getattr(module, outputs))
    return None
