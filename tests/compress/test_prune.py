"""Pruning: the zeros that were asked for, or a smaller dense model that plain `transformers` loads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from catena.compress.prune import PruneConfig, prune
from catena.core.config import parse
from catena.core.errors import ConfigError, UsageError
from catena.core.stage import Context
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint, quant
from tests.compress.test_methods import small as small_model

IDS = torch.arange(60).reshape(2, 30)


def config(**values: Any) -> PruneConfig:
    return parse(PruneConfig, {"calibration": {"tokens": 512, "length": 64}, **values}, where="test")


@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_half_of_the_weights_become_zeros(
    context: Context, model: ModelVersion, text: DatasetVersion, method: str, pattern: str | None
) -> None:
    made = prune(context, config(method=method, pattern=pattern), model=model, data=text)
    assert (made.form, made.base, made.parameters) == ("full", model.digest, model.parameters)
    for layer in quant.linears(checkpoint.load_model(context.store.checkout(made))).values():
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
        if pattern:
            assert (layer.weight == 0).view(len(layer.weight), -1, 4).sum(dim=2).ge(2).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "share", "changed"),
    [
        ("heads", 0.5, {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}),
        ("width", 0.25, {"intermediate_size": 264}),
        ("layers", 0.25, {"num_hidden_layers": 3}),
    ],
)
def test_parts_that_go_leave_an_ordinary_model(
    context: Context, model: ModelVersion, text: DatasetVersion, method: str, share: float, changed: dict[str, int]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    made = prune(context, config(method=method, sparsity=share), model=model, data=text)
    folder = context.store.checkout(made)
    assert made.parameters < model.parameters
    settings = AutoConfig.from_pretrained(folder)
    assert {key: getattr(settings, key) for key in changed} == changed
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
        assert torch.allclose(theirs, checkpoint.load_model(folder)(IDS).logits, atol=1e-5)


def stored(store: Store, context: Context, kind: str, model: ModelVersion) -> ModelVersion:
    """Store a small model of another architecture with the fixture's tokenizer."""
    _, tokenizer = checkpoint.load(store.checkout(model))
    made = small_model(kind)
    made.resize_token_embeddings(len(tokenizer))
    checkpoint.save(made, tokenizer, context.workdir / kind)
    return store.put_model(context.workdir / kind, **checkpoint.describe(context.workdir / kind))


@pytest.mark.parametrize(("kind", "method"), [("qwen3", "heads"), ("gemma3", "layers"), ("opt", "width")])
def test_other_architectures_lose_parts_too(
    store: Store, context: Context, model: ModelVersion, text: DatasetVersion, kind: str, method: str
) -> None:
    whole = stored(store, context, kind, model)
    made = prune(context, config(method=method, sparsity=0.5), model=whole, data=text)
    assert made.parameters < whole.parameters


def test_a_channel_that_does_nothing_goes_and_nothing_changes(
    store: Store, context: Context, model: ModelVersion, text: DatasetVersion
) -> None:
    loaded, tokenizer = checkpoint.load(store.checkout(model))
    with torch.no_grad():
        for block in loaded.model.layers:
            block.mlp.down_proj.weight[:, ::4] = 0
            block.self_attn.o_proj.weight[:, 32:96] = 0
        before = loaded(IDS).logits
    checkpoint.save(loaded, tokenizer, context.workdir / "idle")
    idle = store.put_model(context.workdir / "idle", **checkpoint.describe(context.workdir / "idle"))
    for method, share in (("width", 0.25), ("heads", 0.5)):
        made = prune(context, config(method=method, sparsity=share), model=idle, data=text)
        with torch.no_grad():
            after = checkpoint.load_model(store.checkout(made))(IDS).logits
        assert torch.allclose(after, before, atol=1e-4)


def test_what_cannot_be_pruned_is_refused(
    store: Store, context: Context, model: ModelVersion, text: DatasetVersion
) -> None:
    with pytest.raises(UsageError, match="method wanda needs calibration data"):
        prune(context, config(method="wanda"), model=model)
    with pytest.raises(UsageError, match="is for zeros"):
        prune(context, config(method="heads", pattern="2:4"), model=model, data=text)
    with pytest.raises(UsageError, match="takes away 0"):
        prune(context, config(method="heads", sparsity=0.05), model=model, data=text)
    with pytest.raises(UsageError, match="not a multiple of the number of attention heads"):
        prune(context, config(method="heads", sparsity=0.25), model=model, data=text)
    with pytest.raises(UsageError, match="leaves none"):
        prune(context, config(method="layers", sparsity=0.95), model=model, data=text)
    with pytest.raises(ConfigError, match="n less than m"):
        config(pattern="4:2")
    with pytest.raises(UsageError, match="no separate queries"):
        prune(context, config(method="heads"), model=stored(store, context, "phi3", model), data=text)
