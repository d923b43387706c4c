"""Parts that go whole: heads of attention, channels of the feed-forward, blocks. What is left is an ordinary model.

Every block loses the same number, so that the model's config can say it, and each loses what it misses least:

    heads    mean squared output of a key-value head with its queries, through the output layer
    width    mean squared output of a channel, through the layer that reads it
    layers   block influence: 1 - cosine between what goes into a block and what comes out (arXiv 2403.03853)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from catena.compress.blocks import Block, Measured, blocks_of, walk, walk_with_probe
from catena.compress.folds import find
from catena.core.errors import UsageError
from catena.core.stage import Context

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
WIDTH_NAMES = ("intermediate_size", "ffn_dim")


def remove_layers(ctx: Context, model: Any, text: Tensor, share: float) -> Any:
    """Take the blocks away that change their input least."""
    name, blocks = blocks_of(model)
    count = max(round(share * len(blocks)), 1)
    if count >= len(blocks):
        raise UsageError(f"sparsity: {share:g} of {len(blocks)} blocks leaves none")
    progress = ctx.progress("measure", len(blocks), "blocks")
    influence = []
    for block in walk(model, text):
        influence.append(sum(_influence(block, number) for number in range(len(block.hidden))) / len(block.hidden))
        progress.advance()
    progress.finish()
    gone = set(torch.tensor(influence).argsort(stable=True)[:count].tolist())
    for number, value in enumerate(influence):
        ctx.events.metric(f"influence/{number}", round(value, 5))
    config = model.config.get_text_config()
    keep = [number for number in range(len(blocks)) if number not in gone]
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(blocks):  # `layer_types` and the like
            setattr(config, key, [value[number] for number in keep])
    config.num_hidden_layers = len(keep)
    model.set_submodule(name, nn.ModuleList(blocks[number] for number in keep))
    return _again(model)


def _influence(block: Block, number: int) -> float:
    before, after = block.hidden[number], block.once(number)
    return float(1 - nn.functional.cosine_similarity(before, after, dim=-1).mean())


def remove_width(ctx: Context, model: Any, text: Tensor, share: float) -> Any:
    """Take channels of the feed-forward away, the same number in each block."""
    config = model.config.get_text_config()
    key = next((name for name in WIDTH_NAMES if getattr(config, name, None)), None)
    if key is None:
        raise UsageError(f"{type(model).__name__} does not say its feed-forward's width", hint="Prune heads or layers.")
    width = getattr(config, key)
    left = _rest(width, share, 8 if width >= 64 else 1, "channels")
    progress = ctx.progress("prune", config.num_hidden_layers, "blocks")
    for block, probe in walk_with_probe(model, text):
        pairs = [fold for fold in find(probe) if not fold.norm and block.linears()[fold.source].out_features == width]
        if len(pairs) != 1:
            raise UsageError(f"{block.name} has no feed-forward whose channels can be told", hint="Prune layers.")
        reader = block.linears()[pairs[0].layers[0]]
        score = channel_scores(reader.weight.detach().float(), block.measure()[pairs[0].layers[0]])
        keep = score.argsort(descending=True, stable=True)[:left].sort().values
        parent = pairs[0].source.rpartition(".")[0]
        for name, layer in block.linears().items():
            if name.rpartition(".")[0] == parent and layer is not reader and layer.out_features == width:
                _keep_rows(layer, keep)
        _keep_columns(reader, keep)
        progress.advance()
    progress.finish()
    setattr(config, key, left)
    return _again(model)


def channel_scores(weight: Tensor, inputs: Measured) -> Tensor:
    """Return for each input [in] of a weight [out, in] the mean square of what it adds to the output."""
    return inputs.gram.diagonal() * weight.square().sum(dim=0)


def remove_heads(ctx: Context, model: Any, text: Tensor, share: float) -> Any:
    """Take heads of attention away, the same number in each block; queries go with the keys and values they share."""
    config = model.config.get_text_config()
    queries = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    left = _rest(groups, share, 1, "key-value heads" if groups != queries else "heads")
    progress = ctx.progress("prune", config.num_hidden_layers, "blocks")
    for block in walk(model, text):
        layers = {name.rpartition(".")[2]: layer for name, layer in block.linears().items()}
        names = {name.rpartition(".")[2]: name for name in block.linears()}
        if not set(ATTENTION) <= set(layers):
            raise UsageError(
                f"the attention of {type(model).__name__} has no separate queries, keys and values",
                hint="Prune width or layers.",
            )
        output, inputs = layers["o_proj"].weight.detach().float(), block.measure()[names["o_proj"]]
        keep = head_scores(output, inputs.gram, groups).argsort(descending=True, stable=True)[:left].sort().values
        of_keys, of_queries = _places(keep, size), _places(keep, size * (queries // groups))
        _keep_rows(layers["q_proj"], of_queries)
        _keep_rows(layers["k_proj"], of_keys)
        _keep_rows(layers["v_proj"], of_keys)
        _keep_columns(layers["o_proj"], of_queries)
        progress.advance()
        # Only now: the block's own code asks the config for the shape.
        _tell_attention(block.module, left, left * (queries // groups))
    progress.finish()
    config.num_attention_heads, config.head_dim = left * (queries // groups), size
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = left
    return _again(model)


def head_scores(output: Tensor, gram: Tensor, heads: int) -> Tensor:
    """Return for each head the mean square of what it adds through the output layer's weight [out, heads * size]."""
    rows, size = output.shape
    weight = output.view(rows, heads, size // heads).transpose(0, 1)
    moments = gram.view(heads, size // heads, heads, size // heads).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return ((weight @ moments) * weight).sum(dim=(1, 2))


def _places(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size)).flatten()


def _tell_attention(block: nn.Module, groups: int, queries: int) -> None:
    for module in block.modules():
        for name, value in (("num_heads", queries), ("num_key_value_heads", groups)):
            if hasattr(module, name):
                setattr(module, name, value)


def _rest(count: int, share: float, step: int, what: str) -> int:
    """Return how many of `count` stay: a multiple of `step`, at least one of them."""
    left = round(count * (1 - share) / step) * step
    if not 0 < left < count:
        raise UsageError(
            f"sparsity: {share:g} of {count} {what} takes away {count - left}", hint=f"At least {step}, not all."
        )
    return left


def _keep_rows(layer: nn.Linear, keep: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[keep].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[keep].clone())
    layer.out_features = len(keep)


def _keep_columns(layer: nn.Linear, keep: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:, keep].clone())
    layer.in_features = len(keep)


def _again(model: Any) -> Any:
    """Return the model as its changed config builds it, with the weights that are left.

    Raises `UsageError` where the class builds other shapes than the weights have.
    """
    try:
        fresh = type(model)(type(model.config).from_dict(model.config.to_dict()))  # it checks itself when it is read
        fresh.load_state_dict(model.state_dict())
    except (RuntimeError, ValueError, StrictDataclassError) as error:
        why = str(error).strip().splitlines()[-1].strip()
        raise UsageError(
            f"{type(model).__name__} cannot be built with this structure: {why}",
            hint="Take another share, or prune other parts.",
        ) from error
    fresh.generation_config = getattr(model, "generation_config", None)
    return fresh.eval()


PARTS: dict[str, Callable[[Context, Any, Tensor, float], Any]] = {
    "heads": remove_heads,
    "width": remove_width,
    "layers": remove_layers,
}
