"""Quantization: smaller, close, repeatable, and in a layout that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from catena.compress.quantize import QuantizeConfig, quantize
from catena.core.errors import UsageError
from catena.core.events import read_events
from catena.core.stage import Context
from catena.core.types import ModelVersion
from catena.models import checkpoint


def weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_the_weights_shrink_to_less_than_half(context: Context, model: ModelVersion) -> None:
    small = quantize(context, QuantizeConfig(), model=model)
    assert weights(context.store.checkout(small)) < 0.45 * weights(context.store.checkout(model))
    assert small.size < model.size
    metrics = {
        event["name"]: event["value"]
        for event in read_events(context.workdir.parent / "events.jsonl")
        if event["event"] == "metric"
    }
    assert metrics["size_ratio"] == pytest.approx(small.size / model.size, abs=1e-4)
    assert metrics["quantized_layers"] == 4 * 7


def test_the_answers_stay_close(context: Context, model: ModelVersion) -> None:
    small = quantize(context, QuantizeConfig(), model=model)
    ids = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        before = checkpoint.load_model(context.store.checkout(model))(ids).logits
        after = checkpoint.load_model(context.store.checkout(small))(ids).logits
    # Random weights at the scale of the preset: rounding to 8 bits moves their logits by about 3 %.
    assert float((after - before).norm() / before.norm()) < 0.05


def test_it_says_what_it_is(context: Context, model: ModelVersion) -> None:
    small = quantize(context, QuantizeConfig(), model=model)
    assert (small.form, small.quantization, small.base) == ("quantized", "int8", model.digest)
    assert small.parameters == model.parameters
    assert (small.context, small.license) == (model.context, "CC0-1.0")
    config = json.loads((context.store.checkout(small) / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_the_same_model_gives_the_same_bytes_even_after_a_kill(context: Context, model: ModelVersion) -> None:
    first = quantize(context, QuantizeConfig(), model=model)
    (context.workdir / "model" / "left-by-a-killed-run").touch()
    assert quantize(context, QuantizeConfig(), model=model).digest == first.digest


def test_only_full_models_are_quantized(context: Context, model: ModelVersion) -> None:
    small = quantize(context, QuantizeConfig(), model=model)
    with pytest.raises(UsageError, match="only a full model"):
        quantize(context, QuantizeConfig(), model=small)
