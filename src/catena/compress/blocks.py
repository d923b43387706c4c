"""Blocks: a model taken one after another, each measured on calibration text with those before it as they became.

    embedding -> block 1 -> block 2 -> ...
                 |          |
                 measured   measured with block 1 as it became

All that the methods ask is kept in one matrix for each input: its second moments, `inputs.T @ inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catena.core.errors import UsageError

ROWS_AT_ONCE = 8
PROBE = 48
"""Tokens of the row that folds are found with."""


@dataclass
class Measured:
    """What is known of the input of one or more linear layers."""

    gram: Tensor
    """Mean over tokens of `input.T @ input`: [in, in]."""
    mean: Tensor
    """Mean magnitude of each input: [in]."""
    largest: Tensor
    """Largest magnitude of each input: [in]."""
    tokens: int = 0

    @classmethod
    def empty(cls, size: int) -> Measured:
        """Return a measurement of nothing yet."""
        return cls(torch.zeros(size, size), torch.zeros(size), torch.zeros(size))

    def add(self, inputs: Tensor) -> None:
        """Count inputs [..., in] in."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.tokens, share = self.tokens + len(rows), len(rows) / (self.tokens + len(rows))
        self.gram += (rows.T @ rows / len(rows) - self.gram) * share
        self.mean += (rows.abs().mean(dim=0) - self.mean) * share
        self.largest = torch.maximum(self.largest, rows.abs().amax(dim=0))

    def divide(self, scale: Tensor) -> None:
        """Follow inputs that are divided by `scale` from now on."""
        self.gram /= scale[:, None] * scale[None, :]
        self.mean /= scale
        self.largest /= scale


@dataclass
class Block:
    """One block of a model, with what goes into it."""

    name: str
    module: nn.Module
    hidden: list[Tensor]
    given: list[Mapping[str, Any]]
    """The other arguments, by batch: masks and positions."""

    def run(self) -> list[Tensor]:
        """Return what comes out now, by batch."""
        return [self.once(number) for number in range(len(self.hidden))]

    def once(self, number: int = 0) -> Tensor:
        """Return what comes out for one batch."""
        with torch.no_grad():
            out = self.module(self.hidden[number], **self.given[number])
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def linears(self) -> dict[str, nn.Linear]:
        """Return its dense linear layers, by name within it."""
        return {name: layer for name, layer in self.module.named_modules() if isinstance(layer, nn.Linear)}

    def measure(self) -> dict[str, Measured]:
        """Run every batch and return what went into each linear layer. Layers that share an input share the object."""
        found: dict[str, Measured] = {}
        last: list[Any] = [None, None]

        def look(name: str, layer: nn.Linear) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                if name not in found:
                    found[name] = last[1] if last[0] is inputs[0] else Measured.empty(layer.in_features)
                if last[0] is not inputs[0]:
                    found[name].add(inputs[0])
                last[:] = inputs[0], found[name]

            return layer.register_forward_pre_hook(hook)

        hooks = [look(name, layer) for name, layer in self.linears().items()]
        try:
            self.run()
        finally:
            for hook in hooks:
                hook.remove()
        return found


def walk(model: Any, rows: Tensor) -> Iterator[Block]:
    """Yield a model's blocks in order. What is changed in one before the next is taken, the next one feels."""
    name, blocks = blocks_of(model)
    hidden: list[Tensor] = []
    given: list[list[Mapping[str, Any]]] = [[] for _ in blocks]

    def look(number: int, block: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], others: dict[str, Any]) -> None:
            first, rest = (inputs[0], others) if inputs else (others["hidden_states"], dict(others))
            rest.pop("hidden_states", None)
            if number == 0:
                hidden.append(first)
            given[number].append(rest)

        return block.register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [look(number, block) for number, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            for batch in torch.split(rows, ROWS_AT_ONCE):
                model(input_ids=batch.to(next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for number, module in enumerate(blocks):
        block = Block(f"{name}.{number}", module, hidden, given[number])
        yield block
        hidden = block.run()


def walk_with_probe(model: Any, rows: Tensor) -> Iterator[tuple[Block, Block]]:
    """Yield each block twice: with all rows, and with the beginning of one, on which questions are asked quickly."""
    yield from zip(walk(model, rows), walk(model, rows[:1, :PROBE]), strict=True)


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Return the list of a model's blocks and its name; raises `UsageError` for a model that is built otherwise."""
    layers = model.config.get_text_config().num_hidden_layers
    if not model.config.is_encoder_decoder:
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == layers:
                return name, module
    raise UsageError(
        f"{type(model).__name__} is not one row of blocks, which methods that measure inputs walk along",
        hint="Take the method rtn, which needs no data.",
    )
