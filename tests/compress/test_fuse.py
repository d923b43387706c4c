"""Fusion: the same answers from norms of ones and from joined layers."""

from __future__ import annotations

import pytest
import torch

from catena.compress.fuse import FuseConfig, fuse
from catena.core.errors import ConfigError, UsageError
from catena.core.stage import Context
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint
from tests.compress.test_prune import stored

IDS = torch.arange(60).reshape(2, 30)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "opt"])
def test_norms_of_ones_answer_as_before(store: Store, context: Context, model: ModelVersion, kind: str) -> None:
    whole = stored(store, context, kind, model)
    made = fuse(context, FuseConfig(), model=whole)
    before, after = (checkpoint.load_model(store.checkout(one)) for one in (whole, made))
    with torch.no_grad():
        assert torch.allclose(after(IDS).logits, before(IDS).logits, rtol=1e-3, atol=1e-4)
    ones = [name for name, weight in after.named_parameters() if "norm" in name and (weight == weight[0]).all()]
    assert len(ones) == 4  # two of each block


@pytest.mark.filterwarnings("ignore")
def test_a_llama_with_joined_layers_is_a_phi3(context: Context, model: ModelVersion) -> None:
    from transformers import AutoModelForCausalLM

    made = fuse(context, FuseConfig(norms=True, layers=True), model=model)
    assert (made.architecture, made.parameters, made.form) == ("Phi3ForCausalLM", model.parameters, "full")
    with torch.no_grad():
        before = checkpoint.load_model(context.store.checkout(model))(IDS).logits
        after = AutoModelForCausalLM.from_pretrained(context.store.checkout(made))(IDS).logits
    assert torch.allclose(after, before, atol=1e-4)


def test_what_cannot_be_fused_is_refused(
    store: Store, context: Context, model: ModelVersion, text: DatasetVersion
) -> None:
    with pytest.raises(ConfigError, match="nothing to do"):
        fuse(context, FuseConfig(norms=False), model=model)
    with pytest.raises(UsageError, match="cannot be joined"):
        fuse(context, FuseConfig(norms=False, layers=True), model=stored(store, context, "qwen3", model))
